"""Clips sampled by several processes are those of one, in the same order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from pyoco_pipeline.config import GenerateSettings, SamplerSettings
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.launch import share
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.pipelines.generate.nodes import _write_base
from pyoco_pipeline.pipelines.generate.shares import write_shares


@given(count=st.integers(1, 60), batch_size=st.integers(1, 9), parts=st.integers(1, 8))
def test_shares_are_whole_batches_in_order_and_of_nearly_one_size(
    count: int, batch_size: int, parts: int
) -> None:
    batches = -(-count // batch_size)
    parts = min(parts, batches)
    shares = [share(part, parts, count, batch_size) for part in range(parts)]
    assert [place for one in shares for place in one] == list(range(count))
    assert all(one.start % batch_size == 0 for one in shares)
    sizes = [-(-len(one) // batch_size) for one in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def arguments(tmp_path: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings) -> dict[str, Any]:
    info = tiny.stage_info(data_sha256=digits_store.manifest.sha256)
    save_video_model(tiny.make_video_unet(), tmp_path / "base", info)
    sampler = SamplerSettings(steps=2)
    return {
        "generate": GenerateSettings(num_clips=5, batch_size=2, sampler=sampler, precision="float32"),
        "planned": SimpleNamespace(name="base", frames=4, window=4, height=8, width=8, fps=8.0),
        "model": tmp_path / "base",
        "store": digits_store,
        "trained": digits_store,
        "embeddings": digits_embeddings,
    }


def written(folder: Path, arguments: dict[str, Any], processes: int) -> ClipStore:
    folder.mkdir()
    write_shares(
        folder, write=_write_base, count=5, batch_size=2, num_processes=processes, arguments=arguments
    )
    return ClipStore(folder)


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.slow
def test_two_and_three_processes_sample_the_clips_of_one(tmp_path: Path, arguments: dict[str, Any]) -> None:
    alone = written(tmp_path / "alone", arguments, 1)
    for processes in (2, 3):
        shared = written(tmp_path / str(processes), arguments, processes)
        assert shared.manifest.sha256 == alone.manifest.sha256
        assert [item.clip.clip_id for item in shared.clips()] == [f"generated-{i:06d}" for i in range(5)]
        assert not [path for path in (tmp_path / str(processes)).iterdir() if path.is_dir()]


def test_more_processes_than_batches_are_not_started(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def launch(work: Any, on: list[str], *rest: Any) -> None:
        started.append(len(on))
        raise UserError("enough is known")

    monkeypatch.setattr("pyoco_pipeline.launch.launch", launch)
    with pytest.raises(UserError, match="enough is known"):
        written(tmp_path / "many", arguments, 8)
    assert started == [3]


def no_clips(folder: Path, *, places: range) -> None:
    write_clips(folder, [], kind="none", shape=(4, 8, 8), fps=8.0)


def test_one_process_starts_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyoco_pipeline.launch.launch", None)
    write_shares(tmp_path, write=no_clips, count=9, batch_size=2, num_processes=1, arguments={})
