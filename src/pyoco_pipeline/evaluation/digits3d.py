"""Digits3D: a small factorised 3-D CNN that reads digit, colour, first direction and speed off moving digits.

Its features carry the Fréchet video distance of the embedded data set and its heads the caption accuracy.
Trained on rendered training glyphs alone, so that held-out glyphs measure it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyoco_pipeline.data.digits import (
    COLOURS,
    DIRECTIONS,
    SPEEDS,
    STEPS_PER_SECOND,
    plan_clips,
    render_clips,
)
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.settings import MIN_FRAMES, Digits3DTraining

CLASSES: dict[str, tuple[str, ...]] = {
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

_WIDTHS = (48, 96, 128, 160)  # at 16, 8, 4 and 4 pixels a side
_STRIDES = (1, 2, 2, 1)
# Columns that are drawn together; the groups are drawn independently, so that no two batches repeat a clip.
_COLUMN_GROUPS = (
    ("glyph", "digit"),
    ("colour",),
    ("direction", "speed", "along"),
    ("across",),
    ("background",),
)


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

    def __init__(self) -> None:
        super().__init__()
        shapes = zip((12, *_WIDTHS[:-1]), _WIDTHS, _STRIDES, strict=True)
        self.blocks = nn.Sequential(*(_Block(*shape) for shape in shapes))
        self.penultimate = nn.Linear(2 * _WIDTHS[-1], FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(c)) for name, c in CLASSES.items()})

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 64)."""
        if x.shape[2] < MIN_FRAMES:
            raise ValueError(f"clips have {x.shape[2]} frames, expected at least {MIN_FRAMES}")
        x = F.pixel_unshuffle(x.transpose(1, 2), 2).transpose(1, 2)  # (N, 12, T, 16, 16)
        frames = self.blocks(x).mean(dim=(3, 4))  # (N, C, T)
        # After a bounce both directions have been seen; the first frames alone say which came first.
        pooled = torch.cat([frames.mean(dim=2), frames[:, :, :FIRST_FRAMES].mean(dim=2)], dim=1)
        return F.silu(self.penultimate(pooled))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) of every attribute from features (N, 64)."""
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


def train_digits3d(
    settings: Digits3DTraining, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train on freshly rendered clips of training glyphs; the weights and a card with held-out accuracy."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = Digits3DNet()
    net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    planned = plan_clips(settings.planned_clips, "train", settings.seed)
    columns = {name: planned[name].to_numpy() for group in _COLUMN_GROUPS for name in group}
    rng = np.random.default_rng(settings.seed)
    generator = torch.Generator(device).manual_seed(settings.seed)

    start = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1.0:
        rate = _learning_rate_share(progress)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        table = _draw(columns, settings.batch_size, rng)
        video = render_clips(
            table, int(rng.choice(settings.frames)), int(rng.choice(settings.sizes)), device=device
        )
        clips = augment(prepare(video), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(clips)
        losses = {
            name: F.cross_entropy(logits[name].float(), target)
            for name, target in _targets(table, device).items()
        }
        loss = sum(losses.values(), (settings.digit_weight - 1) * losses["digit"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()

        step += 1
        elapsed = time.monotonic() - start
        progress = max(step / settings.steps, elapsed / (60 * settings.minutes) if settings.minutes else 0.0)
        if step % settings.log_every == 0 or progress >= 1.0:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step}  {elapsed:.0f} s  {progress:.0%}  loss: {parts}", flush=True)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss of Digits3D is {loss.item()} at step {step}")

    seconds = round(time.monotonic() - start, 1)
    net.eval()
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    card = {
        "name": "digits3d",
        "classes": {name: list(names) for name, names in CLASSES.items()},
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": step,
        "seconds": seconds,
        "seed": settings.seed,
        "device": device.type,
        "torch": torch.__version__,
        "training": settings.model_dump(mode="json"),
        "test_clips": settings.test_clips,
        "accuracy": held_out_accuracy(net, settings, device),
    }
    return state, card


def augment(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Small changes that leave the labels as they are, so that imperfect generated clips are read too.

    clips: (N, 3, T, H, W) in [-1, 1]. Per clip: a rotation, scale and shear as if the glyph were written
    otherwise, gain and offset, blur, and pixel noise; a quarter of the clips stay as rendered.
    """
    n, device = len(clips), clips.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, device=device, generator=generator)

    def some(share: float) -> Tensor:
        return (torch.rand(n, device=device, generator=generator) < share).float()

    changed = some(0.75)
    angle, shear = changed * uniform(-0.2, 0.2), changed * uniform(-0.15, 0.15)
    wide, tall = 1 + changed * uniform(-0.1, 0.1), 1 + changed * uniform(-0.1, 0.1)
    zero = torch.zeros_like(angle)
    matrix = torch.stack(
        [
            torch.stack([wide * angle.cos(), shear - tall * angle.sin(), zero], dim=1),
            torch.stack([wide * angle.sin(), tall * angle.cos(), zero], dim=1),
        ],
        dim=1,
    )
    flat = clips.flatten(1, 2)  # (N, 3 T, H, W): one map for all frames of a clip
    grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    flat = torch.lerp(flat, blurred, (changed * some(0.5) * uniform(0.0, 1.0))[:, None, None, None])

    clips = flat.unflatten(1, clips.shape[1:3])
    gain, offset = 1 + changed * uniform(-0.12, 0.12), changed * uniform(-0.08, 0.08)
    strength = changed * some(0.5) * uniform(0.0, 0.2)
    noise = torch.randn(clips.shape, device=device, generator=generator)
    clips = clips * _per_clip(gain) + _per_clip(offset) + noise * _per_clip(strength)
    return clips.clamp(-1, 1)


def _per_clip(value: Tensor) -> Tensor:
    return value[:, None, None, None, None]


def _learning_rate_share(progress: float, warmup: float = 0.03) -> float:
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _draw(columns: Mapping[str, np.ndarray], num: int, rng: np.random.Generator) -> pd.DataFrame:
    drawn: dict[str, np.ndarray] = {}
    for group in _COLUMN_GROUPS:
        rows = rng.integers(len(columns[group[0]]), size=num)
        drawn |= {name: columns[name][rows] for name in group}
    return pd.DataFrame(drawn)


def _targets(table: pd.DataFrame, device: torch.device) -> dict[str, Tensor]:
    return {
        name: torch.tensor([names.index(value) for value in table[name]], device=device)
        for name, names in CLASSES.items()
    }


@torch.no_grad()
def held_out_accuracy(
    net: Digits3DNet,
    settings: Digits3DTraining,
    device: torch.device,
    *,
    sizes: tuple[int, ...] = (16, 32, 64),
) -> dict[str, dict[str, float]]:
    """Accuracy per attribute on clips of held-out glyphs, for each side and frame count ("32px_16frames")."""
    table = plan_clips(settings.test_clips, "test", settings.seed)
    accuracy = {}
    for size in sizes:
        for frames in settings.frames:
            right = dict.fromkeys(CLASSES, 0)
            for first in range(0, len(table), 64):
                part = table.iloc[first : first + 64]
                logits = net(prepare(render_clips(part, frames, size, device=device)))
                for name, target in _targets(part, device).items():
                    right[name] += int((logits[name].argmax(dim=1) == target).sum())
            accuracy[f"{size}px_{frames}frames"] = {k: round(v / len(table), 4) for k, v in right.items()}
    return accuracy


def save_digits3d(folder: str | Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Write the weights and their card into `folder`; returns the sha256 of the weights file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save(dict(state))
    sha256 = hashlib.sha256(weights).hexdigest()
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / CARD_FILE).write_text(json.dumps({**card, "sha256": sha256}, indent=2) + "\n")
    return sha256


def load_digits3d(folder: str | Path | None = None) -> tuple[Digits3DNet, str]:
    """The network in eval mode and the sha256 of its weights; by default the one in the package.

    Raises UserError when a file is missing or the weights are not those that the card names.
    """
    folder = ASSETS if folder is None else Path(folder)
    weights_path, card_path = folder / WEIGHTS_FILE, folder / CARD_FILE
    for path in (weights_path, card_path):
        if not path.is_file():
            raise UserError(
                f"{path} is missing. Train it: python -m pyoco_pipeline.evaluation.digits3d --out {folder}"
            )
    weights = weights_path.read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    expected = json.loads(card_path.read_text()).get("sha256")
    if sha256 != expected:
        raise UserError(
            f"{weights_path} has sha256 {sha256}, but {card_path.name} names {expected}. "
            "Restore both files from one source."
        )
    net = Digits3DNet()
    net.load_state_dict(safetensors.torch.load(weights))
    return net.eval().requires_grad_(False), sha256


def main() -> None:
    """Train Digits3D and write its weights and card."""
    defaults = Digits3DTraining()
    parser = argparse.ArgumentParser(
        prog="python -m pyoco_pipeline.evaluation.digits3d", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the card")
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
