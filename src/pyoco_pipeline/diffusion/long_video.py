"""Clips longer than a model was trained on: window by window, on one endless stream of correlated noise."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyoco_pipeline.diffusion.denoiser import Denoise
from pyoco_pipeline.diffusion.known_frames import KnownFrames
from pyoco_pipeline.diffusion.samplers import sample
from pyoco_pipeline.noise import Generators, NoisePrior


def sample_long(
    denoise: Denoise,
    prior: NoisePrior,
    window_shape: Sequence[int],
    num_frames: int,
    overlap: int,
    *,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    given: Callable[[int], dict[str, Any]] | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Clips of num_frames, as their new frames (B, C, n, H, W), window by window; memory is that of one window.

    window_shape: (B, C, T, H, W) of what denoise sees at a time. The first window gives T frames, each later one
        T - overlap: its first `overlap` frames are the last ones of the window before (`KnownFrames`).
    num_frames: as `reachable` allows. overlap: from 0 to T - 1.
    generator: one, or B of them to make a clip independent of its batch. dtype: as in `sample`.
    given: the further conditions of the window that begins at a frame, such as its part of a low-resolution clip.
    options: the further arguments of `sample`, conditions among them, which are the same in every window.

    The noise is `prior.stream`: any T frames in a row have the law that the model was trained with, and a frame starts
    from the same noise in both windows that see it, so that what is new goes with it (see `KnownFrames`). What churn
    and SDE solvers inject is drawn anew in every window; the known frames end as they are all the same.
    Raises ValueError, before anything is sampled, on a number of frames out of reach, a prior without a stream, and
    init, which is of one window.
    """
    windows = reachable(num_frames, window_shape[2], overlap)
    if "init" in options:
        raise ValueError("init is given: expected none, as windows are sampled one after the other.")
    batch, channels, _, height, width = window_shape
    try:
        frames = prior.stream(
            (batch, channels, height, width), generator=generator, device=device, dtype=dtype
        )
    except NotImplementedError as error:
        raise ValueError(
            f"the prior is {prior}, which ends with its last frame: expected iid, mixed or progressive noise, which "
            "long videos can go on with."
        ) from error
    solve = partial(
        sample,
        prior=prior,
        shape=tuple(window_shape),
        generator=generator,
        device=device,
        dtype=dtype,
        **options,
    )
    of_window = given or (lambda first: {})
    return _windows(denoise, solve, frames, windows, window_shape[2], overlap, of_window)


def reachable(num_frames: int, window: int, overlap: int) -> int:
    """The number of windows that give num_frames, window + k (window - overlap) for some k >= 0.

    Raises ValueError where there is none, naming the nearest numbers of frames for which there is, and unless
    0 <= overlap < window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"overlap is {overlap}: expected 0 <= overlap < {window}, the frames of a window.")
    stride = window - overlap
    more, rest = divmod(num_frames - window, stride)
    if num_frames >= window and rest == 0:
        return 1 + more
    below = window + more * stride
    nearest = str(window) if num_frames < window else f"{below} or {below + stride}"
    raise ValueError(
        f"num_frames is {num_frames}, out of reach for windows of {window} frames that overlap by {overlap}: the "
        f"nearest is {nearest}."
    )


def _windows(
    denoise: Denoise,
    solve: partial[Tensor],
    frames: Iterator[Tensor],
    count: int,
    window: int,
    overlap: int,
    given: Callable[[int], dict[str, Any]],
) -> Iterator[Tensor]:
    stride = window - overlap
    is_known = torch.arange(window) < overlap
    noise = _stacked(frames, window)
    clip = solve(denoise, start=noise, **given(0))
    yield clip.clone()  # the caller may write into what it gets
    for place in range(1, count):
        noise = torch.cat([noise[:, :, stride:], _stacked(frames, stride)], dim=2)
        clip = clip.roll(-stride, dims=2)  # the frames that both windows see come first
        clip = solve(KnownFrames(denoise, clip, is_known), start=noise, **given(place * stride))
        yield clip[:, :, overlap:].clone()


def _stacked(frames: Iterator[Tensor], count: int) -> Tensor:
    return torch.stack(list(islice(frames, count)), dim=2)
