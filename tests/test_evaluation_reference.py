"""What was read in real clips is kept between runs, used again exactly, and never used where it does not fit."""

import logging

import numpy as np
import pytest
from tiny_extractors import TinyExtractor, given, noise_store, use_tiny_extractors

from pyoco_pipeline.evaluation.evaluate import EvaluateSettings, evaluate_clips

METRICS = ("fvd_i3d_tats", "kvd_i3d_tats", "is_c3d", "clipsim", "motion_magnitude")


@pytest.fixture
def tiny(monkeypatch):
    return use_tiny_extractors(monkeypatch)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return noise_store(folder / "generated", 10, seed=1), noise_store(folder / "reference", 30)


def measure(stores, cache, **changes):
    extractors = given("i3d_tats", "c3d_ucf101", "clip_vitb32")
    settings = EvaluateSettings.model_validate({"metrics": METRICS, "extractors": extractors, **changes})
    return evaluate_clips(*stores, settings, cache_folder=cache)


def test_a_second_run_reads_no_real_clip_and_gives_the_very_same_result(tmp_path, stores, tiny):
    first = measure(stores, tmp_path)
    read = {name: extractor.clips_read for name, extractor in tiny.items()}
    second = measure(stores, tmp_path)
    assert second == first == measure(stores, None)
    assert read == {"i3d_tats": 40, "c3d_ucf101": 20, "clip_vitb32": 20}
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"] * 5
    assert tiny["i3d_tats"].clips_read == 40 + 10 + 40  # the last without a cache


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_reference_clips": 8},
        {"bootstrap": 20, "extrapolate": True, "metrics": ["fvd_i3d_tats"]},
    ],
)
def test_another_choice_of_clips_or_numbers_is_read_anew(tmp_path, stores, tiny, changes):
    measure(stores, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert measure(stores, tmp_path, **changes) == measure(stores, None, **changes)
    assert before < {path.name for path in tmp_path.iterdir()}


def test_other_weights_are_read_anew(tmp_path, stores, tiny):
    measure(stores, tmp_path)
    tiny["i3d_tats"] = TinyExtractor("i3d_tats", seed=1)
    measure(stores, tmp_path)
    assert tiny["i3d_tats"].clips_read == 40


def test_other_clips_are_read_anew(tmp_path, stores, tiny):
    measure(stores, tmp_path / "cache")
    others = stores[0], noise_store(tmp_path / "others", 30, seed=5)
    assert measure(others, tmp_path / "cache") == measure(others, None)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def of_other_facts(path):
    other = next(p for p in path.parent.iterdir() if p.stat().st_size != path.stat().st_size)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [cut_short, flip_a_byte, of_other_facts])
def test_a_damaged_file_is_warned_of_and_read_anew(tmp_path, stores, tiny, caplog, damage):
    expected = measure(stores, tmp_path)
    files = sorted(tmp_path.iterdir())
    for path in files[:2]:
        damage(path)
    with caplog.at_level(logging.WARNING):
        assert measure(stores, tmp_path) == expected
    assert f"{files[0]} cannot be used" in caplog.text
    caplog.clear()
    measure(stores, tmp_path)
    assert "cannot be used" not in caplog.text


def test_the_held_out_clips_count_is_part_of_what_is_kept(tmp_path, stores, tiny):
    measure(stores, tmp_path)
    fewer = noise_store(tmp_path / "fewer", 5, seed=1), stores[1]
    entry = measure(fewer, tmp_path)["metrics"]["fvd_i3d_tats"]
    assert (entry["num_held_out"], entry["num_reference"]) == (5, 25)
    assert np.isfinite(entry["floor"])
