"""C3D: features and probabilities equal those of TGAN2's own Chainer code on the same random weights."""

import numpy as np
import pytest
import torch
from fixtures.random_weights import random_clips, random_weights
from published_files import random_state, reference

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.published.c3d import C3DNet

CLIPS = (2, 16, 48, 64)
MEAN = (100 + 20 * random_weights({"mean": (3, 16, 128, 171)})["mean"]).astype(np.float32)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = C3DNet()
    weights = random_state(shapes)
    weights["fc8.weight"] *= 0.005  # as the reference: else one class takes all of the probability
    return weights


@pytest.fixture(scope="module")
def npz_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("c3d") / "conv3d_deepnetA_ucf.npz"
    names = {"weight": "W", "bias": "b"}
    np.savez(path, **{f"{k.split('.')[0]}/{names[k.split('.')[1]]}": v.numpy() for k, v in state.items()})
    np.savez(path.with_name("mean2.npz"), mean=MEAN)
    yield path
    path.unlink()  # 300 MB


@pytest.fixture(scope="module")
def c3d(npz_file):
    return open_extractor("c3d_ucf101", npz_file)


@pytest.mark.slow  # 78 million weights
def test_features_equal_those_of_tgan2(c3d):
    expected = reference("c3d_ucf101")["fc7"]
    assert (expected > 0).mean() > 0.2
    np.testing.assert_allclose(c3d.features(random_clips(*CLIPS)), expected, atol=2e-5 * expected.max())


@pytest.mark.slow  # 78 million weights
def test_probabilities_equal_those_of_tgan2(c3d):
    found = c3d.probabilities(random_clips(*CLIPS))
    np.testing.assert_allclose(found, reference("c3d_ucf101")["prob"], atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow  # 78 million weights
def test_the_extractor_says_that_its_file_could_not_be_verified(c3d):
    assert (c3d.name, c3d.verified, c3d.dim) == ("c3d_ucf101", None, 4096)


@pytest.mark.slow  # 78 million weights
def test_a_state_dict_gives_the_same_network_as_the_npz(c3d, state, tmp_path):
    torch.save(state | {"mean": torch.from_numpy(MEAN)}, tmp_path / "c3d.pt")
    other = open_extractor("c3d_ucf101", tmp_path / "c3d.pt")
    for name, value in c3d._net.state_dict().items():
        assert torch.equal(value, other._net.state_dict()[name])
    assert torch.equal(c3d._net.mean, other._net.mean)


@pytest.mark.slow  # 78 million weights
def test_frames_become_bgr_with_their_corners_kept(c3d):
    clip = np.zeros((1, 16, 2, 2, 3), np.uint8)
    clip[..., 0, 0, :] = 10, 20, 30
    x = c3d.prepare(torch.from_numpy(clip))
    assert x.shape == (1, 3, 16, 112, 112)
    assert x[0, :, 5, 0, 0].tolist() == [30, 20, 10]
    assert x[0, :, 5, 0, -1].tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("frames", [15, 17])
def test_clips_of_another_length_are_refused(c3d, frames):
    with pytest.raises(ValueError, match=f"clips of 16 frames, not of {frames}"):
        c3d.features(random_clips(1, frames, 16, 16))


def test_weights_without_their_mean_are_refused(tmp_path):
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **{"conv1a/W": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"mean2\.npz is missing"):
        open_extractor("c3d_ucf101", tmp_path / "conv3d_deepnetA_ucf.npz")


def test_an_npz_of_objects_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", allow_pickle=True, **{"conv1a/W": np.array([object()])})
    with pytest.raises(UserError, match="cannot be read as npz arrays"):
        open_extractor("c3d_ucf101", tmp_path / "a.npz")


def test_an_npz_of_another_network_is_told_by_its_keys(tmp_path):
    np.savez(tmp_path / "a.npz", **{"conv1a/W": np.zeros((64, 3, 3, 3, 3), np.float32)})
    np.savez(tmp_path / "mean2.npz", mean=MEAN)
    with pytest.raises(UserError, match=r"lacks conv1a\.bias, conv2a\.bias and 19 more"):
        open_extractor("c3d_ucf101", tmp_path / "a.npz")


@pytest.mark.parametrize("mean", [{"other": MEAN}, {"mean": MEAN[:, :1]}])
def test_another_mean_is_refused(tmp_path, mean):
    np.savez(tmp_path / "a.npz", **{"conv1a/W": np.zeros(3, np.float32)})
    np.savez(tmp_path / "mean2.npz", **mean)
    with pytest.raises(UserError, match=r"expected \(3, 16, 128, 171\)"):
        open_extractor("c3d_ucf101", tmp_path / "a.npz")
