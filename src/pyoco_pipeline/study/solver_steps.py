"""Quality against solver steps: trained cells are sampled again with other numbers, from their last weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.study.cells import digest
from pyoco_pipeline.study.run_cell import CellTask, Outcome, cell_denoiser, cell_stage, opened, why_failed
from pyoco_pipeline.study.work import EvaluationFolder, SolverFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SolverTask:
    """A cell that is trained up to trained.until, to be sampled with each of settings.solver_steps; picklable."""

    trained: CellTask

    @property
    def folder(self) -> SolverFolder:
        """Where the scores are kept."""
        return self.trained.folder.solver

    def scored(self, steps: int) -> EvaluationFolder:
        """The scores with so many solver steps: those of training where it was scored with as many."""
        settings = self.trained.settings
        if steps == settings.sampler.steps:
            return self.trained.folder.evaluations
        # What else decides them, such as the number of clips, is part of the cell's id.
        sampler = settings.with_solver_steps(steps).sampler.model_dump()
        return self.folder.scored(f"{steps:03d}-{digest(sampler)[:8]}")

    def missing(self) -> list[int]:
        """Numbers of solver steps without scores."""
        asked, until = self.trained.settings.solver_steps, self.trained.until
        return [steps for steps in asked if until not in self.scored(steps).steps()]

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
            logger.warning("%s, solver steps: %s", name, why, exc_info=not isinstance(error, UserError))
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
                "back. Set ablate_alpha.solver_steps to [], or the last rung to that step."
            )
        material = opened(task.material)
        stage = cell_stage(task, material)
        denoise = cell_denoiser(material, stage, snapshot.ema)
        for steps in self.missing():
            if task.is_late:
                return
            measured = Measure(material, task.settings.with_solver_steps(steps), task.cell, stage)(denoise)
            self.scored(steps).write(task.until, measured.scores | {"step": task.until}, measured.clips)

    def rows(self) -> list[dict[str, Any]]:
        """The scores by number of solver steps, JSON-able; none of a cell that was scored with one number alone."""
        settings, rows = self.trained.settings, []
        for steps in sorted(set(settings.solver_steps)):
            scored = self.scored(steps)
            if self.trained.until in scored.steps():
                scores = scored.read(self.trained.until)
                took = 0.0 if steps == settings.sampler.steps else scores["seconds"]
                rows.append({"solver_steps": steps, "values": flatten_metrics(scores), "seconds": took})
        return rows if len(rows) > 1 else []
