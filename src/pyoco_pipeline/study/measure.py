"""Samples of a model in training, with the cell's own prior, and their scores."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.latents import open_autoencoder
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.evaluate import evaluate_clips
from pyoco_pipeline.models.autoencoder import Autoencoder
from pyoco_pipeline.models.cuda_graphs import CapturedDenoiser
from pyoco_pipeline.sampling import sample_batch
from pyoco_pipeline.study.cells import Cell, digest, shared_facts
from pyoco_pipeline.study.material import Material
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.training.stages import stage_shape


@dataclass(frozen=True)
class Measured:
    """Scores as `evaluate_clips` gives them, and the first clips, (N, T, H, W, 3) uint8."""

    scores: dict[str, Any]
    clips: np.ndarray


class Measure:
    """Samples the study's captions with a denoiser and scores the clips.

    Clip i of a cell comes from (sample_seed, the cell's seed, i): from the same white noise in all cells of one seed.
    """

    def __init__(self, material: Material, settings: AblateAlphaSettings, cell: Cell, stage: Any) -> None:
        self.material, self.settings, self.cell = material, settings, cell
        self.shape = stage_shape(stage, material.trained_on)
        self.prior = stage.noise.prior()
        self.autoencoder: Autoencoder | None = open_autoencoder(material.trained_on)

    def __call__(self, denoise: Denoise) -> Measured:
        started = time.monotonic()
        settings, asked = self.settings, self.material.asked(self.settings.num_clips)
        videos = self._sample(denoise, [item.caption for item in asked])
        with tempfile.TemporaryDirectory(prefix=".scored-", dir=self.material.work) as folder:
            clips = (
                CaptionedClip(Clip(f"{i:06d}", video, item.clip.attributes), item.caption, "generated")
                for i, (video, item) in enumerate(zip(videos, asked, strict=True))
            )
            real = self.material.store
            write_clips(
                Path(folder), clips, kind=real.manifest.kind, shape=videos.shape[1:4], fps=real.manifest.fps
            )
            scores = self._score(ClipStore(folder))
        if settings.metric not in scores["metrics"]:
            why = scores["refused"].get(settings.metric, "it is not computed")
            raise UserError(f"ablate_alpha.metric={settings.metric} can't be had from these clips: {why}")
        return Measured(scores | {"seconds": time.monotonic() - started}, videos[: settings.num_shown])

    def _sample(self, denoise: Denoise, captions: list[str]) -> np.ndarray:
        settings, embeddings = self.settings, self.material.embeddings
        network: Any = denoise.network  # type: ignore[attr-defined]
        if settings.train.cuda_graphs:
            denoise = CapturedDenoiser(denoise, "ablate_alpha.train.cuda_graphs")
        device = next(network.parameters()).device
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        base, parts = mix_seed(settings.sample_seed, self.cell.seed), []
        for first in range(0, len(captions), settings.batch_size):
            chosen = captions[first : first + settings.batch_size]
            cond = dict(embeddings.conditioning(embeddings.rows(chosen), device))
            if getattr(network, "options", None) and network.options.fps:
                cond["fps"] = torch.full((len(chosen),), self.material.store.manifest.fps, device=device)
            seeds = [mix_seed(base, first + i) for i in range(len(chosen))]
            with torch.inference_mode(), self._precision(device):
                sampled = sample_batch(
                    denoise,
                    self.prior,
                    settings.sampler,
                    cond,
                    embeddings.null(device),
                    self.shape,
                    seeds,
                    self.autoencoder,
                    section="ablate_alpha",
                )
            parts.append(sampled.cpu().numpy())
        return np.concatenate(parts)

    def _precision(self, device: torch.device) -> torch.autocast:
        asked = self.settings.train.precision
        bf16 = asked == "bf16" or (asked == "auto" and device.type == "cuda")
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def _score(self, generated: ClipStore) -> dict[str, Any]:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        cache = self.material.reference
        cache.mkdir(parents=True, exist_ok=True)

        def evaluate() -> dict[str, Any]:
            return evaluate_clips(
                generated, self.material.store, self.settings.evaluate, (device,), cache_folder=cache
            )

        # Else processes that begin at once would all read the real clips, and one lock for ever would hold up all.
        facts = shared_facts(self.settings) | {"data": self.material.store.manifest.sha256, "device": device}
        is_read = cache / f".study-{digest(facts)}"
        if not is_read.exists():
            with FileLock(cache / ".study.lock"):
                if not is_read.exists():
                    scores = evaluate()
                    is_read.touch()
                    return scores
        return evaluate()


def discard_leftovers(work: Path) -> None:
    """Remove clips that a killed run was about to score."""
    for folder in work.glob(".scored-*"):
        shutil.rmtree(folder, ignore_errors=True)
