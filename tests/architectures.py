"""Image UNets with the block types and flags of published ones, narrow and random, and what each is conditioned on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

TEXT = 12  # width of text tokens
TOKENS = 3
ImageUNet = UNet2DModel | UNet2DConditionModel

CROSS_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
CROSS_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
SIMPLE_DOWN = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D")
SIMPLE_UP = ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
DEEPFLOYD: dict[str, Any] = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "attention_head_dim": 4,
    "block_out_channels": (8, 16, 16),
    "cross_attention_dim": 32,  # its group norm has 32 groups
    "cross_attention_norm": "group_norm",
    "down_block_types": SIMPLE_DOWN,
    "encoder_hid_dim": TEXT,
    "encoder_hid_dim_type": "text_proj",
    "in_channels": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_act_fn": "gelu",
    "up_block_types": SIMPLE_UP,
}

CONDITIONAL: dict[str, dict[str, Any]] = {
    "stable_diffusion_1_5": {
        "attention_head_dim": 2,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": CROSS_DOWN,
        "up_block_types": CROSS_UP,
        "layers_per_block": 2,
    },
    "stable_diffusion_2_1": {
        "attention_head_dim": (1, 2, 4, 4),
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": CROSS_DOWN,
        "up_block_types": CROSS_UP,
        "layers_per_block": 2,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "stable_diffusion_xl": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "attention_head_dim": (1, 2, 4),
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
        "transformer_layers_per_block": (1, 2, 3),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "use_linear_projection": True,
    },
    "stable_diffusion_x4_upscaler": {
        "attention_head_dim": 2,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": (True, True, False),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
    },
    "deepfloyd_if_1": DEEPFLOYD,
    "deepfloyd_if_2": DEEPFLOYD
    | {
        "class_embed_type": "timestep",
        "in_channels": 6,
        "mid_block_only_cross_attention": True,
        "only_cross_attention": (False, False, True),
        "resnet_out_scale_factor": 1.4142,
        "resnet_skip_time_act": True,
    },
    "class_projection": DEEPFLOYD
    | {
        "class_embed_type": "projection",
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": 5,
        "addition_embed_type": None,
    },
    "kandinsky_2_2": DEEPFLOYD
    | {
        "addition_embed_type": "image",
        "encoder_hid_dim": TEXT,
        "encoder_hid_dim_type": "image_proj",
    },
    "latent_upscaler": {
        "attention_head_dim": 8,
        "block_out_channels": (32, 32, 64, 64),  # groups of 32
        "conv_in_kernel": 1,
        "conv_out_kernel": 1,
        "down_block_types": ("KDownBlock2D", *3 * ("KCrossAttnDownBlock2D",)),
        "mid_block_type": None,
        "norm_num_groups": None,
        "time_cond_proj_dim": 7,
        "time_embedding_type": "fourier",
        "timestep_post_act": "gelu",
        "up_block_types": (*3 * ("KCrossAttnUpBlock2D",), "KUpBlock2D"),
    },
}

UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": {
        "attention_head_dim": None,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "layers_per_block": 2,
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "class_conditional": {
        "block_out_channels": (8, 16),
        "attention_head_dim": 4,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "num_class_embeds": 10,
        "resnet_time_scale_shift": "scale_shift",
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "score_sde_ve": {
        "attention_head_dim": None,
        "block_out_channels": (32, 32),  # its attention has 32 groups
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "mid_block_scale_factor": 1.4142,
        "time_embedding_type": "fourier",
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
}

NAMES = (*CONDITIONAL, *UNCONDITIONAL)
CROSS_ATTENTION = tuple(CONDITIONAL)


def make(name: str, seed: int = 0, **changes: Any) -> ImageUNet:
    """The tiny random model of a published one's shape, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in UNCONDITIONAL:
            common: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
            return UNet2DModel(**(common | UNCONDITIONAL[name] | changes)).eval()
        common = {
            "sample_size": 8, "in_channels": 4, "out_channels": 4,
            "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": TEXT,
        }  # fmt: skip
        return UNet2DConditionModel(**(common | CONDITIONAL[name] | changes)).eval()


def conditions(model: ImageUNet, batch: int, seed: int = 0) -> dict[str, Any]:
    """All that a model can be conditioned on, another for each of the batch, the second half of it masked."""
    config, draw = model.config, torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    cond: dict[str, Any] = {}
    if config.get("num_class_embeds"):
        cond["class_labels"] = torch.arange(batch) + 3
    if isinstance(model, UNet2DModel):
        return cond
    cond["encoder_hidden_states"] = normal(batch, TOKENS, TEXT)
    mask = torch.ones(batch, TOKENS, dtype=torch.bool)
    mask[batch // 2 :, -1] = False
    if config.encoder_hid_dim_type == "image_proj":
        cond["added_cond_kwargs"] = {"image_embeds": normal(batch, TEXT)}
    elif (
        config.mid_block_type != "UNetMidBlock2DSimpleCrossAttn" or not config.mid_block_only_cross_attention
    ):
        cond["encoder_attention_mask"] = mask  # which diffusers can't pass to added projections alone
    if config.addition_embed_type == "text_time":
        cond["added_cond_kwargs"] = {
            "text_embeds": normal(batch, 8),
            "time_ids": 100 * normal(batch, 6).abs(),
        }
    if config.class_embed_type == "timestep":
        cond["class_labels"] = torch.linspace(20.0, 300.0, batch)
    if config.class_embed_type == "projection":
        cond["class_labels"] = normal(batch, 5)
    if config.time_cond_proj_dim:
        cond["timestep_cond"] = normal(batch, config.time_cond_proj_dim)
    return cond


def clips(model: ImageUNet, frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Random clips (B, C, T, H, W) with as many channels as the model takes, 8x8, or 16x16 where four levels pad."""
    size = 16 if "KDownBlock2D" in model.config.down_block_types else 8
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.config.in_channels, frames, size, size, generator=draw)


def image_by_image(model: ImageUNet, x: Tensor, timestep: Tensor, **cond: Any) -> Tensor:
    """What the image model itself makes of every frame."""
    return torch.stack([model(frame, timestep, **cond).sample for frame in x.unbind(2)], dim=2)
