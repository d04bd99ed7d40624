"""What benchmarks/compare_configurations.py says of two configurations of a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from projects import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from compare_configurations import compared, main, scores


def study() -> dict:
    """Three seeds of two configurations, the second five worse; its clips from sigma 320 are two worse again."""
    cells = []
    for seed, score in enumerate((50.0, 52.0, 57.0)):
        for name, worse in (("iid P_mean=1.2", 0.0), ("iid P_mean=2", 5.0 + seed / 10)):
            values = {"fvd": score + worse}
            cells.append(
                {
                    "configuration": name,
                    "seed": seed,
                    "until": 500,
                    "evaluations": [{"step": 0, "values": {"fvd": 300.0}}, {"step": 500, "values": values}],
                    "sigma_max": [{"sigma_max": 320.0, "values": {"fvd": score + worse + 2 + seed / 10}}],
                }
            )
    return {"metric": "fvd", "level": 0.05, "cells": cells}


def test_seeds_are_paired_at_the_last_step() -> None:
    ((step, test),) = compared(study(), ["iid P_mean=2", "iid P_mean=1.2"], "fvd")

    assert (step, test.seeds) == (500, (0, 1, 2))
    assert test.difference.mean == pytest.approx(5.1)
    assert test.p_t < 0.001  # far less than the seeds differ among themselves


def test_what_was_trained_for_different_times_is_compared_where_all_had_got() -> None:
    made = study()
    for cell in made["cells"]:
        cell["evaluations"].append({"step": 900, "values": {"fvd": 10.0}})
    made["cells"][1]["evaluations"].pop()  # one cell was not scored so late
    ((step, test),) = compared(made, ["iid P_mean=2", "iid P_mean=1.2"], "fvd")
    assert (step, len(test.seeds), test.difference.mean) == (500, 3, pytest.approx(5.1))


def test_a_sampler_behind_a_name_takes_its_clips() -> None:
    found = scores(study(), "iid P_mean=2 sigma_max=320", "fvd")
    assert found == {500: pytest.approx({0: 57.0, 1: 59.2, 2: 64.4})}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["iid P_mean=3", "iid P_mean=2"], "No configuration is called 'iid P_mean=3'"),
        (["iid P_mean=2 sigma_max=80", "iid P_mean=2"], "has no fvd"),
        (["iid P_mean=2"], "two by two"),
        (["iid P_mean=2 sigma_max=x", "iid P_mean=2"], "'x' is no number"),
    ],
)
def test_what_is_not_there_is_said(
    names: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alpha_study.json"
    path.write_text(json.dumps(study()))
    monkeypatch.setattr("sys.argv", ["compare_configurations.py", str(path), *names])
    with pytest.raises(SystemExit, match=says):
        main()


def test_without_names_all_are_printed_and_with_two_their_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alpha_study.json"
    path.write_text(json.dumps(study()))
    monkeypatch.setattr("sys.argv", ["compare_configurations.py", str(path)])
    main()
    assert capsys.readouterr().out.splitlines() == ["iid P_mean=1.2", "iid P_mean=2"]

    monkeypatch.setattr(
        "sys.argv", ["compare_configurations.py", str(path), "iid P_mean=2", "iid P_mean=1.2"]
    )
    main()
    assert (
        "iid P_mean=2 against iid P_mean=1.2 at step 500: 5.1 [4.85, 5.35], p = 0.00013"
        in capsys.readouterr().out
    )
