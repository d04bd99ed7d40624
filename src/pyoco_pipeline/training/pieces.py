"""Tensors on disk, whole or in pieces: safetensors, and an index in JSON that says where in the whole each piece lies.

    network.safetensors                                                      one process wrote all of it
    network-00001-of-00004.safetensors, …, index-00001-of-00004.json, …      each of four wrote its own part

A piece is a range of rows. Whoever reads takes the rows that it needs, out of whichever files hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from pyoco_pipeline.training.sharding import local, offset, part_of


def write(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], rank: int, count: int) -> None:
    """Write what this process, `rank` of `count`, holds of each part, a dict of tensors; of one process, all of it.

    Tensors that are not sharded are rank 0's to write.
    """
    index: dict[str, dict[str, Any]] = {}
    for part, tensors in parts.items():
        held = {
            name: value
            for name, value in tensors.items()
            if (local(value).numel() if isinstance(value, DTensor) else rank == 0)
        }
        pieces = {name: local(value.detach()).cpu().contiguous() for name, value in held.items()}
        save_file(pieces, folder / _file(part, rank, count))
        index[part] = {
            name: {
                "shape": list(value.shape),
                "offset": [offset(value), *[0] * (value.ndim - 1)][: value.ndim],
            }
            for name, value in held.items()
        }
    if count > 1:
        (folder / _file("index", rank, count, "json")).write_text(json.dumps(index) + "\n")


def _file(part: str, rank: int, count: int, suffix: str = "safetensors") -> str:
    return f"{part}.{suffix}" if count == 1 else f"{part}-{rank + 1:05d}-of-{count:05d}.{suffix}"


@dataclass(frozen=True)
class _Piece:
    file: Any  # an open safetensors file
    start: int
    stop: int


class Pieces:
    """One part of a checkpoint that `count` processes wrote, open to be read by name.

    Raises ValueError, OSError or SafetensorError where a file is missing or cut short, or pieces do not make a whole.
    """

    def __init__(self, folder: Path, part: str, count: int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for rank in range(count):
            file = safe_open(folder / _file(part, rank, count), framework="pt")
            names = file.keys()
            index = {name: {"shape": file.get_slice(name).get_shape(), "offset": [0]} for name in names}
            if count > 1:
                index = json.loads((folder / _file("index", rank, count, "json")).read_text())[part]
            if set(index) != set(names):
                raise ValueError(f"{_file(part, rank, count)} holds other tensors than its index says")
            for name, where in index.items():
                self.shapes[name] = tuple(where["shape"])
                start, rows = (where["offset"] or [0])[0], (file.get_slice(name).get_shape() or [1])[0]
                self._pieces.setdefault(name, []).append(_Piece(file, start, start + rows))
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            ends = [0, *(piece.stop for piece in pieces)]
            if [piece.start for piece in pieces] != ends[:-1] or ends[-1] != (self.shapes[name] or (1,))[0]:
                raise ValueError(f"the pieces of {part}'s {name} do not make a whole")

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """A tensor; where `like` is sharded, sharded in the same way, and only this process's rows are read.

        Raises ValueError where it has another shape than `like`, KeyError where there is none of this name.
        """
        shape = self.shapes[name]
        if like is not None and tuple(like.shape) != shape:
            raise ValueError(f"{name} has shape {shape}, not {tuple(like.shape)}")
        if not shape:
            return self._pieces[name][0].file.get_tensor(name)
        first = 0 if like is None else offset(like)
        rows = self._rows(name, first, first + (shape[0] if like is None else local(like).shape[0]))
        return rows if like is None else part_of(rows, like)

    def _rows(self, name: str, first: int, stop: int) -> Tensor:
        found = [
            piece.file.get_slice(name)[
                max(first, piece.start) - piece.start : min(stop, piece.stop) - piece.start
            ]
            for piece in self._pieces[name]
            if piece.start < stop and first < piece.stop
        ]
        if not found:  # a process may hold no row at all
            found = [self._pieces[name][0].file.get_slice(name)[:0]]
        return found[0] if len(found) == 1 else torch.cat(found)
