"""Checkpoints: written aside and renamed, so that one is either whole or not there; safetensors and JSON alone.

    <folder>/step-00000120/{network,ema,optimizer}.safetensors, history.jsonl, state.json

Whatever is drawn in a step is a function of (seed, step), so the step is all of the randomness that has to be kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyoco_pipeline.errors import UserError, is_full_disk

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


class CheckpointFolder:
    """The checkpoints of one run; keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint and drop the oldest beyond `keep`. Raises UserError where there is no room for it."""
        try:
            return self._write(snapshot)
        except (OSError, SafetensorError) as error:
            if not is_full_disk(error):
                raise
            shutil.rmtree(self.folder / f".writing-step-{snapshot.step:08d}", ignore_errors=True)
            tensors = [tensor for part in _PARTS for tensor in getattr(snapshot, part).values()]
            raise UserError(
                f"{self.folder} has no room for the checkpoint of step {snapshot.step}, "
                f"{sum(tensor.nbytes for tensor in tensors) / 1e6:.1f} MB ({error}): make room, and the same command "
                "goes on from the checkpoint before it."
            ) from error

    def _write(self, snapshot: Snapshot) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{snapshot.step:08d}"
        aside = self.folder / f".writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for part in _PARTS:
            tensors = {
                key: value.detach().cpu().contiguous() for key, value in getattr(snapshot, part).items()
            }
            save_file(tensors, aside / f"{part}.safetensors")
        (aside / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in snapshot.history))
        state = {"step": snapshot.step, "finished": snapshot.finished, "fingerprint": snapshot.fingerprint}
        (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        for path in [*aside.iterdir(), aside]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(self.folder)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def paths(self) -> list[Path]:
        """Checkpoints from oldest to newest."""
        return sorted(self.folder.glob("step-*"))

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that can be read, or None; one that can't is passed over with a warning."""
        for path in reversed(self.paths()):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning(
                    "Checkpoint %s can't be read (%s); going on from the one before it.", path, error
                )
        return None

    def clear(self) -> None:
        """Remove all checkpoints, whole and half-written."""
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".writing-*")]:
            shutil.rmtree(path)


def mark_finished(folder: Path) -> None:
    """Say in the newest checkpoint that its weights are kept elsewhere, so that the next run starts anew."""
    newest = CheckpointFolder(folder, keep=1).paths()[-1]
    aside = newest / ".state.json"
    state = json.loads((newest / "state.json").read_text()) | {"finished": True}
    aside.write_text(json.dumps(state, indent=2) + "\n")
    aside.replace(newest / "state.json")


def check_same_run(snapshot: Snapshot, fingerprint: dict[str, Any], folder: Path) -> None:
    """UserError when a checkpoint is of another run, naming the first difference.

    Compared through JSON, as the checkpoint has been.
    """
    ours, theirs = _flat(json.loads(json.dumps(fingerprint))), _flat(snapshot.fingerprint)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{folder} holds an unfinished run (step {snapshot.step}) with {key}={theirs.get(key)}, this run has "
                f"{key}={ours.get(key)}. Finish that run, delete the folder, or set train.resume=never to start over."
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows


def _read(path: Path) -> Snapshot:
    state = json.loads((path / "state.json").read_text())
    network, ema, optimizer = (load_file(path / f"{part}.safetensors") for part in _PARTS)
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    return Snapshot(network=network, ema=ema, optimizer=optimizer, history=history, **state)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as tensors named "<index>.<key>"; groups come from the settings."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
