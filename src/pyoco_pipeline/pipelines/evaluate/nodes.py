"""Scores of the generated clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyoco_pipeline.evaluation.settings import EvaluateSettings


def score_clips(evaluate: EvaluateSettings, generated_clips: Path, clips: Path) -> dict[str, Any]:
    """Measure the generated clips against the training clips."""
    import torch

    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.evaluation.evaluate import evaluate_clips

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return evaluate_clips(ClipStore(generated_clips), ClipStore(clips), evaluate, device)
