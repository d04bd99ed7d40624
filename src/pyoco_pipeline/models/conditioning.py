"""What a stage of the cascade sees besides noise and text: concatenated clips, noise level and frame rate.

All of it starts at zero: a network that was just given it equals the one before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.frame_by_frame import ImageUNet

_FEATURES = 128  # sines and cosines of a scalar


class ScalarEmbedding(nn.Module):
    """One number per image, embedded as an addition to the time embedding that is zero when new.

    width: of the time embedding. forward: (B,) in the timestep's range, about 0 to 1000, to (B, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(_FEATURES, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, value: Tensor) -> Tensor:
        features = get_timestep_embedding(value, _FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.out(F.silu(self.hidden(features.to(self.hidden.weight.dtype))))


# How each scalar is spread over the range that sines resolve.
SCALARS = {
    "noise_level": lambda level: (
        1000 * level
    ),  # of the noise augmentation (Imagen Video, sec. 2.5), in [0, 1]
    "fps": lambda fps: 250 * torch.log(fps),  # frames per second, 1 to 55 as 0 to 1000
}


def widen_conv_in(image_model: ImageUNet, channels: int) -> None:
    """Let `conv_in` take so many channels more, with zero weights, and say so in the model's configuration.

    Raises UserError for a model whose input has another use than `conv_in`.
    """
    if image_model.config.get("addition_embed_type") == "image_hint":
        raise UserError(
            "inflate.concat_channels does not go with addition_embed_type=image_hint, which concatenates its hint."
        )
    skips = [type(block).__name__ for block in image_model.down_blocks if hasattr(block, "skip_conv")]
    if skips:
        raise UserError(
            f"inflate.concat_channels does not go with down_block_types={skips[0]}, which takes RGB beside conv_in."
        )
    old = image_model.conv_in
    new: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, old.in_channels + channels, old.out_channels, old.kernel_size, old.stride, old.padding,
        bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if new.bias is not None:
            new.bias.copy_(old.bias)
    image_model.conv_in = new
    image_model.register_to_config(in_channels=new.in_channels)


def low_resolution_channels(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """A clip (B, C, T, h, w) scaled up frame by frame to (height, width) `size`, bilinearly: (B, C, T, H, W)."""
    images = F.interpolate(clip.transpose(1, 2).flatten(0, 1), size, mode="bilinear", align_corners=False)
    return images.unflatten(0, (clip.shape[0], clip.shape[2])).transpose(1, 2)


def key_frame_channels(clip: Tensor, is_key: Tensor) -> Tensor:
    """The key frames of a clip (B, C, T, H, W), zero elsewhere, and a channel that is 1 on them: (B, C+1, T, H, W).

    is_key: (B, T) bool.
    """
    mask = is_key[:, None, :, None, None].to(clip.dtype).expand(-1, 1, -1, *clip.shape[3:])
    return torch.cat((clip * mask, mask), dim=1)
