"""When a study begins nothing new: clocks that are set neither end it early nor keep it going."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from test_study_run import make_material, settings

from pyoco_pipeline.study.deadline import Deadline
from pyoco_pipeline.study.halving import run_study


@pytest.mark.parametrize("jump_s", [1e6, -1e6])
def test_a_clock_that_is_set_moves_no_deadline(monkeypatch, jump_s):
    deadline, now = Deadline.after(minutes=1), time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump_s)

    assert 50 < deadline.left_s() <= 60


def test_a_deadline_passes(monkeypatch):
    deadline, now = Deadline.after(minutes=1), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)

    assert deadline.left_s() < 0


def test_processes_of_one_machine_have_the_same_deadline():
    deadline = Deadline.after(minutes=1)
    read = "import pickle, sys; print(pickle.load(sys.stdin.buffer).left_s())"
    done = subprocess.run(
        [sys.executable, "-c", read], input=pickle.dumps(deadline), capture_output=True, check=True
    )

    assert 0 <= float(done.stdout) - deadline.left_s() < 30  # it looked before we did


def test_another_machine_goes_by_the_clock(monkeypatch):
    deadline = replace(pickle.loads(pickle.dumps(Deadline.after(minutes=1))), machine="another")  # noqa: S301
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1e6)  # that has run for longer

    assert 50 < deadline.left_s() <= 60


def test_a_study_within_its_time_is_finished_though_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = time.time(), count()
    monkeypatch.setattr(time, "time", lambda: now + 1e6 * next(calls))
    study: dict[str, Any] = run_study(make_material(tmp_path), settings(max_minutes=10))

    assert study["finished"]
