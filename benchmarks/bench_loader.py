"""Clips read for training: `python benchmarks/bench_loader.py`.

Clips/s of stored clips read into tensors on one core, through the shuffle that training uses, beside a copy of the same
bytes in memory and beside other ways to read the same clips; and the memory of ten epochs. The clips are smooth noise,
which compresses as badly as real video.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
import torch.nn.functional as F

from pyoco_pipeline.data import clip_writing
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.order import ShuffledOrder
from pyoco_pipeline.data.reader import GroupReader, list_groups


def smooth_clips(count: int, frames: int, size: int) -> Iterator[CaptionedClip]:
    draw = torch.Generator().manual_seed(0)
    for i in range(count):
        coarse = torch.rand(1, 3, max(2, frames // 2), size // 4, size // 4, generator=draw)
        fine = F.interpolate(coarse, size=(frames, size, size), mode="trilinear")[0]
        noisy = fine * 255 + 2 * torch.randn(fine.shape, generator=draw)
        video = noisy.clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()
        yield CaptionedClip(Clip(f"clip {i}", video), "a caption", "train")


def clips_per_second(read: Callable[[], int], repeats: int) -> float:
    """The best of several runs; read returns how many clips it read."""
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        count = read()
        best = max(best, count / (time.perf_counter() - start))
    return best


class Epochs:
    """Each call reads an epoch more, as training does, and returns the clips read."""

    def __init__(self, store: ClipStore, buffer: int, batch: int) -> None:
        groups = list_groups(store.shards("train"))
        self.order = ShuffledOrder([group.rows for group in groups], buffer=buffer, seed=0)
        self.reader = GroupReader(store, groups, keep=2 * (buffer + max(group.rows for group in groups)))
        self.batch, self.place = batch, 0

    def __call__(self) -> int:
        steps = self.order.count // self.batch
        for _ in range(steps):
            self.reader.read(*self.order.take(self.place, self.batch))
            self.reader.prefetch(self.order.groups_after(self.place))
            self.place += self.batch
        return steps * self.batch


def copies(store: ClipStore, batch: int) -> Callable[[], int]:
    """Copy the clips batch by batch, in memory."""
    videos = store.videos("train")
    out = np.empty_like(videos[:batch])

    def copy() -> int:
        for first in range(0, len(videos) - batch + 1, batch):
            out[:] = videos[first : first + batch]
        return len(videos) // batch * batch

    return copy


def huggingface(store: ClipStore, cache: Path, batch: int) -> tuple[Callable[[], int], Callable[[], int]]:
    """The same shards through Hugging Face datasets: batches of a memory-mapped copy, and streamed rows."""
    import datasets

    datasets.disable_progress_bars()
    files = [str(Path(store.folder) / shard.file) for shard in store.shards("train")]
    shape = store.clip_shape(store.shards("train")[0])
    mapped = datasets.Dataset.from_parquet(files, cache_dir=str(cache), columns=["video"]).with_format(
        "arrow"
    )
    streamed = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=str(cache)
    )
    out = np.empty((batch, *shape), np.uint8)

    def read_mapped() -> int:
        count = 0
        for rows in mapped.iter(batch):
            for place, value in enumerate(rows["video"]):
                out[place] = np.frombuffer(value.as_buffer(), np.uint8).reshape(shape)
            count += len(rows)
        return count

    def read_streamed() -> int:
        count = 0
        for row in streamed.select_columns(["video"]):
            out[count % batch] = np.frombuffer(row["video"], np.uint8).reshape(shape)
            count += 1
        return count

    return read_mapped, read_streamed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="the best is printed")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if hasattr(os, "sched_setaffinity"):  # threads that read ahead count as work of the same core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    clip_writing.SHARD_ROWS = 256
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        shape = (arguments.frames, arguments.size, arguments.size)
        stores = {}
        for codec in ("none", "lz4", "zstd"):
            clips = smooth_clips(arguments.clips, arguments.frames, arguments.size)
            write_clips(
                Path(folder) / codec, clips, kind="benchmark", shape=shape, fps=8.0, compression=codec
            )
            stores[codec] = ClipStore(Path(folder) / codec)
        size = 3 * int(np.prod(shape))
        print(f"pyarrow {pa.__version__}, one core, {arguments.clips} clips of {shape}, {size} bytes each")
        ceiling = clips_per_second(copies(stores["none"], arguments.batch), arguments.repeats)
        print(f"{'a copy in memory':48}{ceiling:12,.0f} clips/s")
        buffer = max(arguments.batch, arguments.clips // 4)
        rows: list[tuple[str, Callable[[], int]]] = [
            (
                f"this project, shuffled, Parquet {codec}",
                Epochs(store, buffer, arguments.batch),
            )
            for codec, store in stores.items()
        ]
        mapped, streamed = huggingface(stores["none"], Path(folder) / "cache", arguments.batch)
        rows += [
            ("datasets, a memory-mapped Arrow copy, in order", mapped),
            ("datasets, streamed Parquet rows, in order", streamed),
        ]
        for name, read in rows:
            found[name] = clips_per_second(read, arguments.repeats)
            print(f"{name:48}{found[name]:12,.0f} clips/s{found[name] / ceiling:8.2f} of a copy", flush=True)
        memory, read = [], Epochs(stores["none"], buffer, arguments.batch)
        for _ in range(10):
            read()
            memory.append(psutil.Process().memory_info().rss / 1e6)
        growth = max(memory) / memory[0] - 1
        print(
            f"memory after each of ten epochs, MB: {' '.join(f'{m:.0f}' for m in memory)}; growth {growth:.1%}"
        )
        found["copy"], found["memory growth"] = ceiling, growth
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
