"""An ensemble of expert denoisers, each for its own range of noise levels (eDiff-I, arXiv 2211.01324, sec. 4)."""

import gc
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise, EDMDenoiser

_ROUNDING = 1e-5  # relative; solvers compute the ends of the ensemble in float32


@dataclass(frozen=True)
class Expert:
    """A denoiser of the noise levels low <= σ < high; that of the topmost expert has its own end too.

    denoise: the denoiser; or load: what makes it when a step needs it, and it may be made again. Exactly one.
    Raises ValueError unless 0 <= low < high.
    """

    low: float
    high: float
    denoise: Denoise | None = None
    load: Callable[[], Denoise] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"an expert has low {self.low} and high {self.high}: expected 0 <= low < high.")
        if (self.denoise is None) == (self.load is None):
            raise ValueError(
                f"the expert from {self.low} to {self.high} needs either denoise or load, and not both."
            )


class ExpertDenoiser:
    """D(x; σ) of the expert that knows σ.

    experts: in any order; their ranges lie end to end, or ValueError names the noise levels of the gap or overlap.
    keep: how many experts with `load` stay in memory, at least 1; None keeps all. The one that was used least
        recently goes first. A solver goes down in σ, so with keep=1 it loads each expert once; only churn can go back
        over a border.

    Choosing an expert waits for a GPU to say σ. Noise levels outside of `sigma_limits` are a ValueError.
    """

    def __init__(self, experts: Sequence[Expert], *, keep: int | None = None) -> None:
        if not experts:
            raise ValueError("experts is empty: expected at least one.")
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}: expected at least 1, or None to keep all.")
        self.experts = sorted(experts, key=lambda expert: expert.low)
        for below, above in pairwise(self.experts):
            if below.high != above.low:
                kind = "overlap" if below.high > above.low else "leave a gap"
                raise ValueError(
                    f"the experts of sigma {below.low} to {below.high} and {above.low} to {above.high} {kind} between "
                    f"{min(below.high, above.low)} and {max(below.high, above.low)}: one has to begin where the "
                    "other ends."
                )
        self.keep = keep
        self.sigma_limits = (self.experts[0].low, self.experts[-1].high)
        low, high = self.sigma_limits
        self.sigma_min = low if low > 0 else EDMDenoiser.sigma_min
        self.sigma_max = high if math.isfinite(high) else EDMDenoiser.sigma_max
        # In float32's values, those that solvers ask for: then a border belongs to the expert above it.
        self._lows = torch.tensor([expert.low for expert in self.experts], dtype=torch.float32).tolist()
        self._loaded: OrderedDict[int, Denoise] = OrderedDict()  # by place in experts, the newest use last

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip, shaped like x (B, C, T, H, W); sigma (B,) may be of several experts, conditions batch-first.

        Each expert is called once, with its clips.
        """
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma has shape {tuple(sigma.shape)}: expected ({len(x)},), one per clip.")
        members: dict[int, list[int]] = {}
        for clip, level in enumerate(sigma.float().tolist()):
            members.setdefault(self._place(level), []).append(clip)
        if len(members) == 1:
            return self._denoiser(next(iter(members)))(x, sigma, **cond)
        parts = []
        for place in sorted(members, reverse=True):
            clips = torch.tensor(members[place], device=x.device)
            part = {name: _select(value, clips, len(x)) for name, value in cond.items()}
            parts.append(self._denoiser(place)(x[clips], sigma[clips], **part))
        order = torch.tensor([clip for place in sorted(members, reverse=True) for clip in members[place]])
        return torch.cat(parts)[order.argsort().to(x.device)]

    def _place(self, level: float) -> int:
        low, high = self.sigma_limits
        if not low * (1 - _ROUNDING) <= level <= high * (1 + _ROUNDING):
            raise ValueError(f"sigma is {level:g}: the experts know noise levels from {low:g} to {high:g}.")
        return max(0, bisect_right(self._lows, level) - 1)

    def _denoiser(self, place: int) -> Denoise:
        expert = self.experts[place]
        if expert.denoise is not None:
            return expert.denoise
        assert expert.load is not None
        if place in self._loaded:
            self._loaded.move_to_end(place)
            return self._loaded[place]
        while self.keep is not None and len(self._loaded) >= self.keep:
            self._loaded.popitem(last=False)  # before the next is loaded, so that there is room for it
            gc.collect()  # a network's hooks hold it in a cycle
        self._loaded[place] = expert.load()
        return self._loaded[place]


def _select(value: Any, clips: Tensor, batch: int) -> Any:
    """The entries of a condition that belong to these clips; what is not batch-first is for all of them."""
    if isinstance(value, Tensor) and value.shape[:1] == (batch,):
        return value[clips.to(value.device)]
    if isinstance(value, dict):
        return {name: _select(item, clips, batch) for name, item in value.items()}
    return value
