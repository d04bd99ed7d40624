"""Reading row groups: the right clips, from memory that does not grow with the store."""

import numpy as np
import pytest
from test_data_clips import SHAPE, clip, write

from pyoco_pipeline.data import clip_writing
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.order import ShuffledOrder
from pyoco_pipeline.data.reader import GroupReader, list_groups


@pytest.fixture
def store(tmp_path, monkeypatch) -> ClipStore:
    """Twenty clips in shards of six, in groups of two."""
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 6)
    monkeypatch.setattr(clip_writing, "GROUP_BYTES", 2 * int(np.prod((*SHAPE, 3))))
    write(tmp_path, [clip(i) for i in range(20)])
    return ClipStore(tmp_path)


def test_groups_hold_all_rows_of_a_store(store):
    groups = list_groups(store.shards("train"))

    assert [group.rows for group in groups] == [2] * 10
    assert [(group.shard.file, group.index) for group in groups][:4] == [
        ("train-00000.parquet", 0), ("train-00000.parquet", 1), ("train-00000.parquet", 2), ("train-00001.parquet", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_walk_reads_the_clips_of_its_order(tmp_path, store, compression):
    clip_writing.write_clips(
        tmp_path / "copy", store.take(), kind="test", shape=SHAPE, fps=8.0, compression=compression
    )
    copy = ClipStore(tmp_path / "copy")
    groups = list_groups(copy.shards("train"))
    order = ShuffledOrder([group.rows for group in groups], buffer=6, seed=0)
    reader = GroupReader(copy, groups, keep=8)
    expected = copy.videos("train")
    starts = np.cumsum([0, *(group.rows for group in groups)])

    for place in range(0, 60, 7):
        found = order.take(place, 7)
        np.testing.assert_array_equal(reader.read(*found), expected[starts[found[0]] + found[1]])
    reader.close()


def test_groups_used_last_are_kept_and_no_more_than_asked_for(store, monkeypatch):
    groups = list_groups(store.shards("train"))
    reader = GroupReader(store, groups, keep=4)
    loaded = []
    load = reader._load
    monkeypatch.setattr(reader, "_load", lambda group: (loaded.append(group), load(group))[1])

    for group in (0, 1, 0, 1, 2, 1, 0):
        reader.read(np.array([group, group]), np.array([0, 1]))
        assert len(reader._read) <= 2
    assert loaded == [0, 1, 2, 0]
    reader.close()


def test_groups_read_ahead_are_there(store, monkeypatch):
    groups = list_groups(store.shards("train"))
    reader = GroupReader(store, groups, keep=8)
    reader.prefetch([3, 4])
    reader.prefetch([3])
    assert sorted(reader._read) == [3, 4]
    monkeypatch.setattr(reader, "_load", None)  # from here on nothing can be read

    reader.read(np.array([3, 4]), np.array([0, 1]))
    reader.close()
