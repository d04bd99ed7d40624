"""Work on several devices: shares in order, one error for the user, and no process that outlives the others."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.launch import devices, launch


def where(part, num_parts, device, base):
    """Later parts are done first."""
    time.sleep(0.3 * (num_parts - part))
    return base + part, num_parts, device, torch.get_num_threads(), os.getpid()


def fail_or_wait(part, num_parts, device, folder, how):
    """The last part fails once the others have noted who they are."""
    if part < num_parts - 1:
        (folder / str(part)).write_text(str(os.getpid()))
        time.sleep(300)
    while sum(path.stat().st_size > 0 for path in folder.iterdir()) < num_parts - 1:  # noted, not just begun
        time.sleep(0.01)
    how()


def refuse():
    raise UserError("Clip 00017 is broken: cut it anew.")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def interrupt():
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(300)


def runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


@pytest.mark.slow
def test_results_come_in_the_order_of_the_parts_each_from_a_process_of_its_own():
    torch.set_num_threads(4)
    try:
        results = launch(where, ["cpu", "cpu"], 10)
    finally:
        torch.set_num_threads(1)
    assert [result[:4] for result in results] == [(10, 2, "cpu", 2), (11, 2, "cpu", 2)]
    assert len({os.getpid(), *(result[4] for result in results)}) == 3


def test_one_device_needs_no_other_process():
    assert launch(where, ["cpu"], 10) == [(10, 1, "cpu", torch.get_num_threads(), os.getpid())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (refuse, UserError, r"^Clip 00017 is broken: cut it anew\.$"),
        (be_killed, UserError, r"^Process 2 of 2, on cpu, is gone: .*\(signal 9\)"),
        (leave, UserError, r"^Process 2 of 2, on cpu, is gone: .*\(exit code 3\)"),
        (interrupt, KeyboardInterrupt, "^$"),
    ],
)
def test_where_one_process_fails_all_end_at_once(tmp_path, how, error, message):
    start = time.monotonic()
    with pytest.raises(error) as caught:
        launch(fail_or_wait, ["cpu"] * 2, tmp_path, how)
    assert re.search(message, str(caught.value))
    assert time.monotonic() - start < 60
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 1
    assert not runs(pids[0])


@pytest.fixture
def gpus(monkeypatch):
    """As many GPUs as a test says."""

    def pretend(num):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num)

    return pretend


@pytest.mark.parametrize(
    ("num_gpus", "asked", "expected"),
    [
        (0, "auto", ["cpu"]),
        (0, 3, ["cpu"] * 3),
        (1, "auto", ["cuda:0"]),
        (4, "auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, 2, ["cuda:0", "cuda:1"]),
    ],
)
def test_there_is_a_process_per_gpu_or_as_many_as_asked_for_on_the_cpu(gpus, num_gpus, asked, expected):
    gpus(num_gpus)
    assert devices(asked) == expected


@pytest.mark.parametrize(("num_gpus", "asked", "message"), [(2, 3, "sees 2 GPUs"), (0, 0, "at least 1")])
def test_more_processes_than_gpus_or_none_at_all_are_refused(gpus, num_gpus, asked, message):
    gpus(num_gpus)
    with pytest.raises(UserError, match=rf"num_processes is {asked}.*{message}"):
        devices(asked)
