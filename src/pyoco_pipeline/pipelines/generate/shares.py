"""Clips sampled by several GPUs, or processes of the CPU: each a share of them, in the order of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Write = Callable[..., None]  # write(folder, places=range, **arguments)


def write_shares(
    folder: Path,
    *,
    write: Write,
    count: int,
    batch_size: int,
    num_processes: int | Literal["auto"],
    arguments: dict[str, Any],
) -> None:
    """Let `write` put the clips at places 0 to count - 1 into `folder`, by as many processes as `launch.devices` gives.

    A share is of consecutive whole batches, so that the batches are those of one process. write and arguments must be
    picklable, and write is found by its module and name.
    """
    from pyoco_pipeline.data.clip_writing import join_clips
    from pyoco_pipeline.launch import devices, launch, useful

    on = useful(devices(num_processes), count, batch_size)
    if len(on) == 1:
        write(folder, places=range(count), **arguments)
        return
    launch(_write_share, on, write, folder, count, batch_size, arguments)
    parts = [_part(folder, part) for part in range(len(on))]
    join_clips(folder, parts)
    for part in parts:
        shutil.rmtree(part)


def _write_share(
    part: int,
    parts: int,
    _device: str,
    write: Write,
    folder: Path,
    count: int,
    batch_size: int,
    arguments: dict[str, Any],
) -> None:
    from pyoco_pipeline.launch import share

    write(_part(folder, part), places=share(part, parts, count, batch_size), **arguments)


def _part(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}"
