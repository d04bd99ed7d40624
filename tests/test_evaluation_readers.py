"""One pass over clips in bounded memory, and parts that add up to the whole, in any order."""

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_extractors import TinyExtractor

from pyoco_pipeline.data.clips import CaptionedClip, Clip
from pyoco_pipeline.evaluation.readers import (
    ClipReader,
    FrameReader,
    PixelReader,
    Reading,
    caption_similarity,
    from_tensors,
    statistics_of,
    to_tensors,
)
from pyoco_pipeline.evaluation.statistics import FeatureStatistics


class Video(np.ndarray):
    """An array that can be referred to weakly."""


def clips(num, *, seed=0, alive=None):
    rng = np.random.default_rng(seed)
    for i in range(num):
        video = rng.integers(0, 256, (3, 4, 4, 3)).astype(np.uint8).view(Video)
        if alive is not None:
            alive.append(weakref.ref(video))
        yield CaptionedClip(Clip(str(i), video), f"clip {i}", "train")


def readers(keep=False):
    return {
        "i3d_tats": ClipReader(TinyExtractor("i3d_tats"), keep=keep),
        "clip_vitb32": FrameReader(TinyExtractor("clip_vitb32"), 2, ("consistency", "similarity"), keep),
        "pixels": PixelReader(),
    }


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    offset=st.floats(-100, 100),
    scale=st.floats(1e-2, 1e3),
    seed=st.integers(0, 1000),
)
def test_statistics_of_parts_merged_in_any_order_are_those_of_the_whole(sizes, offset, scale, seed):
    rng = np.random.default_rng(seed)
    parts = [offset + scale * rng.standard_normal((size, 6)) for size in sizes]
    whole = FeatureStatistics(6).update(np.concatenate(parts))
    for order in (range(len(parts)), rng.permutation(len(parts))):
        merged = FeatureStatistics(6)
        for i in order:
            merged.merge(FeatureStatistics(6).update(parts[i]))
        assert merged.count == whole.count
        size = np.abs(np.concatenate(parts)).max()
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10, atol=1e-10 * size)
        spread = np.abs(whole.covariance()).max()
        np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-10, atol=1e-10 * spread)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_what_processes_read_in_their_parts_adds_up_to_what_one_reads_in_all(order):
    items = list(clips(23))
    bounds = (0, 4, 15, 23)
    whole = statistics_of(items, readers(keep=True), 4)
    parts = [statistics_of(items[a:b], readers(keep=True), 4) for a, b in pairwise(bounds)]
    for name, expected in whole.items():
        merged = Reading()
        for i in order:
            merged.merge(parts[i][name])
        assert merged.count == 23
        if expected.statistics is not None:
            tolerance = {"rtol": 1e-6, "atol": 1e-9}  # the network's, in float32, by the size of its batches
            np.testing.assert_allclose(
                merged.statistics.covariance(), expected.statistics.covariance(), **tolerance
            )
        for key in expected.per_clip:
            in_order = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in order])
            np.testing.assert_allclose(merged.stacked(key), expected.stacked(key)[in_order], atol=1e-6)


def test_no_more_clips_than_a_batch_are_in_memory_at_once():
    alive = []
    most = 0

    def watched():
        nonlocal most
        for item in clips(60, alive=alive):
            most = max(most, sum(video() is not None for video in alive))
            yield item

    gc.collect()
    statistics_of(watched(), readers(), 4)
    assert most <= 2 * 4 + 1


def test_a_reading_is_stored_and_read_back_exactly():
    for reading in statistics_of(clips(9), readers(keep=True), 4).values():
        again = from_tensors(to_tensors(reading))
        assert (again.count, again.features_dropped) == (reading.count, reading.features_dropped)
        assert set(again.per_clip) == set(reading.per_clip)
        for name in reading.per_clip:
            np.testing.assert_array_equal(again.stacked(name), reading.stacked(name))
        if reading.statistics is None:
            assert again.statistics is None
        else:
            np.testing.assert_array_equal(again.statistics.covariance(), reading.statistics.covariance())


def test_distances_of_frames_see_some_frames_and_consistency_all():
    videos = np.stack([item.clip.video for item in clips(2)])
    extractor = TinyExtractor("clip_vitb32")
    every, arrays = FrameReader(extractor, 2, ("consistency",)).read(videos, ["a", "b"])
    alone, none = FrameReader(extractor, 2).read(videos, ["a", "b"])
    assert every.shape == alone.shape == (2, 2, 5)
    np.testing.assert_allclose(every, alone, atol=1e-6)
    assert (set(arrays), none) == ({"consistency"}, {})


def test_similarity_is_one_of_frames_that_are_their_caption_and_minus_one_of_the_opposite():
    texts = np.array([[3.0, 4.0], [1.0, 0.0]])
    frames = np.stack([[texts[0], 2 * texts[0]], [-texts[1], -3 * texts[1]]])
    assert caption_similarity(frames, texts).tolist() == pytest.approx([1, -1])
