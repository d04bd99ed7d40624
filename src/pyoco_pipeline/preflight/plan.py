"""What a run will be, as far as its settings say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clips import ClipStore, Manifest, Shard
from pyoco_pipeline.models.io import read_json

if TYPE_CHECKING:
    from pyoco_pipeline.models import VideoUNet


class PlannedClips(ClipStore):
    """The clips that ingest will make, or their latents, by their shape alone."""

    def __init__(self, ingest: Any, project: Path) -> None:
        latents: dict[str, Any] = {}
        smaller = 1
        if ingest.autoencoder is not None and (project / ingest.autoencoder / "config.json").is_file():
            config = read_json(project / ingest.autoencoder / "config.json")
            smaller = 2 ** (len(config["block_out_channels"]) - 1)
            latents = {"dtype": "float16", "channels": 2 * config["latent_channels"], "autoencoder": config}
        sizes = [
            (height // smaller, width // smaller)
            for height, width in dict.fromkeys(((ingest.height, ingest.width), *ingest.buckets))
        ]
        shards = tuple(
            Shard(f"train-{i:05d}.parquet", "train", 1, 1, ingest.num_frames, *size)
            for i, size in enumerate(sizes)
        )
        shape = ingest.num_frames, *sizes[0]
        self.is_remote, self.folder = False, Path("the clips of ingest")
        self.manifest = Manifest(
            ingest.source, *shape, fps=ingest.fps, counts={"train": 1}, sha256="", shards=shards, **latents
        )


@dataclass(frozen=True)
class Plan:
    """parameters: the typed settings by section; data: the environment's data folder; project: what paths are from."""

    parameters: Mapping[str, Any]
    data: Path
    project: Path

    @cached_property
    def stages(self) -> dict[str, StageSettings]:
        """The stages that the cascade has, in their order."""
        stages = {name: self.parameters[f"finetune_video.{name}"] for name in STAGES}
        return {name: stage for name, stage in stages.items() if stage is not None}

    @cached_property
    def clips(self) -> dict[str, ClipStore]:
        """What each stage will see; without those that name clips which are not there yet."""
        found: dict[str, ClipStore] = {}
        for name, stage in self.stages.items():
            if stage.clips is None:
                found[name] = PlannedClips(self.parameters["ingest"], self.project)
            elif "://" in stage.clips or (self.project / stage.clips / "manifest.json").is_file():
                found[name] = ClipStore(stage.clips if "://" in stage.clips else self.project / stage.clips)
        return found

    @cached_property
    def networks(self) -> dict[str, VideoUNet]:
        """What each stage in `clips` trains, on the meta device: shapes without weights."""
        from pyoco_pipeline.preflight.memory import planned_network

        pretrain, inflate = self.parameters["pretrain_image"], self.parameters["inflate"]
        return {
            name: planned_network(self.stages[name], pretrain, inflate, clips, self.project)
            for name, clips in self.clips.items()
        }
