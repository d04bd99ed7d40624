"""Cells one after another, in processes of this machine that share its GPUs, or on a Ray cluster."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pyoco_pipeline.data.executors import connected  # Ray, joined or started, and left again
from pyoco_pipeline.data.isolation import Died, Isolated
from pyoco_pipeline.study.run_cell import CellTask, Outcome, run_cell
from pyoco_pipeline.study.settings import AblateAlphaSettings


def run_cells(tasks: Sequence[CellTask], settings: AblateAlphaSettings) -> Iterator[tuple[CellTask, Outcome]]:
    """Every task with its outcome, in the order in which they end. A process that dies costs its cell alone.

    Raises UserError for Ray that is not installed or not reached.
    """
    if settings.executor == "inline":
        return ((task, run_cell(task)) for task in tasks)
    if settings.executor == "ray":
        return _on_ray(tasks, settings)
    return _in_processes(tasks, settings.workers or max(1, len(_gpus())))


def _in_processes(tasks: Sequence[CellTask], workers: int) -> Iterator[tuple[CellTask, Outcome]]:
    gpus, workers = _gpus(), max(1, min(workers, len(tasks)))
    threads = max(1, _cores() // workers)
    todo, lock = iter(tasks), threading.Lock()
    ended: queue.SimpleQueue[tuple[CellTask | None, Any]] = queue.SimpleQueue()

    def work(isolated: Isolated, gpu: str | None) -> None:
        while True:
            with lock:
                task = next(todo, None)
            if task is None:
                return
            try:
                ended.put((task, isolated.call(_run_on, task, gpu, threads)))
            except Died as error:
                task.folder.set_error(f"its process {error.reason}; if memory ran out, take fewer workers")
                ended.put((task, "failed"))
            except BaseException as error:
                ended.put((None, error))
                return

    crew = [Isolated(timeout_s=None, memory_mb=None) for _ in range(workers)]
    running = [
        threading.Thread(target=work, args=(isolated, gpus[i % len(gpus)] if gpus else None), daemon=True)
        for i, isolated in enumerate(crew)
    ]
    try:
        for thread in running:
            thread.start()
        for _ in tasks:
            task, outcome = ended.get()
            if task is None:
                raise outcome
            yield task, outcome
    finally:
        with lock:
            todo = iter(())
        for isolated in crew:
            isolated.cancel()
        for thread, isolated in zip(running, crew, strict=True):
            thread.join()
            isolated.close()


def _run_on(task: CellTask, gpu: str | None, threads: int) -> Outcome:
    """In a process of its own: `run_cell` on one GPU, which several processes may share."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything
    import torch

    torch.set_num_threads(threads)
    return run_cell(task)


def _on_ray(tasks: Sequence[CellTask], settings: AblateAlphaSettings) -> Iterator[tuple[CellTask, Outcome]]:
    with connected(settings.ray_address, settings.workers) as ray:
        remote = ray.remote(num_cpus=1, num_gpus=settings.gpus_per_cell, max_retries=1)(run_cell)
        waiting = list(reversed(tasks))
        pending: dict[Any, CellTask] = {}
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
