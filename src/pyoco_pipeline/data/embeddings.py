"""Text embeddings on disk: one row per distinct caption, and the null embedding for guidance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyoco_pipeline.errors import UserError

Conditioning = dict[str, Tensor]  # keyword arguments of the network, batch first


def write_embeddings(
    folder: Path, captions: Iterable[str], tokens: Tensor, mask: Tensor, *, encoder: str, encoder_sha256: str
) -> None:
    """Write embeddings of distinct captions; "" must be among them: it is the null embedding.

    tokens: (N, L, D), kept in half precision; mask: (N, L) bool.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = {caption: row for row, caption in enumerate(captions)}
    if "" not in index or len(index) != len(tokens):
        raise ValueError("captions must be distinct, as many as embeddings, and hold the empty caption")
    save_file(
        {"tokens": tokens.half().contiguous(), "mask": mask.contiguous()}, folder / "embeddings.safetensors"
    )
    content = {"encoder": encoder, "encoder_sha256": encoder_sha256, "captions": index}
    (folder / "captions.json").write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n")


class TextEmbeddings:
    """Read what `write_embeddings` wrote."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "captions.json"
        if not path.is_file():
            raise UserError(
                f"{folder} holds no text embeddings: captions.json is missing. Run `ingest` first."
            )
        content = json.loads(path.read_text())
        self.encoder: str = content["encoder"]
        self.encoder_sha256: str = content["encoder_sha256"]
        self._index: dict[str, int] = content["captions"]
        tensors = load_file(self.folder / "embeddings.safetensors")
        self.tokens, self.mask = tensors["tokens"].float(), tensors["mask"]

    @property
    def dim(self) -> int:
        """Width of a token's embedding: the network's cross-attention dimension."""
        return self.tokens.shape[-1]

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The captions that ingest has not embedded."""
        return [caption for caption in captions if caption not in self._index]

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Row numbers (N,) of captions; UserError for one that ingest has not embedded."""
        if missing := self.unknown(captions):
            raise UserError(
                f"{self.folder} has no embedding of the caption {missing[0]!r}. Run `ingest` anew."
            )
        return torch.tensor([self._index[caption] for caption in captions])

    def conditioning(self, rows: Tensor, device: torch.device | str = "cpu") -> Conditioning:
        """The network's keyword arguments for embedding rows (N,)."""
        if self.tokens.device != torch.device(
            device
        ):  # moved once: a copy per step would cost more than the step
            self.tokens, self.mask = self.tokens.to(device), self.mask.to(device)
        rows = rows.to(device)
        return {"encoder_hidden_states": self.tokens[rows], "encoder_attention_mask": self.mask[rows]}

    def null(self, device: torch.device | str = "cpu") -> Conditioning:
        """The conditioning of the empty caption, batch of one."""
        return self.conditioning(self.rows([""]), device)
