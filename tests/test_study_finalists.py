"""The finalists: sampled in other numbers of solver steps and from other noise levels, and with fewer clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_study_pipeline import CLIPS, DIGITS, Tags, study
from test_study_run import METRIC, make_material, score_files, settings
from test_study_statistics import cells

from pyoco_pipeline.config import SamplerSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.study.analyse import analyse
from pyoco_pipeline.study.finalists import judge_head_start, portion_points, portions
from pyoco_pipeline.study.halving import run_study
from pyoco_pipeline.study.material import Material
from pyoco_pipeline.study.measured import measured_correlation
from pyoco_pipeline.study.page import draw_figures, render_page
from pyoco_pipeline.study.settings import AblateAlphaSettings
from pyoco_pipeline.study.work import CellFolder

FEWER = {
    "num_clips": [8],
    "priors": [{"kind": "iid"}, {"kind": "progressive", "alphas": [2]}],
    "sigma_means": [0.4],
}


def whole_settings(**changes: Any) -> AblateAlphaSettings:
    return settings(solver_steps=[1, 2, 3], sampled_from=[20, 80], fewer_clips=FEWER, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, dict[str, Any]]:
    """A study with everything, after one without: the same cells went on."""
    material = make_material(tmp_path_factory.mktemp("finalists"))
    run_study(material, settings())
    before = score_files(material.work)
    found = run_study(replace(material), whole_settings())
    assert score_files(material.work).items() >= before.items()
    return material, found


def last(cell: dict[str, Any]) -> float:
    return cell["evaluations"][-1]["values"][METRIC]


def test_finalists_are_sampled_with_every_number_of_steps_from_their_last_weights(
    whole: tuple[Material, dict[str, Any]],
) -> None:
    material, found = whole
    finalists = set(found["rungs"][-1]["trained"])
    solved = [cell for cell in found["cells"] if cell["solver_steps"]]
    assert {cell["configuration"] for cell in solved} == finalists
    assert {cell["seed"] for cell in solved} == {0, 1}
    for cell in solved:
        values = {row["solver_steps"]: row["values"][METRIC] for row in cell["solver_steps"]}
        assert set(values) == {1, 2, 3}
        assert values[2] == last(cell)  # that of training: nothing is sampled twice
        assert len(set(values.values())) == 3
        assert len(list(CellFolder(material.work, cell["id"]).resampled.folder.iterdir())) == 4


def test_finalists_are_sampled_from_every_noise_level_as_well(whole: tuple[Material, dict[str, Any]]) -> None:
    _, found = whole
    begun = [cell for cell in found["cells"] if cell["sigma_max"]]
    assert {cell["configuration"] for cell in begun} == set(found["rungs"][-1]["trained"])
    for cell in begun:
        values = {row["sigma_max"]: row["values"][METRIC] for row in cell["sigma_max"]}
        assert set(values) == {20, 80}
        assert values[80] == pytest.approx(last(cell))  # EDM's own, which training's scores are sampled from
        assert values[20] != values[80]


def test_sampling_with_the_steps_of_training_from_the_checkpoint_gives_the_scores_of_training(
    whole: tuple[Material, dict[str, Any]],
) -> None:
    """The same weights, prior, captions and seeds, by way of disk."""
    from pyoco_pipeline.study.halving import Cell, CellTask, configurations
    from pyoco_pipeline.study.resampled import ResampleTask

    material, found = whole
    of = whole_settings()
    record = next(cell for cell in found["cells"] if cell["solver_steps"])
    chosen = next(c for c in configurations(of) if c.name == record["configuration"])
    trained = CellTask(Cell(chosen, record["seed"]), 8, of, material, found["shared"], found["code"])

    class Anew(ResampleTask):
        def scored(self, sampler: SamplerSettings) -> Any:
            return self.folder.scored(f"anew-{sampler.steps}")

    assert Anew(trained).run() == "done"
    assert {
        row["solver_steps"]: row["values"][METRIC] for row in Anew(trained).rows("solver_steps")
    } == pytest.approx({row["solver_steps"]: row["values"][METRIC] for row in record["solver_steps"]})


def test_what_was_sampled_is_not_sampled_again_and_a_new_number_alone_is(
    whole: tuple[Material, dict[str, Any]],
) -> None:
    material, _ = whole
    files = sorted(material.work.glob("cells/*/solver/*/*.json"))
    times = [path.stat().st_mtime_ns for path in files]
    more = whole_settings().model_copy(update={"solver_steps": (1, 2, 3, 4)})
    found = run_study(replace(material), more)
    assert [path.stat().st_mtime_ns for path in files] == times
    numbers = {row["solver_steps"] for cell in found["cells"] for row in cell["solver_steps"]}
    assert numbers == {1, 2, 3, 4}


def test_a_study_out_of_time_samples_nothing_and_says_that_it_is_not_finished(tmp_path: Path) -> None:
    material = make_material(tmp_path)
    run_study(material, settings())
    late = settings(solver_steps=[1], max_minutes=1e-9)
    found = run_study(replace(material), late)
    assert not found["finished"]
    assert not any(cell["solver_steps"] for cell in found["cells"])
    again = run_study(replace(material), settings(solver_steps=[1, 2]))
    assert again["finished"]
    assert any(cell["solver_steps"] for cell in again["cells"])


def test_cells_that_were_trained_on_can_not_be_sampled_as_they_were_before(tmp_path: Path) -> None:
    material = make_material(tmp_path)
    of = {"priors": [{"kind": "iid"}], "sigma_means": [0.4], "seeds": [0]}
    run_study(material, settings(**of, rungs=[{"steps": 8}]))
    run_study(replace(material), settings(**of, rungs=[{"steps": 8}, {"steps": 12}]))
    found = run_study(replace(material), settings(**of, rungs=[{"steps": 8}], solver_steps=[1, 2]))
    assert found["finished"]
    error = CellFolder(material.work, found["cells"][0]["id"]).resampled.error()
    assert error is not None
    assert "no checkpoint of step 8, the one there is of step 12" in error
    assert found["cells"][0]["status"] == "done"  # its training is whole


def test_cells_of_fewer_clips_train_on_the_first_ones_up_to_the_last_rung_with_all_its_seeds(
    whole: tuple[Material, dict[str, Any]],
) -> None:
    material, found = whole
    few = [cell for cell in found["cells"] if cell["num_clips"] is not None]
    assert [(cell["configuration"], cell["seed"]) for cell in few] == [
        (f"{prior} P_mean=0.4 clips=8", seed) for seed in (0, 1) for prior in ("iid", "progressive α=2")
    ]
    (folder,) = (material.work / "fewer_clips").iterdir()
    first = [item.clip.clip_id for item in material.store.take("train", 8)]
    assert [item.clip.clip_id for item in ClipStore(folder).clips()] == first
    by_name = {(cell["configuration"], cell["seed"]): cell for cell in found["cells"]}
    for cell in few:
        full = by_name[cell["configuration"].removesuffix(" clips=8"), cell["seed"]]
        assert [row["step"] for row in cell["evaluations"]] == [0, 4, 8]
        assert cell["evaluations"][0]["values"] == full["evaluations"][0]["values"]
        assert last(cell) != last(full)


def test_more_clips_than_there_are_is_refused_in_words(tmp_path: Path) -> None:
    of = settings(fewer_clips=FEWER | {"num_clips": [24]}, keep=0.0)
    with pytest.raises(UserError, match=r"num_clips has 24, but .* holds 24 clips of training"):
        run_study(make_material(tmp_path), of)


def few_cells(num_clips: int | None, iid: float, correlated: float, seeds: int = 3) -> list[dict[str, Any]]:
    """Cells of one number of clips with known scores, give or take a little."""
    points: Any = {("iid", None, 0.4): iid, ("progressive", 2, 0.4): correlated}
    made = cells(points, seeds, noise=0.5)
    clips = "" if num_clips is None else f" clips={num_clips}"
    return [c | {"num_clips": num_clips, "configuration": c["configuration"] + clips} for c in made]


@pytest.mark.parametrize(
    ("with_100", "with_all", "seeds", "verdict"),
    [
        ((400, 200), (100, 95), 3, "confirmed"),
        ((400, 380), (100, 50), 3, "not confirmed"),
        ((400, 200), (100, 95), 1, "undecided"),
        ((400, 200), (400, 200), 3, "not confirmed"),
    ],
)
def test_the_head_start_matters_more_where_the_lead_is_larger_with_the_fewest_clips(
    with_100: tuple[float, float], with_all: tuple[float, float], seeds: int, verdict: str
) -> None:
    records = few_cells(100, *with_100, seeds) + few_cells(None, *with_all, seeds)
    parts = portions(records, DIGITS)
    assert [part.num_clips for part in parts] == [100, None]
    (found,) = judge_head_start(parts)
    assert found.verdict == verdict
    assert found.claim == "the head start of progressive α=2 matters more with fewer clips"


def test_numbers_of_clips_are_compared_at_the_last_step_that_all_of_them_reached() -> None:
    few = few_cells(100, 400, 200)
    for cell in few:
        for later, evaluation in enumerate(cell["evaluations"]):
            evaluation["values"] = {METRIC: evaluation["values"][METRIC] - 10 * later}
        cell["evaluations"] = cell["evaluations"][:-1]
    points = portion_points(portions(few + few_cells(None, 100, 95), DIGITS), 4096)
    last_of_few = len(few[0]["evaluations"]) - 1
    for prior, of_few, of_all in (("iid", 400, 100), ("progressive α=2", 200, 95)):
        (fewest, score), (most, whole) = points[prior]
        assert (fewest, most) == (100, 4096)
        assert score.mean == pytest.approx(of_few - 10 * last_of_few, abs=2)
        assert whole.mean == pytest.approx(of_all, abs=2)
    untrained = [cell | {"evaluations": cell["evaluations"][:1]} for cell in few]
    assert portion_points(portions(untrained + few_cells(None, 100, 95), DIGITS), 4096) == {}


def test_what_halving_stopped_is_drawn_hollow_and_no_line_leads_to_it() -> None:
    """Else a curve over α would join what was trained for different times."""
    from matplotlib.figure import Figure

    from pyoco_pipeline.study.figures import _alpha_panel
    from pyoco_pipeline.study.table import StudyTable

    made = cells({("mixed", alpha, -1.2): 50 + alpha for alpha in (0.5, 1, 2)}, 3, noise=0.1)
    for cell in made:
        if cell["alpha"] == 2:
            cell["evaluations"] = cell["evaluations"][:-1]
    panel = Figure().subplots()
    _alpha_panel(panel, StudyTable(made, METRIC), METRIC, True, None)
    hollow = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[1.0]]  # log2 of 2
    assert hollow[0].get_label() == "mixed, stopped at an earlier rung"
    (curve,) = (bars[0] for bars in panel.containers)
    assert list(curve.get_xdata()) == [-1.0, 0.0]


def test_the_page_has_solver_steps_and_fewer_clips_where_there_are_some() -> None:
    made = study()
    for cell in made["cells"]:
        score = cell["evaluations"][-1]["values"][METRIC]
        cell["solver_steps"] = [{"solver_steps": n, "values": {METRIC: score + 10 / n}} for n in (4, 9, 18)]
        cell["sigma_max"] = [{"sigma_max": s, "values": {METRIC: score + s / 20}} for s in (20, 80.5)]
    extra = few_cells(100, 300, 150)
    for cell in extra:
        blank = {"id": "0", "status": "done", "error": None, "train_s": 1.0, "score_s": 1.0}
        cell |= blank | {"name": cell["configuration"], "device": ["cpu"], "code": ["c"]}
    made["cells"] += extra
    found = analyse(made, DIGITS, CLIPS, 500)
    json.dumps(found, allow_nan=False)
    assert {"solver", "sampled_from", "clips"} <= draw_figures(found, DIGITS).keys()
    page = Tags(render_page(found, DIGITS, {}, [])).text
    assert "Quality against solver steps" in page
    assert "Quality against sigma_max" in page
    assert "configuration2080.5" in page
    assert "With fewer clips" in page
    assert "the head start of progressive α=2 matters more" in page
    (row,) = found["fewer_clips"]  # of all clips no cell of this prior and law was made
    assert (row["num_clips"], row["a"]) == (100, "progressive α=2 P_mean=0.4 clips=100")
    best = {row["family"]: row["best"] for row in found["best"]}
    assert "clips=" not in "".join(best.values())  # other data are another question


def test_the_measured_correlation_is_that_of_analyse_noise(tmp_path: Path) -> None:
    path = tmp_path / "noise_analysis.json"
    with pytest.raises(UserError, match=r"noise_analysis.json is missing: .*analyse_noise"):
        measured_correlation(path, 3)
    path.write_text(json.dumps({"noise": {"empirical": {"correlation": [1.0, 0.5, 0.25]}}}))
    assert measured_correlation(path, 3) == (1.0, 0.5, 0.25)
    with pytest.raises(UserError, match="correlation of 3 frames, the clips have 8"):
        measured_correlation(path, 8)
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no correlation"):
        measured_correlation(path, 3)
