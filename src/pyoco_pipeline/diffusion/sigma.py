"""Noise levels: the law they are drawn from in training, and the schedule that sampling steps through."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyoco_pipeline.noise import Generators, white_noise


@dataclass(frozen=True)
class LogNormalSigma:
    """ln σ ~ N(mean, std²): EDM's training noise levels (Karras et al. 2022, table 1).

    mean, std: P_mean and P_std, in units of ln σ; finite, std not negative; else ValueError. At one σ,
        correlated noise destroys more of what the frames share: the mean has to be chosen for the prior.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean}: expected a finite number, the mean of ln σ.")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std is {self.std}: expected a finite number, at least 0.")

    def sample(
        self, n: int, generator: Generators = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Noise levels (n,) float32; generator: one, or n of them to make each independent of its batch."""
        normal = white_noise((n,), generator=generator, device=device, dtype=torch.float32)
        return (self.mean + self.std * normal).exp()


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
