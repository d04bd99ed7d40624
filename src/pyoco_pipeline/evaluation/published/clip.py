"""CLIP ViT-B/32 (Radford et al., 2021) for CLIP-FID as clean-fid computes it, and for CLIPSIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.base import PublishedExtractor, Videos
from pyoco_pipeline.evaluation.published.folder import load_folder
from pyoco_pipeline.evaluation.published.weights import Published, Weights
from pyoco_pipeline.evaluation.resize import centre_crop, cover_size, pil_bicubic

FILE = Published(
    "pytorch_model.bin",
    "openai/clip-vit-base-patch32",
    sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
)
# The same weights as safetensors: no hash that several sources agree on was found.
CONVERTED = Published("model.safetensors", "openai/clip-vit-base-patch32")
MEAN = (0.48145466, 0.4578275, 0.40821073)
TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipVitB32(PublishedExtractor):
    """Projected image features, 512-d, not normalised, of single frames; text features in the same space.

    Input: RGB frames whose short side is resized to 224 by Pillow's antialiased bicubic, rounded to 8 bits, cropped
    about the centre to 224x224, in CLIP's mean and standard deviation. clean-fid runs CLIP in float16 on a GPU and in
    float32 on a CPU; here float32 is the default on both.

    weights: in a folder of Hugging Face's layout, with the tokeniser's files where captions are read.
    """

    title: ClassVar[str] = "clip_vitb32"
    media: ClassVar[Literal["video", "frame"]] = "frame"

    def __init__(self, weights: Weights, device: str | torch.device = "cpu", **options: Any) -> None:
        from transformers import CLIPModel

        model = load_folder(CLIPModel, weights, "clip")
        self.side: int = model.config.vision_config.image_size
        super().__init__(model, weights, model.config.projection_dim, device, **options)
        self._tokenizer: Any = None
        self._mean = torch.tensor(MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(STD, device=self.device)[:, None, None]

    def prepare(self, videos: Tensor) -> Tensor:
        frames = videos.flatten(0, 1)
        size = cover_size(frames.shape[1], frames.shape[2], self.side)
        return (centre_crop(pil_bicubic(frames, size), self.side) / 255.0 - self._mean) / self._std

    def _features_of(self, x: Tensor) -> Tensor:
        model: Any = self._net
        return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Projected text features (N, 512), not normalised; captions are cut at CLIP's 77 tokens."""
        model: Any = self._net
        parts = []
        for start in range(0, len(captions), 64):
            tokens = self._tokens(list(captions[start : start + 64]))
            parts.append(
                model.text_projection(model.text_model(**tokens).pooler_output).float().cpu().numpy()
            )
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def similarity(self, videos: Videos, captions: Sequence[str]) -> np.ndarray:
        """Mean cosine between the frames of a clip and its caption, (N,) in [-1, 1]; averaged, CLIPSIM (GODIVA, 2021).

        Raises ValueError for another number of captions than of clips.
        """
        if len(videos) != len(captions):
            raise ValueError(f"{len(videos)} clips, but {len(captions)} captions")
        images = _unit(self.features(videos)).reshape(len(captions), -1, self.dim)
        texts = _unit(self.text_features(captions))
        return np.einsum("ntd,nd->n", images, texts) / max(images.shape[1], 1)

    def _tokens(self, captions: list[str]) -> dict[str, Tensor]:
        if self._tokenizer is None:
            from transformers import CLIPTokenizer

            from pyoco_pipeline.models.text import load_tokenizer

            folder = self.weights.path.parent
            # Without these files transformers makes a tokeniser that knows no words, and says nothing.
            if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
                raise UserError(
                    f"{folder} holds no tokeniser of CLIP: add vocab.json and merges.txt, or tokenizer.json."
                )
            self._tokenizer = load_tokenizer(folder, CLIPTokenizer)
        limit = self._net.config.text_config.max_position_embeddings  # type: ignore[union-attr]
        tokens = self._tokenizer(
            captions, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}


def _unit(features: np.ndarray) -> np.ndarray:
    x = features.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
