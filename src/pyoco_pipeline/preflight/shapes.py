"""Do clips, parts that are trained on, and the stages of the cascade fit together?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pyoco_pipeline.cascade.checks import check_base, check_fits
from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.models import StageInfo
from pyoco_pipeline.preflight.findings import Finding
from pyoco_pipeline.preflight.plan import Plan
from pyoco_pipeline.training.stages import check_stage, stage_condition, stage_shape, stage_view


def check_shapes(plan: Plan) -> Iterator[Finding]:
    """Every stage on the clips that it will see, and each on what the one before it makes."""
    generate, infos = plan.parameters["generate"], {}
    for name, stage in plan.stages.items():
        store = plan.clips.get(name)
        if store is None:
            yield Finding(
                "warning", f"finetune_video.{name}.clips={stage.clips} is not there to be looked at."
            )
            continue
        check_stage(stage, store)
        infos[name] = _planned(name, stage, store)
        frames, height, width = infos[name].shape
        prior = stage.noise.prior()
        yield Finding("ok", f"stage {name} makes clips of {frames} frames, {height}x{width}, with {prior}.")
    if "base" in infos:
        check_base(infos["base"], generate)
    for before, name in pairwise(infos):
        check_fits(before, infos[before], name, infos[name], generate)
    if len(infos) > 1:
        yield Finding("ok", f"the stages fit together: {' -> '.join(infos)}.")


def _planned(name: str, stage: StageSettings, store: ClipStore) -> StageInfo:
    condition, view = stage_condition(stage), stage_view(stage, store)
    return StageInfo(
        stage=name,
        noise=stage.noise.prior().config(),
        sigma_data=stage.sigma_data,
        shape=stage_shape(stage, store),
        data_sha256="",
        text_encoder_sha256="",
        steps=0,
        seed=0,
        torch="",
        device="",
        condition=condition.config() if condition else None,
        fps=store.manifest.fps / view.stride,
    )
