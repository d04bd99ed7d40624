"""Training batches: what step k trains on is a function of (seed, k)."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_batches, train_settings

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches, to_float, to_uint8
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore, write_clips
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
