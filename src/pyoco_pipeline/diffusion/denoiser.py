"""A denoiser from a network with inputs and outputs of unit variance (EDM, arXiv 2206.00364), and its noise levels."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# denoise(x, sigma, **cond) -> x0: x and x0 (B, C, T, H, W), sigma (B,), conditions batch-first.
Denoise = Callable[..., Tensor]


def per_clip(values: Tensor, x: Tensor) -> Tensor:
    """(B,) values as (B, 1, …, 1), to multiply x of shape (B, …); ValueError where B differs."""
    if values.shape != x.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(values.shape)}: expected ({x.shape[0]},), one per clip.")
    return values.view(-1, *[1] * (x.dim() - 1))


def sampling_range(denoise: Denoise, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The noise levels to sample between: those asked for, and where None, the denoiser's own.

    denoise: one that says its `sigma_min` and `sigma_max`, and `sigma_limits`, beyond which it knows nothing; of one
        that doesn't, they are EDM's 0.002 and 80, without limits.
    Raises ValueError for levels outside of the limits, which may be missed by 1e-5 of their size, and unless
    sigma_min < sigma_max.
    """
    low, high = getattr(denoise, "sigma_limits", (0.0, math.inf))
    sigma_min = getattr(denoise, "sigma_min", EDMDenoiser.sigma_min) if sigma_min is None else sigma_min
    sigma_max = getattr(denoise, "sigma_max", EDMDenoiser.sigma_max) if sigma_max is None else sigma_max
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if not low * (1 - 1e-5) <= value <= high * (1 + 1e-5):
            raise ValueError(f"{name} is {value:g}: the model knows noise levels from {low:g} to {high:g}.")
    if not sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min:g} and sigma_max {sigma_max:g}: expected sigma_min < sigma_max."
        )
    return sigma_min, sigma_max


class EDMDenoiser:
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), EDM eq. 7 with the preconditioning of table 1.

    network: network(x, timestep, **cond).sample -> (B, C, T, H, W), from x of that shape and timestep (B,),
        both float32. In which precision it computes is autocast's affair.
    sigma_data: standard deviation of the data, positive; else ValueError.
    """

    # What is sampled by default (EDM, table 1); the network takes every positive σ.
    sigma_min, sigma_max = 0.002, 80.0
    sigma_limits = (0.0, math.inf)

    def __init__(self, network: Callable[..., Any], sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"sigma_data is {sigma_data}: expected a positive, finite standard deviation.")
        self.network = network
        self.sigma_data = sigma_data

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip x0, float32 and shaped like x (B, C, T, H, W), at noise levels sigma (B,) > 0."""
        x, sigma = x.float(), sigma.float()
        total = (sigma**2 + self.sigma_data**2).sqrt()
        c_skip = self.sigma_data**2 / total**2
        c_out = sigma * self.sigma_data / total
        c_in = 1 / total
        # EDM's ln(σ)/4 in thousandths: diffusers' sinusoidal timestep embedding resolves steps of 0 … 1000.
        c_noise = 250 * torch.log(sigma)
        prediction = self.network(per_clip(c_in, x) * x, c_noise, **cond).sample.float()
        return per_clip(c_skip, x) * x + per_clip(c_out, x) * prediction
