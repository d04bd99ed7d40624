"""Below which noise does the image model denoise better than the stage? `python benchmarks/denoising_error.py data`

The root mean square error of held-out clips (range [-1, 1]), in the noise of the stage's prior: denoised by the base
stage, and by the image model that it was inflated from, every frame by itself. Fine-tuning at high noise costs a
network what it knew of low noise: below the level at which the two cross, the image model can be an expert
(docs/sampling.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.generation import load_denoiser
from pyoco_pipeline.models import load_stage_info
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.noise import NoisePrior, prior_from_config

_AT_ONCE = 16  # clips


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=48, help="held-out clips")
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = arguments.data / "06_models"
    stage, image = (load_denoiser(models / name, device) for name in ("base", "image"))
    info = load_stage_info(models / "base")
    if info.autoencoder_sha256 is not None:
        raise SystemExit(f"{models / 'base'} is a model of latents, and clips are taken as pixels here.")
    if info.condition is not None:
        raise SystemExit(f"{models / 'base'} takes more than text, which an image model is not given.")
    of_image = load_stage_info(models / "image")
    if (of_image.shape[1:], of_image.text_encoder_sha256) != (info.shape[1:], info.text_encoder_sha256):
        raise SystemExit(f"{models / 'image'} is of another size or text encoder than {models / 'base'}.")
    limits = [(denoise.sigma_min, denoise.sigma_max) for denoise in (stage, image)]
    low, high = max(limit[0] for limit in limits), min(limit[1] for limit in limits)
    prior = prior_from_config(info.noise)
    store = ClipStore(arguments.data / "03_primary" / "clips")
    items = [item for item in store.take(store.unseen_split) if item.clip.video.shape[:3] == info.shape]
    items = items[: arguments.clips]
    if not items:
        raise SystemExit(f"{store.folder} has no held-out clips of {info.shape}, which the stage makes.")
    embeddings = TextEmbeddings(arguments.data / "04_feature" / "text_embeddings")
    clips = torch.stack([to_float(torch.from_numpy(item.clip.video.copy())[None])[0] for item in items])
    cond = dict(embeddings.conditioning(embeddings.rows([item.caption for item in items]), device))
    if read_json(models / "base" / "temporal.json").get("fps"):
        cond["fps"] = torch.full((len(clips),), store.manifest.fps, device=device)
    clips = clips.to(device)
    print(f"{len(clips)} clips of {tuple(clips.shape[1:])}")
    print(f"{'sigma':>8}{'stage':>10}{'image model':>14}{'ratio':>8}")
    for sigma in arguments.sigmas:
        if not low <= sigma <= high:
            print(f"{sigma:8g}  the models know noise levels from {low:g} to {high:g}")
            continue
        ours, frames = (rms_error(denoise, clips, cond, prior, sigma) for denoise in (stage, image))
        print(f"{sigma:8g}{ours:10.4f}{frames:14.4f}{ours / frames:8.2f}", flush=True)


@torch.inference_mode()
def rms_error(
    denoise: Denoise, clips: Tensor, cond: dict[str, Tensor], prior: NoisePrior, sigma: float
) -> float:
    """Of clips (N, C, T, H, W), each under the same noise at every call; cond: conditions, batch-first."""
    total = 0.0
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(clips), _AT_ONCE):
        x = clips[first : first + _AT_ONCE]
        noise = prior.sample(tuple(x.shape), generator=generator).to(x.device)
        chosen = {name: value[first : first + _AT_ONCE] for name, value in cond.items()}
        level = torch.full((len(x),), sigma, device=x.device)
        total += float((denoise(x + sigma * noise, level, **chosen) - x).double().square().sum())
    return (total / clips.numel()) ** 0.5


if __name__ == "__main__":
    main()
