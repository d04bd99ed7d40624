"""The training loss of a denoiser."""

from typing import Any

from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise, per_clip


def edm_loss(
    denoise: Denoise, x0: Tensor, noise: Tensor, sigma: Tensor, sigma_data: float = 0.5, **cond: Any
) -> Tensor:
    """λ(σ) ‖D(x0 + σ ε; σ) - x0‖² with λ = (σ² + σ_data²)/(σ σ_data)²: EDM's loss, Karras et al. 2022, eq. 8.

    x0:     clean clips (B, C, T, H, W).
    noise:  ε of the same shape, unit variance per frame, drawn from the noise prior.
    sigma:  noise levels (B,), positive.
    Returns the mean over each clip, (B,). Losses under different priors are not comparable: one σ hides a
    different share of the clip under each. Raises ValueError where the shapes differ.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: expected that of x0, {tuple(x0.shape)}.")
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = denoise(x0 + per_clip(sigma, x0) * noise, sigma, **cond)
    return weight * (denoised - x0).square().flatten(1).mean(1)
