"""What a study of α keeps is damaged: a sentence names the file, and what makes it again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from test_damaged_files import DAMAGES, break_file

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.study.measured import measured_correlation
from pyoco_pipeline.study.work import CellFolder

SAYS = r" can't be read \(.*\): delete the folder .*`kedro run --pipelines ablate_alpha`"


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, np.zeros(3))
    return content.getvalue()


@pytest.fixture
def cell(tmp_path) -> CellFolder:
    """A cell that was trained and scored once."""
    cell = CellFolder(tmp_path, "a")
    cell.describe({"name": "iid"})
    cell.set_error("a reason")
    (cell.folder / "history.json").write_text(json.dumps([{"step": 1, "loss": 0.5}]))
    cell.evaluations.write(2, {"fvd": 1.0, "seconds": 1.0}, np.zeros((1, 4, 8, 8, 3), np.uint8))
    return cell


@pytest.mark.parametrize("damage", [*DAMAGES, "other 2"])
@pytest.mark.parametrize(
    "file", ["cell.json", "error.json", "history.json", "evaluations/step-00000002.json"]
)
def test_damaged_state_of_a_cell_is_named(cell, file, damage):
    path = cell.folder / file
    break_file(path, damage)
    reads = {"cell": cell.facts, "error": cell.error, "history": cell.history}

    with pytest.raises(UserError, match=f"{path}{SAYS}"):
        reads.get(path.stem, lambda: cell.evaluations.read(2))()


@pytest.mark.parametrize("damage", [*DAMAGES, "npz"])
def test_damaged_clips_of_a_cell_are_named(cell, damage):
    path = cell.folder / "evaluations/step-00000002.npy"
    path.write_bytes(npz() if damage == "npz" else DAMAGES[damage](path.read_bytes()))

    with pytest.raises(UserError, match=f"{path}{SAYS}"):
        cell.evaluations.clips(2)


@pytest.mark.parametrize("damage", [*DAMAGES, "other 0", "other 1"])
def test_a_damaged_measurement_of_noise_is_named(tmp_path, damage):
    path: Path = tmp_path / "noise_analysis.json"
    path.write_text(json.dumps({"noise": {"empirical": {"correlation": [1.0, 0.5]}}}))
    break_file(path, damage)

    with pytest.raises(UserError, match=rf"{path} holds no correlation .*analyse_noise"):
        measured_correlation(path, 2)


@pytest.mark.parametrize("correlation", [3, [1.0, "a"], [1.0, None]])
def test_a_correlation_of_something_else_is_named(tmp_path, correlation):
    path = tmp_path / "noise_analysis.json"
    path.write_text(json.dumps({"noise": {"empirical": {"correlation": correlation}}}))

    with pytest.raises(UserError, match=rf"{path} holds no correlation"):
        measured_correlation(path, 2)
