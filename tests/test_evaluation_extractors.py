"""The embedded feature extractors: what they read, and that their weights are the right ones."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from pyoco_pipeline.data.digits import plan_clips, render_clips
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import (
    CARD_FILE,
    CLASSES,
    WEIGHTS_FILE,
    Digits3DNet,
    load_digits3d,
    prepare,
    save_digits3d,
)
from pyoco_pipeline.evaluation.digits3d_training import augment, train_digits3d
from pyoco_pipeline.evaluation.extractors import Digits3D, Lite0, load_lite0
from pyoco_pipeline.evaluation.frechet import distance_of_statistics
from pyoco_pipeline.evaluation.scores import (
    caption_accuracy,
    clip_consistency,
    temporal_consistency,
    whole_caption_accuracy,
)
from pyoco_pipeline.evaluation.settings import Digits3DTraining
from pyoco_pipeline.evaluation.statistics import FeatureStatistics


@pytest.fixture(scope="module")
def lite0():
    return Lite0()


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """Untrained weights: right in form, meaningless in value."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("digits3d")
    save_digits3d(folder, Digits3DNet().state_dict(), {"name": "digits3d"})
    return folder


@pytest.fixture(scope="module")
def clips():
    return render_clips(plan_clips(6, "test"), num_frames=8, size=16)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("frames", [4, 8, 16])
def test_digits3d_reads_clips_of_any_size_and_length(size, frames):
    net = Digits3DNet().eval()
    x = prepare(render_clips(plan_clips(2, "train"), frames, size))
    assert x.shape == (2, 3, frames, 32, 32)
    assert x.min() >= -1
    assert x.max() <= 1
    assert net.features(x).shape == (2, 64)
    assert {k: v.shape[1] for k, v in net(x).items()} == {k: len(v) for k, v in CLASSES.items()}


def test_digits3d_tells_a_clip_from_its_reverse(clips):
    net, x = Digits3DNet().eval(), prepare(clips)
    assert (net.features(x) - net.features(x.flip(2))).abs().max() > 1e-4


def test_digits3d_weights_stay_below_three_megabytes(digits_folder):
    assert (digits_folder / WEIGHTS_FILE).stat().st_size < 3_000_000


def test_digits3d_refuses_clips_that_are_too_short_or_not_stored_ones():
    with pytest.raises(ValueError, match="3 frames"):
        Digits3DNet().features(torch.zeros(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="expected uint8"):
        prepare(torch.zeros(1, 8, 16, 16, 3))


def test_augmentation_keeps_shape_and_range(clips):
    x = prepare(clips)
    y = augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    torch.testing.assert_close(y, augment(x, torch.Generator().manual_seed(0)))


def test_digits3d_training_lowers_the_loss_and_writes_a_card(tmp_path, capsys):
    settings = Digits3DTraining(
        steps=10, batch_size=8, sizes=(16,), frames=(4,), planned_clips=64, test_clips=4, log_every=1
    )
    state, card = train_digits3d(settings)
    lines = capsys.readouterr().out.splitlines()
    colour = [float(line.split("colour ")[1].split()[0]) for line in lines]
    assert len(lines) == 10
    assert np.mean(colour[-3:]) < np.mean(colour[:3])
    assert set(card["accuracy"]) == {"16px_4frames", "32px_4frames", "64px_4frames"}
    assert {"steps", "seed", "parameters", "torch"} <= set(card)
    sha256 = save_digits3d(tmp_path, state, card)
    net, loaded = load_digits3d(tmp_path)
    assert loaded == sha256 == json.loads((tmp_path / CARD_FILE).read_text())["sha256"]
    torch.testing.assert_close(dict(net.state_dict()), state)


def test_digits3d_training_stops_when_its_time_is_up():
    settings = Digits3DTraining(
        steps=10**6, minutes=0.01, batch_size=4, sizes=(16,), frames=(8,), planned_clips=16, test_clips=4
    )
    _, card = train_digits3d(settings)
    assert card["steps"] < 100


def test_digits3d_weights_that_differ_from_their_card_are_refused(digits_folder, tmp_path):
    content = bytearray((digits_folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    (tmp_path / CARD_FILE).write_text((digits_folder / CARD_FILE).read_text())
    with pytest.raises(UserError, match=WEIGHTS_FILE):
        load_digits3d(tmp_path)


def test_digits3d_weights_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match=f"{WEIGHTS_FILE} is missing"):
        load_digits3d(tmp_path)


def test_digits3d_extractor_gives_features_and_probabilities(digits_folder, clips):
    extractor = Digits3D(digits_folder)
    assert extractor.features(clips.numpy()).shape == (6, extractor.dim)
    for name, p in extractor.probabilities(clips).items():
        assert p.shape == (6, len(CLASSES[name]))
        np.testing.assert_allclose(p.sum(axis=1), 1.0)


def test_lite0_loads_every_published_weight_and_recognises_photographs():
    net = load_lite0()  # strict: a key too many or too few raises
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    # Photographs of a temple with a tiered roof and of a flower.
    crops = [image[:, 106:533] for image in load_sample_images().images]
    x = Lite0.preprocess(torch.from_numpy(np.stack(crops)))
    best = net(x).topk(5).indices
    assert {442, 663} & set(best[0].tolist())  # bell cote, monastery
    x224 = torch.nn.functional.interpolate(torch.tensor(crops[1]).permute(2, 0, 1)[None].float(), (224, 224))
    assert net((x224 - 127) / 128).argmax() == 985  # daisy


def test_lite0_folded_batch_norms_change_nothing(lite0, clips):
    expected = load_lite0().features(Lite0.preprocess(clips[:2].flatten(0, 1)))
    np.testing.assert_allclose(lite0.features(clips[:2]), expected.numpy(), atol=1e-4)


def test_lite0_weights_of_another_sha256_are_refused_unread(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a state dict")
    with pytest.raises(UserError, match=r"weights\.pth has sha256"):
        load_lite0(path)


def test_lite0_distance_grows_with_noise(lite0):
    real = render_clips(plan_clips(32, "train"), num_frames=1, size=32)
    noise = torch.randn(real[16:].shape, generator=torch.Generator().manual_seed(0))
    reference = FeatureStatistics(lite0.dim).update(lite0.features(real[:16]))
    distances = []
    for strength in (0, 24):
        noisy = (real[16:] + strength * noise).clamp(0, 255).to(torch.uint8)
        distances.append(
            distance_of_statistics(FeatureStatistics(lite0.dim).update(lite0.features(noisy)), reference)
        )
    assert 2 * distances[0] < distances[1]


def test_importing_evaluation_brings_neither_sklearn_nor_transformers():
    code = (
        "import sys; import pyoco_pipeline.evaluation.evaluate; "
        "print([m for m in ('sklearn', 'transformers', 'kedro', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def perfect(attributes):
    return {
        name: np.eye(len(classes))[[classes.index(a[name]) for a in attributes]]
        for name, classes in CLASSES.items()
    }


def test_caption_accuracy_counts_what_is_read_as_captioned():
    rows = plan_clips(40, "test")
    attributes = [{name: row[name] for name in CLASSES} for row in rows.to_dict("records")]
    probabilities = perfect(attributes)
    for entry in caption_accuracy(probabilities, attributes).values():
        assert entry["value"] == 1.0
        assert entry["standard_error"] == 0.0
        assert entry["num"] == 40
    probabilities["digit"][:10] = np.roll(probabilities["digit"][:10], 1, axis=1)
    accuracy = caption_accuracy(probabilities, attributes)
    assert accuracy["digit"]["value"] == 0.75
    assert accuracy["digit"]["standard_error"] == pytest.approx((0.75 * 0.25 / 40) ** 0.5)
    assert accuracy["digit"]["chance"] == 0.1
    assert accuracy["colour"]["value"] == 1.0
    assert whole_caption_accuracy(probabilities, attributes)["value"] == 0.75


def test_caption_accuracy_names_a_clip_whose_attribute_is_unknown():
    attributes = [dict.fromkeys(CLASSES, "")]
    with pytest.raises(ValueError, match="clip 0 has digit ''"):
        caption_accuracy({"digit": np.full((1, 10), 0.1)}, attributes)


def test_temporal_consistency_is_one_for_frozen_and_zero_for_unrelated_frames():
    rng = np.random.default_rng(0)
    frozen = np.repeat(rng.normal(size=(3, 1, 64)), 5, axis=1)
    np.testing.assert_allclose(clip_consistency(frozen), 1.0)
    orthogonal = np.eye(6)[None]
    assert temporal_consistency(orthogonal) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_consistency(frozen[:, :1])
