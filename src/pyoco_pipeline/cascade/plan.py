"""Whether the stages of a cascade fit together, found out from their folders before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyoco_pipeline.cascade.checks import (
    check_alike,
    check_base,
    check_clips,
    check_fits,
    check_made_of,
    check_sampler,
)
from pyoco_pipeline.cascade.conditions import FramesCondition, condition_from_config
from pyoco_pipeline.cascade.folders import existing
from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import base_windows, sampling_prior
from pyoco_pipeline.models import StageInfo, load_stage_info
from pyoco_pipeline.models.io import check_image_model, check_video_model
from pyoco_pipeline.noise import prior_from_config


@dataclass(frozen=True)
class PlannedStage:
    """What a stage makes: clips (frames, height, width) at `fps` frames per second, with noise of `prior`.

    window: frames that it was trained on and sees at a time. overlap: what its windows share, where frames are more.
    """

    name: str
    frames: int
    height: int
    width: int
    fps: float | None
    prior: str
    window: int
    overlap: int = 0


def plan_cascade(
    models: Mapping[str, Path], settings: GenerateSettings, text_encoder_sha256: str, store: ClipStore
) -> list[PlannedStage]:
    """The stages that will sample, in their order; UserError naming the first thing that does not fit.

    models: the folder of each stage, in the order of the cascade; those that say that there is no such stage are left
    out, and those behind settings.last_stage, or before the stage that clips of the user go into. store: what ingest
    made for training, clips or latents.
    """
    names, begin = _stages_asked_for(models, settings)
    infos = {name: load_stage_info(models[name]) for name in names}
    first = infos[names[0]]
    for name, info in infos.items():
        check_video_model(models[name])
        check_alike(name, info, first, text_encoder_sha256, store)
        check_sampler(name, models[name], info, settings, store)
    for expert in settings.experts:
        if expert.model:
            of_images = load_stage_info(expert.model).is_image_model
            (check_image_model if of_images else check_video_model)(expert.model)
    for before, name in pairwise(names):
        check_fits(before, infos[before], name, infos[name], settings)
    check_clips(begin, infos, settings)
    if begin == names[0]:
        check_base(first, settings)
        check_made_of(first, store)
    return _planned(infos, settings)[names.index(begin) :]


def as_json(plan: list[PlannedStage]) -> list[dict[str, Any]]:
    """A plan as JSON; `from_json` reads it back."""
    return [asdict(stage) for stage in plan]


def from_json(content: list[dict[str, Any]]) -> list[PlannedStage]:
    """The inverse of `as_json`; UserError where it is of something else."""
    try:
        return [PlannedStage(**stage) for stage in content]
    except TypeError as error:
        raise UserError(
            f"cascade.json holds no plan of a cascade ({error}): run `generate` from its beginning."
        ) from error


def _stages_asked_for(models: Mapping[str, Path], settings: GenerateSettings) -> tuple[list[str], str]:
    """The stages of the cascade up to the last one, and the one that samples first."""
    there = list(existing(models))
    first, last = next(iter(models)), settings.last_stage
    if not there or there[0] != first:
        raise UserError(
            f"the cascade has no stage {first}, with which it begins: set finetune_video.{first}, and run "
            "`finetune_video`."
        )
    if last is not None and last not in there:
        raise UserError(
            f"generate.last_stage={last} is no stage of this cascade, which has {', '.join(there)}: take one of them, "
            f"or set finetune_video.{last} and train it."
        )
    names = there[: there.index(last) + 1] if last else there
    begin = settings.video.stage if settings.video else first
    if begin not in names:
        raise UserError(
            f"generate.video.stage={begin} is not among the stages that sample, {', '.join(names)}: take one of them."
        )
    return names, begin


def _planned(infos: Mapping[str, StageInfo], settings: GenerateSettings) -> list[PlannedStage]:
    """Every stage with the frames that it makes of all windows of the base stage; windows see the same moments."""
    base = next(iter(infos))
    windows = base_windows(settings, infos[base].shape[0])
    planned, stride = [], 1
    for name, info in infos.items():
        condition, window = condition_from_config(info.condition), info.shape[0]
        if isinstance(condition, FramesCondition) and name != base:
            stride *= condition.key_stride
        section = "generate" if name == base else f"generate.{name}"
        prior = sampling_prior(
            prior_from_config(info.noise), settings if name == base else settings.later(name), section
        )
        frames, overlap = window, 0
        if windows is not None:
            frames, overlap = (windows.num_frames - 1) * stride + 1, (windows.overlap - 1) * stride + 1
            if overlap < 0:
                raise UserError(
                    f"generate.overlap={windows.overlap} leaves stage {name} nothing that its windows share: set it to "
                    "1 or more."
                )
            if not prior.is_endless:
                raise UserError(
                    f"stage {name} has noise of {prior}, which ends with its last frame: generate.num_frames="
                    f"{settings.num_frames} needs iid, mixed or progressive noise."
                )
        planned.append(PlannedStage(name, frames, *info.shape[1:], info.fps, str(prior), window, overlap))
    return planned
