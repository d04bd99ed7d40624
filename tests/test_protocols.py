"""Protocols by name: counts, which clip of a video, covariance, prompts; and what marks a result that is not one."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from tiny_extractors import TinyExtractor, given, noise_store, use_tiny_extractors, videos

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.evaluate import EvaluateSettings, evaluate_clips
from pyoco_pipeline.evaluation.frechet import frechet_distance
from pyoco_pipeline.evaluation.metric_table import TABLE
from pyoco_pipeline.evaluation.prompts import check_captions, expected_counts, read_prompts
from pyoco_pipeline.evaluation.protocols import PROTOCOLS, ProtocolName
from pyoco_pipeline.evaluation.reference import chosen, one_per_video, select_reference


@pytest.fixture
def tiny(monkeypatch):
    return use_tiny_extractors(monkeypatch)


@pytest.fixture
def small(monkeypatch):
    """The protocols with counts that a test can have."""
    for name, protocol in PROTOCOLS.items():
        num_reference = None if protocol.num_reference is None else 10
        changed = replace(protocol, num_generated=6, num_reference=num_reference)
        monkeypatch.setitem(PROTOCOLS, name, changed)


def settings(protocol, *extractors, **changes):
    return EvaluateSettings.model_validate(
        {"protocol": protocol, "extractors": given(*extractors), **changes}
    )


def test_the_names_are_those_that_the_settings_take():
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= set(TABLE)


def test_counts_and_covariances_are_the_published_ones():
    stylegan_v, tats = PROTOCOLS["stylegan-v"], PROTOCOLS["tats"]
    assert (stylegan_v.num_generated, stylegan_v.num_reference, stylegan_v.ddof) == (2048, 2048, 0)
    assert (tats.num_generated, tats.num_reference, tats.ddof) == (2048, 2048, 1)
    assert (
        PROTOCOLS["ucf101-unconditional"].num_generated
        == PROTOCOLS["ucf101-zeroshot"].num_generated
        == 10_000
    )
    assert PROTOCOLS["msrvtt-zeroshot"].num_generated == 2990
    assert {(p.num_frames, p.num_splits) for p in PROTOCOLS.values()} == {(16, 10)}


def test_fewer_clips_than_asked_for_are_an_error_that_says_how_many_are_missing(tmp_path, tiny, small):
    stores = noise_store(tmp_path / "g", 4), noise_store(tmp_path / "r", 20)
    with pytest.raises(UserError, match="holds 4 generated clips where protocol tats asks for 6: add 2"):
        evaluate_clips(*stores, settings("tats", "i3d_tats"))


def test_fewer_real_videos_than_asked_for_are_an_error(tmp_path, tiny, small):
    stores = noise_store(tmp_path / "g", 6), noise_store(tmp_path / "r", 16, per_video=2)
    with pytest.raises(UserError, match="holds 8 real videos where protocol tats asks for 10: add 2"):
        evaluate_clips(*stores, settings("tats", "i3d_tats"))


def test_fewer_clips_where_allowed_mark_the_name_and_are_never_used_twice(tmp_path, tiny, small):
    stores = noise_store(tmp_path / "g", 4), noise_store(tmp_path / "r", 20)
    result = evaluate_clips(*stores, settings("tats", "i3d_tats", allow_fewer=True))
    assert set(result["metrics"]) == {"fvd_i3d_tats_at_4", "kvd_i3d_tats_at_4"}
    entry = result["metrics"]["fvd_i3d_tats_at_4"]
    assert (entry["num_generated"], entry["num_reference"], entry["num_samples"]) == (4, 10, 4)
    assert "not comparable with published ones" in entry["warning"]
    assert entry["protocol"] == result["protocol"] == "tats"
    assert result["refused"] == {}


def test_more_clips_than_asked_for_are_drawn_from_by_the_seed(tmp_path, tiny, small):
    stores = noise_store(tmp_path / "g", 30), noise_store(tmp_path / "r", 20)
    entries = [
        evaluate_clips(*stores, settings("tats", "i3d_tats", seed=seed))["metrics"]["fvd_i3d_tats"]
        for seed in (0, 0, 1)
    ]
    assert [entry["num_generated"] for entry in entries] == [6, 6, 6]
    assert entries[0] == entries[1]
    assert entries[0]["value"] != entries[2]["value"]


@pytest.mark.parametrize(
    ("name", "extractor", "ddof"), [("stylegan-v", "i3d_torchscript", 0), ("tats", "i3d_tats", 1)]
)
def test_the_covariance_is_divided_as_the_protocol_says(tmp_path, tiny, small, name, extractor, ddof):
    stores = noise_store(tmp_path / "g", 6, seed=1), noise_store(tmp_path / "r", 20)
    given_settings = settings(name, extractor)
    entry = evaluate_clips(*stores, given_settings)["metrics"][f"fvd_{extractor}"]
    selection = select_reference(stores[1], "train", 6, PROTOCOLS[name], given_settings)
    x = tiny[extractor].features(videos(stores[0], range(6))).astype(float)
    y = tiny[extractor].features(videos(stores[1], selection.kept)).astype(float)
    both = [part for f in (x, y) for part in (f.mean(0), np.cov(f, rowvar=False, ddof=ddof))]
    assert entry["value"] == pytest.approx(frechet_distance(*both), rel=1e-6)
    assert entry["ddof"] == ddof


def test_one_clip_of_every_real_video_is_drawn_and_at_a_random_one(tmp_path):
    store = noise_store(tmp_path, 90, per_video=3, frames=2)
    positions = one_per_video(store, "train", 0)
    assert sorted(position // 3 for position in positions) == list(range(30))
    assert {position % 3 for position in positions} == {0, 1, 2}
    assert positions == one_per_video(store, "train", 0)
    assert positions != one_per_video(store, "train", 1)


def test_of_longer_clips_the_first_frames_are_scored_and_of_real_ones_some_at_a_random_offset(tmp_path):
    store = noise_store(tmp_path, 20, frames=24)
    whole = [item.clip.video for item in store.clips()]
    first = [item.clip.video for item in chosen(store, None, None, 16)]
    drawn = [item.clip.video for item in chosen(store, "train", frozenset(range(20)), 16, seed=0)]
    assert all((a[:16] == b).all() for a, b in zip(whole, first, strict=True))
    offsets = [
        next(k for k in range(9) if (a[k : k + 16] == b).all()) for a, b in zip(whole, drawn, strict=True)
    ]
    assert len(set(offsets)) > 4


def test_clips_shorter_than_the_protocols_are_an_error(tmp_path, small):
    stores = noise_store(tmp_path / "g", 6, frames=8), noise_store(tmp_path / "r", 20, frames=8)
    with pytest.raises(UserError, match="has clips of 8 frames, and protocol tats compares 16"):
        evaluate_clips(*stores, settings("tats", "i3d_tats"))


def test_where_all_real_videos_are_the_reference_the_floor_is_between_its_halves_and_says_so(
    tmp_path, tiny, small
):
    stores = noise_store(tmp_path / "g", 6), noise_store(tmp_path / "r", 21)
    result = evaluate_clips(*stores, settings("ucf101-unconditional", "i3d_tats"))
    entry = result["metrics"]["fvd_i3d_tats"]
    assert (entry["num_reference"], entry["num_held_out"]) == (21, 10)
    assert "one half of them to the other" in entry["warning"]
    assert entry["floor"] > 0
    x = tiny["i3d_tats"].features(videos(stores[0], range(6))).astype(float)
    y = tiny["i3d_tats"].features(videos(stores[1], range(21))).astype(float)
    both = [part for f in (x, y) for part in (f.mean(0), np.cov(f, rowvar=False))]
    assert entry["value"] == pytest.approx(frechet_distance(*both), rel=1e-6)
    assert "evaluate.extractors has no c3d_ucf101" in result["refused"]["is_c3d"]


def test_a_protocol_none_of_whose_extractors_is_given_is_an_error(tmp_path, small):
    stores = noise_store(tmp_path / "g", 6), noise_store(tmp_path / "r", 20)
    with pytest.raises(UserError, match="None of the metrics of protocol tats can be computed"):
        evaluate_clips(*stores, settings("tats"))


# Prompts.


def test_a_zero_shot_protocol_needs_its_prompts(tmp_path, tiny, small):
    stores = noise_store(tmp_path / "g", 6), noise_store(tmp_path / "r", 20, split="test")
    with pytest.raises(
        UserError, match=r"ucf101-zeroshot needs a table of the prompts .* set evaluate\.prompts"
    ):
        evaluate_clips(*stores, settings("ucf101-zeroshot", "c3d_ucf101"))


def test_clips_for_all_prompts_in_proportion_are_scored_against_the_test_split(tmp_path, tiny, small):
    (tmp_path / "prompts.csv").write_text("prompt,count\na cat,20\na dog,10\n")
    generated = noise_store(tmp_path / "g", 6, captions=("a cat", "a dog", "a cat"))
    result = evaluate_clips(
        generated,
        noise_store(tmp_path / "r", 20, split="test"),
        settings("ucf101-zeroshot", "c3d_ucf101", prompts=str(tmp_path / "prompts.csv")),
    )
    assert set(result["metrics"]) == {"is_c3d", "motion_magnitude"}
    assert result["reference_split"] == "test"


def test_missing_clips_of_a_prompt_are_named(tmp_path, tiny, small):
    (tmp_path / "prompts.csv").write_text("prompt,count\na cat,20\na dog,10\n")
    stores = noise_store(tmp_path / "g", 6), noise_store(tmp_path / "r", 20, split="test")
    asked = {"prompts": str(tmp_path / "prompts.csv")}
    with pytest.raises(
        UserError, match="lacks 2 clips of 1 of 2 prompts: of 'a dog' it has 0 where its share of 6 is 2"
    ):
        evaluate_clips(*stores, settings("ucf101-zeroshot", "c3d_ucf101", **asked))
    result = evaluate_clips(*stores, settings("ucf101-zeroshot", "c3d_ucf101", allow_fewer=True, **asked))
    assert "lacks 2 clips" in result["metrics"]["is_c3d"]["warning"]


def test_captions_that_are_no_prompts_are_an_error():
    with pytest.raises(
        UserError, match="has 2 clips whose caption is none of the prompts, the first 'a cow'"
    ):
        check_captions(["a cat", "a cow", "a cow"], {"a cat": 1}, 3, place="here", allow_fewer=True)


def test_shares_are_in_proportion_and_rounded_down():
    assert expected_counts({"a": 100, "b": 50, "c": 1}, 10_000) == {"a": 6622, "b": 3311, "c": 66}
    assert sum(expected_counts({str(i): 1 for i in range(101)}, 10_000).values()) == 101 * 99


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,count\na,0\n", "Row 1 of .*, column count, holds '0'"),
        ("prompt,count\na,many\n", "holds 'many': write a whole number"),
        ("prompt,count\n,1\n", "column prompt, is blank"),
        ("caption\na\n", "has no column prompt"),
    ],
)
def test_a_table_of_prompts_that_means_nothing_is_an_error(tmp_path, text, message):
    (tmp_path / "prompts.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "prompts.csv")


def test_a_table_of_prompts_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"is missing: correct evaluate\.prompts"):
        read_prompts(tmp_path / "none.csv")


def test_repeated_prompts_count_as_often(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na\nb\na\n")
    assert read_prompts(tmp_path / "prompts.csv") == {"a": 2, "b": 1}


def test_marks_of_weights_and_counts_go_together(tmp_path, tiny, small):
    tiny["i3d_tats"] = TinyExtractor("i3d_tats", verified=False)
    stores = noise_store(tmp_path / "g", 4), noise_store(tmp_path / "r", 20)
    result = evaluate_clips(*stores, settings("tats", "i3d_tats", allow_fewer=True))
    assert "fvd_i3d_tats_other_weights_at_4" in result["metrics"]
