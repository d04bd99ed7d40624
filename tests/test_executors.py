"""The same results from one process, from a pool and from Ray, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import isolated_calls as calls
import psutil
import pytest

from pyoco_pipeline.data import executors
from pyoco_pipeline.data.executors import run_tasks
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

TASKS = list(range(12))
SQUARES = [(x, x * x) for x in TASKS]


@pytest.mark.parametrize(("executor", "workers"), [("inline", None), ("processes", 1), ("processes", 3)])
def test_results_do_not_depend_on_executor_or_number_of_workers(executor, workers):
    assert sorted(run_tasks(calls.later_square, TASKS, executor=executor, workers=workers)) == SQUARES


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_no_tasks_give_no_results(executor):
    assert list(run_tasks(calls.square, [], executor=executor, workers=2)) == []


def test_results_come_as_they_are_done_and_not_in_order():
    results = list(run_tasks(calls.wait, [1.5, 0.0, 0.0], executor="processes", workers=2))
    assert results[-1] == (0, 1.5)


def test_each_worker_is_a_process_of_its_own():
    assert len({pid for _, pid in run_tasks(calls.slow_pid, TASKS, executor="processes", workers=2)}) == 2


def test_a_worker_may_own_an_isolated_child():
    results = run_tasks(calls.isolated_square, [3, 4], executor="processes", workers=2)
    assert sorted(results) == [(0, 9), (1, 16)]


def test_tasks_run_ahead_of_the_reader_by_twice_the_workers_at_most(tmp_path):
    function = partial(calls.fail_at, where=-1, error=ValueError(), seen=tmp_path)
    with closing(run_tasks(function, range(1000), executor="processes", workers=2)) as results:
        next(results)
        time.sleep(0.5)
        assert len(list(tmp_path.iterdir())) <= 5


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_what_a_task_raises_ends_the_run_as_itself(tmp_path, executor):
    function = partial(calls.fail_at, where=3, error=VideoError("a.mp4", "is odd"), seen=tmp_path)
    with pytest.raises(VideoError) as caught:
        list(run_tasks(function, range(1000), executor=executor, workers=2))
    assert caught.value.reason == "is odd"
    assert len(list(tmp_path.iterdir())) < 20


def test_a_failing_task_does_not_wait_for_the_others():
    start = time.monotonic()
    with pytest.raises(ValueError, match="odd"):
        list(run_tasks(calls.wait_or_fail, [0.5, 60.0], executor="processes", workers=2))
    assert time.monotonic() - start < 20


def test_a_worker_that_dies_names_its_task():
    tasks = ["a", "b", "c"]
    with pytest.raises(
        UserError, match=r"^Task 2 of 3 \('b'\) ends the process .*exit code 9.*fewer workers"
    ):
        list(run_tasks(partial(calls.die_at, where="b"), tasks, executor="processes", workers=2))


def test_closing_the_results_ends_the_workers():
    before, threads = len(psutil.Process().children()), set(threading.enumerate())
    results = run_tasks(calls.wait_or_fail, [0.0, 60.0, 60.0], executor="processes", workers=2)
    assert next(results) == (0, 0.0)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 10
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)  # a timer that was cancelled ends in a moment
    assert len(psutil.Process().children()) == before
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    ("executor", "workers", "message"),
    [
        ("dask", 1, "'dask' is not known; choose inline, processes or ray"),
        ("processes", 0, "at least 1, not 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(executor, workers, message):
    with pytest.raises(UserError, match=message):
        run_tasks(calls.square, TASKS, executor=executor, workers=workers)


def test_without_ray_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[ray\]"'):
        list(run_tasks(calls.square, TASKS, executor="ray", workers=1))


PARENT = """
import sys
from functools import partial
from pathlib import Path
import isolated_calls
from pyoco_pipeline.data.executors import run_tasks
list(run_tasks(partial(isolated_calls.wait_isolated, 60), [Path(sys.argv[2] + str(k)) for k in range(2)],
               executor=sys.argv[1], workers=2))
"""


@pytest.mark.parametrize(
    ("executor", "how"),
    [
        ("processes", signal.SIGKILL),
        ("processes", signal.SIGTERM),
        ("processes", signal.SIGINT),
        pytest.param("ray", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_workers_and_their_decoders_end_with_the_run(tmp_path, executor, how):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", PARENT, executor, tmp_path / "pid"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as parent:
        try:
            decoders = [int(_text(tmp_path / f"pid{k}")) for k in range(2)]
            processes = [psutil.Process(pid) for pid in decoders]
            children = psutil.Process(parent.pid).children(recursive=True)
            agents = [child for child in children if "Agent" in child.name()]  # Ray's own: they take a minute
            processes += [child for child in children if child not in agents]
            assert len(set(processes)) >= 4
            parent.send_signal(how)
            assert _end(processes)
        finally:
            parent.kill()
        for agent in agents:
            with suppress(psutil.NoSuchProcess):
                agent.kill()


def _text(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} is not written"
        time.sleep(0.02)
    return path.read_text()


def _end(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of two workers for several tests: starting one takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", str(Path(__file__).parent)
        )  # Ray's workers import this test's functions too
        with executors.connected("local", 2) as ray:
            yield ray


@pytest.mark.slow
def test_ray_gives_the_results_of_the_processes(local_ray):
    assert sorted(run_tasks(calls.later_square, TASKS, executor="ray", workers=2)) == SQUARES
    assert sorted(run_tasks(calls.isolated_square, [3, 4], executor="ray", workers=None)) == [(0, 9), (1, 16)]
    assert local_ray.is_initialized()  # this fixture's, so not run_tasks' to end


@pytest.mark.slow
def test_a_ray_started_here_listens_on_this_machine_only(local_ray):
    addresses = {
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_what_a_task_raises_on_ray_ends_the_run_as_itself(local_ray, tmp_path):
    function = partial(calls.fail_at, where=3, error=VideoError("a.mp4", "is odd"), seen=tmp_path)
    with pytest.raises(VideoError) as caught:
        list(run_tasks(function, range(1000), executor="ray", workers=2))
    assert (type(caught.value), caught.value.reason) == (VideoError, "is odd")
    assert len(list(tmp_path.iterdir())) < 20


@pytest.mark.slow
def test_a_ray_worker_that_dies_names_its_task(local_ray):
    tasks = ["a", "b", "c"]
    with pytest.raises(UserError, match=r"^Task 2 of 3 \('b'\) .*fewer workers"):
        list(run_tasks(partial(calls.die_at, where="b"), tasks, executor="ray", workers=2))


ELSEWHERE = """
import sys, isolated_calls
from pyoco_pipeline.data import executors
from pyoco_pipeline.data.executors import run_tasks
from pyoco_pipeline.errors import UserError
executors.CONNECT_S = float(sys.argv[2])
try:
    print(sorted(run_tasks(isolated_calls.square, [2, 3], executor="ray", workers=None, ray_address=sys.argv[1])))
except UserError as error:
    print(error)
"""


def _said_elsewhere(address: str, connect_s: float = 20.0) -> str:
    """What a process that is not yet connected prints when it uses the Ray at `address`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", ELSEWHERE, address, str(connect_s)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, check=True
    ).stdout


@pytest.mark.slow
def test_a_cluster_is_joined_by_its_address_and_goes_on_after_the_run(local_ray):
    assert _said_elsewhere(local_ray.get_runtime_context().gcs_address) == "[(0, 4), (1, 9)]\n"
    assert sorted(run_tasks(calls.square, TASKS, executor="ray", workers=2)) == SQUARES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "connect_s", "message"),
    [
        ("127.0.0.1:9", 4.0, "No Ray cluster answers at 127.0.0.1:9 within 4 s; check ray_address"),
        ("not an address", 20.0, "Ray cannot be used at not an address: Invalid address format"),
    ],
)
def test_an_address_without_ray_is_an_error_in_one_sentence_within_a_time_limit(address, connect_s, message):
    said = _said_elsewhere(address, connect_s)
    assert said.startswith(message)
    assert said.count("\n") == 1
