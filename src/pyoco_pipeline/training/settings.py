"""Settings of a training stage, validated once; every field's comment gives its unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pyoco_pipeline.errors import UserError

if TYPE_CHECKING:  # settings are read when pipelines are listed, which must not cost the import of torch
    from pyoco_pipeline.diffusion import Parametrisation
    from pyoco_pipeline.noise import NoisePrior


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _no_nan(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if any(
                isinstance(v, float) and math.isnan(v)
                for v in (value if isinstance(value, tuple) else (value,))
            ):
                raise ValueError(f"{name} is not a number")
        return self


Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class NoiseSettings(Settings):
    """Which noise prior, and how strongly it correlates the frames of a clip (PYoCo, eq. 3 to 6)."""

    kind: Literal["iid", "mixed", "progressive", "empirical"] = "progressive"
    # Correlation strength of mixed and progressive; .inf repeats one frame.
    alpha: float | None = Field(2.0, ge=0)
    # Of empirical: the correlation of frames at distance 0, 1, …, as analyse_noise measures it; the first is 1.
    correlation: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> Self:
        if self.kind in ("mixed", "progressive") and (self.alpha is None or math.isnan(self.alpha)):
            raise ValueError(f"kind={self.kind} needs an alpha of at least 0, found {self.alpha}")
        if self.kind == "empirical" and not self.correlation:
            raise ValueError(
                "kind=empirical needs correlation, that of frames at distance 0, 1, …: kedro run --pipelines "
                "analyse_noise measures it"
            )
        if self.correlation and (
            self.correlation[0] != 1 or max(abs(value) for value in self.correlation) > 1
        ):
            raise ValueError(
                f"correlation={self.correlation} is none: it begins with 1 and none is larger in size"
            )
        return self

    def prior(self) -> NoisePrior:
        """The prior itself. Raises UserError for a correlation that no noise can have."""
        from pyoco_pipeline.noise import make_prior

        try:
            alpha = self.alpha if self.kind in ("mixed", "progressive") else None
            return make_prior(self.kind, alpha, correlation=self.correlation)
        except ValueError as error:
            raise UserError(f"noise: {error} Take what analyse_noise writes, as it is.") from error


class SigmaSettings(Settings):
    """Law of the noise levels in training: ln(sigma) ~ N(mean, std^2) (EDM, table 1: P_mean, P_std).

    An expert denoiser (eDiff-I) trains on those from min to max only.
    """

    mean: Annotated[float, Field(allow_inf_nan=False)] = -1.2
    std: float = Field(1.2, gt=0)
    min: float = Field(0.0, ge=0)  # sigma
    max: float = Field(math.inf, gt=0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min={self.min} is not below max={self.max}")
        return self

    def identity(self) -> dict[str, float]:
        """What decides the resulting weights; the range only where there is one, so that runs from before it go on."""
        whole = {name for name, end in (("min", 0.0), ("max", math.inf)) if getattr(self, name) == end}
        return self.model_dump(exclude=whole)


class ParametrisationSettings(Settings):
    """What a pretrained network predicts, for a folder that does not say it; the keys of diffusers' schedulers."""

    kind: Literal["edm", "epsilon", "v_prediction", "sample"]
    num_train_timesteps: int = Field(1000, ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None  # of all but edm
    beta_start: float | None = None  # of linear and scaled_linear
    beta_end: float | None = None
    rescale_betas_zero_snr: bool = False
    learned_variance: bool = False

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        schedule = self.model_fields_set - {"kind"}
        if self.kind == "edm":
            if schedule:
                raise ValueError(f"kind=edm takes no schedule, found {', '.join(sorted(schedule))}")
            return self
        if self.beta_schedule is None:
            raise ValueError(f"kind={self.kind} needs a beta_schedule, that of the network's training")
        ends = None not in (self.beta_start, self.beta_end)
        if self.beta_schedule != "squaredcos_cap_v2" and not ends:
            raise ValueError(f"beta_schedule={self.beta_schedule} needs beta_start and beta_end")
        if ends and not 0 < self.beta_start <= self.beta_end < 1:  # type: ignore[operator]
            raise ValueError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} are not 0 < start <= end < 1"
            )
        if self.kind == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError(
                "rescale_betas_zero_snr needs kind=v_prediction or sample: epsilon is blind there"
            )
        return self

    def parametrisation(self) -> Parametrisation:
        """The parametrisation itself."""
        from pyoco_pipeline.diffusion import EDM, Discrete

        return EDM() if self.kind == "edm" else Discrete(**self.model_dump(exclude_none=True))


class TrainSettings(Settings):
    """One training run, of images or of clips."""

    steps: Positive
    batch_size: Positive  # clips per step, over all processes
    learning_rate: float = Field(gt=0)  # peak
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"  # after warm-up; cosine ends at zero
    lr_scale: dict[str, float] = {}  # beginning of a parameter's name -> factor on its learning rate
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.99, gt=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    accumulation: Positive = 1  # micro-batches per step
    num_processes: Positive | Literal["auto"] = (
        "auto"  # that share a batch; auto: one per GPU, or one on the CPU
    )
    # ddp: each has the whole model; fsdp: a part of every weight (FSDP2), for models that are too large otherwise.
    parallel: Literal["ddp", "fsdp"] = "ddp"
    ema_half_life: float = Field(gt=0)  # steps
    ema_rampup: float = Field(0.05, gt=0)  # the half-life is at most this share of the steps done
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 on a GPU, float32 on a CPU
    channels_last: bool = True
    compile: bool = False
    # Forward and backward pass are one CUDA graph: faster for small networks. Of one process, on a GPU.
    cuda_graphs: bool = False
    # cuDNN times its algorithms in the first step: faster on a GPU, where the last bits may then differ between runs.
    tune_convolutions: bool = False
    gradient_checkpointing: bool = (
        False  # compute activations again in the backward pass: less memory, more time
    )
    image_share: Share = 0.0  # share of steps on images, as clips of one frame
    caption_dropout: Share = 0.1  # share of captions replaced by the empty one
    shuffle_buffer: Positive = 4096  # clips shuffled together in memory; as many again are read ahead
    shuffle_buffer_mb: Positive = 2048  # 10^6 bytes of clips at most, and as many again
    # Walks through the data that a batch takes equal parts of; a multiple of the processes: each reads only its own.
    data_lanes: Positive = 1
    log_every: Positive = 10  # steps
    checkpoint_every: Positive = 100  # steps
    keep_checkpoints: Positive = 2
    sample_every: int = Field(0, ge=0)  # steps between validation samples; 0: at the end only
    resume: Literal["auto", "never"] = "auto"
    max_loss_growth: float = Field(20.0, gt=1)  # stop when the mean loss grows to so many times its lowest
    max_minutes: float | None = Field(None, gt=0)  # stop early, with a checkpoint
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulation={self.accumulation}"
            )
        if self.batch_size % self.data_lanes:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of data_lanes={self.data_lanes}"
            )
        if self.cuda_graphs and (self.gradient_checkpointing or self.accumulation > 1):
            other = (
                "gradient_checkpointing"
                if self.gradient_checkpointing
                else f"accumulation={self.accumulation}"
            )
            raise ValueError(f"cuda_graphs is for networks that fit without {other}: leave one of them out")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is more than steps={self.steps}")
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that decide the resulting weights; a checkpoint of other values is of another run."""
        other = {"log_every", "checkpoint_every", "keep_checkpoints", "sample_every", "resume", "max_minutes"}
        return self.model_dump(
            exclude=other
            | {"compile", "cuda_graphs", "tune_convolutions", "max_loss_growth", "num_processes", "parallel"}
        )
