"""CLIP: image and text features equal those of transformers' own processor and model."""

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.random_weights import random_clips
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractor_registry import open_extractor

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of a few thousand weights with a tokeniser of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1,
            "max_position_embeddings": 12}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small | text,
        vision_config=small | {"image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config)
    for parameter in model.parameters():  # transformers' own initial weights make all pictures alike
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return open_extractor("clip_vitb32", folder)


@pytest.fixture(scope="module")
def model(folder):
    return CLIPModel.from_pretrained(folder).eval()


def expected_features(model, frames):
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output).numpy()


@pytest.mark.parametrize("shape", [(40, 60), (64, 32), (32, 32), (20, 16)])
def test_image_features_equal_those_of_transformers(clip, model, shape):
    clips = random_clips(2, 3, *shape)
    expected = expected_features(model, clips.reshape(6, *shape, 3))
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # the pictures matter
    np.testing.assert_allclose(clip.features(clips), expected, atol=1e-5)


def test_text_features_equal_those_of_transformers(clip, model, folder):
    captions = ["a cat", "zebra", "a caption that is longer than the model reads"]
    tokens = CLIPTokenizer.from_pretrained(folder)(
        captions, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        pooled = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        expected = model.text_projection(pooled).numpy()
    np.testing.assert_allclose(clip.text_features(captions), expected, atol=1e-5)


def test_clipsim_is_the_mean_cosine_between_frames_and_caption(clip):
    clips, captions = random_clips(2, 3, 40, 60), ["a cat", "zebra"]
    images, texts = clip.features(clips).reshape(2, 3, -1), clip.text_features(captions)
    expected = [
        np.mean([frame @ text / np.linalg.norm(frame) / np.linalg.norm(text) for frame in frames])
        for frames, text in zip(images, texts, strict=True)
    ]
    np.testing.assert_allclose(clip.similarity(clips, captions), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="2 clips, but 1 captions"):
        clip.similarity(clips, captions[:1])


def test_the_extractor_carries_the_hash_of_the_weights(clip):
    assert (clip.name, clip.verified, clip.media, clip.dim) == ("clip_vitb32", None, "frame", 24)


def test_a_folder_without_a_tokeniser_reads_pictures_and_names_what_captions_need(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    extractor = open_extractor("clip_vitb32", tmp_path)
    assert extractor.features(random_clips(1, 1, 32, 32)).shape == (1, 24)
    with pytest.raises(UserError, match=r"no tokeniser of CLIP: add vocab\.json"):
        extractor.text_features(["a"])


def test_a_folder_of_another_model_is_refused(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="of type 'bert', expected 'clip'"):
        open_extractor("clip_vitb32", tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no model folder"):
        open_extractor("clip_vitb32", tmp_path)


def test_weights_that_are_cut_short_are_refused(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        open_extractor("clip_vitb32", tmp_path)
