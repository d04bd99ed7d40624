"""Scores of the generated clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyoco_pipeline.evaluation.settings import EvaluateSettings


def score_clips(
    evaluate: EvaluateSettings, generated_clips: Path, clips: Path, reference_statistics: Path | None = None
) -> dict[str, Any]:
    """Measure the generated clips, or those that the settings name, against real ones.

    reference_statistics: a work folder for what was read in the real clips; None: it is read anew.
    """
    from pyoco_pipeline.evaluation.evaluate import evaluate_folders
    from pyoco_pipeline.launch import devices

    processes = devices(evaluate.num_processes)
    return evaluate_folders(generated_clips, clips, evaluate, processes, cache_folder=reference_statistics)
