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
    import torch

    from pyoco_pipeline.evaluation.evaluate import evaluate_folders

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return evaluate_folders(generated_clips, clips, evaluate, device, cache_folder=reference_statistics)
