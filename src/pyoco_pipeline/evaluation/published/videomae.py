"""VideoMAE-v2 features for the content-debiased FVD (Ge et al., 2024)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.published.folder import WEIGHT_FILES, load_folder
from pyoco_pipeline.evaluation.published.weights import Published, Weights, fill, load_state_dict
from pyoco_pipeline.evaluation.resize import bilinear

FILE = Published(
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    "OpenGVLab/VideoMAE2",
    sha256="5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
)
CONVERTED = Published("model weights", "a conversion of VideoMAE-v2 giant, fine-tuned on SSv2")

# VideoMAE-v2's names, and transformers'.
_RENAMED = (
    ("patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.q_bias", ".attention.attention.query.bias"),
    (".attn.v_bias", ".attention.attention.value.bias"),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    ("blocks.", "videomae.encoder.layer."),
    ("head.", "classifier."),
)


class VideoMaeSsv2(PublishedExtractor):
    """The mean of the last layer's tokens after the final norm, 1408-d for the giant model, of clips of 16 frames.

    Input: frames squashed to 224x224, bilinear about pixel centres without antialiasing, in [0, 1] and, as in Ge et
    al.'s code, *without* ImageNet's mean and standard deviation. They divide the covariance by N.

    weights: the published file (fine-tuned on Something-Something v2), or a folder of Hugging Face's layout that
    holds `VideoMAEForVideoClassification` with mean pooling.
    """

    title: ClassVar[str] = "videomae_ssv2"
    media: ClassVar[Literal["video", "frame"]] = "video"

    def __init__(self, weights: Weights, device: str | torch.device = "cpu", **options: Any) -> None:
        from transformers import VideoMAEForVideoClassification

        if weights.path.name not in WEIGHT_FILES:
            model = load_videomae_v2(weights)
        else:
            model = load_folder(VideoMAEForVideoClassification, weights, "videomae")
        if model.fc_norm is None:
            raise UserError(
                f"{weights.path.parent / 'config.json'} sets use_mean_pooling to false, but the features are the mean "
                "of the tokens: name a fine-tuned model with mean pooling."
            )
        self.min_frames = self.max_frames = model.config.num_frames
        self.side: int = model.config.image_size
        super().__init__(model, weights, model.config.hidden_size, device, **options)

    def prepare(self, videos: Tensor) -> Tensor:
        n, t = videos.shape[:2]
        return bilinear(videos.flatten(0, 1), (self.side, self.side)).unflatten(0, (n, t)) / 255.0

    def _features_of(self, x: Tensor) -> Tensor:
        model: Any = self._net
        return model.fc_norm(model.videomae(x).last_hidden_state.mean(dim=1))


def giant_config(**changes: Any) -> Any:
    """The configuration of ViT-giant as VideoMAE-v2 fine-tunes it; `changes` for tests on small networks."""
    from transformers import VideoMAEConfig

    giant = {
        "image_size": 224,
        "patch_size": 14,
        "num_frames": 16,
        "tubelet_size": 2,
        "hidden_size": 1408,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-6,
        "num_labels": 174,
        "use_mean_pooling": True,
    }
    return VideoMAEConfig(**(giant | changes))


def load_videomae_v2(weights: Weights, config: Any = None) -> Any:
    """transformers' VideoMAE with the weights of a file in VideoMAE-v2's own key names.

    Raises UserError for a file that is cut short or of another network.
    """
    from transformers import VideoMAEForVideoClassification

    config = config or giant_config()
    with torch.device("meta"):
        model = VideoMAEForVideoClassification(config)
    model.to_empty(device="cpu")
    # Not in the state dict: a fixed table that the meta device left empty.
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    embeddings = model.videomae.embeddings
    embeddings.position_embeddings = get_sinusoid_encoding_table(embeddings.num_patches, config.hidden_size)
    model.fc_norm.eps = config.layer_norm_eps  # transformers leaves it at torch's 1e-5
    fill(model, _renamed(load_state_dict(weights)), weights)
    return model


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for old, new in _RENAMED:
            name = name.replace(old, new)
        if name.endswith(".attn.qkv.weight") and value.shape[0] % 3 == 0:
            stem = name.removesuffix("attn.qkv.weight") + "attention.attention."
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{stem}{part}.weight"] = tensor
        else:
            renamed[name] = value
    return renamed
