"""Does a model of moving digits use what a caption says? `python benchmarks/caption_sensitivity.py data/gpu`

By how much the denoising error of held-out clips grows, at a noise level, when the caption names the opposite way
first, or the other axis, with the same noise: in percent of the error with the true caption, with its standard error
over clips. It tells sooner than samples do whether a word is being learnt; 0 is a model that does not hear it. Clips
whose changed captions have no embedding are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.generation import load_denoiser
from pyoco_pipeline.models import load_stage_info
from pyoco_pipeline.noise import prior_from_config

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_OTHER_AXIS = {"left": "up", "right": "down", "up": "left", "down": "right"}
_AT_ONCE = 16  # clips


def opposite_way(caption: str) -> str:
    words, way = caption.rsplit(" ", 1)
    return f"{words} {_OPPOSITE[way]}"


def other_axis(caption: str) -> str:
    return " ".join(
        _OTHER_AXIS.get(word.strip(","), word) + "," * word.endswith(",") * (word.strip(",") in _OTHER_AXIS)
        for word in caption.split(" ")
    )


CHANGES: dict[str, Callable[[str], str]] = {"opposite way": opposite_way, "other axis": other_axis}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=128, help="held-out clips")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0, 16.0])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = arguments.data / "06_models" / "base"
    denoise, info = load_denoiser(model, device), load_stage_info(model)
    prior = prior_from_config(info.noise)
    store, embeddings = (
        ClipStore(arguments.data / "03_primary" / "clips"),
        TextEmbeddings(arguments.data / "04_feature" / "text_embeddings"),
    )

    def is_known(caption: str) -> bool:
        try:
            embeddings.rows([caption])
        except UserError:
            return False
        return True

    found = store.take(store.unseen_split)
    items = [i for i in found if all(is_known(change(i.caption)) for change in CHANGES.values())]
    items = items[: arguments.clips]
    captions = [item.caption for item in items]
    clips = torch.cat([to_float(torch.from_numpy(item.clip.video.copy())[None]) for item in items]).to(device)
    generator = torch.Generator(device).manual_seed(0)

    @torch.inference_mode()
    def errors(given: list[str], noise: Tensor, sigma: float) -> Tensor:
        parts = []
        for first in range(0, len(given), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            cond = embeddings.conditioning(embeddings.rows(given[part]), device)
            x = clips[part]
            denoised = denoise(x + sigma * noise[part], torch.full((len(x),), sigma, device=device), **cond)
            parts.append((denoised - x).square().flatten(1).mean(1))
        return torch.cat(parts)

    print(f"{len(captions)} clips of {tuple(clips.shape[1:])}")
    print(f"{'sigma':>8}" + "".join(f"{name:>22}" for name in CHANGES))
    for sigma in arguments.sigmas:
        noise = prior.sample(clips.shape, generator=generator, device=device)
        true = errors(captions, noise, sigma)
        cells = []
        for change in CHANGES.values():
            grown = 100 * (errors([change(c) for c in captions], noise, sigma) - true) / true.mean()
            cells.append(f"{grown.mean():+.2f}% ± {grown.std() / len(grown) ** 0.5:.2f}")
        print(f"{sigma:8g}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
