"""What a stage of the cascade is given besides noise and text: frames of the clip itself, or the clip in small.

Both are concatenated to the noisy clip, with noise of their own whose level the network is told (noise augmentation:
Ho et al., Cascaded Diffusion Models, arXiv 2106.15282; Imagen Video, arXiv 2210.02303, sec. 2.5), so that a stage
trained on real clips forgives what the stage before it gets wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyoco_pipeline.data.views import shrink
from pyoco_pipeline.models.conditioning import key_frame_channels, low_resolution_channels
from pyoco_pipeline.noise import Generators, NoisePrior, prior_from_config

Drawn = dict[str, Tensor]  # batch first
MASKS = ("interpolation", "prediction", "inpainting", "nothing", "everything")


class Condition(Protocol):
    """How a stage's further inputs are made from a clip in training, and given in sampling."""

    prior: NoisePrior
    max_noise_level: float

    def concat_channels(self, channels: int) -> int:
        """How many channels are concatenated to clips of so many."""
        ...

    def draw(self, shape: torch.Size, device: torch.device, generator: torch.Generator) -> Drawn:
        """What is random for a batch of clips (B, C, T, H, W): noise levels, noise, and which frames are given."""
        ...

    def of(self, x0: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        """The network's keyword arguments for the clips themselves (B, C, T, H, W)."""
        ...

    def config(self) -> dict[str, Any]:
        """As JSON; `condition_from_config` reads it back."""
        ...


@dataclass(frozen=True)
class FramesCondition:
    """Some frames of the clip, and a mask that says which; zeros elsewhere.

    One mechanism for three tasks, by the law of the mask. masks: its weights in training.
        interpolation  every key_stride-th frame from the first (16 frames at stride 5 become 76)
        prediction     the first k, k uniform from 1 to T - 1
        inpainting     each frame with probability 1/2
        nothing        none
        everything     all: what is given is to come back, without its noise
    An image is given nothing. max_noise_level: levels are uniform in [0, it]; see `augment`. prior: of that noise.
    """

    key_stride: int
    masks: Mapping[str, float]
    max_noise_level: float
    prior: NoisePrior

    def concat_channels(self, channels: int) -> int:
        return channels + 1

    def draw(self, shape: torch.Size, device: torch.device, generator: torch.Generator) -> Drawn:
        level = _levels(shape[0], self.max_noise_level, device, generator)
        is_given = self._draw_masks(shape[0], shape[2], device, generator)
        return {"level": level, "is_given": is_given, "noise": _noise(self.prior, shape, device, generator)}

    def of(self, x0: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        return self.given(x0, drawn["is_given"], drawn["level"], drawn["noise"])

    def given(self, clip: Tensor, is_given: Tensor, level: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """clip: (B, C, T, H, W), of which the frames is_given (B, T) count; level: (B,); noise: like clip."""
        return {
            "concat": key_frame_channels(augment(clip, level, noise), is_given),
            "noise_level": level,
        }

    def key_frames(self, num_frames: int) -> Tensor:
        """The mask of interpolation: (T,) bool."""
        return torch.arange(num_frames) % self.key_stride == 0

    def covers(self, is_given: Tensor) -> bool:
        """Whether clips were given just these frames in training: (T,) bool."""
        given, frames = int(is_given.sum()), len(is_given)
        fits = {
            "interpolation": bool((is_given == self.key_frames(frames)).all()),
            "prediction": 0 < given < frames and bool(is_given[:given].all()),
            "inpainting": True,
            "nothing": given == 0,
            "everything": given == frames,
        }
        return any(fits[name] for name in MASKS if self.masks.get(name))

    def config(self) -> dict[str, Any]:
        return {
            "kind": "frames",
            "key_stride": self.key_stride,
            "masks": dict(self.masks),
            "max_noise_level": self.max_noise_level,
            "noise": self.prior.config(),
        }

    def _draw_masks(
        self, batch: int, frames: int, device: torch.device, generator: torch.Generator
    ) -> Tensor:
        weights = torch.tensor([self.masks.get(name, 0.0) for name in MASKS], device=device)
        kind = torch.multinomial(weights, batch, replacement=True, generator=generator)
        share = torch.rand(batch, device=device, generator=generator)
        each = torch.rand(batch, frames, device=device, generator=generator)
        place = torch.arange(frames, device=device)
        first = 1 + (share * (frames - 1)).long()
        nothing = torch.zeros(batch, frames, dtype=torch.bool, device=device)
        laws = torch.stack(
            [
                self.key_frames(frames).to(device).expand(batch, -1),
                place < first[:, None],
                each < 0.5,
                nothing,
                ~nothing,
            ],
            dim=1,
        )
        return laws[torch.arange(batch, device=device), kind] & (frames > 1)


@dataclass(frozen=True)
class LowResolutionCondition:
    """The clip `scale` times smaller, resized to the stage's own size.

    max_noise_level: levels are uniform in [0, it]; see `augment`. prior: of that noise, which is drawn in the stage's
    size, after resizing: resized noise is no longer white.
    """

    scale: int
    max_noise_level: float
    prior: NoisePrior

    def concat_channels(self, channels: int) -> int:
        return channels

    def draw(self, shape: torch.Size, device: torch.device, generator: torch.Generator) -> Drawn:
        level = _levels(shape[0], self.max_noise_level, device, generator)
        return {"level": level, "noise": _noise(self.prior, shape, device, generator)}

    def of(self, x0: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        return self.given(shrink(x0, self.scale), drawn["level"], drawn["noise"])

    def given(self, small: Tensor, level: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """small: (B, C, T, h, w); level: (B,); noise: (B, C, T, H, W)."""
        resized = low_resolution_channels(small, (noise.shape[3], noise.shape[4]))
        return {"concat": augment(resized, level, noise), "noise_level": level}

    def config(self) -> dict[str, Any]:
        return {
            "kind": "low_resolution",
            "scale": self.scale,
            "max_noise_level": self.max_noise_level,
            "noise": self.prior.config(),
        }


def augment(clip: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """sqrt(1 - s²) clip + s noise, with s = level (B,) in [0, 1]: 0 leaves the clip, 1 leaves nothing of it."""
    s = level.view(-1, 1, 1, 1, 1)
    return (1 - s**2).sqrt() * clip + s * noise


def condition_from_config(config: Mapping[str, Any] | None) -> Condition | None:
    """What `Condition.config` wrote; None for None."""
    if config is None:
        return None
    options = {key: value for key, value in config.items() if key not in ("kind", "noise")}
    kinds = {"frames": FramesCondition, "low_resolution": LowResolutionCondition}
    return kinds[config["kind"]](**options, prior=prior_from_config(config["noise"]))


def _levels(batch: int, highest: float, device: torch.device, generator: torch.Generator) -> Tensor:
    return highest * torch.rand(batch, device=device, generator=generator)


def _noise(prior: NoisePrior, shape: torch.Size, device: torch.device, generator: Generators) -> Tensor:
    return prior.sample(shape, generator=generator, device=device, dtype=torch.float32)
