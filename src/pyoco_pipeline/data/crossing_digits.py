"""Crossing digits: two moving digits of different colours whose paths meet, before a texture that drifts.

The harder of the embedded data sets. One digit moves left and right, the other up and down, and at one moment of the
first seconds they are at nearly the same place, where one hides the other. As in `digits`, a clip is a pure function of
its row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from pyoco_pipeline.data.digits import ATTRIBUTES as OF_ONE
from pyoco_pipeline.data.digits import (
    COLOURS,
    DIRECTIONS,
    SPEEDS,
    STEPS_PER_SECOND,
    STRAIGHT_STEPS,
    caption,
    colour_values,
    glyph_masks,
    glyph_split,
    glyphs,
    paths,
    planned_row,
)

ATTRIBUTES = (*OF_ONE, *(f"{name}2" for name in OF_ONE))  # of the digit in front, then of the one behind
GLYPH_SHARE = 0.42  # of the frame's side
MEETING = (1.5, 5.5)  # steps from the first frame between which they meet
_MISS = 0.12  # share of the free path by which they may miss each other

_WAVES = 3
_CYCLES = (0.4, 1.6)  # of a wave over the frame's side
_BRIGHTNESS = (25.0, 70.0)
_CONTRAST = 40.0  # of all waves together
_DRIFT = 0.06  # of the frame's side per step, at most, along each axis


def crossing_caption(front: str, behind: str) -> str:
    """Of the captions of both digits."""
    return f"{front}, in front of {behind}"


def plan_crossing(num_clips: int, split: str, seed: int = 0) -> pd.DataFrame:
    """One row per clip to render; row i depends on (seed, split, i) alone."""
    _, labels = glyphs()
    allowed, colours = glyph_split(split), list(COLOURS)
    rows = []
    for i in range(num_clips):
        rng = np.random.default_rng([seed, split == "test", i, 2])
        colour, other_colour = rng.permutation(len(colours))[:2]
        axes = rng.permutation([0, 2])  # of DIRECTIONS: left and right, or up and down
        digits = []
        for axis, number in zip(axes, (colour, other_colour), strict=True):
            direction = DIRECTIONS[int(axis) + int(rng.integers(2))]
            speed = list(SPEEDS)[rng.integers(len(SPEEDS))]
            along = float(rng.uniform(0.0, 1.0 - STRAIGHT_STEPS * SPEEDS[speed]))
            glyph = int(allowed[rng.integers(len(allowed))])
            digits.append(
                {
                    "digit": str(labels[glyph]),
                    "colour": colours[number],
                    "direction": direction,
                    "speed": speed,
                    "glyph": glyph,
                    "along": along if direction in ("right", "down") else 1.0 - along,
                    "miss": float(rng.uniform(-_MISS, _MISS)),
                }
            )
        front, behind = digits
        said = [caption(int(d["digit"]), d["colour"], d["direction"], d["speed"]) for d in digits]
        rows.append(
            {
                **planned_row(split, i, front["glyph"], crossing_caption(*said)),
                **front,
                **{f"{name}2": value for name, value in behind.items()},
                "meeting": float(rng.uniform(*MEETING)),
                "texture": int(rng.integers(2**31)),
            }
        )
    return pd.DataFrame(rows)


def render_crossing(
    table: pd.DataFrame,
    num_frames: int,
    size: int,
    device: str | torch.device = "cpu",
    *,
    fps: float = STEPS_PER_SECOND,
) -> torch.Tensor:
    """Render planned clips: (N, T, size, size, 3) uint8 on `device`, of `fps` frames per second."""
    time = torch.arange(num_frames, device=device) * (STEPS_PER_SECOND / fps)
    clips = _textures(table["texture"], time, size)
    for this, other in (("2", ""), ("", "2")):  # the one in front last
        along = _paths(table, this, time)
        across = (_at_meeting(table, other, time.device) + _column(table, f"miss{this}", device)).clamp(0, 1)
        masks = glyph_masks(
            table[f"glyph{this}"], along, across, table[f"direction{this}"], size, GLYPH_SHARE
        )
        clips = clips + (colour_values(table[f"colour{this}"], device) - clips) * masks
    return clips.round().to(torch.uint8)


def _paths(table: pd.DataFrame, which: str, time: torch.Tensor) -> torch.Tensor:
    return paths(table[f"along{which}"], table[f"direction{which}"], table[f"speed{which}"], time)


def _at_meeting(table: pd.DataFrame, which: str, device: torch.device) -> torch.Tensor:
    """Where on its path a digit is when they meet, (N,): there the other one's path leads across."""
    return _paths(table, which, _column(table, "meeting", device)[:, None])[:, 0]


def _column(table: pd.DataFrame, name: str, device: str | torch.device) -> torch.Tensor:
    return torch.tensor(table[name].to_numpy(dtype=np.float32), device=device)


def _textures(seeds: pd.Series, time: torch.Tensor, size: int) -> torch.Tensor:
    """A few plane waves in one tint, each row's drifting at its own velocity: (N, T, size, size, 3) of 0 to 255."""
    device = time.device
    drawn = [_drawn_texture(int(seed)) for seed in seeds]
    waves, drift, brightness, tint = (
        torch.tensor(np.stack(part), dtype=torch.float32, device=device) for part in zip(*drawn, strict=True)
    )
    place = (torch.arange(size, device=device) + 0.5) / size
    x = place - drift[:, :1, None] * time[:, None]  # (N, T, size)
    y = place - drift[:, 1:, None] * time[:, None]
    total = torch.zeros(len(seeds), len(time), size, size, device=device)
    for fx, fy, phase, amplitude in (waves[:, k, :, None, None, None].unbind(1) for k in range(_WAVES)):
        turns = fx * x[:, :, None, :] + fy * y[:, :, :, None] + phase
        total = total + amplitude * torch.cos(2 * torch.pi * turns)
    total = total + brightness[:, None, None, None]
    return (total[..., None] * tint[:, None, None, None, :]).clamp(0, 255)


@lru_cache(maxsize=1 << 16)  # a classifier in training sees each many times
def _drawn_texture(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Waves (K, 4): cycles along x and y, phase in turns, amplitude; drift (2,); brightness (); tint (3,)."""
    rng = np.random.default_rng(seed)
    angle, cycles = rng.uniform(0, 2 * np.pi, _WAVES), rng.uniform(*_CYCLES, _WAVES)
    amplitude = _CONTRAST * rng.dirichlet(np.full(_WAVES, 4.0))
    waves = np.stack([cycles * np.cos(angle), cycles * np.sin(angle), rng.uniform(size=_WAVES), amplitude], 1)
    drift, brightness = rng.uniform(-_DRIFT, _DRIFT, 2), np.array(rng.uniform(*_BRIGHTNESS))
    return waves, drift, brightness, rng.uniform(0.6, 1.0, 3)
