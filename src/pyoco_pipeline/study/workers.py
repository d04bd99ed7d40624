"""Cells one after another, in processes of this machine that share its GPUs, or on a Ray cluster."""

from __future__ import annotations

import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyoco_pipeline.data.executors import connected  # Ray, joined or started, and left again
from pyoco_pipeline.data.isolation import Died, Isolated
from pyoco_pipeline.study.resampled import ResampleTask
from pyoco_pipeline.study.run_cell import CellTask, Outcome
from pyoco_pipeline.study.settings import AblateAlphaSettings

Task = CellTask | ResampleTask
Ended = Iterator[tuple[Task, Outcome]]
RunCells = Callable[[Sequence[Task]], Ended]


@contextmanager
def cell_runner(settings: AblateAlphaSettings) -> Iterator[RunCells]:
    """A function that gives every task with its outcome, in the order in which they end; it may be called repeatedly.

    Workers live as long as the context, so that a process imports torch and starts CUDA once. One that dies costs its
    cell alone, and another takes its place. Raises UserError for Ray that is not installed or not reached.
    """
    if settings.executor == "inline":
        yield lambda tasks: ((task, task.run()) for task in tasks)
    elif settings.executor == "ray":
        with connected(settings.ray_address, settings.workers) as ray:
            yield partial(_on_ray, ray, settings)
    else:
        crew = _Crew(settings.workers or max(1, len(_gpus())))
        try:
            yield crew.run
        finally:
            crew.close()


class _Crew:
    """Processes of this machine, spread over its GPUs, that take cell after cell."""

    def __init__(self, workers: int) -> None:
        self.threads = max(1, _cores() // workers)
        gpus = _gpus()
        self.workers = [
            # From the start: a task that is read already asks for CUDA, and then it is too late to choose.
            Isolated(
                timeout_s=None,
                memory_mb=None,
                environment={"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else None,
            )
            for number in range(workers)
        ]

    def run(self, tasks: Sequence[Task]) -> Ended:
        todo, lock = iter(tasks), threading.Lock()
        ended: queue.SimpleQueue[tuple[Task | None, Any]] = queue.SimpleQueue()

        def work(isolated: Isolated) -> None:
            while True:
                with lock:
                    task = next(todo, None)
                if task is None:
                    return
                try:
                    ended.put((task, isolated.call(_run_here, task, self.threads)))
                except Died as error:
                    task.folder.set_error(
                        f"its process {error.reason}; if memory ran out, take fewer workers"
                    )
                    ended.put((task, "failed"))
                except BaseException as error:
                    ended.put((None, error))
                    return

        running = [
            threading.Thread(target=work, args=(isolated,), daemon=True)
            for isolated in self.workers[: len(tasks)]
        ]
        left = len(tasks)
        try:
            for thread in running:
                thread.start()
            while left:
                task, outcome = ended.get()
                if task is None:
                    raise outcome
                left -= 1
                yield task, outcome
        finally:
            with lock:
                todo = iter(())
            if left:
                for isolated in self.workers:
                    isolated.cancel()
            for thread in running:
                thread.join()

    def close(self) -> None:
        for isolated in self.workers:
            isolated.close()


def _run_here(task: Task, threads: int) -> Outcome:
    """In a process of its own, on the one GPU that it sees, which several processes may share."""
    import torch

    torch.set_num_threads(threads)
    try:
        return task.run()
    finally:
        gc.collect()
        torch.cuda.empty_cache()  # what this process does not need the others may


def _do(task: Task) -> Outcome:
    return task.run()


def _on_ray(ray: Any, settings: AblateAlphaSettings, tasks: Sequence[Task]) -> Ended:
    remote = ray.remote(num_cpus=1, num_gpus=settings.gpus_per_cell, max_retries=1)(_do)
    waiting = list(reversed(tasks))
    pending: dict[Any, Task] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < (settings.workers or len(tasks)):
                task = waiting.pop()
                pending[remote.remote(task)] = task
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                task.folder.set_error(f"lost on Ray: {str(error).strip().splitlines()[0]}")
                outcome = "failed"
            yield task, outcome
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(i) for i in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
