"""Training speed of the video model beside diffusers' own: `python benchmarks/bench_video_model.py --device cuda`.

A step is what the trainer does: EDM's loss in correlated noise under bf16 autocast, backward, gradient clipping, AdamW,
EMA. FLOPs are torch's count of one forward and backward pass without recomputation, attention over frames left out;
the ceiling is a matrix product of 8192³ in bf16, measured in the same run. `--device cpu` takes small shapes. With
`--graphs` forward and backward pass are also measured as one CUDA graph, as the trainer captures it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, UNet3DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyoco_pipeline.data.batches import Batch
from pyoco_pipeline.models import inflate
from pyoco_pipeline.noise import ProgressiveNoise
from pyoco_pipeline.training.captured import CapturedLoss
from pyoco_pipeline.training.ema import EMA
from pyoco_pipeline.training.objective import Draws, Objective
from pyoco_pipeline.training.settings import SigmaSettings

_TOGETHER = 5  # steps that are timed at once
WAYS = ("eager", "graphs", "compiled", "compiled+graphs")  # in this order, for layers stay compiled


@dataclass(frozen=True)
class Case:
    """A network and the clips it is trained on. shape: (channels, frames, height, width)."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    batch: int
    text_width: int = 0  # of its text tokens; 0: none
    compiled: bool = True
    peer: bool = False  # diffusers' own, as it is
    recompute: bool = False  # gradient checkpointing


@dataclass
class Row:
    """One measurement; times in ms, memory in GB, FLOPs in 10^12."""

    name: str
    parameters: float
    batch: int
    ms: float
    clips_per_second: float
    tflops: float
    share: float
    memory: float
    first_seconds: float  # the first step, with compilation
    loss: float


def pixel_unet(
    widths: tuple[int, ...], attention: tuple[int, ...], layers: int, size: int, channels: int
) -> nn.Module:
    """An inflated UNet2DModel; with 12 channels, of blocks of 2 × 2 pixels."""
    flags = [bool(flag) for flag in attention]
    return inflate(
        UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if flag else "DownBlock2D" for flag in flags),
            up_block_types=tuple("AttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(flags)),
            attention_head_dim=64 if min(widths) >= 64 else 8,
            norm_num_groups=32 if min(widths) >= 32 else 8,
        )
    )


def latent_unet(widths: tuple[int, ...], size: int, text_width: int) -> nn.Module:
    """An inflated UNet2DConditionModel in the shape of Stable Diffusion 1.5."""
    return inflate(
        UNet2DConditionModel(
            sample_size=size,
            block_out_channels=widths,
            cross_attention_dim=text_width,
            attention_head_dim=8 if min(widths) >= 64 else 2,
            norm_num_groups=32 if min(widths) >= 32 else 8,
        )
    )


def peer_unet(widths: tuple[int, ...], size: int, text_width: int) -> nn.Module:
    return UNet3DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock3D",) * (len(widths) - 1) + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * (len(widths) - 1),
        cross_attention_dim=text_width,
        attention_head_dim=64 if min(widths) >= 64 else 8,
        norm_num_groups=32 if min(widths) >= 32 else 8,
    )


GPU_CASES = [
    Case("unshuffled 512/512/512", lambda: pixel_unet((512, 512, 512), (0, 1, 1), 1, 32, 12), (3, 16, 64, 64), 32),
    Case("unshuffled 256/512/512", lambda: pixel_unet((256, 512, 512), (0, 0, 1), 2, 32, 12), (3, 16, 64, 64), 32),
    Case("128/256/448/512", lambda: pixel_unet((128, 256, 448, 512), (0, 0, 1, 1), 2, 64, 3), (3, 16, 64, 64), 16),
    Case(
        "diffusers UNet3D", lambda: peer_unet((128, 256, 384, 512), 64, 768), (3, 16, 64, 64), 4, 768,
        compiled=False, peer=True,
    ),
    Case("SD 1.5 shape, 32x32", lambda: latent_unet((320, 640, 1280, 1280), 32, 768), (4, 16, 32, 32), 8, 768),
]  # fmt: skip
MEMORY_CASES = [
    replace(case, name=f"{case.name}{', recomputed' if recompute else ''}", recompute=recompute)
    for case in (
        GPU_CASES[2],
        Case(
            "unshuffled 1536/1536/1536",
            lambda: pixel_unet((1536,) * 3, (0, 1, 1), 1, 32, 12),
            (3, 16, 64, 64),
            1,
        ),
    )
    for recompute in (False, True)
]
CPU_CASES = [
    Case("unshuffled 32/32", lambda: pixel_unet((32, 32), (0, 1), 1, 8, 12), (3, 4, 16, 16), 2, compiled=False),
    Case("16/32", lambda: pixel_unet((16, 32), (0, 1), 1, 16, 3), (3, 4, 16, 16), 2, compiled=False),
    Case(
        "diffusers UNet3D", lambda: peer_unet((16, 32), 16, 32), (3, 4, 16, 16), 2, 32,
        compiled=False, peer=True,
    ),
    Case("SD 1.5 shape, 16x16", lambda: latent_unet((16, 16, 32, 32), 16, 32), (4, 4, 16, 16), 2, 32, compiled=False),
]  # fmt: skip


class Step:
    """One training step of a case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        with device:  # a billion weights take a processor half a minute to draw
            self.network = case.make().train()
        if not case.peer:
            self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=device.type == "cuda")
        self.ema = EMA(self.network, 1000, 0.05)
        self.objective, self.done = Objective(ProgressiveNoise(2.0), SigmaSettings()), 0
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.captured: CapturedLoss | None = None

    def go(self, way: str) -> None:
        """Take the next steps in one of WAYS."""
        self.captured = None
        gc.collect()  # a graph keeps its memory until then
        if way.startswith("compiled"):
            self.network.compile_layers()
        if way.endswith("graphs"):
            self.captured = CapturedLoss(self.objective, self.network, self.autocast)

    def draw(self) -> tuple[Batch, Draws]:
        case, device = self.case, self.device
        x0 = torch.rand((case.batch, *case.shape), device=device) * 2 - 1
        sigma = (torch.randn(case.batch, device=device) * 1.2).exp()
        cond = {}
        if case.text_width:
            cond["encoder_hidden_states"] = torch.randn(case.batch, 77, case.text_width, device=device)
        noise = self.objective.prior.sample(x0.shape, device=device)
        return Batch(x0, cond), Draws(sigma, noise)

    def gradients(self) -> Tensor:
        """The loss, whose gradients are in the parameters then."""
        batch, draws = self.draw()
        if self.captured is not None:
            return self.captured(batch, draws)
        with self.autocast():
            loss = self.objective.loss(self.network, batch, draws)
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        loss = self.gradients()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.ema.update(self.network, self.done)
        return loss


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def ceiling(device: torch.device) -> float:
    """TFLOP/s of a large bf16 matrix product."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    times = [seconds(lambda: a @ b, device) for _ in range(10)]
    return 2 * size**3 / statistics.median(times) / 1e12


def count_flops(case: Case) -> float:
    """10^12 FLOPs of the forward and backward pass of one clip; counted on shapes alone."""
    with torch.device("meta"):
        network = case.make()
        x = torch.empty(1, *case.shape)
        cond = {"encoder_hidden_states": torch.empty(1, 77, case.text_width)} if case.text_width else {}
        with FlopCounterMode(display=False) as counter:
            network(x, torch.zeros(1), **cond).sample.sum().backward()
    return counter.get_total_flops() / 1e12


def measure(
    case: Case, ways: Collection[str], device: torch.device, peak: float, repeats: int
) -> Iterator[tuple[Row, Step]]:
    """Each way that the case has; the first step chooses cuDNN's algorithms for all, and what is compiled stays so."""
    flops = count_flops(case) * case.batch
    step = Step(case, device)
    for way in ways_of(case, ways):
        step.go(way)
        if device.type == "cuda":
            # Conv3d has so many algorithms that trying them takes minutes.
            torch.backends.cudnn.benchmark = not case.peer
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first = seconds(step, device)
        for _ in range(2):
            step()
        losses: list[Tensor] = []

        def several(
            losses: list[Tensor] = losses,
        ) -> None:  # as in training, nothing waits for the end of a step
            losses.extend(step() for _ in range(_TOGETHER))

        times = [seconds(several, device) / _TOGETHER for _ in range(repeats)]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise SystemExit(f"{case.name}: the loss is {loss}, so its speed means nothing")
        taken = statistics.median(times)
        memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
        row = Row(
            f"{case.name}, {way}",
            sum(p.numel() for p in step.network.parameters()) / 1e6,
            case.batch,
            1e3 * taken,
            case.batch / taken,
            flops / taken,
            flops / taken / peak,
            memory,
            first,
            loss,
        )
        yield row, step


def ways_of(case: Case, ways: Collection[str]) -> list[str]:
    """Those of `ways` that the case is measured in."""
    possible = {
        "eager": True,
        "graphs": not case.peer,
        "compiled": case.compiled,
        "compiled+graphs": case.compiled and not case.peer,
    }
    return [way for way in WAYS if way in ways and possible[way]]


def largest_batch(case: Case, device: torch.device) -> tuple[float, int]:
    """Millions of parameters, and the most clips of 1, 2, 3, 4, 6, 8, 12, … that an eager step has memory for."""
    largest, parameters = 0, 0.0
    for batch in (
        size for power in range(12) for size in ((2**power, 3 * 2 ** (power - 1)) if power else (1,))
    ):
        try:
            parameters = _one_step(replace(case, batch=batch), device)
        except torch.cuda.OutOfMemoryError:
            break
        largest = batch
    torch.cuda.empty_cache()
    return parameters, largest


def _one_step(case: Case, device: torch.device) -> float:
    torch.cuda.empty_cache()
    step = Step(case, device)
    if case.recompute:
        step.network.checkpoint_gradients()
    step()
    synchronize(device)
    return sum(p.numel() for p in step.network.parameters()) / 1e6


def profile(step: Step, device: torch.device) -> str:
    """The kernels that take most of a step's time."""
    activity = (
        torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    )
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(3):
            step()
        synchronize(device)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--cases", type=int, nargs="*", help="which cases, by number from 0; all without it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="how; eager and compiled without it")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--graphs", action="store_true", help="also as a CUDA graph (cuda)")
    parser.add_argument(
        "--repeats", type=int, default=5, help=f"times {_TOGETHER} steps; the median is printed"
    )
    parser.add_argument("--batch", type=int, help="clips of a step in place of the case's own")
    parser.add_argument("--profile", action="store_true", help="also the kernels that take most of the time")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--largest", action="store_true", help="the largest batches that fit instead (cuda)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    ways = set(arguments.ways or ("eager", "compiled")) | ({"graphs"} if arguments.graphs else set())
    if arguments.eager:
        ways = {way for way in ways if not way.startswith("compiled")}
    if any(way.endswith("graphs") for way in ways) and device.type != "cuda":
        parser.error("a CUDA graph needs a CUDA GPU: leave --graphs out, or give --device cuda")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    peak = ceiling(device)
    print(
        f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}, matmul ceiling {peak:.3g} TFLOP/s"
    )
    if arguments.largest:
        torch.backends.cudnn.benchmark = False  # it would try algorithms at every size
        for case in MEMORY_CASES if arguments.cases is None else [MEMORY_CASES[i] for i in arguments.cases]:
            parameters, batch = largest_batch(case, device)
            print(f"{case.name:44}{parameters:8.0f} M parameters: up to {batch} clips", flush=True)
        return
    print(f"{'case':32}{'M par.':>8}{'batch':>6}{'ms':>9}{'clips/s':>9}{'TFLOP/s':>9}{'share':>7}{'GB':>7}{'1st s':>7}"
          f"{'loss':>8}")  # fmt: skip
    cases = GPU_CASES if device.type == "cuda" else CPU_CASES
    rows = []
    for index in range(len(cases)) if arguments.cases is None else arguments.cases:
        case = replace(cases[index], batch=arguments.batch or cases[index].batch)
        for row, step in measure(case, ways, device, peak, arguments.repeats):
            rows.append(row)
            print(
                f"{row.name:32}{row.parameters:8.1f}{row.batch:6d}{row.ms:9.1f}{row.clips_per_second:9.1f}"
                f"{row.tflops:9.1f}{row.share:7.1%}{row.memory:7.1f}{row.first_seconds:7.1f}{row.loss:8.3f}",
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
            if arguments.profile:
                print(profile(step, device), flush=True)
            del step


if __name__ == "__main__":
    main()
