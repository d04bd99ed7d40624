"""The grid of fine-tuning runs, what their scores say, and the page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.datasets.folder import FolderWriter
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.tracking import TrackingSettings

_log = logging.getLogger(__name__)


def run_cells(
    ablate_alpha: AblateAlphaSettings,
    tracking: TrackingSettings,
    inflated_model: Path,
    clips: Path,
    latents: Path,
    text_embeddings: Path,
    work: Path,
    reference_statistics: Path,
    reporting_folder: Path,
) -> dict[str, Any]:
    """Train and score the cells, each with an MLflow run of its own, as far as max_minutes allows."""
    from pyoco_pipeline.pipelines.ablate_alpha.tracked_cells import TrackedCells
    from pyoco_pipeline.study.halving import check_some_succeeded, run_study
    from pyoco_pipeline.study.material import Material
    from pyoco_pipeline.study.measured import ANALYSIS_FILE, measured_correlation

    material = Material(inflated_model, clips, latents, text_embeddings, work, reference_statistics)
    if ablate_alpha.is_to_be_measured:
        measured = measured_correlation(reporting_folder / ANALYSIS_FILE, material.store.shape[0])
        ablate_alpha = ablate_alpha.measured(measured)
    tracked = TrackedCells(tracking, work, material.store.manifest.fps) if tracking.enabled else None
    study = run_study(material, ablate_alpha, tracked)
    check_some_succeeded(study["cells"])
    if tracked is not None and (link := tracked.compare_link(study["study"])):
        _log.info("All cells of the study in MLflow: %s", link)
        study["compare_link"] = link
    return study


def analyse_study(
    ablate_alpha: AblateAlphaSettings, cells: dict[str, Any], clips: Path
) -> tuple[dict[str, Any], dict[str, float], list[dict[str, Any]]]:
    """What the study found, the few numbers that stand for it, and its α curves for `dvc plots`."""
    import numpy as np

    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.study import analyse

    store = ClipStore(clips)
    items = store.take("train", analyse.SPECTRUM_CLIPS)
    videos = np.stack([c.clip.video for c in items if c.clip.video.shape[:3] == store.shape])
    found = analyse.analyse(cells, ablate_alpha, videos / 127.5 - 1, store.manifest.counts["train"])
    _log.info("%s", found["conclusion"])
    return found, analyse.headline(found), analyse.alpha_curve(found, ablate_alpha)


def report_study(
    ablate_alpha: AblateAlphaSettings, found: dict[str, Any], cells: dict[str, Any], clips: Path, work: Path
) -> tuple[FolderWriter, str]:
    """The figures and the page."""
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.study.page import draw_figures, render_page

    store = ClipStore(clips)
    captions = [item.caption for item in store.take(store.unseen_split, ablate_alpha.num_shown)]
    samples = _samples(ablate_alpha, found, work, len(captions))
    page = render_page(found, ablate_alpha, samples, captions, cells.get("compare_link"), store.manifest.fps)
    return partial(_write_figures, drawn=draw_figures(found, ablate_alpha)), page


def _samples(
    settings: AblateAlphaSettings, found: Mapping[str, Any], work: Path, count: int
) -> dict[str, list[Any]]:
    """The first clips of the first seed's cell of each configuration that is shown, at the last step."""
    from pyoco_pipeline.study.analyse import study_table
    from pyoco_pipeline.study.page import shown_rows
    from pyoco_pipeline.study.work import CellFolder

    first = {cell["configuration"]: cell for cell in found["cells"] if cell["seed"] == settings.seeds[0]}
    samples = {}
    for row in shown_rows(study_table(found["cells"], settings)):
        cell = first.get(row.name)
        if cell and cell["evaluations"]:
            clips = CellFolder(work, cell["id"]).evaluations.clips(cell["evaluations"][-1]["step"])
            samples[row.name] = list(clips[:count])
    return samples


def _write_figures(folder: Path, *, drawn: Mapping[str, Callable[..., bytes]]) -> None:
    for name, draw in drawn.items():
        (folder / f"{name}.png").write_bytes(draw())
