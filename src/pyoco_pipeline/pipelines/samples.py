"""Validation pictures of a stage in training: the same captions and seeds each time."""

from __future__ import annotations

from pathlib import Path

import torch

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import open_autoencoder
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.generation import sample_batch
from pyoco_pipeline.models import VideoUNet
from pyoco_pipeline.noise import NoisePrior
from pyoco_pipeline.reporting.contact_sheet import contact_sheet

_SAMPLER = SamplerSettings(solver="euler", steps=12, guidance_scale=2.0)
_NUM_CLIPS = 6


class SampleSheet:
    """Called with (steps done, denoiser): writes a contact sheet of sampled test captions and returns its path.

    store: what is trained on; of latents, what decodes them is loaded at once, so that training does not end without.
    """

    def __init__(
        self, folder: Path, store: ClipStore, embeddings: TextEmbeddings, prior: NoisePrior, num_frames: int
    ) -> None:
        self.folder, self.prior, self.embeddings = folder, prior, embeddings
        self.captions = [item.caption for item in store.take(store.unseen_split, _NUM_CLIPS)]
        self.shape = (num_frames, *store.shape[1:])
        self.fps, self.autoencoder = store.manifest.fps, open_autoencoder(store)

    def __call__(self, step: int, denoise: Denoise) -> Path:
        network = denoise.network  # type: ignore[attr-defined]
        device = next(network.parameters()).device
        cond = self.embeddings.conditioning(self.embeddings.rows(self.captions), device)
        if isinstance(network, VideoUNet) and network.options.fps:
            cond["fps"] = torch.full((len(self.captions),), self.fps, device=device)
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        videos = sample_batch(
            denoise,
            self.prior,
            _SAMPLER,
            cond,
            self.embeddings.null(device),
            self.shape,
            [mix_seed(0, i) for i in range(len(self.captions))],
            self.autoencoder,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        contact_sheet(videos.cpu().numpy(), self.captions).save(path)
        return path
