"""`kedro run --pipelines ablate_alpha`: the study from its parameters to MLflow and the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import kedro_run, make_project
from test_study_run import make_material, settings
from test_study_statistics import AS_THE_PAPER, cells

from pyoco_pipeline.study.analyse import alpha_curve, analyse, headline
from pyoco_pipeline.study.page import render_page

PARAMS: dict[str, object] = {
    "ablate_alpha.priors": "[{kind: iid},{kind: progressive, alphas: [2]}]",
    "ablate_alpha.sigma_means": "[-1.2]",
    "ablate_alpha.scratch": "null",
    "ablate_alpha.rungs": "[{steps: 2, seeds: 1}]",
    "ablate_alpha.train.checkpoint_every": 2,
    "ablate_alpha.train.batch_size": 2,
    "ablate_alpha.train.warmup_steps": 1,
    "ablate_alpha.train.log_every": 1,
    "ablate_alpha.num_clips": 4,
    "ablate_alpha.num_shown": 2,
    "ablate_alpha.sampler.steps": 2,
    "ablate_alpha.solver_steps": "[1,2]",
    "ablate_alpha.sampled_from": "[20,80]",
    "ablate_alpha.evaluate.metrics": "[fvd_digits3d,is_digits3d]",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `inflate` has been run: tiny clips, embeddings and an inflated model."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    material = make_material(tmp_path_factory.mktemp("material"))
    places = {
        "inflated": "06_models/inflated",
        "clips": "03_primary/clips",
        "latents": "04_feature/latents",
        "text": "04_feature/text_embeddings",
    }
    for name, place in places.items():
        target = folder / "data" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (material.work.parent / name).rename(target)
    return folder


@pytest.mark.slow
def test_a_study_from_parameters_to_flat_runs_numbers_and_page(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{project / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracked = PARAMS | {"tracking.enabled": "true"}
    late = tracked | {"ablate_alpha.max_minutes": 1e-9}  # no cell begins
    done = kedro_run(project, "--pipelines", "ablate_alpha", params=late)
    assert done.exit_code == 0, done.output
    reporting = project / "data/08_reporting"
    nothing = json.loads((reporting / "alpha_study.json").read_text())
    assert not nothing["finished"]
    assert nothing["conclusion"].startswith("The data say nothing yet")
    done = kedro_run(project, "--pipelines", "ablate_alpha", params=tracked)
    assert done.exit_code == 0, done.output

    found = json.loads((reporting / "alpha_study.json").read_text())
    assert found["conclusion"].startswith("With 1 seed the data decide nothing")
    assert {h["verdict"] for h in found["hypotheses"]} == {"undecided"}
    assert json.loads((reporting / "alpha_study_metrics.json").read_text())["best/iid"] > 0
    (row,) = json.loads((reporting / "alpha_study_curve.json").read_text())
    assert (row["family"], row["alpha"], row["step"]) == ("progressive", 2.0, 2)
    assert {p.stem for p in (reporting / "alpha_study_figures").iterdir()} == {
        "alpha",
        "motion",
        "sampled_from",
        "solver",
        "steps",
        "spectrum",
    }
    page = (reporting / "alpha_study.html").read_text()
    link = re.search(r'href="(http://127.0.0.1:5000/#/experiments/\d+/runs\?searchFilter=[^"]+)"', page)
    assert link is not None
    assert "compareRunsMode=CHART" in link[1]

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "pyoco_pipeline"]
    study = f'tags.study = "{found["study"]}"'
    runs = client.search_runs([experiment.experiment_id], study)
    assert {run.info.run_name for run in runs} == {
        "iid P_mean=-1.2 seed=0",
        "progressive α=2 P_mean=-1.2 seed=0",
    }
    for run in runs:
        assert run.info.status == "FINISHED"
        assert "mlflow.parentRunId" not in run.data.tags
        assert {"alpha", "prior", "P_mean", "seed", "neighbour_correlation"} <= run.data.params.keys()
        history = client.get_metric_history(run.info.run_id, "fvd_digits3d")
        assert [metric.step for metric in history] == [0, 2]
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
        solved = client.get_metric_history(run.info.run_id, "by_solver_steps/fvd_digits3d")
        assert [metric.step for metric in solved] == [1, 2]
        assert solved[1].value == history[1].value
        (begun,) = client.get_metric_history(run.info.run_id, "sampled_from_80/fvd_digits3d")
        assert (begun.step, begun.value) == (2, history[1].value)
        videos = [item.path for item in client.list_artifacts(run.info.run_id, "videos")]
        assert videos == [f"videos/step-00000002-{i:02d}.mp4" for i in range(2)]
    whole = client.search_runs([experiment.experiment_id], 'tags.pipelines = "ablate_alpha"')
    summary = [run for run in whole if "study" not in run.data.tags]
    assert len(summary) == 2  # the newest first; the other had nothing to say yet
    assert "best/iid" in summary[0].data.metrics

    # The same command with a longer rung: the same runs go on, none is new.
    longer = tracked | {"ablate_alpha.rungs": "[{steps: 4, seeds: 1}]"}
    done = kedro_run(project, "--pipelines", "ablate_alpha", params=longer)
    assert done.exit_code == 0, done.output
    again = client.search_runs([experiment.experiment_id], study)
    assert {run.info.run_id for run in again} == {run.info.run_id for run in runs}
    history = client.get_metric_history(again[0].info.run_id, "fvd_digits3d")
    assert [metric.step for metric in history] == [0, 2, 4]


def test_a_study_that_can_not_be_run_ends_before_it_begins_in_one_sentence(project: Path) -> None:
    wrong = kedro_run(project, "--pipelines", "ablate_alpha", params={"ablate_alpha.seeds": "[0,0]"})
    assert wrong.exit_code == 1
    assert "seeds=(0, 0) has one twice" in wrong.output


@pytest.mark.slow
def test_an_empirical_prior_without_its_measurement_ends_in_one_sentence_and_with_it_is_trained(
    project: Path,
) -> None:
    asked = PARAMS | {"ablate_alpha.priors": "[{kind: iid},{kind: empirical}]"}
    wrong = kedro_run(project, "--pipelines", "ablate_alpha", params=asked)
    assert wrong.exit_code == 1
    assert "noise_analysis.json is missing" in wrong.output
    measured = {"noise": {"empirical": {"correlation": [1.0, 0.7, 0.5, 0.4]}}}
    (project / "data/08_reporting/noise_analysis.json").write_text(json.dumps(measured))
    done = kedro_run(project, "--pipelines", "ablate_alpha", params=asked)
    assert done.exit_code == 0, done.output
    found = json.loads((project / "data/08_reporting/alpha_study.json").read_text())
    assert {row["family"] for row in found["best"]} == {"iid", "empirical"}
    assert any(h["claim"].startswith("a prior matched to the data") for h in found["hypotheses"])


def study(seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """What `run_study` would give, of made-up scores."""
    records = cells(AS_THE_PAPER | {("iid", None, 0.4): 90, ("mixed", 1, 0.4): 70}, seeds, 1.0)
    records += cells({("iid", None, -1.2): 2000}, seeds, 1.0, "scratch", draw_seed=1)
    for record in records:
        record |= {
            "id": "0",
            "name": f"{record['configuration']} seed={record['seed']}",
            "status": "done",
            "error": None,
            "train_s": 60.0,
            "score_s": 30.0,
            "device": ["cpu"],
            "code": ["c"],
        }
        for row in record["evaluations"]:
            row["values"] |= {
                "fvd_digits3d_floor": 12.5,
                "is_digits3d": 9 - row["values"]["fvd_digits3d"] / 500,
            }
    shared = {"initial_weights_sha256": "a" * 64, "data_sha256": "b" * 64}
    names = list(dict.fromkeys(record["configuration"] for record in records))
    rungs = [{"steps": 100, "trained": names, "kept": names}]
    whole = {
        "study": "alpha-0",
        "finished": True,
        "rungs": rungs,
        "shared": shared,
        "code": "c",
        "cells": records,
    }
    return whole | changes


DIGITS = settings(second_metric="is_digits3d")
CLIPS = np.random.default_rng(0).normal(size=(8, 4, 4, 4, 3)).cumsum(axis=1)


def test_everything_that_was_found_is_strict_json_with_infinity_as_a_word() -> None:
    found = analyse(study(), DIGITS, CLIPS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    one_seed = analyse(study(seeds=1), DIGITS, CLIPS)
    json.dumps(one_seed, allow_nan=False)
    assert "inf" in {row["alpha"] for row in alpha_curve(found, DIGITS)}
    numbers = headline(found)
    assert numbers["real/fvd_digits3d"] == 12.5
    assert numbers["train_minutes"] == len(found["cells"])


def test_p_mean_is_found_where_several_were_tried_and_predicted_for_every_prior() -> None:
    spectrum = analyse(study(), DIGITS, CLIPS)["spectrum"]
    by_prior = {row["prior"]: row for row in spectrum["priors"]}
    assert by_prior["iid"]["found"]["sigma_mean"] == spectrum["iid_mean"] == 0.4
    assert by_prior["iid"]["predicted_mean"] == pytest.approx(0.4)
    assert by_prior["mixed α=1"]["found"]["at_end_of_range"]
    assert by_prior["mixed α=inf"]["found"] is None
    assert spectrum["correlation"]["priors"] == 1
    assert spectrum["correlation"]["pearson"] is None  # of one prior there is none
    assert not any(row["prior"].startswith("scratch") for row in spectrum["priors"])


def test_the_page_says_how_training_where_motion_is_decided_orders_the_priors() -> None:
    found = analyse(study(), DIGITS, CLIPS)
    laws = {law["sigma_mean"]: law for law in found["motion"]["laws"]}
    assert "mixed α=inf" not in {row["prior"] for row in found["motion"]["priors"]}  # it hides no motion
    (seen,) = laws[-1.2]["correlations"]
    page = render_page(found, DIGITS, {}, [])
    assert 'id="motion"' in page
    for value in (seen["share"], seen["neighbours"]):
        assert f"<td class=num>{value:.4g}</td>" in page
    assert laws[0.4]["correlations"] == []  # two priors have no order


@pytest.mark.parametrize(("accuracy", "says"), [(0.97, False), (0.6, True)])
def test_the_page_says_where_the_image_model_is_too_weak(accuracy: float, says: bool) -> None:
    made = study()
    for cell in made["cells"]:
        cell["neighbour_correlation"] = 0.9 if cell["kind"] == "progressive" else 0.1
        right = accuracy if cell["kind"] == "progressive" else 0.2  # frames that flicker can't be read
        cell["evaluations"][0]["values"]["caption_accuracy_digit"] = right
    found = analyse(made, DIGITS, CLIPS)
    assert found["image_model"]["accuracy"] == pytest.approx(accuracy)
    assert found["image_model"]["enough"] is not says
    assert ("train it longer" in Tags(render_page(found, DIGITS, {}, [])).text) is says
    assert analyse(study(), DIGITS, CLIPS)["image_model"] is None


class Tags(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_is_given() -> None:
    evil = "<script>alert('1')</script>"
    made = study()
    made["cells"][0] |= {"status": "failed", "error": evil, "name": evil}
    found = analyse(made, DIGITS, CLIPS)
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    page = render_page(found, DIGITS, {"iid P_mean=-1.2": [clip]}, [evil], f"http://x/{evil}")
    tags = Tags(page)
    assert "script" not in tags.names
    assert tags.text.count(evil) >= 3  # the caption, the cell's name and its error, as text
    assert re.findall(r'(?:src|srcset)="(?!data:)', page) == []
    assert page.count("data:image/png") == 2 * 4  # light and dark
    assert "data:image/webp" in page


def test_the_page_of_a_study_that_has_not_begun_says_so() -> None:
    found = analyse(study(cells=[], finished=False, rungs=[]), DIGITS, CLIPS)
    page = Tags(render_page(found, DIGITS, {}, [])).text
    assert "The data say nothing yet" in page
    assert "The study is not finished" in page
    assert "No cell has been scored yet" in page


def test_the_page_shows_every_seed_that_ran_and_the_floor() -> None:
    found = analyse(study(), DIGITS, CLIPS)
    page = Tags(render_page(found, DIGITS, {}, [])).text
    for cell in found["cells"]:
        assert cell["name"] in page
    assert "fvd_digits3d of real clips: 12.5" in page
    assert "progressive α=2 P_mean=-1.2 beats iid P_mean=0.4" in page
