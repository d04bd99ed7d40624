"""A call in a child process costs at most its time limit and that child, whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import isolated_calls as calls
import numpy as np
import psutil
import pytest

from pyoco_pipeline.data.isolation import Died, Isolated, TimedOut
from pyoco_pipeline.data.video import VideoError


@pytest.fixture
def isolated():
    with Isolated(timeout_s=30, memory_mb=None) as child:
        yield child


def test_arrays_come_back_equal_and_writable(isolated):
    pictures = isolated.call(calls.pictures, 4, 7)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, calls.pictures(4, 7), strict=True))
    pictures[0][:] = 9
    assert isolated.call(calls.pictures, 2, 0)[1].shape == (0, 5, 3)


def test_an_answer_larger_than_any_pipe_comes_back_whole(isolated):
    assert [int(p.sum()) for p in isolated.call(calls.pictures, 3, 2_000_000)] == [0, 30_000_000, 60_000_000]


def test_calls_share_one_child_that_is_not_this_process(isolated):
    first = isolated.call(calls.pid)
    assert first != os.getpid()
    assert isolated.call(calls.pid) == first


def test_a_decoding_child_imports_neither_torch_nor_kedro_nor_pandas(isolated):
    assert isolated.call(calls.imported, ["av", "torch", "kedro", "pandas"]) == ["av"]


def test_what_the_function_raises_comes_back_as_itself(isolated):
    with pytest.raises(VideoError) as caught:
        isolated.call(calls.fail, VideoError("a.mp4", "is odd"))
    assert (caught.value.path, caught.value.reason, str(caught.value)) == ("a.mp4", "is odd", "a.mp4 is odd")
    assert "in fail" in caught.value.__notes__[0]
    assert isolated.call(calls.square, 3) == 9


def test_an_error_that_cannot_be_sent_is_told_by_name(isolated):
    with pytest.raises(RuntimeError, match="Local: seven"):
        isolated.call(calls.fail_beyond_pickle)


def test_a_result_that_cannot_be_sent_is_an_error_and_not_a_hang(isolated):
    with pytest.raises(Exception, match="pickle"):
        isolated.call(calls.unpicklable)


def test_what_is_printed_does_not_get_among_the_answers(isolated, capfd):
    assert isolated.call(calls.chatter) == ""
    assert isolated.call(calls.square, 5) == 25
    assert "printed" in capfd.readouterr().err


def test_a_slow_call_ends_at_its_time_limit_and_the_next_one_has_a_new_child():
    with Isolated(timeout_s=0.3, memory_mb=None) as isolated:
        first = isolated.call(calls.pid)
        start = time.monotonic()
        with pytest.raises(TimedOut) as caught:
            isolated.call(calls.wait, 60)
        assert 0.3 <= time.monotonic() - start < 10
        assert caught.value.reason == "takes longer than 0.3 s to decode"
        assert isolated.call(calls.pid) != first


def test_a_call_in_c_that_blocks_all_python_threads_also_ends_at_its_time_limit(tmp_path):
    with Isolated(timeout_s=0.3, memory_mb=None) as isolated, pytest.raises(TimedOut):
        isolated.call(calls.wait_in_c, 60, tmp_path / "pid")


def test_the_start_of_the_child_does_not_count_as_time_of_the_call():
    with Isolated(timeout_s=0.03, memory_mb=None) as isolated:
        start = time.monotonic()
        assert isolated.call(calls.square, 2) == 4
        assert time.monotonic() - start > 0.03


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (calls.segfault, (), "ends the process that works on it (signal 11)"),
        (calls.abort, (), "ends the process that works on it (signal 6)"),
        (calls.leave, (3,), "ends the process that works on it (exit code 3)"),
        (sys.exit, (4,), "ends the process that works on it (exit code 4)"),
    ],
)
def test_a_crash_costs_only_its_own_call(isolated, function, args, reason):
    with pytest.raises(Died) as caught:
        isolated.call(function, *args)
    assert caught.value.reason == reason
    assert isolated.call(calls.square, 3) == 9


def test_a_call_is_not_blamed_for_what_an_earlier_one_has_damaged(isolated):
    assert [isolated.call(calls.die_unless_first) for _ in range(3)] == [1, 1, 1]


def test_memory_is_limited_beyond_what_the_imports_take():
    with Isolated(timeout_s=30, memory_mb=200) as isolated:
        assert isolated.call(calls.allocate, 120) == 120
        for _ in range(2):
            with pytest.raises(Died) as caught:
                isolated.call(calls.allocate, 300)
            assert caught.value.reason == "needs more than 200 MB of memory"
        assert isolated.call(calls.allocate, 120) == 120


def test_a_child_whose_memory_an_earlier_call_fills_is_replaced():
    with Isolated(timeout_s=30, memory_mb=200) as isolated:
        light = isolated.call(calls.keep, 10)
        heavy = isolated.call(calls.keep, 110)
        fresh = isolated.call(calls.keep, 150)
        assert light == heavy != fresh


def test_a_call_can_be_cancelled_from_another_thread():
    with Isolated(timeout_s=None, memory_mb=None) as isolated:
        isolated.call(calls.pid)
        threading.Timer(0.2, isolated.cancel).start()
        with pytest.raises(Died, match="was cancelled"):
            isolated.call(calls.wait, 60)
        with pytest.raises(Died, match="was cancelled"):
            isolated.call(calls.pid)


def test_an_interrupted_call_does_not_leave_its_answer_to_the_next(isolated):
    isolated.call(calls.pid)
    main = threading.main_thread().ident
    threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        isolated.call(calls.wait, 60)
    assert isolated.call(calls.square, 4) == 16


def test_the_child_outlives_the_thread_that_started_it(isolated):
    started = []
    thread = threading.Thread(target=lambda: started.append(isolated.call(calls.pid)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert isolated.call(calls.pid) == started[0]


PARENT = """
import os, sys, time
from pathlib import Path
import isolated_calls
from pyoco_pipeline.data.isolation import Isolated
mark, waiting, forks = Path(sys.argv[1]), getattr(isolated_calls, sys.argv[2]), sys.argv[3] == "fork"
with Isolated(timeout_s=2 if waiting is isolated_calls.wait_in_c else 60, memory_mb=500) as isolated:
    isolated.call(isolated_calls.pid)
    if forks and os.fork() == 0:
        mark.with_suffix(".sibling").write_text(str(os.getpid()))
        time.sleep(60)
    isolated.call(waiting, 60, mark)
"""


@contextmanager
def _parent(folder: Path, waiting: str, forks: str = "") -> Iterator[tuple[subprocess.Popen, psutil.Process]]:
    """A process with a child that is in a call, and that child."""
    mark = folder / "pid"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, mark, waiting, forks], env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        try:
            yield parent, psutil.Process(int(_text(mark)))
        finally:
            parent.kill()


def _text(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} is not written"
        time.sleep(0.02)
    return path.read_text()


def _ends(process: psutil.Process) -> bool:
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # a container may reap late
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_child_ends_with_its_parent(tmp_path, how):
    with _parent(tmp_path, "wait_marked") as (parent, child):
        parent.send_signal(how)
        assert _ends(child)


def test_a_child_stuck_in_c_ends_at_its_time_limit_when_its_parent_is_killed(tmp_path):
    with _parent(tmp_path, "wait_in_c") as (parent, child):
        parent.kill()
        assert _ends(child)


def test_the_child_ends_with_its_parent_although_a_forked_sibling_holds_its_pipe(tmp_path):
    with _parent(tmp_path, "wait_marked", "fork") as (parent, child):
        sibling = psutil.Process(int(_text(tmp_path / "pid.sibling")))
        parent.kill()
        assert _ends(child)
        assert sibling.is_running()
        sibling.kill()


@pytest.mark.slow
def test_50_restarts_leave_no_process_no_pipe_and_no_thread():
    def count() -> tuple[int, int, int]:
        process = psutil.Process()
        return process.num_fds(), len(process.children()), threading.active_count()

    before = count()
    with Isolated(timeout_s=30, memory_mb=500) as isolated:
        for k in range(50):
            with pytest.raises(Died):
                isolated.call(calls.leave, 1 + k)
            deadline = time.monotonic() + 5  # a thread that watched may still be on its way out
            while count() != before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert count() == before
