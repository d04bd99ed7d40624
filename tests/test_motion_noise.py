"""What benchmarks/motion_noise.py says of clips that go one way, and of clips that are the same backwards."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import REPOSITORY
from scipy.stats import norm
from tiny import make_store

from pyoco_pipeline.data.batches import to_float
from pyoco_pipeline.noise import CovarianceNoise, IIDNoise, MixedNoise, NoisePrior, ProgressiveNoise

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import motion_noise

PRIORS = [IIDNoise(), MixedNoise(1.0), ProgressiveNoise(2.0), CovarianceNoise([1.0, 0.5, 0.2, 0.1, 0.0])]


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(6, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior.name)
def test_the_best_observer_errs_at_that_level_as_often_as_said(prior, clips: torch.Tensor) -> None:
    clip, back = clips[0], clips[0].flip(1)
    sigma = motion_noise.told_apart_at(clips[:1], prior, 1.5).item()
    noise = prior.sample((20_000, *clip.shape), generator=torch.Generator().manual_seed(1)).double()
    precision = torch.linalg.inv(prior.covariance(5).double())

    def distance(x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        d = (x - to).movedim(2, -1).flatten(1, -2)
        return torch.einsum("npt,ts,nps->n", d, precision, d)

    seen = clip + sigma * noise
    errors = (distance(seen, back) < distance(seen, clip)).double().mean().item()

    assert errors == pytest.approx(norm.sf(0.75), abs=0.012)  # four standard errors


def test_independent_noise_hides_a_clip_at_its_distance_from_itself_backwards(clips: torch.Tensor) -> None:
    distances = (clips - clips.flip(2)).flatten(1).norm(dim=1).double()

    torch.testing.assert_close(motion_noise.told_apart_at(clips, IIDNoise(), 1.0), distances)
    torch.testing.assert_close(motion_noise.told_apart_at(clips, IIDNoise(), 3.0), distances / 3)


def test_a_clip_that_is_the_same_backwards_is_never_told_apart(clips: torch.Tensor) -> None:
    both = clips + clips.flip(2)

    assert motion_noise.told_apart_at(both, ProgressiveNoise(2.0), 1.0).abs().max() < 1e-5
    assert motion_noise.share_between(0.0, 0.0, 0.0, 1.0) == 0


def test_the_page_says_both_levels_and_what_is_trained_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = make_store(tmp_path / "03_primary/clips").take("train")
    clips = torch.stack([to_float(torch.from_numpy(item.clip.video.copy())[None])[0] for item in items])
    monkeypatch.setattr(sys, "argv", ["motion_noise.py", str(tmp_path), "--means", "0", "1.5", "--std", "2"])
    motion_noise.main()
    first, heads, *rows = capsys.readouterr().out.splitlines()

    assert first == "12 clips of (3, 4, 8, 8): medians, and shares of ln sigma ± 2 around"
    assert heads.split()[-2:] == ["0", "1.5"]
    assert [row.split()[0] for row in rows] == list(motion_noise.PRIORS)
    for row in rows:
        name, decided, opened, *shares = row.split()
        median = motion_noise.told_apart_at(clips, motion_noise.prior(name), 1.0).median().item()
        assert float(opened) == pytest.approx(median, abs=0.051)
        assert float(decided) == pytest.approx(median / 3, abs=0.051)
        for mean, share in zip((0, 1.5), shares, strict=True):
            law = norm(mean, 2)
            between = law.cdf(math.log(median)) - law.cdf(math.log(median / 3))
            assert float(share.rstrip("%")) == pytest.approx(100 * between, abs=0.051)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pink", "name is 'pink': expected one of iid, mixed, progressive, empirical"),
        ("mixed:-1", "alpha is -1.0"),
        ("iid:2", "iid:2: iid has no alpha"),
        ("mixed:inf", "mixed:inf has one noise for all frames, which hides no motion: give a finite alpha"),
    ],
)
def test_a_prior_that_there_is_not_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["motion_noise.py", "data", "--priors", given])
    with pytest.raises(SystemExit):
        motion_noise.main()
    assert f"error: --priors: {message}" in capsys.readouterr().err


def study_of(clips: torch.Tensor, priors: list[NoisePrior], seeds: int = 2) -> dict[str, Any]:
    """A study in which the clips that went the right way are as many as was trained between the levels."""
    cells = []
    for prior in priors:
        opened = motion_noise.told_apart_at(clips, prior, 1.0).median().item()
        for mean, seed in itertools.product((0.0, 1.0), range(seeds)):
            right = motion_noise.share_between(opened / 3, opened, mean, 1.2)
            values = {"caption_accuracy_direction": right, "fvd_digits3d": 100 - right + seed}
            cells.append(
                {
                    "init": "finetune", "num_clips": None, "alpha": getattr(prior, "alpha", None), "step": 20,
                    "prior": str(prior.config()), "noise": prior.config(), "sigma_mean": mean, "sigma_std": 1.2,
                    "seed": seed, "evaluations": [{"step": 0, "values": {}}, {"step": 20, "values": values}],
                }
            )  # fmt: skip
    return {"metric": "fvd_digits3d", "cells": cells}


def test_a_study_that_trained_the_way_as_said_is_ordered_so(clips: torch.Tensor) -> None:
    priors = [IIDNoise(), MixedNoise(1.0), MixedNoise(5.0), ProgressiveNoise(2.0), ProgressiveNoise(10.0)]

    first, *lines = motion_noise.compare_with(study_of(clips, priors), clips)

    assert first.startswith("step 20:")
    assert [line.split(": ")[1] for line in lines] == [
        "caption_accuracy_direction 1.00 (1.00, 1.00)",
        "fvd_digits3d -1.00 (-1.00, -1.00)",
    ] * 2
    assert lines[0].startswith("ln sigma 0 ± 1.2, 5 priors")


def test_of_a_study_only_priors_are_compared_that_have_all_seeds(clips: torch.Tensor) -> None:
    priors = [IIDNoise(), MixedNoise(1.0), MixedNoise(5.0), ProgressiveNoise(2.0)]
    study = study_of(clips, priors)
    study["cells"] = [c for c in study["cells"] if (c["noise"]["name"], c["seed"]) != ("iid", 1)]

    _, *lines = motion_noise.compare_with(study, clips)

    assert all("3 priors" in line for line in lines)
    study["cells"] = [c for c in study["cells"] if c["noise"]["name"] == "mixed"]
    assert len(motion_noise.compare_with(study, clips)) == 1  # two priors have no order


def test_a_study_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "03_primary/clips")
    monkeypatch.setattr(sys, "argv", ["motion_noise.py", str(tmp_path), "--study"])

    with pytest.raises(SystemExit):
        motion_noise.main()

    assert (
        "alpha_study.json is not there: run `kedro run --pipelines ablate_alpha`" in capsys.readouterr().err
    )
