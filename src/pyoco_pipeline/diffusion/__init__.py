"""Diffusion in EDM's terms: denoisers, noise levels, loss, solvers and guidance. Pure torch.

A denoiser is any function denoise(x, sigma, **cond) -> x0, with x and x0 (B, C, T, H, W) and sigma (B,).
"""

from pyoco_pipeline.diffusion.denoiser import Denoise, EDMDenoiser
from pyoco_pipeline.diffusion.guidance import ClassifierFreeGuidance
from pyoco_pipeline.diffusion.loss import edm_loss
from pyoco_pipeline.diffusion.samplers import SOLVERS, Churn, Solver, sample, sample_euler, sample_heun
from pyoco_pipeline.diffusion.sigma import LogNormalSigma, karras_sigmas

__all__ = [
    "SOLVERS",
    "Churn",
    "ClassifierFreeGuidance",
    "Denoise",
    "EDMDenoiser",
    "LogNormalSigma",
    "Solver",
    "edm_loss",
    "karras_sigmas",
    "sample",
    "sample_euler",
    "sample_heun",
]
