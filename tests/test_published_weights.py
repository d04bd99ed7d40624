"""Published weights: only the file that a metric's name stands for is loaded under that name."""

import hashlib
import logging

import pytest
import safetensors.torch
import torch
from torch import nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.extractor_registry import EXTRACTORS, open_extractor
from pyoco_pipeline.evaluation.published.weights import Published, check_weights, fill, load_state_dict

CONTENT = b"hello\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_BLOB = "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object` of CONTENT


@pytest.fixture
def path(tmp_path):
    (tmp_path / "weights.pt").write_bytes(CONTENT)
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("pin", [{"sha256": SHA256}, {"git_blob": GIT_BLOB}])
def test_the_published_file_is_known_by_its_hash(path, pin):
    weights = check_weights(path, Published("weights.pt", "them", **pin))
    assert weights.verified is True
    assert weights.sha256 == SHA256


@pytest.mark.parametrize("pin", [{"sha256": "0" * 64}, {"git_blob": "0" * 40}])
def test_another_file_is_refused_unless_it_is_allowed_and_then_marked(path, pin):
    published = Published("weights.pt", "them", **pin)
    with pytest.raises(UserError, match=r"weights\.pt has the hash .*allow_other_weights"):
        check_weights(path, published)
    assert check_weights(path, published, allow_other_weights=True).verified is False


def test_a_file_without_a_known_hash_is_taken_and_its_hash_is_printed(path, caplog):
    with caplog.at_level(logging.WARNING):
        assert check_weights(path, Published("weights.pt", "them")).verified is None
    assert SHA256 in caplog.text


def test_a_hash_that_the_user_asks_for_is_compared_even_where_other_weights_are_allowed(path):
    with pytest.raises(UserError, match="was asked for"):
        check_weights(
            path, Published("weights.pt", "them"), expected_sha256="1" * 64, allow_other_weights=True
        )
    assert check_weights(path, Published("w", "them"), expected_sha256=SHA256.upper()).sha256 == SHA256


def test_a_missing_file_is_named_with_what_belongs_there(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt cannot be read .* give the path of published\.pt"):
        check_weights(tmp_path / "absent.pt", Published("published.pt", "them"))


def opened(path):
    return check_weights(path, Published("weights.pt", "them"))


@pytest.mark.parametrize("wrapped", ["", "module", "state_dict"])
def test_state_dicts_are_read_wrapped_or_not(tmp_path, wrapped):
    state = {"weight": torch.ones(2)}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "a.pth")
    torch.testing.assert_close(load_state_dict(opened(tmp_path / "a.pth")), state)


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_state_dict(opened(tmp_path / "a.safetensors"))["weight"], torch.ones(2))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_file_that_is_cut_short_is_one_sentence(tmp_path, name, share):
    path = tmp_path / name
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="cut short") as error:
        load_state_dict(opened(path))
    assert "\n" not in str(error.value)


def test_code_in_a_pickle_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    torch.save({"weight": Evil()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="cannot be read as a state dict"):
        load_state_dict(opened(tmp_path / "a.pth"))


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds a list, not a state dict"):
        load_state_dict(opened(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(2, 3)}, r"it lacks bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, r"unknown more"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"other shapes: weight \(3, 2\) for \(2, 3\)"),
    ],
)
def test_weights_of_another_network_are_told_by_their_keys(path, state, message):
    with pytest.raises(UserError, match=message):
        fill(nn.Linear(3, 2), state, opened(path))


def test_an_unknown_extractor_is_answered_with_the_known_ones(path):
    with pytest.raises(UserError, match=r"no extractor 'i4d': take one of i3d_torchscript"):
        open_extractor("i4d", path)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_refuses_a_path_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match="nowhere"):
        open_extractor(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["i3d_torchscript", "i3d_tats", "inception_v3", "videomae_ssv2"])
def test_extractors_with_a_known_file_refuse_another_one(path, name):
    with pytest.raises(UserError, match="as published by"):
        open_extractor(name, path)


@pytest.mark.parametrize("name", ["i3d_torchscript", "i3d_tats", "c3d_ucf101", "inception_v3"])
def test_extractors_refuse_a_damaged_file_even_where_other_weights_are_allowed(path, name):
    with pytest.raises(UserError, match="cannot be read as"):
        open_extractor(name, path, allow_other_weights=True)


@pytest.mark.parametrize("name", ["i3d_torchscript", "i3d_tats", "c3d_ucf101", "inception_v3"])
def test_extractors_of_one_file_refuse_a_folder(tmp_path, name):
    with pytest.raises(UserError, match="is a folder: give the path of"):
        open_extractor(name, tmp_path)
