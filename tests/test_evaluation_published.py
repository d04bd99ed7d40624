"""Metrics by published extractors: which are computed, under which name, and what stands beside each."""

import json
import math
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
import torch
from published_files import random_state
from pydantic import ValidationError
from tiny_extractors import DIM, MEDIA, TinyExtractor, given, noise_store, use_tiny_extractors, videos

from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation import wanted
from pyoco_pipeline.evaluation.evaluate import METRICS, EvaluateSettings, evaluate_clips, split_reference
from pyoco_pipeline.evaluation.frechet import frechet_distance
from pyoco_pipeline.evaluation.inception_score import inception_score
from pyoco_pipeline.evaluation.kernel_distance import kernel_distance
from pyoco_pipeline.evaluation.metric_table import RESIZE, TABLE
from pyoco_pipeline.evaluation.published.i3d import InceptionI3d
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.evaluation.scores import motion_magnitude
from pyoco_pipeline.evaluation.wanted import ALL_METRICS

PUBLISHED = tuple(name for name in ALL_METRICS if TABLE[name].extractor in MEDIA)
SCHEMA = json.loads((files("pyoco_pipeline") / "assets/metrics.schema.json").read_text())


@pytest.fixture
def tiny(monkeypatch):
    return use_tiny_extractors(monkeypatch)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    captions = ("a cat sleeps", "seven green beetles")
    generated = noise_store(folder / "generated", 12, split="generated", seed=1, captions=captions)
    return generated, noise_store(folder / "reference", 40, captions=captions)


def everything(settings=None):
    """All published extractors."""
    return EvaluateSettings.model_validate({"extractors": given(*MEDIA), **(settings or {})})


def test_every_metric_of_the_given_extractors_is_computed_and_names_what_it_is(stores, tiny):
    result = evaluate_clips(*stores, everything())
    assert set(result["metrics"]) == {*PUBLISHED, "motion_magnitude", "fid_lite0", "temporal_consistency"}
    for name in PUBLISHED:
        entry = result["metrics"][name]
        assert np.isfinite(entry["value"])
        assert ("floor" in entry) != ("real" in entry)
        assert (entry["num_generated"], entry["num_held_out"], entry["num_reference"]) == (12, 12, 28)
        assert (entry["extractor"], entry["extractor_verified"]) == (TABLE[name].extractor, True)
        assert entry["extractor_sha256"] == f"{0:064x}"
        assert (entry["frames"], entry["height"], entry["fps"], entry["seed"]) == (16, 8, 25.0, 0)
        assert entry["resize"] == RESIZE[TABLE[name].extractor]


def test_metrics_json_is_what_its_schema_says(stores, tiny):
    settings = everything({"bootstrap": 20, "extrapolate": True, "metrics": [*PUBLISHED, "motion_magnitude"]})
    jsonschema.validate(evaluate_clips(*stores, settings), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(evaluate_clips(*stores, settings) | {"seed": "zero"}, SCHEMA)


def test_metrics_json_of_the_embedded_extractors_is_what_its_schema_says(tmp_path):
    from test_evaluation_evaluate import store

    result = evaluate_clips(store(tmp_path / "g", 3), store(tmp_path / "r", 8), EvaluateSettings())
    assert tuple(result["metrics"]) == METRICS
    jsonschema.validate(json.loads(json.dumps(result)), SCHEMA)


def test_distances_are_those_of_the_features_with_the_covariance_of_the_extractors_own_project(stores, tiny):
    generated, reference = stores
    result = evaluate_clips(
        *stores,
        everything(
            {
                "max_reference_clips": 40,
                "metrics": ["fvd_i3d_torchscript", "kvd_i3d_torchscript", "fvd_i3d_tats", "kvd_i3d_tats"],
            }
        ),
    )
    _, kept = split_reference(reference, 12, EvaluateSettings(max_reference_clips=40))
    for name, ddof in (("i3d_torchscript", 0), ("i3d_tats", 1)):
        x, y = (
            tiny[name].features(videos(*pair)).astype(float)
            for pair in ((generated, range(12)), (reference, kept))
        )
        expected = frechet_distance(
            *(part for f in (x, y) for part in (f.mean(0), np.cov(f, rowvar=False, ddof=ddof)))
        )
        assert result["metrics"][f"fvd_{name}"]["value"] == pytest.approx(expected, rel=1e-6)
        assert result["metrics"][f"fvd_{name}"]["ddof"] == ddof
        assert result["metrics"][f"kvd_{name}"]["value"] == pytest.approx(kernel_distance(x, y).value)


def test_the_inception_score_does_not_depend_on_the_stored_order_of_classes(tmp_path, tiny):
    """Stored by class, each split would hold one class only, and the score would be 1."""
    tiny["c3d_ucf101"] = extractor = TinyExtractor("c3d_ucf101")
    generated, reference = noise_store(tmp_path / "g", 200, size=4), noise_store(tmp_path / "r", 8, size=4)
    pixels = videos(generated, range(200))
    probabilities = extractor.probabilities(pixels)
    order = np.argsort(probabilities.argmax(1), kind="stable")
    items = [CaptionedClip(Clip(str(i), pixels[k]), "x", "generated") for i, k in enumerate(order)]
    write_clips(tmp_path / "sorted", items, kind="video_folder", shape=(16, 4, 4), fps=25)
    settings = EvaluateSettings(metrics=("is_c3d",), extractors=given("c3d_ucf101"))
    entry = evaluate_clips(ClipStore(tmp_path / "sorted"), reference, settings)["metrics"]["is_c3d"]
    in_order, _ = inception_score(probabilities[order], 10)
    assert entry["splits"] == 10
    assert entry["standard_deviation"] > 0
    assert entry["value"] > in_order + 0.2
    assert "cannot show all 5 classes" in entry["warning"]


def test_other_weights_are_said_in_the_metrics_name(stores, tiny):
    tiny["i3d_tats"] = TinyExtractor("i3d_tats", verified=False)
    result = evaluate_clips(
        *stores, EvaluateSettings(extractors=given("i3d_tats"), metrics=("fvd_i3d_tats", "kvd_i3d_tats"))
    )
    assert {"fvd_i3d_tats_other_weights", "kvd_i3d_tats_other_weights"} <= set(result["metrics"])
    assert "fvd_i3d_tats" not in result["metrics"]


def test_a_metric_whose_extractor_is_not_given_says_which_is_missing(stores):
    with pytest.raises(UserError, match=r"fvd_i3d_tats: evaluate\.extractors has no i3d_tats: give the path"):
        evaluate_clips(*stores, EvaluateSettings(metrics=("fvd_i3d_tats",)))


def test_clips_of_a_length_that_the_network_does_not_read_are_refused(tmp_path, tiny):
    tiny["i3d_tats"] = extractor = TinyExtractor("i3d_tats")
    extractor.min_frames = 9
    stores = noise_store(tmp_path / "g", 3, frames=8), noise_store(tmp_path / "r", 8, frames=8)
    result = evaluate_clips(*stores, EvaluateSettings(extractors=given("i3d_tats")))
    assert result["refused"]["fvd_i3d_tats"] == "i3d_tats reads clips of at least 9 frames, and these have 8."


def test_clipsim_needs_captions(tmp_path, stores, tiny):
    silent = noise_store(tmp_path / "silent", 3, captions=("",))
    result = evaluate_clips(silent, stores[1], EvaluateSettings(extractors=given("clip_vitb32")))
    assert "have no caption" in result["refused"]["clipsim"]
    assert "real" in result["metrics"]["frame_consistency_clip"]


def test_clipsim_is_the_mean_cosine_of_frames_and_caption(stores, tiny):
    generated, _ = stores
    settings = EvaluateSettings(extractors=given("clip_vitb32"), metrics=("clipsim",))
    value = evaluate_clips(*stores, settings)["metrics"]["clipsim"]["value"]
    cosines = []
    for item in generated.clips():
        frames = tiny["clip_vitb32"].features(item.clip.video[None].copy())
        text = tiny["clip_vitb32"].text_features([item.caption])[0]
        cosines += [f @ text / np.linalg.norm(f) / np.linalg.norm(text) for f in frames]
    assert value == pytest.approx(np.mean(cosines))


def test_features_that_are_not_finite_are_an_error_that_names_the_clip(stores, tiny):
    tiny["i3d_tats"] = extractor = TinyExtractor("i3d_tats")
    extractor.broken = True
    with pytest.raises(
        UserError, match="i3d_tats gives values that are not finite for clip 00000 and 11 more"
    ):
        evaluate_clips(*stores, EvaluateSettings(extractors=given("i3d_tats")))


def test_latents_are_not_scored_as_pixels(tmp_path, stores):
    latents = noise_store(tmp_path / "latents", 3, dtype="float16")
    with pytest.raises(UserError, match="float16 with 3 channels, but only pixels"):
        evaluate_clips(latents, stores[1], EvaluateSettings())


def test_too_few_clips_for_the_covariance_are_warned_of_beside_the_floor(stores, tiny):
    settings = EvaluateSettings(
        extractors=given("i3d_tats"), metrics=("fvd_i3d_tats",), max_reference_clips=DIM
    )
    entry = evaluate_clips(*stores, settings)["metrics"]["fvd_i3d_tats"]
    assert f"{DIM} samples do not span the {DIM} feature dimensions" in entry["warning"]
    assert entry["floor"] > 0


def test_features_of_too_many_clips_are_summed_up_but_not_kept(stores, tiny, monkeypatch):
    whole = evaluate_clips(*stores, everything())["metrics"]["fvd_i3d_tats"]["value"]
    monkeypatch.setattr("pyoco_pipeline.evaluation.readers.KEPT_BYTES", 100)
    result = evaluate_clips(
        *stores,
        everything(
            {
                "bootstrap": 20,
                "extrapolate": True,
                "batch_size": 4,
                "metrics": ["fvd_i3d_tats", "kvd_i3d_tats"],
            }
        ),
    )
    entry = result["metrics"]["fvd_i3d_tats"]
    assert entry["value"] == pytest.approx(whole)
    assert "no interval: the features of so many clips are not kept" in entry["warning"]
    assert "no extrapolation" in entry["warning"]
    assert "interval" not in entry
    assert "not kept" in result["refused"]["kvd_i3d_tats"]


def test_intervals_and_extrapolation_stand_beside_the_value(tmp_path, tiny):
    stores = noise_store(tmp_path / "g", 40, seed=1), noise_store(tmp_path / "r", 80)
    settings = EvaluateSettings(
        metrics=("fvd_i3d_tats",), extractors=given("i3d_tats"), bootstrap=50, extrapolate=True
    )
    result = evaluate_clips(*stores, settings)
    entry = result["metrics"]["fvd_i3d_tats"]
    assert entry["interval"]["low"] < entry["value"] < entry["interval"]["high"]
    assert entry["interval"]["num"] == 50
    assert entry["extrapolated"]["counts"][-1] == 40
    flat = flatten_metrics(result)
    assert flat["fvd_i3d_tats_low"] == entry["interval"]["low"]
    assert flat["fvd_i3d_tats_extrapolated"] == entry["extrapolated"]["value"]


def test_too_few_clips_to_extrapolate_from_are_said(stores, tiny):
    settings = EvaluateSettings(metrics=("fid_lite0",), extrapolate=True)
    entry = evaluate_clips(*stores, settings)["metrics"]["fid_lite0"]
    assert (
        "extrapolation of 1280 dimensions needs 2,134 clips on both sides, and there are 12"
        in entry["warning"]
    )
    assert "extrapolated" not in entry


def test_motion_is_the_mean_change_of_luma_and_none_of_a_frozen_clip():
    clip = np.zeros((1, 3, 4, 4, 3), np.uint8)
    clip[0, 1] = 10
    clip[0, 2] = 10
    clip[0, 2, ..., 1] = 110
    # Grey by 10, then green by 100, which weighs .587.
    assert motion_magnitude(clip) == pytest.approx([(10 + 58.7) / 2], rel=1e-5)
    assert motion_magnitude(clip[:, :1].repeat(3, axis=1)) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"extractors": {"i3d": {"path": "x"}}},
        {"extractors": {"i3d_tats": {}}},
        {"extractors": {"i3d_tats": {"path": "x", "sha256": "abc"}}},
        {"protocol": "fvd2048"},
        {"bootstrap": 5},
    ],
)
def test_settings_refuse_what_they_do_not_know(bad):
    with pytest.raises(ValidationError):
        EvaluateSettings.model_validate(bad)


def test_a_precision_that_the_network_does_not_run_in_is_an_error_that_names_the_key(
    stores, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise ValueError("the TorchScript file of I3D runs in float32 only")

    monkeypatch.setattr(wanted, "open_extractor", refuse)
    with pytest.raises(UserError, match=r"evaluate\.extractors\.i3d_torchscript: the TorchScript file"):
        evaluate_clips(*stores, EvaluateSettings(extractors=given("i3d_torchscript")))


@pytest.mark.slow
def test_i3d_itself_scores_clips_from_a_file_of_other_weights(tmp_path):
    path = tmp_path / "i3d_pretrained_400.pt"
    torch.save(random_state(InceptionI3d()), path)
    stores = noise_store(tmp_path / "g", 3, size=32, seed=1), noise_store(tmp_path / "r", 6, size=32)
    options = {"path": str(path), "allow_other_weights": True}
    settings = EvaluateSettings.model_validate(
        {"metrics": ["fvd_i3d_tats", "kvd_i3d_tats"], "extractors": {"i3d_tats": options}}
    )
    result = evaluate_clips(*stores, settings)
    assert set(result["metrics"]) == {"fvd_i3d_tats_other_weights", "kvd_i3d_tats_other_weights"}
    assert all(math.isfinite(entry["value"]) for entry in result["metrics"].values())
    assert (
        "3 samples do not span the 400 feature" in result["metrics"]["fvd_i3d_tats_other_weights"]["warning"]
    )
    wrong = {"path": str(path), "sha256": "0" * 64, "allow_other_weights": True}
    with pytest.raises(UserError, match="was asked for"):
        evaluate_clips(*stores, EvaluateSettings.model_validate({"extractors": {"i3d_tats": wrong}}))
