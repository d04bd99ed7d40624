"""Clips on disk: what is written comes back, and what can't be used is said."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data import clip_writing
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.errors import UserError

SHAPE = (2, 3, 4)


def video(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def clip(i: int, split="train", caption=None, **attributes) -> CaptionedClip:
    return CaptionedClip(Clip(f"clip-{i}", video(i), attributes), caption or f"caption ü {i}", split)


def write(folder, items, shape=SHAPE):
    return write_clips(folder, items, kind="test", shape=shape, fps=8.0)


def assert_same(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.caption, a.split, a.clip.clip_id) == (b.caption, b.split, b.clip.clip_id)
        assert a.clip.attributes == b.clip.attributes
        np.testing.assert_array_equal(a.clip.video, b.clip.video)


def test_clips_come_back_as_they_were_written(tmp_path):
    items = [clip(i, "test" if i % 3 == 0 else "train", digit=str(i)) for i in range(10)]
    manifest = write(tmp_path, items)
    store = ClipStore(tmp_path)

    assert store.manifest == manifest
    assert (manifest.counts, manifest.kind, manifest.fps) == ({"test": 4, "train": 6}, "test", 8.0)
    assert store.shape == SHAPE
    assert_same(store.take("train"), [item for item in items if item.split == "train"])
    assert_same(
        store.take(), [*store.take("test"), *store.take("train")]
    )  # shards in the order of their names
    assert_same(store.take("test", limit=2), [items[0], items[3]])
    assert store.videos("train").shape == (6, *SHAPE, 3)


@given(frames=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9), text=st.text())
@settings(max_examples=20, deadline=None)
def test_any_shape_and_any_caption_comes_back(tmp_path_factory, frames, height, width, text):
    folder, shape = tmp_path_factory.mktemp("clips"), (frames, height, width)
    text = text.encode("utf-8", "replace").decode()
    items = [CaptionedClip(Clip("a", video(0, shape)), text, "train")]
    write(folder, items, shape)

    assert_same(ClipStore(folder).take(), items)


@pytest.mark.parametrize("shard_rows", [1, 3, 5])
def test_how_clips_are_sharded_changes_neither_their_order_nor_their_digest(
    tmp_path, monkeypatch, shard_rows
):
    items = [clip(i) for i in range(7)]
    whole = write(tmp_path / "whole", items)
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", shard_rows)
    sharded = write(tmp_path / "sharded", iter(items))

    assert len(list((tmp_path / "sharded").glob("*.parquet"))) == -(-7 // shard_rows)
    assert dataclasses.replace(sharded, shards=()) == dataclasses.replace(whole, shards=())
    assert_same(ClipStore(tmp_path / "sharded").take(), items)


def changed_pixel(items):
    items[1].clip.video[0, 0, 0, 0] ^= 1


def changed_caption(items):
    items[1] = clip(1, caption="another")


def changed_split(items):
    items[1] = clip(1, split="test")


def changed_order(items):
    items.reverse()


def one_less(items):
    items.pop()


@pytest.mark.parametrize("change", [changed_pixel, changed_caption, changed_split, changed_order, one_less])
def test_the_digest_changes_with_the_content(tmp_path, change):
    before = write(tmp_path / "before", [clip(i) for i in range(3)])
    items = [clip(i) for i in range(3)]
    change(items)

    assert write(tmp_path / "after", items).sha256 != before.sha256
    assert write(tmp_path / "again", [clip(i) for i in range(3)]).sha256 == before.sha256


@pytest.mark.parametrize(
    "wrong", [video(0, (3, 3, 4)), video(0, (2, 4, 3)), video(0)[..., :1], video(0).astype(np.float32)]
)
def test_a_clip_of_another_shape_or_type_is_a_value_error(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"clip odd is .*, expected uint8 \(2, 3, 4, 3\)"):
        write(tmp_path, [clip(0), CaptionedClip(Clip("odd", wrong), "", "train")])


def test_clips_are_streamed_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 2)
    written = []

    def endless():
        for i in range(6):
            written.append(len(list(tmp_path.glob("*.parquet"))))
            yield clip(i)

    write(tmp_path, endless())

    assert written == [0, 0, 1, 1, 2, 2]
    assert pq.ParquetFile(tmp_path / "train-00000.parquet").metadata.num_rows == 2


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json. Run `ingest`"):
        ClipStore(tmp_path)


@pytest.mark.parametrize("version", [0, 1, 3, None])
def test_another_version_of_the_format_is_refused(tmp_path, version):
    write(tmp_path, [clip(0)])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))

    with pytest.raises(UserError, match=f"schema version {version}, this version reads 2"):
        ClipStore(tmp_path)


def test_a_split_without_clips_is_refused(tmp_path):
    write(tmp_path, [clip(0)])

    with pytest.raises(UserError, match=r"no clips of split 'test', only \{'train': 1\}"):
        ClipStore(tmp_path).take("test")
