"""Clips of the user that sampling starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyoco_pipeline.config import GenerateSettings
from pyoco_pipeline.errors import UserError


@contextmanager
def user_clips(generate: GenerateSettings, shape: tuple[int, int, int]) -> Iterator[Any]:
    """The store of generate.video.clips as clips of (frames, height, width) `shape`; videos are cut into clips first.

    Raises UserError where the clips have another shape, or no video can be used.
    """
    from pyoco_pipeline.data.clips import ClipStore
    from pyoco_pipeline.evaluation.clips_to_score import ClipChoice, cut_folder, is_clips_folder

    assert generate.video is not None
    folder = generate.video.clips
    if not is_clips_folder(folder):
        choice = ClipChoice(shape[0], size=shape[1:], seed=generate.seed)
        with TemporaryDirectory() as aside:
            yield cut_folder(Path(folder), choice, Path(aside) / "clips")[0]
        return
    store = ClipStore(folder)
    if store.shape != shape:
        raise UserError(
            f"generate.video.clips={folder} holds clips of (frames, height, width) {store.shape}, and stage "
            f"{generate.video.stage} takes {shape}: give it others, or their videos, which are cut to size."
        )
    yield store


def captioned(generate: GenerateSettings, store: Any) -> list[tuple[str, dict[str, str]]]:
    """A caption for every clip that is made of those in `store`: the user's, or the clips' own."""
    from itertools import islice

    own = [(item.caption, item.clip.attributes) for item in islice(store.clips(), generate.num_clips)]
    if not own:
        raise store.empty(None)
    asked = [(caption, dict[str, str]()) for caption in generate.prompts] if generate.prompts else own
    return [asked[i % len(asked)] for i in range(generate.num_clips)]
