"""The cells of the study: what each trains with, what it is called, and the digest that is its id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.study.settings import AblateAlphaSettings, PriorsSettings
from pyoco_pipeline.training.settings import NoiseSettings, SigmaSettings, TrainSettings

Init = Literal["finetune", "scratch"]
PAPER_ALPHA = {"iid": None, "mixed": 1.0, "progressive": 2.0}  # the paper's best (Ge et al. 2023, table 2)


@dataclass(frozen=True)
class Configuration:
    """A point of the grid; its cells differ in the seed.

    init: the inflated model, or the same with new weights. num_clips: that it trains on; None: all.
    """

    init: Init
    noise: NoiseSettings
    sigma_mean: float
    sigma_std: float
    num_clips: int | None = None

    @property
    def family(self) -> str:
        """The kind of its prior, apart for controls."""
        return self.noise.kind if self.init == "finetune" else f"scratch {self.noise.kind}"

    @property
    def alpha(self) -> float | None:
        """Of mixed and progressive."""
        return self.noise.alpha if self.noise.kind in ("mixed", "progressive") else None

    @property
    def prior_name(self) -> str:
        """Such as "mixed α=1"."""
        return self.family if self.alpha is None else f"{self.family} α={spelt(self.alpha)}"

    @property
    def name(self) -> str:
        """Such as "mixed α=1 P_mean=-1.2"; P_std is said where it is not EDM's 1.2, clips where they are not all."""
        std = "" if self.sigma_std == 1.2 else f" P_std={self.sigma_std:g}"
        clips = "" if self.num_clips is None else f" clips={self.num_clips}"
        return f"{self.prior_name} P_mean={self.sigma_mean:g}{std}{clips}"

    def at_law(self, law: SigmaSettings) -> bool:
        """Whether ln sigma ~ N(mean, std²) is this law's."""
        return (self.sigma_mean, self.sigma_std) == (law.mean, law.std)

    def is_papers(self, law: SigmaSettings) -> bool:
        """Whether it is a prior at the paper's best α, at the paper's law."""
        kind = self.noise.kind
        return self.at_law(law) and kind in PAPER_ALPHA and self.alpha == PAPER_ALPHA[kind]

    def with_clips(self, num_clips: int | None) -> Configuration:
        """The same, trained on so many clips."""
        return replace(self, num_clips=num_clips)


@dataclass(frozen=True)
class Cell:
    """One training run of the study."""

    configuration: Configuration
    seed: int

    @property
    def name(self) -> str:
        """What its MLflow run is called."""
        return f"{self.configuration.name} seed={self.seed}"


def spelt(alpha: float) -> str:
    """An α as people write it."""
    return "∞" if math.isinf(alpha) else f"{alpha:g}"


def configurations(settings: AblateAlphaSettings) -> list[Configuration]:
    """The whole grid of all clips, each point once, in the order of the settings."""
    points = list(_grid("finetune", settings.priors, settings.sigma_means, settings.sigma_stds))
    if settings.scratch:
        scratch = settings.scratch
        points += _grid("scratch", scratch.priors, scratch.sigma_means, settings.sigma_stds)
    return list(dict.fromkeys(points))


def fewer_clips(settings: AblateAlphaSettings) -> list[Configuration]:
    """The configurations that train on fewer clips, from the fewest on."""
    fewer = settings.fewer_clips
    if fewer is None:
        return []
    points = list(_grid("finetune", fewer.priors, fewer.sigma_means, settings.sigma_stds[:1]))
    return [point.with_clips(count) for count in sorted(fewer.num_clips) for point in points]


def _grid(
    init: Init, priors: tuple[PriorsSettings, ...], means: tuple[float, ...], stds: tuple[float, ...]
) -> Iterator[Configuration]:
    for prior in priors:
        for noise in prior.noise():
            for mean in means:
                for std in stds:
                    yield Configuration(init, noise, mean, std)


def stage_settings(cell: Cell, settings: AblateAlphaSettings, scratch: str | None = None) -> StageSettings:
    """How the cell trains. scratch: the folder of its new weights, of a control."""
    chosen = cell.configuration
    train = settings.train.model_copy(
        update={"seed": cell.seed, "sample_every": settings.sample_every(), **_own_rates(chosen, settings)}
    )
    sigma = SigmaSettings(
        mean=chosen.sigma_mean, std=chosen.sigma_std, min=settings.sigma_min, max=settings.sigma_max
    )
    return StageSettings(
        init=scratch,
        noise=chosen.noise,
        sigma=sigma,
        sigma_data=settings.sigma_data,
        train=TrainSettings(**train.model_dump()),
    )


def _own_rates(chosen: Configuration, settings: AblateAlphaSettings) -> dict[str, Any]:
    if chosen.init == "finetune" or settings.scratch is None:
        return {}
    rate = settings.scratch.learning_rate or settings.train.learning_rate
    return {"learning_rate": rate, "lr_scale": settings.scratch.lr_scale or {}}


def digest(facts: Mapping[str, Any]) -> str:
    """Hex digest of JSON-able facts, 16 letters."""
    text = json.dumps(facts, sort_keys=True, default=str, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell_id(cell: Cell, settings: AblateAlphaSettings, shared: Mapping[str, Any]) -> str:
    """Digest of all that decides the cell's scores: `shared` of all cells, and what it trains with.

    Not where it is scored and how long it trains: a cell goes on when a rung is raised, up to train.steps.
    """
    stage, num_clips = stage_settings(cell, settings), cell.configuration.num_clips
    fewer = {} if num_clips is None else {"train_clips": num_clips}
    return digest(
        fewer
        | {
            "shared": shared,
            "init": cell.configuration.init,
            "noise": stage.noise.prior().config(),
            "sigma": stage.sigma.identity(),
            "train": stage.train.identity(),
        }
    )


def untrained_id(cell: Cell, shared: Mapping[str, Any]) -> str:
    """Digest of what decides the scores before any training: cells that differ in the law of sigma share them."""
    chosen = cell.configuration
    facts = {"shared": shared, "init": chosen.init, "noise": chosen.noise.prior().config(), "seed": cell.seed}
    return digest(facts)


def shared_facts(settings: AblateAlphaSettings) -> dict[str, Any]:
    """What of the settings decides the scores of every cell."""
    return {
        "sampler": settings.sampler.model_dump(),
        "num_clips": settings.num_clips,
        "sample_seed": settings.sample_seed,
        "sigma_data": settings.sigma_data,
        "evaluate": settings.evaluate.model_dump(
            exclude={"batch_size", "num_processes", "generated", "digits3d"}
        ),
    }
