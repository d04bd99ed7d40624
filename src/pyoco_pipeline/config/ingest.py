"""The parameters of `ingest`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.data.sources.settings import (
    HFDatasetSettings,
    LaionSettings,
    MSRVTTSettings,
    UCF101Settings,
    VideoFolderSettings,
    WebDatasetSettings,
    WebVidSettings,
)
from pyoco_pipeline.training.settings import (
    Positive,
    Seed,
    Settings,
    Share,
)


class MovingDigitsSettings(Settings):
    """The embedded data set."""

    num_train: Positive  # clips
    num_test: Positive
    seed: Seed = 0
    # crossing: two digits, one behind the other, before a texture
    scene: Literal["plain", "crossing"] = "plain"


class FileSourceSettings(Settings):
    """The sources of media files; the one that `source` names has to be there."""

    video_folder: VideoFolderSettings | None = None
    ucf101: UCF101Settings | None = None
    msrvtt: MSRVTTSettings | None = None
    webvid: WebVidSettings | None = None
    webdataset: WebDatasetSettings | None = None
    hf_dataset: HFDatasetSettings | None = None
    laion: LaionSettings | None = None

    @model_validator(mode="after")
    def _source_is_there(self) -> Self:
        source = getattr(self, "source", None)
        if source in FileSourceSettings.model_fields and getattr(self, source) is None:
            raise ValueError(f"source={source} needs a section {source} that says where it lies")
        return self


class ImageSourceSettings(FileSourceSettings):
    """Captioned images beside the clips, for image pretraining and for the image steps of fine-tuning.

    Those of a test split are left out; test_share is not used.
    """

    source: Literal["video_folder", "webdataset", "hf_dataset", "laion"]  # its `media` is image


class SceneSettings(Settings):
    """Cuts between scenes, found by PySceneDetect; no clip crosses one."""

    detector: Literal["content", "adaptive"] = "content"
    threshold: float | None = Field(None, gt=0)  # of the detector; null: 27 for content, 3 for adaptive
    min_scene_s: float = Field(0.5, ge=0)  # seconds; shorter scenes are left out


class FilterSettings(Settings):
    """Which clips are left out; the scores are kept with the clips either way."""

    min_motion: Share = 0.0  # mean absolute change of brightness from frame to frame, over its range
    min_brightness: Share = 0.0
    max_brightness: Share = 1.0
    max_letterbox: Share = 1.0  # share of the picture that is dark border
    max_duplicate_distance: Annotated[int, Field(ge=0, le=16)] | None = (
        None  # of 64 bits; null: keep duplicates
    )
    min_clip_score: float | None = Field(None, ge=-1, le=1)  # needs clip_model
    clip_model: str | None = None  # folder of a CLIP model in transformers' layout

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_clip_score is not None and self.clip_model is None:
            raise ValueError("min_clip_score needs clip_model, the folder of the CLIP model that scores")
        if self.min_brightness > self.max_brightness:
            raise ValueError(
                f"min_brightness={self.min_brightness} is above max_brightness={self.max_brightness}"
            )
        return self


class IngestSettings(FileSourceSettings):
    """Which clips, at which size, and which text encoder embeds their captions."""

    source: Literal[
        "moving_digits", "video_folder", "ucf101", "msrvtt", "webvid", "webdataset", "hf_dataset", "laion"
    ]
    moving_digits: MovingDigitsSettings
    images: ImageSourceSettings | None = None  # null: image steps take frames of clips
    num_frames: Positive
    height: Positive
    width: Positive
    buckets: tuple[
        tuple[Positive, Positive], ...
    ] = ()  # further sizes (height, width): the nearest shape is taken
    fps: float = Field(gt=0)
    fps_octaves: int = Field(0, ge=0, le=6)  # clips at fps, fps/2, fps/4, … with as many halvings at most
    stride: Positive | None = None  # every so many-th decoded frame, whatever the file's rate; null: by fps
    max_clips_per_row: Positive = 64
    crop: Literal["centre", "random"] = "centre"
    scenes: SceneSettings | None = None
    filters: FilterSettings = FilterSettings()
    max_bad_share: Share = 0.2  # of the segments; more that can't be read end the run
    executor: Literal["auto", "inline", "processes", "ray"] = (
        "auto"  # auto: processes for files, inline for digits
    )
    workers: Positive | None = None  # null: as many as cores
    ray_address: str | None = None  # of a cluster; null: a Ray of this run's own
    segments_per_task: Positive = 256  # a killed run cuts so many again at most, per worker
    file_timeout_s: float = Field(120.0, gt=0)  # for one segment
    decoder_memory_mb: Positive | None = 4096  # of each decoder; null: no limit
    compression: Literal["none", "lz4", "zstd"] = "none"  # of the shards
    text_encoder: str = "embedded-minilm"  # or a local transformers folder (T5, CLIP text, BERT)
    max_tokens: Positive = 16
    autoencoder: str | None = None  # diffusers folder of an AutoencoderKL, for latent models; null: pixels
    seed: Seed = 0  # of random crops and rates

    @model_validator(mode="after")
    def _rate_or_stride(self) -> Self:
        if self.stride is not None and self.fps_octaves:
            raise ValueError(
                f"fps_octaves={self.fps_octaves} with stride={self.stride}: octaves are of fps, set one to its default"
            )
        return self
