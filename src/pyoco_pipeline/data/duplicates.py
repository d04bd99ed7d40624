"""Which perceptual hashes repeat others: exact, for millions of them, however many are alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np

_SORTING = 12  # what sorting one key costs, in comparisons of two hashes
_PAIRS = 1 << 22  # near pairs that are held at a time: 100,000 clips that are alike have 5 billion


def duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """(N,) bool: which of the hashes, uint64 (N,), are within `distance` bits of an earlier one that is kept itself.

    Exact: each is judged in its turn by those kept before it, so one that is near only to a duplicate stays. A million
    hashes take one core some ten seconds at a distance of 4, a minute at 8; memory does not grow with the number of
    duplicates.
    """
    hashes = np.asarray(hashes, dtype=np.uint64)
    _, firsts = np.unique(hashes, return_index=True)
    firsts = np.sort(firsts)
    repeats = np.ones(len(hashes), bool)
    repeats[firsts] = False
    if distance > 0:
        repeats[firsts] = _near_repeats(hashes[firsts], distance)
    return repeats


def _near_repeats(hashes: np.ndarray, distance: int) -> np.ndarray:
    """As `duplicates`, of hashes that are all different."""
    dropped = np.zeros(len(hashes), bool)
    start, size = 0, len(hashes)
    while start < len(hashes):
        block = np.arange(start, min(start + size, len(hashes)))
        kept = hashes[:start][~dropped[:start]]
        dropped[block] = _near_any(hashes[block], kept, distance) if len(kept) else False
        left = block[~dropped[block]]
        pairs = _held(_near_pairs(hashes[left], distance), _PAIRS if len(left) > 1 else None)
        if pairs is None:
            size = max(1, len(block) // 2)
            continue
        later, earlier = pairs
        order = np.argsort(later, kind="stable")
        later, earlier = left[later[order]], left[earlier[order]]
        edges = [*np.flatnonzero(np.diff(later, prepend=-1)), len(later)]
        for first, end in pairwise(edges):  # settled, since all pairs of an earlier one come before
            dropped[later[first]] = not dropped[earlier[first:end]].all()
        start, size = start + len(block), size * 2
    return dropped


def _held(parts: Iterator[np.ndarray], limit: int | None) -> np.ndarray | None:
    """(2, n) pairs in one array; None where there are more than `limit`."""
    held, count = [np.empty((2, 0), np.int64)], 0
    for part in parts:
        count += part.shape[1]
        if limit is not None and count > limit:
            return None
        held.append(part)
    return np.concatenate(held, axis=1)


def _bands(distance: int, keys: int, pairs: float) -> int | None:
    """Into how many bands hashes are split to be compared in the cheapest way; None: all pairs are compared."""

    def cost(bands: int) -> float:
        masked, bits = distance // bands, 64 // bands
        return bands * comb(bits + 1, masked) * (keys * _SORTING + pairs / 2 ** (bits - masked))

    best = min(range(2, distance + 2), key=cost)
    return best if cost(best) < pairs else None


def _near_any(hashes: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """(N,) bool: which of `hashes` are within `distance` bits of any of `others`."""
    near = np.zeros(len(hashes), bool)
    bands = _bands(distance, len(hashes) + len(others), len(hashes) * len(others))
    if bands is None:
        step = max(1, _PAIRS // len(others))
        for start in range(0, len(hashes), step):
            part = slice(start, start + step)
            near[part] = (np.bitwise_count(hashes[part, None] ^ others) <= distance).any(axis=1)
        return near
    for keys in _band_keys(np.concatenate([hashes, others]), distance, bands):
        wanted, (found, order) = keys[: len(hashes)], _sorted(keys[len(hashes) :])
        left = np.flatnonzero(~near)
        at = np.searchsorted(found, wanted[left])
        while len(left):
            same = at < len(found)
            same[same] = found[at[same]] == wanted[left[same]]
            left, at = left[same], at[same]
            hit = np.bitwise_count(hashes[left] ^ others[order[at]]) <= distance
            near[left[hit]] = True
            left, at = left[~hit], at[~hit] + 1
    return near


def _near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """(2, n) positions of later and earlier hashes that are within `distance` bits, found in the cheapest way."""
    bands = _bands(distance, len(hashes), len(hashes) ** 2 / 2)
    if bands is None:
        yield from _pairs_by_brute_force(hashes, distance)
    else:
        yield from _pairs_by_bands(hashes, distance, bands)


def _pairs_by_brute_force(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    block = max(1, _PAIRS // max(1, len(hashes)))
    for start in range(0, len(hashes), block):
        part = hashes[start : start + block]
        near = np.bitwise_count(part[:, None] ^ hashes[None, : start + len(part)]) <= distance
        later, earlier = np.nonzero(near)
        later += start
        yield np.stack([later, earlier])[:, earlier < later]


def _pairs_by_bands(hashes: np.ndarray, distance: int, bands: int) -> Iterator[np.ndarray]:
    """Some pairs come more than once."""
    for band in _band_keys(hashes, distance, bands):
        keys, order = _sorted(band)
        starts = np.flatnonzero(keys[1:] == keys[:-1])
        step = 1
        while len(starts):
            earlier, later = order[starts], order[starts + step]
            near = np.bitwise_count(hashes[earlier] ^ hashes[later]) <= distance
            if near.any():
                yield np.stack([later[near], earlier[near]])
            step += 1
            starts = starts[starts + step < len(keys)]
            starts = starts[keys[starts] == keys[starts + step]]


def _band_keys(hashes: np.ndarray, distance: int, bands: int) -> Iterator[np.ndarray]:
    """Keys below 2^32, one set after another: hashes within `distance` bits are equal in at least one of the sets.

    Multi-index hashing (Norouzi, Punjani, Fleet, CVPR 2012): if two hashes differ by d bits, one of `bands` bands of
    theirs differs by at most d // bands, and with those bits masked out the bands are equal.
    """
    for first in range(bands):
        places = range(first, 64, bands)  # not neighbours, since neighbouring frequencies are alike
        band = np.zeros(len(hashes), np.uint64)
        for to, place in enumerate(places):
            band |= (hashes >> np.uint64(place) & np.uint64(1)) << np.uint64(to)
        for masked in combinations(range(len(places)), distance // bands):
            yield band & np.uint64(2**32 - 1 - sum(1 << bit for bit in masked))


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys below 2^32 in order, the first of equal ones first, and the positions that they come from."""
    packed = np.sort(keys << np.uint64(32) | np.arange(len(keys), dtype=np.uint64))
    return packed >> np.uint64(32), (packed & np.uint64(2**32 - 1)).astype(np.int64)
