"""Training on every GPU of a machine, started from inside the one process that Kedro and MLflow know.

That process is rank 0 and trains as it would alone; the other ranks are processes of their own, which take the same
arguments, join it through torch.distributed, and end when it does, however it ends.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from pyoco_pipeline.data.isolation import Died, Isolated
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.launch import devices

R = TypeVar("R")
_HOST = "127.0.0.1"


def on_every_device(
    num_processes: int | Literal["auto"],
    work: Callable[..., R],
    *args: Any,
    only_here: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> R:
    """`work(*args, **kwargs)` on as many processes as `devices` gives, this one being rank 0, whose result is returned.

    only_here: arguments of rank 0 alone; the others must be picklable, and work is found by its module and name.
    Raises what work raises here, or UserError where another process raises or is killed: all of them are stopped then.
    """
    on = devices(num_processes)
    here = {**kwargs, **(only_here or {})}
    if len(on) == 1:
        return work(*args, **here)
    with _ranks_beside(on, work, args, kwargs):
        return work(*args, **here)


@contextmanager
def _ranks_beside(
    on: Sequence[str], work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    import torch

    threads, threads_before = max(1, torch.get_num_threads() // len(on)), torch.get_num_threads()
    world = {"MASTER_ADDR": _HOST, "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(len(on))}
    world["OMP_NUM_THREADS"] = str(threads)
    if on[0] == "cpu":
        world["ACCELERATE_USE_CPU"] = "true"  # without it, Accelerate sees several processes on GPUs only
    crew = [Isolated(timeout_s=None, memory_mb=None) for _ in on[1:]]
    failed: dict[int, BaseException] = {}
    done = threading.Event()

    def run(rank: int) -> None:
        try:
            crew[rank - 1].call(_as_rank, _environment(world, rank), threads, work, args, kwargs)
        except BaseException as error:
            if not done.is_set():
                failed[rank] = error
                _let_go()

    ranks = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, len(on))]
    before = dict(os.environ)
    leave()  # what an earlier stage found out about its processes
    os.environ.update(_environment(world, 0))
    torch.set_num_threads(threads)
    try:
        for thread in ranks:
            thread.start()
        yield
        for thread in ranks:  # they end with the same step
            thread.join()
    except BaseException as error:
        # A rank that is gone shows here as a broken connection, which says nothing; why it went does.
        for thread in ranks:
            thread.join(timeout=5 if not isinstance(error, UserError) else 0)
        if failed and not isinstance(error, UserError | KeyboardInterrupt):
            raise _said(failed, on) from error
        raise
    finally:
        done.set()
        for isolated in crew:
            isolated.cancel()
        for thread, isolated in zip(ranks, crew, strict=True):
            thread.join()
            isolated.close()
        leave()
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads_before)
    if failed:
        raise _said(failed, on)


def leave() -> None:
    """Leave the group of processes, so that a later stage of this process can be of another one, or of none."""
    import torch
    from accelerate.state import AcceleratorState

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def _let_go() -> None:
    """End what this process waits for from one that is gone; gloo sees for itself that a connection is closed."""
    import torch

    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
        torch.distributed.distributed_c10d._abort_process_group()


def _as_rank(
    environment: dict[str, str],
    threads: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """In a process of its own; the result is rank 0's to give."""
    os.environ.update(environment)
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    try:
        work(*args, **kwargs)
    finally:
        leave()


def _environment(world: dict[str, str], rank: int) -> dict[str, str]:
    """What torch.distributed and Accelerate read."""
    return world | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": world["WORLD_SIZE"]}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return found.getsockname()[1]


def _said(failed: Mapping[int, BaseException], on: Sequence[str]) -> BaseException:
    rank, error = min(failed.items())
    if isinstance(error, Died):
        return UserError(
            f"Process {rank + 1} of {len(on)}, on {on[rank]}, is gone: its training {error.reason}. The others were "
            "stopped; the same command goes on from the last checkpoint, with fewer processes or smaller batches if "
            "memory ran out."
        )
    return error
