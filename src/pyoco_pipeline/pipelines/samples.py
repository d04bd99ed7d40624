"""Validation pictures of a stage in training: the same captions and seeds each time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pyoco_pipeline.cascade.conditions import Condition
from pyoco_pipeline.config import SamplerSettings, StageSettings
from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import latent_decode, open_autoencoder
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.data.views import ClipView
from pyoco_pipeline.diffusion import Denoise, TiledDenoiser
from pyoco_pipeline.models import VideoUNet
from pyoco_pipeline.noise import NoisePrior
from pyoco_pipeline.reporting.contact_sheet import contact_sheet
from pyoco_pipeline.sampling import sample_batch
from pyoco_pipeline.training.stages import stage_condition, stage_view

_SAMPLER = SamplerSettings(solver="euler", steps=12, guidance_scale=2.0)
_NUM_CLIPS = 6
# What a later stage is given leaves less to decide, and its clips are larger.
_LATER_SAMPLER = SamplerSettings(solver="dpmpp_2m", steps=8)
_NUM_LATER_CLIPS = 3
_AT_ONCE_BYTES = 64 << 20  # of clips in float32


class SampleSheet:
    """Called with (steps done, denoiser): writes a contact sheet of sampled test captions and returns its path.

    store: what is trained on; of latents, what decodes them is loaded at once, so that training does not end without.
    shape: (frames, height, width) of what is sampled. condition: what the stage is given of the test clips, as `view`
    sees them. frame_by_frame: whether the network sees every frame as an image.
    """

    def __init__(
        self,
        folder: Path,
        store: ClipStore,
        embeddings: TextEmbeddings,
        prior: NoisePrior,
        num_frames: int,
        *,
        view: ClipView | None = None,
        condition: Condition | None = None,
        frame_by_frame: bool = False,
    ) -> None:
        self.folder, self.prior, self.embeddings = folder, prior, embeddings
        self.frame_by_frame = frame_by_frame
        items = _of_most_common_size(store, _NUM_LATER_CLIPS if condition else _NUM_CLIPS)
        self.captions = [item.caption for item in items]
        self.view, self.condition = view or ClipView(), condition
        _, height, width = store.shape
        self.shape = (num_frames, height // self.view.scale, width // self.view.scale)
        self.fps, self.autoencoder = store.manifest.fps / self.view.stride, open_autoencoder(store)
        self.clips: list[Tensor] = []
        if condition is not None:
            decode = latent_decode(store)
            for i, item in enumerate(items):
                stored = self.view.cut(torch.from_numpy(item.clip.video.copy())[None])
                x0 = decode(stored, torch.Generator().manual_seed(i)) if decode else to_float(stored)
                self.clips.append(self.view.shrink(x0))

    @classmethod
    def of_stage(
        cls, folder: Path, store: ClipStore, embeddings: TextEmbeddings, stage: StageSettings
    ) -> SampleSheet:
        """The pictures of a stage of the cascade: whole clips, given what it is given of real ones."""
        whole = stage_view(stage.model_copy(update={"crop": None}), store)
        frames = whole.num_frames(store.shape[0])
        prior, condition = stage.noise.prior(), stage_condition(stage)
        alone = stage.train.image_share == 1
        return cls(
            folder, store, embeddings, prior, frames, view=whole, condition=condition, frame_by_frame=alone
        )

    def __call__(self, step: int, denoise: Denoise) -> Path:
        if self.autoencoder is not None:
            self.autoencoder.to(next(denoise.network.parameters()).device)  # type: ignore[attr-defined]
        videos = torch.cat(list(self._sampled(denoise)))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        contact_sheet(videos.cpu().numpy(), self.captions).save(path)
        return path

    def _sampled(self, denoise: Denoise) -> Iterator[Tensor]:
        frames, height, width = self.shape
        at_once = max(1, _AT_ONCE_BYTES // (12 * frames * height * width))
        for first in range(0, len(self.captions), at_once):
            places = range(first, min(first + at_once, len(self.captions)))
            yield self._sample(denoise, places)

    def _sample(self, denoise: Denoise, places: range) -> Tensor:
        network = denoise.network  # type: ignore[attr-defined]
        device = next(network.parameters()).device
        captions = [self.captions[i] for i in places]
        cond = dict(self.embeddings.conditioning(self.embeddings.rows(captions), device))
        if isinstance(network, VideoUNet) and network.options.fps:
            cond["fps"] = torch.full((len(captions),), self.fps, device=device)
        if self.condition is not None:
            x0 = torch.cat([self.clips[i] for i in places]).to(device)
            draw = torch.Generator(device).manual_seed(mix_seed(1, places.start))
            cond |= self.condition.of(x0, self.condition.draw(x0.shape, device, draw))
        seeds = [mix_seed(0, i) for i in places]
        if self.frame_by_frame:
            denoise = TiledDenoiser(denoise, (1, None, None))
        null = self.embeddings.null(device)
        sampler = _LATER_SAMPLER if self.condition else _SAMPLER
        return sample_batch(denoise, self.prior, sampler, cond, null, self.shape, seeds, self.autoencoder)


def _of_most_common_size(store: ClipStore, limit: int) -> list[CaptionedClip]:
    """The first unseen clips of the size that most clips have, which is sampled."""
    clips = store.clips(store.unseen_split)
    items = list(islice((item for item in clips if item.clip.video.shape[:3] == store.shape), limit))
    return items or store.take(store.unseen_split, limit)
