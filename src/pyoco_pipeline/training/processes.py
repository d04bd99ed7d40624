"""Training on every GPU of a machine, started from inside the one process that Kedro and MLflow know.

That process is rank 0 and trains as it would alone; the other ranks are processes of their own, which take the same
arguments, join it through torch.distributed, and end when it does, however it ends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

from pyoco_pipeline.data.isolation import Died, Isolated
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.launch import devices

R = TypeVar("R")
_HOST = "127.0.0.1"
_JOINED = "joined"
_PATIENCE = timedelta(hours=2)  # of those that wait while rank 0 samples


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
    from pyoco_pipeline.training import launched

    if launched.leading is not None:
        return launched.leading.train(num_processes, work, args, kwargs, only_here or {})
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes of this run, which would each train by itself: "
            "let it start `-m pyoco_pipeline.distributed run …` (docs/operations.md), or use `kedro run` without it."
        )
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
    from torch.distributed import TCPStore

    before, threads_before = dict(os.environ), torch.get_num_threads()
    threads = max(1, threads_before // len(on))
    leave()  # what an earlier stage found out about its processes
    store = TCPStore(_HOST, 0, len(on), is_master=True, wait_for_workers=False)
    world = {"MASTER_ADDR": _HOST, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(len(on))}
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
                let_go()

    ranks = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, len(on))]
    os.environ.update(_environment(world, 0))
    torch.set_num_threads(threads)
    try:
        for thread in ranks:
            thread.start()
        while store.add(_JOINED, 0) < len(ranks) and not failed:  # who is waited for may be gone
            time.sleep(0.05)
        if not failed:
            join(store, 0, len(on))
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


def join(store: Any, rank: int, world_size: int) -> None:
    """Into the group of processes, before anything else, so that one that goes is noticed from there on."""
    import torch

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_PATIENCE
    )


def told(ask: Callable[[], Any]) -> Any:
    """What rank 0 gets by asking, on every process, which all call this; JSON-able."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return ask()
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    answer = json.dumps(ask()).encode() if distributed.get_rank() == 0 else b""
    size = torch.tensor(len(answer), device=device)
    distributed.broadcast(size, 0)
    data = torch.frombuffer(bytearray(answer.ljust(int(size))), dtype=torch.uint8).to(device)
    distributed.broadcast(data, 0)
    return json.loads(bytes(data.cpu().numpy()))


def leave() -> None:
    """Leave the group of processes, so that a later stage of this process can be of another one, or of none."""
    import torch
    from accelerate.state import AcceleratorState

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def let_go() -> None:
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
    world_size = int(environment["WORLD_SIZE"])
    store = torch.distributed.TCPStore(_HOST, int(environment["MASTER_PORT"]), world_size, is_master=False)
    store.add(_JOINED, 1)
    join(store, int(environment["RANK"]), world_size)
    try:
        work(*args, **kwargs)
    finally:
        leave()


def _environment(world: dict[str, str], rank: int) -> dict[str, str]:
    """What torch.distributed and Accelerate read."""
    return world | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": world["WORLD_SIZE"]}


def _said(failed: Mapping[int, BaseException], on: Sequence[str]) -> BaseException:
    rank, error = min(failed.items())
    if isinstance(error, Died):
        return UserError(
            f"Process {rank + 1} of {len(on)}, on {on[rank]}, is gone: its training {error.reason}. The others were "
            "stopped; the same command goes on from the last checkpoint, with fewer processes or smaller batches if "
            "memory ran out."
        )
    return error
