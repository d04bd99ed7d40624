"""The pipeline that an exported folder is loaded as: diffusers' conventions around this project's sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from pydantic import Field, ValidationError
from torch import Tensor

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise, Expert, ExpertDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting.components import CaptionEncoder, ImageModel, VideoModel
from pyoco_pipeline.models.autoencoder import Autoencoder
from pyoco_pipeline.noise import NoisePrior, prior_from_config
from pyoco_pipeline.sampling import sample_batch
from pyoco_pipeline.training.settings import Positive, Seed, Settings

Frames = list[list[Image.Image]] | np.ndarray | Tensor
OutputType = Literal["pil", "np", "pt", "uint8"]


class Sampling(Settings):
    """What `generate` was set to when the folder was written; kept in model_index.json, the defaults of a call."""

    noise: dict[str, Any]  # the prior's configuration
    sampler: SamplerSettings = SamplerSettings()
    batch_size: Positive = 16
    seed: Seed = 0
    fps: float = Field(8.0, gt=0)
    image_below: float | None = Field(None, gt=0)  # the sigma under which the image model denoises

    def config(self) -> dict[str, Any]:
        """As strict JSON: infinity is the string "inf"."""
        return _strict(self.model_dump(mode="python"))

    @property
    def prior(self) -> NoisePrior:
        """The law of the noise."""
        return prior_from_config(self.noise)


@dataclass
class VideoPipelineOutput(BaseOutput):
    """frames: the clips, as `output_type` says; fps: how fast they were trained to play."""

    frames: Frames
    fps: float


class VideoPipeline(DiffusionPipeline):
    """Clips for prompts, the same as `kedro run --pipeline generate` samples: clip i is drawn from (seed, i).

    vae: of a latent model, the one whose latents it was trained on; else UserError. image_model: that denoises below
    sampling.image_below. sampling: `Sampling.config()`; without it, the trained prior and the settings' own defaults.
    """

    _optional_components: ClassVar[list[str]] = ["vae", "image_model"]

    def __init__(
        self,
        video_model: VideoModel,
        text_encoder: CaptionEncoder,
        vae: AutoencoderKL | None,
        image_model: ImageModel | None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            video_model=video_model, text_encoder=text_encoder, vae=vae, image_model=image_model
        )
        trained, given = video_model.info.autoencoder_sha256, Autoencoder(vae).sha256 if vae else None
        if given != trained:
            raise UserError(
                f"vae has the sha256 {given}, the model was trained with {trained} (None: on pixels, without one): "
                "leave vae out of the call, so that the folder's own is loaded."
            )
        chosen = _validated(Sampling, {"noise": video_model.info.noise} | dict(sampling or {}), "sampling")
        if (image_model is None) != (chosen.image_below is None):
            raise UserError(
                f"image_model is {'not ' if image_model is None else ''}given, and sampling.image_below is "
                f"{chosen.image_below}: leave both out of the call, so that the folder's own are taken."
            )
        self.register_to_config(sampling=chosen.config())

    @property
    def sampling(self) -> Sampling:
        """The defaults of a call."""
        return _validated(Sampling, self.config.sampling, "sampling")

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> VideoPipelineOutput | tuple[Frames]:
        """Sample one clip per prompt; what is None is as `generate` had it.

        negative_prompt: what guidance leads away from. num_frames: other than trained is possible, as far as the prior
        and the network are defined for it. guidance_interval: (low, high) in sigma. batch_size: clips at once.
        output_type: pil, N lists of T images; np, (N, T, H, W, 3) float32 in [0, 1]; pt, (N, T, 3, H, W) likewise;
        uint8, (N, T, H, W, 3) as `generate` keeps them.
        Raises UserError for values that don't fit, and for captions that need a text encoder that is not there.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("prompt is an empty list: give at least one caption.")
        if output_type not in ("pil", "np", "pt", "uint8"):
            raise UserError(f"output_type is {output_type!r}: give one of pil, np, pt, uint8.")
        if self.video_model.dtype != torch.float32:
            raise UserError(
                f"the model is in {self.video_model.dtype}: call pipe.to(torch.float32), and the pipeline under "
                "torch.autocast if it shall compute in less."
            )
        trained = self.sampling
        sampler = {
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "solver": solver,
        }
        given = {
            "batch_size": batch_size,
            "seed": seed,
            "sampler": trained.sampler.model_dump() | _not_none(sampler),
        }
        chosen = _validated(Sampling, trained.model_dump() | _not_none(given), "the call")
        frames, height, width = self.video_model.info.shape
        shape = (num_frames or frames, height, width)
        videos = self._sample(prompts, negative_prompt, chosen, shape)
        clips = _as(output_type, videos)
        return VideoPipelineOutput(frames=clips, fps=chosen.fps) if return_dict else (clips,)

    def _sample(
        self, prompts: list[str], negative_prompt: str, sampling: Sampling, shape: tuple[int, int, int]
    ) -> Tensor:
        """Clips (N, T, H, W, 3) uint8."""
        device = self.video_model.device
        denoise, prior = self._denoiser(sampling), sampling.prior
        autoencoder = Autoencoder(self.vae) if self.vae is not None else None
        cond = self.text_encoder.encode(prompts)
        if self.video_model.network.options.fps:
            cond["fps"] = torch.full((len(prompts),), sampling.fps)
        null = {key: value.to(device) for key, value in self.text_encoder.encode([negative_prompt]).items()}
        videos = []
        for first in self.progress_bar(range(0, len(prompts), sampling.batch_size)):
            places = range(first, min(first + sampling.batch_size, len(prompts)))
            batch = {key: value[places.start : places.stop].to(device) for key, value in cond.items()}
            seeds = [mix_seed(sampling.seed, i) for i in places]
            videos.append(
                sample_batch(denoise, prior, sampling.sampler, batch, null, shape, seeds, autoencoder).cpu()
            )
        return torch.cat(videos)

    def _denoiser(self, sampling: Sampling) -> Denoise:
        if self.image_model is None:
            return self.video_model.denoiser()
        below = sampling.image_below
        assert below is not None  # __init__ has seen to that
        (low, _), (_, high) = self.image_model.sigma_limits, self.video_model.sigma_limits
        return ExpertDenoiser(
            [
                Expert(low, below, self.image_model.denoiser()),
                Expert(below, high, self.video_model.denoiser()),
            ]
        )


def _as(output_type: OutputType, videos: Tensor) -> Frames:
    if output_type == "uint8":
        return videos
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in video] for video in videos.numpy()]
    scaled = videos.float() / 255
    return scaled.numpy() if output_type == "np" else scaled.permute(0, 1, 4, 2, 3)


def _not_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _validated(kind: type[Sampling], values: Mapping[str, Any], where: str) -> Sampling:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{where}: {key}: {wrong['msg']}, found {wrong['input']!r}.") from error


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return "inf" if value == math.inf else value
