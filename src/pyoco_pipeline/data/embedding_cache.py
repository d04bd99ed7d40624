"""Token embeddings kept between versions of the data, so that only new captions are computed.

<folder>/<encoder's fingerprint>-<max_tokens>/<digest of the captions>.safetensors

A file holds the embeddings of some captions in half precision, and the captions in its header: it is there whole or not
at all, so a killed run and a second writer do no harm. At worst the same captions are computed twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyoco_pipeline.data.embeddings import Block, write_embedding_blocks
from pyoco_pipeline.errors import UserError, in_one_line

logger = logging.getLogger(__name__)

FILE_ROWS = 4096  # captions in a header; its reader accepts 100 MB
FILE_MB = 64
READ_ROWS = 1024
LEFTOVER_S = 86_400  # age at which a file that nobody finished is taken away


class Encoder(Protocol):
    """What of a `TextEncoder` is needed here."""

    fingerprint: str
    max_tokens: int
    sha256: str

    def encode(self, captions: Sequence[str], batch_size: int = ...) -> Block: ...


class EmbeddingCache:
    """Embeddings by (encoder's fingerprint, max_tokens, caption) in a folder of files that are never changed."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def fill(self, encoder: Encoder, captions: Sequence[str], batch_size: int = 256) -> int:
        """Compute what is missing, alike lengths together, and log the progress; gives the number of captions computed.

        What is computed is on disk after each file of at most 4096 captions or 64 MB.
        """
        folder = self._folder_of(encoder)
        _remove_leftovers(folder)
        known = _index(folder)
        missing = sorted({c for c in captions if c not in known}, key=lambda c: (len(c), c))
        started, first, rows = time.monotonic(), 0, min(FILE_ROWS, batch_size)
        while first < len(missing):
            part = missing[first : first + rows]
            tokens, mask = encoder.encode(part, batch_size)
            _write_file(folder, part, tokens.half(), mask)
            first += len(part)
            rows = max(1, min(FILE_ROWS, int(FILE_MB * 2**20 / (tokens[0].numel() * 2))))
            rate = first / max(1e-9, time.monotonic() - started)
            logger.info("Embedded %d of %d new captions, %.0f a second.", first, len(missing), rate)
        return len(missing)

    def read(self, encoder: Encoder, captions: Sequence[str]) -> Iterator[Block]:
        """The embeddings of captions, in their order and in blocks; KeyError for one that was not computed."""
        index = _index(self._folder_of(encoder))
        opened = lru_cache(maxsize=256)(_open)
        for first in range(0, len(captions), READ_ROWS):
            yield _gather([index[caption] for caption in captions[first : first + READ_ROWS]], opened)

    def _folder_of(self, encoder: Encoder) -> Path:
        folder = self.folder / f"{encoder.fingerprint}-{encoder.max_tokens}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def write_cached_embeddings(
    folder: Path, *, captions: Sequence[str], cache: EmbeddingCache, encoder: Encoder, name: str
) -> None:
    """`write_embeddings` of captions, of which only those that the cache lacks are computed; name: of the encoder."""
    cache.fill(encoder, captions)
    blocks = cache.read(encoder, captions)
    write_embedding_blocks(folder, captions, blocks, encoder=name, encoder_sha256=encoder.sha256)


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """File and row of each caption; of two that hold the same, the first by name."""
    index: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for row, caption in enumerate(_captions(path)):
            index.setdefault(caption, (path, row))
    return index


def _captions(path: Path) -> list[str]:
    try:
        captions: list[str] = json.loads(_open(path).metadata()["captions"])
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from error
    return captions


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged ({in_one_line(error)}): delete it, its captions are then embedded anew."
    )


def _gather(places: list[tuple[Path, int]], opened: Any) -> Block:
    by_file: dict[Path, list[int]] = {}
    for position, (path, _) in enumerate(places):
        by_file.setdefault(path, []).append(position)
    tokens: Tensor | None = None
    mask: Tensor | None = None
    for path, positions in by_file.items():
        rows, file = [places[position][1] for position in positions], opened(path)
        part, real = file.get_slice("tokens")[rows], file.get_slice("mask")[rows]
        if tokens is None or mask is None:
            tokens, mask = (torch.empty(len(places), *x.shape[1:], dtype=x.dtype) for x in (part, real))
        tokens[positions], mask[positions] = part, real
    assert tokens is not None
    assert mask is not None
    return tokens, mask


def _write_file(folder: Path, captions: list[str], tokens: Tensor, mask: Tensor) -> None:
    content = json.dumps(captions)
    name = f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
    descriptor, aside = tempfile.mkstemp(dir=folder, prefix=".writing-")
    os.close(descriptor)
    try:
        save_file({"tokens": tokens.contiguous(), "mask": mask.contiguous()}, aside, {"captions": content})
        Path(aside).chmod(0o644)
        Path(aside).replace(folder / name)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".writing-*"):
        with suppress(FileNotFoundError):  # another writer has just finished it
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()
