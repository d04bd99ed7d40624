"""At which noise is it decided which way a clip goes? `python benchmarks/motion_noise.py data/gpu`

The levels of σ at which the best observer tells clips from themselves backwards with d' = 3 and with d' = 1, medians,
and the share of training laws of ln σ between them: `sigma.mean` and `sigma.std`. `pyoco_pipeline.study.motion` says
what that means; the page of a study of α has it beside the scores. Before a training this says where to train.

Clips are taken as ingested, in pixels: what a stage's `clip` or `crop` makes of them, or an autoencoder, is not looked
at, nor are the bounds `sigma.min` and `sigma.max`. Nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.noise import NoisePrior, make_prior
from pyoco_pipeline.study.motion import DECIDED, OPEN, share_between, told_apart_at

PRIORS = ("iid", "mixed:1", "progressive:2")


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
    arguments = parser.parse_args()
    try:
        priors = {text: prior(text) for text in arguments.priors}
    except ValueError as error:
        parser.error(f"--priors: {error}")
    store = ClipStore(arguments.data / "03_primary" / "clips")
    items = store.take("train", arguments.clips)
    videos = [item.clip.video for item in items if item.clip.video.shape == items[0].clip.video.shape]
    clips = np.stack(videos) / 127.5 - 1
    print(
        f"{len(clips)} clips of {clips.shape[1:]}: medians, and shares of ln sigma ± {arguments.std:g} around"
    )
    heads = ["d' = 3 at", "d' = 1 at", *(f"{mean:g}" for mean in arguments.means)]
    print(f"{'prior':>16}" + "".join(f"{head:>11}" for head in heads))
    for name, chosen in priors.items():
        covariance = chosen.covariance(clips.shape[1]).numpy()
        open_at = float(np.median(told_apart_at(clips, covariance)))
        decided_at = open_at * OPEN / DECIDED
        shares = (share_between(decided_at, open_at, mean, arguments.std) for mean in arguments.means)
        cells = [f"{decided_at:.1f}", f"{open_at:.1f}", *(f"{share:.1%}" for share in shares)]
        print(f"{name:>16}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def prior(text: str) -> NoisePrior:
    """The prior that a text as `mixed:1` names; ValueError for another name or alpha, and where it hides no motion."""
    name, _, alpha = text.partition(":")
    if name == "iid" and alpha:
        raise ValueError(f"{text}: iid has no alpha.")
    named = make_prior(name, float(alpha) if alpha else None)
    if alpha and math.isinf(float(alpha)):
        raise ValueError(f"{text} has one noise for all frames, which hides no motion: give a finite alpha.")
    return named


if __name__ == "__main__":
    main()
