"""Settings of the evaluation and of the digits classifier; reading them costs no import of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from pyoco_pipeline.evaluation.extractor_registry import ExtractorName
from pyoco_pipeline.evaluation.protocols import ProtocolName
from pyoco_pipeline.training.settings import Seed, Settings

EmbeddedMetric = Literal[
    "fvd_digits3d", "is_digits3d", "caption_accuracy", "fid_lite0", "temporal_consistency"
]
PublishedMetric = Literal[
    "fvd_i3d_torchscript",
    "kvd_i3d_torchscript",
    "fvd_i3d_tats",
    "kvd_i3d_tats",
    "is_c3d",
    "fid_inception",
    "clip_fid_vitb32",
    "clipsim",
    "frame_consistency_clip",
    "fvd_videomae",
]
MetricName = Literal[EmbeddedMetric, PublishedMetric, "motion_magnitude"]
METRICS: tuple[EmbeddedMetric, ...] = get_args(EmbeddedMetric)
MIN_CLIPS = 2
MIN_FRAMES = 4  # that Digits3D reads


class ExtractorSettings(Settings):
    """Where the weights of one published extractor are, and how it runs; see docs/evaluation_extractors.md."""

    path: str = Field(min_length=1)  # a local file or model folder
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")  # that the file must have
    allow_other_weights: bool = False  # marks the metric's name
    batch_size: int | None = Field(default=None, ge=1)  # clips at once; None: the extractor's own
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16 marks the metric's name


class Digits3DSettings(Settings):
    """A Digits3D of one's own, as the pipeline digits_classifier writes it."""

    path: str = Field(min_length=1)  # the folder
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # that its weights must have


class EvaluateSettings(Settings):
    """What is measured, on which clips, and on how many.

    A folder of videos is one of files of another system, or of real videos; captions_file is looked up inside it.
    """

    metrics: tuple[MetricName, ...] | Literal["auto"] = "auto"  # auto: the protocol's, or all that apply
    digits3d: Digits3DSettings | None = None  # None: the one in the package, for plain scenes
    extractors: dict[ExtractorName, ExtractorSettings] = Field(default={})
    protocol: ProtocolName | None = None  # None: clips and counts as they are
    generated: str | None = (
        None  # a clips folder, or a folder of videos; None: the pipeline's generated clips
    )
    reference: str | None = None  # the same; None: the pipeline's ingested clips
    reference_split: Literal["train", "test"] | None = None  # None: the protocol's, or train
    captions_file: str = (
        "captions.csv"  # path, caption; where a folder has none, generated files' names are captions
    )
    prompts: str | None = None  # table of prompt[, count] that zero-shot protocols check captions against
    allow_fewer: bool = False  # than the protocol asks for: marks the metric's name
    ignore_fps: bool = False  # let the stated frame rates of generated and reference videos differ
    max_reference_clips: int = Field(default=512, ge=MIN_CLIPS)  # without a protocol
    num_frames: int = Field(default=16, ge=1)  # of a clip cut from a folder of videos, without a protocol
    fid_frames: int = Field(default=2, ge=1)  # frames of a clip that distances of frames see, evenly spaced
    batch_size: int = Field(default=16, ge=1)  # clips at once, of each process
    num_processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # one per GPU, or one on the CPU
    bootstrap: int = Field(
        default=0, ge=0
    )  # resamples of generated clips for the interval of Fréchet distances
    extrapolate: bool = False  # Fréchet distances to infinitely many clips
    video_timeout_s: float = Field(default=120, gt=0)  # longest time to decode one video
    seed: Seed = 0

    @model_validator(mode="after")
    def _enough_resamples(self) -> Self:
        if 0 < self.bootstrap < 20:
            raise ValueError(
                f"bootstrap={self.bootstrap} resamples give no 95% interval: at least 20, or 0 for none"
            )
        return self


class Digits3DTraining(Settings):
    """How Digits3D is trained."""

    scene: Literal["plain", "crossing"] = "plain"  # of ingest.moving_digits; crossing: both digits are read
    steps: int = Field(default=6000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # stop then; the schedule follows the clock
    batch_size: int = Field(default=256, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    digit_weight: float = Field(default=3.0, gt=0)  # at 1 the digit is not learnt until all else is
    weight_decay: float = Field(default=0.05, ge=0)
    seed: Seed = 0
    sizes: tuple[int, ...] = (16, 24, 32, 32, 48, 64)  # rendered side, drawn evenly per step
    frames: tuple[int, ...] = (8, 16)
    planned_clips: int = Field(default=20000, ge=1)
    test_clips: int = Field(default=1024, ge=1)
    test_sizes: tuple[int, ...] = (16, 32, 64)
    log_every: int = Field(default=200, ge=1)
