"""The components of an exported pipeline, as diffusers' `from_pretrained` and `save_pretrained` take them.

diffusers imports no module because a folder names it, and looks into the component's module for a base class of its own
that says how it is loaded: so `pipeline.py` of the folder imports this module first, and all classes are ModelMixins.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin
from torch import Tensor

from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings, write_embeddings
from pyoco_pipeline.diffusion import Denoise, parametrisation_from_config
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    FrameByFrame,
    StageInfo,
    VideoUNet,
    load_image_model,
    load_stage_info,
    load_video_model,
    save_image_model,
    save_video_model,
)
from pyoco_pipeline.models.text import EMBEDDED, TextEncoder, text_encoder_folder

_TABLE = "embeddings"  # of captions, inside the text encoder's folder
# Of a transformers folder: configuration, tokenizer (T5's .model is sentencepiece's protobuf), weights; no pickle.
_ENCODER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "LICENSE*")


class VideoModel(ModelMixin):
    """A video network and what it was trained for, in the folder layout of `save_video_model`.

    It computes in float32, as `generate` does; for another precision the pipeline is called under `torch.autocast`.
    """

    def __init__(self, network: FrameByFrame, info: StageInfo) -> None:
        super().__init__()
        self.network, self.info = network.eval(), info

    def forward(self, x: Tensor, timestep: Tensor, **cond: Any) -> Any:
        """As the network's: x (B, C, T, H, W), timestep (B,)."""
        return self.network(x, timestep, **cond)

    def denoiser(self) -> Denoise:
        """denoise(x, sigma, **cond) -> x0, in the parametrisation that the weights were trained in."""
        return parametrisation_from_config(self.info.parametrisation).denoiser(self, self.info.sigma_data)

    @property
    def sigma_limits(self) -> tuple[float, float]:
        """The noise levels that the weights know."""
        return parametrisation_from_config(self.info.parametrisation).sigma_limits

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a stage's folder; options: diffusers', of which only those that change nothing are taken.

        Raises UserError as `load_video_model` does, and for a dtype but float32 or a device map.
        """
        dtype = options.get("torch_dtype") or options.get("dtype")
        if dtype not in (None, torch.float32):
            raise UserError(
                f"dtype={dtype} is not supported: leave it out, and call the pipeline under torch.autocast."
            )
        if (device_map := options.get("device_map")) is not None:
            raise UserError(
                f"device_map={device_map!r} is not supported: leave it out, and call pipe.to(device)."
            )
        return cls(cls._load(Path(folder)), load_stage_info(folder))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the folder that `from_pretrained` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._save(Path(folder))

    @staticmethod
    def _load(folder: Path) -> FrameByFrame:
        return load_video_model(folder)

    def _save(self, folder: Path) -> None:
        assert isinstance(self.network, VideoUNet)
        save_video_model(self.network, folder, self.info)


class ImageModel(VideoModel):
    """An image network that takes clips frame by frame, in the folder layout of `save_image_model`."""

    @staticmethod
    def _load(folder: Path) -> FrameByFrame:
        return FrameByFrame(load_image_model(folder))

    def _save(self, folder: Path) -> None:
        save_image_model(self.network.image_model, folder, self.info)


class CaptionEncoder(ModelMixin):
    """Captions as the network takes them: from a table of embeddings that has them all, else from the text encoder.

    embeddings: the table; encoder: the transformers folder that new captions are embedded with, by default the one that
    the table names.
    """

    def __init__(self, embeddings: TextEmbeddings, encoder: Path | None = None) -> None:
        super().__init__()
        self.embeddings, self.folder = embeddings, encoder
        self.register_buffer("place", torch.empty(0))  # which `to` moves: embeddings are given there
        self._encoder: TextEncoder | None = None

    @property
    def name(self) -> str:
        """Of the text encoder; of a folder only its end, for a path is of the machine that exports."""
        return Path(self.embeddings.encoder).name

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """The network's keyword arguments for N captions, on the encoder's device.

        Raises UserError for a caption that is not in the table when the encoder that made the table is not there.
        """
        new = self.embeddings.unknown(captions)
        if not new:
            return self.embeddings.conditioning(self.embeddings.rows(captions), self.device)
        tokens, mask = self._text_encoder(new[0]).encode(captions)
        # Through half precision, as the table keeps them.
        tokens = tokens.half().float()
        return {
            "encoder_hidden_states": tokens.to(self.device),
            "encoder_attention_mask": mask.to(self.device),
        }

    def _text_encoder(self, caption: str) -> TextEncoder:
        if self._encoder is None:
            named = self.embeddings.encoder
            if self.folder is None and named != EMBEDDED and not (Path(named) / "config.json").is_file():
                raise UserError(
                    f"the caption {caption!r} needs the text encoder {named}, which was not exported: call "
                    "pipe.text_encoder.use(<its transformers folder>) first, or export with "
                    "export.include_text_encoder=true."
                )
            self.use(self.folder or text_encoder_folder(named))
        assert self._encoder is not None
        return self._encoder

    def use(self, folder: str | Path) -> None:
        """Embed new captions with the transformers model in `folder`; UserError unless it made the table."""
        encoder = TextEncoder(Path(folder), self.embeddings.max_tokens)
        if encoder.sha256 != self.embeddings.encoder_sha256:
            raise UserError(
                f"the text encoder in {folder} has weights of sha256 {encoder.sha256}, the model was trained with "
                f"{self.embeddings.encoder_sha256}: give that one."
            )
        self.folder, self._encoder = Path(folder), encoder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Self:
        """Load what `save` wrote; the encoder itself is loaded when a new caption needs it."""
        folder = Path(folder)
        return cls(TextEmbeddings(folder / _TABLE), folder if (folder / "config.json").is_file() else None)

    def save(self, folder: Path, captions: Sequence[str], *, include_encoder: bool) -> None:
        """Write a table of these captions and the empty one, and where wanted the encoder, into `folder`.

        Raises UserError when the encoder is wanted or needed for a caption, and is not there.
        """
        distinct = sorted(set(captions) - {""})
        parts = [self.encode([""]), *([self.encode(distinct)] if distinct else [])]
        tokens, mask = (torch.cat([part[key].cpu() for part in parts]) for key in parts[0])
        sha256 = self.embeddings.encoder_sha256
        write_embeddings(
            folder / _TABLE, ["", *distinct], tokens, mask, encoder=self.name, encoder_sha256=sha256
        )
        if include_encoder:
            if self.folder is None:
                self.use(text_encoder_folder(self.embeddings.encoder))
            assert self.folder is not None
            _copy_encoder(self.folder, folder)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the folder that `from_pretrained` reads, with what it was loaded with."""
        shutil.copytree(self.embeddings.folder, Path(folder) / _TABLE, dirs_exist_ok=True)
        if self.folder is not None:
            _copy_encoder(self.folder, Path(folder))


def _copy_encoder(source: Path, folder: Path) -> None:
    for pattern in _ENCODER_FILES:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
