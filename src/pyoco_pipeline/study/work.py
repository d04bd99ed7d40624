"""What a cell leaves on disk, file by file whole or not there, so that a killed study goes on.

<work>/cells/<id>/cell.json                what it is
                  evaluations/step-00000200.json, .npy    its scores, and clips to watch
                  checkpoints/             the trainer's
                  history.json             the training losses
                  pieces.jsonl             the stretches that it was trained in, with their seconds
                  error.json               why it failed
                  solver/<id>/             scores of its last averaged weights with another sampler
<work>/fewer_clips/                        the first clips of training, for cells that train on so many
<work>/untrained/<id>/evaluations/         of models before any training, which cells share
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.errors import UserError, in_one_line


class EvaluationFolder:
    """Scores by step, and the clips that are kept to be watched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """The steps that were scored."""
        return sorted(int(path.stem[5:]) for path in self.folder.glob("step-*.json"))

    def read(self, step: int) -> dict[str, Any]:
        """The scores at a step, as `evaluate_clips` gave them, with the seconds that they took."""
        path = self._path(step)
        with _readable(path):
            return _mapping(path)

    def clips(self, step: int) -> np.ndarray:
        """Kept clips (N, T, H, W, 3) uint8."""
        path = self._path(step, "npy")
        with _readable(path):
            clips = np.load(path, allow_pickle=False)
            if not isinstance(clips, np.ndarray) or clips.ndim != 5 or clips.dtype != np.uint8:
                raise ValueError("it holds no clips")
        return clips

    def write(self, step: int, scores: Mapping[str, Any], clips: np.ndarray) -> None:
        """Keep scores and clips; the scores last, for they say that the step is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".clips-{os.getpid()}.npy"
        np.save(aside, clips, allow_pickle=False)
        aside.replace(self._path(step, "npy"))
        write_json(self._path(step), scores)

    def _path(self, step: int, suffix: str = "json") -> Path:
        return self.folder / f"step-{step:08d}.{suffix}"


class Attempted:
    """A folder of what may fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def error(self) -> str | None:
        """Why it failed, or None."""
        path = self.folder / "error.json"
        return _mapping(path).get("error") if path.is_file() else None

    def set_error(self, error: str | None) -> None:
        """Keep, or with None forget, why it failed."""
        path = self.folder / "error.json"
        if error is None:
            path.unlink(missing_ok=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"error": error})


class ResampledFolder(Attempted):
    """The scores of one cell by other samplers than training's."""

    def scored(self, key: str) -> EvaluationFolder:
        """Those of one sampler, named by a digest of it."""
        return EvaluationFolder(self.folder / key)


class CellFolder(Attempted):
    """The files of one cell."""

    def __init__(self, work: Path, cell_id: str) -> None:
        super().__init__(work / "cells" / cell_id)
        self.evaluations = EvaluationFolder(self.folder / "evaluations")
        self.checkpoints = self.folder / "checkpoints"
        self.resampled = ResampledFolder(self.folder / "solver")

    @property
    def has_begun(self) -> bool:
        """Whether anything was done for the cell."""
        return self.folder.is_dir()

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Say what the cell is, once."""
        if not (self.folder / "cell.json").is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "cell.json", facts)

    def facts(self) -> dict[str, Any]:
        """What the cell was said to be; nothing of one that never began."""
        path = self.folder / "cell.json"
        return _mapping(path) if path.is_file() else {}

    def checkpoint_step(self) -> int:
        """The steps that its newest checkpoint has done, 0 without one."""
        return max((int(path.name[5:]) for path in self.checkpoints.glob("step-*")), default=0)

    def keep_history(self) -> None:
        """Copy the newest checkpoint's training losses, which outlive it."""
        paths = sorted(self.checkpoints.glob("step-*/history.jsonl"))
        if paths:
            write_json(
                self.folder / "history.json",
                [json.loads(line) for line in paths[-1].read_text().splitlines()],
            )

    def history(self) -> list[dict[str, Any]]:
        """Rows of the training history."""
        path = self.folder / "history.json"
        if not path.is_file():
            return []
        with _readable(path):
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError("it holds no rows")
        return rows

    def add_piece(self, piece: Mapping[str, Any]) -> None:
        """Add a stretch of training."""
        with (self.folder / "pieces.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(piece) + "\n")

    def pieces(self) -> list[dict[str, Any]]:
        """The stretches that ended here; one that was killed is not among them, nor is a line cut short."""
        path = self.folder / "pieces.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file aside and put it in place."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    aside.write_text(json.dumps(content) + "\n", encoding="utf-8")
    aside.replace(path)


def _mapping(path: Path) -> dict[str, Any]:
    with _readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    return content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within: UserError for what is raised while a file is read that is cut short or of something else."""
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} can't be read ({in_one_line(error)}): delete the folder below `cells` or `untrained` that it lies "
            "in, and `kedro run --pipelines ablate_alpha` makes it again."
        ) from error
