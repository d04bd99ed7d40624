"""What all cells share: clips, embeddings, the model that they start from, and the digest of it all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import autoencoder_sha256, training_store
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import read_card
from pyoco_pipeline.evaluation.extractors import LITE0_SHA256
from pyoco_pipeline.evaluation.settings import EvaluateSettings
from pyoco_pipeline.models import inflate, load_video_model, save_video_model
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.models.parametrisation import read_parametrisation, save_scheduler
from pyoco_pipeline.study.cells import Cell, shared_facts
from pyoco_pipeline.study.settings import AblateAlphaSettings


@dataclass(frozen=True)
class Material:
    """Folders: of the inflated model, of what `ingest` made, and the study's own. clips may be an address."""

    inflated: Path
    clips: Path | str
    latents: Path | str
    text_embeddings: Path
    work: Path
    reference: Path  # keeps what was read in real clips

    @cached_property
    def store(self) -> ClipStore:
        """Of pixels, that samples are compared with."""
        return ClipStore(self.clips)

    @cached_property
    def trained_on(self) -> ClipStore:
        """Of pixels, or of their latents."""
        return training_store(self.clips, self.latents)

    @cached_property
    def embeddings(self) -> TextEmbeddings:
        """Of the captions."""
        return TextEmbeddings(self.text_embeddings)

    def asked(self, num: int) -> list[CaptionedClip]:
        """The unseen clips whose captions are sampled, from the first again where there are fewer."""
        items = self.store.take(self.store.unseen_split, num)
        return [items[i % len(items)] for i in range(num)]

    def initial(self, cell: Cell) -> Path:
        """The folder of the model that the cell starts from."""
        return self.inflated if cell.configuration.init == "finetune" else self._scratch(cell.seed)

    def _scratch(self, seed: int) -> Path:
        """The inflated model's network with new weights, drawn by the seed."""
        sha = weights_sha256(load_video_model(self.inflated))[:16]
        folder = self.work / "scratch" / f"{sha}-{seed}"
        if not folder.is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                like = load_video_model(self.inflated)
                image = type(like.image_model).from_config(like.image_model.config)
                model = inflate(image, **asdict(like.options))
            aside = folder.with_name(f".writing-{folder.name}")
            save_video_model(model, aside)
            save_scheduler(aside, read_parametrisation(self.inflated))
            aside.rename(folder)
        return folder

    def clips_of(self, cell: Cell) -> ClipStore:
        """What the cell is trained on: all clips, or the first ones of training, with the images beside them."""
        count = cell.configuration.num_clips
        if count is None:
            return self.trained_on
        store, known = self.trained_on, self.trained_on.manifest
        folder = self.work / "fewer_clips" / f"{known.sha256[:16]}-{count}"
        if not folder.is_dir():
            there = known.counts.get("train", 0)
            if count >= there:
                raise UserError(
                    f"ablate_alpha.fewer_clips.num_clips has {count}, but {store.folder} holds {there} clips of "
                    "training: take fewer, or ingest more."
                )
            aside = folder.with_name(f".writing-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            images = store.clips("train", images=True) if known.images else ()
            write_clips(
                aside,
                chain(islice(store.clips("train"), count), images),
                kind=known.kind,
                shape=store.shape,
                fps=known.fps,
                sizes=[(shard.height, shard.width) for shard in known.shards],
                dtype=known.dtype,
                channels=known.channels,
                latents_of=known.latents_of,
                autoencoder=known.autoencoder,
            )
            aside.rename(folder)
        return ClipStore(folder)

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make what several cells read, before they do so at once."""
        (self.work / "scratch").mkdir(parents=True, exist_ok=True)
        for cell in cells:
            self.initial(cell)
            self.clips_of(cell)

    def facts(self, settings: AblateAlphaSettings) -> dict[str, Any]:
        """All that decides the scores of every cell, JSON-able."""
        captions = json.dumps([item.caption for item in self.asked(settings.num_clips)])
        return shared_facts(settings) | {
            "initial_weights_sha256": weights_sha256(load_video_model(self.inflated)),
            "parametrisation": read_parametrisation(self.inflated).config(),
            "data_sha256": self.store.manifest.sha256,
            "trained_on_sha256": self.trained_on.manifest.sha256,
            "autoencoder_sha256": autoencoder_sha256(self.trained_on),
            "text_encoder_sha256": self.embeddings.encoder_sha256,
            "max_tokens": self.embeddings.max_tokens,
            "captions_sha256": hashlib.sha256(captions.encode()).hexdigest(),
            "extractors": extractor_digests(settings.evaluate),
        }


def extractor_digests(settings: EvaluateSettings) -> dict[str, str]:
    """Which weights read the clips."""
    card = read_card(settings.digits3d.path if settings.digits3d else None)
    digests = {"digits3d": card["sha256"], "lite0": LITE0_SHA256}
    for name, options in settings.extractors.items():
        path = Path(options.path)
        if not path.exists():
            raise UserError(
                f"ablate_alpha.evaluate.extractors.{name}.path={path} is missing: give its weights."
            )
        files = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
        parts = [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
        digests[name] = hashlib.sha256("".join(parts).encode()).hexdigest()
    return digests


def code_sha256() -> str:
    """Digest of the package's code that trains, samples and scores: cells of another one are pointed out."""
    package = Path(__file__).parents[1]
    files = [*sorted(package.glob("noise*.py")), package / "sampling.py"]
    for folder in ("data", "diffusion", "evaluation", "models", "training"):
        files += sorted((package / folder).rglob("*.py"))
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:16]
