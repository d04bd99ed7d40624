"""The same data on disk and in S3 (moto's server on this machine) give the same rows and files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import video_files as vf
from pandas.testing import assert_frame_equal

from pyoco_pipeline.data.sources import open_source
from pyoco_pipeline.data.storage import Storage
from pyoco_pipeline.data.video import VideoError, probe
from pyoco_pipeline.errors import UserError

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

SOURCES = {
    "video_folder": {"captions_file": "captions.csv"},
    "ucf101": {},
    "webdataset": {"shards": ("tars/{0..0}.tar",)},
    "hf_dataset": {"media_column": "video", "caption_column": "caption"},
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """One video in the layouts of four sources."""
    root = tmp_path_factory.mktemp("disk") / "data"
    names = ["UCF-101/YoYo/v_YoYo_g01_c01.avi", "UCF-101/YoYo/v_YoYo_g08_c01.avi"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        vf.write_video(root / name, 4, codec="mpeg4")
    content = (root / names[0]).read_bytes()
    (root / "captions.csv").write_text(f"path,caption\n{names[0]},a yo-yo\ngone.mp4,gone\n../x.mp4,outside\n")
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 YoYo\n")
    (root / "ucfTrainTestlist/trainlist01.txt").write_text(
        "YoYo/v_YoYo_g08_c01.avi 1\nYoYo/v_YoYo_g09_c01.avi 1\n"
    )
    (root / "ucfTrainTestlist/testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars/0.tar", "w") as archive:
        for name, data in {"1.avi": content, "1.txt": b"a yo-yo"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    table = pd.DataFrame({"video": [{"bytes": content, "path": "1.avi"}], "caption": ["a yo-yo"]})
    table.to_parquet(root / "train-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def bucket(disk) -> Iterator[str]:
    """The address of the same files in S3."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "fake")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="secret.mp4", Body=b"secret")
        for path in sorted(disk.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "bucket", f"data/{path.relative_to(disk)}")
        yield "s3://bucket/data"
    server.stop()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_reads_from_s3_as_from_disk(disk, bucket, kind):
    here, there = (open_source(kind, root=root, **SOURCES[kind]) for root in (str(disk), bucket))
    table = there.captions()
    assert_frame_equal(table, here.captions())
    good = table["path"][table["path_problem"] == ""]
    assert len(good) > 0
    for path in good:
        with here.local_file(path) as expected, there.local_file(path) as copy:
            assert copy.read_bytes() == expected.read_bytes()
            assert probe(copy).width == 64
        assert not copy.exists()


def test_nothing_outside_the_prefix_is_read(bucket):
    storage = Storage(bucket)
    for path in ("../secret.mp4", "s3://bucket/secret.mp4", "/secret.mp4"):
        with pytest.raises(VideoError, match="is outside the data root"), storage.local_file(path):
            pass
    with pytest.raises(VideoError, match="does not exist"), storage.local_file("gone.mp4"):
        pass
    with pytest.raises(VideoError, match="is not a regular file"), storage.local_file("tars"):
        pass


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(UserError, match="s3://none/data is not a folder"):
        open_source("video_folder", root="s3://none/data", captions_file="captions.csv").captions()


@pytest.mark.slow
def test_a_store_that_does_not_answer_ends_the_work_with_one_sentence(bucket, monkeypatch):
    """Not a reason to put file after file into quarantine."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with (
            pytest.raises(
                UserError, match=r"s3://bucket/data/x\.mp4 cannot be read: Could not connect.*Check"
            ),
            Storage(bucket).local_file("x.mp4"),
        ):
            pass
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
