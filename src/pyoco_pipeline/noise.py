"""Noise priors: Gaussian noise that is correlated over the frames of one clip (PYoCo, arXiv 2305.10474).

A prior is a T×T covariance over the frames. Every frame alone is N(0, I); clips, channels and pixels are
independent of each other.
Shapes: B clips, C channels, T frames, H height, W width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.noise_prior import Generators, NoisePrior, weights, white_noise

__all__ = [
    "EMPIRICAL", "CovarianceNoise", "Generators", "IIDNoise", "MixedNoise", "NoisePrior", "ProgressiveNoise",
    "make_prior", "prior_from_config", "white_noise",
]  # fmt: skip


@dataclass(frozen=True)
class IIDNoise(NoisePrior):
    """Independent frames: the noise of an image model, frame by frame."""

    name = "iid"
    alpha = None

    def covariance(self, num_frames: int) -> Tensor:
        return torch.eye(_checked_num_frames(num_frames), dtype=torch.float64, device="cpu")

    def _factor(self, num_frames: int) -> Tensor | None:
        return None

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        while True:
            yield white()


@dataclass(frozen=True)
class MixedNoise(NoisePrior):
    """ε_i = α/√(1+α²) ε_shared + 1/√(1+α²) ε_ind,i, so Cov(ε_i, ε_j) = α²/(1+α²) for i ≠ j.

    alpha: in [0, ∞], else ValueError; 0 is i.i.d., ∞ repeats one frame, the paper's best is 1.
    """

    name = "mixed"
    is_progressive = False
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))

    def covariance(self, num_frames: int) -> Tensor:
        shared, _ = weights(self.alpha)
        covariance = torch.full_like(_lags(_checked_num_frames(num_frames)), shared**2)
        return covariance.fill_diagonal_(1.0)

    def _factor(self, num_frames: int) -> Tensor | None:
        # The Cholesky factor in closed form, for it exists at ρ = 1 too. Column k > 0 holds
        # √((1-ρ)(1+kρ)/(1+(k-1)ρ)) on the diagonal and ρ√((1-ρ)/((1+(k-1)ρ)(1+kρ))) below it.
        shared, fresh = weights(self.alpha)
        rho = shared**2
        k = torch.arange(num_frames, dtype=torch.float64, device="cpu")[1:]
        before, after = 1 + (k - 1) * rho, 1 + k * rho
        first = torch.ones(1, dtype=torch.float64, device="cpu")
        below = torch.cat([first * rho, rho * fresh / (before * after).sqrt()])
        diagonal = torch.cat([first, fresh * (after / before).sqrt()])
        return below.expand(num_frames, num_frames).tril(-1) + diagonal.diag()

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        shared, fresh = weights(self.alpha)
        shared_frame = white()
        while True:
            yield shared * shared_frame + fresh * white()


@dataclass(frozen=True)
class ProgressiveNoise(NoisePrior):
    """ε_i = α/√(1+α²) ε_{i-1} + 1/√(1+α²) ε_ind,i from ε_0 ~ N(0, I), so Cov(ε_i, ε_j) = (α/√(1+α²))^|i-j|.

    alpha: in [0, ∞], else ValueError; 0 is i.i.d., ∞ repeats one frame, the paper's best is 2.
    """

    name = "progressive"
    is_progressive = True
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))

    def covariance(self, num_frames: int) -> Tensor:
        shared, _ = weights(self.alpha)
        return shared ** _lags(_checked_num_frames(num_frames)).abs()

    def _factor(self, num_frames: int) -> Tensor | None:
        # The recursion written out: ε_i = r^i ε_0 + Σ_{0<j≤i} r^(i-j) √(1-r²) ε_ind,j.
        shared, fresh = weights(self.alpha)
        factor = (shared ** _lags(num_frames).clamp(min=0)).tril()
        factor[:, 1:] *= fresh
        return factor

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        shared, fresh = weights(self.alpha)
        frame = white()
        while True:
            yield frame.clone()  # the caller may write into what it gets
            frame = shared * frame + fresh * white()


@dataclass(frozen=True, init=False, repr=False)
class CovarianceNoise(NoisePrior):
    """Noise of any covariance over at most N frames; T < N frames take the leading (T, T) block.

    matrix: (N, N), symmetric, positive semi-definite, ones on its diagonal; or (N,), the first row of a
        Toeplitz matrix: the correlations at lag 0, 1, … A list, array or tensor. ValueError on anything else.
    """

    name = "covariance"
    is_endless = False
    alpha = None
    matrix: tuple[tuple[float, ...], ...]

    def __init__(self, matrix: Any) -> None:
        object.__setattr__(self, "matrix", tuple(map(tuple, _checked_covariance(matrix).tolist())))

    def __repr__(self) -> str:
        first_row = ", ".join(f"{value:.4g}" for value in self.matrix[0][:4])
        more = ", …" if len(self.matrix) > 4 else ""
        return f"CovarianceNoise({len(self.matrix)} frames, first row [{first_row}{more}])"

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "matrix": [list(row) for row in self.matrix]}

    def covariance(self, num_frames: int) -> Tensor:
        if _checked_num_frames(num_frames) > len(self.matrix):
            raise ValueError(
                f"num_frames is {num_frames}: expected at most {len(self.matrix)}, "
                "the frames that this CovarianceNoise is defined for."
            )
        full = torch.tensor(self.matrix, dtype=torch.float64, device="cpu")
        return full[:num_frames, :num_frames].clone()

    def _factor(self, num_frames: int) -> Tensor | None:
        eigenvalues, vectors = torch.linalg.eigh(self.covariance(num_frames))
        # Rounding leaves eigenvalues of a singular matrix slightly negative.
        return vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        raise NotImplementedError(
            f"CovarianceNoise has no endless stream: its covariance ends at frame {len(self.matrix)}. "
            "Use sample, or a prior that is defined for every number of frames."
        )


_WITH_ALPHA: dict[str, type[MixedNoise] | type[ProgressiveNoise]] = {
    prior.name: prior for prior in (MixedNoise, ProgressiveNoise)
}


EMPIRICAL = "empirical"  # the name under which settings give a measured Toeplitz row


def make_prior(
    name: str, alpha: float | None = None, *, correlation: Sequence[float] | None = None
) -> NoisePrior:
    """The prior named iid, mixed or progressive (alpha in [0, ∞]), or empirical; else ValueError.

    correlation: of empirical, measured between frames at distance 0, 1, …: it is a `CovarianceNoise` of that Toeplitz
        row, which is how its `config` names it. Each name ignores what is another's.
    """
    if name == IIDNoise.name:
        return IIDNoise()
    if name == EMPIRICAL:
        if correlation is None:
            raise ValueError("name is 'empirical' without a correlation: expected those at distance 0, 1, …")
        return CovarianceNoise(list(correlation))
    if name not in _WITH_ALPHA:
        known = ", ".join([IIDNoise.name, *_WITH_ALPHA, EMPIRICAL])
        raise ValueError(f"name is {name!r}: expected one of {known}.")
    return _WITH_ALPHA[name](alpha)  # type: ignore[arg-type]  # the constructor refuses None in words


def prior_from_config(config: dict[str, Any]) -> NoisePrior:
    """The prior that `NoisePrior.config` wrote; ValueError where it is not one."""
    expected = {"name", "matrix"} if config.get("name") == CovarianceNoise.name else {"name", "alpha"}
    if set(config) != expected:
        raise ValueError(f"config has the keys {sorted(config)}: expected {sorted(expected)}.")
    if "matrix" in config:
        return CovarianceNoise(config["matrix"])
    alpha = config["alpha"]
    return make_prior(config["name"], math.inf if alpha == "inf" else alpha)


def _lags(num_frames: int) -> Tensor:
    frame = torch.arange(num_frames, dtype=torch.float64, device="cpu")
    return frame[:, None] - frame[None, :]


def _checked_alpha(alpha: Any) -> float:
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not float(alpha) >= 0:
        raise ValueError(f"alpha is {alpha!r}: expected a number from 0 (i.i.d.) to inf (one frame).")
    return float(alpha)


def _checked_num_frames(num_frames: int) -> int:
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected at least 1.")
    return num_frames


def _checked_covariance(matrix: Any) -> Tensor:
    """(N, N) float64 from a covariance matrix or a Toeplitz row."""
    covariance = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
    if covariance.dim() == 1:
        covariance = covariance[_lags(len(covariance)).abs().long()]
    shape = tuple(covariance.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"matrix has shape {shape}: expected (N, N), or (N,), the first row of a Toeplitz one."
        )
    if not covariance.isfinite().all():
        raise ValueError("matrix holds values that are not finite: expected correlations.")
    tolerance = 1e-6  # a correlation matrix that was estimated in float32 is this exact
    asymmetry = (covariance - covariance.T).abs().max().item()
    if asymmetry > tolerance:
        raise ValueError(f"matrix differs from its transpose by {asymmetry:.3g}: expected a symmetric one.")
    diagonal = covariance.diagonal()
    if (diagonal - 1).abs().max() > tolerance:
        raise ValueError(f"matrix has the diagonal {diagonal.tolist()}: expected 1, the variance of a frame.")
    smallest = torch.linalg.eigvalsh(covariance)[0].item()
    if smallest < -tolerance:
        raise ValueError(f"matrix has the eigenvalue {smallest:.3g}: expected a positive semi-definite one.")
    return (covariance + covariance.T) / 2
