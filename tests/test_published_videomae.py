"""VideoMAE: features equal those of Ge et al.'s code and of transformers' own model on the same weights."""

import numpy as np
import pytest
import torch
from fixtures.random_weights import random_clips, random_weights
from published_files import reference
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.published import videomae
from pyoco_pipeline.evaluation.published.videomae import giant_config, load_videomae_v2
from pyoco_pipeline.evaluation.published.weights import Published, check_weights

SMALL = {
    "image_size": 28,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 144,
}


def published_shapes(width=48, depth=3, hidden=144, patch=14, classes=174):
    """Key names and shapes of VideoMAE-v2's own file."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, 2, patch, patch),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(depth):
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


@pytest.fixture
def published_file(tmp_path):
    state = {name: torch.from_numpy(v) for name, v in random_weights(published_shapes()).items()}
    torch.save({"module": state}, tmp_path / "vit_g_hybrid_pt_1200e_ssv2_ft.pth")
    return tmp_path / "vit_g_hybrid_pt_1200e_ssv2_ft.pth"


def test_features_equal_those_of_the_content_debiased_fvd(published_file, monkeypatch):
    monkeypatch.setattr(videomae, "giant_config", lambda: giant_config(**SMALL))
    extractor = open_extractor("videomae_ssv2", published_file, allow_other_weights=True)
    found = extractor.features(random_clips(2, 16, 20, 36))
    np.testing.assert_allclose(found, reference("videomae_ssv2")["features"], atol=1e-5)
    assert extractor.name == "videomae_ssv2_other_weights"


def test_a_file_of_another_size_is_told_by_its_shapes(published_file):
    weights = check_weights(published_file, Published("a", "b"))
    with pytest.raises(UserError, match="has other shapes"):
        load_videomae_v2(weights, giant_config(**(SMALL | {"intermediate_size": 96})))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("videomae")
    model = VideoMAEForVideoClassification(giant_config(**SMALL))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def test_features_are_what_transformers_classifies(folder):
    extractor = open_extractor("videomae_ssv2", folder)
    model = VideoMAEForVideoClassification.from_pretrained(folder).eval()
    clips = random_clips(2, 16, 20, 36)
    features = extractor.features(clips)
    assert features.shape == (2, 48)
    with torch.inference_mode():
        expected = model(extractor.prepare(torch.from_numpy(clips))).logits
        found = model.classifier(torch.from_numpy(features))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pixels_are_not_normalised_by_imagenet(folder):
    extractor = open_extractor("videomae_ssv2", folder)
    x = extractor.prepare(torch.full((1, 16, 20, 36, 3), 255, dtype=torch.uint8))
    assert x.shape == (1, 16, 3, 28, 28)
    torch.testing.assert_close(x, torch.ones_like(x))


def test_clips_of_another_length_are_refused(folder):
    with pytest.raises(ValueError, match="clips of 16 frames, not of 8"):
        open_extractor("videomae_ssv2", folder).features(random_clips(1, 8, 20, 20))


def test_a_model_that_was_only_pretrained_is_refused(tmp_path):
    tiny = SMALL | {
        "decoder_num_hidden_layers": 1,
        "decoder_hidden_size": 24,
        "decoder_num_attention_heads": 2,
    }
    VideoMAEForPreTraining(VideoMAEConfig(patch_size=14, **tiny)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks .*of VideoMAEForVideoClassification"):
        open_extractor("videomae_ssv2", tmp_path)


def test_a_model_without_mean_pooling_is_refused(tmp_path):
    config = giant_config(**SMALL, use_mean_pooling=False)
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="use_mean_pooling"):
        open_extractor("videomae_ssv2", tmp_path)
