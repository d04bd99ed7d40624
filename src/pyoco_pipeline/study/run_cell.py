"""One cell of the study: trained to a step and scored on the way, from wherever it was stopped before."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.study.cells import Cell, cell_id, stage_settings, untrained_id
from pyoco_pipeline.study.deadline import Deadline
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.work import CellFolder, EvaluationFolder

Outcome = Literal["done", "stopped", "failed"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellTask:
    """A cell and how far it is to go; picklable, so that another process can do it.

    material: a `Material`, named here without importing torch. shared: its facts.
    """

    cell: Cell
    until: int
    settings: AblateAlphaSettings
    material: Any
    shared: dict[str, Any]
    code: str
    deadline: Deadline | None = None

    @property
    def folder(self) -> CellFolder:
        """Where the cell is kept."""
        return CellFolder(self.material.work, cell_id(self.cell, self.settings, self.shared))

    def missing(self) -> list[int]:
        """The evaluations up to `until` that can still be had: training does not go back."""
        folder = self.folder
        trained, scored = folder.checkpoint_step(), set(folder.evaluations.steps())
        steps = self.settings.evaluation_steps(self.until)
        return [step for step in steps if step not in scored and (step >= trained or step == 0)]

    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.until in self.folder.evaluations.steps() and not self.missing()

    def run(self) -> Outcome:
        """Do it, as far as time allows."""
        return run_cell(self)

    @property
    def is_late(self) -> bool:
        """Whether nothing is to be begun any more."""
        return self.deadline is not None and self.deadline.left_s() <= 0


class _Reached(Exception):
    """Training is where it was to go."""


def run_cell(task: CellTask) -> Outcome:
    """Train and score a cell up to task.until. What goes wrong is kept in its folder, and the study goes on."""
    folder = task.folder
    if task.is_done():
        return "done"
    if folder.error() is not None and not task.settings.retry_failed:
        return "failed"
    if task.is_late:
        return "stopped"
    try:
        folder.describe(_facts(task))
        folder.set_error(None)
        _Piece(task, folder).run()
    except Stopped:
        raise
    except Exception as error:
        why = why_failed(error)
        logger.warning("%s failed: %s", task.cell.name, why, exc_info=not isinstance(error, UserError))
        folder.set_error(why)
        return "failed"
    return "done" if task.is_done() else "stopped"


def why_failed(error: Exception) -> str:
    """What a failed cell says of itself, in a line of some 300 letters."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU's memory ran out: take fewer ablate_alpha.workers, or sample fewer clips at once "
            "(ablate_alpha.batch_size), and set ablate_alpha.retry_failed=true"
        )
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())[:300]


class _Piece:
    """One stretch of a cell's training."""

    def __init__(self, task: CellTask, folder: CellFolder) -> None:
        from pyoco_pipeline.study.measure import Measure

        self.task, self.folder = task, folder
        self.material = opened(task.material)
        self.stage = cell_stage(task, self.material)
        self.measure = Measure(self.material, task.settings, task.cell, self.stage)
        self.scoring_s = 0.0

    def run(self) -> None:
        begun, first = time.monotonic(), self.folder.checkpoint_step()
        try:
            if 0 in self.task.missing():
                self._score_untrained(wait=False)
            if first in self.task.missing():  # stopped between the checkpoint and its scores
                self._score_checkpoint(first)
            if first < self.task.until and not self.task.is_late:
                self._train()
            if 0 in self.task.missing() and not self.task.is_late:
                self._score_untrained(wait=True)
        finally:
            self.folder.keep_history()
            seconds = time.monotonic() - begun
            self.folder.add_piece(
                {
                    "from": first,
                    "to": self.folder.checkpoint_step(),
                    "train_s": round(seconds - self.scoring_s, 3),
                    "score_s": round(self.scoring_s, 3),
                    "code": self.task.code,
                    "device": _device_name(),
                }
            )

    def _score_untrained(self, wait: bool) -> None:
        """Take or make what cells share; wait: for another process that makes it just now, else leave it for later."""
        name = untrained_id(self.task.cell, self.task.shared)
        folder = self.task.material.work / "untrained" / name
        folder.mkdir(parents=True, exist_ok=True)
        shared = EvaluationFolder(folder / "evaluations")
        with suppress(Timeout), FileLock(folder / ".lock", blocking=wait):
            if not shared.steps():
                self._keep(0, self._denoiser(None), shared)
        if shared.steps():
            self.folder.evaluations.write(0, shared.read(0), shared.clips(0))

    def _score_checkpoint(self, step: int) -> None:
        from pyoco_pipeline.training.checkpoint import CheckpointFolder

        snapshot = CheckpointFolder(self.folder.checkpoints, 1).newest()
        if snapshot is not None and snapshot.step == step:
            self._keep(step, self._denoiser(snapshot.ema), self.folder.evaluations)

    def _denoiser(self, averaged: dict[str, Any] | None) -> Any:
        return cell_denoiser(self.material, self.stage, averaged)

    def _train(self) -> None:
        from pyoco_pipeline.training.stages import train_video_model

        material, stage = self.material, self.stage
        if self.task.deadline is not None:
            minutes = max(1e-3, self.task.deadline.left_s() / 60)
            train = stage.train.model_copy(update={"max_minutes": minutes})
            stage = stage.model_copy(update={"train": train})
        try:
            with _no_live_metrics():
                train_video_model(
                    self.task.cell.name,
                    stage,
                    material.inflated,
                    material.clips_of(self.task.cell),
                    material.embeddings,
                    self.folder.checkpoints,
                    self._validate,
                )
        except _Reached:
            pass

    def _validate(self, step: int, denoise: Any) -> Path | None:
        if step in self.task.settings.evaluation_steps(self.task.until):
            if step not in self.folder.evaluations.steps():
                self._keep(step, denoise, self.folder.evaluations)
            # At its very last step the trainer ends by itself, with a checkpoint after this call.
            if step == self.task.until < self.stage.train.steps:
                raise _Reached
        return None

    def _keep(self, step: int, denoise: Any, evaluations: EvaluationFolder) -> None:
        measured = self.measure(denoise)
        evaluations.write(step, measured.scores | {"step": step}, measured.clips)
        self.scoring_s += measured.scores["seconds"]
        entry = measured.scores["metrics"][self.task.settings.metric]
        logger.info(
            "%s: step %d, %s %.4g", self.task.cell.name, step, self.task.settings.metric, entry["value"]
        )


def cell_stage(task: CellTask, material: Any) -> StageSettings:
    """How the task's cell trains; of a control, from the new weights in the study's folder."""
    is_new = task.cell.configuration.init == "scratch"
    return stage_settings(task.cell, task.settings, str(material.initial(task.cell)) if is_new else None)


def cell_denoiser(material: Any, stage: StageSettings, averaged: dict[str, Any] | None) -> Any:
    """Of the model that a cell starts from, with averaged weights where there are some, on the GPU if there is one."""
    import torch

    from pyoco_pipeline.training.initial_model import initial_video_model
    from pyoco_pipeline.training.stages import stage_shape

    size = stage_shape(stage, material.trained_on)[1:]
    model, parametrisation = initial_video_model(
        stage, material.inflated, material.trained_on, material.embeddings, size, None, None
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if averaged is not None:
                parameter.copy_(averaged[name])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    if stage.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return parametrisation.denoiser(model, stage.sigma_data)


@lru_cache(maxsize=1)
def opened(material: Any) -> Any:
    """The same material for all cells of a process, so that clips and embeddings are opened once."""
    return material


def _facts(task: CellTask) -> dict[str, Any]:
    chosen = task.cell.configuration
    facts = asdict(chosen) | {"noise": chosen.noise.prior().config(), "seed": task.cell.seed}
    return {"name": task.cell.name, **facts, "shared": task.shared, "code": task.code}


def _device_name() -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()


@contextmanager
def _no_live_metrics() -> Iterator[None]:
    """Within: training logs no metrics to the run of the whole study; cells have runs of their own."""
    live = logging.getLogger("pyoco_pipeline.metrics")
    silent, live.disabled = live.disabled, True
    try:
        yield
    finally:
        live.disabled = silent
