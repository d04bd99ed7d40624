"""Are the files and folders there that the settings name, and can the run write where it will?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pyoco_pipeline.preflight.findings import Finding
from pyoco_pipeline.preflight.plan import Plan

_NO_FOLDERS = {"shipped", "scratch", "embedded-minilm"}


def check_paths(plan: Plan) -> Iterator[Finding]:
    """Every path that a setting names, and write access."""
    named = list(_named(plan))
    missing = 0
    for key, path in named:
        if "://" in path:
            yield Finding("warning", f"{key}={path} is not on this machine and was not looked at.")
            continue
        place = plan.project / path
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            missing += 1
            what = "is empty" if place.exists() else "is missing"
            yield Finding("problem", f"{key}: {place} {what}: put it there, or name another.")
    if not missing:
        yield Finding("ok", f"{len(named)} files and folders that the settings name are there.")
    for folder in (plan.data, plan.project):
        if not os.access(nearest(folder), os.W_OK):
            yield Finding(
                "problem", f"{folder} can't be written to: mend its rights, or set globals.yml: data."
            )


def _named(plan: Plan) -> Iterator[tuple[str, str]]:
    parameters = plan.parameters
    ingest, generate, evaluate = (parameters[name] for name in ("ingest", "generate", "evaluate"))
    yield from _if_path("ingest.text_encoder", ingest.text_encoder)
    yield from _if_path("ingest.autoencoder", ingest.autoencoder)
    yield from _if_path("ingest.filters.clip_model", ingest.filters.clip_model)
    for section, settings in (("ingest", ingest), ("ingest.images", ingest.images)):
        if settings is not None and settings.source != "moving_digits":
            source = getattr(settings, settings.source)
            yield from _if_path(f"{section}.{settings.source}.root", source.root)
    yield from _if_path("pretrain_image.init", parameters["pretrain_image"].init)
    for name, stage in plan.stages.items():
        yield from _if_path(f"finetune_video.{name}.init", stage.init)
        yield from _if_path(f"finetune_video.{name}.clips", stage.clips)
    image_model = (plan.data / "06_models" / "image").resolve()  # which pretrain_image makes first
    for place, expert in enumerate(generate.experts):
        if expert.model is None or (plan.project / expert.model).resolve() != image_model:
            yield from _if_path(f"generate.experts[{place}].model", expert.model)
    if generate.video is not None:
        yield from _if_path("generate.video.clips", generate.video.clips)
    for key in ("generated", "reference", "prompts"):
        yield from _if_path(f"evaluate.{key}", getattr(evaluate, key))
    if evaluate.digits3d is not None:
        yield from _if_path("evaluate.digits3d.path", evaluate.digits3d.path)
    for name, extractor in evaluate.extractors.items():
        yield from _if_path(f"evaluate.extractors.{name}.path", extractor.path)


def _if_path(key: str, value: str | None) -> Iterator[tuple[str, str]]:
    if value is not None and value not in _NO_FOLDERS:
        yield key, value


def nearest(folder: Path) -> Path:
    """The folder itself or, where it is not there yet, the nearest above it."""
    return folder if folder.exists() else nearest(folder.parent)
