"""The smallest things that are still the real ones: UNets, moving digits, embeddings and settings for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.digits import MovingDigitsSource
from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embeddings
from pyoco_pipeline.models import StageInfo, VideoUNet, inflate
from pyoco_pipeline.noise import MixedNoise, NoisePrior
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import SigmaSettings, TrainSettings

TEXT_DIM = 8
TOKENS = 4
ENCODER_SHA256 = "e" * 64


def make_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """A text-conditional UNet of two levels, 8 and 16 channels, in evaluation mode."""
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(**(defaults | config)).eval()


def make_video_unet(seed: int = 0, *, trained: bool = True, **config: Any) -> VideoUNet:
    """An inflated `make_unet`; trained: with temporal weights that are no longer those of a new model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = inflate(make_unet(seed, **config)).eval()
        if trained:
            perturb(model.temporal)
    return model


@torch.no_grad()
def perturb(module: nn.Module, scale: float = 0.2) -> None:
    """Move every weight by N(0, scale²)."""
    for p in module.parameters():
        p.add_(scale * torch.randn(p.shape))


def make_store(
    folder: Path, num_train: int = 12, num_test: int = 4, *, frames: int = 4, size: int = 8, seed: int = 0
) -> ClipStore:
    """Moving digits on disk."""
    source = MovingDigitsSource(
        num_train=num_train, num_test=num_test, num_frames=frames, height=size, width=size, fps=8.0, seed=seed
    )
    rows = source.captions().to_dict("records")
    clips = (
        CaptionedClip(clip, row["caption"], row["split"])
        for row, made in zip(rows, source.read(rows), strict=True)
        for clip in made
    )
    write_clips(folder, clips, kind=source.kind, shape=(frames, size, size), fps=source.fps)
    return ClipStore(folder)


def make_embeddings(
    folder: Path,
    captions: Sequence[str],
    *,
    dim: int = TEXT_DIM,
    encoder: str = "none",
    sha: str = ENCODER_SHA256,
) -> TextEmbeddings:
    """Random token embeddings of the distinct captions and of the empty one."""
    distinct = list(dict.fromkeys(["", *captions]))
    tokens = torch.randn(len(distinct), TOKENS, dim, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(len(distinct), TOKENS, dtype=torch.bool)
    mask[0, 2:] = False
    write_embeddings(folder, distinct, tokens * mask[..., None], mask, encoder=encoder, encoder_sha256=sha)
    return TextEmbeddings(folder)


def make_batches(store: ClipStore, embeddings: TextEmbeddings, settings: TrainSettings) -> ClipBatches:
    """The training batches of a run with these settings."""
    options = BatchOptions(settings.batch_size, settings.image_share, settings.caption_dropout, settings.seed)
    return ClipBatches(store, embeddings, options)


def train_settings(**changes: Any) -> TrainSettings:
    """Twelve steps of four clips, in float32."""
    defaults: dict[str, Any] = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "ema_half_life": 4,
        "ema_rampup": 0.5,
        "precision": "float32",
        "log_every": 2,
        "checkpoint_every": 3,
    }
    return TrainSettings(**(defaults | changes))


def make_objective(prior: NoisePrior | None = None) -> Objective:
    """EDM's loss under a noise prior, MixedNoise(1) where none is given."""
    return Objective(prior or MixedNoise(1.0), SigmaSettings())


def stage_info(**changes: Any) -> StageInfo:
    """What a video model of 4x8x8 clips says it was trained for."""
    defaults: dict[str, Any] = {
        "stage": "base",
        "noise": {"name": "mixed", "alpha": 1.0},
        "sigma_data": 0.5,
        "shape": (4, 8, 8),
        "data_sha256": "d" * 64,
        "text_encoder_sha256": ENCODER_SHA256,
        "steps": 12,
        "seed": 0,
        "torch": torch.__version__,
        "device": "cpu",
    }
    return StageInfo(**(defaults | changes))


def text_condition(batch: int, seed: int = 0) -> dict[str, Tensor]:
    """The conditioning of `batch` captions, each of its own."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "encoder_hidden_states": torch.randn(batch, TOKENS, TEXT_DIM, generator=draw),
        "encoder_attention_mask": torch.ones(batch, TOKENS, dtype=torch.bool),
    }
