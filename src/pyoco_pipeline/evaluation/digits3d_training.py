"""Training of Digits3D: on freshly rendered clips of training glyphs alone, so that held-out glyphs measure it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyoco_pipeline.data.digits import Scene, of_scene
from pyoco_pipeline.evaluation.digits3d import NETS, Digits3DNet, prepare
from pyoco_pipeline.evaluation.settings import Digits3DTraining

Groups = tuple[tuple[str, ...], ...]
# Columns that are drawn together; the groups are drawn independently, so that no two batches repeat a clip.
COLUMN_GROUPS: dict[Scene, Groups] = {
    "plain": (
        ("glyph", "digit"),
        ("colour",),
        ("direction", "speed", "along"),
        ("across",),
        ("background",),
    ),
    "crossing": (
        ("glyph", "digit"),
        ("glyph2", "digit2"),
        ("colour", "colour2"),
        ("direction", "speed", "along", "direction2", "speed2", "along2"),
        ("meeting",),
        ("miss",),
        ("miss2",),
        ("texture",),
    ),
}


def train_digits3d(
    settings: Digits3DTraining, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train on freshly rendered clips of training glyphs; the weights and a card with held-out accuracy."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = Digits3DNet(settings.scene)
    net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    plan, render, _ = of_scene(settings.scene)
    groups, classes = COLUMN_GROUPS[settings.scene], NETS[settings.scene].classes
    planned = plan(settings.planned_clips, "train", settings.seed)
    columns = {name: planned[name].to_numpy() for group in groups for name in group}
    rng = np.random.default_rng(settings.seed)
    generator = torch.Generator(device).manual_seed(settings.seed)

    start = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1.0:
        rate = _learning_rate_share(progress)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        table = _draw(columns, groups, settings.batch_size, rng)
        video = render(
            table, int(rng.choice(settings.frames)), int(rng.choice(settings.sizes)), device=device
        )
        clips = augment(prepare(video), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(clips)
        losses = {
            name: F.cross_entropy(logits[name].float(), target)
            for name, target in _targets(table, classes, device).items()
        }
        digits = torch.stack([value for name, value in losses.items() if name.startswith("digit")]).sum()
        loss = sum(losses.values(), (settings.digit_weight - 1) * digits)
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
        "scene": settings.scene,
        "classes": {name: list(names) for name, names in classes.items()},
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


def _draw(
    columns: Mapping[str, np.ndarray], groups: Groups, num: int, rng: np.random.Generator
) -> pd.DataFrame:
    drawn: dict[str, np.ndarray] = {}
    for group in groups:
        rows = rng.integers(len(columns[group[0]]), size=num)
        drawn |= {name: columns[name][rows] for name in group}
    return pd.DataFrame(drawn)


def _targets(
    table: pd.DataFrame, classes: Mapping[str, tuple[str, ...]], device: torch.device
) -> dict[str, Tensor]:
    return {
        name: torch.tensor([names.index(value) for value in table[name]], device=device)
        for name, names in classes.items()
    }


@torch.no_grad()
def held_out_accuracy(
    net: Digits3DNet, settings: Digits3DTraining, device: torch.device
) -> dict[str, dict[str, float]]:
    """Accuracy per attribute on clips of held-out glyphs, for each side and frame count ("32px_16frames")."""
    plan, render, _ = of_scene(settings.scene)
    classes = NETS[settings.scene].classes
    table = plan(settings.test_clips, "test", settings.seed)
    accuracy = {}
    for size in settings.test_sizes:
        for frames in settings.frames:
            right = dict.fromkeys(classes, 0)
            for first in range(0, len(table), 64):
                part = table.iloc[first : first + 64]
                logits = net(prepare(render(part, frames, size, device=device)))
                for name, target in _targets(part, classes, device).items():
                    right[name] += int((logits[name].argmax(dim=1) == target).sum())
            accuracy[f"{size}px_{frames}frames"] = {k: round(v / len(table), 4) for k, v in right.items()}
    return accuracy
