"""One function over many tasks: in this process, in worker processes, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import queue
import reprlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Literal, TypeVar

from pyoco_pipeline.data.isolation import Died, Isolated, IsolationError
from pyoco_pipeline.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
Executor = Literal["inline", "processes", "ray"]

CONNECT_S = 20.0  # for a Ray cluster to answer
OBJECT_STORE_BYTES = (
    150 * 2**20
)  # of a Ray started here; tasks and results are small, and Ray takes no less than 75


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    executor: Executor,
    workers: int | None,
    ray_address: str | None = None,
) -> Generator[tuple[int, R], None, None]:
    """(position in `tasks`, `function(task)`) of every task, in the order in which they are done.

    `function` must be importable by name (or a `functools.partial` of such a function); it, tasks and results are
    pickled. No more tasks are under way or done ahead of the reader than twice the workers.

    executor: "inline", one after the other; "processes", worker processes of this machine; "ray"
    workers: most tasks at a time; None: as many as there are cores, of the cluster for Ray
    ray_address: of a cluster; None: that of RAY_ADDRESS, or else a Ray of this run's own on this machine

    The first exception that a task raises is raised here, and the other tasks are given up. Raises UserError for
    a worker that dies, for Ray that is not installed or not reached. Close the iterator to end the workers
    early; they also end when this process does, however it ends.
    """
    if workers is not None and workers < 1:
        raise UserError(f"The number of workers must be at least 1, not {workers}; null takes all cores.")
    if executor == "inline":
        return ((position, function(task)) for position, task in enumerate(tasks))
    if executor == "processes":
        return _in_processes(function, tasks, min(workers or _cores(), max(1, len(tasks))))
    if executor == "ray":
        return _on_ray(function, tasks, workers, ray_address)
    raise UserError(f"The executor {executor!r} is not known; choose inline, processes or ray.")


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    function: Callable[[T], R], tasks: Sequence[T], workers: int
) -> Generator[tuple[int, R], None, None]:
    todo = iter(enumerate(tasks))
    lock = threading.Lock()
    ahead = threading.Semaphore(2 * workers)
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()

    def work(isolated: Isolated) -> None:
        while ahead.acquire():
            with lock:
                position, task = next(todo, (None, None))
            if position is None:
                return
            try:
                done.put((position, isolated.call(function, task), None))
            except BaseException as error:
                done.put((position, None, error))
                return

    crew = [Isolated(timeout_s=None, memory_mb=None) for _ in range(workers)]
    threads = [threading.Thread(target=work, args=(isolated,), daemon=True) for isolated in crew]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            position, result, error = done.get()
            if isinstance(error, Died):
                raise _worker_died(position, tasks, error.reason) from error
            if error is not None:
                raise error
            yield position, result  # type: ignore[misc]
            ahead.release()
    finally:
        for isolated in crew:
            isolated.cancel()
        ahead.release(len(threads))
        for thread, isolated in zip(threads, crew, strict=True):
            thread.join()
            isolated.close()


def _on_ray(
    function: Callable[[T], R], tasks: Sequence[T], workers: int | None, address: str | None
) -> Generator[tuple[int, R], None, None]:
    with connected(address, workers) as ray:
        # Tasks write whole files or none, so one whose worker is lost may run again.
        remote = ray.remote(num_cpus=1, max_retries=2)(_apply)
        shared = ray.put(function)
        todo = enumerate(tasks)
        pending: dict[Any, int] = {}
        try:
            while True:
                at_a_time = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                for position, task in islice(todo, at_a_time - len(pending)):
                    pending[remote.remote(shared, task)] = position
                if not pending:
                    return
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                position = pending.pop(ready)
                try:
                    result = ray.get(ready)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", error)  # of a RayTaskError: what the task raised
                    if not isinstance(cause, ray.exceptions.RayError):
                        raise cause from error
                    what = f"is lost on Ray: {str(cause).splitlines()[0]}"
                    raise _worker_died(position, tasks, what) from error
                yield position, result
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _apply(function: Callable[[T], R], task: T) -> R:
    return function(task)


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """The module `ray`, connected; what is started or joined here is ended or left again."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray's name for listening on the loopback interface only: whoever reaches its ports might run code.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError('The executor ray needs Ray; install it with: pip install -e ".[ray]"') from error
    if ray.is_initialized():
        yield ray
        return
    if address == "local":
        with suppress(ImportError):  # Ray reads the variable at import, which may have been before it was set
            from ray._private import ray_constants

            ray_constants.ENABLE_RAY_CLUSTER = False
        _init_ray(address, num_cpus=workers or _cores(), object_store_memory=OBJECT_STORE_BYTES)
    else:
        _check_cluster(address)
        _init_ray(address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_cluster(address: str) -> None:
    """Connects in a process of its own first: without an answer Ray waits for minutes, then aborts its process."""
    try:
        with Isolated(timeout_s=CONNECT_S, memory_mb=None) as isolated:
            isolated.call(_init_ray, address)
    except IsolationError as error:
        raise UserError(
            f"No Ray cluster answers at {address} within {CONNECT_S:g} s; check ray_address (null runs on this "
            "machine), and set RAY_AUTH_MODE=token if the cluster asks for a token."
        ) from error


def _init_ray(address: str, **local: Any) -> None:
    import ray

    try:
        ray.init(
            address=address,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **local,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray cannot be used at {address}: {error}") from error


def _worker_died(position: int, tasks: Sequence[Any], what: str) -> UserError:
    return UserError(
        f"Task {position + 1} of {len(tasks)} ({reprlib.repr(tasks[position])}) {what}. If memory ran out, run "
        "again with fewer workers."
    )
