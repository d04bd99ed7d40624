"""A study on disk: scored on the way, in pieces, killed, with a cell that fails, in several processes."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cells import FakeTask, ProcessId
from filelock import FileLock
from forked_programs import programs
from test_study_cells import TRAIN
from tiny import make_embeddings, make_store, make_video_unet

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.study import run_cell as run_cell_module
from pyoco_pipeline.study.cells import Cell, configurations, untrained_id
from pyoco_pipeline.study.halving import check_some_succeeded, run_study
from pyoco_pipeline.study.material import Material
from pyoco_pipeline.study.run_cell import Outcome
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.work import CellFolder
from pyoco_pipeline.study.workers import cell_runner

METRIC = "fvd_digits3d"


def make_material(folder: Path) -> Material:
    """Clips of 4x8x8, an inflated model and a work folder; made once, then found."""
    if not (folder / "latents").is_dir():
        store = make_store(folder / "clips", 24, 6)
        make_embeddings(folder / "text", [item.caption for item in store.take()])
        save_video_model(make_video_unet(trained=False), folder / "inflated")
        (folder / "work").mkdir()
        (folder / "latents").mkdir()
        (folder / "latents/none.json").write_text("{}")
    parts = ("inflated", "clips", "latents", "text", "work", "reference")
    return Material(*(folder / part for part in parts))


def settings(**changes: Any) -> AblateAlphaSettings:
    defaults: dict[str, Any] = {
        "priors": [{"kind": "iid"}, {"kind": "progressive", "alphas": [2]}],
        "sigma_means": [-1.2, 0.4],
        "seeds": [0, 1],
        "rungs": [{"steps": 4, "seeds": 1}, {"steps": 8, "seeds": 2}],
        "keep": 0.0,
        "always_keep": ["family_best"],
        "train": TRAIN | {"steps": 12, "checkpoint_every": 2, "precision": "float32", "log_every": 1},
        "num_clips": 4,
        "num_shown": 2,
        "sampler": {"steps": 2},
        "evaluate": {"metrics": [METRIC], "max_reference_clips": 8, "fid_frames": 1},
        "metric": METRIC,
        "second_metric": None,
    }
    return AblateAlphaSettings(**(defaults | changes))


def scores(study: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Score by cell and step."""
    return {
        cell["name"]: {row["step"]: row["values"][METRIC] for row in cell["evaluations"]}
        for cell in study["cells"]
    }


def score_files(work: Path) -> dict[str, int]:
    """Every file of scores, with the time at which it was written."""
    return {str(p.relative_to(work)): p.stat().st_mtime_ns for p in work.glob("cells/*/evaluations/*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, dict[str, Any]]:
    """A study that was never stopped."""
    material = make_material(tmp_path_factory.mktemp("whole"))
    return material, run_study(material, settings())


def test_the_better_half_trains_on_with_more_seeds(whole: tuple[Material, dict[str, Any]]) -> None:
    study = whole[1]
    assert study["finished"]
    first, second = study["rungs"]
    assert (first["steps"], len(first["trained"]), len(first["kept"])) == (4, 4, 2)
    assert (second["steps"], second["trained"]) == (8, first["kept"])
    found = scores(study)
    at_4 = {name: by_step[4] for name, by_step in found.items() if name.endswith("seed=0")}
    for family in ("iid", "progressive"):
        best = min((name for name in at_4 if name.startswith(family)), key=at_4.__getitem__)
        assert best.removesuffix(" seed=0") in first["kept"]
    for cell in study["cells"]:
        steps = [row["step"] for row in cell["evaluations"]]
        assert steps == ([0, 4, 8] if cell["configuration"] in first["kept"] else [0, 4])
        assert [row["clips_seen"] for row in cell["evaluations"]] == [4 * step for step in steps]
        assert cell["status"] == "done"


def test_before_training_a_prior_is_scored_once_for_all_sigma_laws(
    whole: tuple[Material, dict[str, Any]],
) -> None:
    material, study = whole
    found = scores(study)
    assert found["iid P_mean=-1.2 seed=0"][0] == found["iid P_mean=0.4 seed=0"][0]
    assert found["iid P_mean=-1.2 seed=0"][0] != found["progressive α=2 P_mean=-1.2 seed=0"][0]
    priors_and_seeds = {(cell["prior"], cell["seed"]) for cell in study["cells"]}
    assert len(list((material.work / "untrained").iterdir())) == len(priors_and_seeds)


def test_a_cell_does_not_wait_for_another_ones_untrained_scores_but_trains_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes them, as its lock says; it is gone when this cell has trained, without having made them."""
    material, trained = make_material(tmp_path), run_cell_module._Piece._train
    of = settings(priors=[{"kind": "iid"}], sigma_means=[0.4], seeds=[0], rungs=[{"steps": 4}])
    shared = material.facts(of)
    (chosen,) = configurations(of)
    folder = material.work / "untrained" / untrained_id(Cell(chosen, 0), shared)
    folder.mkdir(parents=True)
    other = FileLock(folder / ".lock")
    other.acquire()
    seen = []

    def train(self: Any) -> None:
        seen.append(self.folder.evaluations.steps())
        trained(self)
        other.release()

    monkeypatch.setattr(run_cell_module._Piece, "_train", train)
    (cell,) = run_study(material, of)["cells"]
    assert seen == [[]]
    assert [row["step"] for row in cell["evaluations"]] == [0, 4]
    monkeypatch.undo()
    (alone,) = run_study(make_material(tmp_path / "alone"), of)["cells"]
    assert scores({"cells": [cell]}) == scores({"cells": [alone]})


def test_training_moves_the_scores_and_sigma_and_seed_matter(whole: tuple[Material, dict[str, Any]]) -> None:
    found = [by_step[4] for by_step in scores(whole[1]).values()]
    assert len(set(found)) == len(found)


def test_a_finished_study_does_nothing_again(whole: tuple[Material, dict[str, Any]]) -> None:
    material, study = whole
    before = score_files(material.work)
    again = run_study(replace(material), settings())
    assert score_files(material.work) == before
    assert scores(again) == scores(study)


def test_a_raised_rung_trains_the_same_cells_on(
    tmp_path: Path, whole: tuple[Material, dict[str, Any]]
) -> None:
    short = settings(rungs=[{"steps": 4}], priors=[{"kind": "iid"}], sigma_means=[-1.2])
    material = make_material(tmp_path)
    run_study(material, short)
    longer = run_study(replace(material), short.model_copy(update={"rungs": settings().rungs[1:]}))
    name = "iid P_mean=-1.2 seed=0"
    assert set(scores(longer)[name]) == {0, 4, 8}
    pieces = CellFolder(material.work, longer["cells"][0]["id"]).pieces()
    assert [(piece["from"], piece["to"]) for piece in pieces] == [(0, 4), (4, 8)]
    at_once = run_study(
        make_material(tmp_path / "at_once"), short.model_copy(update={"rungs": settings().rungs[1:]})
    )
    assert scores(at_once)[name][8] == scores(longer)[name][8]


def test_a_study_out_of_time_says_so_and_goes_on(
    tmp_path: Path, whole: tuple[Material, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stops the study in its first cell, then in each further piece, until it is done."""
    material, pieces = make_material(tmp_path), 0
    while True:
        study = run_study(replace(material), settings(max_minutes=0.01 if pieces < 3 else None))
        pieces += 1
        if study["finished"]:
            break
        assert any(cell["status"] == "waiting" for cell in study["cells"])
    assert pieces > 1
    assert scores(study) == scores(whole[1])


def test_a_study_that_is_stopped_between_a_checkpoint_and_its_scores_has_these_scores(
    tmp_path: Path, whole: tuple[Material, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    material, kept = make_material(tmp_path), run_cell_module._Piece._keep

    def killed(self: Any, step: int, denoise: Any, evaluations: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        kept(self, step, denoise, evaluations)

    monkeypatch.setattr(run_cell_module._Piece, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(material, settings())
    monkeypatch.undo()
    study = run_study(replace(material), settings())
    assert scores(study) == scores(whole[1])
    stopped = next(cell for cell in study["cells"] if cell["name"] == "iid P_mean=-1.2 seed=0")
    pieces = CellFolder(material.work, stopped["id"]).pieces()
    assert (pieces[0]["from"], pieces[0]["to"]) == (0, 4)
    assert (pieces[1]["from"], pieces[1]["to"]) == (4, 4)  # scored from the checkpoint, not trained again


_STUDY = """
import json, sys, torch
from pathlib import Path
from test_study_run import make_material, run_study, settings
torch.set_num_threads(1)
folder = Path(sys.argv[1])
(folder / "study.json").write_text(json.dumps(run_study(make_material(folder), settings())))
"""


@pytest.mark.slow
def test_a_study_that_is_killed_in_a_cell_and_after_one_ends_with_the_same_scores(
    tmp_path: Path, whole: tuple[Material, dict[str, Any]]
) -> None:
    make_material(tmp_path)
    written: dict[str, int] = {}
    with programs(["test_study_run"]) as studies:
        for wanted in (2, 5):  # scores: in the first cell; in the third
            pid = studies.start(_STUDY, tmp_path)
            while len(score_files(tmp_path / "work")) < wanted and not studies.has_ended():
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            assert studies.status() == -signal.SIGKILL
            now = score_files(tmp_path / "work")
            assert now.items() >= written.items()
            written = now
        assert studies.run(_STUDY, tmp_path) == 0
    assert score_files(tmp_path / "work").items() >= written.items()  # nothing was scored twice
    study = json.loads((tmp_path / "study.json").read_text())
    found = {name: {int(k): v for k, v in rows.items()} for name, rows in scores(study).items()}
    assert found == scores(whole[1])


def test_a_cell_that_fails_is_named_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    material = make_material(tmp_path)
    short_of_frames = {"kind": "empirical", "correlation": [1.0, 0.5]}  # and the clips have four
    of = settings(
        priors=[short_of_frames, {"kind": "iid"}], sigma_means=[0.4], seeds=[0], rungs=[{"steps": 4}]
    )
    called = []
    study = run_study(material, of, called.append)
    failed, done = study["cells"]
    check_some_succeeded(study["cells"])
    with pytest.raises(
        UserError, match=r"All 1 cells of the study failed, .* defined for\. .*retry_failed=true"
    ):
        check_some_succeeded([failed])
    assert study["finished"]
    assert failed["status"] == "failed"
    assert "defined for" in failed["error"]
    assert done["status"] == "done"
    assert [cell["name"] for cell in called] == [failed["name"], done["name"]]
    again = run_study(replace(material), of)
    assert again["cells"][0]["error"] == failed["error"]
    assert CellFolder(material.work, failed["id"]).pieces()[1:] == []  # not tried again


def test_a_failed_cell_is_tried_again_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material = make_material(tmp_path)
    of = settings(priors=[{"kind": "iid"}], sigma_means=[0.4], seeds=[0], rungs=[{"steps": 4}])

    def out_of_memory(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(run_cell_module._Piece, "_train", out_of_memory)
    assert run_study(material, of)["cells"][0]["error"] == "MemoryError: no memory"
    monkeypatch.undo()
    study = run_study(replace(material), of.model_copy(update={"retry_failed": True}))
    assert (study["cells"][0]["status"], study["cells"][0]["error"]) == ("done", None)


@pytest.mark.parametrize("doing", ["_train", "_score_untrained"])
def test_a_cell_that_a_gpu_has_no_memory_for_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    material = make_material(tmp_path)
    of = settings(priors=[{"kind": "iid"}], sigma_means=[0.4], seeds=[0], rungs=[{"steps": 4}])

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. " + "Process 1 has 7 GiB memory in use. " * 20)

    monkeypatch.setattr(run_cell_module._Piece, doing, full)
    (cell,) = run_study(material, of)["cells"]
    assert cell["error"].startswith("the GPU's memory ran out: take fewer ablate_alpha.workers, or")
    assert cell["error"].endswith("retry_failed=true")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("train.lr=-1\nis below 0."), "train.lr=-1 is below 0."),
        (ValueError("x" * 1000), "ValueError: " + "x" * 300),
    ],
)
def test_why_a_cell_failed_is_said_in_a_line(error: Exception, said: str) -> None:
    assert run_cell_module.why_failed(error) == said


def test_a_signal_stops_the_study_and_fails_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyoco_pipeline.errors import UserError
    from pyoco_pipeline.training.trainer import _Run

    material, stepped = make_material(tmp_path), _Run._train_step

    def step(self: Any) -> Any:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stepped(self)

    monkeypatch.setattr(_Run, "_train_step", step)
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        run_study(material, settings())
    assert list(material.work.glob("cells/*/error.json")) == []


def test_controls_start_from_new_weights_of_the_same_network(tmp_path: Path) -> None:
    material = make_material(tmp_path)
    control = {"priors": [{"kind": "iid"}], "sigma_means": [0.4]}
    of = settings(
        priors=[{"kind": "iid"}], sigma_means=[0.4], scratch=control, rungs=[{"steps": 4, "seeds": 2}]
    )
    study = run_study(material, of)
    found = scores(study)
    assert len(found) == 4
    assert found["scratch iid P_mean=0.4 seed=0"][0] != found["iid P_mean=0.4 seed=0"][0]
    assert len(list((material.work / "scratch").glob("*-[01]"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_a_process_that_dies_costs_its_cell_alone(
    tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its workers find FakeTask
    tasks: Any = [FakeTask(str(i), i == 1, CellFolder(tmp_path, str(i))) for i in range(4)]
    of = settings(executor=executor, workers=2)
    with cell_runner(of) as run:
        outcomes: dict[str, Outcome] = {task.name: o for task, o in run(tasks)}  # type: ignore[attr-defined]
    assert outcomes == {"0": "done", "1": "failed", "2": "done", "3": "done"}
    assert tasks[1].folder.error()
    assert tasks[0].folder.error() is None


@pytest.mark.slow
def test_a_worker_takes_cell_after_cell_over_all_rungs(tmp_path: Path) -> None:
    """One process for all: what it imported and started is there for the next cell."""
    of = settings(executor="processes", workers=1)
    with cell_runner(of) as run:
        tasks: Any = [ProcessId(str(i), False, CellFolder(tmp_path, str(i))) for i in range(3)]
        for _ in range(2):
            assert [outcome for _, outcome in run(tasks)] == ["done"] * 3
    ids = {(tmp_path / "cells" / str(i) / "process").read_text() for i in range(3)}
    assert len(ids) == 1
    assert str(os.getpid()) not in ids.pop()


@pytest.mark.slow
def test_processes_give_the_scores_of_one(tmp_path: Path, whole: tuple[Material, dict[str, Any]]) -> None:
    """Threads add up in another order: to four digits."""
    study = run_study(make_material(tmp_path), settings(executor="processes", workers=2))
    for name, by_step in scores(study).items():
        assert by_step == pytest.approx(scores(whole[1])[name], rel=1e-4)
