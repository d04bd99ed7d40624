"""Tars of captioned files are indexed by their headers and read where each file lies."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from pyoco_pipeline.data.sources import webdataset
from pyoco_pipeline.data.sources.webdataset import WebDatasetSource, expand_braces
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError


def write_tar(
    path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT, mode: str = "w"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, media: bytes, caption: str, extension: str = "mp4") -> dict[str, bytes]:
    metadata = {"caption": f"{caption} (json)", "key": key, "status": "success"}
    return {
        f"{key}.{extension}": media,
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(metadata).encode(),
    }


def contents(source: WebDatasetSource) -> list[bytes]:
    found = []
    for path in source.captions()["path"]:
        with source.local_file(path) as file:
            found.append(file.read_bytes())
            assert file.suffix == "." + path.split("@")[0].rsplit(".", 1)[1]
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_of_every_tar_format_come_back(tmp_path, format):
    key = "d/2" if format == tarfile.USTAR_FORMAT else "d/" * 60 + "ein-Fuß"  # beyond what its header holds
    members = sample("000000000", b"first" * 300, "a red ball") | sample(key, b"second", "ein Fuß – 日本語")
    write_tar(tmp_path / "00000.tar", members, format)
    source = WebDatasetSource(tmp_path)
    table = source.captions()
    assert table["caption"].tolist() == ["a red ball", "ein Fuß – 日本語"]
    assert table["key"].tolist() == ["000000000", key]
    assert set(table["path_problem"]) == {""}
    assert contents(source) == [b"first" * 300, b"second"]


def test_a_caption_may_be_a_field_of_the_json(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", b"x", "ball") | {"2.mp4": b"y", "2.json": b'{"other": 1}'})
    table = WebDatasetSource(tmp_path, caption_field="caption").captions()
    assert table["caption"].tolist() == ["ball (json)", None]


def test_images_are_samples_where_they_are_asked_for(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", b"png", "ball", "PNG") | sample("2", b"mp4", "box"))
    table = WebDatasetSource(tmp_path, media="image").captions()
    assert table["path_problem"].tolist() == ["", "has no file of .jpg, .jpeg, .png, .webp in the tar"]


def test_names_in_another_encoding_are_samples_apart(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("café.mp4", "café.txt", "cafè.mp4", "d/" * 60 + "ü.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))
    source = WebDatasetSource(tmp_path)
    table = source.captions()
    table.to_parquet(tmp_path / "captions.parquet")
    assert table["key"].tolist() == [r"caf\xe9", r"caf\xe8", "d/" * 60 + r"\xfc"]
    assert set(table["path_problem"]) == {""}
    assert [content.decode()[:4] for content in contents(source)] == ["café", "cafè", "d/d/"]


def test_members_that_are_no_samples_are_counted_and_passed_over(tmp_path, caplog):
    path = write_tar(
        tmp_path / "a.tar", {"__meta__": b"x", "README": b"x", "dir.d/1.mp4": b"m", "dir.d/1.txt": b"c"}
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("2.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("3.mp4")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    table = WebDatasetSource(tmp_path).captions()
    assert table["key"].tolist() == ["dir.d/1"]
    assert "2 members of tars below" in caplog.text
    assert "one is a.tar#README" in caplog.text


def test_a_sample_whose_caption_is_absent_blank_or_no_json_has_none(tmp_path):
    members = {"1.mp4": b"x", "2.mp4": b"x", "2.txt": b" \n", "3.mp4": b"x", "3.json": b"{"}
    write_tar(tmp_path / "a.tar", members)
    assert WebDatasetSource(tmp_path).captions()["caption"].tolist() == [None, None, None]
    table = WebDatasetSource(tmp_path, caption_field="caption").captions()
    assert table["path_problem"].tolist() == ["", "", "has a .json that is not JSON"]


def test_an_endless_caption_is_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.mp4": b"x", "1.txt": b"a" * (webdataset.MAX_CAPTION_BYTES + 1)})
    table = WebDatasetSource(tmp_path).captions()
    assert table["caption"].tolist() == [None]
    assert table["path_problem"][0] == "has a .txt of 1,048,577 bytes, which is no caption"


def test_a_truncated_tar_keeps_what_was_before_and_says_so(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("1", b"x" * 600, "one") | sample("2", b"y" * 6000, "two"))
    path.write_bytes(path.read_bytes()[:6000])
    table = WebDatasetSource(tmp_path).captions()
    assert table["caption"][0] == "one"
    assert table["path_problem"].tolist()[0] == ""
    assert table["path_problem"].tolist()[-1].startswith("is damaged")
    with (
        pytest.raises(VideoError, match="cut short"),
        WebDatasetSource(tmp_path).local_file(table["path"][1]),
    ):
        pass


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b""])
def test_what_is_no_tar_is_said(tmp_path, content):
    write_tar(tmp_path / "a.tar", sample("1", b"x", "one"))
    (tmp_path / "b.tar").write_bytes(content)
    table = WebDatasetSource(tmp_path).captions()
    assert table["path"].tolist()[-1] == "b.tar"
    assert table["path_problem"].tolist()[-1].startswith("is damaged, or compressed or no tar")


def test_a_compressed_tar_is_said(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", b"x", "one"), mode="w:gz")
    assert "compressed" in WebDatasetSource(tmp_path).captions()["path_problem"][0]


def test_a_tar_that_changed_after_the_listing_is_not_misread(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", b"x" * 10, "one"))
    source = WebDatasetSource(tmp_path)
    [path] = source.captions()["path"]
    write_tar(tmp_path / "a.tar", sample("0", b"z" * 3000, "zero") | sample("1", b"x" * 10, "one"))
    with pytest.raises(VideoError, match="has changed since"), source.local_file(path):
        pass


@pytest.mark.parametrize(
    "path",
    [
        "../a.tar#1.mp4@512+3",
        "a.tar#1.mp4@0+3",
        "a.tar",
        "a.tar#1.mp4@512+99999999999",
        "gone.tar#1.mp4@512+3",
    ],
)
def test_a_path_that_no_listing_gave_is_refused(tmp_path, path):
    root = tmp_path / "root"
    for folder in (root, tmp_path):
        write_tar(folder / "a.tar", sample("1", b"xyz", "one"))
    with pytest.raises(VideoError), WebDatasetSource(root, max_copy_mb=1).local_file(path):
        pass


def test_the_test_split_is_named_by_patterns_or_drawn(tmp_path):
    for name in ("00000", "00001", "00002"):
        write_tar(tmp_path / f"{name}.tar", sample(name, b"x", name))
    table = WebDatasetSource(tmp_path, test_shards=("{00001..00002}.tar",)).captions()
    assert table["split"].tolist() == ["train", "test", "test"]
    assert set(WebDatasetSource(tmp_path, test_share=1).captions()["split"]) == {"test"}
    with pytest.raises(UserError, match=r"No tar below .* fits the pattern 'x\*\.tar'"):
        WebDatasetSource(tmp_path, shards=("x*.tar",)).captions()
    with pytest.raises(UserError, match=r"00003\.tar does not exist"):
        WebDatasetSource(tmp_path, shards=("0000{0..3}.tar",)).captions()


def test_tars_in_a_store_read_like_those_on_disk(tmp_path):
    path = write_tar(tmp_path / "a/0.tar", sample("1", b"x" * 5000, "one") | sample("2", b"y", "two"))
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{url}/a/0.tar", path.read_bytes())
    there, here = (WebDatasetSource(root, shards=("**/*.tar",)) for root in (url, tmp_path))
    assert_frame_equal(there.captions(), here.captions())
    assert contents(there) == [b"x" * 5000, b"y"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("a.tar", ["a.tar"]), ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
     ("{9..10}", ["9", "10"]), ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"])],
)  # fmt: skip
def test_braces_stand_for_names_as_in_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_braces_that_stand_for_too_many_names_are_refused():
    with pytest.raises(UserError, match="more than 1,000,000 names"):
        expand_braces("{0..9999}{0..9999}")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_tar_ends_the_listing(tmp_path, data):
    """Whatever bytes are overwritten, there is a row for what is left, and reading it gives bytes or a VideoError."""
    key = "d/" * 60 + "1"
    whole = write_tar(
        tmp_path / "whole", sample("0", b"x" * 700, "one") | sample(key, b"y", "two"), tarfile.PAX_FORMAT
    )
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        content[at : at + len(piece)] = piece
    (tmp_path / "a.tar").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    source = WebDatasetSource(tmp_path, max_copy_mb=1)
    rows: list[str] = []
    with contextlib.suppress(UserError):  # an archive that ends before its first member holds no samples
        rows = source.captions()["path"].tolist()
    for path in rows:
        with contextlib.suppress(VideoError), source.local_file(path) as file:
            file.read_bytes()
