"""Settings of the study; reading them costs no import of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.evaluation.settings import MIN_CLIPS, EvaluateSettings
from pyoco_pipeline.training.settings import (
    NoiseSettings,
    Positive,
    Seed,
    Settings,
    Share,
    SigmaSettings,
    TrainSettings,
)

Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_SEEDS = 16  # all sign flips of so many differences are still counted, not drawn


class PriorsSettings(Settings):
    """Priors of one kind."""

    kind: Literal["iid", "mixed", "progressive", "empirical"]
    alphas: tuple[Annotated[float, Field(ge=0)], ...] = ()  # of mixed and progressive; .inf repeats one frame
    correlation: tuple[float, ...] | None = None  # of empirical; None: as analyse_noise has measured it

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> Self:
        if (self.kind in ("mixed", "progressive")) != bool(self.alphas):
            raise ValueError(f"kind={self.kind} with alphas={self.alphas}: mixed and progressive have some")
        if not self.is_to_be_measured:
            self.noise()
        return self

    @property
    def is_to_be_measured(self) -> bool:
        """Whether the correlation is left to analyse_noise."""
        return self.kind == "empirical" and self.correlation is None

    def measured(self, correlation: Sequence[float]) -> PriorsSettings:
        """The same, with this correlation where it was left to analyse_noise."""
        if not self.is_to_be_measured:
            return self
        return PriorsSettings(kind=self.kind, correlation=tuple(correlation))

    def noise(self) -> tuple[NoiseSettings, ...]:
        """One setting of the noise per prior; ValueError where the correlation is still to be measured."""
        if self.kind in ("mixed", "progressive"):
            return tuple(NoiseSettings(kind=self.kind, alpha=alpha) for alpha in self.alphas)
        return (NoiseSettings(kind=self.kind, alpha=None, correlation=self.correlation),)


class ScratchSettings(Settings):
    """Controls: the same network with new weights, trained on clips alone."""

    priors: Annotated[tuple[PriorsSettings, ...], Field(min_length=1)]
    sigma_means: Annotated[tuple[Finite, ...], Field(min_length=1)]
    learning_rate: float | None = Field(None, gt=0)  # None: that of fine-tuning
    lr_scale: dict[str, float] | None = None  # None: one rate for all, since all weights are new


class FewerClipsSettings(Settings):
    """Cells that train on the first so many clips, up to the last rung and with its seeds, outside halving.

    Each has its counterpart with all clips, which halving then keeps.
    """

    num_clips: Annotated[tuple[Positive, ...], Field(min_length=1)]
    priors: Annotated[tuple[PriorsSettings, ...], Field(min_length=1)]
    sigma_means: Annotated[tuple[Finite, ...], Field(min_length=1)]


class RungSettings(Settings):
    """A stretch of successive halving: every configuration that is left trains up to `steps`."""

    steps: Positive
    seeds: Positive = 1  # the first so many of `seeds`


class AblateAlphaSettings(Settings):
    """Which cells there are, how long each trains, and how it is scored."""

    study: str = Field("alpha", pattern=r"^[A-Za-z0-9][\w.-]*$")  # begins the tag of its MLflow runs
    priors: Annotated[tuple[PriorsSettings, ...], Field(min_length=1)]
    sigma_means: Annotated[tuple[Finite, ...], Field(min_length=1)]  # P_mean: every prior with every one
    sigma_stds: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.2,)
    sigma_min: float = Field(0.0, ge=0)
    sigma_max: float = Field(math.inf, gt=0)
    paper_sigma: SigmaSettings = (
        SigmaSettings()
    )  # the law at which the paper's claims are tested as they stand
    scratch: ScratchSettings | None = None
    fewer_clips: FewerClipsSettings | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SEEDS)]
    rungs: Annotated[tuple[RungSettings, ...], Field(min_length=1)]
    keep: Share = 0.34  # of the configurations, from rung to rung
    # measured: what an empirical prior is compared by: it at paper_sigma, and the best progressive α=2
    always_keep: tuple[Literal["paper", "family_best", "measured"], ...] = (
        "paper",
        "family_best",
        "measured",
    )
    evaluate_at: tuple[Annotated[int, Field(ge=0)], ...] = (0,)  # steps, beside those of the rungs
    train: TrainSettings  # of each cell; its `steps` are the most that rungs can be raised to, its seed is the cell's
    sigma_data: float = Field(0.5, gt=0)
    num_clips: int = Field(ge=MIN_CLIPS)  # sampled per evaluation
    sampler: SamplerSettings = SamplerSettings()
    solver_steps: tuple[
        Positive, ...
    ] = ()  # the last rung's cells are sampled with each of these numbers too
    sampled_from: tuple[
        Annotated[float, Field(gt=0, allow_inf_nan=False)], ...
    ] = ()  # the sampler's sigma_max: the last rung's cells are sampled from each of these noise levels too
    batch_size: Positive = 32  # clips sampled at once
    sample_seed: Seed = 0
    evaluate: EvaluateSettings = EvaluateSettings()
    metric: str = "fvd_digits3d"  # what cells are chosen and compared by
    second_metric: str | None = "is_digits3d"  # shown beside it
    num_shown: Positive = 4  # clips per evaluation that are kept to be watched
    executor: Literal["inline", "processes", "ray"] = "inline"
    workers: Positive | None = None  # cells at a time; None: one per GPU, or one on the CPU
    gpus_per_cell: float = Field(0.0, ge=0)  # of ray
    ray_address: str | None = None  # of a cluster that sees the same folders; None: a Ray of this run's own
    max_minutes: float | None = Field(None, gt=0)  # begin nothing new then; the same command goes on
    retry_failed: bool = False  # train cells again that failed in an earlier run
    level: float = Field(0.05, gt=0, lt=1)  # of tests; intervals are of 1 - level
    min_seeds: int = Field(3, ge=2)  # fewer decide nothing

    @model_validator(mode="after")
    def _budget(self) -> Self:
        steps = [rung.steps for rung in self.rungs]
        if sorted(set(steps)) != steps:
            raise ValueError(f"rungs have the steps {steps}: each is longer than the one before")
        if steps[-1] > self.train.steps:
            raise ValueError(f"rungs go to {steps[-1]} steps, train.steps={self.train.steps} is less")
        if any(rung.seeds > len(self.seeds) for rung in self.rungs):
            raise ValueError(f"a rung has more seeds than the {len(self.seeds)} of seeds")
        if any(b.seeds < a.seeds for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError("a rung has fewer seeds than the one before")
        every = self.train.checkpoint_every
        if off := [s for s in steps if s % every and s != self.train.steps]:
            raise ValueError(f"a rung ends at step {off[0]}, no multiple of train.checkpoint_every={every}")
        if self.train.schedule != "constant":
            raise ValueError(
                f"train.schedule={self.train.schedule} depends on where training ends, which halving decides: constant"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={self.seeds} has one twice")
        if sum(prior.kind == "empirical" for prior in self.priors) > 1:
            raise ValueError("priors has several of kind empirical, which nothing would tell apart: take one")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} is not below sigma_max={self.sigma_max}")
        if self.metric not in self._possible() or (
            self.evaluate.metrics != "auto" and self.metric not in self.evaluate.metrics
        ):
            raise ValueError(f"metric={self.metric} is none that evaluate computes")
        return self

    @model_validator(mode="after")
    def _finalists(self) -> Self:
        self.resampled()  # ValueError where the sampler does not take one
        fewer = self.fewer_clips
        if fewer is None:
            return self
        if len(set(fewer.num_clips)) != len(fewer.num_clips):
            raise ValueError(f"fewer_clips.num_clips={fewer.num_clips} has one twice")
        tried = {(prior.kind, alpha) for prior in self.priors for alpha in prior.alphas or (None,)}
        for prior in fewer.priors:
            for alpha in prior.alphas or (None,):
                if (prior.kind, alpha) not in tried:
                    name = prior.kind if alpha is None else f"{prior.kind} with α={alpha:g}"
                    raise ValueError(f"fewer_clips.priors has {name}, which priors has not: add it there")
        if missing := sorted(set(fewer.sigma_means) - set(self.sigma_means)):
            raise ValueError(
                f"fewer_clips.sigma_means has {missing[0]}, which sigma_means has not: add it there"
            )
        return self

    @staticmethod
    def _possible() -> set[str]:
        from typing import get_args

        from pyoco_pipeline.evaluation.settings import EmbeddedMetric, PublishedMetric

        return {*get_args(EmbeddedMetric), *get_args(PublishedMetric)}

    @property
    def is_to_be_measured(self) -> bool:
        """Whether a prior has the correlation that analyse_noise measures."""
        return any(prior.is_to_be_measured for part in self._with_priors() for prior in part.priors)

    def measured(self, correlation: Sequence[float]) -> AblateAlphaSettings:
        """The same, with a measured correlation for the priors that left it open."""
        names = ("scratch", "fewer_clips")
        changed: dict[str, Any] = {
            name: part.model_copy(update={"priors": tuple(p.measured(correlation) for p in part.priors)})
            for name in names
            if (part := getattr(self, name)) is not None
        }
        changed["priors"] = tuple(prior.measured(correlation) for prior in self.priors)
        return self.model_copy(update=changed)

    def _with_priors(self) -> list[Any]:
        return [part for part in (self, self.scratch, self.fewer_clips) if part is not None]

    def with_sampler(self, **changes: Any) -> AblateAlphaSettings:
        """The same, but sampled with these changes of the sampler; ValueError where it does not take them."""
        sampler = SamplerSettings(**(self.sampler.model_dump() | changes))
        return self.model_copy(update={"sampler": sampler})

    def resampled(self) -> dict[str, dict[float, AblateAlphaSettings]]:
        """How the last rung's cells are sampled beside training, by what is varied and its value.

        Raises ValueError where the sampler does not take one.
        """
        return {
            "solver_steps": {n: self.with_sampler(steps=n) for n in sorted(set(self.solver_steps))},
            "sigma_max": {s: self.with_sampler(sigma_max=s) for s in sorted(set(self.sampled_from))},
        }

    def evaluation_steps(self, until: int) -> tuple[int, ...]:
        """The steps up to `until` at which cells are scored: those asked for, and the ends of the rungs."""
        asked = {*self.evaluate_at, *(rung.steps for rung in self.rungs)}
        return tuple(sorted(step for step in asked if step <= until))

    def sample_every(self) -> int:
        """The largest number of steps that meets every evaluation."""
        return reduce(math.gcd, self.evaluation_steps(self.rungs[-1].steps))
