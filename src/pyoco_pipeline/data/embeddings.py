"""Text embeddings on disk: one row per distinct caption, and the null embedding for guidance.

embeddings.json                  encoder, its sha256, numbers of rows, tokens, dimensions and rows per shard
captions.parquet                 the captions, in the order of their rows
embeddings-00000.safetensors     tokens (N, L, D) in half precision and mask (N, L) of the first rows, and so on
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyoco_pipeline.errors import UserError, in_one_line

Conditioning = dict[str, Tensor]  # keyword arguments of the network, batch first
Block = tuple[Tensor, Tensor]  # tokens (N, L, D) and mask (N, L) of consecutive captions

HEADER = "embeddings.json"
CAPTIONS = "captions.parquet"
SHARD_MB = 64


def write_embeddings(
    folder: Path, captions: Iterable[str], tokens: Tensor, mask: Tensor, *, encoder: str, encoder_sha256: str
) -> None:
    """Write embeddings of distinct captions; "" must be among them: it is the null embedding.

    tokens: (N, L, D), kept in half precision; mask: (N, L) bool.
    """
    write_embedding_blocks(
        folder, list(captions), [(tokens, mask)], encoder=encoder, encoder_sha256=encoder_sha256
    )


def write_embedding_blocks(
    folder: Path,
    captions: Sequence[str],
    blocks: Iterable[Block],
    *,
    encoder: str,
    encoder_sha256: str,
    shard_mb: float = SHARD_MB,
) -> None:
    """`write_embeddings` of any number of captions, whose embeddings come in blocks of any size, in their order.

    shard_mb: size of a file; no more than a shard and a block are in memory.
    """
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    if "" not in captions or len(set(captions)) != len(captions):
        raise ValueError("captions must be distinct and hold the empty caption")
    header: dict[str, Any] = {"encoder": encoder, "encoder_sha256": encoder_sha256, "rows": len(captions)}
    written = 0
    for number, (tokens, mask) in enumerate(_in_shards(blocks, shard_mb)):
        header.setdefault("max_tokens", tokens.shape[1])
        header.setdefault("dim", tokens.shape[2])
        header.setdefault("shard_rows", len(tokens))  # of all shards but the last
        save_file({"tokens": tokens.contiguous(), "mask": mask.contiguous()}, folder / shard_file(number))
        written += len(tokens)
    if written != len(captions):
        raise ValueError(f"captions must be distinct, as many as embeddings: {len(captions)}, not {written}")
    parquet.write_table(pyarrow.table({"caption": list(captions)}), folder / CAPTIONS)
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n")


def shard_file(number: int) -> str:
    """Name of the number-th file of embeddings."""
    return f"embeddings-{number:05d}.safetensors"


def _in_shards(blocks: Iterable[Block], shard_mb: float) -> Iterator[Block]:
    held: list[Block] = []
    free = rows = 0  # that the shard under way still takes; that each shard takes
    for tokens, mask in blocks:
        first = 0
        while first < len(tokens):
            if not rows:
                free = rows = max(1, int(shard_mb * 2**20 / (tokens[0].numel() * 2 + mask[0].numel())))
            part = slice(first, first + free)
            held.append((tokens[part].half(), mask[part]))
            first += len(held[-1][1])
            free -= len(held[-1][1])
            if not free:
                yield _join(held)
                held, free = [], rows
    if held:
        yield _join(held)


def _join(blocks: list[Block]) -> Block:
    return torch.cat([tokens for tokens, _ in blocks]), torch.cat([mask for _, mask in blocks])


class TextEmbeddings:
    """Read what `write_embeddings` wrote. UserError for files that can't be read, or do not fit one another.

    memory_mb: a table up to this size is held in memory, and on the device that first asks for it; of a larger one
    each batch's rows are read from the files. The captions themselves are always in memory.

    encoder, encoder_sha256: what made the embeddings; max_tokens: L; dim: D, the network's cross-attention dimension.
    """

    def __init__(self, folder: str | Path, *, memory_mb: float = 2048) -> None:
        self.folder = Path(folder)
        path = self.folder / HEADER
        if not path.is_file():
            raise UserError(f"{folder} holds no text embeddings: {HEADER} is missing. Run `ingest` first.")
        with _readable(path):
            header = json.loads(path.read_text())
            self.encoder: str = header["encoder"]
            self.encoder_sha256: str = header["encoder_sha256"]
            self.max_tokens: int = header["max_tokens"]
            self.dim: int = header["dim"]
            self._shard_rows: int = header["shard_rows"]
        captions = self._captions(header.get("rows"))
        self._index = {caption: row for row, caption in enumerate(captions)}
        self._files: dict[int, Any] = {}
        self._held: Block | None = None
        if len(captions) * self.max_tokens * (self.dim * 2 + 1) <= memory_mb * 2**20:
            self._held = self._read(torch.arange(len(captions)))
            self._files = {}

    def _captions(self, rows: int) -> list[str]:
        from pyarrow import parquet

        path = self.folder / CAPTIONS
        with _readable(path):
            captions: list[str] = parquet.read_table(path)["caption"].to_pylist()
            if len(captions) != rows:
                raise ValueError(f"it has {len(captions)} captions, {HEADER} says {rows}")
        return captions

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
        """The network's keyword arguments for embedding rows (N,), in float32."""
        if self._held is None:
            tokens, mask = (part.to(device) for part in self._read(rows.cpu()))
        else:
            tokens, mask = self._held
            if tokens.device != torch.device(device):
                # Moved once: a copy per step would cost more than the step.
                self._held = tokens, mask = tokens.to(device), mask.to(device)
            rows = rows.to(device)
            tokens, mask = tokens[rows], mask[rows]
        return {"encoder_hidden_states": tokens.float(), "encoder_attention_mask": mask}

    def null(self, device: torch.device | str = "cpu") -> Conditioning:
        """The conditioning of the empty caption, batch of one."""
        return self.conditioning(self.rows([""]), device)

    def _read(self, rows: Tensor) -> Block:
        """Tokens and mask of rows, in half precision, from the files that hold them."""
        tokens = torch.empty(len(rows), self.max_tokens, self.dim, dtype=torch.half)
        mask = torch.empty(len(rows), self.max_tokens, dtype=torch.bool)
        shards = rows // self._shard_rows
        for shard in shards.unique().tolist():
            places = (shards == shard).nonzero()[:, 0]
            own = (rows[places] - shard * self._shard_rows).tolist()
            path = self.folder / shard_file(shard)
            with _readable(path):
                if shard not in self._files:
                    self._files[shard] = safe_open(path, "pt")
                file = self._files[shard]
                tokens[places] = file.get_slice("tokens")[own]
                mask[places] = file.get_slice("mask")[own]
        return tokens, mask

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # a process opens its own


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within: UserError for what is raised while a file is read that is cut short or holds something else."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} can't be read as text embeddings ({in_one_line(error)}): run `ingest` again."
        ) from error
