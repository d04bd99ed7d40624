"""In-painting in time with any denoiser: some frames of a clip are known, the rest is sampled to go with them.

The frames that are known are put in place of what the denoiser makes of them (Song et al., arXiv 2011.13456, sec. 5;
for video Ho et al., arXiv 2204.03458, sec. 3.1). The denoiser is then asked for the rest as if the noise of the known
frames was any, which under correlated noise is far from enough: the noise is what the frames have in common at the
start. `noise_around` draws that of the rest to go with the noise of the known frames.
"""

from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.wrapper import WrappedDenoiser
from pyoco_pipeline.noise import Generators, NoisePrior


class KnownFrames(WrappedDenoiser):
    """D(x; σ), but `known` where that is known.

    denoise: any; guidance and tiles stand within KnownFrames, not around it.
    known: clean clips (B, C, T, H, W); what it holds in the frames that are not known has no influence.
    is_known: (T,) or (B, T) bool. It may be all or none.

    The ODE carries a known frame on a straight line from its start to `known`, where it ends exactly, up to the
    rounding of Heun's last step. With `sample(init=known)`, zeros in the rest, that line is known + σ ε. What churn and
    SDE solvers inject moves it off the line, and not from its end.

    How far the rest is from a draw given the known frames: for Gaussian clips, frames correlated by 0.9^|i-j|, four of
    eight known, and their exact denoiser, the error of the mean of the first new frame in standard deviations of a
    frame, where 0.90 is that of knowing nothing (tests/test_known_frames.py computes it):
        noise               drawn anew    `noise_around` the known frames'
        i.i.d.              0.44          0.20
        mixed, α=1          0.67          0.15
        progressive, α=2    0.89          0.00
    Clips correlated as their noise is are denoised frame by frame, and nothing but the noise tells of the neighbours.
    Raises ValueError on shapes that don't fit, and when called with clips of another shape.
    """

    def __init__(self, denoise: Denoise, known: Tensor, is_known: Tensor) -> None:
        super().__init__(denoise)
        self.known, self.is_known = known, _frames_of(is_known, known, "known")

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip, shaped like x (B, C, T, H, W); sigma (B,), conditions batch-first."""
        if x.shape != self.known.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and the known clips {tuple(self.known.shape)}: expected the same. "
                "Guidance and tiles stand within KnownFrames, not around it."
            )
        x0 = self.denoise(x, sigma, **cond)
        return torch.where(self.is_known.to(x0.device), self.known.to(x0), x0)


def noise_around(
    prior: NoisePrior, noise: Tensor, is_known: Tensor, *, generator: Generators = None
) -> Tensor:
    """Noise of the prior (B, C, T, H, W) given some of its frames, which stay as they are; the start of `sample`.

    noise: of unit variance, (B, C, T, H, W) float32 or float64; what it holds in the frames that are not known has no
        influence. Of given clean frames at the start of a clip it is `invert` of them, divided by sigma_max.
    is_known: (T,) or (B, T) bool. generator: one, or B of them.
    Raises ValueError where shapes don't fit, and where the prior refuses so many frames.
    """
    known = _frames_of(is_known, noise, "noise")
    drawn = prior.sample(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)
    # A draw that meets a condition is a free draw, corrected by the regression on what it missed (Matheron's rule).
    missed = torch.where(known, noise - drawn, 0)
    covariance = prior.covariance(noise.shape[2])
    # Clip by clip: BLAS may round differently for another batch size.
    with torch.autocast(noise.device.type, enabled=False):
        corrections = [
            torch.einsum("st,cthw->cshw", _regression(covariance, mask).to(miss), miss)
            for mask, miss in zip(known[:, 0, :, 0, 0].cpu(), missed, strict=True)
        ]
    return torch.where(known, noise, drawn + torch.stack(corrections))


def _regression(covariance: Tensor, is_known: Tensor) -> Tensor:
    """(T, T) of which row i gives frame i from the known frames."""
    weights = torch.zeros_like(covariance)
    of_known = covariance[is_known][:, is_known]  # singular where frames repeat each other
    weights[:, is_known] = covariance[:, is_known] @ torch.linalg.pinv(of_known, hermitian=True)
    return weights


def _frames_of(is_known: Tensor, clips: Tensor, name: str) -> Tensor:
    """is_known as (B, 1, T, 1, 1), on the device of the clips."""
    if clips.dim() != 5:
        raise ValueError(f"{name} has shape {tuple(clips.shape)}: expected (B, C, T, H, W).")
    batch, frames = clips.shape[0], clips.shape[2]
    if is_known.dtype != torch.bool or tuple(is_known.shape) not in ((frames,), (batch, frames)):
        raise ValueError(
            f"is_known has shape {tuple(is_known.shape)} of {is_known.dtype}: expected ({frames},) or "
            f"({batch}, {frames}) of torch.bool."
        )
    return is_known.expand(batch, frames).view(batch, 1, frames, 1, 1).to(clips.device)
