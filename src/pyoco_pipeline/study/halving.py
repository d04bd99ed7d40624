"""The study from its first cell to its last: rung by rung, the better configurations train on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.study.cells import (
    PAPER_ALPHA,
    Cell,
    Configuration,
    cell_id,
    configurations,
    digest,
    fewer_clips,
)
from pyoco_pipeline.study.deadline import Deadline
from pyoco_pipeline.study.resampled import ResampleTask
from pyoco_pipeline.study.run_cell import CellTask
from pyoco_pipeline.study.settings import AblateAlphaSettings, RungSettings
from pyoco_pipeline.study.workers import RunCells, Task, cell_runner

HIGHER_IS_BETTER = ("is_", "caption_accuracy", "clipsim")
logger = logging.getLogger(__name__)
OnCell = Callable[[dict[str, Any]], None]


def lower_is_better(metric: str) -> bool:
    """Whether the best value of a metric is its lowest.

    Raises UserError for a similarity, which is best near that of real clips.
    """
    if metric.startswith(("temporal_consistency", "frame_consistency", "motion_magnitude")):
        raise UserError(
            f"ablate_alpha.metric={metric} is best near that of real clips, so it can't rank cells."
        )
    return not metric.startswith(HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Rung:
    """What became of the configurations that trained up to a rung's steps, by their names."""

    steps: int
    trained: tuple[str, ...]
    kept: tuple[str, ...]


def run_study(material: Any, settings: AblateAlphaSettings, on_cell: OnCell | None = None) -> dict[str, Any]:
    """Train and score the study's cells, as far as max_minutes allows; the result is JSON-able.

    material: a `Material`. on_cell: called with the record of each cell that has got as far as it may, or failed;
        not of those that time did not reach.
    Result: `study` (id), `rungs`, `finished`, and `cells`, a record of every cell that began or is to begin.
    """
    lower_is_better(settings.metric)
    with cell_runner(settings) as run:
        return _Study(material, settings, run, on_cell).go_on()


class _Study:
    """The cells of a study, as far as they have been asked for."""

    def __init__(
        self, material: Any, settings: AblateAlphaSettings, run: RunCells, on_cell: OnCell | None
    ) -> None:
        from pyoco_pipeline.study.material import code_sha256
        from pyoco_pipeline.study.measure import discard_leftovers

        self.material, self.settings, self.run, self.on_cell = material, settings, run, on_cell
        self.shared, self.code = material.facts(settings), code_sha256()
        self.id = f"{settings.study}-{digest(self.shared)[:8]}"
        self.deadline = Deadline.after(settings.max_minutes) if settings.max_minutes else None
        self.own = replace(material)  # without what was opened here: it is sent to other processes
        self.tasks: dict[Cell, CellTask] = {}
        discard_leftovers(material.work)

    def go_on(self) -> dict[str, Any]:
        """All rungs, as far as time allows; the result of `run_study`."""
        settings = self.settings
        left, rungs, finished = configurations(settings), [], True
        for place, rung in enumerate(settings.rungs):
            cells = _cells(left, rung, settings)
            finished = self._train(cells, rung.steps)
            trained = tuple(c.name for c in left)
            if finished and place < len(settings.rungs) - 1:
                left = survivors(left, {c: self._mean(c, rung.steps) for c in left}, settings)
            rungs.append(Rung(rung.steps, trained, tuple(c.name for c in left)))
            if not finished:
                break
        last = settings.rungs[-1]
        if finished and settings.fewer_clips:
            finished = self._train(_cells(fewer_clips(settings), last, settings), last.steps)
        if finished and any(settings.resampled().values()):
            finished = self._resample(_cells(left, last, settings))
        if not finished:
            logger.info("Stopped after %g minutes: the same command goes on.", settings.max_minutes or 0)
        return {
            "study": self.id,
            "finished": finished,
            "rungs": [vars(rung) for rung in rungs],
            "shared": self.shared,
            "code": self.code,
            "cells": [record(task, self.id) for task in self.tasks.values()],
        }

    def _train(self, cells: Sequence[Cell], until: int) -> bool:
        """Whether all of them are there now, or have failed."""
        self.material.prepare(cells)
        own = self.own, self.shared, self.code, self.deadline
        tasks = [CellTask(cell, until, self.settings, *own) for cell in cells]
        self.tasks |= {task.cell: task for task in tasks}
        return self._run(tasks)

    def _resample(self, cells: Sequence[Cell]) -> bool:
        """As `_train`, of trained cells by other samplers; those that failed in training are left out."""
        return self._run([ResampleTask(self.tasks[cell]) for cell in cells if self.tasks[cell].is_done()])

    def _run(self, tasks: Sequence[Task]) -> bool:
        left = []
        for task in tasks:  # no process is started for what is done
            if task.is_done():
                self._say(task)
            else:
                left.append(task)
        for task, _ in self.run(left):
            self._say(task)
        return all(task.is_done() or task.folder.error() is not None for task in left)

    def _say(self, task: Task) -> None:
        trained = task.trained if isinstance(task, ResampleTask) else task
        if self.on_cell and trained.folder.has_begun:
            self.on_cell(record(trained, self.id))

    def _mean(self, configuration: Configuration, step: int) -> float:
        values = []
        for cell, task in self.tasks.items():
            evaluations = task.folder.evaluations
            if cell.configuration == configuration and step in evaluations.steps():
                values.append(evaluations.read(step)["metrics"][self.settings.metric]["value"])
        return sum(values) / len(values) if values else math.nan


def _cells(chosen: Iterable[Configuration], rung: RungSettings, settings: AblateAlphaSettings) -> list[Cell]:
    return [Cell(c, seed) for seed in settings.seeds[: rung.seeds] for c in chosen]


def check_some_succeeded(cells: Sequence[Mapping[str, Any]]) -> None:
    """UserError where every cell has failed, which says more of the set-up than of the priors."""
    if cells and all(cell["status"] == "failed" for cell in cells):
        first = cells[0]
        raise UserError(
            f"All {len(cells)} cells of the study failed, {first['name']} with: {first['error'].rstrip('.')}. Put that "
            "right and run the study again with ablate_alpha.retry_failed=true; info.log has more."
        )


def survivors(
    left: Iterable[Configuration], means: Mapping[Configuration, float], settings: AblateAlphaSettings
) -> list[Configuration]:
    """The configurations that train on, in their order: the best share, the paper's, and the best of each family.

    means: of the metric over seeds, nan where there is none; such a configuration goes no further.
    """
    left = [c for c in left if not math.isnan(means[c])]
    sign = 1 if lower_is_better(settings.metric) else -1
    ranked = sorted(left, key=lambda c: sign * means[c])
    kept = set(ranked[: math.ceil(settings.keep * len(ranked))])
    if "paper" in settings.always_keep:
        kept |= {c for c in left if c.is_papers(settings.paper_sigma)}
    if "family_best" in settings.always_keep:
        kept |= {next(c for c in ranked if c.family == family) for family in {c.family for c in left}}
    if "measured" in settings.always_keep and any(c.family == "empirical" for c in left):
        kept |= {c for c in left if c.family == "empirical" and c.at_law(settings.paper_sigma)}
        rivals = [c for c in ranked if c.family == "progressive" and c.alpha == PAPER_ALPHA["progressive"]]
        kept |= set(rivals[:1])
    kept |= {c.with_clips(None) for c in fewer_clips(settings)}  # what these are compared with
    return [c for c in left if c in kept]


def record(task: CellTask, study: str) -> dict[str, Any]:
    """All that is known of a cell, JSON-able; an α of infinity is the word inf."""
    cell, folder, settings = task.cell, task.folder, task.settings
    chosen, pieces = cell.configuration, folder.pieces()
    alpha = chosen.alpha
    again = ResampleTask(task)
    resampled = {varied: again.rows(varied) for varied in settings.resampled()}
    evaluations = []
    for step in folder.evaluations.steps():
        scores = folder.evaluations.read(step)
        seen = step * settings.train.batch_size
        evaluations.append({"step": step, "clips_seen": seen, "values": flatten_metrics(scores)})
    error = folder.error()
    again_s = sum(row["seconds"] for rows in resampled.values() for row in rows)
    return {
        "id": cell_id(cell, settings, task.shared),
        "study": study,
        "name": cell.name,
        "configuration": chosen.name,
        "prior": chosen.prior_name,
        "family": chosen.family,
        "init": chosen.init,
        "kind": chosen.noise.kind,
        "alpha": "inf" if alpha is not None and math.isinf(alpha) else alpha,
        "neighbour_correlation": _neighbour_correlation(chosen),
        "noise": chosen.noise.prior().config(),
        "sigma_mean": chosen.sigma_mean,
        "sigma_std": chosen.sigma_std,
        "is_papers_law": chosen.at_law(settings.paper_sigma),
        "is_papers": chosen.is_papers(settings.paper_sigma),
        "num_clips": chosen.num_clips,
        "seed": cell.seed,
        "status": "failed" if error else "done" if task.is_done() else "waiting",
        "error": error,
        "until": task.until,
        "step": folder.checkpoint_step(),
        "evaluations": evaluations,
        **resampled,
        "train_s": sum(piece["train_s"] for piece in pieces),
        "score_s": sum(piece["score_s"] for piece in pieces) + again_s,
        "device": sorted({piece["device"] for piece in pieces}),
        "code": sorted({piece["code"] for piece in pieces}),
    }


def _neighbour_correlation(configuration: Configuration) -> float:
    """Of the noise of neighbouring frames: the one number that all priors have."""
    return float(configuration.noise.prior().covariance(2)[0, 1])
