"""Metrics of digits on crossing scenes: refused to the shipped classifier, had with one that was trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import kedro_run, make_project

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.digits import MovingDigitsSource
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import CARD_FILE, NETS, Digits3DNet, read_card, save_digits3d
from pyoco_pipeline.evaluation.digits3d_training import train_digits3d
from pyoco_pipeline.evaluation.evaluate import DIGITS_METRICS, evaluate_clips
from pyoco_pipeline.evaluation.extractors import Digits3D
from pyoco_pipeline.evaluation.settings import Digits3DTraining, EvaluateSettings
from pyoco_pipeline.study.material import extractor_digests


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of each scene, and a classifier of crossing ones with random weights."""
    made = {"weights": tmp_path_factory.mktemp("weights")}
    for scene in ("plain", "crossing"):
        made[scene] = tmp_path_factory.mktemp(scene)
        size = {"num_train": 12, "num_test": 2, "num_frames": 4, "height": 24, "width": 24}
        source = MovingDigitsSource(**size, fps=8.0, seed=0, scene=scene)  # type: ignore[arg-type]
        rows = source.captions().to_dict("records")
        clips = (c for made in source.read(rows) for c in made)
        captioned = (CaptionedClip(c, r["caption"], r["split"]) for c, r in zip(clips, rows, strict=True))
        write_clips(made[scene], captioned, kind=source.kind, shape=(4, 24, 24), fps=8.0)
    torch.manual_seed(0)
    save_digits3d(made["weights"], Digits3DNet("crossing").state_dict(), {"scene": "crossing"})
    return made


def own(folder: Path, sha256: str | None = None, **changes: Any) -> EvaluateSettings:
    return EvaluateSettings(digits3d={"path": str(folder), "sha256": sha256}, fid_frames=1, **changes)


def test_the_shipped_classifier_is_refused_crossing_scenes_and_one_of_these_plain_ones(
    folders: dict[str, Path],
) -> None:
    crossing, plain = ClipStore(folders["crossing"]), ClipStore(folders["plain"])
    refused = evaluate_clips(crossing, crossing, EvaluateSettings(fid_frames=1))["refused"]
    assert set(refused) == set(DIGITS_METRICS)
    assert "this one those of plain scenes (evaluate.digits3d gives another)" in refused["fvd_digits3d"]
    assert "holds clips of kind crossing_digits" in refused["fvd_digits3d"]
    other_way = evaluate_clips(plain, plain, own(folders["weights"]))["refused"]
    assert "this one those of crossing scenes" in other_way["fvd_digits3d"]
    with pytest.raises(
        UserError, match=r"evaluate\.metrics: fvd_digits3d: Digits3D reads moving digits only"
    ):
        evaluate_clips(crossing, crossing, EvaluateSettings(metrics=("fvd_digits3d",)))


def test_a_classifier_of_ones_own_scores_crossing_scenes_by_all_eight_attributes(
    folders: dict[str, Path],
) -> None:
    crossing = ClipStore(folders["crossing"])
    found = evaluate_clips(crossing, crossing, own(folders["weights"], metrics=DIGITS_METRICS))
    assert not found["refused"]
    assert set(found["metrics"]) == set(DIGITS_METRICS)
    per_attribute = found["metrics"]["caption_accuracy"]["attributes"]
    assert set(per_attribute) == set(NETS["crossing"].classes)
    assert len(per_attribute) == 8
    assert found["metrics"]["caption_accuracy"]["chance"] == pytest.approx((10 * 7 * 4 * 2) ** -2)
    entry = found["metrics"]["fvd_digits3d"]
    assert entry["value"] >= 0
    assert entry["extractor_sha256"] == read_card(folders["weights"])["sha256"]


def test_weights_that_are_not_those_asked_for_are_refused(folders: dict[str, Path]) -> None:
    crossing = ClipStore(folders["crossing"])
    with pytest.raises(UserError, match=r"evaluate\.digits3d\.sha256 is 0{64}"):
        evaluate_clips(crossing, crossing, own(folders["weights"], "0" * 64, metrics=("fvd_digits3d",)))
    sha256 = read_card(folders["weights"])["sha256"]
    assert Digits3D(folders["weights"]).sha256 == sha256
    assert extractor_digests(own(folders["weights"]))["digits3d"] == sha256  # part of a cell's id


def test_a_card_that_names_no_known_scene_is_refused(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text(json.dumps({"scene": "underwater"}))
    with pytest.raises(UserError, match="says scene=underwater, expected plain or crossing"):
        read_card(tmp_path)
    (tmp_path / CARD_FILE).write_text("[]")
    with pytest.raises(UserError, match="is no card of Digits3D"):
        read_card(tmp_path)


def test_the_network_in_the_package_is_one_of_plain_scenes() -> None:
    assert read_card()["scene"] == "plain"
    assert Digits3D().dim == NETS["plain"].features


@pytest.mark.slow
def test_a_classifier_of_crossing_scenes_learns_what_is_easiest_in_a_minute() -> None:
    """Colours come first, as in plain scenes."""
    settings = Digits3DTraining(
        scene="crossing", steps=60, batch_size=32, sizes=(16,), frames=(4,), test_sizes=(16,),
        planned_clips=500, test_clips=128, learning_rate=3e-3,
    )  # fmt: skip
    state, card = train_digits3d(settings)
    accuracy = card["accuracy"]["16px_4frames"]
    assert card["scene"] == "crossing"
    assert set(accuracy) == set(NETS["crossing"].classes)
    assert accuracy["colour"] > 2 / 7  # twice chance
    Digits3DNet("crossing").load_state_dict(state)


@pytest.mark.slow
def test_conf_crossing_makes_such_clips_and_trains_what_reads_them(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    few = {
        "ingest.moving_digits.num_train": 24,
        "ingest.moving_digits.num_test": 8,
        "digits_classifier.steps": 1,
        "digits_classifier.batch_size": 4,
        "digits_classifier.planned_clips": 8,
        "digits_classifier.test_clips": 8,
    }
    done = kedro_run(project, "--env", "crossing", "--pipelines", "ingest,digits_classifier", params=few)
    assert done.exit_code == 0, done.output
    embeddings = TextEmbeddings(project / "data/crossing/04_feature/text_embeddings")
    assert embeddings.max_tokens == 32  # tests/test_data_crossing_digits.py: captions are no longer
    store = ClipStore(project / "data/crossing/03_primary/clips")
    assert (store.manifest.kind, store.shape) == ("crossing_digits", (8, 24, 24))
    weights = project / "data/crossing/06_models/digits_classifier"
    assert set(read_card(weights)["accuracy"]) == {"24px_8frames"}
    assert not evaluate_clips(store, store, own(weights))["refused"]
