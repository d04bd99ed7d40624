"""Clips of the user that sampling starts from: as they are, or cut out of videos and pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.errors import UserError

_log = logging.getLogger(__name__)

CAPTIONS_FILE = "captions.csv"
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
_TIMEOUT_S = 120.0  # for one file


@dataclass(frozen=True)
class UserClips:
    """generate.num_clips clips: those of `store`, from the first again, with generate.prompts or their own captions."""

    store: Any
    generate: GenerateSettings

    def clips(self) -> Iterator[Any]:
        """The clips in their order, with the ids of generated ones."""
        made = (item for _ in count() for item in self.store.clips())
        for i, item in enumerate(islice(made, self.generate.num_clips)):
            caption, attributes = item.caption, item.clip.attributes
            if prompts := self.generate.prompts:
                caption, attributes = prompts[i % len(prompts)], {}
            clip = replace(item.clip, clip_id=f"generated-{i:06d}", attributes=attributes)
            yield replace(item, clip=clip, caption=caption, split="generated", other_captions=())

    def distinct(self) -> list[np.ndarray]:
        """The frames of the clips, each clip once."""
        return [item.clip.video for item in islice(self.store.clips(), self.generate.num_clips)]


@contextmanager
def user_clips(generate: GenerateSettings, shape: tuple[int, int, int], fps: float) -> Iterator[UserClips]:
    """generate.video.clips as clips of (frames, height, width) `shape` at `fps` frames per second.

    A folder of clips is taken as it is. Of a folder of files, every video gives the clip with which it begins, covered
    and cropped to size; every picture one that stands still. Captions are those of the table captions.csv in it (with
    the columns path and caption), else what the files' names say. Files that can't be used are left out and logged.

    Raises UserError for a folder that is missing or holds nothing that can be used, and for clips of another shape.
    """
    from pyoco_pipeline.evaluation.clips_to_score import is_clips_folder

    assert generate.video is not None
    folder = generate.video.clips
    if is_clips_folder(folder):
        yield UserClips(_checked(folder, generate.video.stage, shape, fps), generate)
        return
    if not Path(folder).is_dir():
        raise UserError(
            f"generate.video.clips={folder} is no folder: give one of videos or pictures, or of clips as ingest writes "
            "them."
        )
    with TemporaryDirectory() as aside:
        yield UserClips(_cut(Path(folder), shape, fps, generate.num_clips, Path(aside) / "clips"), generate)


def _checked(folder: str, stage: str, shape: tuple[int, int, int], fps: float) -> Any:
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.evaluation.clips_to_score import same_rate

    store = ClipStore(folder)
    if store.manifest.dtype != "uint8":
        raise UserError(f"generate.video.clips={folder} holds latents: give the clips that they are of.")
    odd = [found for s in store.shards() if (found := (s.frames, s.height, s.width)) != shape]
    if odd or not store.shards():
        raise UserError(
            f"generate.video.clips={folder} holds clips of (frames, height, width) {(odd or [store.shape])[0]}, and "
            f"stage {stage} takes {shape}: give it others, or their videos, which are cut to size."
        )
    if not same_rate(store.manifest.fps, fps):
        _log.warning(
            "%s holds clips at %g frames per second, and stage %s takes %g: motion will be another.",
            folder, store.manifest.fps, stage, fps,
        )  # fmt: skip
    return store


def _cut(folder: Path, shape: tuple[int, int, int], fps: float, limit: int, into: Path) -> Any:
    """A store of one clip per file, at most `limit`."""
    from pyoco_pipeline.data.clip_writing import write_clips
    from pyoco_pipeline.data.clips import ClipStore

    left_out: dict[str, str] = {}
    clips = islice(_cut_each(folder, _listed(folder), shape, fps, left_out), limit)
    manifest = write_clips(into, clips, kind="video_folder", shape=shape, fps=fps)
    for name, reason in islice(left_out.items(), 20):
        _log.warning("%s is left out: it %s", folder / name, reason)
    if not manifest.counts:
        name, reason = next(iter(left_out.items()))
        raise UserError(
            f"none of the {len(left_out)} files in generate.video.clips={folder} can be used; the first, {name}, "
            f"{reason}: give others."
        )
    return ClipStore(into)


def _cut_each(
    folder: Path,
    rows: list[dict[str, Any]],
    shape: tuple[int, int, int],
    fps: float,
    left_out: dict[str, str],
) -> Iterator[Any]:
    from pyoco_pipeline.data.clips import CaptionedClip
    from pyoco_pipeline.data.cutting import CutOptions, cut_image, cut_video
    from pyoco_pipeline.data.isolation import Isolated, IsolationError
    from pyoco_pipeline.data.media import VideoError
    from pyoco_pipeline.data.sources.base import safe_name

    frames, height, width = shape
    options = CutOptions(frames, ((height, width),), fps=fps, max_clips_per_row=1)
    with Isolated(timeout_s=_TIMEOUT_S, memory_mb=None) as isolated:
        for number, row in enumerate(rows):
            name = row["path"]
            segment = row | {"row_id": f"{number:06d}-{safe_name(name)}"}
            cut = cut_image if Path(name).suffix.lower() in PICTURES else cut_video
            try:
                clip = isolated.call(cut, folder / name, segment, options)[0]
            except (VideoError, IsolationError) as error:
                left_out[name] = error.reason
                continue
            if len(clip.video) != frames:
                clip = replace(clip, video=np.repeat(clip.video, frames, axis=0))  # a picture
            yield CaptionedClip(replace(clip, fps=None), row["caption"], "generated")


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Path below the folder, caption, start and end of every file."""
    from pyoco_pipeline.data.sources.video_folder import VideoFolderSource
    from pyoco_pipeline.evaluation.clips_to_score import SUFFIXES, caption_of_name

    if (folder / CAPTIONS_FILE).is_file():
        table = VideoFolderSource(folder, CAPTIONS_FILE, test_share=0).captions()
        rows = table[["path", "caption", "start", "end"]].to_dict("records")
        return [{str(k): v for k, v in row.items()} | {"caption": row["caption"] or ""} for row in rows]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES | PICTURES and p.is_file())
    if not files:
        raise UserError(
            f"generate.video.clips={folder} holds no videos or pictures: give a folder with files such as .mp4 or "
            ".png, or of clips as ingest writes them."
        )
    names = [path.relative_to(folder).as_posix() for path in files]
    return [{"path": name, "caption": caption_of_name(name), "start": None, "end": None} for name in names]
