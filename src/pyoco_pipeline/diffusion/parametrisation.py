"""What a network predicts, and on which schedule: from it a network's denoiser is made, and JSON of it is kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise, EDMDenoiser
from pyoco_pipeline.diffusion.discrete import PREDICTIONS, DiscreteDenoiser, discrete_sigmas, make_betas


class Parametrisation(Protocol):
    """A kind of denoiser; frozen and equal by value."""

    @property
    def sigma_limits(self) -> tuple[float, float]:
        """The noise levels that the network knows."""

    def denoiser(self, network: Callable[..., Any], sigma_data: float = 0.5) -> Denoise:
        """The network's denoiser; sigma_data: standard deviation of the data, which EDM's depends on."""

    def config(self) -> dict[str, Any]:
        """The parametrisation as strict JSON; `parametrisation_from_config` reads it back."""


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioning (Karras et al. 2022, table 1), which takes every positive σ."""

    @property
    def sigma_limits(self) -> tuple[float, float]:
        return 0.0, float("inf")

    def denoiser(self, network: Callable[..., Any], sigma_data: float = 0.5) -> EDMDenoiser:
        return EDMDenoiser(network, sigma_data)

    def config(self) -> dict[str, Any]:
        return {"kind": "edm"}


@dataclass(frozen=True)
class Discrete:
    """A DDPM schedule, in the terms of diffusers' schedulers, and what the network predicts on it.

    kind: epsilon, v_prediction or sample. beta_start, beta_end: unused by squaredcos_cap_v2.
    trained_betas: β of every step, in place of a schedule. rescale_betas_zero_snr: of zero terminal SNR, where
        epsilon would leave x0 open at the last step. learned_variance: the network gives twice the channels.
    Raises ValueError on what is no such schedule.
    """

    kind: str
    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    learned_variance: bool = False

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise ValueError(f"prediction_type is {self.kind!r}: expected one of {', '.join(PREDICTIONS)}.")
        if self.kind == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError(
                "prediction_type is epsilon and rescale_betas_zero_snr true: at a signal-to-noise ratio of zero "
                "epsilon says nothing about the clip, so v_prediction or sample is expected."
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} entries: expected num_train_timesteps="
                f"{self.num_train_timesteps}."
            )
        _ = self.sigmas  # which refuses what is no schedule

    @cached_property
    def sigmas(self) -> Tensor:
        """σ of every step, (num_train_timesteps,) float64."""
        if self.trained_betas is not None:
            betas = torch.tensor(self.trained_betas, dtype=torch.float32, device="cpu")
        else:
            schedule = self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end
            betas = make_betas(*schedule)
        return discrete_sigmas(betas, zero_terminal_snr=self.rescale_betas_zero_snr)

    @property
    def sigma_limits(self) -> tuple[float, float]:
        return self.sigmas[0].item(), self.sigmas[-1].item()

    def denoiser(self, network: Callable[..., Any], sigma_data: float = 0.5) -> DiscreteDenoiser:
        return DiscreteDenoiser(network, self.sigmas, self.kind, learned_variance=self.learned_variance)

    def config(self) -> dict[str, Any]:
        betas = None if self.trained_betas is None else list(self.trained_betas)
        return asdict(self) | {"trained_betas": betas}


def parametrisation_from_config(config: dict[str, Any]) -> Parametrisation:
    """The parametrisation that `config()` wrote; ValueError where it is not one."""
    if config == EDM().config():
        return EDM()
    expected = set(Discrete.__dataclass_fields__)
    if set(config) != expected:
        raise ValueError(f"parametrisation has the keys {sorted(config)}: expected {sorted(expected)}.")
    betas = config["trained_betas"]
    return Discrete(**(config | {"trained_betas": None if betas is None else tuple(betas)}))
