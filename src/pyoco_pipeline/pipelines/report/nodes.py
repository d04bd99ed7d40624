"""The report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyoco_pipeline.config import ReportSettings
from pyoco_pipeline.errors import UserError, in_one_line


def write_report(
    report: ReportSettings,
    generated_clips: Path,
    videos: Path,
    stage_videos: Path,
    cascade: list[dict[str, Any]],
    clips: Path,
    captions: pd.DataFrame,
    model: Path,
    metrics: dict[str, Any],
    parameters: dict[str, Any],
    work: Path,
    **histories: list[dict[str, Any]],
) -> str:
    """One self-contained HTML page on data, training, clips and metrics; histories: of the training stages."""
    from pyoco_pipeline.models import load_stage_info
    from pyoco_pipeline.noise import prior_from_config
    from pyoco_pipeline.reporting.html import Report, render_report

    info = load_stage_info(model)
    prior = prior_from_config(info.noise)
    sheet = stage_videos / "cascade.png"
    return render_report(
        Report(
            title=report.title,
            run=_run_facts(work),
            videos=_generated(generated_clips, videos),
            real_videos=_real(clips, len(list(videos.iterdir()))),
            metrics=metrics,
            history=_joined(histories),
            config=_plain(parameters),
            captions=_caption_facts(captions),
            ingest=_ingest_facts(clips),
            cascade=_stage_facts(cascade) if len(cascade) > 1 else (),
            cascade_sheet=sheet.read_bytes() if sheet.is_file() else None,
            prior=f"The base stage was trained, and the clips were sampled, with {prior}.",
            covariance=prior.covariance(info.shape[0]).numpy(),
        )
    )


def draw_loss_curves(**histories: list[dict[str, Any]]) -> Any:
    """The loss curves as a picture of their own, for the tracker."""
    import io

    from PIL import Image

    from pyoco_pipeline.reporting.figures import loss_curves

    return Image.open(io.BytesIO(loss_curves(_joined(histories))))


def _joined(histories: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for history in histories.values() for row in history]


def _stage_facts(cascade: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage["name"],
            "frames": stage["frames"],
            "size": f"{stage['height']} x {stage['width']}",
            "frames_per_second": stage["fps"],
            "noise": stage["prior"],
        }
        for stage in cascade
    ]


def _run_facts(work: Path) -> dict[str, Any]:
    from pyoco_pipeline.models.io import read_json

    timings = work / "timings.json"
    return {
        "date": datetime.now().isoformat(sep=" ", timespec="minutes"),
        "pyoco_pipeline": version("pyoco_pipeline"),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "wall_time_s": read_json(timings, "delete it") if timings.is_file() else {},
    }


def _generated(generated_clips: Path, videos: Path) -> list[Any]:
    """The encoded videos, with what the digits classifier reads in them where it applies."""
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.reporting.html import ReportClip

    store = ClipStore(generated_clips)
    files = sorted(videos.iterdir())
    items = store.take(limit=len(files))
    readings: list[dict[str, str] | None] = [None] * len(items)
    if store.manifest.kind == "moving_digits":
        from pyoco_pipeline.evaluation.digits3d import frames_per_step
        from pyoco_pipeline.evaluation.extractors import Digits3D

        stride = frames_per_step(store.manifest.fps)
        readings = list(Digits3D().read(np.stack([item.clip.video[::stride] for item in items])))
    return [
        ReportClip.from_file(path, item.caption, readback=reading, asked=item.clip.attributes)
        for path, item, reading in zip(files, items, readings, strict=True)
    ]


def _real(clips: Path, limit: int) -> list[Any]:
    """Real test clips of the same captions' kind, encoded without loss."""
    import tempfile

    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.reporting.html import ReportClip
    from pyoco_pipeline.reporting.video_files import write_video

    store = ClipStore(clips)
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for item in store.take(store.unseen_split, limit):
            path = write_video(Path(folder) / "clip.webp", item.clip.video, store.manifest.fps)
            shown.append(ReportClip.from_file(path, item.caption))
    return shown


def _caption_facts(captions: pd.DataFrame) -> dict[str, Any]:
    return {
        "captions": len(captions),
        "distinct": int(captions["caption"].nunique()),
        "longest_in_tokens": int(captions["num_tokens"].max()),
    }


def _ingest_facts(clips: Path) -> dict[str, Any]:
    import io

    from pyoco_pipeline.data.clips import ClipStore

    store = ClipStore(clips)
    manifest = store.manifest
    try:
        quarantined = pd.read_csv(io.StringIO(store.read_text("quarantine.csv"))).to_dict("records")
    except (OSError, ValueError) as error:  # pandas' errors are among these
        raise UserError(
            f"{store.folder}/quarantine.csv can't be read as a table ({in_one_line(error)}): run `ingest` again."
        ) from error
    return {
        "kept": sum(manifest.counts.values()),
        "quarantined": quarantined,
        "kind": manifest.kind,
        "frames": manifest.num_frames,
        "size": f"{manifest.height} x {manifest.width}",
        "frames_per_second": manifest.fps,
        "sha256": manifest.sha256,
    }


def _plain(value: Any) -> Any:
    """Settings as the mappings they were read from."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
