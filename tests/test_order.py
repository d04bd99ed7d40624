"""The order of clips: every epoch visits every clip once, within a bounded buffer, from any place on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoco_pipeline.data.order import ShuffledOrder, Turns

groups_of_clips = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any)


def walk(order: ShuffledOrder, place: int, count: int) -> list[tuple[int, int]]:
    groups, rows = order.take(place, count)
    return list(zip(groups.tolist(), rows.tolist(), strict=True))


@given(rows=groups_of_clips, buffer=st.integers(1, 40), seed=st.integers(0, 3))
def test_every_epoch_visits_every_clip_once(rows, buffer, seed):
    order = ShuffledOrder(rows, buffer=buffer, seed=seed)
    every = sorted((group, row) for group, count in enumerate(rows) for row in range(count))

    for epoch in range(3):
        assert sorted(walk(order, epoch * order.count, order.count)) == every


@given(rows=groups_of_clips, buffer=st.integers(1, 40), place=st.integers(0, 60), count=st.integers(1, 60))
def test_the_order_from_any_place_on_is_that_of_a_walk_from_the_start(rows, buffer, place, count):
    start = walk(ShuffledOrder(rows, buffer=buffer, seed=0), 0, place + count)

    assert walk(ShuffledOrder(rows, buffer=buffer, seed=0), place, count) == start[place:]


@given(rows=groups_of_clips, buffer=st.integers(1, 40))
def test_no_more_clips_than_the_buffer_are_shuffled_together(rows, buffer):
    order = ShuffledOrder(rows, buffer=buffer, seed=0)
    place = 0
    while place < order.count:
        window = order.groups_at(place)
        size = sum(rows[group] for group in window)
        assert size <= buffer or len(window) == 1
        assert {group for group, _ in walk(order, place, size)} == set(window)
        assert order.groups_after(place) == order.groups_at(place + size)
        place += size


def test_a_buffer_for_all_clips_is_a_full_shuffle():
    orders = [ShuffledOrder([2, 3, 5], buffer=10, seed=seed) for seed in range(4000)]
    first = np.array([walk(order, 0, 1)[0] for order in orders])
    counts = np.bincount(first[:, 0] * 5 + first[:, 1], minlength=15)

    # Each of ten clips comes first 400 ± 19 times; six standard deviations leave less than 1e-7 to chance.
    assert sorted(np.flatnonzero(counts).tolist()) == [0, 1, 5, 6, 7, 10, 11, 12, 13, 14]
    assert abs(counts[counts > 0] - 400).max() < 114


def test_epochs_and_seeds_have_orders_of_their_own():
    order, other = ([5] * 8, 20, 0), ([5] * 8, 20, 1)
    walks = {
        tuple(walk(ShuffledOrder(rows, buffer=buffer, seed=seed), epoch * 40, 40))
        for rows, buffer, seed in (order, other)
        for epoch in range(3)
    }

    assert len(walks) == 6


def test_no_clips_are_refused():
    with pytest.raises(ValueError, match="no clips to order"):
        ShuffledOrder([0, 0], buffer=4, seed=0)


@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=5), steps=st.integers(1, 400))
def test_kinds_take_turns_as_their_weights_say(weights, steps):
    turns = Turns(weights)
    kinds = np.array([turns.kind(k) for k in range(steps)])
    counts = np.bincount(kinds, minlength=len(weights))

    # A golden-ratio sequence's discrepancy grows with the logarithm of its length.
    assert abs(counts - steps * np.array(weights) / sum(weights)).max() <= 2 + np.log(steps)
    for step in (steps - 1, 0, steps // 2):
        assert turns.before(step) == (kinds[:step] == kinds[step]).sum()
