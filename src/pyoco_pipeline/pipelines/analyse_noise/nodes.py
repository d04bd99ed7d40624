"""Inversion of clips by the image model, and what their noise maps say about the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyoco_pipeline.analysis.settings import AnalyseNoiseSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def invert_frames(
    analyse_noise: AnalyseNoiseSettings, image_model: Path, clips: Path, latents: Path, text_embeddings: Path
) -> FolderWriter:
    """The noise maps of the clips' frames, each frame by itself."""
    from pyoco_pipeline.analysis.maps import invert_clips
    from pyoco_pipeline.data.embeddings import TextEmbeddings
    from pyoco_pipeline.data.latents import training_store

    store, embeddings = training_store(clips, latents), TextEmbeddings(text_embeddings)
    return invert_clips(analyse_noise, image_model, store, embeddings).save


def find_prior(
    analyse_noise: AnalyseNoiseSettings, noise_maps: Path
) -> tuple[dict[str, Any], FolderWriter, str, str]:
    """Numbers, figures, the prior to paste into conf/, and the page."""
    from pyoco_pipeline.analysis.analyse import analyse
    from pyoco_pipeline.analysis.maps import NoiseMaps
    from pyoco_pipeline.analysis.page import render_page

    analysis = analyse(NoiseMaps.load(noise_maps), analyse_noise)
    write = partial(_write_figures, drawn=analysis.figures)
    return analysis.summary(), write, analysis.snippet(), render_page(analysis)


def _write_figures(folder: Path, *, drawn: Mapping[str, Callable[..., bytes]]) -> None:
    for name, draw in drawn.items():
        (folder / f"{name}.png").write_bytes(draw())
