"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import ast
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from projects import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def execute(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[Any], str]:
    """Run all cells in one namespace; gives it, the value of each cell's last expression, and what was printed."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    values, printed = [], io.StringIO()
    with redirect_stdout(printed):
        for number, source in enumerate(code(path)):
            tree = ast.parse(source)
            last = tree.body[-1]
            value = None
            if isinstance(last, ast.Expr):
                tree.body.pop()
                exec(compile(tree, f"{path.name} cell {number}", "exec"), names)
                value = eval(compile(ast.Expression(last.value), f"{path.name} cell {number}", "eval"), names)
            else:
                exec(compile(tree, f"{path.name} cell {number}", "exec"), names)
            values.append(value)
    return names, values, printed.getvalue()


def test_the_notebooks_are_those_of_the_readme() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01_noise_prior.ipynb", "02_alpha_study.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert cell["metadata"] == {}


def test_the_notebook_of_the_priors_shows_what_alpha_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, values, printed = execute(NOTEBOOKS[0], tmp_path, monkeypatch)
    change = names["change"]
    assert list(change.values()) == sorted(
        change.values(), reverse=True
    )  # from independent to nearly repeated
    assert change["i.i.d."] == pytest.approx(2**0.5, rel=0.05)
    assert [video.shape for video in names["videos"].values()] == [(16, 32, 32, 3)] * 4
    assert len(names["frames"]) == 16
    assert values[1].size == (1400, 300)
    assert printed.count("sum 16.0") == 4


def test_the_notebook_of_the_study_reads_the_cells_of_the_newest_from_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_study_statistics import AS_THE_PAPER, METRIC
    from test_study_statistics import cells as made_up

    from pyoco_pipeline.pipelines.ablate_alpha.tracked_cells import TrackedCells
    from pyoco_pipeline.tracking import TrackingSettings

    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    scores = {point: AS_THE_PAPER[point] for point in [("iid", None, -1.2), ("progressive", 2, -1.2)]}
    tracked = TrackedCells(TrackingSettings(), tmp_path / "work", fps=8.0)
    for number, record in enumerate(made_up(scores, 3, 1.0)):
        record |= {
            "id": str(number),
            "study": "alpha-0",
            "name": record["configuration"],
            "neighbour_correlation": 0.5,
            "status": "done",
            "error": None,
            "until": 100,
            "step": 100,
            "train_s": 1.0,
            "score_s": 1.0,
            "code": [],
        }
        (tmp_path / "work/cells" / record["id"]).mkdir(parents=True)
        tracked(record)
    names, values, printed = execute(NOTEBOOKS[1], tmp_path, monkeypatch)
    assert "alpha-0: 6 cells" in printed
    assert "progressive α=2 P_mean=-1.2 beats iid P_mean=-1.2 at step 100" in printed
    assert {row.is_papers for row in names["table"].rows} == {True}
    assert len(names["table"].rows[0].at(METRIC, 100)) == 3
    assert values[-1].size[0] > 500
