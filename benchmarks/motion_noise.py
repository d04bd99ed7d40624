"""At which noise is it decided which way a clip goes? `python benchmarks/motion_noise.py data/gpu`

A clip x and the same clip backwards are told apart in noise σε, ε of covariance S over the frames, by the best possible
observer with the sensitivity d' = |x - reversed x| / σ, in the norm of S⁻¹ over frames, summed over pixels: the error
of its guess is the normal tail beyond d'/2, .31 for d' = 1 and .07 for 3. Sampling comes down in σ, so the way is
decided about between those two levels. A model that is to be told the way by its caption has to be trained there:
`sigma.mean` and `sigma.std` are a law of ln σ, and beside the levels stands the share of that law between them.

Clips are taken as ingested, in pixels: what a stage's `clip` or `crop` makes of them, or an autoencoder, is not looked
at, nor are the bounds `sigma.min` and `sigma.max`. Nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.noise import MixedNoise, NoisePrior, ProgressiveNoise, make_prior

PRIORS: dict[str, NoisePrior] = {
    "iid": make_prior("iid"),
    "mixed, 1": MixedNoise(1.0),
    "progressive, 2": ProgressiveNoise(2.0),
}
_DECIDED, _OPEN = 3.0, 1.0  # d'
_HEADER = "           prior   d' = 3 at   d' = 1 at  share of the law between   (sigmas: medians)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=256, help="training clips")
    parser.add_argument("--mean", type=float, default=-1.2, help="of ln sigma in training")
    parser.add_argument("--std", type=float, default=1.2)
    arguments = parser.parse_args()
    store = ClipStore(arguments.data / "03_primary" / "clips")
    items = store.take("train", arguments.clips)
    items = [item for item in items if item.clip.video.shape == items[0].clip.video.shape]
    clips = torch.stack([to_float(torch.from_numpy(item.clip.video.copy())[None])[0] for item in items])
    print(f"{len(clips)} clips of {tuple(clips.shape[1:])}; ln sigma {arguments.mean:g} ± {arguments.std:g}")
    print(_HEADER)
    for name, prior in PRIORS.items():
        open_at = told_apart_at(clips, prior, _OPEN).median().item()
        decided_at = open_at * _OPEN / _DECIDED
        share = share_between(decided_at, open_at, arguments.mean, arguments.std)
        print(f"{name:>16}{decided_at:>12.1f}{open_at:>12.1f}{share:>26.1%}")


def told_apart_at(clips: Tensor, prior: NoisePrior, sensitivity: float) -> Tensor:
    """The σ (N,) at which clips (N, C, T, H, W) and themselves backwards are told apart with this d'."""
    difference = (clips - clips.flip(2)).double().movedim(2, -1)
    covariance = prior.covariance(clips.shape[2]).double()
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), difference.flatten(0, -2).T, upper=False
    )
    squares = whitened.square().sum(0).reshape(len(clips), -1).sum(1)
    return squares.sqrt() / sensitivity


def share_between(low: float, high: float, mean: float, std: float) -> float:
    """The probability that a log-normal σ lies between two levels above 0."""
    law = NormalDist(mean, std)
    return law.cdf(math.log(high)) - law.cdf(math.log(low)) if low > 0 else 0.0


if __name__ == "__main__":
    main()
