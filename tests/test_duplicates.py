"""Of clips whose hashes are near, the first is kept: exactly, and in time and memory that do not explode."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoco_pipeline.data import duplicates as module
from pyoco_pipeline.data.duplicates import duplicates


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def naive_duplicates(hashes: list[int], limit: int) -> list[bool]:
    kept: list[int] = []
    repeats = []
    for value in hashes:
        repeats.append(any(distance(value, other) <= limit for other in kept))
        if not repeats[-1]:
            kept.append(value)
    return repeats


# Hashes near one of a few centres, so that there are pairs at every distance.
near_hashes = st.lists(
    st.tuples(st.sampled_from([0, 2**64 - 1, 0x123456789ABCDEF0]), st.lists(st.integers(0, 63), max_size=8)),
    max_size=40,
).map(lambda items: [flipped(centre, flips) for centre, flips in items])


def flipped(centre: int, flips: list[int]) -> int:
    for bit in flips:
        centre ^= 1 << bit
    return centre


@settings(deadline=None)
@given(near_hashes, st.integers(0, 12), st.integers(1, 100))
def test_a_clip_is_a_duplicate_when_one_that_was_kept_before_is_near(hashes, limit, pairs_held):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", pairs_held)
        found = duplicates(np.array(hashes, np.uint64), limit)
    assert found.tolist() == naive_duplicates(hashes, limit)


@settings(deadline=None, max_examples=60)
@given(near_hashes, near_hashes.filter(len), st.integers(1, 8), st.integers(2, 9))
def test_bands_find_what_is_near_to_those_kept(hashes, kept, limit, bands):
    expected = [any(distance(value, other) <= limit for other in kept) for value in hashes]
    for way in (min(bands, limit + 1), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_bands", lambda *_, way=way: way)
            found = module._near_any(np.array(hashes, np.uint64), np.array(kept, np.uint64), limit)
        assert found.tolist() == expected


@pytest.mark.parametrize("spread", [3, 6])
def test_thousands_of_clips_that_are_all_alike_take_little_memory(spread):
    """As 8,000 black or frozen clips do: 32 million near pairs, unless they are compared with the kept ones alone."""
    flips = itertools.islice(itertools.combinations(range(64), spread), 8000)
    hashes = [flipped(0x123456789ABCDEF0, bits) for bits in flips]
    tracemalloc.start()
    try:
        found = duplicates(np.array(hashes, np.uint64), 6)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.tolist() == naive_duplicates(hashes, 6)
    assert peak < 300 << 20


@settings(deadline=None, max_examples=60)
@given(near_hashes, st.integers(1, 8), st.integers(2, 9))
def test_bands_find_the_pairs_that_a_comparison_of_all_finds(hashes, limit, bands):
    distinct = np.array(list(dict.fromkeys(hashes)), np.uint64)
    if not len(distinct):
        return

    def pairs(search, *args) -> set[tuple[int, int]]:
        return {(int(i), int(j)) for part in search(distinct, *args) for i, j in part.T}

    found = pairs(module._pairs_by_bands, limit, min(bands, limit + 1))
    assert found == pairs(module._pairs_by_brute_force, limit)
    assert all(j < i for i, j in found)


@pytest.mark.slow
def test_a_million_hashes_take_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1_000_000, dtype=np.uint64)
    copies = rng.choice(500_000, 1000, replace=False)
    flips = np.uint64(1) << rng.integers(0, 64, (1000, 4), dtype=np.uint64)
    hashes[500_000 + copies] = hashes[copies] ^ np.bitwise_xor.reduce(flips, axis=1)
    start = time.process_time()
    found = duplicates(hashes, 4)
    assert found[500_000 + copies].all()
    assert found.sum() == 1000  # of random hashes, 10^12 / 2 pairs at 2^-64 * C(64, 4) are none
    assert time.process_time() - start < 60
