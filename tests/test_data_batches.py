"""Training batches: what step k trains on is a function of (seed, k)."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_batches, train_settings

from pyoco_pipeline.data import clip_writing
from pyoco_pipeline.data.batches import BatchOptions, ClipBatches, to_float, to_uint8
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embeddings
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.errors import UserError

CPU = torch.device("cpu")
FRAMES = 3


def numbered(folder, num: int) -> tuple[ClipStore, TextEmbeddings]:
    """Clips whose pixels and whose caption's embedding say which clip, and whose pixels say which frame."""
    items = []
    for i in range(num):
        video = np.full((FRAMES, 2, 2, 3), i, np.uint8)
        video[..., 1] = np.arange(FRAMES)[:, None, None]
        items.append(CaptionedClip(Clip(str(i), video), f"clip {i}", "train"))
    write_clips(folder / "clips", items, kind="test", shape=(FRAMES, 2, 2), fps=8.0)
    captions = ["", *(item.caption for item in items)]
    tokens = torch.arange(-1.0, num)[:, None, None].expand(-1, 2, 4).contiguous()
    mask = torch.ones(num + 1, 2, dtype=torch.bool)
    write_embeddings(folder / "text", captions, tokens, mask, encoder="none", encoder_sha256="e")
    return ClipStore(folder / "clips"), TextEmbeddings(folder / "text")


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    return numbered(tmp_path_factory.mktemp("ten"), 10)


def batches(source, **changes) -> ClipBatches:
    defaults = {"batch_size": 4, "image_share": 0.0, "caption_dropout": 0.0, "seed": 0}
    return ClipBatches(*source, BatchOptions(**(defaults | changes)))


def shown(batch) -> list[int]:
    """Which clips a batch shows."""
    return to_uint8(batch.x0)[:, 0, 0, 0, 0].tolist()


def said(batch) -> list[int]:
    """Which clips' captions a batch says, -1 for the empty one."""
    return batch.cond["encoder_hidden_states"][:, 0, 0].int().tolist()


def test_a_step_of_videos_has_whole_clips_with_their_captions(ten):
    batch = batches(ten).batch(0, CPU)

    assert batch.x0.shape == (4, 3, FRAMES, 2, 2)
    assert (batch.x0.dtype, batch.x0.min() >= -1, batch.x0.max() <= 1) == (torch.float32, True, True)
    assert said(batch) == shown(batch)
    assert to_uint8(batch.x0)[:, :, 0, 0, 1].tolist() == [list(range(FRAMES))] * 4


def test_a_step_of_images_has_as_many_frames_as_a_step_of_videos_each_of_its_own_clip(ten):
    batch = batches(ten, image_share=1.0, batch_size=3).batch(0, CPU)

    assert batch.x0.shape == (3 * FRAMES, 3, 1, 2, 2)
    assert said(batch) == shown(batch)
    assert len(set(shown(batch))) == 9


def test_images_are_of_every_frame(ten):
    source = batches(ten, image_share=1.0)
    frames = Counter(i for k in range(30) for i in to_uint8(source.batch(k, CPU).x0)[:, 0, 0, 0, 1].tolist())

    # 360 draws of 3 frames: each count is 120 ± 8.9; six standard deviations leave less than 1e-8 to chance.
    assert frames.keys() == set(range(FRAMES))
    assert all(abs(count - 120) < 54 for count in frames.values())


@pytest.mark.parametrize("image_share", [0.0, 0.3, 1.0])
def test_a_batch_depends_on_seed_and_step_alone(ten, image_share):
    changes = {"image_share": image_share, "caption_dropout": 0.5}
    walked, jumped = batches(ten, **changes), batches(ten, **changes)
    walk = [walked.batch(k, CPU) for k in range(8)]
    for k in (7, 2, 5):
        torch.manual_seed(k)
        batch = jumped.batch(k, CPU)
        assert torch.equal(batch.x0, walk[k].x0)
        assert all(torch.equal(value, walk[k].cond[name]) for name, value in batch.cond.items())

    other = batches(ten, seed=1, **changes)
    assert any(shown(other.batch(k, CPU)) != shown(walk[k]) for k in range(8))


@given(
    batch_size=st.integers(1, 25),
    image_share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_every_epoch_visits_every_clip_once(ten, batch_size, image_share, seed):
    source = batches(ten, batch_size=batch_size, image_share=image_share, seed=seed)
    for image_steps in (False, True):
        steps = [k for k in range(40) if source.is_image_step(k) == image_steps]
        visited = [i for k in steps for i in shown(source.batch(k, CPU))]
        for start in range(0, len(visited) - 9, 10):
            assert sorted(visited[start : start + 10]) == list(range(10))


def test_epochs_are_in_different_orders(ten):
    source = batches(ten, batch_size=10)
    orders = {tuple(shown(source.batch(k, CPU))) for k in range(5)}

    assert len(orders) == 5


@given(share=st.floats(0, 1), steps=st.integers(1, 300))
def test_image_steps_are_spread_evenly(share, steps):
    source = ClipBatches.__new__(ClipBatches)
    source.options = BatchOptions(1, image_share=share)
    images = np.cumsum([source.is_image_step(k) for k in range(steps)])

    # After any number of steps, as many are of images as the share says, rounded down.
    assert (images == [int((k + 1) * share) for k in range(steps)]).all()


def test_the_share_of_captions_replaced_by_the_empty_one(ten):
    source = batches(ten, caption_dropout=0.2, batch_size=10)
    dropped = sum(said(source.batch(k, CPU)).count(-1) for k in range(200))

    # Binomial(2000, 0.2): 400 ± 17.9; six standard deviations leave less than 1e-8 to chance.
    assert abs(dropped - 400) < 107


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True})])
def test_caption_dropout_of_nothing_and_of_everything(ten, share, expected):
    source = batches(ten, caption_dropout=share)

    assert {row == -1 for k in range(10) for row in said(source.batch(k, CPU))} == expected


def test_training_batches_hold_training_clips_alone(digits_store, digits_embeddings):
    source = make_batches(digits_store, digits_embeddings, train_settings())

    visited = {tuple(x.flatten().tolist()) for k in range(3) for x in source.batch(k, CPU).x0}
    train = {tuple(x.flatten().tolist()) for x in to_float(torch.from_numpy(digits_store.videos("train")))}
    assert source.batch(0, CPU).x0.shape == (4, 3, 4, 8, 8)
    assert visited == train  # twelve clips in three steps of four


def test_a_caption_that_was_not_embedded_is_refused(ten, digits_store):
    with pytest.raises(UserError, match=r"no embedding of the caption .* Run `ingest` anew"):
        batches((digits_store, ten[1]))


def test_stored_pixels_survive_the_way_to_floats_and_back():
    video = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256, 1).expand(2, 3, 4, 256, 3)

    assert torch.equal(to_uint8(to_float(video)), video)
    assert to_float(video).shape == (2, 3, 3, 4, 256)
    assert to_uint8(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_seeds_of_different_purpose_do_not_meet():
    seeds = [mix_seed(seed, step, use) for seed in range(10) for step in range(50) for use in range(4)]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_of_a_batch_are_the_batch(ten):
    for changes in ({}, {"image_share": 1.0}, {"lanes": 2}, {"caption_dropout": 0.5}):
        whole = batches(ten, **changes).batch(3, CPU)
        for parts in (1, 2, 4):
            source = batches(ten, **changes)
            found = [source.batch(3, CPU, (i, parts)) for i in range(parts)]
            assert torch.equal(torch.cat([part.x0 for part in found]), whole.x0)
            for name, value in whole.cond.items():
                assert torch.equal(torch.cat([part.cond[name] for part in found]), value)


def test_a_part_reads_only_the_groups_of_its_lanes(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 2)
    source = ClipBatches(*numbered(tmp_path, 32), BatchOptions(4, caption_dropout=0.0, lanes=2))
    source.batch(0, CPU, (1, 2))
    first, second = source._videos.walks[0]

    assert not first.reader._read
    assert len(second.reader._read) == 8
    assert {shown for k in range(8) for shown in shown_of(source, k)} == set(range(32))


def shown_of(source: ClipBatches, step: int) -> list[int]:
    return shown(source.batch(step, CPU))


def test_a_batch_that_does_not_split_is_a_value_error(ten):
    with pytest.raises(ValueError, match="a batch of 4 can't be split into 3 equal parts"):
        batches(ten).batch(0, CPU, (0, 3))
    with pytest.raises(ValueError, match="a batch of 4 can't be split over 3 lanes"):
        batches(ten, lanes=3)


def test_clips_of_several_sizes_are_never_in_one_batch_and_all_are_seen(tmp_path):
    sizes = {(2, 2): 7, (2, 4): 4}
    items = []
    for (height, width), num in sizes.items():
        for i in range(num):
            video = np.full((FRAMES, height, width, 3), 10 * width + i, np.uint8)
            items.append(CaptionedClip(Clip(f"{width}-{i}", video), f"clip {i}", "train"))
    write_clips(tmp_path / "clips", items, kind="test", shape=(FRAMES, 2, 2), fps=8.0, sizes=[(2, 4)])
    _, text = numbered(tmp_path / "other", 7)
    source = ClipBatches(ClipStore(tmp_path / "clips"), text, BatchOptions(3, caption_dropout=0.0))
    seen = Counter(i for k in range(66) for i in shown(source.batch(k, CPU)))

    assert {source.batch(k, CPU).x0.shape[-2:] for k in range(11)} == {(2, 2), (2, 4)}
    # 198 clips over 11: each is seen 18 times, give or take the epoch that is under way.
    assert seen.keys() == {20 + i for i in range(7)} | {40 + i for i in range(4)}
    assert max(abs(count - 18) for count in seen.values()) <= 2


def test_image_steps_take_the_stores_images_where_it_has_some(tmp_path):
    clips, text = numbered(tmp_path, 4)
    images = [
        CaptionedClip(Clip(f"image {i}", np.full((1, 2, 2, 3), 100 + i, np.uint8)), f"clip {i}", "train")
        for i in range(3)
    ]
    write_clips(tmp_path / "both", [*clips.take(), *images], kind="test", shape=(FRAMES, 2, 2), fps=8.0)
    store = ClipStore(tmp_path / "both")
    source = ClipBatches(store, text, BatchOptions(2, image_share=0.5, caption_dropout=0.0))

    assert (store.manifest.counts, store.manifest.images) == ({"train": 4}, 3)
    assert source.batch(0, CPU).x0.shape == (2, 3, FRAMES, 2, 2)
    assert source.batch(1, CPU).x0.shape == (2 * FRAMES, 3, 1, 2, 2)
    assert set(shown(source.batch(1, CPU))) == {100, 101, 102}
    assert set(shown(source.batch(0, CPU))) <= set(range(4))


def test_a_clip_of_several_captions_says_each_of_them(tmp_path):
    clips, text = numbered(tmp_path, 5)
    items = [CaptionedClip(item.clip, "clip 0", "train", ("clip 3", "clip 4")) for item in clips.take()[:1]]
    write_clips(tmp_path / "several", items, kind="test", shape=(FRAMES, 2, 2), fps=8.0)
    source = ClipBatches(ClipStore(tmp_path / "several"), text, BatchOptions(1, caption_dropout=0.0))
    said_by_step = Counter(said(source.batch(k, CPU))[0] for k in range(300))

    # Each of three captions 100 ± 8.2 times.
    assert said_by_step.keys() == {0, 3, 4}
    assert max(abs(count - 100) for count in said_by_step.values()) < 49


def test_clips_carry_their_frame_rate_where_the_network_asks_for_it(tmp_path):
    clips, text = numbered(tmp_path, 4)
    items = [
        CaptionedClip(Clip(str(i), item.clip.video, fps=None if i == 0 else 2.0 * i), item.caption, "train")
        for i, item in enumerate(clips.take())
    ]
    write_clips(tmp_path / "rates", items, kind="test", shape=(FRAMES, 2, 2), fps=8.0)
    source = ClipBatches(
        ClipStore(tmp_path / "rates"), text, BatchOptions(4, caption_dropout=0.0, with_fps=True)
    )
    batch = source.batch(0, CPU)

    assert dict(zip(shown(batch), batch.cond["fps"].tolist(), strict=True)) == {
        0: 8.0,
        1: 2.0,
        2: 4.0,
        3: 6.0,
    }


def test_what_is_drawn_in_decoding_does_not_depend_on_the_parts(ten):
    def noisy(stored, generator):
        return to_float(stored) + torch.randn(to_float(stored).shape, generator=generator)

    def source():
        return ClipBatches(*ten, BatchOptions(4, caption_dropout=0.0), decode=noisy)

    whole = source().batch(5, CPU).x0
    assert torch.equal(torch.cat([source().batch(5, CPU, (i, 2)).x0 for i in range(2)]), whole)
    assert not torch.equal(whole, source().batch(6, CPU).x0)


def test_the_memory_of_the_shuffle_is_bounded_over_all_sizes_and_kinds_of_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 4)
    items = [
        CaptionedClip(Clip(f"{w}-{i}", np.full((FRAMES, 2, w, 3), i, np.uint8)), f"clip {i % 8}", "train")
        for w in (2, 3, 4, 5)
        for i in range(64)
    ]
    write_clips(
        tmp_path / "sizes", items, kind="test", shape=(FRAMES, 2, 2), fps=8.0, sizes=[(2, 3), (2, 4), (2, 5)]
    )
    _, text = numbered(tmp_path, 8)
    store = ClipStore(tmp_path / "sizes")
    source = ClipBatches(store, text, BatchOptions(2, image_share=0.5, buffer=64))
    walks = [walk for kind in (source._videos, source._images) for lanes in kind.walks for walk in lanes]
    for step in range(60):
        source.batch(step, CPU)
    held = sum(walk.reader.groups[group].rows for walk in walks for group in walk.reader._read)

    # Twice the buffer, and two groups of four for each of eight walks.
    assert held <= 2 * 64 + 8 * 2 * 4
    largest = FRAMES * 2 * 5 * 3
    small = ClipBatches(store, text, BatchOptions(2, buffer=10**6, buffer_mb=1))
    assert sum(lanes[0].order.buffer for lanes in small._videos.walks) <= 10**6 // largest


def test_few_clips_are_seen_equally_often_from_all_lanes(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 10)
    source = ClipBatches(*numbered(tmp_path, 30), BatchOptions(2, caption_dropout=0.0, lanes=2))
    seen = Counter(i for k in range(60) for i in shown(source.batch(k, CPU)))

    assert set(seen.values()) == {4}


def test_a_store_that_is_written_anew_ends_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_writing, "SHARD_ROWS", 2)
    store, text = numbered(tmp_path, 16)
    source = ClipBatches(store, text, BatchOptions(2, buffer=2))
    source.batch(0, CPU)
    clips = store.take()
    for path in store.folder.iterdir():
        path.unlink()
    write_clips(store.folder, clips, kind="test", shape=(FRAMES, 2, 2), fps=8.0)

    with pytest.raises(UserError, match="was written anew while it was read"):
        [source.batch(k, CPU) for k in range(8)]
