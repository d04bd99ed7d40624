"""Checkpoints: written aside and renamed, so that one is either whole or not there; safetensors and JSON alone.

    <folder>/step-00000120/{network,ema,optimizer}.safetensors, history.jsonl, state.json

Of a sharded run each process writes its own part, see `pieces`; any number of processes goes on from either. Whatever
is drawn in a step is a function of (seed, step), so the step is all of the randomness that has to be kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, distributed

from pyoco_pipeline.errors import UserError, in_one_line, is_full_disk
from pyoco_pipeline.training import pieces
from pyoco_pipeline.training.pieces import Pieces
from pyoco_pipeline.training.processes import told

logger = logging.getLogger(__name__)

History = list[dict[str, Any]]  # one row per logged step


@dataclass
class Snapshot:
    """All that a run needs to go on: tensors by name, history, and what identifies the run."""

    step: int
    fingerprint: dict[str, Any]
    network: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: History
    finished: bool = False


_PARTS = ("network", "ema", "optimizer")


class Stored:
    """A checkpoint on disk, whose tensors are read by name.

    Raises OSError, ValueError, LookupError, TypeError or SafetensorError where it can't be read, or is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        state = json.loads((path / "state.json").read_text())
        self.step: int = state["step"]
        self.fingerprint: dict[str, Any] = state["fingerprint"]
        self.finished: bool = state["finished"]
        self.history: History = [
            json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()
        ]
        count = state.get("processes", 1)  # that wrote a part each
        self.network, self.ema, self.optimizer = (Pieces(path, part, count) for part in _PARTS)

    def snapshot(self) -> Snapshot:
        """All of it."""
        network, ema, optimizer = (
            {name: part.read(name) for name in part.shapes}
            for part in (self.network, self.ema, self.optimizer)
        )
        return Snapshot(self.step, self.fingerprint, network, ema, optimizer, self.history, self.finished)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Within, tensors are read: UserError for those that a network of this run does not have, or lacks."""
        try:
            yield
        except (ValueError, LookupError, SafetensorError) as error:
            raise UserError(
                f"{self.path} holds other tensors than this run's ({in_one_line(error)}): delete it, and the same "
                "command goes on from the checkpoint before it."
            ) from error


class CheckpointFolder:
    """The checkpoints of one run; keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, snapshot: Snapshot, *, sharded: bool = False) -> Path:
        """Write a checkpoint and drop the oldest beyond `keep`; of a sharded run, every process calls this.

        Raises UserError where there is no room for it, or where the processes do not see the same folder.
        """
        try:
            return self._write(snapshot, sharded)
        except (OSError, SafetensorError) as error:
            if not is_full_disk(error):
                raise
            if not sharded:  # else others may still write there
                shutil.rmtree(self.folder / f".writing-step-{snapshot.step:08d}", ignore_errors=True)
            tensors = [tensor for part in _PARTS for tensor in getattr(snapshot, part).values()]
            raise UserError(
                f"{self.folder} has no room for the checkpoint of step {snapshot.step}, "
                f"{sum(tensor.nbytes for tensor in tensors) / 1e6:.1f} MB ({error}): make room, and the same command "
                "goes on from the checkpoint before it."
            ) from error

    def _write(self, snapshot: Snapshot, sharded: bool) -> Path:
        rank, count = (distributed.get_rank(), distributed.get_world_size()) if sharded else (0, 1)
        final = self.folder / f"step-{snapshot.step:08d}"
        aside = self.folder / f".writing-{final.name}"
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        if sharded:
            distributed.barrier()
        aside.mkdir(parents=True, exist_ok=True)
        pieces.write(aside, {part: getattr(snapshot, part) for part in _PARTS}, rank, count)
        for path in aside.glob(f"*-{rank + 1:05d}-of-*" if sharded else "*"):
            _sync(path)
        if sharded:
            distributed.barrier()
        if rank == 0:
            self._put_in_place(aside, final, snapshot, count)
        if sharded:
            distributed.barrier()
        return final

    def _put_in_place(self, aside: Path, final: Path, snapshot: Snapshot, count: int) -> None:
        found = len(list(aside.glob("*.safetensors")))
        if found != count * len(_PARTS):
            raise UserError(
                f"{aside} has {found} files of {count * len(_PARTS)} that {count} processes wrote: let every machine "
                "see the same data folder under the same path."
            )
        (aside / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in snapshot.history))
        state = {
            "step": snapshot.step,
            "finished": snapshot.finished,
            "processes": count,
            "fingerprint": snapshot.fingerprint,
        }
        (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        for path in [aside / "history.jsonl", aside / "state.json", aside]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(self.folder)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old)

    def paths(self) -> list[Path]:
        """Checkpoints from oldest to newest."""
        return sorted(self.folder.glob("step-*"))

    def find(self) -> Stored | None:
        """The newest checkpoint that can be read, or None; one that can't is passed over with a warning.

        Of several processes, which all call this, rank 0 looks.
        """
        found, passed_over = told(self._look)
        for path, reason in passed_over:
            logger.warning("Checkpoint %s can't be read (%s); going on from the one before it.", path, reason)
        return None if found is None else Stored(self.folder / found)

    def _look(self) -> tuple[str | None, list[tuple[str, str]]]:
        passed_over = []
        for path in reversed(self.paths()):
            try:
                Stored(path)
            except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
                passed_over.append((str(path), in_one_line(error)))
            else:
                return path.name, passed_over
        return None, passed_over

    def newest(self) -> Snapshot | None:
        """All of what `find` finds."""
        stored = self.find()
        return None if stored is None else stored.snapshot()

    def clear(self) -> None:
        """Remove all checkpoints, whole and half-written."""
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".writing-*")]:
            shutil.rmtree(path)


def mark_finished(folder: Path) -> None:
    """Say in the newest checkpoint that its weights are kept elsewhere, so that the next run starts anew."""
    newest = CheckpointFolder(folder, keep=1).paths()[-1]
    aside = newest / ".state.json"
    try:
        state = json.loads((newest / "state.json").read_text()) | {"finished": True}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{newest / 'state.json'} can't be read ({in_one_line(error)}): delete {newest}, and the same command goes "
            "on from the checkpoint before it."
        ) from error
    aside.write_text(json.dumps(state, indent=2) + "\n")
    aside.replace(newest / "state.json")


def check_same_run(stored: Stored, fingerprint: dict[str, Any], folder: Path) -> None:
    """UserError when a checkpoint is of another run, naming the first difference.

    Compared through JSON, as the checkpoint has been.
    """
    ours, theirs = _flat(json.loads(json.dumps(fingerprint))), _flat(stored.fingerprint)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{folder} holds an unfinished run (step {stored.step}) with {key}={theirs.get(key)}, this run has "
                f"{key}={ours.get(key)}. Finish that run, delete the folder, or set train.resume=never to start over."
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
