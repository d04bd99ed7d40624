"""Memory and time of a super-resolution stage in tiles: `python benchmarks/bench_cascade.py`.

On a GPU the 1024 stage of conf/paper: 76 frames of 1024x1024 from a new network of its shape, in bf16, frame by frame
in tiles of 512x512. The memory printed is its peak, with noise, clip and prediction of the whole field on the GPU.
On a CPU a small one.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

from pyoco_pipeline.cascade.conditions import LowResolutionCondition
from pyoco_pipeline.diffusion import Denoise, EDMDenoiser, TiledDenoiser, sample
from pyoco_pipeline.models import inflate
from pyoco_pipeline.models.cuda_graphs import CapturedDenoiser
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.noise import IIDNoise, ProgressiveNoise

TEXT_DIM, TOKENS, SCALE = 4096, 77, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--frames", type=int, help="76 on a GPU")
    parser.add_argument("--side", type=int, help="1024 on a GPU")
    parser.add_argument("--tile", type=int, help="512 on a GPU")
    parser.add_argument("--at-once", type=int, default=4, help="tiles in one call of the network")
    parser.add_argument("--graphs", action="store_true", help="calls as CUDA graphs (cuda)")
    parser.add_argument(
        "--steps", type=int, default=1, help="of the solver, an evaluation of the whole field each"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    large = device.type == "cuda"
    if arguments.graphs and not large:
        parser.error("a CUDA graph needs a CUDA GPU: leave --graphs out, or give --device cuda")
    frames, side = arguments.frames or (76 if large else 4), arguments.side or (1024 if large else 32)
    tile = arguments.tile or (512 if large else 16)
    widths, heads = ((128, 256, 512, 1024), 16) if large else ((16, 32), 4)
    text_dim = TEXT_DIM if large else 16
    with device:  # a processor takes a minute to draw as many weights
        network = inflate(
            build_image_unet(
                size=side,
                text_dim=text_dim,
                block_out_channels=widths,
                layers_per_block=2 if large else 1,
                attention_levels=[False] * (len(widths) - 1) + [True],
                attention_heads=heads,
                norm_groups=8,
                seed=0,
            ),
            concat_channels=3,
            noise_level=True,
        )
    network.eval().to(memory_format=torch.channels_last)  # as generation loads it
    denoise: Denoise = EDMDenoiser(network)
    if arguments.graphs:
        denoise = CapturedDenoiser(denoise, "--graphs")
    tiled = TiledDenoiser(denoise, (1, tile, tile), (0, tile // 8, tile // 8), arguments.at_once)
    draw = torch.Generator(device).manual_seed(0)
    shape = (1, 3, frames, side, side)
    condition = LowResolutionCondition(SCALE, 0.5, IIDNoise())
    small = torch.zeros(1, 3, frames, side // SCALE, side // SCALE, device=device)
    text = torch.zeros(1, TOKENS, text_dim, device=device)
    name = torch.cuda.get_device_name() if large else platform.machine()
    print(f"{name}, torch {torch.__version__}")
    print(
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}M parameters, clip {shape}, tiles of {tile}x{tile}, "
        f"{arguments.at_once} at once",
        flush=True,
    )
    if large:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=large):
        noise = IIDNoise().sample(shape, generator=draw, device=device, dtype=torch.float32)
        given = condition.given(small, torch.full((1,), 0.2, device=device), noise)
        del noise
        started = time.monotonic()
        clip = sample(
            tiled,
            ProgressiveNoise(2.0),
            shape,
            solver="euler",
            steps=arguments.steps,
            generator=draw,
            device=device,
            encoder_hidden_states=text,
            **given,
        )
        assert clip.isfinite().all()
        if large:
            torch.cuda.synchronize()
    seconds = time.monotonic() - started
    print(f"{seconds / arguments.steps:.2f} s for an evaluation of the whole field")
    if large:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    else:
        print("memory is measured on a GPU only")


if __name__ == "__main__":
    main()
