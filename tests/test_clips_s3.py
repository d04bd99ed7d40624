"""Clips in object storage: training reads from there what it reads from disk, and DVC brings data there and back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from projects import REPOSITORY
from s3 import s3_server

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("bucket") as address:
        yield address


def test_batches_from_a_bucket_are_those_from_disk(server, digits_store, digits_embeddings):
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem().put(str(digits_store.folder), "bucket/clips", recursive=True)
    remote = ClipStore("s3://bucket/clips")
    options = BatchOptions(4, image_share=0.3, buffer=8)
    here, there = (ClipBatches(store, digits_embeddings, options) for store in (digits_store, remote))

    assert remote.manifest == digits_store.manifest
    assert [item.caption for item in remote.take("test")] == [
        item.caption for item in digits_store.take("test")
    ]
    for step in range(6):
        ours, theirs = here.batch(step, torch.device("cpu")), there.batch(step, torch.device("cpu"))
        assert torch.equal(ours.x0, theirs.x0)
        assert all(torch.equal(value, theirs.cond[name]) for name, value in ours.cond.items())


def test_a_bucket_without_clips_says_so(server):
    with pytest.raises(
        UserError, match=r"s3://bucket/nothing is not a folder of clips: it has no manifest\.json"
    ):
        ClipStore("s3://bucket/nothing")


def test_dvc_pushes_data_to_a_bucket_and_pulls_it_back(server, tmp_path):
    pytest.importorskip("dvc_s3")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)

    dvc = str(Path(sys.executable).with_name("dvc"))
    videos = tmp_path / "data/01_raw/videos"
    videos.mkdir(parents=True)
    (videos / "captions.csv").write_text("path,caption\na.mp4,a wave\n")
    (videos / "a.mp4").write_bytes(bytes(range(256)) * 100)
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    run("git", "init", "-q")
    run(dvc, "init", "-q")
    run(dvc, "remote", "add", "--default", "storage", "s3://bucket/pyoco")
    run(dvc, "remote", "modify", "storage", "endpointurl", server)
    run(dvc, "add", "data/01_raw/videos")
    run(dvc, "push")
    shutil.rmtree(videos)
    shutil.rmtree(tmp_path / ".dvc/cache")
    run(dvc, "pull")

    assert (videos / "a.mp4").read_bytes() == bytes(range(256)) * 100
    assert "a wave" in (videos / "captions.csv").read_text()
