"""Noise priors: Gaussian noise that is correlated over the frames of one clip (PYoCo, arXiv 2305.10474).

A prior is a T×T covariance over the frames. Every frame alone is N(0, I); clips, channels and pixels are
independent of each other.
Shapes: B clips, C channels, T frames, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None  # torch's CUDA builds bring it
Generators = torch.Generator | Sequence[torch.Generator] | None


class NoisePrior(ABC):
    """A law of noise over the frames of a clip; frozen, hashable and equal by value.

    name: the kind of prior, as `make_prior` spells it. alpha: its strength of correlation, or None.
    """

    name: ClassVar[str]
    is_endless: ClassVar[bool] = True  # whether it has a `stream`
    alpha: float | None

    @abstractmethod
    def covariance(self, num_frames: int) -> Tensor:
        """Covariance of the frames at one pixel: (T, T) float64, ones on the diagonal.

        Raises ValueError where num_frames is below 1 or more than the prior is defined for.
        """

    @abstractmethod
    def _factor(self, num_frames: int) -> Tensor | None:
        """F with F Fᵀ = covariance, (T, T) float64, also where that is singular; None says identity."""

    @abstractmethod
    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        """Endless frames from `white()`, which draws one frame of white noise."""

    def config(self) -> dict[str, Any]:
        """The prior as strict JSON (infinity is the string "inf"); `prior_from_config` reads it back."""
        alpha = "inf" if self.alpha == math.inf else self.alpha
        return {"name": self.name, "alpha": alpha}

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Noise of shape (B, C, T, H, W), correlated along T.

        generator: one, or B of them, and then a clip's noise is bitwise the same in every batch.
        device: where the noise goes; the default is the generator's device, else torch's.
        dtype: floating (default: torch's); narrower than float32 it is drawn and mixed in float32, then cast.
        Raises ValueError on a shape, dtype or number of generators that does not fit.
        """
        batch, channels, frames, height, width = _checked_shape(shape, "B C T H W")
        if (on := self._fused_on(frames, generator, device, dtype)) is not None:
            return self._sample_fused(shape, generator, on, dtype)
        if (generators := _one_per_clip(generator, batch)) is not None:
            # Clip by clip also through the product: BLAS may round differently for another batch size.
            clip = (1, channels, frames, height, width)
            return torch.cat([self.sample(clip, generator=g, device=device, dtype=dtype) for g in generators])
        dtype, compute_dtype = _dtypes(dtype)
        noise = white_noise(shape, generator=generator, device=device, dtype=compute_dtype)
        factor = None if frames == 1 else _factor_on(self, frames, noise.device, compute_dtype)
        if factor is not None:
            with torch.autocast(noise.device.type, enabled=False):
                # (T, T) @ (B·C, T, H·W)
                noise = torch.matmul(factor, noise.view(batch * channels, frames, height * width))
        return noise.view(tuple(shape)).to(dtype)

    def _fused_on(
        self, frames: int, generator: Generators, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> torch.device | None:
        """The GPU on which one kernel draws all of it, or None: see `noise_kernels`."""
        if self.name not in _WITH_ALPHA or frames == 1 or not HAS_TRITON:
            return None
        drawn = {_device(g.device) for g in _each(generator)} or {_device(device)}
        on = drawn.pop()
        fits = not drawn and on.type == "cuda" and (device is None or _device(device) == on)
        return on if fits and _dtypes(dtype)[1] == torch.float32 else None

    def _sample_fused(
        self, shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype | None
    ) -> Tensor:
        from pyoco_pipeline.noise_kernels import draw_correlated

        _one_per_clip(generator, shape[0])
        shared, fresh = _weights(self.alpha)  # type: ignore[arg-type]
        return draw_correlated(
            shape,
            shared,
            fresh,
            progressive=self.name == ProgressiveNoise.name,
            generators=generator,
            device=device,
            dtype=_dtypes(dtype)[0],
        )

    def stream(
        self,
        frame_shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """Endless frames (B, C, H, W), of which any T in a row have the law of `sample`; arguments as there.

        Raises ValueError as `sample` does, and NotImplementedError for a prior of a fixed number of frames.
        """
        shape = _checked_shape(frame_shape, "B C H W")
        _one_per_clip(generator, shape[0])
        dtype, compute_dtype = _dtypes(dtype)
        draw = partial(white_noise, shape, generator=generator, device=device, dtype=compute_dtype)
        frames = self._stream(draw)
        return (frame.to(dtype) for frame in frames)


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
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))

    def covariance(self, num_frames: int) -> Tensor:
        shared, _ = _weights(self.alpha)
        covariance = torch.full_like(_lags(_checked_num_frames(num_frames)), shared**2)
        return covariance.fill_diagonal_(1.0)

    def _factor(self, num_frames: int) -> Tensor | None:
        # The Cholesky factor in closed form, for it exists at ρ = 1 too. Column k > 0 holds
        # √((1-ρ)(1+kρ)/(1+(k-1)ρ)) on the diagonal and ρ√((1-ρ)/((1+(k-1)ρ)(1+kρ))) below it.
        shared, fresh = _weights(self.alpha)
        rho = shared**2
        k = torch.arange(num_frames, dtype=torch.float64, device="cpu")[1:]
        before, after = 1 + (k - 1) * rho, 1 + k * rho
        first = torch.ones(1, dtype=torch.float64, device="cpu")
        below = torch.cat([first * rho, rho * fresh / (before * after).sqrt()])
        diagonal = torch.cat([first, fresh * (after / before).sqrt()])
        return below.expand(num_frames, num_frames).tril(-1) + diagonal.diag()

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        shared, fresh = _weights(self.alpha)
        shared_frame = white()
        while True:
            yield shared * shared_frame + fresh * white()


@dataclass(frozen=True)
class ProgressiveNoise(NoisePrior):
    """ε_i = α/√(1+α²) ε_{i-1} + 1/√(1+α²) ε_ind,i from ε_0 ~ N(0, I), so Cov(ε_i, ε_j) = (α/√(1+α²))^|i-j|.

    alpha: in [0, ∞], else ValueError; 0 is i.i.d., ∞ repeats one frame, the paper's best is 2.
    """

    name = "progressive"
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))

    def covariance(self, num_frames: int) -> Tensor:
        shared, _ = _weights(self.alpha)
        return shared ** _lags(_checked_num_frames(num_frames)).abs()

    def _factor(self, num_frames: int) -> Tensor | None:
        # The recursion written out: ε_i = r^i ε_0 + Σ_{0<j≤i} r^(i-j) √(1-r²) ε_ind,j.
        shared, fresh = _weights(self.alpha)
        factor = (shared ** _lags(num_frames).clamp(min=0)).tril()
        factor[:, 1:] *= fresh
        return factor

    def _stream(self, white: Callable[[], Tensor]) -> Iterator[Tensor]:
        shared, fresh = _weights(self.alpha)
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


def white_noise(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Independent N(0, 1) of that shape; generator: one, or one for each entry of axis 0, else ValueError."""
    if (generators := _one_per_clip(generator, shape[0])) is not None:
        one = (1, *shape[1:])
        return torch.cat([white_noise(one, generator=g, device=device, dtype=dtype) for g in generators])
    if not isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), device=device, dtype=dtype)
    # Drawn where the generator lives, so that a CPU generator gives the same noise on every device.
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=dtype)
    return noise if device is None else noise.to(device)


@lru_cache(maxsize=64)
def _factor_on(prior: NoisePrior, num_frames: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    factor = prior._factor(num_frames)
    return None if factor is None else factor.to(device, dtype)


def _weights(alpha: float) -> tuple[float, float]:
    """α/√(1+α²) and 1/√(1+α²): standard deviations, whose squares add up to 1."""
    norm = math.hypot(1.0, alpha)
    return (1.0 if math.isinf(alpha) else alpha / norm), 1.0 / norm


def _lags(num_frames: int) -> Tensor:
    frame = torch.arange(num_frames, dtype=torch.float64, device="cpu")
    return frame[:, None] - frame[None, :]


def _device(device: torch.device | str | None) -> torch.device:
    """With its index, and torch's default for None."""
    found = torch.device(device) if device is not None else torch.get_default_device()
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _each(generator: Generators) -> Sequence[torch.Generator]:
    return (generator,) if isinstance(generator, torch.Generator) else (generator or ())


def _dtypes(dtype: torch.dtype | None) -> tuple[torch.dtype, torch.dtype]:
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: expected a floating dtype such as torch.float32.")
    return dtype, torch.promote_types(dtype, torch.float32)


def _checked_alpha(alpha: Any) -> float:
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not float(alpha) >= 0:
        raise ValueError(f"alpha is {alpha!r}: expected a number from 0 (i.i.d.) to inf (one frame).")
    return float(alpha)


def _checked_num_frames(num_frames: int) -> int:
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected at least 1.")
    return num_frames


def _checked_shape(shape: Sequence[int], axes: str) -> tuple[int, ...]:
    if len(shape) != len(axes.split()) or any(size < 1 for size in shape):
        raise ValueError(f"shape is {tuple(shape)}: expected ({', '.join(axes.split())}), each at least 1.")
    return tuple(shape)


def _one_per_clip(generator: Generators, batch: int) -> Sequence[torch.Generator] | None:
    if generator is None or isinstance(generator, torch.Generator):
        return None
    if len(generator) != batch:
        raise ValueError(f"generator holds {len(generator)}: expected one, or {batch}, one for every clip.")
    return generator


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
