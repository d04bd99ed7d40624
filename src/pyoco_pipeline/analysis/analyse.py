"""The whole analysis of a set of noise maps: its numbers, its figures and the prior that it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from pyoco_pipeline.analysis import figures
from pyoco_pipeline.analysis.correlation import (
    FrameCorrelation,
    covariance,
    frame_correlation,
    frame_products,
)
from pyoco_pipeline.analysis.embedding import Clustering, clustering, in_the_plane, principal_components, tsne
from pyoco_pipeline.analysis.empirical import empirical_correlation, noise_snippet
from pyoco_pipeline.analysis.fit import (
    FAMILIES,
    AlphaFit,
    Score,
    compare_families,
    fit_alpha,
    fitted_correlations,
)
from pyoco_pipeline.analysis.gaussianity import Gaussianity, gaussianity
from pyoco_pipeline.analysis.maps import NoiseMaps
from pyoco_pipeline.analysis.settings import AnalyseNoiseSettings
from pyoco_pipeline.noise import EMPIRICAL, IIDNoise, NoisePrior, make_prior

Draw = Callable[..., bytes]  # draw(dark=...) -> PNG
DATA = "data"  # what the clips' own maps are called beside samples of priors


@dataclass(frozen=True)
class NoiseAnalysis:
    """What noise maps say. fits: by family; scores: by family, best first; clustering: of the maps and of priors."""

    source: NoiseMaps
    settings: AnalyseNoiseSettings
    correlation: FrameCorrelation
    by_channel: np.ndarray  # (C, T)
    gaussianity: Gaussianity
    covariance: np.ndarray  # (T, T)
    fits: dict[str, AlphaFit]
    scores: dict[str, Score]
    clustering: dict[str, Clustering]

    @property
    def best(self) -> str:
        """The family that makes left-out clips most likely."""
        return next(iter(self.scores))

    @cached_property
    def empirical(self) -> np.ndarray:
        """Toeplitz row of the measured prior, (T,)."""
        return empirical_correlation(self.covariance)

    def lead(self) -> float:
        """By how many standard errors the best family is ahead of the next one."""
        second = list(self.scores.values())[1]
        return second.behind / second.standard_error if second.standard_error else 0.0

    def prior(self, name: str) -> NoisePrior:
        """A family as fitted."""
        if name in self.fits:
            return make_prior(name, self.fits[name].alpha)
        return make_prior(name, correlation=self.empirical.tolist())

    def snippet(self) -> str:
        """The best prior as YAML to paste into conf/, with the others as comments."""
        texts = {name: self._snippet(name) for name in self.scores}
        lines = [
            f"# Found by analyse_noise from {len(self.source.clip_ids)} clips: {self.best} fits best, by "
            f"{self.lead():.1f} standard errors.",
            texts.pop(self.best).rstrip(),
        ]
        for name, text in texts.items():
            lines.append(f"# or, {self.scores[name].behind:.2g} nats per pixel behind:")
            lines += [f"#   {line.strip()}" for line in text.splitlines() if line.strip().startswith("noise")]
        return "\n".join(lines) + "\n"

    def _snippet(self, name: str) -> str:
        alpha = self.fits[name].alpha if name in self.fits else None
        return noise_snippet(name, alpha, self.empirical.tolist())

    def summary(self) -> dict[str, Any]:
        """All numbers as strict JSON, under one name, so that trackers tell them from those of other pipelines."""
        source = self.source
        inverted = {
            "clips": len(source.clip_ids),
            "frames": source.maps.shape[1],
            "text": source.text,
            "steps": source.steps,
            "sigma_min": source.sigma_min,
            "sigma_max": source.sigma_max,
            "round_trip_error": source.round_trip_error,
            "round_trip_worst": source.round_trip_worst,
        }
        correlation = {name: values.tolist() for name, values in asdict(self.correlation).items()}
        return {
            "noise": {
                "inversion": inverted,
                "gaussianity": self.gaussianity.as_dict(),
                "neighbour_correlation": float(self.correlation.correlation[1]),
                "correlation_by_distance": correlation | {"by_channel": self.by_channel.tolist()},
                "confidence": self.settings.confidence,
                **{name: _fit_numbers(fit) for name, fit in self.fits.items()},
                EMPIRICAL: {"correlation": self.empirical.tolist()},
                "best": self.best,
                "lead_in_standard_errors": self.lead(),
                "left_out": {name: asdict(score) for name, score in self.scores.items()},
                "clustering": {name: value.as_dict() for name, value in self.clustering.items()},
            }
        }

    @cached_property
    def figures(self) -> dict[str, Draw]:
        """Every figure by its name."""
        fitted = fitted_correlations(self.fits, self.covariance)
        return {
            "correlation": partial(figures.correlation_curves, self.correlation, self.by_channel, fitted),
            "families": partial(figures.family_scores, self.scores),
            "alpha": partial(figures.alpha_profiles, self.fits),
            "tsne": partial(figures.plane_pictures, self._planes(tsne)),
            "pca": partial(figures.plane_pictures, self._planes(principal_components)),
            "values": partial(figures.value_distribution, self.source.maps.numpy()),
        }

    def _planes(self, method: Callable[..., np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Some clips' maps, and as many of each prior, projected with independent noise."""
        maps = self.source.maps[: self.settings.plotted_clips].numpy()
        sets = {"noise maps of the clips": maps}
        for name, prior in _references(self).items():
            sets[name] = sample_maps(prior, maps.shape, self.settings.seed)
        independent = sample_maps(IIDNoise(), maps.shape, self.settings.seed + 1)
        project = partial(method, seed=self.settings.seed)
        return {name: in_the_plane(project, points, independent) for name, points in sets.items()}


def analyse(source: NoiseMaps, settings: AnalyseNoiseSettings) -> NoiseAnalysis:
    """Measure noise maps; UserError where they are too few, of one frame each, or not finite."""
    maps = source.maps.numpy()
    products = frame_products(maps)
    channels = (frame_products(maps[:, :, c : c + 1]) for c in range(maps.shape[2]))
    by_channel = np.stack([frame_correlation(channel).correlation for channel in channels])
    options = {
        "values_per_map": maps[0, 0].size,
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
    }
    analysis = NoiseAnalysis(
        source,
        settings,
        frame_correlation(products),
        by_channel,
        gaussianity(maps),
        covariance(products),
        {name: fit_alpha(name, products, **options) for name in FAMILIES},
        compare_families(products),
        {DATA: clustering(products)},
    )
    for name, prior in _references(analysis).items():
        sampled = frame_products(sample_maps(prior, tuple(maps.shape), settings.seed))
        analysis.clustering[name] = clustering(sampled)
    return analysis


def _references(analysis: NoiseAnalysis) -> dict[str, NoisePrior]:
    """The priors that the maps are shown beside: independent frames, the paper's best, and the one found here."""
    return {
        "iid": IIDNoise(),
        "mixed α=1": make_prior("mixed", 1.0),
        "progressive α=2": make_prior("progressive", 2.0),
        f"{analysis.best}, fitted": analysis.prior(analysis.best),
    }


def sample_maps(prior: NoisePrior, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise of a prior in the layout of noise maps, (N, T, C, H, W) float32."""
    clips, frames, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    noise = prior.sample((clips, channels, frames, height, width), generator=generator, dtype=torch.float32)
    return noise.transpose(1, 2).contiguous().numpy()


def _fit_numbers(fit: AlphaFit) -> dict[str, float]:
    numbers = {"alpha": fit.alpha, "scale": fit.scale}
    for name, (low, high) in (("interval", fit.interval), ("naive_interval", fit.naive_interval)):
        numbers |= {f"{name}_low": low, f"{name}_high": high}
    return numbers
