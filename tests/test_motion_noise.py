"""What benchmarks/motion_noise.py prints, and what it refuses."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from projects import REPOSITORY
from scipy.stats import norm
from tiny import make_store

from pyoco_pipeline.study.motion import told_apart_at

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import motion_noise


def test_the_page_says_both_levels_and_what_is_trained_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = make_store(tmp_path / "03_primary/clips").take("train")
    clips = np.stack([item.clip.video for item in items]) / 127.5 - 1
    monkeypatch.setattr(sys, "argv", ["motion_noise.py", str(tmp_path), "--means", "0", "1.5", "--std", "2"])
    motion_noise.main()
    first, heads, *rows = capsys.readouterr().out.splitlines()

    assert first == "12 clips of (4, 8, 8, 3): medians, and shares of ln sigma ± 2 around"
    assert heads.split()[-2:] == ["0", "1.5"]
    assert [row.split()[0] for row in rows] == list(motion_noise.PRIORS)
    for row in rows:
        name, decided, opened, *shares = row.split()
        median = float(np.median(told_apart_at(clips, motion_noise.prior(name).covariance(4).numpy())))
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
