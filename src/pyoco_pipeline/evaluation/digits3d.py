"""Digits3D: a small factorised 3-D CNN that reads digit, colour, first direction and speed off moving digits.

Its features carry the Fréchet video distance of the embedded data set and its heads the caption accuracy. One for plain
scenes is in the package; one for crossing scenes reads both digits, and is trained by `digits3d_training`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyoco_pipeline.data.crossing_digits import ATTRIBUTES as CROSSING
from pyoco_pipeline.data.digits import COLOURS, DIRECTIONS, SPEEDS, STEPS_PER_SECOND, Scene
from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.evaluation.settings import MIN_FRAMES, Digits3DTraining

CLASSES: dict[str, tuple[str, ...]] = {  # of a plain scene's digit
    "digit": tuple(str(d) for d in range(10)),
    "colour": tuple(COLOURS),
    "direction": DIRECTIONS,
    "speed": tuple(SPEEDS),
}
SIDE = 32  # pixels that every clip is resized to
FEATURES = 64
FIRST_FRAMES = 4  # digits move straight for this long, so the first direction is seen here
WEIGHTS_FILE = "digits3d.safetensors"
CARD_FILE = "digits3d.json"
ASSETS = Path(__file__).parents[1] / "assets" / "digits3d"

_STRIDES = (1, 2, 2, 1)


@dataclass(frozen=True)
class SceneNet:
    """What Digits3D reads in a scene. widths: channels at 16, 8, 4 and 4 pixels a side; features: of a clip."""

    classes: dict[str, tuple[str, ...]]
    widths: tuple[int, int, int, int]
    features: int


def classes_of(attribute: str) -> tuple[str, ...]:
    """The values of an attribute, of the second digit too."""
    return CLASSES[attribute.removesuffix("2")]


NETS: dict[Scene, SceneNet] = {
    "plain": SceneNet(CLASSES, (48, 96, 128, 160), FEATURES),
    "crossing": SceneNet({name: classes_of(name) for name in CROSSING}, (64, 128, 192, 256), 2 * FEATURES),
}


class _Block(nn.Module):
    """A spatial 3x3 convolution, then a residual temporal convolution over 3 frames."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(c_out)
        self.temporal = nn.Conv2d(c_out, c_out, (3, 1), padding=(1, 0), bias=False)
        self.temporal_norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, _, _ = x.shape
        x = F.relu(self.spatial_norm(self.spatial(x.transpose(1, 2).flatten(0, 1))))  # (N T, C, H, W)
        _, c, h, w = x.shape
        # A (3, 1) convolution over (T, H W): a view where a Conv3d would need a slower kernel.
        x = x.unflatten(0, (n, t)).transpose(1, 2).reshape(n, c, t, h * w)
        x = F.relu(x + self.temporal_norm(self.temporal(x)))
        return x.unflatten(3, (h, w))


class Digits3DNet(nn.Module):
    """Reads clips (N, 3, T, 32, 32) in [-1, 1], any T of at least 4, into features and attribute logits."""

    def __init__(self, scene: Scene = "plain") -> None:
        super().__init__()
        self.scene, net = scene, NETS[scene]
        self.dim = net.features
        shapes = zip((12, *net.widths[:-1]), net.widths, _STRIDES, strict=True)
        self.blocks = nn.Sequential(*(_Block(*shape) for shape in shapes))
        self.penultimate = nn.Linear(2 * net.widths[-1], net.features)
        self.heads = nn.ModuleDict({name: nn.Linear(net.features, len(c)) for name, c in net.classes.items()})

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, dim)."""
        if x.shape[2] < MIN_FRAMES:
            raise ValueError(f"clips have {x.shape[2]} frames, expected at least {MIN_FRAMES}")
        x = F.pixel_unshuffle(x.transpose(1, 2), 2).transpose(1, 2)  # (N, 12, T, 16, 16)
        frames = self.blocks(x).mean(dim=(3, 4))  # (N, C, T)
        # After a bounce both directions have been seen; the first frames alone say which came first.
        pooled = torch.cat([frames.mean(dim=2), frames[:, :, :FIRST_FRAMES].mean(dim=2)], dim=1)
        return F.silu(self.penultimate(pooled))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) of every attribute from features (N, dim)."""
        return {name: head(features) for name, head in self.heads.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.classify(self.features(x))


def frames_per_step(fps: float) -> int:
    """How many frames a step of moving digits has: Digits3D reads clips of one, as it was trained."""
    return max(1, round(fps / STEPS_PER_SECOND))


def prepare(video: Tensor | np.ndarray) -> Tensor:
    """uint8 (N, T, H, W, 3) to (N, 3, T, 32, 32) float32 in [-1, 1], resized bilinearly with antialiasing."""
    frames = torch.as_tensor(video)
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"video is {frames.dtype} {tuple(frames.shape)}, expected uint8 (N, T, H, W, 3)")
    n, t, h, w, _ = frames.shape
    images = frames.flatten(0, 1).permute(0, 3, 1, 2).float()  # (N T, 3, H, W)
    if (h, w) != (SIDE, SIDE):
        images = F.interpolate(
            images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
    return (images / 127.5 - 1.0).unflatten(0, (n, t)).transpose(1, 2)


def save_digits3d(folder: str | Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Write the weights and their card into `folder`; returns the sha256 of the weights file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save(dict(state))
    sha256 = hashlib.sha256(weights).hexdigest()
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / CARD_FILE).write_text(json.dumps({**card, "sha256": sha256}, indent=2) + "\n")
    return sha256


def read_card(folder: str | Path | None = None) -> dict[str, Any]:
    """The card of the weights in `folder`, by default of those in the package; UserError where it can't be read."""
    path = _found(ASSETS if folder is None else Path(folder), CARD_FILE)
    try:
        card = json.loads(path.read_text())
        scene = card.setdefault("scene", "plain")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no card of Digits3D: restore it with its weights from one source."
        ) from error
    if not isinstance(scene, str) or scene not in NETS:
        raise UserError(
            f"{path} says scene={scene}, expected {' or '.join(NETS)}: train it with this version."
        )
    return card


def load_digits3d(folder: str | Path | None = None) -> tuple[Digits3DNet, str]:
    """The network in eval mode and the sha256 of its weights; by default the one in the package.

    Raises UserError when a file is missing or can't be read, or the weights are not those that the card names.
    """
    folder = ASSETS if folder is None else Path(folder)
    weights_path, card = _found(folder, WEIGHTS_FILE), read_card(folder)
    weights = weights_path.read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != card.get("sha256"):
        raise UserError(
            f"{weights_path} has sha256 {sha256}, but {CARD_FILE} names {card.get('sha256')}. "
            "Restore both files from one source."
        )
    net = Digits3DNet(card["scene"])
    try:
        net.load_state_dict(safetensors.torch.load(weights))
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{weights_path} holds no weights of Digits3D ({in_one_line(error)}): restore it with its card from one "
            "source."
        ) from error
    return net.eval().requires_grad_(False), sha256


def _found(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(
            f"{folder / name} is missing. Train it: kedro run --pipelines digits_classifier, with the same --env, or "
            f"python -m pyoco_pipeline.evaluation.digits3d --out {folder}"
        )
    return folder / name


def main() -> None:
    """Train Digits3D and write its weights and card."""
    from pyoco_pipeline.evaluation.digits3d_training import train_digits3d

    defaults = Digits3DTraining()
    parser = argparse.ArgumentParser(
        prog="python -m pyoco_pipeline.evaluation.digits3d", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the card")
    parser.add_argument("--scene", choices=list(NETS), default=defaults.scene)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=None, help="stop training after this long")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--test-clips", type=int, default=defaults.test_clips)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args())
    out, device = options.pop("out"), options.pop("device")
    state, card = train_digits3d(Digits3DTraining(**options), device)
    sha256 = save_digits3d(out, state, card)
    for condition, values in card["accuracy"].items():
        print(condition, values)
    print(
        f"{card['parameters']} parameters, {card['steps']} steps, {card['seconds']} s, sha256 {sha256}: {out}"
    )


if __name__ == "__main__":
    main()
