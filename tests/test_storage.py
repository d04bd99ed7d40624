"""Data lie in a folder or in an object store, and nothing outside the root is read from either."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from hypothesis import given
from hypothesis import strategies as st

from pyoco_pipeline.data.copies import temporary_copy
from pyoco_pipeline.data.storage import Storage, filesystem, remote_errors, resolve_root
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

FILES = {"good.mp4": b"good", "sub/other.mp4": b"other", "sub/deep/x.txt": b"text"}


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path) -> str:
    where = str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}/root"
    for name, content in {**FILES, "../outside.mp4": b"secret"}.items():
        path = where.removesuffix("/root") + name[2:] if name.startswith("..") else f"{where}/{name}"
        if request.param == "local":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(content)
        else:
            fsspec.filesystem("memory").pipe_file(path, content)
    return where


PROBLEMS = {
    "good.mp4": "",
    "sub/../good.mp4": "",
    "./sub//other.mp4": "",
    "../outside.mp4": "is outside the data root",
    "sub/../../outside.mp4": "is outside the data root",
    "/etc/passwd": "is outside the data root",  # pragma: allowlist secret
    "s3://bucket/good.mp4": "is outside the data root",
    "file:///etc/passwd": "is outside the data root",  # pragma: allowlist secret
    "none.mp4": "does not exist",
    "good.mp4/none.mp4": "does not exist",
    "sub": "is not a regular file",
    ".": "is not a regular file",
    "nul\0.mp4": "is not a usable path",
    " ": "is missing",
}


@pytest.mark.parametrize("path", PROBLEMS)
def test_a_folder_and_a_store_judge_a_path_alike(root, path):
    expected = PROBLEMS[path]
    problem = Storage(root).locate(path).problem
    assert problem.startswith(expected)
    assert bool(problem) == bool(expected)


@pytest.mark.parametrize("path", [path for path, problem in PROBLEMS.items() if problem])
def test_what_has_a_problem_is_not_handed_out(root, path):
    with pytest.raises(VideoError) as caught, Storage(root).local_file(path):
        pass
    assert caught.value.reason == Storage(root).locate(path).problem


def test_all_spellings_of_a_file_have_one_name(root):
    storage = Storage(root)
    spellings = ["sub/other.mp4", "./sub/other.mp4", "sub/deep/../other.mp4", f"{root}/sub/other.mp4"]
    assert {storage.locate(path) for path in spellings} == {("sub/other.mp4", "")}
    assert storage.locate_all(spellings) == dict.fromkeys(spellings, ("sub/other.mp4", ""))


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.mp4").write_bytes(b"secret")
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "linked").symlink_to(tmp_path)
    for path in ("link.mp4", "linked/outside.mp4"):
        with pytest.raises(VideoError, match="is outside the data root"), Storage(root).local_file(path):
            pass
        with pytest.raises(VideoError, match="is outside the data root"):
            list(Storage(root).part(path, 0, 3, path))


@given(st.text(alphabet="./ab\0é:", max_size=12))
def test_no_path_leads_out_of_a_store(path):
    storage = Storage("memory://root")
    at = storage._confined(path)
    assert at.problem or not (at.name.startswith("/") or ".." in at.name.split("/") or "://" in at.name)


def test_a_local_file_is_itself_and_a_remote_one_a_copy_that_goes(root):
    storage = Storage(root)
    with storage.local_file("sub/other.mp4") as path:
        assert path.read_bytes() == b"other"
        assert path.suffix == ".mp4"
        assert path.is_relative_to(root) == storage.is_local
    assert path.exists() == storage.is_local


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that are opened in the memory store, as they are."""
    names: list[str] = []
    original = MemoryFileSystem._open

    def counted(self, path, *args, **kwargs):
        names.append(path.rsplit("/", 1)[1])
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", counted)
    return names


def test_the_segments_of_a_remote_video_cost_one_download(opened):
    url = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    for name, content in FILES.items():
        store.pipe_file(f"{url}/{name}", content)

    def read(name: str) -> bytes:
        with pickle.loads(pickle.dumps(Storage(url))).local_file(name) as path:  # noqa: S301
            return path.read_bytes()

    opened.clear()
    assert [read("good.mp4") for _ in range(3)] == [b"good"] * 3
    assert opened == ["good.mp4"]
    assert [read("sub/other.mp4"), read("good.mp4")] == [b"other", b"good"]
    assert opened == ["good.mp4", "other.mp4", "good.mp4"]
    store.pipe_file(f"{url}/good.mp4", b"anew")
    assert read("good.mp4") == b"anew"


def test_a_copy_in_use_outlives_the_next_one(tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    for name in ("a.mp4", "b.mp4"):
        fsspec.filesystem("memory").pipe_file(f"{url}/{name}", name.encode())
    storage = Storage(url)
    with (
        storage.local_file("a.mp4") as one,
        storage.local_file("b.mp4") as other,
        storage.local_file("a.mp4"),
    ):
        assert (one.read_bytes(), other.read_bytes()) == (b"a.mp4", b"b.mp4")
        assert one.stat().st_size == 5
    with pytest.raises(VideoError, match="does not exist"), storage.local_file("none.mp4"):
        pass


def test_a_killed_process_leaves_no_copy(tmp_path):
    code = """
import os, signal, fsspec
from pyoco_pipeline.data.storage import Storage
fsspec.filesystem("memory").pipe_file("memory://r/a.mp4", b"x" * 100_000)
with Storage("memory://r").local_file("a.mp4") as path:
    assert len(path.read_bytes()) == 100_000
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_copy_goes_even_when_its_use_fails():
    copies = []

    def use() -> None:
        with temporary_copy([b"a", b"b"], "x.mp4") as path:
            copies.append((path, path.read_bytes()))
            raise KeyError

    with pytest.raises(KeyError):
        use()
    [(path, content)] = copies
    assert content == b"ab"
    assert not path.exists()


def test_a_remote_file_above_the_limit_is_not_copied(root):
    storage = Storage(root)
    if storage.is_local:
        with storage.local_file("good.mp4", max_bytes=3) as path:
            assert path.read_bytes() == b"good"
        return
    with (
        pytest.raises(VideoError, match=r"has 4 bytes; copies of up to 3"),
        storage.local_file("good.mp4", 3),
    ):
        pass


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    (tmp_path / "full").symlink_to("/dev/full")
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: (full, str(tmp_path / "full")))
    message = r"A copy of x\.mp4 .*No space left on device.*TMPDIR"
    with pytest.raises(UserError, match=message), temporary_copy([b"a"], "x.mp4"):
        pass


def test_parts_of_a_file_are_read_where_they_lie(root):
    storage = Storage(root)
    assert b"".join(storage.part("sub/other.mp4", 1, 3, "x")) == b"the"
    with pytest.raises(VideoError, match="is cut short"):
        list(storage.part("sub/other.mp4", 3, 9, "x"))
    with pytest.raises(VideoError, match="does not exist"):
        list(storage.part("none.mp4", 0, 1, "x"))


def test_files_are_found_by_patterns(root):
    storage = Storage(root)
    assert storage.glob("*.mp4") == ["good.mp4"]
    assert storage.glob("**/*.mp4") == ["good.mp4", "sub/other.mp4"]
    assert storage.glob("*.tar") == []
    assert (storage.is_folder(), storage.is_folder("sub"), storage.is_folder("no")) == (True, True, False)
    assert (storage.is_file("good.mp4"), storage.is_file("sub"), storage.is_file("no")) == (
        True,
        False,
        False,
    )
    with storage.open("sub/deep/x.txt") as file:
        assert file.read() == b"text"


def test_names_that_are_not_utf_8_are_refused_and_no_link_leads_to_them(tmp_path):
    odd = os.fsdecode(b"caf\xe9.tar")
    (tmp_path / odd).write_bytes(b"x")
    (tmp_path / "link.tar").symlink_to(odd)
    assert Storage(tmp_path).locate("link.tar").problem == "is not a usable path: its name is not in UTF-8"
    with pytest.raises(UserError, match=r"caf\\xe9\.tar below .* is not in UTF-8; rename"):
        Storage(tmp_path).glob("*.tar")
    assert Storage(tmp_path).glob("l*.tar") == ["link.tar"]


def test_a_storage_pickles(root):
    assert pickle.loads(pickle.dumps(Storage(root))).locate("good.mp4") == ("good.mp4", "")  # noqa: S301


@pytest.mark.parametrize(
    "root",
    [
        "https://example.org/videos",
        "ftp://host/x",
        "github://a:b@c/",
        "simplecache::s3://b/x",
        "s3://a::memory://b",
    ],
)
def test_the_web_and_chains_of_stores_are_refused(root):
    with pytest.raises(
        UserError, match=r"is not a place that data are read from; give a local folder, or .*s3://"
    ):
        Storage(root)


def test_a_store_without_its_package_names_what_to_install(monkeypatch):
    def absent(protocol, **options):
        raise ImportError(f"Install {protocol}fs")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(UserError, match=r's3://bucket/x needs s3fs: pip install -e "\.\[s3\]"'):
        Storage("s3://bucket/x").is_folder()


def test_a_store_without_credentials_is_said_in_one_sentence(monkeypatch):
    class Azure(AbstractFileSystem):
        """As adlfs is without an account in the environment."""

        def __init__(self, **options):
            raise ValueError("unable to connect to account for\n Must provide an account_name!")

    monkeypatch.setitem(_registry, "az", Azure)
    message = r"az://bucket/x cannot be opened: unable to connect to account for Must provide .*name\. Set the credent"
    with pytest.raises(UserError, match=message):
        Storage("az://bucket/x").is_folder()
    with pytest.raises(UserError, match=message):
        filesystem("az://bucket/x")


@pytest.mark.parametrize("url", ["https://example.org/x", "S3://bucket/x", "s3://a::memory://b", "x"])
def test_a_file_system_is_given_for_known_protocols_alone(url):
    with pytest.raises(UserError, match="is not a place that data are read from"):
        filesystem(url)
    assert filesystem("memory://x") is filesystem("memory://y/z")


def test_errors_of_a_store_are_one_sentence():
    message = r"s3://b/x cannot be read: no route to host\. Check the address"
    with pytest.raises(UserError, match=message), remote_errors("s3://b/x", media=True):
        raise RuntimeError("no route\n to host.")
    with pytest.raises(VideoError, match="does not exist"), remote_errors("s3://b/x", media=True):
        raise FileNotFoundError
    with pytest.raises(UserError, match="does not exist; check the address"), remote_errors("s3://b/x"):
        raise FileNotFoundError


def test_relative_roots_are_below_the_project_and_urls_stay(tmp_path):
    assert resolve_root("data/videos", tmp_path) == str(tmp_path / "data/videos")
    assert resolve_root("/data/videos", tmp_path) == "/data/videos"
    assert resolve_root("s3://bucket/videos", tmp_path) == "s3://bucket/videos"
