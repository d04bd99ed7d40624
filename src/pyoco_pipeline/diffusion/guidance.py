"""Guidance: a denoiser pushed away from what it would give without its condition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise, per_clip


@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance:
    """D_null + scale (D_cond - D_null): classifier-free guidance (Ho & Salimans, arXiv 2207.12598, eq. 6).

    denoise:    denoise(x, sigma, **cond) -> x0; called once, condition and null stacked on the batch axis.
    scale:      guidance scale, the paper's weight plus 1, finite; 1 is no guidance, 0 no condition.
    null_cond:  what stands for "no condition": tensors (1, …) or (B, …). A condition that is absent here,
                such as the low-resolution clip in super-resolution, is kept in both halves.
    interval:   (low, high): guide at low < σ <= high only (Kynkäänniemi et al., arXiv 2404.07724).
    dynamic_threshold: the percentile of `threshold_dynamically`, which the result passes through at every σ, guided
                or not; None: it doesn't. For pixels in [-1, 1], not for latents.
    Raises ValueError on an infinite scale, an empty interval, a percentile outside (0, 1] and, when called, a null
    that does not fit.
    """

    denoise: Denoise
    scale: float
    null_cond: Mapping[str, Tensor]
    interval: tuple[float, float] = (0.0, math.inf)
    dynamic_threshold: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}: expected a finite guidance scale.")
        low, high = self.interval
        if not 0 <= low < high:
            raise ValueError(f"interval is {self.interval}: expected (low, high) with 0 <= low < high.")
        if self.dynamic_threshold is not None:
            _check_percentile(self.dynamic_threshold)

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The guided clean clip, shaped like x (B, C, T, H, W); sigma (B,), conditions batch-first."""
        x0 = self._guided(x, sigma, cond)
        return x0 if self.dynamic_threshold is None else threshold_dynamically(x0, self.dynamic_threshold)

    def _guided(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        if self.scale == 1:
            return self.denoise(x, sigma, **cond)
        low, high = self.interval
        inside = (sigma > low) & (sigma <= high)
        # Asking a GPU for the answer waits for it, so only where the answer is open.
        if (low, high) != (0.0, math.inf) and not inside.any():
            return self.denoise(x, sigma, **cond)
        both = self.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), **self._with_null(cond, len(x)))
        conditional, null = both.chunk(2)
        guided = null + self.scale * (conditional - null)
        return torch.where(per_clip(inside, x), guided, conditional)

    def _with_null(self, cond: dict[str, Any], batch: int) -> dict[str, Any]:
        """Conditions (2B, …): the given ones, then the null ones."""
        if missing := sorted(set(self.null_cond) - set(cond)):
            raise ValueError(f"conditions are {sorted(cond)}: expected {missing} too, as null_cond has it.")
        return {name: self._stacked(name, value, batch) for name, value in cond.items()}

    def _stacked(self, name: str, value: Any, batch: int) -> Any:
        if not isinstance(value, Tensor):
            if name in self.null_cond:
                raise ValueError(
                    f"condition {name} is {type(value).__name__}: expected a tensor like its null."
                )
            return value
        null = self.null_cond.get(name, value)
        if value.shape[:1] != (batch,):
            raise ValueError(f"condition {name} has shape {tuple(value.shape)}: expected ({batch}, …).")
        if null.shape[:1] not in ((1,), (batch,)) or null.shape[1:] != value.shape[1:]:
            raise ValueError(
                f"null_cond[{name!r}] has shape {tuple(null.shape)}: expected {tuple(value.shape)}, "
                f"or 1 in place of {batch}."
            )
        return torch.cat([value, null.to(value).expand_as(value)])


def threshold_dynamically(x0: Tensor, percentile: float) -> Tensor:
    """x0 clipped to [-s, s] and divided by s, into [-1, 1] (Imagen, Saharia et al., arXiv 2205.11487, sec. 2.3).

    x0: clips (B, C, T, H, W) of pixels that belong in [-1, 1]; guidance at a high scale drives them out.
    percentile: in (0, 1], else ValueError; s is this percentile of |x0|, but at least 1. It is that of a clip, not
        of a frame, whose brightness would flicker; clips are independent of each other.
    """
    _check_percentile(percentile)
    magnitudes = x0.abs().flatten(1)
    # The k-th smallest: torch.quantile refuses more than 2^24 values.
    rank = max(1, math.ceil(percentile * magnitudes.shape[1]))
    s = per_clip(magnitudes.kthvalue(rank, dim=1).values.clamp(min=1), x0)
    return x0.clamp(-s, s) / s


def _check_percentile(percentile: float) -> None:
    if not 0 < percentile <= 1:
        raise ValueError(
            f"dynamic_threshold is {percentile}: expected a percentile in (0, 1], such as 0.995."
        )
