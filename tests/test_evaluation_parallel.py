"""Several processes read shares of the clips: what they read together is what one reads alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_evaluate import store
from tiny_extractors import noise_store

from pyoco_pipeline.data import clip_writing
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import Digits3DNet, save_digits3d
from pyoco_pipeline.evaluation.evaluate import EvaluateSettings, evaluate_clips
from pyoco_pipeline.evaluation.parallel import ClipSet, read_sets
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.evaluation.wanted import Extractors, ReaderChoice
from pyoco_pipeline.launch import useful

READERS = {
    "digits3d": ReaderChoice("digits3d", keep=True),
    "lite0": ReaderChoice("lite0", ("consistency",)),
    "pixels": ReaderChoice(None),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return store(folder / "generated", 22, split="generated", seed=1), store(folder / "reference", 50)


@pytest.fixture(scope="module")
def digits3d(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("digits3d")
    save_digits3d(folder, Digits3DNet().state_dict(), {"name": "digits3d"})
    return folder


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """30 clips in shards of four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_writing, "SHARD_ROWS", 4)
        return noise_store(tmp_path_factory.mktemp("many"), 30, frames=2, size=4)


def ids(items):
    return [item.clip.clip_id for item in items]


@settings(deadline=None, max_examples=50)
@given(
    positions=st.one_of(st.none(), st.frozensets(st.integers(0, 29))),
    parts=st.integers(1, 5),
    batch_size=st.integers(1, 9),
)
def test_shares_are_the_same_batches_one_after_another(many_shards, positions, parts, batch_size):
    clips = ClipSet(many_shards, "train", positions, 2, {})
    shares = [ids(clips.share(part, parts, batch_size)) for part in range(parts)]
    expected = ids(many_shards.clips("train"))
    if positions is not None:
        expected = [expected[i] for i in sorted(positions)]
    assert [clip for share in shares for clip in share] == expected
    assert len(clips) == len(expected)
    batches = [-(-len(share) // batch_size) for share in shares]
    assert sum(batches) == -(-len(expected) // batch_size)
    assert max(batches) - min(batches) <= 1


def test_shards_before_a_share_are_not_read(many_shards, monkeypatch):
    opened = []
    open_shard = ClipStore.open_shard
    monkeypatch.setattr(
        ClipStore, "open_shard", lambda s, shard: opened.append(shard) or open_shard(s, shard)
    )
    share = ClipSet(many_shards, "train", None, 2, {}).share(1, 2, 5)
    assert ids(share) == ids(many_shards.clips("train"))[15:]
    assert opened[:5] == many_shards.shards("train")[3:]


def test_no_more_processes_are_started_than_there_are_batches():
    devices = ["cuda:0", "cuda:1", "cuda:2"]
    assert useful(devices, 33, 16) == devices
    assert useful(devices, 32, 16) == devices[:2]
    assert useful(devices, 0, 16) == devices[:1]


def test_clips_that_were_written_anew_are_not_read(tmp_path):
    opened = noise_store(tmp_path, 3)
    noise_store(tmp_path, 4)
    extractors = Extractors(EvaluateSettings(), "cpu", None)
    with pytest.raises(UserError, match="was written anew"):
        read_sets([ClipSet(opened, None, None, 16, {})], extractors, ["cpu"])


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_together_what_one_reads(stores, digits3d, processes):
    """Statistics to 1e-10 of their size, all else exactly: networks see the same batches."""
    generated, reference = stores
    sets = [
        ClipSet(generated, None, None, 4, READERS),
        ClipSet(reference, "train", frozenset(range(1, 50, 2)), 4, READERS, seed=0),
        ClipSet(reference, "train", frozenset({3, 17}), 4, READERS),  # fewer batches than processes
        ClipSet(reference, "train", frozenset(range(9)), 4, {}),
    ]
    extractors = Extractors(EvaluateSettings(batch_size=4), "cpu", digits3d)
    for one, many in zip(
        read_sets(sets, extractors, ["cpu"]), read_sets(sets, extractors, ["cpu"] * processes), strict=True
    ):
        assert (many.num, many.attributes) == (one.num, one.attributes)
        assert set(many.readings) == set(one.readings)
        for key, reading in one.readings.items():
            again = many.readings[key]
            assert again.count == reading.count
            assert set(again.per_clip) == set(reading.per_clip)
            for name in reading.per_clip:
                np.testing.assert_array_equal(again.stacked(name), reading.stacked(name))
            if reading.statistics is not None:
                for part in ("mean", "covariance"):
                    a, b = (getattr(r.statistics, part) for r in (again, reading))
                    a, b = (a(), b()) if callable(a) else (a, b)
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.slow
def test_metrics_and_what_is_kept_do_not_depend_on_the_number_of_processes(tmp_path, stores):
    asked = EvaluateSettings(metrics=("fvd_digits3d", "is_digits3d", "caption_accuracy"), batch_size=4)
    alone, together = (
        evaluate_clips(*stores, asked, ["cpu"] * n, cache_folder=tmp_path / str(n)) for n in (1, 3)
    )
    # The covariances of 22 clips are singular, where a root magnifies rounding.
    assert flatten_metrics(together) == pytest.approx(flatten_metrics(alone), rel=1e-6)
    assert {**together, "metrics": None} == {**alone, "metrics": None}
    kept = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "13"]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
    again = evaluate_clips(*stores, asked, cache_folder=tmp_path / "3")["metrics"]
    for name, entry in together["metrics"].items():
        assert again[name].get("floor") == entry.get("floor")
        assert again[name].get("real") == entry.get("real")


@pytest.mark.slow
def test_a_network_that_breaks_in_another_process_is_the_same_error(tmp_path, stores):
    state = Digits3DNet().state_dict()
    broken = {
        name: torch.full_like(x, torch.nan) if x.is_floating_point() else x for name, x in state.items()
    }
    save_digits3d(tmp_path, broken, {"name": "digits3d"})
    sets = [ClipSet(stores[0], None, None, 4, {"digits3d": replace(READERS["digits3d"], keep=False)})]
    extractors = Extractors(EvaluateSettings(batch_size=4), "cpu", tmp_path)
    with pytest.raises(UserError) as caught:
        read_sets(sets, extractors, ["cpu", "cpu"])
    assert str(caught.value).startswith("digits3d gives values that are not finite for clip ")
    assert str(caught.value).endswith("and 3 more of its batch: check its weights.")


def test_scores_are_the_same_inside_the_autocast_of_a_training(stores, digits3d):
    generated, reference = stores
    alone = evaluate_clips(generated, reference, EvaluateSettings(), digits3d_folder=digits3d)
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate_clips(generated, reference, EvaluateSettings(), digits3d_folder=digits3d)

    assert flatten_metrics(inside) == flatten_metrics(alone)
