"""Diffusion in EDM's terms: denoisers, noise levels, loss, solvers and guidance. Pure torch.

A denoiser is any function denoise(x, sigma, **cond) -> x0, with x and x0 (B, C, T, H, W) and sigma (B,).
"""

from pyoco_pipeline.diffusion.denoiser import Denoise, EDMDenoiser, sampling_range
from pyoco_pipeline.diffusion.discrete import DiscreteDenoiser, discrete_sigmas, make_betas
from pyoco_pipeline.diffusion.experts import Expert, ExpertDenoiser
from pyoco_pipeline.diffusion.guidance import ClassifierFreeGuidance, threshold_dynamically
from pyoco_pipeline.diffusion.known_frames import KnownFrames, noise_around
from pyoco_pipeline.diffusion.long_video import reachable, sample_long
from pyoco_pipeline.diffusion.loss import edm_loss
from pyoco_pipeline.diffusion.multistep import (
    sample_deis,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m,
)
from pyoco_pipeline.diffusion.parametrisation import (
    EDM,
    Discrete,
    Parametrisation,
    parametrisation_from_config,
)
from pyoco_pipeline.diffusion.samplers import SOLVERS, sample, solvers_with
from pyoco_pipeline.diffusion.sigma import LogNormalSigma, karras_sigmas
from pyoco_pipeline.diffusion.single_step import Churn, sample_euler, sample_euler_ancestral, sample_heun
from pyoco_pipeline.diffusion.solver import Solver
from pyoco_pipeline.diffusion.tiles import TiledDenoiser

__all__ = [
    "EDM",
    "SOLVERS",
    "Churn",
    "ClassifierFreeGuidance",
    "Denoise",
    "Discrete",
    "DiscreteDenoiser",
    "EDMDenoiser",
    "Expert",
    "ExpertDenoiser",
    "KnownFrames",
    "LogNormalSigma",
    "Parametrisation",
    "Solver",
    "TiledDenoiser",
    "discrete_sigmas",
    "edm_loss",
    "karras_sigmas",
    "make_betas",
    "noise_around",
    "parametrisation_from_config",
    "reachable",
    "sample",
    "sample_deis",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_long",
    "sampling_range",
    "solvers_with",
    "threshold_dynamically",
]
