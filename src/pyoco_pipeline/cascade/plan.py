"""Whether the stages of a cascade fit together, found out from their folders before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyoco_pipeline.cascade.conditions import FramesCondition, LowResolutionCondition, condition_from_config
from pyoco_pipeline.cascade.folders import existing
from pyoco_pipeline.config import GenerateSettings, SamplerSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.views import view_of
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import base_windows
from pyoco_pipeline.models import StageInfo, load_stage_info
from pyoco_pipeline.models.parametrisation import read_parametrisation
from pyoco_pipeline.noise import prior_from_config

_FPS_TOLERANCE = 1e-6  # relative


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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width


def plan_cascade(
    models: Mapping[str, Path], settings: GenerateSettings, text_encoder_sha256: str
) -> list[PlannedStage]:
    """The stages that will sample, in their order; UserError naming the first thing that does not fit.

    models: the folder of each stage, in the order of the cascade; those that say that there is no such stage are left
    out, and those behind settings.last_stage, or before the stage that clips of the user go into.
    """
    there = existing(models)
    last = settings.last_stage
    if last is not None and last not in there:
        raise UserError(
            f"generate.last_stage={last} is no stage of this cascade, which has {', '.join(there)}."
        )
    names = list(there)[: list(there).index(last) + 1 if last else None]
    if not names or names[0] != next(iter(models)):
        raise UserError(
            f"the cascade has no stage {next(iter(models))}, with which it begins: set finetune_video."
            f"{next(iter(models))}, and run `finetune_video`."
        )
    infos = {name: load_stage_info(there[name]) for name in names}
    first = infos[names[0]]
    begin = settings.video.stage if settings.video else names[0]
    if begin not in infos:
        raise UserError(
            f"generate.video.stage={begin} is not among the stages that sample: {', '.join(names)}."
        )
    for name, info in infos.items():
        _check_alike(name, info, first, text_encoder_sha256)
        _check_sampler(name, there[name], info, settings)
    for before, name in pairwise(names):
        _check_fits(before, infos[before], name, infos[name], settings)
    _check_frames_kept(first, settings)
    plan = _planned(infos, settings)
    return plan[names.index(begin) :]


def as_json(plan: list[PlannedStage]) -> list[dict[str, Any]]:
    """A plan as JSON; `from_json` reads it back."""
    return [asdict(stage) for stage in plan]


def from_json(content: list[dict[str, Any]]) -> list[PlannedStage]:
    """The inverse of `as_json`."""
    return [PlannedStage(**stage) for stage in content]


def _planned(infos: Mapping[str, StageInfo], settings: GenerateSettings) -> list[PlannedStage]:
    """Every stage with the frames that it makes of all windows of the base stage; windows see the same moments."""
    base = next(iter(infos.values()))
    windows = base_windows(settings, base.shape[0])
    planned, stride = [], 1
    for name, info in infos.items():
        condition = condition_from_config(info.condition)
        stride *= condition.key_stride if isinstance(condition, FramesCondition) and name != "base" else 1
        window, frames, overlap = info.shape[0], info.shape[0], 0
        if windows is not None:
            frames = (windows.num_frames - 1) * stride + 1
            overlap = (windows.overlap - 1) * stride + 1
            if overlap < 0:
                raise UserError(
                    f"generate.overlap={windows.overlap} leaves stage {name} nothing that its windows share: set it to "
                    "1 or more."
                )
        prior = prior_from_config(info.noise)
        if windows is not None and not prior.is_endless:
            raise UserError(
                f"stage {name} has noise of {prior}, which ends with its last frame: generate.num_frames="
                f"{settings.num_frames} needs iid, mixed or progressive noise."
            )
        planned.append(PlannedStage(name, frames, *info.shape[1:], info.fps, str(prior), window, overlap))
    return planned


def _check_frames_kept(base: StageInfo, settings: GenerateSettings) -> None:
    kept = settings.video.keep_frames if settings.video else None
    if kept and max(kept) >= base.shape[0]:
        raise UserError(
            f"generate.video.keep_frames has {max(kept)}, and stage base makes frames 0 to {base.shape[0] - 1}: lower "
            "it."
        )


def _check_alike(name: str, info: StageInfo, first: StageInfo, text_encoder_sha256: str) -> None:
    if info.text_encoder_sha256 != text_encoder_sha256:
        raise UserError(
            f"stage {name} was trained with another text encoder than the text embeddings were made with: run "
            "`finetune_video` anew, or set ingest.text_encoder back."
        )
    if info.autoencoder_sha256 != first.autoencoder_sha256:
        raise UserError(
            f"stage {name} samples {_space(info)} and stage {first.stage} {_space(first)}: the stages of a cascade "
            "share one space. Train them on the same ingest."
        )


def _check_sampler(name: str, folder: Path, info: StageInfo, settings: GenerateSettings) -> None:
    sampler: SamplerSettings = settings.sampler if name == "base" else settings.later(name).sampler
    if settings.experts and name == "base":
        return  # each has its own range, which is checked when they are opened
    low, high = read_parametrisation(folder).sigma_limits
    for key in ("sigma_min", "sigma_max"):
        asked = getattr(sampler, key)
        if asked is not None and not low <= asked <= high:
            section = "generate" if name == "base" else f"generate.{name}"
            raise UserError(
                f"{section}.sampler.{key}={asked:g}, and the stage knows noise levels from {low:g} to {high:g}: leave "
                "it out to sample all of them."
            )


def _check_fits(before: str, low: StageInfo, name: str, info: StageInfo, settings: GenerateSettings) -> None:
    condition = condition_from_config(info.condition)
    if isinstance(condition, FramesCondition):
        if not condition.masks.get("interpolation"):
            raise UserError(
                f"stage {name} was trained without masks of interpolation and can't be given the frames of {before}: "
                f"give finetune_video.{name}.condition.masks.interpolation a share."
            )
        frames, stride = (low.shape[0] - 1) * condition.key_stride + 1, condition.key_stride
        expected, times = (
            (frames, *low.shape[1:]),
            f"with {stride - 1} new frames in each gap of those of {before}",
        )
    elif isinstance(condition, LowResolutionCondition):
        stride, scale = 1, condition.scale
        expected = (low.shape[0], scale * low.shape[1], scale * low.shape[2])
        times = f"{scale} times larger than those of {before}"
    else:
        raise UserError(
            f"stage {name} takes nothing of the stage before it, {before}: set finetune_video.{name}.condition and "
            f"train it anew, or end the cascade with generate.last_stage={before}."
        )
    if info.shape != expected:
        raise UserError(
            f"stage {name} was trained on clips of (frames, height, width) {info.shape}, but clips {times}, "
            f"{low.shape}, are {expected}: train one of the two stages anew so that they fit."
        )
    if low.fps and info.fps and abs(info.fps - stride * low.fps) > _FPS_TOLERANCE * info.fps:
        raise UserError(
            f"stage {name} was trained at {info.fps:g} frames per second, but {stride} times those of {before} are "
            f"{stride * low.fps:g}: train one of the two stages anew so that they fit."
        )
    level = settings.later(name).noise_level
    if level > condition.max_noise_level:
        raise UserError(
            f"generate.{name}.noise_level={level:g} is above the {condition.max_noise_level:g} that the stage was "
            f"trained with (finetune_video.{name}.condition.max_noise_level): lower it."
        )
    if info.sigma_range != (0.0, None):
        raise UserError(
            f"stage {name} is an expert for a part of the noise levels; only base can be made of experts."
        )


def _space(info: StageInfo) -> str:
    sha256 = info.autoencoder_sha256
    return f"latents of the autoencoder {sha256[:12]}…" if sha256 else "pixels"


def check_made_of(base: PlannedStage, store: ClipStore) -> None:
    """UserError where the base stage samples clips that those in `store` have nothing of."""
    try:
        view_of(store, (base.window, base.height, base.width))
    except UserError as error:
        trained = base.window, base.height, base.width
        raise UserError(
            f"stage {base.name} was trained on clips of (frames, height, width) {trained}, the ingested ones are "
            f"{store.shape}: run `finetune_video` anew, or set ingest back."
        ) from error
