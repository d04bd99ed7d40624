"""The evaluation protocol: what is compared, what is refused, and what stands beside every number."""

import json
import logging

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.digits import ATTRIBUTES, plan_clips, render_clips
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import Digits3DNet, save_digits3d
from pyoco_pipeline.evaluation.evaluate import (
    DIGITS_METRICS,
    METRICS,
    EvaluateSettings,
    evaluate_clips,
    frame_positions,
    split_reference,
)
from pyoco_pipeline.evaluation.results import flatten_metrics

DIGITS_ONLY = EvaluateSettings(metrics=DIGITS_METRICS)


def store(
    folder, num, *, split="train", kind="moving_digits", frames=4, size=16, fps=8.0, seed=0, says=ATTRIBUTES
):
    """A store of rendered digits, whatever kind it claims to be."""
    items = []
    if num:
        table = plan_clips(num, "train", seed)
        videos = render_clips(table, frames, size).numpy()
        for row, video in zip(table.to_dict("records"), videos, strict=True):
            clip = Clip(row["row_id"], video, {name: str(row[name]) for name in says})
            items.append(CaptionedClip(clip, row["caption"], split))
    write_clips(folder, items, kind=kind, shape=(frames, size, size), fps=fps)
    return ClipStore(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("digits3d")
    return folder, save_digits3d(folder, Digits3DNet().state_dict(), {"name": "digits3d"})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return store(folder / "generated", 6, split="generated", seed=1), store(folder / "reference", 20)


@pytest.fixture(scope="module")
def result(stores, weights):
    return evaluate_clips(*stores, EvaluateSettings(), digits3d_folder=weights[0])


def test_every_metric_carries_counts_and_extractor(result, weights):
    assert tuple(result["metrics"]) == METRICS
    assert result["refused"] == {}
    for name, entry in result["metrics"].items():
        assert np.isfinite(entry["value"])
        assert (entry["num_generated"], entry["num_held_out"], entry["num_reference"]) == (6, 6, 14)
        assert len(entry["extractor_sha256"]) == 64
        expected = "digits3d" if name in DIGITS_METRICS else "efficientnet_lite0_96px"
        assert entry["extractor"] == expected
    assert result["metrics"]["fvd_digits3d"]["extractor_sha256"] == weights[1]


def test_distances_have_a_floor_and_scores_the_value_of_real_clips(result):
    for name in ("fvd_digits3d", "fid_lite0"):
        assert result["metrics"][name]["floor"] > 0
    for name in ("is_digits3d", "caption_accuracy", "temporal_consistency"):
        assert np.isfinite(result["metrics"][name]["real"])


def test_the_result_can_be_written_and_says_what_was_compared(result, stores):
    assert json.loads(json.dumps(result)) == result
    assert result["schema_version"] == 2
    assert result["generated_sha256"] == stores[0].manifest.sha256
    assert result["reference_sha256"] == stores[1].manifest.sha256
    assert result["seed"] == 0


def test_too_few_samples_for_the_feature_dimensions_are_warned_of(stores, weights, caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate_clips(
            *stores, EvaluateSettings(metrics=("fvd_digits3d",)), digits3d_folder=weights[0]
        )
    assert "64 feature dimensions" in result["metrics"]["fvd_digits3d"]["warning"]
    assert "64 feature dimensions" in caplog.text


def test_flattened_metrics_are_plain_numbers(result):
    flat = flatten_metrics(result)
    assert {"fvd_digits3d", "fvd_digits3d_floor", "fid_lite0", "fid_lite0_floor", "is_digits3d_real"} <= set(
        flat
    )
    assert {f"caption_accuracy_{name}" for name in ATTRIBUTES} <= set(flat)
    assert all(type(value) is float for value in flat.values())


def test_the_result_does_not_depend_on_the_batch_size(stores, weights):
    values = [
        flatten_metrics(
            evaluate_clips(
                *stores, EvaluateSettings(metrics=DIGITS_METRICS, batch_size=b), digits3d_folder=weights[0]
            )
        )
        for b in (1, 5, 64)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] == pytest.approx(values[2], rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_clips_of_one_video_are_not_on_both_sides(tmp_path, seed):
    videos = {"a.mp4": 4, "b.mp4": 3, "c.mp4": 5}
    paths = [path for path, count in videos.items() for _ in range(count)]
    black = np.zeros((4, 8, 8, 3), np.uint8)
    items = [CaptionedClip(Clip(str(i), black, {"path": p}), "x", "train") for i, p in enumerate(paths)]
    write_clips(tmp_path, items, kind="video_folder", shape=(4, 8, 8), fps=8)

    held_out, kept = split_reference(ClipStore(tmp_path), 4, EvaluateSettings(seed=seed))

    assert len(held_out) == 4
    assert len(kept) >= 2
    assert not {paths[i] for i in held_out} & {paths[i] for i in kept}


def test_reference_and_held_out_clips_are_disjoint_and_chosen_by_the_seed(stores):
    _, reference = stores
    held_out, kept = split_reference(reference, 6, EvaluateSettings(max_reference_clips=9))
    assert (len(held_out), len(kept)) == (6, 9)
    assert not held_out & kept
    assert (held_out, kept) == split_reference(reference, 6, EvaluateSettings(max_reference_clips=9))
    assert held_out != split_reference(reference, 6, EvaluateSettings(seed=1))[0]


def test_a_store_measured_against_itself_scores_near_the_floor(stores, weights):
    _, reference = stores
    entry = evaluate_clips(reference, reference, DIGITS_ONLY, digits3d_folder=weights[0])["metrics"]
    # With as many generated as reference clips only half of the reference can be held out, which is said.
    assert "only 10 real ones could be held out" in entry["fvd_digits3d"]["warning"]
    assert entry["fvd_digits3d"]["value"] < entry["fvd_digits3d"]["floor"]


def test_other_clips_are_refused_by_the_digits_metrics_with_one_sentence(tmp_path, stores):
    generated = store(tmp_path / "videos", 2, kind="video_folder")
    result = evaluate_clips(generated, stores[1], EvaluateSettings(max_reference_clips=4))
    assert set(result["refused"]) == set(DIGITS_METRICS)
    for sentence in result["refused"].values():
        assert "video_folder" in sentence
        assert str(generated.folder) in sentence
        assert sentence.endswith(".")
    assert set(result["metrics"]) == {"fid_lite0", "temporal_consistency"}


def test_a_digits_metric_asked_for_by_name_on_other_clips_is_an_error(tmp_path, stores):
    generated = store(tmp_path / "videos", 2, kind="video_folder")
    with pytest.raises(
        UserError, match=r"evaluate\.metrics: fvd_digits3d: Digits3D reads moving digits only"
    ):
        evaluate_clips(generated, stores[1], EvaluateSettings(metrics=("fvd_digits3d",)))


@pytest.mark.parametrize(("what", "value"), [("frames", 8), ("size", 32), ("fps", 4.0)])
def test_stores_of_another_shape_or_rate_are_an_error_that_names_both(tmp_path, stores, what, value):
    other = store(tmp_path / "other", 2, **{what: value})
    with pytest.raises(UserError) as error:
        evaluate_clips(other, stores[1], EvaluateSettings())
    assert str(other.folder) in str(error.value)
    assert str(stores[1].folder) in str(error.value)


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_generated_clips_are_an_error(tmp_path, stores, num):
    with pytest.raises(UserError, match=f"{num} generated clips"):
        evaluate_clips(store(tmp_path / "few", num), stores[1], EvaluateSettings())


def test_too_few_real_clips_are_an_error(tmp_path, stores):
    few = store(tmp_path / "few", 8, split="test")
    with pytest.raises(UserError, match="0 clips of split 'train'"):
        evaluate_clips(stores[0], few, EvaluateSettings())


def test_clips_that_do_not_say_what_they_show_get_no_caption_accuracy(tmp_path, stores, weights):
    silent = store(tmp_path / "silent", 4, says=("digit", "colour"))
    settings = EvaluateSettings(metrics=("caption_accuracy",))
    with pytest.raises(UserError, match="do not say their direction, speed"):
        evaluate_clips(silent, stores[1], settings, digits3d_folder=weights[0])


def test_frames_are_evenly_spaced():
    assert frame_positions(8, 2).tolist() == [2, 6]
    assert frame_positions(16, 4).tolist() == [2, 6, 10, 14]
    assert frame_positions(1, 4).tolist() == [0]


@pytest.mark.parametrize("bad", [{"metrics": ["fvd_i3d"]}, {"max_reference_clips": 1}, {"unknown": 1}])
def test_settings_refuse_what_they_do_not_know(bad):
    with pytest.raises(ValidationError):
        EvaluateSettings.model_validate(bad)
