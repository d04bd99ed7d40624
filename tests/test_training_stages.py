"""The two kinds of stage: an image model on frames, and a video model from an inflated one."""

import pytest
from diffusers import UNet2DModel
from test_training_trainer import same_weights
from tiny import TEXT_DIM, make_video_unet, train_settings

from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_image_model, save_video_model
from pyoco_pipeline.training.stages import train_image_model, train_video_model

UNET = {
    "block_out_channels": (8, 16),
    "attention_levels": (False, True),
    "attention_heads": 2,
    "norm_groups": 4,
}


def image_settings(**changes) -> PretrainImageSettings:
    return PretrainImageSettings(
        **({"init": "scratch", "unet": UNET, "train": train_settings(steps=3)} | changes)
    )


def test_an_image_stage_trains_a_new_model_on_frames(digits_store, digits_embeddings, tmp_path):
    model, info, history = train_image_model(image_settings(), digits_store, digits_embeddings, tmp_path)

    assert (info.stage, info.noise["name"], info.steps) == ("image", "iid", 3)
    assert info.data_sha256 == digits_store.manifest.sha256
    assert info.text_encoder_sha256 == digits_embeddings.encoder_sha256
    assert model.config.cross_attention_dim == TEXT_DIM
    assert history[-1]["step"] == 3


def test_a_video_stage_says_which_prior_it_was_trained_with(digits_store, digits_embeddings, tmp_path):
    start = make_video_unet(trained=False)
    save_video_model(start, tmp_path / "init")
    settings = StageSettings(
        noise={"kind": "mixed", "alpha": 1.0}, train=train_settings(steps=3, image_share=0.3)
    )
    arguments = (
        "base",
        settings,
        tmp_path / "init",
        digits_store,
        digits_embeddings,
        tmp_path / "checkpoints",
    )
    model, info, _ = train_video_model(*arguments)

    assert info.noise == {"name": "mixed", "alpha": 1.0}
    assert info.shape == (4, 8, 8)
    assert not same_weights(model.temporal, start.temporal)


def test_text_of_another_width_than_the_models_is_refused(digits_store, digits_embeddings, tmp_path):
    save_video_model(make_video_unet(cross_attention_dim=12), tmp_path / "init")
    settings = StageSettings(train=train_settings())

    with pytest.raises(UserError, match=r"text tokens of width 12, .* have 8: set ingest\.text_encoder"):
        train_video_model("base", settings, tmp_path / "init", digits_store, digits_embeddings, tmp_path)


def test_a_model_that_projects_its_text_is_matched_by_the_width_it_projects_from(
    digits_store, digits_embeddings, tmp_path
):
    config = {"cross_attention_dim": 12, "encoder_hid_dim": TEXT_DIM, "encoder_hid_dim_type": "text_proj"}
    save_video_model(make_video_unet(**config), tmp_path / "init")
    settings = StageSettings(train=train_settings(steps=1, warmup_steps=0))
    _, info, _ = train_video_model(
        "base", settings, tmp_path / "init", digits_store, digits_embeddings, tmp_path / "checkpoints"
    )

    assert info.steps == 1


def test_a_model_without_text_is_refused(digits_store, digits_embeddings, tmp_path):
    image_model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    save_image_model(image_model, tmp_path / "image")

    with pytest.raises(UserError, match="takes no text"):
        train_image_model(
            image_settings(init=str(tmp_path / "image")), digits_store, digits_embeddings, tmp_path
        )
