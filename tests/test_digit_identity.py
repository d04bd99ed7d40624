"""What benchmarks/digit_identity.py says of clips whose digit stays, changes, or stands on uneven ground."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from projects import REPOSITORY

from pyoco_pipeline.data.digits import of_scene
from pyoco_pipeline.evaluation.digits3d import Digits3DNet, load_digits3d

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from digit_identity import identity


@pytest.fixture(scope="module")
def net() -> Digits3DNet:
    return load_digits3d()[0].eval()


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """One of each digit, of held-out glyphs, 16 frames of 32x32."""
    plan, render, _ = of_scene("plain")
    table = plan(200, "test", 0)
    chosen = [table[table["digit"] == digit].iloc[0] for digit in "0123456789"]
    return render(type(table)(chosen), 16, 32).numpy()


def test_a_digit_that_stays_is_read_alike_in_halves_and_frames(net: Digits3DNet, clips: np.ndarray) -> None:
    found = identity(net, clips)

    assert found.halves == 1
    assert found.frames > 0.95
    assert found.ground < 3


def test_a_digit_that_becomes_another_is_told_by_both(net: Digits3DNet, clips: np.ndarray) -> None:
    changed = np.concatenate([clips[:, :8], np.roll(clips, 1, axis=0)[:, 8:]], axis=1)

    found = identity(net, changed)

    assert found.halves == 0
    assert 0.45 < found.frames < 0.6


def test_uneven_ground_is_told_by_its_deviation_alone(net: Digits3DNet, clips: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 6, clips.shape)

    found = identity(net, (np.clip(clips, 40, 215) + noise).round().astype(np.uint8))

    assert found.ground == pytest.approx(6, abs=1.5)
    assert found.halves > 0.85


def test_clips_too_short_for_two_halves_are_refused(net: Digits3DNet, clips: np.ndarray) -> None:
    with pytest.raises(SystemExit, match=r"8 frames: each half needs 8\."):
        identity(net, clips[:, :8])
