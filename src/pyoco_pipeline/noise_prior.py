"""What a noise prior is, how clips are drawn from it, and the white noise that they are made of.

Shapes: B clips, C channels, T frames, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
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
    is_progressive: ClassVar[bool | None] = (
        None  # of one that a kernel draws: whether frames depend on the one before
    )
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
        if self.is_progressive is None or frames == 1 or not HAS_TRITON:
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
        shared, fresh = weights(self.alpha)  # type: ignore[arg-type]
        return draw_correlated(
            shape,
            shared,
            fresh,
            progressive=bool(self.is_progressive),
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


def weights(alpha: float) -> tuple[float, float]:
    """Standard deviations of what frames share and of what each has alone, α/√(1+α²) and 1/√(1+α²)."""
    norm = math.hypot(1.0, alpha)
    return (1.0 if math.isinf(alpha) else alpha / norm), 1.0 / norm


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
