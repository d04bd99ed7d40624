"""The content of metrics.json as plain numbers; pure Python, so that trackers need not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers for a tracker: value, floor, real and interval of every metric, and each attribute's accuracy."""
    flat: dict[str, float] = {}
    for name, entry in result["metrics"].items():
        flat[name] = float(entry["value"])
        flat |= {f"{name}_{k}": float(entry[k]) for k in ("floor", "real") if k in entry}
        if "interval" in entry:
            flat |= {f"{name}_{k}": float(entry["interval"][k]) for k in ("low", "high")}
        if "extrapolated" in entry:
            flat[f"{name}_extrapolated"] = float(entry["extrapolated"]["value"])
        for attribute, part in entry.get("attributes", {}).items():
            flat[f"{name}_{attribute}"] = float(part["value"])
            flat[f"{name}_{attribute}_real"] = float(part["real"])
    return flat
