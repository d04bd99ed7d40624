"""Moving digits: scikit-learn's real handwritten digits, coloured, in motion, captioned.

Everything about a clip is a row of a table; rendering is a pure function of the row, so that a clip is the same
whatever else is rendered. Glyphs are split into train and test before anything is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.errors import UserError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "orange": (255, 140, 0),
    "yellow": (245, 230, 50),
    "green": (50, 200, 70),
    "blue": (60, 110, 255),
    "purple": (175, 60, 225),
    "white": (245, 245, 245),
}
DIRECTIONS = ("left", "right", "up", "down")  # of the first frames; the digit bounces at the borders
SPEEDS = {"slowly": 0.08, "quickly": 0.18}  # share of the free path per step
STEPS_PER_SECOND = 8.0  # at this frame rate a frame is a step
Scene = Literal["plain", "crossing"]
KINDS: dict[Scene, str] = {"plain": "moving_digits", "crossing": "crossing_digits"}  # as manifests name them
ATTRIBUTES = ("digit", "colour", "direction", "speed")

GLYPH_SHARE = 0.62  # of the frame's side that the glyph's box takes
_FINE = 32  # glyphs are resampled from this many points a side
_TEST_EVERY = 5  # one glyph in five is kept for testing
_RENDERED_AT_ONCE = 32  # larger is slower: it no longer fits the cache
STRAIGHT_STEPS = 4  # no bounce before this step, so that the first direction can be seen


@lru_cache(maxsize=1)
def glyphs() -> tuple[torch.Tensor, np.ndarray]:
    """The 1,797 glyphs as ink in [0, 1], (N, 32, 32), and their labels (N,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    # Padding keeps strokes that touch the 8x8 border from being cut off by the resampling.
    ink = F.interpolate(F.pad(ink, (1, 1, 1, 1)), size=(_FINE, _FINE), mode="bicubic", align_corners=False)
    return torch.sigmoid((ink[:, 0] - 0.45) * 10.0), digits.target.astype(int)


def glyph_split(split: str) -> np.ndarray:
    """Indices of the glyphs that may appear in clips of `split` ("train" or "test")."""
    index = np.arange(len(glyphs()[1]))
    is_test = index % _TEST_EVERY == _TEST_EVERY - 1
    return index[is_test if split == "test" else ~is_test]


def caption(digit: int, colour: str, direction: str, speed: str) -> str:
    """The caption of a clip, e.g. "an orange digit 7 moving slowly left and right, first right"."""
    article = "an" if colour[0] in "aeiou" else "a"
    axis = "left and right" if direction in ("left", "right") else "up and down"
    return f"{article} {colour} digit {digit} moving {speed} {axis}, first {direction}"


def planned_row(split: str, number: int, glyph: int, text: str) -> dict[str, Any]:
    """What a planned clip is to ingest, whatever is seen in it: the clip of a path, whole, and its caption `text`."""
    return {
        "row_id": f"{split}-{number:06d}",
        "path": f"glyph-{glyph:04d}",  # so that the leakage rule watches over the glyphs
        "caption": text,
        "start": np.nan,
        "end": np.nan,
        "split": split,
        "path_problem": "",
    }


def plan_clips(num_clips: int, split: str, seed: int = 0) -> pd.DataFrame:
    """One row per clip to render; row i depends on (seed, split, i) alone."""
    _, labels = glyphs()
    allowed, colours, speeds = glyph_split(split), list(COLOURS), list(SPEEDS)
    rows = []
    for i in range(num_clips):
        rng = np.random.default_rng([seed, split == "test", i])
        glyph = int(allowed[rng.integers(len(allowed))])
        colour = colours[rng.integers(len(colours))]
        direction = DIRECTIONS[rng.integers(len(DIRECTIONS))]
        speed = speeds[rng.integers(len(speeds))]
        travel = STRAIGHT_STEPS * SPEEDS[speed]
        along = float(rng.uniform(0.0, 1.0 - travel))
        rows.append(
            planned_row(split, i, glyph, caption(int(labels[glyph]), colour, direction, speed))
            | {
                "digit": str(labels[glyph]),
                "colour": colour,
                "direction": direction,
                "speed": speed,
                "glyph": glyph,
                # Free-path coordinates in [0, 1]; moving left or up starts from the far end.
                "along": along if direction in ("right", "down") else 1.0 - along,
                "across": float(rng.uniform()),
                "background": float(rng.uniform(0.0, 40.0)),
            }
        )
    return pd.DataFrame(rows)


def render_clips(
    table: pd.DataFrame,
    num_frames: int,
    size: int,
    device: str | torch.device = "cpu",
    *,
    fps: float = STEPS_PER_SECOND,
) -> torch.Tensor:
    """Render planned clips: (N, T, size, size, 3) uint8 on `device`, of `fps` frames per second."""

    def column(name: str) -> torch.Tensor:
        return torch.tensor(table[name].to_numpy(dtype=np.float32), device=device)

    time = torch.arange(num_frames, device=device) * (STEPS_PER_SECOND / fps)
    along = paths(table["along"], table["direction"], table["speed"], time)
    mask = glyph_masks(table["glyph"], along, column("across"), table["direction"], size)
    colour = colour_values(table["colour"], device)
    background = column("background")[:, None, None, None, None]
    return (background + (colour - background) * mask).round().to(torch.uint8)


def paths(along: pd.Series, direction: pd.Series, speed: pd.Series, time: torch.Tensor) -> torch.Tensor:
    """Places in [0, 1] of the free paths of N digits, (N, T); time: (T,) or (N, T), in steps from the first frame."""
    device = time.device
    start = torch.tensor(along.to_numpy(dtype=np.float32), device=device)
    rate = torch.tensor([SPEEDS[s] for s in speed], device=device)
    sign = torch.tensor(np.where(np.isin(direction.to_numpy(), ["right", "down"]), 1.0, -1.0), device=device)
    path = torch.remainder(start[:, None] + (sign * rate)[:, None] * time, 2.0)
    return torch.where(path > 1.0, 2.0 - path, path).float()  # a triangle wave bounces at both ends


def glyph_masks(
    glyph: pd.Series,
    along: torch.Tensor,
    across: torch.Tensor,
    direction: pd.Series,
    size: int,
    share: float = GLYPH_SHARE,
) -> torch.Tensor:
    """How much of each pixel is ink, (N, T, size, size, 1) in [0, 1].

    along, across: places (N, T) and (N,) in [0, 1] of the free paths along `direction` and across it; share: of the
    frame's side that the glyph's box takes.
    """
    device = along.device
    ink = glyphs()[0][torch.tensor(glyph.to_numpy(dtype=int))].to(device)  # (N, 32, 32)
    horizontal = torch.tensor(np.isin(direction.to_numpy(), ["left", "right"]), device=device)[:, None]
    across = across[:, None].expand_as(along)
    x = torch.where(horizontal, along, across)
    y = torch.where(horizontal, across, along)
    mask = _resample(y, size, share) @ ink[:, None] @ _resample(x, size, share).transpose(-1, -2)
    return mask.clamp(0, 1)[..., None]


def colour_values(names: pd.Series, device: str | torch.device) -> torch.Tensor:
    """(N, 1, 1, 1, 3) of 0 to 255."""
    values = torch.tensor([COLOURS[c] for c in names], dtype=torch.float32, device=device)
    return values[:, None, None, None, :]


def _resample(position: torch.Tensor, size: int, share: float) -> torch.Tensor:
    """Rows of a separable tent filter that puts the glyph at `position` in [0, 1] of its free path.

    position: (N, T). Returns (N, T, size, 32), each row a weighted mean of glyph points.
    """
    box = share * size
    step = box / _FINE  # frame pixels per glyph point
    points = position[..., None] * (size - box) + (torch.arange(_FINE, device=position.device) + 0.5) * step
    pixels = torch.arange(size, device=position.device) + 0.5
    reach = max(1.0, step)  # a tent narrower than the glyph's own grid would leave gaps
    tent = (reach - (pixels[:, None] - points[..., None, :]).abs()).clamp_min(0.0)
    return tent * (step / reach**2)


def of_scene(
    scene: Scene,
) -> tuple[Callable[..., pd.DataFrame], Callable[..., torch.Tensor], tuple[str, ...]]:
    """How clips of a scene are planned and rendered, as `plan_clips` and `render_clips`, and their attributes."""
    if scene == "plain":
        return plan_clips, render_clips, ATTRIBUTES
    from pyoco_pipeline.data import crossing_digits

    return crossing_digits.plan_crossing, crossing_digits.render_crossing, crossing_digits.ATTRIBUTES


class MovingDigitsSource:
    """The embedded data set as a source of captioned clips.

    num_train, num_test: clips per split; size: side in pixels; fps: frames per second, which does not change how fast
    digits move; scene: plain, or crossing, which is `crossing_digits`. Row i of a split is the same for any number of
    clips.
    """

    def __init__(
        self,
        *,
        num_train: int,
        num_test: int,
        num_frames: int,
        height: int,
        width: int,
        fps: float,
        seed: int,
        scene: Scene = "plain",
    ) -> None:
        if height != width:
            raise UserError(
                f"height={height} and width={width} differ, but moving digits are square: set both to one value."
            )
        self.num_train, self.num_test, self.seed = num_train, num_test, seed
        self.num_frames, self.size, self.fps = num_frames, height, fps
        self.scene, self.kind = scene, KINDS[scene]

    def captions(self) -> pd.DataFrame:
        """All planned clips, train before test, with their captions and attributes."""
        plan, _, _ = of_scene(self.scene)
        parts = [plan(self.num_train, "train", self.seed), plan(self.num_test, "test", self.seed)]
        return pd.concat(parts, ignore_index=True)

    def read(self, rows: Sequence[Mapping[Any, Any]]) -> Iterator[list[Clip]]:
        """The one clip of each planned row."""
        _, render, attributes = of_scene(self.scene)
        for first in range(0, len(rows), _RENDERED_AT_ONCE):
            chunk = rows[first : first + _RENDERED_AT_ONCE]
            videos = render(pd.DataFrame(chunk), self.num_frames, self.size, fps=self.fps).numpy()
            for row, video in zip(chunk, videos, strict=True):
                yield [Clip(str(row["row_id"]), video, {name: str(row[name]) for name in attributes})]
