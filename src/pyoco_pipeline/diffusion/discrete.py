"""Denoisers from networks pretrained on a discrete DDPM schedule, on EDM's σ axis (Karras et al. 2022, table 1).

A DDPM step t holds x_t = √ᾱ_t x0 + √(1-ᾱ_t) ε. Divided by √ᾱ_t that is x = x0 + σ_t ε with σ_t² = (1-ᾱ_t)/ᾱ_t, so
the network is given x/√(1+σ²) = x_t and its t. DDIM with η = 0 is Euler's method on this axis.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import per_clip

PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

# What stands for σ = ∞ at the last step of a zero-terminal-SNR schedule. The solver starts at σ ε instead of at
# pure noise, which is off by x0/σ: 3e-5. Larger would cost more in float32 than it gains.
ZERO_SNR_SIGMA = 2.0**15


def make_betas(schedule: str, num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """β_t of a DDPM schedule by diffusers' name for it, (num_steps,) float32, computed as diffusers does.

    schedule: linear (Ho et al. 2020), scaled_linear (linear in √β; Rombach et al. 2022) or squaredcos_cap_v2
        (cosine, Nichol & Dhariwal 2021, eq. 17, which has no start and end).
    Raises ValueError on another name, fewer than 2 steps, and unless 0 < start <= end < 1.
    """
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule is {schedule!r}: expected one of {', '.join(BETA_SCHEDULES)}.")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
        raise ValueError(f"num_train_timesteps is {num_steps!r}: expected a whole number of at least 2.")
    if schedule == "squaredcos_cap_v2":
        bars = [math.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(num_steps + 1)]
        betas = [min(1 - bars[t + 1] / bars[t], 0.999) for t in range(num_steps)]
        return torch.tensor(betas, dtype=torch.float32, device="cpu")
    if not 0 < start <= end < 1:
        raise ValueError(f"beta_start is {start} and beta_end {end}: expected 0 < start <= end < 1.")
    if schedule == "linear":
        return torch.linspace(start, end, num_steps, dtype=torch.float32, device="cpu")
    return torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float32, device="cpu") ** 2


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """β (N,) whose √ᾱ is shifted and scaled to end at 0 (Lin et al., arXiv 2305.08891, algorithm 1)."""
    roots = torch.cumprod(1.0 - betas, dim=0).sqrt()
    bars = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])


def discrete_sigmas(betas: Tensor, *, zero_terminal_snr: bool = False) -> Tensor:
    """σ_t = √((1-ᾱ_t)/ᾱ_t) of every step, (N,) float64 rising, from β (N,); ᾱ in float32, as networks were trained.

    zero_terminal_snr: rescale β first; the last σ, infinite then, becomes ZERO_SNR_SIGMA, or twice the one before.
    Raises ValueError where σ does not rise, or is infinite at another step.
    """
    betas = betas.float().cpu()
    if zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    bars = torch.cumprod(1.0 - betas, dim=0).double()
    sigmas = ((1 - bars) / bars).sqrt()
    if zero_terminal_snr:
        sigmas[-1] = max(ZERO_SNR_SIGMA, 2 * sigmas[-2].item())  # many flat steps come near it
    return _checked_table(sigmas)


def _checked_table(sigmas: Tensor) -> Tensor:
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"sigmas has shape {tuple(sigmas.shape)}: expected (N,), one per step, N at least 2."
        )
    # In float32's values, those that solvers ask for: then a step's own σ is found exactly.
    table = sigmas.detach().cpu().float().double()
    if not (table[0] > 0 and table.isfinite().all() and (table.diff() > 0).all()):
        raise ValueError(
            f"the noise levels of the schedule go from {table[0]:g} to {table[-1]:g}: expected them positive, finite "
            "and rising at every step."
        )
    return table


class DiscreteDenoiser:
    """D(x; σ) of a network that was trained on the steps of a DDPM schedule.

    network: network(x, timestep, **cond).sample, from x (B, C, T, H, W) and timestep (B,), both float32, gives
        (B, C, T, H, W); or (B, 2C, T, H, W) with learned_variance, of which the second half is ignored.
    sigmas: σ of the steps 0 … N-1 (`discrete_sigmas`), (N,).
    prediction: what the network gives: epsilon, v_prediction (√ᾱ ε - √(1-ᾱ) x0; Salimans & Ho 2022) or sample (x0).

    Between two steps, t is interpolated linearly in ln σ. Below σ_0 it is 0 and above σ_{N-1} it is N-1 (churn and
    rounding go a little beyond the ends): `sigma_limits` are the ends, and who chooses noise levels keeps to them.
    x0 is as the network gives it: clip_sample and thresholding of diffusers' schedulers are part of sampling.
    Raises ValueError on a table that does not rise or another prediction, and, when called, on another number of
    channels.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        sigmas: Tensor,
        prediction: str = "epsilon",
        *,
        learned_variance: bool = False,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {prediction!r}: expected one of {', '.join(PREDICTIONS)}.")
        self.network = network
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.sigmas = _checked_table(sigmas)
        self.sigma_min, self.sigma_max = self.sigma_limits = (self.sigmas[0].item(), self.sigmas[-1].item())

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip x0, float32 and shaped like x (B, C, T, H, W), at noise levels sigma (B,) > 0."""
        x, sigma = x.float(), sigma.float()
        c_in = 1 / (sigma**2 + 1).sqrt()  # √ᾱ
        output = self.network(per_clip(c_in, x) * x, self.timestep(sigma), **cond).sample.float()
        output = self._mean(output, x.shape[1])
        if self.prediction == "epsilon":
            return x - per_clip(sigma, x) * output
        if self.prediction == "v_prediction":
            return per_clip(c_in**2, x) * x - per_clip(sigma * c_in, x) * output
        return output

    def timestep(self, sigma: Tensor) -> Tensor:
        """t of noise levels (B,), float32 in [0, N-1]; exactly k at σ_k."""
        self.sigmas = table = self.sigmas.to(sigma.device)
        wanted = sigma.double().clamp(*self.sigma_limits)
        above = torch.searchsorted(table, wanted).clamp(min=1)
        low, high = table[above - 1].log(), table[above].log()
        return (above - 1 + (wanted.log() - low) / (high - low)).float()

    def _mean(self, output: Tensor, channels: int) -> Tensor:
        expected = 2 * channels if self.learned_variance else channels
        if output.shape[1] != expected:
            variance = "with" if self.learned_variance else "without"
            raise ValueError(
                f"the network gives {output.shape[1]} channels for clips of {channels}: {variance} a learned "
                f"variance, {expected} are expected."
            )
        return output[:, :channels]
