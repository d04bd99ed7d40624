"""Is there room for what a run keeps?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from pyoco_pipeline.preflight.findings import Finding
from pyoco_pipeline.preflight.paths import nearest
from pyoco_pipeline.preflight.plan import Plan


def check_disk(plan: Plan) -> Iterator[Finding]:
    """Clips, where their number is known, and checkpoints, against what is free."""
    ingest = plan.parameters["ingest"]
    parts: dict[str, int] = {}
    if ingest.source == "moving_digits":
        clip = 3 * ingest.num_frames * ingest.height * ingest.width
        parts["clips"] = clip * (ingest.moving_digits.num_train + ingest.moving_digits.num_test)
    else:
        yield Finding("warning", f"how many clips {ingest.source} gives is not known before ingest.")
    for name, network in plan.networks.items():
        weights = 4 * sum(p.numel() for p in network.parameters())
        # A checkpoint holds weights, their average and two moments; one more is written before the oldest goes.
        parts[f"stage {name}"] = weights * (1 + 4 * (plan.stages[name].train.keep_checkpoints + 1))
    needed, free = sum(parts.values()), shutil.disk_usage(nearest(plan.data)).free
    shares = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    words = f"{needed / 1e9:.2f} GB ({shares}) of {free / 1e9:.1f} GB"
    if needed > free:
        yield Finding(
            "problem",
            f"{plan.data} has no room for {words} that are free: make room, or set globals.yml: data.",
        )
    else:
        yield Finding("ok", f"{plan.data} has room: {words} that are free.")
