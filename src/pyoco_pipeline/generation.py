"""Sampling captioned clips from a trained stage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from pyoco_pipeline.cascade.conditions import Condition, FramesCondition, condition_from_config
from pyoco_pipeline.config import ExpertSettings, GenerateSettings, LaterStageSettings
from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.embeddings import Conditioning, TextEmbeddings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise, Expert, ExpertDenoiser, TiledDenoiser
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import FrameByFrame, StageInfo, load_image_model, load_stage_info, load_video_model
from pyoco_pipeline.models.autoencoder import Autoencoder, check_autoencoder
from pyoco_pipeline.models.convolutions import tuned_convolutions
from pyoco_pipeline.models.cuda_graphs import CapturedDenoiser
from pyoco_pipeline.models.fast import lower_weights
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.models.parametrisation import read_parametrisation
from pyoco_pipeline.models.text import TextEncoder, text_encoder_folder
from pyoco_pipeline.noise import NoisePrior, prior_from_config
from pyoco_pipeline.sampling import Start, Windows, check_thresholding, check_windows, sample_batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """Clips of the user (T, H, W, 3) uint8 that sampling starts from, for caption i clip i, from the first again.

    sigma: of the noise that they are put under; or keep_frames: the frames that stay as they are.
    """

    clips: Sequence[np.ndarray]
    sigma: float | None = None
    keep_frames: tuple[int, ...] | None = None

    def stacked(self, places: range) -> Tensor:
        """(B, T, H, W, 3) uint8."""
        return torch.from_numpy(np.stack([self.clips[i % len(self.clips)] for i in places]))


def generate_clips(
    model: Path,
    settings: GenerateSettings,
    captions: Sequence[str],
    embeddings: TextEmbeddings,
    shape: tuple[int, int, int],
    autoencoder: Autoencoder | None = None,
    fps: float | None = None,
    material: Material | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """Clips (T, H, W, 3) uint8 for captions, from the stage in folder `model`, clip i from seed (seed, i).

    shape: (frames, height, width), that of the clips or latents the model was trained on. autoencoder: of the latents.
    fps: frames per second of the clips, which a model inflated with fps needs. material: what they start from. first:
    the place of the first caption among all, where these are a share of them.

    Raises UserError for a prior other than the model's unless that is asked for, for another text encoder, autoencoder
    or shape, for noise levels that the model does not know, and for experts that do not fit together.
    """
    info = load_stage_info(model)
    check_autoencoder(model, autoencoder.sha256 if autoencoder else None)
    check_thresholding(settings.sampler, autoencoder is not None)
    if info.shape != shape:
        raise UserError(
            f"{model} was trained on clips of (frames, height, width) {info.shape}, the ingested ones are {shape}: "
            "run `finetune_video` anew, or set ingest back."
        )
    prior = sampling_prior(prior_from_config(info.noise), settings)
    if info.text_encoder_sha256 != embeddings.encoder_sha256:
        raise UserError(
            f"{model} was trained with another text encoder than {embeddings.folder} was made with: "
            "run `finetune_video` anew, or set ingest.text_encoder back."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoise = open_denoiser(model, settings, device)
    if autoencoder is not None:
        autoencoder.to(device)
    condition = condition_from_config(info.condition)
    null = embeddings.null(device)
    cond = CaptionEmbedder(embeddings)(captions)
    if fps is not None and read_json(model / "temporal.json").get("fps"):
        cond["fps"] = torch.full((len(captions),), fps)
    for start in range(0, len(captions), settings.batch_size):
        batch = {key: value[start : start + settings.batch_size].to(device) for key, value in cond.items()}
        places = range(first + start, first + min(start + settings.batch_size, len(captions)))
        seeds = [mix_seed(settings.seed, i) for i in places]
        with sampling_mode(settings, device):
            clip = as_sampled(material.stacked(places).to(device), autoencoder) if material else None
            if isinstance(condition, FramesCondition):
                channels = autoencoder.channels if autoencoder else 3
                batch |= _given_frames(condition, (len(seeds), channels, *shape), clip, material, device)
            videos = sample_batch(
                denoise,
                prior,
                settings.sampler,
                batch,
                null,
                shape,
                seeds,
                autoencoder,
                start=_start(clip, material, condition),
                windows=base_windows(settings, shape[0]),
            ).cpu()
        yield from videos  # outside: a generator would leave the caller in inference mode


def base_windows(settings: GenerateSettings, window: int) -> Windows | None:
    """How clips of settings.num_frames come from a model of `window` frames; None where it makes them at once."""
    if settings.num_frames is None or settings.num_frames == window:
        return None
    overlap = window // 2 if settings.overlap is None else settings.overlap
    check_windows(settings.num_frames, window, overlap)
    return Windows(settings.num_frames, overlap)


def as_sampled(stored: Tensor, autoencoder: Autoencoder | None) -> Tensor:
    """Clips (B, T, H, W, 3) uint8 as what a stage samples: pixels in [-1, 1], or the means of their latents."""
    if autoencoder is None:
        return to_float(stored)
    mean = autoencoder.encode(stored).permute(0, 4, 1, 2, 3).float().chunk(2, dim=1)[0]
    return autoencoder.scaling.apply(mean)


def _start(clip: Tensor | None, material: Material | None, condition: Condition | None) -> Start | None:
    if clip is None or material is None:
        return None
    if material.sigma is not None:
        return Start(clip, sigma=material.sigma)
    is_given = isinstance(condition, FramesCondition)
    return Start(clip, is_known=_mask(material, clip.shape[2]), is_given=is_given)


def _given_frames(
    condition: FramesCondition,
    shape: tuple[int, ...],
    clip: Tensor | None,
    material: Material | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """The inputs of a base stage that was trained to be given frames: those that are kept, or none."""
    batch, _, frames = shape[:3]
    zeros = torch.zeros(shape, device=device)
    mask = _mask(material, frames)
    level = torch.zeros(batch, device=device)
    given = zeros if clip is None else clip
    return condition.given(given, mask.to(device).expand(batch, -1), level, zeros)


def _mask(material: Material | None, frames: int) -> Tensor:
    """(T,) bool, the frames that are kept."""
    mask = torch.zeros(frames, dtype=torch.bool)
    mask[list((material.keep_frames if material else None) or ())] = True
    return mask


@contextmanager
def sampling_mode(settings: GenerateSettings, device: torch.device) -> Iterator[None]:
    """Within: no gradients, and the network's precision and convolutions; the solver's arithmetic stays in float32."""
    precision = torch.autocast(device.type, torch.bfloat16, enabled=_is_bf16(settings, device))
    with torch.inference_mode(), precision, tuned_convolutions(settings.tune_convolutions):
        yield


def _is_bf16(settings: GenerateSettings, device: torch.device) -> bool:
    return settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")


def open_denoiser(model: Path, settings: GenerateSettings, device: torch.device) -> Denoise:
    """The denoiser of the stage in folder `model`, or the ensemble of settings.experts, loaded as it is needed.

    Raises UserError for experts with a gap or an overlap, trained on other noise levels than asked for, or with another
    prior, shape or text encoder than the stage in `model`; and for a stage that is itself an expert, alone.
    """
    info = load_stage_info(model)
    if not settings.experts:
        if info.sigma_range != (0.0, None):
            raise UserError(
                f"{model} is an expert, {_trained_on(info)}: name it in generate.experts with those of the other "
                "noise levels."
            )
        return load_denoiser(model, device, settings)
    experts = []
    for place, asked in enumerate(settings.experts):
        folder = Path(asked.model) if asked.model else model
        _check_expert(f"generate.experts[{place}]", folder, asked, info)
        low, high = read_parametrisation(folder).sigma_limits
        ends = max(low, asked.sigma_min), min(high, asked.sigma_max)
        experts.append((*ends, partial(load_denoiser, folder, device, settings)))
    try:
        return ExpertDenoiser(
            [Expert(low, high, load=load) for low, high, load in experts], keep=settings.keep_experts
        )
    except ValueError as error:
        raise UserError(f"generate.experts: {error}") from error


def load_denoiser(folder: Path, device: torch.device, settings: GenerateSettings | None = None) -> Denoise:
    """The denoiser of the stage in `folder`; of an image model, or one trained on images alone, frame by frame."""
    info = load_stage_info(folder)
    network = FrameByFrame(load_image_model(folder)) if info.is_image_model else load_video_model(folder)
    network.eval().to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings and _is_bf16(settings, device):
        lower_weights(network, torch.bfloat16)
    if settings and settings.compile:
        network.compile_layers()
    denoise: Denoise = read_parametrisation(folder).denoiser(network, info.sigma_data)
    if settings and settings.cuda_graphs:
        denoise = CapturedDenoiser(denoise, "generate.cuda_graphs")
    return TiledDenoiser(denoise, (1, None, None)) if info.frame_by_frame else denoise


def _check_expert(key: str, folder: Path, asked: ExpertSettings, stage: StageInfo) -> None:
    info = load_stage_info(folder)
    if info.is_image_model and stage.condition is not None:
        raise UserError(
            f"{key} is the image model {folder}, which can't be given what the stage of finetune_video takes "
            f"(condition.kind={stage.condition['kind']}): leave generate.experts out."
        )
    alike = ["shape", "text_encoder_sha256", "autoencoder_sha256", "condition"]
    if not info.is_image_model:  # of a frame every prior's noise is the same
        alike.insert(0, "noise")
    for name in alike:
        ours, theirs = getattr(info, name), getattr(stage, name)
        if name == "shape" and info.is_image_model:
            ours, theirs = ours[1:], theirs[1:]  # it takes any number of frames
        if ours != theirs:
            raise UserError(
                f"{key} is {folder} with {name}={ours}, the stage of finetune_video has {theirs}: experts of one "
                "ensemble are trained alike."
            )
    low, high = info.sigma_range
    if asked.sigma_min < low or (high is not None and asked.sigma_max > high):
        raise UserError(
            f"{key} asks {folder} for sigma {asked.sigma_min:g} to {asked.sigma_max:g}, it was {_trained_on(info)}."
        )


def _trained_on(info: StageInfo) -> str:
    low, high = info.sigma_range
    return f"trained on sigma {low:g} to {'inf' if high is None else f'{high:g}'}"


def sampling_prior(
    trained: NoisePrior, settings: GenerateSettings | LaterStageSettings, section: str = "generate"
) -> NoisePrior:
    """The prior to sample with: the trained one, or the one asked for; UserError when they differ unasked."""
    asked = settings.noise.prior() if settings.noise else trained
    if asked != trained and not settings.allow_other_prior:
        raise UserError(
            f"{section}.noise is {asked}, the model was trained with {trained}: leave {section}.noise out, or set "
            f"{section}.allow_other_prior=true to sample with another prior."
        )
    return asked


class CaptionEmbedder:
    """Embeddings from ingest where it made them; of new captions from the same encoder, which stays open.

    Raises UserError where the encoder is not the one that made the embeddings any more.
    """

    def __init__(self, embeddings: TextEmbeddings) -> None:
        self.embeddings = embeddings
        self._encoder: TextEncoder | None = None

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The network's keyword arguments for captions (N,)."""
        new = self.embeddings.unknown(captions)
        if not new:
            return self.embeddings.conditioning(self.embeddings.rows(captions))
        tokens, mask = self._open(new[0]).encode(captions)
        # Through half precision, as ingest keeps them.
        return {"encoder_hidden_states": tokens.half().float(), "encoder_attention_mask": mask}

    def warn_of_long(self, captions: Sequence[str]) -> None:
        """Log the end of every new caption that has more tokens than are seen."""
        for caption in self.embeddings.unknown(list(dict.fromkeys(captions))):
            encoder = self._open(caption)
            unseen = encoder.cut(caption)
            if unseen is not None:
                _log.warning(
                    "The prompt %r has more than the %d tokens of ingest.max_tokens; its end is not seen: %s",
                    shorten(caption, 80), encoder.max_tokens, unseen,
                )  # fmt: skip

    def _open(self, caption: str) -> TextEncoder:
        if self._encoder is None:
            embeddings = self.embeddings
            encoder = TextEncoder(text_encoder_folder(embeddings.encoder), embeddings.max_tokens)
            if encoder.sha256 != embeddings.encoder_sha256:
                raise UserError(
                    f"the text encoder in {encoder.folder} has changed since {embeddings.folder} was made, so it can't "
                    f"embed the new caption {caption!r}. Run `ingest` anew, or put the encoder back."
                )
            self._encoder = encoder
        return self._encoder
