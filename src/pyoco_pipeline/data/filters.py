"""Scores by which clips are kept or left out: motion, brightness, letterbox, near duplicates, and fit to the caption.

Scores and hashes are made of whole numbers, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pyoco_pipeline.data.duplicates import duplicates
from pyoco_pipeline.errors import UserError, in_one_line

__all__ = [
    "ClipScorer", "FilterOptions", "duplicates", "grid_hash", "perceptual_hash", "picture_grid", "rejection", "score",
]  # fmt: skip

DARK = 24  # grey level up to which a border is black; codecs blur a bar by some levels

_LUMA = np.array([77, 150, 29], np.uint16)  # Rec. 601 in 256ths
_GRID = 32  # rows and columns that a picture is averaged to before it is hashed
_DEAD_ZONE = 0.05  # grey levels: the noise of a static or blank clip stays below


@dataclass(frozen=True)
class FilterOptions:
    """Which clips are left out; the defaults keep all. UserError for bounds that no score can have.

    min_motion, min_brightness, max_brightness, max_letterbox: in [0, 1], see `score`
    max_duplicate_distance: bits, from 0 to 16, by which the hash of a clip may differ from a clip's that it repeats
    (0: only equal hashes; see `duplicates` for the time); None: duplicates are kept
    min_clip_score: in [-1, 1], see `ClipScorer`; None: off
    """

    min_motion: float = 0.0
    min_brightness: float = 0.0
    max_brightness: float = 1.0
    max_letterbox: float = 1.0
    max_duplicate_distance: int | None = None
    min_clip_score: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_motion", "min_brightness", "max_brightness", "max_letterbox"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"filters.{name} is a share from 0 to 1, not {getattr(self, name)}.")
        if self.max_duplicate_distance is not None and not 0 <= self.max_duplicate_distance <= 16:
            raise UserError(
                f"filters.max_duplicate_distance is from 0 to 16 bits, not {self.max_duplicate_distance}."
            )
        if self.min_clip_score is not None and not -1 <= self.min_clip_score <= 1:
            raise UserError(f"filters.min_clip_score is from -1 to 1, not {self.min_clip_score}.")


def score(video: np.ndarray) -> dict[str, float]:
    """Scores in [0, 1] of a clip, uint8 (T, H, W, 3).

    motion: mean absolute difference of luma between successive frames over 255; not there for a single frame
    brightness: mean luma over 255
    letterbox: share of the picture that rows and columns at its borders take whose luma is at most DARK in all frames
    """
    luma = _luma(video)
    scores = {"brightness": int(luma.sum(dtype=np.int64)) / (255 * luma.size), "letterbox": _letterbox(luma)}
    if len(luma) > 1:
        change = np.abs(np.diff(luma.astype(np.int16), axis=0))
        scores["motion"] = int(change.sum(dtype=np.int64)) / (255 * change.size)
    return scores


def rejection(scores: dict[str, float], options: FilterOptions) -> str | None:
    """Why a clip is left out, "name: the score and its bound", or None.

    A clip without motion, being an image, is not judged by it; UserError where min_clip_score is set and no clip score
    was made.
    """
    if options.min_clip_score is not None and "clip_score" not in scores:
        raise UserError(
            "filters.min_clip_score needs clip scores: set filters.clip_model to a folder of CLIP."
        )
    least = {
        "motion": options.min_motion,
        "brightness": options.min_brightness,
        "clip_score": options.min_clip_score,
    }
    most = {"brightness": options.max_brightness, "letterbox": options.max_letterbox}
    for name, bound in least.items():
        if bound is not None and scores.get(name, bound) < bound:
            return f"{name}: {scores[name]:.4f} is below {bound:g}"
    for name, bound in most.items():
        if scores.get(name, bound) > bound:
            return f"{name}: {scores[name]:.4f} is above {bound:g}"
    return None


def perceptual_hash(video: np.ndarray) -> int:
    """A 64-bit hash of a clip, uint8 (T, H, W, 3), that changes by few bits when it is encoded, scaled or dimmed.

    The signs of low frequencies of the cosine transform over frames, rows and columns, as in video hashing by Coskun,
    Sankur and Memon (IEEE Trans. Multimedia 8(6), 2006): 32 of the mean picture and 32 of its change in time, or 64 of
    a single picture. The mean level is not among them.
    """
    return grid_hash(picture_grid(video))


def picture_grid(video: np.ndarray) -> np.ndarray:
    """What a hash sees of pictures, uint8 (T, H, W, 3): int64 (T, 32, 32), mean luma in 16ths of a grey level."""
    return _averaged(_luma(video))


def grid_hash(grid: np.ndarray) -> int:
    """The `perceptual_hash` of a clip whose pictures have these grids, (T, 32, 32)."""
    frames = len(grid)
    rows = _cosines(_GRID, 10)
    times = _cosines(frames, 3 if frames > 1 else 1)
    # Whole numbers below 2^53 are exact as floats, whose products are faster; the last ones may be larger.
    parts = rows.astype(np.float64) @ np.tensordot(times.astype(np.float64), grid.astype(np.float64), axes=1)
    transformed = parts.astype(np.int64) @ rows.T
    chosen = np.array([transformed[index] for index in _frequencies(frames > 1)])
    bound = int(_DEAD_ZONE * 16 * frames * _GRID**2 * 256**2) * 256
    return int("".join("1" if value > bound else "0" for value in chosen), 2)


class ClipScorer:
    """How well captions fit clips, by a CLIP model in a local folder of transformers' layout with safetensors weights.

    UserError for a folder that is not one, or whose files can't be read.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", batch_size: int = 64) -> None:
        import torch
        from transformers import CLIPModel

        from pyoco_pipeline.models.text import load_frozen, load_tokenizer

        self.folder, self.device, self.batch_size = Path(folder), torch.device(device), batch_size
        for name in ("config.json", "preprocessor_config.json", "*.safetensors"):
            if not any(self.folder.glob(name)):
                raise UserError(
                    f"{folder} is not a folder of CLIP in transformers' layout: it has no {name}."
                )
        self._tokenizer = load_tokenizer(self.folder)
        self._processor = _image_processor(self.folder)
        self._model = load_frozen(CLIPModel, self.folder).to(self.device)
        self._max_tokens = self._model.config.text_config.max_position_embeddings

    def score(self, videos: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        """float64 (N,) in [-1, 1]: the mean cosine of a caption and the frames, uint8 (T, H, W, 3), of its clip."""
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            texts = {text: self._text(text) for text in dict.fromkeys(captions)}
            frames = [frame for video in videos for frame in video]
            cosines = []
            owners = [text for video, text in zip(videos, captions, strict=True) for _ in video]
            for start in range(0, len(frames), self.batch_size):
                part = slice(start, start + self.batch_size)
                pixels = self._processor(
                    images=frames[part], return_tensors="pt", input_data_format="channels_last"
                )
                seen = self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self.device))
                seen = normalize(_embedding(seen).float(), dim=-1)
                cosines.append((seen * torch.stack([texts[text] for text in owners[part]])).sum(-1).cpu())
        ends = np.cumsum([len(video) for video in videos])[:-1]
        values = torch.cat(cosines).double().numpy()
        return np.array([part.mean() for part in np.split(values, ends)])

    def _text(self, caption: str) -> Any:
        from torch.nn.functional import normalize

        tokens = self._tokenizer([caption], truncation=True, max_length=self._max_tokens, return_tensors="pt")
        told = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        )
        return normalize(_embedding(told).float(), dim=-1)[0]


def _image_processor(folder: Path) -> Any:
    from transformers import CLIPImageProcessorPil

    try:
        return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{folder / 'preprocessor_config.json'} is no image processor's ({in_one_line(error)}): copy the folder "
            "of CLIP anew."
        ) from error


def _embedding(output: Any) -> Any:
    """The projected embedding (N, D), which transformers 5 wraps in an output object."""
    return getattr(output, "pooler_output", output)


def _luma(video: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W)."""
    red, green, blue = (video[..., channel] * weight for channel, weight in enumerate(_LUMA))
    return ((red + green + blue + np.uint16(128)) >> 8).astype(np.uint8)


def _letterbox(luma: np.ndarray) -> float:
    brightest = luma.max(axis=0)
    kept = [np.flatnonzero(brightest.max(axis=axis) > DARK) for axis in (1, 0)]
    if not len(kept[0]):
        return 1.0
    rows, columns = (int(part[-1] - part[0] + 1) for part in kept)
    return 1 - rows * columns / brightest.size


def _averaged(luma: np.ndarray) -> np.ndarray:
    """int64 (T, _GRID, _GRID): means of the areas, in 16ths of a grey level; small pictures are repeated."""
    down, right = (_areas(size) for size in luma.shape[1:])
    sums = down @ luma.astype(np.float64) @ right.T  # of whole numbers, so exact in any order
    return np.floor(sums * 16 / np.outer(down.sum(1), right.sum(1))).astype(np.int64)


@cache
def _areas(size: int) -> np.ndarray:
    """float64 (_GRID, size) of ones: which of the rows, or columns, belong to each of the grid's."""
    starts = np.arange(_GRID) * size // _GRID
    ends = np.maximum(starts + 1, np.append(starts[1:], size))
    places = np.arange(size)
    return ((starts[:, None] <= places) & (places < ends[:, None])).astype(np.float64)


@cache
def _cosines(size: int, count: int) -> np.ndarray:
    """int64 (count, size): the first `count` functions of the cosine transform, in 256ths."""
    angles = np.pi * np.outer(np.arange(count), np.arange(size) + 0.5) / size
    return np.round(256 * np.cos(angles)).astype(np.int64)


@cache
def _frequencies(moving: bool) -> list[tuple[int, int, int]]:
    """The 64 (frames, rows, columns) frequencies that are hashed, the lowest of each kind first."""
    plane = sorted(((i, j) for i in range(10) for j in range(10)), key=lambda at: (at[0] + at[1], at))
    if not moving:
        return [(0, *at) for at in plane[1:65]]
    return [(0, *at) for at in plane[1:33]] + [(k, *at) for k in (1, 2) for at in plane[:16]]
