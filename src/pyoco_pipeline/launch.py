"""One function on several devices at once, each in a process of its own, started from inside one that goes on.

So Kedro, MLflow and the catalog run once, in the parent, and a share of the work runs on every GPU. The processes are
fresh ones (`data.isolation`): they inherit no CUDA state, and end when their parent does, however that ends.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pyoco_pipeline.data.isolation import Died, Isolated
from pyoco_pipeline.errors import UserError

R = TypeVar("R")


def devices(num_processes: int | Literal["auto"]) -> list[str]:
    """The device of each process: as many GPUs as asked for, or on a machine without GPUs as many times the CPU.

    num_processes: "auto" takes all visible GPUs, or the CPU once. Raises UserError for fewer than 1, and for more than
    there are GPUs where there is one.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_processes == "auto":
        return [f"cuda:{i}" for i in range(gpus)] or ["cpu"]
    if num_processes < 1:
        raise UserError(f"num_processes is {num_processes}: give at least 1, or auto.")
    if gpus and num_processes > gpus:
        raise UserError(
            f"num_processes is {num_processes}, and this process sees {gpus} GPU{'s' if gpus > 1 else ''}: give at "
            "most one process per GPU (CUDA_VISIBLE_DEVICES decides which are seen), or auto."
        )
    return [f"cuda:{i}" if gpus else "cpu" for i in range(num_processes)]


def useful(on: Sequence[str], count: int, batch_size: int) -> Sequence[str]:
    """As many of the devices as there are batches of `count` things, and at least one."""
    return on[: max(1, -(-count // batch_size))]


def share(part: int, parts: int, count: int, batch_size: int) -> range:
    """The places of one of `parts` consecutive shares, of whole batches and of as many of them, to within one."""
    batches = -(-count // batch_size)
    first, end = (min(count, batches * i // parts * batch_size) for i in (part, part + 1))
    return range(first, end)


def launch(work: Callable[..., R], on: Sequence[str], *args: Any) -> list[R]:
    """`work(part, num_parts, device, *args)` of every part, in order of the parts; one part per device in `on`.

    With one device `work` is called here, and no process is started. Otherwise work, arguments and results must be
    picklable, work is found by its module and name, its CUDA device is the current one, and the CPU threads of PyTorch
    are shared out evenly.

    Ends the other processes, and raises here, where one raises: its own exception, or UserError where it is killed.
    """
    if len(on) == 1:
        return [work(0, 1, on[0], *args)]
    import torch

    threads = max(1, torch.get_num_threads() // len(on))
    crew = [Isolated(timeout_s=None, memory_mb=None) for _ in on]
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def run(part: int) -> None:
        try:
            ended.put((part, crew[part].call(_work, work, part, len(on), on[part], threads, args), None))
        except BaseException as error:
            ended.put((part, None, error))

    results: dict[int, R] = {}
    waiting = [threading.Thread(target=run, args=(part,), daemon=True) for part in range(len(on))]
    try:
        for thread in waiting:
            thread.start()
        while len(results) < len(on):
            part, result, error = ended.get()
            if isinstance(error, Died):
                raise _died(part, on, error.reason) from error
            if error is not None:
                raise error
            results[part] = result
    finally:
        for isolated in crew:
            isolated.cancel()
        for thread, isolated in zip(waiting, crew, strict=True):
            if thread.ident is not None:
                thread.join()
            isolated.close()
    return [results[part] for part in range(len(on))]


def _work(
    work: Callable[..., R], part: int, num_parts: int, device: str, threads: int, args: tuple[Any, ...]
) -> R:
    import torch

    torch.set_num_threads(threads)
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
    return work(part, num_parts, device, *args)


def _died(part: int, on: Sequence[str], reason: str) -> UserError:
    return UserError(
        f"Process {part + 1} of {len(on)}, on {on[part]}, is gone: its share {reason}. The others were stopped, and "
        "what was there before is untouched: run again, with fewer processes or smaller batches if memory ran out."
    )
