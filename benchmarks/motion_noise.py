"""At which noise is it decided which way a clip goes? `python benchmarks/motion_noise.py data/gpu`

A clip x and the same clip backwards are told apart in noise σε, ε of covariance S over the frames, by the best possible
observer with the sensitivity d' = |x - reversed x| / σ, in the norm of S⁻¹ over frames, summed over pixels: the error
of its guess is the normal tail beyond d'/2, .31 for d' = 1 and .07 for 3. Sampling comes down in σ, so the way is
decided about between those two levels. A model that is to be told the way by its caption has to be trained there:
`sigma.mean` and `sigma.std` are a law of ln σ, and beside the levels stands the share of such laws between them.

Clips are taken as ingested, in pixels: what a stage's `clip` or `crop` makes of them, or an autoencoder, is not looked
at, nor are the bounds `sigma.min` and `sigma.max`. Nothing is trained.

With `--study`, a study of these clips that `kedro run --pipelines ablate_alpha` has made: do those priors score best
after equal training of which most lies between the two levels? Per P_mean, Spearman's rank correlation over the priors.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.noise import NoisePrior, make_prior, prior_from_config

PRIORS = ("iid", "mixed:1", "progressive:2")
_DECIDED, _OPEN = 3.0, 1.0  # d'
_DIRECTION = "caption_accuracy_direction"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=256, help="training clips")
    parser.add_argument("--priors", nargs="+", default=PRIORS, help="as iid, mixed:1 or progressive:2")
    parser.add_argument(
        "--means", type=float, nargs="+", default=[-1.2, -0.4, 0.4, 1.2, 2.0], help="of ln sigma"
    )
    parser.add_argument("--std", type=float, default=1.2, help="of ln sigma")
    parser.add_argument("--study", action="store_true", help="compare with the study of alpha in this folder")
    arguments = parser.parse_args()
    try:
        priors = {text: prior(text) for text in arguments.priors}
    except ValueError as error:
        parser.error(f"--priors: {error}")
    store = ClipStore(arguments.data / "03_primary" / "clips")
    items = store.take("train", arguments.clips)
    items = [item for item in items if item.clip.video.shape == items[0].clip.video.shape]
    clips = torch.stack([to_float(torch.from_numpy(item.clip.video.copy())[None])[0] for item in items])
    if arguments.study:
        path = arguments.data / "08_reporting" / "alpha_study.json"
        if not path.is_file():
            parser.error(f"--study: {path} is not there: run `kedro run --pipelines ablate_alpha` first.")
        study = json.loads(path.read_text(encoding="utf-8"))
        print("\n".join(compare_with(study, clips)))
        return
    print(
        f"{len(clips)} clips of {tuple(clips.shape[1:])}: medians, and shares of ln sigma ± {arguments.std:g} around"
    )
    heads = ["d' = 3 at", "d' = 1 at", *(f"{mean:g}" for mean in arguments.means)]
    print(f"{'prior':>16}" + "".join(f"{head:>11}" for head in heads))
    for name, chosen in priors.items():
        open_at = told_apart_at(clips, chosen, _OPEN).median().item()
        decided_at = open_at * _OPEN / _DECIDED
        shares = (share_between(decided_at, open_at, mean, arguments.std) for mean in arguments.means)
        cells = [f"{decided_at:.1f}", f"{open_at:.1f}", *(f"{share:.1%}" for share in shares)]
        print(f"{name:>16}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def compare_with(study: Mapping[str, Any], clips: Tensor) -> list[str]:
    """Lines: per law of sigma, how the share of training between the levels orders the priors of a study."""
    metrics = [_DIRECTION, study["metric"]]
    cells = [
        cell
        for cell in study["cells"]
        if cell["init"] == "finetune" and cell["num_clips"] is None and cell["alpha"] != "inf"
    ]
    step = max(cell["step"] for cell in cells)
    scores = {
        (cell["sigma_mean"], cell["sigma_std"], cell["prior"], cell["seed"]): found["values"]
        for cell in cells
        for found in cell["evaluations"]
        if found["step"] == step
    }
    opened = {
        cell["prior"]: told_apart_at(clips, prior_from_config(cell["noise"]), _OPEN).median().item()
        for cell in {cell["prior"]: cell for cell in cells}.values()
    }
    lines = [
        f"step {step}: rank correlation of scores with the share of training between d' = 3 and 1; by seed"
    ]
    for mean, std in sorted({key[:2] for key in scores}):
        seeds = sorted({seed for *law, _, seed in scores if law == [mean, std]})
        names = [name for name in opened if all((mean, std, name, seed) in scores for seed in seeds)]
        shares = [share_between(opened[name] * _OPEN / _DECIDED, opened[name], mean, std) for name in names]
        for metric in metrics:
            rows = [[scores[mean, std, name, seed].get(metric) for name in names] for seed in seeds]
            if len(names) < 3 or any(value is None for row in rows for value in row):
                continue
            together = [fmean(column) for column in zip(*rows, strict=True)]
            by_seed = ", ".join(f"{rank_correlation(shares, row):.2f}" for row in rows)
            law = f"ln sigma {mean:g} ± {std:g}, {len(names)} priors"
            lines.append(f"{law}: {metric} {rank_correlation(shares, together):.2f} ({by_seed})")
    return lines


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's."""
    return float(spearmanr(a, b)[0])


def prior(text: str) -> NoisePrior:
    """The prior that a text as `mixed:1` names; ValueError for another name or alpha, and where it hides no motion."""
    name, _, alpha = text.partition(":")
    if name == "iid" and alpha:
        raise ValueError(f"{text}: iid has no alpha.")
    named = make_prior(name, float(alpha) if alpha else None)
    if alpha and math.isinf(float(alpha)):
        raise ValueError(f"{text} has one noise for all frames, which hides no motion: give a finite alpha.")
    return named


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
