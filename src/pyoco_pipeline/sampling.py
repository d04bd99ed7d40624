"""Guided sampling of a batch of clips: from noise, from given clips or frames, and longer than a model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.data.batches import to_uint8
from pyoco_pipeline.data.embeddings import Conditioning
from pyoco_pipeline.diffusion import (
    Churn,
    ClassifierFreeGuidance,
    Denoise,
    KnownFrames,
    noise_around,
    reachable,
    sample,
    sample_long,
    sampling_range,
)
from pyoco_pipeline.diffusion.inversion import invert
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.autoencoder import Autoencoder
from pyoco_pipeline.noise import NoisePrior

_INVERSION_STEPS = 18


@dataclass(frozen=True)
class Start:
    """Clips that sampling starts from: clip (B, C, T, H, W), clean.

    sigma: what is sampled begins with the clip under noise of this level, and keeps the more of it the lower it is
    (SDEdit, arXiv 2108.01073). is_known: (T,) bool, frames that are kept as they are, and the others made to go with
    them (`KnownFrames`). One of the two. is_given: whether the network is given the known frames as a condition.
    """

    clip: Tensor
    sigma: float | None = None
    is_known: Tensor | None = None
    is_given: bool = False


@dataclass(frozen=True)
class Windows:
    """Clips of num_frames from a model of fewer, in windows that share `overlap` frames (`sample_long`).

    given: the further conditions of the window that begins at a frame; None: there are none.
    """

    num_frames: int
    overlap: int
    given: Callable[[int], dict[str, Tensor]] | None = None


def sample_batch(
    denoise: Denoise,
    prior: NoisePrior,
    settings: SamplerSettings,
    cond: Conditioning,
    null: Conditioning,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    autoencoder: Autoencoder | None = None,
    *,
    section: str = "generate",
    start: Start | None = None,
    windows: Windows | None = None,
) -> Tensor:
    """Guided clips (B, T, H, W, 3) uint8, one per seed; a clip is the same whatever batch it is in.

    shape: (frames, height, width) of what the model samples: of pixels, or of latents that `autoencoder` decodes.
    section: of the parameters, for errors. start, windows: one of them, or neither.
    Raises UserError for noise levels that the model does not know, for a dynamic threshold on latents, and for windows
    that don't reach the number of frames or have no noise that goes on.
    """
    check_thresholding(settings, autoencoder is not None, section)
    device = cond["encoder_hidden_states"].device
    edited = start.sigma if start else None
    sigma_min, sigma_max = noise_levels(denoise, settings, edited, section)
    guided: Denoise = ClassifierFreeGuidance(
        denoise, settings.guidance_scale, null, settings.guidance_interval, settings.dynamic_threshold
    )
    size = (len(seeds), autoencoder.channels if autoencoder else 3, *shape)
    options: dict[str, Any] = {
        "solver": settings.solver,
        "steps": settings.steps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "rho": settings.rho,
        "churn": Churn(**settings.churn.model_dump()),
        "eta": settings.eta,
        "generator": [torch.Generator(device).manual_seed(seed) for seed in seeds],
        "device": device,
    }
    if windows is not None:
        return _long(guided, prior, size, windows, options, dict(cond), autoencoder, section)
    if start is not None and start.is_known is not None:
        guided, options["start"] = _around(guided, denoise, prior, start, options, dict(cond))
    elif start is not None:
        options["init"] = start.clip
    return _to_pixels(sample(guided, prior, size, **options, **dict[str, Any](cond)), autoencoder)


def check_thresholding(settings: SamplerSettings, of_latents: bool, section: str = "generate") -> None:
    """UserError for dynamic thresholding of latents, which have no range of their own."""
    if of_latents and settings.dynamic_threshold is not None:
        raise UserError(
            f"{section}.sampler.dynamic_threshold={settings.dynamic_threshold} is for pixels in [-1, 1], and the model "
            "samples latents: set it to null."
        )


def check_windows(num_frames: int, window: int, overlap: int) -> None:
    """UserError where windows of a model don't add up to so many frames."""
    try:
        reachable(num_frames, window, overlap)
    except ValueError as error:
        raise UserError(f"generate.num_frames and generate.overlap don't fit the model: {error}") from error


def noise_levels(
    denoise: Denoise, settings: SamplerSettings, edited: float | None, section: str
) -> tuple[float, float]:
    """(sigma_min, sigma_max) to sample between; UserError, naming `section`, where the model does not know them.

    edited: the level that given clips are put under, where sampling starts from some.
    """
    try:
        return sampling_range(denoise, settings.sigma_min, settings.sigma_max if edited is None else edited)
    except ValueError as error:
        if edited is not None:
            raise UserError(f"generate.video.sigma={edited:g} does not fit the model: {error}") from error
        raise UserError(
            f"{section}.sampler does not fit the model: {error} Leave sigma_min and sigma_max out to sample all of "
            "them."
        ) from error


def _around(
    guided: Denoise,
    denoise: Denoise,
    prior: NoisePrior,
    start: Start,
    options: dict[str, Any],
    cond: dict[str, Any],
) -> tuple[Denoise, Tensor]:
    """A denoiser that keeps the known frames, and noise to start from in which the others go with theirs.

    The noise of the known frames is that which the model itself would make them from (`invert`). A network that is
    given them learnt to go with them from any noise.
    """
    assert start.is_known is not None
    keeping = KnownFrames(guided, start.clip, start.is_known)
    if start.is_given:
        drawn = prior.sample(start.clip.shape, generator=options["generator"], device=start.clip.device)
        return keeping, drawn
    known = start.clip[:, :, start.is_known]
    levels = {name: options[name] for name in ("sigma_min", "sigma_max")}
    maps = invert(
        denoise, known, steps=max(_INVERSION_STEPS, options["steps"]), **levels, **_of_frames(cond, start)
    )
    noise = torch.zeros_like(start.clip)
    noise[:, :, start.is_known] = maps / options["sigma_max"]
    noise = noise_around(prior, noise, start.is_known, generator=options["generator"])
    return keeping, noise


def _of_frames(cond: dict[str, Any], start: Start) -> dict[str, Any]:
    """Conditions that are clips, cut to the known frames."""
    frames = start.clip.shape[2]
    return {
        name: value[:, :, start.is_known] if value.dim() == 5 and value.shape[2] == frames else value
        for name, value in cond.items()
    }


def _long(
    guided: Denoise,
    prior: NoisePrior,
    size: tuple[int, ...],
    windows: Windows,
    options: dict[str, Any],
    cond: dict[str, Any],
    autoencoder: Autoencoder | None,
    section: str,
) -> Tensor:
    check_windows(windows.num_frames, size[2], windows.overlap)
    try:
        parts: Iterator[Tensor] = sample_long(
            guided, prior, size, windows.num_frames, windows.overlap, given=windows.given, **options, **cond
        )
    except ValueError as error:
        raise UserError(f"{section} can't make longer videos: {error}") from error
    # Only one window is on the device; what is done waits as uint8 in the host's memory.
    return torch.cat([_to_pixels(part, autoencoder).cpu() for part in parts], dim=1)


def _to_pixels(x0: Tensor, autoencoder: Autoencoder | None) -> Tensor:
    if autoencoder is None:
        return to_uint8(x0)
    # Clip by clip: the pixels of all of them in float32 are four times those that are kept.
    return torch.cat([to_uint8(autoencoder.decode(latents)) for latents in x0.split(1)])
