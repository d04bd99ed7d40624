"""Trained cells are sampled again from their last weights: in other numbers of solver steps, from other sigma_max."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.study.cells import digest
from pyoco_pipeline.study.run_cell import CellTask, Outcome, cell_denoiser, cell_stage, opened, why_failed
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.work import EvaluationFolder, ResampledFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResampleTask:
    """A cell that is trained up to trained.until, to be sampled in each way of settings.resampled(); picklable."""

    trained: CellTask

    @property
    def folder(self) -> ResampledFolder:
        """Where the scores are kept."""
        return self.trained.folder.resampled

    def scored(self, sampler: SamplerSettings) -> EvaluationFolder:
        """The scores of this sampler's clips: those of training where it is training's."""
        if sampler == self.trained.settings.sampler:
            return self.trained.folder.evaluations
        # What else decides them, such as the number of clips, is part of the cell's id.
        return self.folder.scored(f"{sampler.steps:03d}-{digest(sampler.model_dump())[:8]}")

    def missing(self) -> list[AblateAlphaSettings]:
        """The study's settings with each sampler that has no scores."""
        ways = [way for ways in self.trained.settings.resampled().values() for way in ways.values()]
        return [way for way in ways if self.trained.until not in self.scored(way.sampler).steps()]

    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.missing()

    def run(self) -> Outcome:
        """Sample and score, as far as time allows. What goes wrong is kept in the folder, and the study goes on."""
        if self.is_done():
            return "done"
        if self.folder.error() is not None and not self.trained.settings.retry_failed:
            return "failed"
        try:
            self.folder.set_error(None)
            self._score()
        except Stopped:
            raise
        except Exception as error:
            name = self.trained.cell.name
            why = why_failed(error)
            logger.warning("%s, sampled again: %s", name, why, exc_info=not isinstance(error, UserError))
            self.folder.set_error(why)
            return "failed"
        return "done" if self.is_done() else "stopped"

    def _score(self) -> None:
        from pyoco_pipeline.study.measure import Measure
        from pyoco_pipeline.training.checkpoint import CheckpointFolder

        task = self.trained
        if task.is_late:
            return
        snapshot = CheckpointFolder(task.folder.checkpoints, 1).newest()
        if snapshot is None or snapshot.step != task.until:
            found = "none is there" if snapshot is None else f"the one there is of step {snapshot.step}"
            raise UserError(
                f"{task.folder.checkpoints} has no checkpoint of step {task.until}, {found}: training does not go "
                "back. Set ablate_alpha.solver_steps and sampled_from to [], or the last rung to that step."
            )
        material = opened(task.material)
        stage = cell_stage(task, material)
        denoise = cell_denoiser(material, stage, snapshot.ema)
        for way in self.missing():
            if task.is_late:
                return
            measured = Measure(material, way, task.cell, stage)(denoise)
            self.scored(way.sampler).write(task.until, measured.scores | {"step": task.until}, measured.clips)

    def rows(self, varied: str) -> list[dict[str, Any]]:
        """The scores by what is varied, a key of settings.resampled(), JSON-able.

        None where the sampler of training is the only one.
        """
        settings, rows = self.trained.settings, []
        for value, way in settings.resampled()[varied].items():
            scored = self.scored(way.sampler)
            if self.trained.until in scored.steps():
                scores = scored.read(self.trained.until)
                took = 0.0 if way.sampler == settings.sampler else scores["seconds"]
                rows.append({varied: value, "values": flatten_metrics(scores), "seconds": took})
        return rows if any(row["seconds"] for row in rows) else []
