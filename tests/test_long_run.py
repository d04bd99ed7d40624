"""What benchmarks/long_run.py calls flat, and what it does not."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from projects import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import long_run

FLAT = [long_run.Row(10 * (i + 1), 30.0, 30.0, 600.0, 100.0, 200.0) for i in range(100)]


def test_a_run_that_stays_as_it_is_is_flat():
    assert long_run.findings(FLAT, "ms") == []


@pytest.mark.parametrize("name", ["resident", "allocated", "reserved", "ms"])
def test_what_grows_is_found(name):
    growing = [
        replace(row, **{name: getattr(row, name) * (1 + 0.05 * i / 100)}) for i, row in enumerate(FLAT)
    ]

    (found,) = long_run.findings(growing, "ms")
    assert found.startswith(f"{name}: ")


def test_warm_up_and_what_is_freed_are_not_growth():
    shrinking = [replace(row, ms=300.0, resident=100.0) for row in FLAT[:10]] + FLAT[10:]
    shrinking[-10:] = [replace(row, ms=20.0, resident=500.0) for row in FLAT[-10:]]

    assert long_run.findings(shrinking, "ms") == []


@pytest.mark.slow
def test_a_short_run_is_watched_as_it_trains(tmp_path):
    rows = long_run.run(tmp_path, steps=40, sample_every=20, batch_size=2)

    assert [row.step for row in rows] == [10, 20, 30, 40]
    assert all(row.ms > 0 and row.cpu_ms > 0 and row.resident > 0 for row in rows)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
