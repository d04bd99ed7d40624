"""Noise maps of a data set's clips: their frames, one by one, inverted by the image model.

maps.safetensors     maps (N, T, C, H, W) float32
maps.json            what they were made of: clip ids, noise levels, steps, the error of the round trip
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pyoco_pipeline.analysis.settings import MIN_CLIPS, AnalyseNoiseSettings
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import sample_channels
from pyoco_pipeline.diffusion import Denoise, sampling_range
from pyoco_pipeline.diffusion.inversion import invert, reconstruct
from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.models import FrameByFrame, load_image_model, load_stage_info
from pyoco_pipeline.models.autoencoder import LatentScaling
from pyoco_pipeline.models.parametrisation import read_parametrisation

_FILES = "maps.safetensors", "maps.json"
_CHECKED_CLIPS = 8  # that are sampled back, to measure the error


@dataclass(frozen=True)
class NoiseMaps:
    """maps: (N, T, C, H, W) float32, x/σ at sigma_max; the rest says what they were made of.

    round_trip_error, _worst: root mean square difference of a clip from what is sampled back from its maps, as a share
    of the standard deviation of clips; the median of some clips, and the largest.
    """

    maps: Tensor
    clip_ids: tuple[str, ...]
    text: str
    steps: int
    sigma_min: float
    sigma_max: float
    round_trip_error: float
    round_trip_worst: float

    def save(self, folder: Path) -> None:
        """Write them into `folder`."""
        facts = {name: value for name, value in self.__dict__.items() if name != "maps"}
        save_file({"maps": self.maps.contiguous()}, folder / _FILES[0])
        (folder / _FILES[1]).write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> NoiseMaps:
        """Read what `save` wrote; UserError where it is not there or can't be read."""
        if not all((folder / name).is_file() for name in _FILES):
            raise UserError(f"{folder} holds no noise maps: run `analyse_noise` from its beginning.")
        path = folder / _FILES[1]
        try:
            facts = json.loads(path.read_text())
            facts["clip_ids"] = tuple(facts["clip_ids"])
            path = folder / _FILES[0]
            found = cls(load_file(path)["maps"], **facts)
            if found.maps.ndim != 5 or len(found.maps) != len(found.clip_ids):
                raise ValueError(f"maps of shape {tuple(found.maps.shape)} of {len(found.clip_ids)} clips")
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise UserError(
                f"{path} can't be read as noise maps ({in_one_line(error)}): run `analyse_noise` from its beginning."
            ) from error
        return found


def invert_clips(
    settings: AnalyseNoiseSettings, image_model: Path, store: ClipStore, embeddings: TextEmbeddings
) -> NoiseMaps:
    """Noise maps of the split's clips by the image model in a folder; store: what it was trained on.

    Raises UserError for too few clips, clips of one frame, a model of other channels or another text encoder, and for
    noise levels that it does not know.
    """
    if store.shape[0] < 2:
        raise UserError(
            f"{store.folder} holds clips of one frame, and noise is compared between the frames of a clip: ingest "
            "videos, with ingest.num_frames of at least 2."
        )
    items = choose_clips(store, settings.split, settings.num_clips)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoise, takes_text = open_image_denoiser(image_model, store, embeddings, device)
    try:
        sigma_min, sigma_max = sampling_range(denoise, settings.sigma_min, settings.sigma_max)
    except ValueError as error:
        raise UserError(
            f"analyse_noise does not fit the image model: {error} Leave sigma_min and sigma_max out to take its own."
        ) from error
    levels = {"steps": settings.steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": settings.rho}
    maps, missed, clean = [], [], []
    at_once = max(1, settings.batch_size // store.shape[0])
    for first in tqdm(range(0, len(items), at_once), desc="inversion", disable=None):
        batch = items[first : first + at_once]
        x0 = clean_clips(store, batch).to(device)
        options: dict[str, Any] = dict(levels)
        if takes_text:
            captions = [item.caption if settings.text == "caption" else "" for item in batch]
            options |= embeddings.conditioning(embeddings.rows(captions), device)
        x = invert(denoise, x0, **options)
        maps.append((x / sigma_max).float().cpu())
        if first < _CHECKED_CLIPS:
            missed.append((reconstruct(denoise, x, **options) - x0).cpu())
            clean.append(x0.cpu())
    # A mean over clips would be the one clip's that the model knows least.
    errors = torch.cat(missed).square().mean(dim=(1, 2, 3, 4)).sqrt() / torch.cat(clean).std()
    return NoiseMaps(
        maps=torch.cat(maps).transpose(1, 2).contiguous(),
        clip_ids=tuple(item.clip.clip_id for item in items),
        text=settings.text if takes_text else "none",
        steps=settings.steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        round_trip_error=errors.median().item(),
        round_trip_worst=errors.max().item(),
    )


def choose_clips(store: ClipStore, split: str, count: int) -> list[CaptionedClip]:
    """`count` clips of the store's main size, evenly spaced over a split, or all where there are fewer.

    Neighbours in a store are often parts of one video. Raises UserError for fewer than MIN_CLIPS.
    """
    total = sum(s.rows for s in store.shards(split) if (s.height, s.width) == store.shape[1:])
    if total < MIN_CLIPS:
        raise UserError(
            f"{store.folder} holds {total} clips of {store.shape[1]}x{store.shape[2]} in split {split!r}: at least "
            f"{MIN_CLIPS} are needed to compare clips; set analyse_noise.split to another of {store.manifest.counts}."
        )
    wanted = {round(place) for place in np.linspace(0, total - 1, min(count, total))}
    alike = (item for item in store.clips(split) if item.clip.video.shape[1:3] == store.shape[1:])
    return [item for number, item in enumerate(alike) if number in wanted]


def clean_clips(store: ClipStore, items: Sequence[CaptionedClip]) -> Tensor:
    """What the image model sees without noise: pixels in [-1, 1], or scaled means of latents; (N, C, T, H, W) float64.

    In double precision, for at a σ of 80 and more single precision keeps few digits of a clip.
    """
    stored = torch.from_numpy(np.stack([item.clip.video for item in items])).permute(0, 4, 1, 2, 3).double()
    known = store.manifest.autoencoder
    if known is None:
        return stored / 127.5 - 1
    mean, _ = stored.chunk(2, dim=1)
    return LatentScaling(tuple(known["shift"]), tuple(known["factor"])).apply(mean)


def open_image_denoiser(
    folder: Path, store: ClipStore, embeddings: TextEmbeddings, device: torch.device
) -> tuple[Denoise, bool]:
    """The denoiser of an image model, frame by frame, and whether it takes text; UserError where it does not fit."""
    model = load_image_model(folder).float().eval().requires_grad_(False)
    width = model.config.get("encoder_hid_dim") or model.config.get("cross_attention_dim")
    if width is not None and width != embeddings.dim:
        raise UserError(
            f"the image model in {folder} expects text tokens of width {width}, those of {embeddings.folder} have "
            f"{embeddings.dim}: run `pretrain_image` anew, or set ingest.text_encoder back."
        )
    network = FrameByFrame(model)
    if network.patch_for(sample_channels(store)) == 0:
        raise UserError(
            f"the image model in {folder} takes {model.config['in_channels']} channels, {store.folder} holds clips of "
            f"{sample_channels(store)}: run `pretrain_image` anew for these clips."
        )
    trained = (Path(folder) / "stage.json").is_file()
    sigma_data = load_stage_info(folder).sigma_data if trained else 0.5
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return read_parametrisation(folder).denoiser(network, sigma_data), width is not None
