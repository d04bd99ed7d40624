"""The correlation of an empirical prior, from what analyse_noise wrote."""

from __future__ import annotations

import json
from pathlib import Path

from pyoco_pipeline.errors import UserError

ANALYSIS_FILE = "noise_analysis.json"
_HOW = "`kedro run --pipelines analyse_noise` measures it; or give ablate_alpha's prior its correlation."


def measured_correlation(path: Path, num_frames: int) -> tuple[float, ...]:
    """Correlation of frames at distance 0, 1, …, of an analysis of clips of num_frames.

    Raises UserError where there is none, or it is of clips of another length.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["noise"]["empirical"]["correlation"]
        values = tuple(float(value) for value in found)
    except FileNotFoundError as error:
        raise UserError(
            f"A prior of kind empirical has no correlation, and {path} is missing: {_HOW}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no correlation of frames: {_HOW}") from error
    if len(found) != num_frames:
        raise UserError(
            f"{path} holds a correlation of {len(found)} frames, the clips have {num_frames}: {_HOW}"
        )
    return values
