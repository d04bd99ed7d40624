"""Small cascades whose stages were never trained: base 4x8x8, interpolation 10x8x8, sr256 10x16x16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import make_unet, perturb, stage_info

from pyoco_pipeline.cascade.conditions import Condition, FramesCondition, LowResolutionCondition
from pyoco_pipeline.cascade.folders import write_none
from pyoco_pipeline.cascade.plan import PlannedStage
from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.models import inflate, save_video_model
from pyoco_pipeline.noise import IIDNoise

STRIDE, SCALE = 3, 2
SHAPES = {"base": (4, 8, 8), "interpolation": (10, 8, 8), "sr256": (10, 16, 16)}
RATES = {"base": 4.0, "interpolation": 12.0, "sr256": 12.0}
CONDITIONS: dict[str, Condition | None] = {
    "base": None,
    "interpolation": FramesCondition(STRIDE, {"interpolation": 1.0}, 0.3, IIDNoise()),
    "sr256": LowResolutionCondition(SCALE, 0.5, IIDNoise()),
}


def make_stage(
    folder: Path, name: str, condition: Condition | None, seed: int = 0, *, fps: bool = False, **info: Any
) -> Path:
    """A stage whose network does something with all that it is given."""
    inputs: dict[str, Any] = {"fps": fps}
    if condition is not None:
        inputs |= {"concat_channels": condition.concat_channels(3), "noise_level": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = inflate(make_unet(seed), **inputs).eval()
        perturb(model.temporal)
        perturb(model.image_model.conv_in, 0.1)
    facts = {"shape": SHAPES[name], "fps": RATES[name], "condition": condition and condition.config()} | info
    save_video_model(model, folder, stage_info(stage=name, **facts))
    return folder


def make_cascade(folder: Path, **changes: Any) -> dict[str, Path]:
    """The folders of all stages; of sr1024 there is none."""
    models = {name: folder / name for name in STAGES}
    for seed, name in enumerate(SHAPES):
        make_stage(models[name], name, CONDITIONS[name], seed, **changes)
    write_none(models["sr1024"], stage="sr1024")
    return models


def change(model: Path, file: str = "stage.json", **values: Any) -> None:
    """Write other values into one of a stage's JSON files."""
    path = model / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def planned(name: str, **changes: Any) -> PlannedStage:
    """A stage as the plan has it."""
    frames, height, width = SHAPES[name]
    facts = {"frames": frames, "window": frames, "fps": RATES[name], "prior": "MixedNoise(alpha=1.0)"}
    return PlannedStage(**({"name": name, "height": height, "width": width} | facts | changes))


def settings(**changes: Any) -> GenerateSettings:
    """Two clips, three steps, the smallest noise augmentation."""
    later = {"sampler": {"solver": "dpmpp_2m", "steps": 3}, "noise_level": 0.1, "batch_size": 2}
    names = ("interpolation", "sr256")
    own = {name: later | changes.pop(name, {}) for name in names}
    return GenerateSettings(**({"num_clips": 2, "sampler": {"steps": 3}, "batch_size": 2} | own | changes))
