"""Which parts of a video model are trained: the others have no gradient, no optimiser state, and do not change."""

import copy
import dataclasses
import re

import pytest
import torch
from architectures import CROSS_ATTENTION, clips, conditions, make
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import make_unet, make_video_unet, perturb, stage_info, text_condition, train_settings

from pyoco_pipeline.config import LoraSettings, StageSettings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import (
    LoraOptions,
    choose_trainable,
    inflate,
    load_image_model,
    load_video_model,
    merge_lora,
    save_video_model,
)
from pyoco_pipeline.models.trainable import add_lora, lora_options, lora_state, without_lora
from pyoco_pipeline.training.checkpoint import CheckpointFolder
from pyoco_pipeline.training.optimizer import parameter_groups
from pyoco_pipeline.training.stages import train_video_model

TIMESTEP = torch.tensor([3.0, 700.0])
PARTS = ("all", "temporal", "temporal+cross_attention", "lora")


def chosen(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def answer(model, frames=3):
    x = clips(make_unet(), frames)
    return model(x, TIMESTEP, **text_condition(2)).sample


def lora_model():
    """A video model whose low-rank additions are no longer zero."""
    model = make_video_unet()
    torch.manual_seed(0)
    add_lora(model, LoraOptions(rank=2, alpha=3.0))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    return model.eval()


def test_settings_of_the_stage_are_the_options_of_low_rank_additions():
    assert LoraSettings().model_dump() == dataclasses.asdict(LoraOptions())


@pytest.mark.parametrize("part", PARTS)
def test_a_step_changes_what_is_trained_and_nothing_else(part):
    model = make_video_unet()
    choose_trainable(model, part, LoraOptions(rank=2))
    trained = chosen(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(model, {"temporal": 10})
    optimizer = torch.optim.AdamW([p for group in groups for p in group["params"]], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        answer(model).square().mean().backward()
        optimizer.step()

    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained
    assert len(optimizer.state) == len(trained)


def test_the_parts_are_what_they_are_called():
    model = make_video_unet()
    everything = set(dict(model.named_parameters()))
    temporal = {name for name in everything if name.startswith("temporal.")}
    for part, expected in (("all", everything), ("temporal", temporal)):
        choose_trainable(model, part)
        assert chosen(model) == expected

    choose_trainable(model, "temporal+cross_attention")
    crossing = {name for name in everything if ".attn2." in name}
    assert crossing
    assert chosen(model) == temporal | crossing

    choose_trainable(model, "lora")
    additions = chosen(model) - temporal
    assert additions
    assert all(".lora_A." in name or ".lora_B." in name for name in additions)


@pytest.mark.parametrize("name", CROSS_ATTENTION)
def test_cross_attention_is_what_text_reaches(name):
    model = inflate(make(name))
    perturb(model.temporal)
    choose_trainable(model, "temporal+cross_attention")
    crossing = {n for n in chosen(model) if n.startswith("image_model.")}
    cond, x = conditions(model.image_model, 2), clips(model.image_model, 2)
    model(x, TIMESTEP, **cond).sample.square().mean().backward()

    assert crossing
    for n, parameter in model.named_parameters():
        if n in crossing and "norm_cross.bias" not in n and not n.endswith(("to_k.bias", "add_k_proj.bias")):
            assert parameter.grad.abs().max() > 0, n  # a key's bias changes no softmax
    projections = r".*\.(attn2\.to_[kv]|add_[kv]_proj)\.weight"
    assert {n for n, _ in model.named_parameters() if re.fullmatch(projections, n)} <= crossing


def test_new_input_channels_and_embeddings_train_in_every_part():
    for part in PARTS:
        model = inflate(make_unet(), concat_channels=2, fps=True)
        choose_trainable(model, part)
        new = {
            n for n, _ in model.named_parameters() if n.startswith(("conditioning.", "image_model.conv_in."))
        }
        assert new <= chosen(model)


def test_a_choice_can_be_taken_back():
    model = make_video_unet()
    choose_trainable(model, "temporal")
    choose_trainable(model, "all")

    assert chosen(model) == set(dict(model.named_parameters()))


@torch.no_grad()
@pytest.mark.parametrize("name", CROSS_ATTENTION)
def test_new_low_rank_additions_change_nothing(name):
    model = inflate(make(name))
    cond, x = conditions(model.image_model, 2), clips(model.image_model, 2)
    before = model(x, TIMESTEP, **cond).sample
    add_lora(model, LoraOptions(rank=3))

    torch.testing.assert_close(model(x, TIMESTEP, **cond).sample, before, atol=1e-5, rtol=0)
    adapted = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in lora_state(model)}
    assert {"to_q", "0"} <= adapted


@torch.no_grad()
def test_low_rank_additions_are_a_product_of_two_thin_matrices():
    model = lora_model()
    name, layer = next((n, m) for n, m in model.image_model.named_modules() if hasattr(m, "lora_A"))
    x = torch.randn(5, layer.in_features)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    assert a.shape[0] == b.shape[1] == 2, name
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3.0 / 2 * x @ a.T @ b.T)


@torch.no_grad()
def test_low_rank_additions_come_back_bit_for_bit_beside_an_untouched_image_model(tmp_path):
    model = lora_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_video_model(model, tmp_path, stage_info())
    loaded = load_video_model(tmp_path).eval()

    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )  # saving is no change
    assert loaded.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())
    assert lora_options(loaded) == LoraOptions(2, 3.0)
    assert torch.equal(answer(loaded), answer(model))

    parent = make_unet().state_dict()
    stored = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet").state_dict()
    assert stored.keys() == parent.keys()
    assert all(torch.equal(stored[key], parent[key]) for key in parent)
    assert load_image_model(tmp_path).state_dict().keys() == parent.keys()


@torch.no_grad()
def test_merged_additions_give_the_same_and_leave_the_image_models_own_names(tmp_path):
    model = lora_model()
    before = answer(model)
    merge_lora(model)

    assert model.image_model.state_dict().keys() == make_unet().state_dict().keys()
    torch.testing.assert_close(answer(model), before, atol=1e-5, rtol=1e-5)
    assert lora_options(model) is None
    save_video_model(lora_model(), tmp_path)
    save_video_model(model, tmp_path)  # over a model with additions
    assert not list(tmp_path.glob("lora.*"))
    assert torch.equal(answer(load_video_model(tmp_path).eval()), answer(model))


@torch.no_grad()
def test_a_copy_of_a_model_has_additions_of_its_own():
    model = lora_model()
    copied = copy.deepcopy(model)
    before = answer(copied)
    for parameter in model.parameters():
        parameter.zero_()

    assert torch.equal(answer(copied), before)


@torch.no_grad()
def test_without_its_additions_a_model_is_the_parent_and_has_them_back_after():
    model, parent = lora_model(), make_video_unet()
    before = answer(model)
    with without_lora(model):
        assert torch.equal(answer(model), answer(parent))

    assert torch.equal(answer(model), before)
    assert not torch.allclose(before, answer(parent), atol=1e-3)


def test_additions_that_a_model_has_are_trained_on_and_others_refused():
    model = lora_model()
    before = {key: value.clone() for key, value in lora_state(model).items()}
    choose_trainable(model, "lora", LoraOptions(2, 3.0))

    assert all(torch.equal(value, before[key]) for key, value in lora_state(model).items())
    with pytest.raises(UserError, match=r"rank=2, alpha=3\.0.*rank=4"):
        choose_trainable(model, "lora", LoraOptions(4, 3.0))


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "cut", "gone"])
def test_low_rank_weights_that_do_not_fit_are_refused(tmp_path, change):
    save_video_model(lora_model(), tmp_path)
    path = tmp_path / "lora.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    if change == "missing":
        del tensors[first]
    elif change == "extra":
        tensors["conv_in.weight"] = torch.zeros(8, 3, 3, 3)
    elif change == "shape":
        tensors[first] = torch.zeros(3, 3)
    save_file(tensors, path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "gone":
        path.unlink()

    with pytest.raises(UserError, match="LoRA weights can't be loaded") as error:
        load_video_model(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_low_rank_weights_without_their_rank_are_refused(tmp_path):
    save_video_model(lora_model(), tmp_path)
    (tmp_path / "lora.json").unlink()

    with pytest.raises(UserError, match=r"without lora\.json"):
        load_video_model(tmp_path)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0.0}, {"alpha": float("inf")}])
def test_ranks_and_alphas_that_are_none_are_refused(options):
    with pytest.raises(UserError, match=f"lora.{next(iter(options))}="):
        LoraOptions(**options)


def test_parts_that_a_model_lacks_are_refused():
    with pytest.raises(UserError, match="UNet2DModel has no cross-attention"):
        choose_trainable(inflate(make("ddpm_cifar10")), "temporal+cross_attention")
    plain = inflate(make("ddpm_cifar10", down_block_types=4 * ("DownBlock2D",), up_block_types=4 * ("UpBlock2D",),
                         add_attention=False))  # fmt: skip
    with pytest.raises(UserError, match="no attention to put low-rank additions on"):
        choose_trainable(plain, "lora")


@pytest.mark.parametrize("part", PARTS)
def test_a_stage_trains_its_part_and_keeps_the_rest(digits_store, digits_embeddings, tmp_path, part):
    start = make_video_unet()
    save_video_model(start, tmp_path / "init")
    settings = StageSettings(
        trainable=part,
        lora={"rank": 2, "alpha": 2.0},
        train=train_settings(
            steps=3,
            image_share=0.0 if part == "temporal" else 0.3,
            lr_scale={"temporal": 2},
            gradient_checkpointing=True,
        ),
    )
    model, info, _ = train_video_model(
        "base", settings, tmp_path / "init", digits_store, digits_embeddings, tmp_path / "checkpoints"
    )
    save_video_model(model, tmp_path / "trained", info)

    with without_lora(model):
        now = model.state_dict()
    before = start.state_dict()
    assert now.keys() == before.keys()
    moved = {key for key in before if not torch.equal(now[key].cpu(), before[key])}
    kept = {"all": set(), "temporal": {"image"}, "temporal+cross_attention": set(), "lora": {"image"}}[part]
    assert any(key.startswith("temporal.") for key in moved)
    assert any(key.startswith("image_model.") for key in moved) == (not kept)
    snapshot = CheckpointFolder(tmp_path / "checkpoints", 2).newest()
    assert {int(key.split(".")[0]) for key in snapshot.optimizer} == set(range(len(chosen(model))))
    loaded = load_video_model(tmp_path / "trained").state_dict()
    assert all(torch.equal(value.cpu(), loaded[key]) for key, value in model.state_dict().items())


def test_images_are_refused_where_nothing_trains_on_them(digits_store, digits_embeddings, tmp_path):
    save_video_model(make_video_unet(), tmp_path / "init")
    settings = StageSettings(trainable="temporal", train=train_settings(image_share=0.3))

    with pytest.raises(UserError, match=r"trainable=temporal .*train\.image_share=0\.3: set it to 0"):
        train_video_model("base", settings, tmp_path / "init", digits_store, digits_embeddings, tmp_path)


@pytest.mark.parametrize(
    ("part", "frames"),
    [(part, frames) for part in PARTS for frames in (1, 3) if (part, frames) != ("temporal", 1)],
)
def test_channels_last_gives_the_same_gradients_behind_frozen_layers(part, frames):
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = make_video_unet()
        torch.manual_seed(0)
        choose_trainable(model, part, LoraOptions(rank=2))
        model.to(memory_format=memory_format)
        answer(model, frames).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_run_that_trains_another_part_is_another_run(digits_store, digits_embeddings, tmp_path):
    save_video_model(make_video_unet(), tmp_path / "init")

    def run(part):
        settings = StageSettings(trainable=part, train=train_settings(steps=1, warmup_steps=0))
        train_video_model(
            "base", settings, tmp_path / "init", digits_store, digits_embeddings, tmp_path / "checkpoints"
        )

    run("temporal")
    with pytest.raises(UserError, match="trainable=temporal, this run has trainable="):
        run("all")


def test_recomputing_does_not_change_what_a_stage_learns(digits_store, digits_embeddings, tmp_path):
    save_video_model(make_video_unet(), tmp_path / "init")
    weights = []
    for recomputing in (False, True):
        settings = StageSettings(train=train_settings(steps=3, gradient_checkpointing=recomputing))
        checkpoints = tmp_path / f"checkpoints-{recomputing}"
        model, _, _ = train_video_model(
            "base", settings, tmp_path / "init", digits_store, digits_embeddings, checkpoints
        )
        weights.append(model.state_dict())

    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-5, rtol=1e-5)
