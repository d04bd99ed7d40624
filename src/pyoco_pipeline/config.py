"""The parameters of the pipelines as typed settings; one model per `conf/*/parameters_<pipeline>.yml`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

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
    NoiseSettings,
    ParametrisationSettings,
    Positive,
    Seed,
    Settings,
    Share,
    SigmaSettings,
    TrainSettings,
)


class MovingDigitsSettings(Settings):
    """The embedded data set."""

    num_train: Positive  # clips
    num_test: Positive
    seed: Seed = 0


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


class UNetSettings(Settings):
    """The image UNet of `init: scratch`: diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[Positive, ...]
    layers_per_block: Positive = 1
    attention_levels: tuple[bool, ...]  # per level, whether its blocks have attention
    attention_heads: Positive = 4
    norm_groups: Positive = 8
    patch: Literal[1, 2, 4] = 1  # side of the blocks of pixels that are one position (space-to-depth)

    @model_validator(mode="after")
    def _one_flag_per_level(self) -> Self:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries, block_out_channels has "
                f"{len(self.block_out_channels)}: give one per level"
            )
        for divisor in ("norm_groups", "attention_heads"):
            if any(width % getattr(self, divisor) for width in self.block_out_channels):
                raise ValueError(
                    f"{divisor}={getattr(self, divisor)} does not divide block_out_channels={self.block_out_channels}"
                )
        return self


class ClipShapeSettings(Settings):
    """Frames and size of clips; None: those of the whole."""

    frames: Positive | None = None
    height: Positive | None = None
    width: Positive | None = None

    def shape(self) -> tuple[int | None, int | None, int | None]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width


class PretrainImageSettings(Settings):
    """The image model: where its weights come from and how they are trained on."""

    init: str  # shipped | scratch | a diffusers folder
    unet: UNetSettings  # used by scratch
    clip: ClipShapeSettings | None = (
        None  # size of the frames, smaller by area than ingested; None: as they are
    )
    # What the network predicts; None: what its folder says (stage.json, scheduler/), and EDM for scratch.
    parametrisation: ParametrisationSettings | None = None
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings


class InflateSettings(Settings):
    """What is put into the image model: temporal modules, and inputs of its own."""

    convolution: bool = True  # after every residual block
    attention: bool = True  # after every attention block
    # Downsampling levels that get it, 0 the finest; None: all.
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    heads: int = Field(0, ge=0)  # of temporal attention; give this or head_dim or neither
    head_dim: int = Field(0, ge=0)  # 0: what fits, up to half of a block's width and 64
    position: Literal["rotary", "relative"] = "rotary"  # relative: learned, for up to max_frames
    max_frames: int = Field(0, ge=0)  # longest clip with relative positions
    concat_channels: int = Field(0, ge=0)  # of clips that are concatenated to the noisy one
    noise_level: bool = False  # embed the level of noise augmentation
    fps: bool = False  # embed the frame rate
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads and self.head_dim:
            raise ValueError(f"heads={self.heads} and head_dim={self.head_dim}: give one of them")
        if (self.position == "relative") != (self.max_frames > 0):
            raise ValueError(
                f"max_frames={self.max_frames} with position={self.position}: relative needs one above 0, rotary none"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `inflate`."""
        return self.model_dump(exclude={"seed"})


class LoraSettings(Settings):
    """Low-rank additions to the image model's attention (LoRA): W + alpha/rank * B A."""

    rank: Positive = 8
    alpha: float = Field(8.0, gt=0, allow_inf_nan=False)


class FramesConditionSettings(Settings):
    """A stage that is given some frames: temporal interpolation, prediction, in-painting in time."""

    kind: Literal["frames"]
    key_stride: int = Field(ge=2)  # of interpolation: the given frames are key_stride apart
    # Shares of training clips, in any unit: which frames are given.
    masks: dict[
        Literal["interpolation", "prediction", "inpainting", "nothing"],
        Annotated[float, Field(ge=0, allow_inf_nan=False)],
    ] = Field({"interpolation": 1.0})
    max_noise_level: Share = 0.3  # of the given frames in training: 0 none, 1 nothing but noise
    noise: NoiseSettings = NoiseSettings(kind="iid")  # which that is

    @model_validator(mode="after")
    def _some_mask(self) -> Self:
        if not sum(self.masks.values()) > 0:
            raise ValueError("masks are all 0: give at least one of them a share")
        return self


class LowResolutionConditionSettings(Settings):
    """A stage that is given the clip `scale` times smaller: spatial super-resolution."""

    kind: Literal["low_resolution"]
    scale: int = Field(ge=2)
    max_noise_level: Share = 0.5  # of the small clip in training: 0 none, 1 nothing but noise
    noise: NoiseSettings = NoiseSettings(kind="iid")  # which that is


class StageSettings(Settings):
    """One stage of the cascade."""

    # What it starts from: None, the inflated model; scratch, with `unet`; or a folder: of a trained stage (for an
    # expert, the shared model), or of an image model in diffusers' format, which is inflated.
    init: str | None = None
    unet: UNetSettings | None = None  # of init: scratch
    clips: str | None = None  # another folder or URL of ingested clips; None: those of ingest
    clip: ClipShapeSettings | None = None  # of the ingested clips, what the stage makes; None: as they are
    crop: ClipShapeSettings | None = None  # of that, what a training step sees; None: the whole
    # What it is given besides text; None: nothing.
    condition: (
        Annotated[FramesConditionSettings | LowResolutionConditionSettings, Field(discriminator="kind")]
        | None
    ) = None
    trainable: Literal["all", "temporal", "temporal+cross_attention", "lora"] = "all"
    lora: LoraSettings = LoraSettings()  # of trainable: lora

    noise: NoiseSettings = NoiseSettings()
    sigma: SigmaSettings = SigmaSettings()
    sigma_data: float = Field(0.5, gt=0)
    train: TrainSettings

    @model_validator(mode="after")
    def _unet_of_scratch(self) -> Self:
        if (self.init == "scratch") != (self.unet is not None):
            raise ValueError(
                f"init={self.init} with{'' if self.unet else 'out'} unet: scratch needs it, others have one"
            )
        return self


class ChurnSettings(Settings):
    """EDM Algorithm 2's churn; 0 is the deterministic solver."""

    s_churn: float = Field(0.0, ge=0)
    s_tmin: float = Field(0.0, ge=0)
    s_tmax: float = Field(float("inf"), gt=0)
    s_noise: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.s_tmin > self.s_tmax:
            raise ValueError(f"s_tmin={self.s_tmin} is above s_tmax={self.s_tmax}")
        return self


class SamplerSettings(Settings):
    """How clips are sampled: solver, schedule (EDM, eq. 5) and guidance."""

    solver: Literal["euler", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "deis", "euler_ancestral"] = (
        "heun"
    )
    steps: Positive = 18
    # None: the ends of what the model was trained on, for EDM 0.002 and 80.
    sigma_min: float | None = Field(None, gt=0)
    sigma_max: float | None = Field(None, gt=0)
    rho: float = Field(7.0, gt=0)
    churn: ChurnSettings = ChurnSettings()  # of euler and heun
    # Of dpmpp_2m_sde and euler_ancestral, the share of the SDE's noise; None: 1.
    eta: float | None = Field(None, ge=0, le=1)
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0  # 1: none
    guidance_interval: tuple[float, float] = (0.0, float("inf"))  # sigma
    dynamic_threshold: float | None = Field(None, gt=0, le=1)  # percentile, of pixel models; None: none

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        low, high = self.guidance_interval
        if not 0 <= low < high:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} is not (low, high) with 0 <= low < high"
            )
        return self

    @model_validator(mode="after")
    def _options_of_the_solver(self) -> Self:
        if self.churn.s_churn > 0 and self.solver not in ("euler", "heun"):
            raise ValueError(
                f"churn.s_churn={self.churn.s_churn} with solver={self.solver}, which has no churn: set it to 0, "
                "or take euler or heun"
            )
        if self.eta is not None and self.solver not in ("dpmpp_2m_sde", "euler_ancestral"):
            raise ValueError(
                f"eta={self.eta} with solver={self.solver}, which injects no such noise: leave eta out, or take "
                "dpmpp_2m_sde or euler_ancestral"
            )
        return self


class ExpertSettings(Settings):
    """A model for a range of noise levels (eDiff-I)."""

    model: str | None = None  # folder of a trained stage; None: the stage that finetune_video trained
    sigma_min: float = Field(0.0, ge=0)
    sigma_max: float = Field(float("inf"), gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        return self


class OverlapSettings(Settings):
    """How much neighbouring tiles share."""

    frames: int = Field(0, ge=0)
    height: int = Field(0, ge=0)
    width: int = Field(0, ge=0)


class LaterStageSettings(Settings):
    """How a stage behind the base samples."""

    sampler: SamplerSettings = SamplerSettings(solver="dpmpp_2m", steps=10)
    # Of the noise augmentation of what it is given: 0 none; up to the stage's condition.max_noise_level.
    noise_level: Share = 0.1
    noise: NoiseSettings | None = None  # None: the prior that the stage was trained with
    allow_other_prior: bool = False  # to sample with another prior than trained with
    batch_size: Positive = 4
    # Parts of a clip that the network sees at a time; None: all of it. Noise is drawn for the whole clip either way.
    tile: ClipShapeSettings | None = None
    overlap: OverlapSettings = OverlapSettings()  # of neighbouring tiles


class VideoSettings(Settings):
    """Clips of the user that sampling starts from, in place of noise alone."""

    clips: str  # a folder of videos, or of clips as this project writes them
    # The stage that they go into: base to edit them, a later one to be continued as what the stage before it made.
    stage: Literal["base", "interpolation", "sr256", "sr1024"] = "base"
    sigma: float | None = Field(
        None, gt=0
    )  # of the noise that they are put under: the lower, the more is kept
    keep_frames: Annotated[tuple[int, ...], Field(min_length=1)] | None = (
        None  # these stay, the others are made anew
    )

    @model_validator(mode="after")
    def _one_use(self) -> Self:
        if self.stage == "base" and (self.sigma is None) == (self.keep_frames is None):
            raise ValueError(
                "stage=base needs sigma, to edit the clips, or keep_frames, to make the others anew"
            )
        if self.stage != "base" and self.keep_frames is not None:
            raise ValueError(f"keep_frames is for stage=base, not {self.stage}")
        if self.keep_frames is not None and min(self.keep_frames) < 0:
            raise ValueError(f"keep_frames={self.keep_frames}: frames are counted from 0")
        return self


class GenerateSettings(Settings):
    """What is generated."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = (
        None  # captions; None: captions of test clips
    )
    num_clips: Positive  # prompts are repeated or cut to this many
    sampler: SamplerSettings = SamplerSettings()
    experts: tuple[ExpertSettings, ...] = ()  # their ranges lie end to end; (): one model for all
    keep_experts: Positive = 1  # how many are in memory at a time
    noise: NoiseSettings | None = None  # None: the prior that the model was trained with
    allow_other_prior: bool = False  # to sample with another prior than trained with
    batch_size: Positive = 16
    num_processes: Positive | Literal["auto"] = (
        "auto"  # that share the clips; auto: one per GPU, or one on the CPU
    )
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 on a GPU, float32 on a CPU
    compile: bool = False  # worth it for more than some hundred clips
    video_format: Literal["mp4", "webp"] = "mp4"
    num_videos: Positive = 12  # how many are written for people
    seed: Seed = 0
    num_frames: Positive | None = (
        None  # of the base stage's clips, more than it was trained on; None: as many
    )
    overlap: int | None = Field(None, ge=0)  # frames that its windows share then; None: half of a window
    video: VideoSettings | None = None  # None: from noise
    last_stage: Literal["base", "interpolation", "sr256", "sr1024"] | None = None  # of the cascade; None: all
    interpolation: LaterStageSettings = LaterStageSettings()
    sr256: LaterStageSettings = LaterStageSettings()
    sr1024: LaterStageSettings = LaterStageSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.overlap is not None and self.num_frames is None:
            raise ValueError(
                f"overlap={self.overlap} is of windows, which only num_frames makes: give both or neither"
            )
        if self.video is not None and self.num_frames is not None:
            raise ValueError(
                "num_frames does not go with video, whose clips have frames of their own: leave one out"
            )
        return self

    def later(self, stage: str) -> LaterStageSettings:
        """The settings of a stage behind the base."""
        return getattr(self, stage)


LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+_-]*"  # an identifier such as apache-2.0, openrail++


class ExportSettings(Settings):
    """What the exported folder holds beside the model."""

    # auto: only the embedded one (88 MB), whose licence is known to allow it.
    include_text_encoder: bool | Literal["auto"] = "auto"
    include_captions: bool = True  # the captions that generate samples, with their embeddings
    # Of the parent model, as the Hub spells it; None: as its own card says.
    license: Annotated[str, Field(pattern=f"^{LICENCE}$")] | None = None


class ReportSettings(Settings):
    """The report."""

    title: str = "pyoco_pipeline"
