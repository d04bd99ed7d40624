"""An ingest that is killed or finds no room goes on, to the bytes that an uninterrupted one writes."""

import errno
import os
import signal
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest
from forked_programs import programs
from kedro.io import DatasetError
from test_ingest import contents, digits, ingest, options, save, videos

from pyoco_pipeline.data import tasks as tasks_module
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.ingest import plan_tasks
from pyoco_pipeline.datasets import FolderDataset
from pyoco_pipeline.errors import UserError


@pytest.fixture(scope="module")
def ingests():
    with programs(["test_ingest", "pyarrow.parquet"]) as started:
        yield started


_KILLED = """
import sys
from pathlib import Path
from test_ingest import options, save
from pyoco_pipeline.data.sources import open_source
source = open_source("video_folder", root=sys.argv[1], captions_file="captions.csv")
save(Path(sys.argv[2]), source, options(executor="processes", workers=2, segments_per_task=1))
"""


@pytest.mark.slow
def test_ingest_that_is_killed_ten_times_makes_what_an_uninterrupted_one_makes(tmp_path, ingests):
    rows = [(f"{i}.mp4", f"caption {i}", "test" if i % 4 == 0 else "train") for i in range(30)]
    source = videos(tmp_path / "raw", rows)
    ingest(tmp_path / "whole", source, options(segments_per_task=1))
    given = (_KILLED, tmp_path / "raw", tmp_path / "killed")
    draw, kills, started_over = np.random.default_rng(0), 0, 0
    latest_s = 2.5
    while kills < 10:
        pid = ingests.start(*given)
        if not ingests.has_ended(within_s=float(draw.uniform(0.1, 1.0)) * latest_s):
            with suppress(ProcessLookupError):  # it may end just now
                os.kill(pid, signal.SIGKILL)
        status = ingests.status()
        if status == -signal.SIGKILL:
            kills += 1
            continue
        assert status == 0
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        started_over += 1
        latest_s *= 0.8  # else a fast machine is always done before
        for path in (tmp_path / "killed/clips").iterdir():
            path.unlink()
        (tmp_path / "killed/clips").rmdir()
        if started_over > 15:
            break
    assert ingests.run(*given) == 0
    time.sleep(0.1)

    assert kills >= 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed/work").iterdir())


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(tmp_path, monkeypatch):
    source = digits()
    plan = plan_tasks([source], source.captions().assign(source=0), options(), tmp_path / "work")
    write = tasks_module._write

    def full(task, folder):
        if task.key == plan[2].key:
            (folder / "half.parquet").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(task, folder)

    monkeypatch.setattr(tasks_module, "_write", full)
    with pytest.raises(UserError, match=r"no room left below .*2 of 5 tasks are done and kept"):
        ingest(tmp_path, source)
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    monkeypatch.setattr(tasks_module, "_write", write)

    assert left == sorted(task.key for task in plan[:2])
    assert not (tmp_path / "clips").exists()
    assert ingest(tmp_path, source).counts == {"test": 3, "train": 10}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_file_system_that_really_is_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False
    ).returncode:
        pytest.skip("this machine does not mount a file system")
    try:
        with pytest.raises(UserError, match="no room left below"):
            ingest(small, digits(200, 10), options(segments_per_task=20))
        kept = {path.name[0] for path in (small / "work").iterdir()}
        assert "." not in kept
    finally:
        subprocess.run(["umount", str(small)], check=True)


_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from test_ingest import digits, options, save
from pyoco_pipeline.data import ingest, tasks
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
place = sys.argv[2]
if place == "rename": Path.rename = kill
elif place == "between renames":
    rename, done = Path.rename, []
    def once(self, target):
        if done: kill()
        done.append(1)
        return rename(self, target)
    Path.rename = once
elif place == "rmtree": ingest._forget = lambda work: (next(work.iterdir()) / "task.json").unlink() or kill()
elif place == "second shard":
    link, done = os.link, []
    def once(*a):
        if len(done) == 1: kill()
        done.append(1)
        return link(*a)
    os.link = once
elif place != "nowhere": setattr(ingest, place, kill)
save(Path(sys.argv[1]), digits(), options())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["second shard", "write_manifest", "_write_csv", "write_report", "rename", "between renames", "rmtree"],
)
def test_ingest_that_is_killed_while_it_puts_things_in_place_goes_on(tmp_path, ingests, place):
    target = tmp_path / "data"
    target.mkdir()
    if place == "between renames":
        save(target, digits(4, 1), options())
    assert ingests.run(_KILLED_AT, target, place) == -signal.SIGKILL
    if place == "between renames":  # the version before is not lost
        assert FolderDataset(filepath=str(target / "clips")).load() == target / "clips"
        assert ClipStore(target / "clips").manifest.counts == {"test": 1, "train": 4}
    save(target, digits(), options())
    save(tmp_path / "whole", digits(), options())

    assert contents(target) == contents(tmp_path / "whole")
    assert not list((target / "work").iterdir())


def test_a_full_disk_at_the_very_end_loses_no_task(tmp_path, monkeypatch):
    from pyoco_pipeline.data import ingest as module

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_write_csv", full)
    with pytest.raises(DatasetError) as raised:
        save(tmp_path, digits(), options())
    assert "5 of 5 tasks are done and kept" in str(raised.value.__cause__)
    monkeypatch.undo()
    written = []
    monkeypatch.setattr(tasks_module, "_write", lambda task, folder: written.append(task))
    save(tmp_path, digits(), options())

    assert not written
    assert ClipStore(tmp_path / "clips").manifest.counts == {"test": 3, "train": 10}
