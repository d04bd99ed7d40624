"""The parts of a clip that a later stage's network sees at a time."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

from pyoco_pipeline.config import LaterStageSettings
from pyoco_pipeline.diffusion import Denoise, TiledDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.io import image_config, read_json


def tiled(denoise: Denoise, settings: LaterStageSettings, stage: str) -> Denoise:
    """The denoiser of parts of settings.tile; UserError where tile and overlap don't go together."""
    tile, overlap = settings.tile, settings.overlap
    if tile is None or tile.shape() == (None, None, None):
        return denoise
    try:
        shared = (overlap.frames, overlap.height, overlap.width)
        return TiledDenoiser(denoise, tile.shape(), shared, settings.tiles_at_once)
    except ValueError as error:
        raise UserError(f"generate.{stage}.tile and overlap don't go together: {error}") from error


def check_tile(settings: LaterStageSettings, stage: str, model: Path, channels: int) -> None:
    """UserError where the network in folder `model`, of clips of so many channels, can't see such parts."""
    tiled(lambda x, sigma, **cond: x, settings, stage)
    if settings.tile is None:
        return
    beside = read_json(model / "temporal.json").get("concat_channels", 0)
    patch = isqrt((read_json(image_config(model))["in_channels"] - beside) // channels)
    for axis, size in (("height", settings.tile.height), ("width", settings.tile.width)):
        if size is not None and size % patch:
            raise UserError(
                f"generate.{stage}.tile.{axis}={size} is no multiple of {patch}, the side of the blocks of pixels that "
                "the stage's model takes."
            )
