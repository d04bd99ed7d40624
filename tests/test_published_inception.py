"""Inception-v3 for FID: features and logits equal torch-fidelity's on the same random weights."""

import numpy as np
import pytest
import torch
from fixtures.random_weights import random_clips
from published_files import random_state, reference

from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.published.inception import InceptionV3

SHAPES = {"small": (1, 1, 40, 56), "large": (1, 1, 330, 310)}


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    net = InceptionV3()
    # The published file counts batches as well: 566 entries.
    assert len(net.state_dict()) == 566
    torch.save(net.state_dict() | random_state(net), path)
    return open_extractor("inception_v3", path, allow_other_weights=True, batch_size=2)


@pytest.mark.parametrize("name", SHAPES)
def test_features_equal_those_of_torch_fidelity(inception, name):
    expected = reference("inception_v3")[f"{name}_2048"]
    np.testing.assert_allclose(
        inception.features(random_clips(*SHAPES[name])), expected, atol=2e-5 * expected.max()
    )


def test_logits_and_probabilities_equal_those_of_torch_fidelity(inception):
    stored, clips = reference("inception_v3"), random_clips(*SHAPES["small"])
    expected = stored["small_logits"]
    np.testing.assert_allclose(inception.logits(clips), expected, atol=2e-5 * np.abs(expected).max())
    unbiased = torch.from_numpy(stored["small_logits_unbiased"]).softmax(dim=1).numpy()
    np.testing.assert_allclose(inception.probabilities(clips), unbiased, atol=1e-5)


def test_the_frames_of_one_clip_come_after_another(inception):
    clips = random_clips(2, 2, 16, 16)
    features = inception.features(clips)
    assert features.shape == (4, 2048)
    np.testing.assert_allclose(features[2], inception.features(clips[1:, :1])[0], rtol=1e-4, atol=1e-5)
