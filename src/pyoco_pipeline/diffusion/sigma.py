"""Noise levels: the law they are drawn from in training, and the schedule that sampling steps through."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyoco_pipeline.noise import Generators, white_noise


@dataclass(frozen=True)
class LogNormalSigma:
    """ln σ ~ N(mean, std²): EDM's training noise levels (Karras et al. 2022, table 1); all of them, or a range.

    mean, std: P_mean and P_std, in units of ln σ; finite, std not negative; else ValueError. At one σ,
        correlated noise destroys more of what the frames share: the mean has to be chosen for the prior.
    low, high: the law given low <= σ <= high (an expert's range, eDiff-I, arXiv 2211.01324, sec. 4); 0 and ∞ are
        the whole law. ValueError unless 0 <= low < high and the law has some of its mass there.
    """

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean}: expected a finite number, the mean of ln σ.")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std is {self.std}: expected a finite number, at least 0.")
        if not 0 <= self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: expected 0 <= low < high.")
        if not self._is_whole and not self._truncation()[2] > 0:
            raise ValueError(
                f"low is {self.low} and high {self.high}: expected a range in which ln σ ~ N({self.mean}, {self.std}²) "
                "has some of its mass, and std above 0."
            )

    @property
    def _is_whole(self) -> bool:
        return (self.low, self.high) == (0.0, math.inf)

    def _truncation(self) -> tuple[float, float, float]:
        """(sign, Φ(a), Φ(b) - Φ(a)) with a and b the ends in standard deviations, mirrored to lie below the mean.

        In the upper tail Φ is 1 - tiny, which has no digits left.
        """
        if self.std == 0:
            return 1.0, 0.0, 0.0
        a, b = (
            ((math.log(end) if end > 0 else -math.inf) - self.mean) / self.std
            for end in (self.low, self.high)
        )
        sign, a, b = (1.0, a, b) if a + b < 0 else (-1.0, -b, -a)
        lower, upper = (0.5 * math.erfc(-end / math.sqrt(2)) for end in (a, b))
        return sign, lower, upper - lower

    def sample(
        self, n: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Noise levels (n,) float32; generator: one, or n of them to make each independent of its batch."""
        if not self._is_whole:
            return self._sample_range(n, generator, device)
        normal = white_noise((n,), generator=generator, device=device, dtype=torch.float32)
        return (self.mean + self.std * normal).exp()

    def _sample_range(self, n: int, generator: Generators, device: torch.device | str | None) -> Tensor:
        """By the inverse of the distribution function: exact, and every draw is kept."""
        sign, lower, mass = self._truncation()
        white = white_noise((n,), generator=generator, device=device, dtype=torch.float64)
        share = 0.5 * torch.erfc(-white / math.sqrt(2))  # Φ, uniform; torch's ndtr has no digits in the tails
        normal = sign * torch.special.ndtri(lower + share * mass)
        return (self.mean + self.std * normal).exp().clamp(self.low, self.high).float()


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels (steps + 1,) float64 from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5).

    steps: at least 1, and 1 goes from sigma_max straight to 0. rho: positive; larger means finer low noise.
    Raises ValueError unless 0 < sigma_min < sigma_max < ∞.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected at least 1.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max < inf."
        )
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is {rho}: expected a positive, finite number.")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = torch.linspace(first, last, steps, dtype=torch.float64, device="cpu") ** rho
    return torch.cat([levels, levels.new_zeros(1)])
