"""Does a digit stay the same digit over a clip? `python benchmarks/digit_identity.py data/gpu`

Of generated clips of moving digits, and of held-out real ones as many: how many are read as one digit in their first
and their second half, how many frames are read as most of their clip's are, and how even the ground is. Read by the
embedded classifier, which takes no fewer than eight frames: a single frame is given to it eight times.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.evaluation.digits3d import Digits3DNet, load_digits3d, prepare

_AT_ONCE = 64  # clips
_FRAMES = 8  # that the classifier is given at least
_CORNER = 3  # pixels


@dataclass(frozen=True)
class Identity:
    """Shares of clips and of frames, from 0 to 1, and a standard deviation, of 255."""

    halves: float
    frames: float
    ground: float


def identity(net: Digits3DNet, clips: np.ndarray) -> Identity:
    """Of clips (N, T, H, W, 3) uint8 of 16 frames or more.

    Returns the share of clips whose halves are read alike, the share of frames that are read as most of their clip's
    are, and the standard deviation of brightness within the upper left 3x3 pixels, mean over frames and colours.
    """
    half = clips.shape[1] // 2
    if half < _FRAMES:
        raise SystemExit(f"The clips have {clips.shape[1]} frames: each half needs {_FRAMES}.")
    first, second = digits(net, clips[:, :half]), digits(net, clips[:, -half:])
    single = np.repeat(clips.reshape(-1, 1, *clips.shape[2:]), _FRAMES, axis=1)
    frames = digits(net, single).reshape(clips.shape[:2])
    most = np.array([np.bincount(row).argmax() for row in frames])
    corner = clips[:, :, :_CORNER, :_CORNER].astype(float)
    return Identity(
        float((first == second).mean()),
        float((frames == most[:, None]).mean()),
        float(corner.std(axis=(2, 3)).mean()),
    )


@torch.inference_mode()
def digits(net: Digits3DNet, clips: np.ndarray) -> np.ndarray:
    """The digit that is read in each of clips (N, T, H, W, 3) uint8, (N,)."""
    device = next(net.parameters()).device

    def read(part: np.ndarray) -> Tensor:
        return net(prepare(part).to(device))["digit"].argmax(dim=1).cpu()

    parts = [read(clips[first : first + _AT_ONCE]) for first in range(0, len(clips), _AT_ONCE)]
    return torch.cat(parts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=256)
    arguments = parser.parse_args()
    net, _ = load_digits3d()
    net.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    real = ClipStore(arguments.data / "03_primary/clips")
    made = ClipStore(arguments.data / "07_model_output/clips")
    print(f"{'':12}{'clips':>7}{'halves alike':>14}{'frames alike':>14}{'ground':>9}")
    for name, store, split in (("generated", made, None), ("real", real, real.unseen_split)):
        clips = store.videos(split, arguments.clips)
        found = identity(net, clips)
        print(f"{name:12}{len(clips):7}{found.halves:14.3f}{found.frames:14.3f}{found.ground:9.2f}")


if __name__ == "__main__":
    main()
