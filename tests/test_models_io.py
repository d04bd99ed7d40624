"""Model folders: lossless, readable by diffusers, and refused in one sentence when something is wrong with them."""

import json
import re
import shutil

import pytest
import torch
from architectures import NAMES, make
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import make_unet, make_video_unet, stage_info

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    inflate,
    load_image_model,
    load_stage_info,
    load_video_model,
    save_image_model,
    save_video_model,
    shipped,
)
from pyoco_pipeline.models.io import sha256_of, weights_sha256

ASSETS = shipped.FOLDER.parent
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MIB = 2**20


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A video model and the folder it was saved in."""
    model, folder = make_video_unet(), tmp_path_factory.mktemp("model")
    save_video_model(model, folder, stage_info())
    return model, folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder to break."""
    return shutil.copytree(saved[1], tmp_path / "model")


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def one_sentence(error: pytest.ExceptionInfo, path) -> str:
    """The message, which names the path and is one line for people."""
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def rewrite(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without_first(tensors) -> None:
    del tensors[min(tensors)]


def with_extra(tensors) -> None:
    tensors["surplus.weight"] = torch.zeros(2)


def with_wrong_shape(tensors) -> None:
    tensors[min(tensors)] = torch.zeros(3, 1, 4)


def test_a_video_model_comes_back_bit_for_bit(saved):
    model, folder = saved
    loaded = load_video_model(folder)

    assert_same_weights(loaded, model)
    assert loaded.options == model.options
    assert weights_sha256(loaded) == weights_sha256(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_keep_their_bits(tmp_path, dtype):
    save_image_model(make_unet().to(dtype), tmp_path)
    stored = load_file(tmp_path / WEIGHTS)

    assert {value.dtype for value in stored.values()} == {dtype}
    loaded = load_image_model(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name].to(dtype)) for name, value in stored.items())


def test_diffusers_itself_loads_the_image_model(saved):
    model, folder = saved

    assert_same_weights(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), model.image_model)


def test_a_model_is_found_in_its_own_folder_and_in_a_pipelines(saved):
    _, folder = saved

    assert_same_weights(load_image_model(folder / "unet"), load_image_model(folder))


def test_what_a_stage_was_trained_for_comes_back(saved):
    assert load_stage_info(saved[1]) == stage_info()


def test_a_saved_config_does_not_tell_where_its_weights_came_from(saved, tmp_path):
    save_image_model(load_image_model(saved[1]), tmp_path)

    assert str(saved[1]) not in (tmp_path / "unet" / "config.json").read_text()


def test_nothing_is_pickled(saved):
    assert {path.suffix for path in saved[1].rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a diffusers model folder") as error:
        load_image_model(tmp_path)
    one_sentence(error, tmp_path)


def test_a_model_of_another_class_is_refused(tmp_path):
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path)

    with pytest.raises(
        UserError, match="is of class AutoencoderKL; one of UNet2DModel, UNet2DConditionModel"
    ) as error:
        load_image_model(tmp_path)
    one_sentence(error, tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(without_first, "missing keys"), (with_extra, "unexpected keys"), (with_wrong_shape, "size mismatch")],
)
def test_image_weights_that_do_not_fit_their_config_are_refused(folder, change, complaint):
    rewrite(folder / WEIGHTS, change)

    with pytest.raises(UserError, match=complaint) as error:
        load_image_model(folder)
    one_sentence(error, folder)


@pytest.mark.parametrize("change", [without_first, with_extra, with_wrong_shape])
def test_temporal_weights_that_do_not_fit_are_refused(folder, change):
    rewrite(folder / "temporal.safetensors", change)

    with pytest.raises(UserError, match="temporal weights can't be loaded") as error:
        load_video_model(folder)
    one_sentence(error, folder)


@pytest.mark.parametrize("name", [WEIGHTS, "temporal.safetensors"])
@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_were_cut_short_are_refused(folder, name, length):
    path = folder / name
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(UserError, match="can't be loaded") as error:
        load_video_model(folder)
    one_sentence(error, folder)


@pytest.mark.parametrize("name", [WEIGHTS, "temporal.safetensors"])
def test_missing_weights_are_refused(folder, name):
    (folder / name).unlink()

    with pytest.raises(UserError, match="can't be loaded") as error:
        load_video_model(folder)
    one_sentence(error, folder)


@pytest.mark.parametrize("name", ["unet/config.json", "temporal.json", "stage.json"])
def test_json_that_was_cut_short_is_refused(folder, name):
    path = folder / name
    path.write_text(path.read_text()[:20])

    with pytest.raises(UserError, match="is not JSON") as error:
        load_stage_info(folder), load_video_model(folder)
    one_sentence(error, path)


@pytest.mark.parametrize("value", ["[]", "3", "null", '"text"'])
@pytest.mark.parametrize("name", ["unet/config.json", "temporal.json"])
def test_json_of_another_kind_is_refused(folder, name, value):
    (folder / name).write_text(value)

    with pytest.raises(UserError, match="not names with values") as error:
        load_video_model(folder)
    one_sentence(error, folder / name)


def rewrite_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"flow": True}, "unknown key flow; it knows convolution, attention,"),
        ({"convolution": 1}, r"inflate\.convolution=1 is not a possible value"),
        ({"position": "learned"}, r"inflate\.position='learned'"),
        ({"attention_levels": "all"}, r"inflate\.attention_levels='all'"),
    ],
)
def test_options_of_inflation_that_are_none_are_refused(folder, changes, complaint):
    rewrite_json(folder / "temporal.json", **changes)

    with pytest.raises(UserError, match=complaint) as error:
        load_video_model(folder)
    one_sentence(error, folder / "temporal.json")


@pytest.mark.parametrize("changes", [{"attention": False}, {"attention_levels": [1], "convolution": False}])
def test_temporal_weights_of_other_options_are_refused(folder, changes):
    rewrite_json(folder / "temporal.json", **changes)

    with pytest.raises(UserError, match=r"temporal weights can't be loaded: .*Unexpected key") as error:
        load_video_model(folder)
    one_sentence(error, folder / "temporal.safetensors")


def test_options_that_were_saved_before_there_were_more_mean_what_they_meant(saved, folder):
    (folder / "temporal.json").write_text('{"convolution": true, "attention": true, "head_dim": 0}')

    assert_same_weights(load_video_model(folder), saved[0])


def test_a_setting_that_diffusers_would_drop_is_refused_by_its_name(folder):
    rewrite_json(folder / "unet" / "config.json", motion_max_seq_length=32)

    with pytest.raises(
        UserError, match="has motion_max_seq_length=32, which is no setting of diffusers'"
    ) as error:
        load_video_model(folder)
    one_sentence(error, folder / "unet" / "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["DownBlock2D", "NoBlock2D"]},
        {"block_out_channels": [8]},
        {"block_out_channels": "wide"},
        {"norm_num_groups": 3},
        {"norm_num_groups": 0},
        {"cross_attention_dim": [8, "x"]},
    ],
)
def test_settings_that_make_no_network_are_refused(folder, changes):
    rewrite_json(folder / "unet" / "config.json", **changes)

    with pytest.raises(UserError, match="can't be loaded") as error:
        load_video_model(folder)
    one_sentence(error, folder / "unet")


def test_weights_with_the_names_of_diffusers_first_attention_are_taken(tmp_path):
    model = make("ddpm_cifar10")
    save_image_model(model, tmp_path)
    names = {
        "group_norm": "group_norm",
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }

    def rename(tensors) -> None:
        for key in [key for key in tensors if ".attentions." in key]:
            block, name = re.fullmatch(r"(.*\.attentions\.\d+)\.(.*)\.\w+", key).groups()
            tensors[f"{block}.{names[name]}.{key.rsplit('.', 1)[-1]}"] = tensors.pop(key)

    rewrite(tmp_path / WEIGHTS, rename)

    assert_same_weights(load_image_model(tmp_path), model)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_comes_back_with_its_whole_configuration(tmp_path, name):
    model = inflate(make(name), position="relative", max_frames=4)
    save_video_model(model, tmp_path)
    loaded = load_video_model(tmp_path)

    assert_same_weights(loaded, model)
    for key, value in model.image_model.config.items():
        if not key.startswith("_"):
            assert json.dumps(loaded.image_model.config[key]) == json.dumps(value), key


def test_an_image_model_is_not_taken_for_a_video_model(tmp_path):
    save_image_model(make_unet(), tmp_path)

    with pytest.raises(UserError, match=r"temporal\.json is missing"):
        load_video_model(tmp_path)


def test_a_stage_that_does_not_say_what_it_was_trained_for_is_refused(folder):
    (folder / "stage.json").unlink()

    with pytest.raises(UserError, match=r"stage\.json is missing") as error:
        load_stage_info(folder)
    one_sentence(error, folder)


@pytest.fixture(scope="module")
def shipped_inputs():
    """Kind and size of the clips, and the text encoder, that the shipped model was trained with."""
    info = load_stage_info(shipped.FOLDER)
    return "moving_digits", info.shape[1:], info.text_encoder_sha256


def test_the_shipped_model_loads_in_float32_and_denoises(shipped_inputs):
    model = shipped.load_shipped(*shipped_inputs)
    with torch.no_grad():
        out = model(torch.randn(1, 3, 16, 16), torch.tensor([0.0]), torch.randn(1, 4, 384)).sample

    assert model.dtype == torch.float32
    assert out.isfinite().all()


def test_the_shipped_models_card_is_of_its_weights():
    card = json.loads((shipped.FOLDER / "card.json").read_text())

    assert card["sha256"] == sha256_of(shipped.FOLDER / WEIGHTS)
    assert card["parameters"] == sum(p.numel() for p in load_image_model(shipped.FOLDER).parameters())


def test_shipped_weights_that_are_not_those_of_the_card_are_refused(shipped_inputs, tmp_path, monkeypatch):
    copied = shutil.copytree(shipped.FOLDER, tmp_path / "digits_unet")
    data = bytearray((copied / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / WEIGHTS).write_bytes(data)
    monkeypatch.setattr(shipped, "FOLDER", copied)

    with pytest.raises(UserError, match="reinstall"):
        shipped.load_shipped(*shipped_inputs)


def test_the_shipped_model_is_refused_for_other_clips_and_another_encoder(shipped_inputs):
    kind, size, encoder = shipped_inputs

    with pytest.raises(UserError, match="is for clips moving_digits, found video_folder"):
        shipped.load_shipped("video_folder", size, encoder)
    with pytest.raises(UserError, match="is for height 16, found 8"):
        shipped.load_shipped(kind, (8, 8), encoder)
    with pytest.raises(UserError, match="is for text encoder"):
        shipped.load_shipped(kind, size, "another")


def test_packing_a_trained_model_writes_what_load_shipped_reads(shipped_inputs, tmp_path, monkeypatch):
    info = load_stage_info(shipped.FOLDER)
    model = make_unet(sample_size=16, cross_attention_dim=384)
    save_image_model(model, tmp_path / "trained", info)
    shipped.pack(tmp_path / "trained", tmp_path / "packed", "a command")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "packed")

    loaded = shipped.load_shipped(*shipped_inputs).state_dict()

    assert all(torch.equal(value.half().float(), loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "limit"), [("digits_unet", 4 * MIB), ("digits3d", 3 * MIB)])
def test_assets_stay_small(name, limit):
    assert sum(path.stat().st_size for path in (ASSETS / name).rglob("*") if path.is_file()) < limit
