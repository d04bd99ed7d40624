"""I3D: outputs equal TATS's own code on the same random weights; StyleGAN-V's file is called as StyleGAN-V calls it."""

import numpy as np
import pytest
import torch
from fixtures.random_weights import random_clips
from published_files import random_state, reference
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.published.i3d import InceptionI3d


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(random_state(InceptionI3d()), path)
    return path


@pytest.fixture(scope="module")
def i3d(i3d_file):
    return open_extractor("i3d_tats", i3d_file, allow_other_weights=True)


@pytest.mark.parametrize(("name", "shape"), [("frames16", (1, 16, 40, 56)), ("frames9", (1, 9, 60, 48))])
def test_outputs_equal_those_of_tats(i3d, name, shape):
    expected = reference("i3d_tats")[name]
    found = i3d.features(random_clips(*shape))
    assert found.shape == expected.shape == (1, 400)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_the_batch_norm_epsilon_of_pytorch_i3d_gives_other_outputs(i3d):
    other = InceptionI3d(eps=1e-3)
    other.load_state_dict(i3d._net.state_dict())
    x = i3d.prepare(torch.from_numpy(random_clips(1, 9, 60, 48)))
    expected = reference("i3d_tats")["frames9"]
    with torch.inference_mode():
        assert np.abs(other.eval()(x).numpy() - expected).max() > 1e-3 * np.abs(expected).max()


def test_other_weights_are_marked_in_the_name(i3d):
    assert (i3d.name, i3d.verified) == ("i3d_tats_other_weights", False)
    assert len(i3d.sha256) == 64
    assert i3d.media == "video"


def test_clips_are_squashed_to_224_and_scaled_to_one(i3d):
    x = i3d.prepare(torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 9, 30, 20, 1)[..., [0, 1, 0]])
    assert x.shape == (1, 3, 9, 224, 224)
    assert x[:, [0, 2]].unique().tolist() == [-1]
    torch.testing.assert_close(x[:, 1], torch.ones(1, 9, 224, 224))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((1, 8, 16, 16, 3), np.uint8), "at least 9 frames, not of 8"),
        (np.zeros((1, 16, 16, 16, 3), np.float32), "expected uint8"),
        (np.zeros((16, 16, 16, 3), np.uint8), "expected uint8"),
    ],
)
def test_clips_that_i3d_does_not_read_are_refused(i3d, bad, message):
    with pytest.raises(ValueError, match=message):
        i3d.features(bad)


def test_no_clips_give_no_features(i3d):
    assert i3d.features(np.zeros((0, 16, 8, 8, 3), np.uint8)).shape == (0, 400)


def test_weights_that_give_nan_are_told(tmp_path):
    state = random_state(InceptionI3d())
    state["Mixed_5c.b0.conv3d.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    extractor = open_extractor("i3d_tats", tmp_path / "nan.pt", allow_other_weights=True)
    with pytest.raises(UserError, match=r"not finite for 1 of 1 videos: the weights in .*nan\.pt"):
        extractor.features(random_clips(1, 9, 16, 16))


class Scripted(nn.Module):
    """The signature of i3d_torchscript.pt; what it gives tells how it was called."""

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.classes = classes

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        called = 1.0 * float(rescale) + 2.0 * float(resize) + 4.0 * float(return_features)
        means = x.float().mean(dim=[2, 3, 4])  # (N, 3)
        rest = torch.full([x.shape[0], self.classes - 3], called)
        return torch.cat([means, rest], dim=1)


class NotI3D(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def scripted_file(folder, net):
    torch.jit.save(torch.jit.script(net), folder / "i3d_torchscript.pt")
    return folder / "i3d_torchscript.pt"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_torchscript_file_gets_frames_up_to_255_channels_first_and_all_three_flags(tmp_path, batch_size):
    path = scripted_file(tmp_path, Scripted())
    extractor = open_extractor("i3d_torchscript", path, allow_other_weights=True, batch_size=batch_size)
    clips = random_clips(3, 16, 8, 12)
    features = extractor.features(clips)
    np.testing.assert_allclose(features[:, :3], clips.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert np.unique(features[:, 3:]).tolist() == [7.0]


def test_a_torchscript_file_of_another_network_is_one_sentence(tmp_path):
    path = scripted_file(tmp_path, NotI3D())
    extractor = open_extractor("i3d_torchscript", path, allow_other_weights=True)
    with pytest.raises(UserError, match="cannot be called as StyleGAN-V's I3D"):
        extractor.features(random_clips(1, 16, 8, 8))


def test_a_torchscript_file_of_other_classes_is_told_by_its_shape(tmp_path):
    path = scripted_file(tmp_path, Scripted(600))
    extractor = open_extractor("i3d_torchscript", path, allow_other_weights=True)
    with pytest.raises(UserError, match=r"outputs of shape \(1, 600\)"):
        extractor.features(random_clips(1, 16, 8, 8))


def test_a_torchscript_file_that_is_cut_short_is_told(tmp_path):
    path = scripted_file(tmp_path, Scripted())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut short"):
        open_extractor("i3d_torchscript", path, allow_other_weights=True)
