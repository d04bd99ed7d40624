"""Weak scaling of training over the devices of one machine: `python benchmarks/bench_scaling.py --eager`.

Every process trains on as many clips as one does alone, in 1, 2, 4, … processes, with DDP (the whole model on each) and
with FSDP2 (a part of it on each). A step is what the trainer does: EDM's loss in correlated noise under bf16 autocast,
backward, clipping, AdamW, EMA. Efficiency is clips/s per process over that of one process without either.
`--device cpu` takes small shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from bench_video_model import pixel_unet
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from pyoco_pipeline.diffusion import EDMDenoiser, edm_loss
from pyoco_pipeline.models import VideoUNet
from pyoco_pipeline.noise import ProgressiveNoise
from pyoco_pipeline.training.ema import EMA
from pyoco_pipeline.training.sharding import shard, whole

_WARM_UP = 3  # steps
_TOGETHER = 4  # steps that are timed at once


@dataclass(frozen=True)
class Case:
    """A network, and the clips of (channels, frames, height, width) that each process trains on in a step."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    batch: int
    recompute: bool = False


GPU_CASES = [
    Case("115M", lambda: pixel_unet((512, 512, 512), (0, 1, 1), 1, 32, 12), (3, 16, 64, 64), 16),
    Case("1B", lambda: pixel_unet((1536, 1536, 1536), (0, 1, 1), 1, 32, 12), (3, 16, 64, 64), 8),
]
CPU_CASES = [
    Case("small", lambda: pixel_unet((16, 16), (0, 1), 1, 8, 12), (3, 4, 16, 16), 2),
    Case("wide", lambda: pixel_unet((32, 32), (0, 1), 1, 8, 12), (3, 4, 16, 16), 2),
]


@dataclass
class Row:
    """One measurement; parameters in millions, ms per step, GB of the fullest GPU."""

    name: str
    parallel: str
    processes: int
    parameters: float
    batch: int
    ms: float
    clips_per_second: float
    efficiency: float
    memory: float
    loss: float


class Step:
    """One training step of a case; parallel: none, ddp or fsdp, over the processes of `group`."""

    def __init__(
        self, case: Case, parallel: str, group: dist.ProcessGroup | None, device: torch.device, compiled: bool
    ) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.parallel = case, device, parallel
        self.bf16 = device.type == "cuda"
        with device:
            self.network = case.make().train()
        assert isinstance(self.network, VideoUNet)
        self.parameters = sum(p.numel() for p in self.network.parameters()) / 1e6
        if case.recompute:
            self.network.checkpoint_gradients()
        if compiled:
            self.network.compile_layers()
        self.model: nn.Module = self.network
        if parallel == "fsdp":
            assert group is not None
            shard(self.network, DeviceMesh.from_group(group, device.type), bf16=self.bf16, channels_last=True)
        else:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if parallel == "ddp":
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.network, device_ids=ids, process_group=group, gradient_as_bucket_view=True
            )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, fused=device.type == "cuda" or None
        )
        self.ema = EMA(self.network, 1000, 0.05)
        self.prior, self.done = ProgressiveNoise(2.0), 0
        torch.manual_seed(dist.get_rank())

    def __call__(self) -> Tensor:
        case, device = self.case, self.device
        x0 = torch.rand((case.batch, *case.shape), device=device) * 2 - 1
        sigma = (torch.randn(case.batch, device=device) * 1.2).exp()
        noise = self.prior.sample(x0.shape, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            loss = edm_loss(EDMDenoiser(self.model), x0, noise, sigma).mean()
        loss.backward()
        whole(torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.ema.update(self.network, self.done)
        return loss.detach()


def measure(
    case: Case, parallel: str, group: dist.ProcessGroup | None, device: torch.device, options: Options
) -> Row:
    """Time the step of one case on the processes of `group`; each of them calls this. None: on this process alone."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = Step(case, parallel, group, device, options.compiled)
    for _ in range(_WARM_UP):
        step()
    times, losses = [], []
    for _ in range(max(1, options.steps // _TOGETHER)):
        _all_here(group, device)
        start = time.perf_counter()
        losses = [step() for _ in range(_TOGETHER)]  # as in training, nothing waits for the end of a step
        _all_here(group, device)
        times.append((time.perf_counter() - start) / _TOGETHER)
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise SystemExit(f"{case.name}, {parallel}: the loss is {loss}, so its speed means nothing")
    taken, processes = statistics.median(times), 1 if group is None else group.size()
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else math.nan
    name = f"{case.name}{', recomputed' if case.recompute else ''}, {'compiled' if options.compiled else 'eager'}"
    rate = processes * case.batch / taken
    return Row(
        name,
        parallel,
        processes,
        step.parameters,
        case.batch,
        1e3 * taken,
        rate,
        math.nan,
        _largest(memory, group, device),
        loss,
    )


def _all_here(group: dist.ProcessGroup | None, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if group is not None:
        dist.all_reduce(torch.zeros(1, device=device), group=group)
        if device.type == "cuda":
            torch.cuda.synchronize()


def _largest(value: float, group: dist.ProcessGroup | None, device: torch.device) -> float:
    found = torch.tensor(value, device=device)
    if group is not None:
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return float(found)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    device: str
    processes: tuple[int, ...]
    cases: tuple[int, ...]
    parallel: tuple[str, ...]
    compiled: bool
    steps: int
    tune: bool
    batch: int | None
    json: Path | None


def cases_of(options: Options) -> Iterator[Case]:
    known = GPU_CASES if options.device == "cuda" else CPU_CASES
    for index in options.cases or range(len(known)):
        yield replace(known[index], batch=options.batch or known[index].batch)


def work(rank: int, options: Options, port: int) -> None:
    """All measurements, as one of the processes; those that a measurement doesn't need wait, and rank 0 prints."""
    count = max(options.processes)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = options.tune  # as with train.tune_convolutions
        dist.init_process_group("nccl", rank=rank, world_size=count, device_id=device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        dist.init_process_group("gloo", rank=rank, world_size=count)
    groups = {k: dist.new_group(list(range(k))) for k in options.processes if k > 1}
    waiting = dist.new_group(backend="gloo")  # does not keep a GPU busy
    rows: list[Row] = []
    for case in cases_of(options):
        # Every process alone: kernels are compiled and chosen, and rank 0's time is the one to compare with.
        alone = measure(case, "none", None, device, options)
        report(rows, replace(alone, efficiency=1.0), options, rank)
        for processes, group in groups.items():
            for parallel in options.parallel:
                gc.collect()
                dist.barrier(waiting)
                if rank < processes:
                    row = measure(case, parallel, group, device, options)
                    row.efficiency = row.clips_per_second / processes / alone.clips_per_second
                    report(rows, row, options, rank)
    dist.barrier(waiting)
    dist.destroy_process_group()


def report(rows: list[Row], row: Row, options: Options, rank: int) -> None:
    if rank:
        return
    rows.append(row)
    print(
        f"{row.name:24}{row.parallel:>6}{row.processes:>5}{row.parameters:9.1f}{row.batch:7d}{row.ms:10.1f}"
        f"{row.clips_per_second:10.1f}{row.clips_per_second / row.processes:10.1f}{row.efficiency:7.1%}"
        f"{row.memory:7.1f}{row.loss:8.3f}",
        flush=True,
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


def read_options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cpu", "cuda"]
    parser.add_argument("--device", default=devices[torch.cuda.is_available()], choices=devices)
    parser.add_argument("--processes", type=int, nargs="*", help="how many; 1, 2, 4, … without it")
    parser.add_argument("--cases", type=int, nargs="*", default=[], help="by number from 0; all without it")
    parser.add_argument("--parallel", nargs="*", default=["ddp", "fsdp"], choices=["ddp", "fsdp"])
    parser.add_argument("--batch", type=int, help="clips per process and step, instead of the case's own")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each measurement")
    parser.add_argument(
        "--tune", action="store_true", help="let cuDNN try its algorithms, which takes a while"
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    most = torch.cuda.device_count() if given.device == "cuda" else len(os.sched_getaffinity(0))
    counts = given.processes or [2**i for i in range(most.bit_length())]
    if given.device == "cuda" and max(counts) > most:
        parser.error(f"--processes {max(counts)}, but there are {most} GPUs")
    return Options(
        given.device, tuple(sorted(counts)), tuple(given.cases), tuple(given.parallel),
        given.device == "cuda" and not given.eager, given.steps, given.tune, given.batch, given.json,
    )  # fmt: skip


def main() -> None:
    options = read_options()
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{max(options.processes)} x {device}, torch {torch.__version__}")
    print(
        f"{'case':24}{'':>6}{'k':>5}{'M par.':>9}{'batch':>7}{'ms':>10}{'clips/s':>10}{'each':>10}{'eff.':>7}{'GB':>7}"
        f"{'loss':>8}",
        flush=True,
    )
    start = time.monotonic()
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, args=(options, port), nprocs=max(options.processes))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
