"""Model folders: safetensors and JSON in diffusers' own layout; nothing is pickled.

<folder>/unet/{config.json, diffusion_pytorch_model.safetensors}    the image UNet, loadable by diffusers
<folder>/temporal.safetensors, temporal.json                       only for a video model
<folder>/stage.json                                                what the weights were trained for
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.inflation import ImageUNet, VideoUNet, inflate, options_dict

_CLASSES = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}


@dataclass(frozen=True)
class StageInfo:
    """What weights were trained for, kept beside them; sampling and resuming are checked against it.

    noise: the prior's configuration, {"name": ..., "alpha": ...}; shape: (frames, height, width); sigma_data: of the
    EDM parametrisation; data_sha256: of the clips; text_encoder_sha256: of the encoder whose embeddings condition it.
    """

    stage: str
    noise: dict[str, Any]
    sigma_data: float
    shape: tuple[int, int, int]
    data_sha256: str
    text_encoder_sha256: str
    steps: int
    seed: int
    torch: str  # version
    device: str  # name


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_image_model(folder: str | Path) -> ImageUNet:
    """Load a diffusers UNet from its folder, or from the `unet` folder of a pipeline.

    Raises UserError when it is not a diffusers folder, of another class, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    unet = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config = unet / "config.json"
    if not config.is_file():
        raise UserError(
            f"{folder} is not a diffusers model folder: neither config.json nor unet/config.json is in it."
        )
    name = _read_json(config).get("_class_name")
    if name not in _CLASSES:
        raise UserError(f"{config} is of class {name}; one of {', '.join(_CLASSES)} is needed.")
    try:
        model, info = _CLASSES[name].from_pretrained(
            unet,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{unet}: the weights can't be loaded: {_in_one_line(error)}") from error
    problems = {key: value for key, value in info.items() if key != "error_msgs" and value}
    if problems:
        key, names = next(iter(problems.items()))
        raise UserError(
            f"{unet}: {len(names)} {key.replace('_', ' ')} in the weights, first {next(iter(names))}."
        )
    return model


def save_image_model(model: ImageUNet, folder: str | Path, info: StageInfo | None = None) -> None:
    """Write an image UNet, and what it was trained for, into `folder`."""
    folder = Path(folder)
    model.register_to_config(
        _name_or_path=""
    )  # else diffusers keeps the path that the weights once came from
    model.save_pretrained(folder / "unet", safe_serialization=True)
    _save_info(folder, info)


def save_video_model(model: VideoUNet, folder: str | Path, info: StageInfo | None = None) -> None:
    """Write a video model into `folder`; `load_video_model` gives it back bit for bit."""
    folder = Path(folder)
    save_image_model(model.image_model, folder, info)
    save_file({key: value.contiguous() for key, value in model.temporal.state_dict().items()},
              folder / "temporal.safetensors")  # fmt: skip
    (folder / "temporal.json").write_text(json.dumps(options_dict(model), indent=2) + "\n")


def load_video_model(folder: str | Path) -> VideoUNet:
    """Load what `save_video_model` wrote. Raises UserError naming what is missing or does not fit."""
    folder = Path(folder)
    options = folder / "temporal.json"
    if not options.is_file():
        raise UserError(f"{folder} holds no video model: temporal.json is missing. Run `inflate` first.")
    model = inflate(load_image_model(folder), **_read_json(options))
    weights = folder / "temporal.safetensors"
    try:
        model.temporal.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{weights}: the temporal weights can't be loaded: {_in_one_line(error)}") from error
    return model


def load_stage_info(folder: str | Path) -> StageInfo:
    """What the weights in `folder` were trained for; UserError when it does not say."""
    path = Path(folder) / "stage.json"
    if not path.is_file():
        raise UserError(
            f"{folder} does not say what it was trained for: stage.json is missing. Train the stage first."
        )
    content = _read_json(path)
    return StageInfo(**(content | {"shape": tuple(content["shape"])}))


def _save_info(folder: Path, info: StageInfo | None) -> None:
    if info is not None:
        (folder / "stage.json").write_text(json.dumps(asdict(info), indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): it was cut short or edited; write it anew."
        ) from error


def _in_one_line(error: Exception) -> str:
    # The first line of torch's errors is a heading, the second says what is wrong.
    return shorten(" ".join(str(error).strip().splitlines()[:2]), 300)


def weights_sha256(model: torch.nn.Module) -> str:
    """Digest of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
