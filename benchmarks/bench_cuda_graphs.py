"""Training steps and sampling of small networks, launched kernel by kernel and as CUDA graphs:
`python benchmarks/bench_cuda_graphs.py [--compile] [--cases 0 1 2]`.

Trains with the project's own trainer on moving digits: data, noise, optimiser and averages are in the steps. Losses of
both ways are compared, and so are clips. Without a GPU there is no graph, and the shapes are small.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from long_run import make_store

from pyoco_pipeline.config import UNetSettings
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.diffusion import EDMDenoiser, sample
from pyoco_pipeline.models import inflate
from pyoco_pipeline.models.cuda_graphs import CapturedDenoiser
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.noise import ProgressiveNoise
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import SigmaSettings, TrainSettings
from pyoco_pipeline.training.trainer import train

TOKENS, TEXT_DIM = 16, 384
LOGGED_EVERY = 20
HEUN_STEPS = 18


@dataclass(frozen=True)
class Case:
    """A network, and the batches of clips that it trains on."""

    name: str
    unet: UNetSettings
    batch_size: int
    frames: int
    size: int


def _unet(channels: Sequence[int], heads: int, groups: int, patch: int = 1) -> UNetSettings:
    return UNetSettings(
        block_out_channels=tuple(channels),
        attention_levels=(False, True, len(channels) < 3 or channels[0] >= 64),
        layers_per_block=1,
        attention_heads=heads,
        norm_groups=groups,
        patch=patch,
    )


GPU_CASES = [
    Case("conf/study", _unet((32, 64, 64), 4, 8), 64, 8, 16),
    Case("conf/gpu", _unet((128, 192, 256), 8, 32, 2), 64, 16, 32),
    Case("conf/gpu_cascade, base", _unet((64, 128, 192), 8, 32), 32, 16, 16),
]
CPU_CASES = [Case("small", _unet((16, 32, 32), 4, 8), 4, 4, 16)]


def make_network(case: Case, compiled: bool) -> torch.nn.Module:
    """The same network each time."""
    image = build_image_unet(size=case.size, text_dim=TEXT_DIM, seed=0, **case.unet.model_dump())
    network = inflate(image)
    if compiled:
        network.compile_layers()
    return network


def train_steps(
    folder: Path, case: Case, steps: int, captured: bool, compiled: bool
) -> tuple[torch.nn.Module, float, list[float], float]:
    """The trained network, steps/s after the first ones, the logged losses, and seconds until the first were logged."""
    store, embeddings = ClipStore(folder / "clips"), TextEmbeddings(folder / "text")
    settings = TrainSettings(
        steps=steps,
        batch_size=case.batch_size,
        learning_rate=2e-4,
        ema_half_life=100,
        image_share=0.1,
        checkpoint_every=10 * steps,
        log_every=LOGGED_EVERY,
        cuda_graphs=captured,
        compile=compiled,
    )
    network = make_network(case, compiled)
    batches = ClipBatches(store, embeddings, BatchOptions(batch_size=case.batch_size, image_share=0.1))
    objective = Objective(ProgressiveNoise(2.0), SigmaSettings(mean=0.4))
    with tempfile.TemporaryDirectory() as checkpoints:
        history = train(
            network, batches, objective, settings, stage="base", checkpoints=Path(checkpoints), identity={}
        )
    rates = [row["clips_per_second"] / case.batch_size for row in history]
    return (
        network,
        statistics.median(rates[len(rates) // 2 :]),
        [row["loss"] for row in history],
        LOGGED_EVERY / rates[0],
    )


def sample_clips(
    network: torch.nn.Module, case: Case, captured: bool, device: torch.device
) -> tuple[torch.Tensor, float]:
    """Clips of 18 Heun steps, and calls of the network per second, after a first sampling."""
    denoise = EDMDenoiser(network)
    if captured:
        denoise = CapturedDenoiser(denoise, "cuda_graphs")
    text = torch.randn(case.batch_size, TOKENS, TEXT_DIM, generator=torch.Generator().manual_seed(1)).to(
        device
    )
    shape, seconds = (case.batch_size, 3, case.frames, case.size, case.size), 0.0
    for _ in range(2):
        started = time.perf_counter()
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            clips = sample(
                denoise,
                ProgressiveNoise(2.0),
                shape,
                steps=HEUN_STEPS,
                generator=torch.Generator(device).manual_seed(2),
                device=device,
                encoder_hidden_states=text,
            )
        clips = clips.cpu()
        seconds = time.perf_counter() - started
    return clips, (2 * HEUN_STEPS - 1) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cases", type=int, nargs="*", help="which, from 0; all")
    parser.add_argument("--compile", action="store_true", help="with graphs, compile the layers too")
    args = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    print(f"{torch.cuda.get_device_name() if has_gpu else platform.machine()}, torch {torch.__version__}")
    print("case | way | steps/s | first steps s | calls/s | loss apart | clips apart")
    cases = GPU_CASES if has_gpu else CPU_CASES
    ways = [("kernel by kernel", False, False)]
    if has_gpu:
        ways.append(("graphs", True, False))
        if args.compile:
            ways.append(("graphs, compiled", True, True))
    for case in cases if args.cases is None else [cases[i] for i in args.cases]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_store(folder, num_clips=512, frames=case.frames, size=case.size, text=(TOKENS, TEXT_DIM))
            reference: tuple[list[float], torch.Tensor] | None = None
            for way, captured, compiled in ways:
                network, rate, losses, first = train_steps(folder, case, args.steps, captured, compiled)
                clips, calls = sample_clips(network, case, captured, device)
                reference = reference or (losses, clips)
                apart = max(abs(a - b) / b for a, b in zip(losses, reference[0], strict=True))
                clips_apart = (clips - reference[1]).abs().max().item()
                print(
                    f"{case.name} | {way} | {rate:.1f} | {first:.1f} | {calls:.1f} | {apart:.1e} | {clips_apart:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
