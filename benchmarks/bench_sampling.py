"""Sampling speed beside the same network on diffusers' own modules, eager: `python benchmarks/bench_sampling.py`.

Both sample the same clips from the same noise with the same solver, in bf16 autocast; the peer's modules are diffusers'
and torch's own. UNet3DConditionModel, another network of about that size, takes as many evaluations. On a GPU this
project's network is timed as a CUDA graph and compiled too; a row finds kernels and compilations of the rows before it.
"""

from __future__ import annotations

import argparse
import copy

import diffusers
import torch
from bench_video_model import GPU_CASES, peer_unet, pixel_unet, seconds
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from pyoco_pipeline.diffusion import Denoise, EDMDenoiser, sample
from pyoco_pipeline.models import VideoUNet, fused
from pyoco_pipeline.models.convolutions import tuned_convolutions
from pyoco_pipeline.models.cuda_graphs import CapturedDenoiser
from pyoco_pipeline.models.fast import (
    FastGEGLU,
    FastGroupNorm,
    FastLayerNorm,
    FastResnetBlock2D,
    FastTransformer2DModel,
    FastUpsample2D,
    lower_weights,
)
from pyoco_pipeline.noise import ProgressiveNoise

_OWN = {
    FastGEGLU: GEGLU,
    FastGroupNorm: nn.GroupNorm,
    FastLayerNorm: nn.LayerNorm,
    FastResnetBlock2D: ResnetBlock2D,
    FastTransformer2DModel: Transformer2DModel,
    FastUpsample2D: Upsample2D,
}


def without_twins(network: VideoUNet) -> VideoUNet:
    """A copy whose image model has diffusers' own modules."""
    network = copy.deepcopy(network)
    for module in network.image_model.modules():
        module.__class__ = _OWN.get(type(module), type(module))
    return network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--steps", type=int, default=20, help="solver steps (euler)")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest is printed")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    large = device.type == "cuda"
    torch.manual_seed(0)
    clips, size = (16, 64) if large else (2, 16)
    network = GPU_CASES[2].make() if large else pixel_unet((16, 32), (0, 1), 1, size, 3)
    for p in network.parameters():  # zero-initialised layers would hide the temporal modules
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.02)
    shape = (clips, 3, 16 if large else 4, size, size)
    network = network.eval().to(device)
    other = peer_unet((128, 256, 384, 512), 64, 768) if large else peer_unet((16, 32), size, 32)
    other = other.eval().to(device)
    tokens = torch.randn(clips, 77, 768 if large else 32, device=device)
    name = torch.cuda.get_device_name() if large else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}: {clips} clips of {shape[1:]}, "
          f"euler, {arguments.steps} steps, bf16 autocast")  # fmt: skip

    @torch.inference_mode()
    def draw(denoise: Denoise, **cond: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=large):
            generator = torch.Generator(device).manual_seed(0)
            return sample(
                denoise, ProgressiveNoise(2.0), shape, solver="euler", steps=arguments.steps,
                generator=generator, device=device, **cond,
            )  # fmt: skip

    def row(title: str, network: nn.Module, graphs: bool = False, **cond: Tensor) -> tuple[float, Tensor]:
        denoise: Denoise = EDMDenoiser(network)
        if graphs:
            denoise = CapturedDenoiser(denoise, "the benchmark's graphs")
        first = seconds(lambda: draw(denoise, **cond), device)
        clip = draw(denoise, **cond)
        taken = min(seconds(lambda: draw(denoise, **cond), device) for _ in range(arguments.repeats))
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{title:44}{millions:7.0f} M{taken:9.3f} s   first call {first:6.1f} s", flush=True)
        return taken, clip

    own = without_twins(network)
    kernels, fused.HAS_TRITON = fused.HAS_TRITON, False
    base, expected = row("diffusers' modules, eager", own)
    fused.HAS_TRITON = kernels
    other_time, _ = row("diffusers UNet3DConditionModel, eager", other, encoder_hidden_states=tokens)
    network.to(memory_format=torch.channels_last)
    if large:
        lower_weights(network, torch.bfloat16)  # as generate does
    taken, clip = row("this project, eager", network)
    ours = {"eager": taken}
    if large:
        ours["as a graph"], _ = row("this project, as a CUDA graph", network, graphs=True)
        network.compile_layers()
        ours["compiled"], _ = row("this project, compiled", network)
        ours["compiled, as a graph"], _ = row("the same, as a CUDA graph", network, graphs=True)
        with tuned_convolutions(True):
            ours["and tuned"], clip = row("the same, convolutions tuned", network, graphs=True)
    off = ((clip - expected).norm() / expected.norm()).item()
    for way, taken in ours.items():
        print(
            f"{way}: {base / taken:.2f} times faster than diffusers' modules, {other_time / taken:.1f} than UNet3D"
        )
    print(f"relative difference of the clips {off:.1e}")


if __name__ == "__main__":
    main()
