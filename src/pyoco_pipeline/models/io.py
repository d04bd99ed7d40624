"""Model folders: safetensors and JSON in diffusers' own layout; nothing is pickled.

<folder>/unet/{config.json, diffusion_pytorch_model.safetensors}    the image UNet, loadable by diffusers
<folder>/temporal.safetensors, temporal.json                       only for a video model: modules, options
<folder>/conditioning.safetensors                                  only where numbers are embedded
<folder>/lora.safetensors, lora.json                               only with low-rank additions, which unet/ is without
<folder>/stage.json                                                what the weights were trained for
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.models.conditioning import SCALARS, widen_conv_in
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.inflation import VideoUNet, options_dict
from pyoco_pipeline.models.inflation_options import InflationOptions
from pyoco_pipeline.models.trainable import LoraOptions, add_lora, lora_options, lora_state, without_lora

Options = TypeVar("Options", InflationOptions, LoraOptions)

_CLASSES = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
_MEND = "Put the file back, or run the pipeline that made it again."
# Of files that are not what they should be, and of settings that diffusers can't build a network from.
_UNLOADABLE = (OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class StageInfo:
    """What weights were trained for, kept beside them; sampling and resuming are checked against it.

    noise: the prior's configuration, {"name": ..., "alpha": ...}; shape: (frames, height, width); sigma_data: of the
    loss, and of EDM's parametrisation; data_sha256: of the clips; text_encoder_sha256: of the encoder whose embeddings
    condition it; parametrisation: its configuration, {"kind": ...}; sigma_range: the noise levels that an expert was
    trained on, None for infinity; autoencoder_sha256: of the one whose latents it was trained on, None for pixels;
    condition: what it is given of a clip, {"kind": ...}, None for nothing; fps: of its clips, frames per second;
    frame_by_frame: whether it was trained on images alone, and its temporal modules not at all; clips: the folder or
    URL that it was trained on, None for what ingest makes.
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
    parametrisation: dict[str, Any] = field(default_factory=lambda: {"kind": "edm"})
    sigma_range: tuple[float, float | None] = (0.0, None)
    autoencoder_sha256: str | None = None
    condition: dict[str, Any] | None = None
    fps: float | None = None
    frame_by_frame: bool = False
    clips: str | None = None

    @property
    def is_image_model(self) -> bool:
        """Whether it is of an image model, and not of a stage of the cascade."""
        return self.stage == "image"


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_image_model(folder: str | Path) -> ImageUNet:
    """Load a diffusers UNet from its folder, or from the `unet` folder of a pipeline.

    Raises UserError when it is not a diffusers folder, of another class, or its weights do not fit its configuration.
    """
    return load_network(image_config(folder).parent, _CLASSES)


def image_config(folder: str | Path) -> Path:
    """The configuration of the UNet in `folder`, or in its `unet` folder; UserError where there is none."""
    folder = Path(folder)
    for config in (folder / "unet" / "config.json", folder / "config.json"):
        if config.is_file():
            return config
    raise UserError(
        f"{folder} is not a diffusers model folder: neither config.json nor unet/config.json is in it."
    )


def load_network(folder: Path, classes: dict[str, Any]) -> Any:
    """Load the diffusers network in `folder`, of the class among `classes` that its config.json names.

    Raises UserError for another class, for a key that the class does not know, and for weights that do not fit.
    """
    config = folder / "config.json"
    content = read_json(config)
    name = content.get("_class_name")
    if name not in classes:
        needed = f"one of {', '.join(classes)}" if len(classes) > 1 else next(iter(classes))
        raise UserError(f"{config} is of class {name}; {needed} is needed.")
    known = inspect.signature(classes[name].__init__).parameters
    for key, value in content.items():  # diffusers would leave the key out and go on
        if not key.startswith("_") and key not in known and value is not None:
            raise UserError(
                f"{config} has {key}={value!r}, which is no setting of diffusers' {name}: remove it."
            )
    try:
        model, info = classes[name].from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except _UNLOADABLE as error:
        raise UserError(f"{folder}: the weights can't be loaded: {in_one_line(error)}. {_MEND}") from error
    problems = {key: value for key, value in info.items() if key != "error_msgs" and value}
    if problems:
        key, names = next(iter(problems.items()))
        raise UserError(
            f"{folder}: {len(names)} {key.replace('_', ' ')} in the weights, first {next(iter(names))}. {_MEND}"
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
    """Write a video model into `folder`; `load_video_model` gives it back bit for bit.

    Low-rank additions are kept beside the weights, not merged into them, so that nothing is rounded and `unet/` stays
    the image model that they were trained on. `merge_lora` merges them.
    """
    folder = Path(folder)
    with without_lora(model):
        save_image_model(model.image_model, folder, info)
    _save_weights(folder / "temporal.safetensors", model.temporal.state_dict())
    _save_options(folder / "temporal.json", options_dict(model))
    _save_weights(folder / "conditioning.safetensors", model.conditioning.state_dict())
    lora = lora_options(model)
    _save_weights(folder / "lora.safetensors", lora_state(model))
    _save_options(folder / "lora.json", asdict(lora) if lora else None)


def load_video_model(folder: str | Path, *, concat_channels: int = 0, noise_level: bool = False) -> VideoUNet:
    """Load what `save_video_model` wrote. Raises UserError naming what is missing or does not fit.

    concat_channels, noise_level: inputs that a stage needs (`InflationOptions`). A model without them gets them, with
    zero weights, so that it stays the same function; one with other concat_channels is an error.
    """
    folder = Path(folder)
    path = folder / "temporal.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no video model: temporal.json is missing. Run `inflate` first.")
    saved, image_model = _read_options(path, InflationOptions), load_image_model(folder)
    options = replace(saved, noise_level=saved.noise_level or noise_level)
    if concat_channels and not saved.concat_channels:
        widen_conv_in(image_model, concat_channels)
        options = replace(options, concat_channels=concat_channels)
    elif concat_channels not in (0, saved.concat_channels):
        raise UserError(
            f"{folder} takes {saved.concat_channels} concatenated channels, and this stage gives {concat_channels}: "
            "start it from a model without, or from a stage of its own kind."
        )
    model = VideoUNet(image_model, options)
    _load_weights(folder / "temporal.safetensors", model.temporal, "temporal")
    extra = folder / "conditioning.safetensors"
    known = nn.ModuleDict({name: model.conditioning[name] for name in SCALARS if getattr(saved, name)})
    if known or extra.exists():
        _load_weights(extra, known, "conditioning")
    if (folder / "lora.json").exists():
        add_lora(model, _read_options(folder / "lora.json", LoraOptions))
        _load_lora(folder / "lora.safetensors", model)
    elif (folder / "lora.safetensors").exists():
        raise UserError(
            f"{folder / 'lora.safetensors'} is there without lora.json, which says rank and alpha."
        )
    return model


def check_video_model(folder: str | Path) -> None:
    """UserError where files of the video model in `folder` are missing or cut short; their weights are not read."""
    folder = Path(folder)
    unet, options = image_config(folder).parent, folder / "temporal.json"
    if not options.is_file():
        raise UserError(f"{folder} holds no video model: temporal.json is missing. Train the stage anew.")
    saved = _read_options(options, InflationOptions)
    weights = [folder / "temporal.safetensors"]
    weights += [folder / "conditioning.safetensors"] * any(getattr(saved, name) for name in SCALARS)
    weights += [folder / "lora.safetensors"] * (folder / "lora.json").is_file()
    _check_weights([*_unet_weights(unet), *weights], "train the stage anew")


def check_image_model(folder: str | Path) -> None:
    """As `check_video_model`, of an image model."""
    _check_weights(_unet_weights(image_config(folder).parent), "run `pretrain_image` anew")


def _unet_weights(unet: Path) -> list[Path]:
    return sorted(unet.glob("*.safetensors")) or [unet / "diffusion_pytorch_model.safetensors"]


def _check_weights(paths: Iterable[Path], mend: str) -> None:
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing: {mend}, or put its folder back.")
        try:
            with safe_open(path, "pt"):  # whose header says how long the file is
                pass
        except _UNLOADABLE as error:
            raise UserError(f"{path} can't be read ({in_one_line(error)}): put the file back.") from error


def _save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    if state or path.name == "temporal.safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        path.unlink(missing_ok=True)  # of a model that was saved there before


def _save_options(path: Path, options: dict[str, Any] | None) -> None:
    if options is not None:
        path.write_text(json.dumps(options, indent=2) + "\n")
    else:
        path.unlink(missing_ok=True)


def _read_options(path: Path, kind: type[Options]) -> Options:
    content = read_json(path)
    names = [field.name for field in fields(kind)]
    unknown = sorted(content.keys() - set(names))
    if unknown:
        raise UserError(f"{path} has the unknown key {unknown[0]}; it knows {', '.join(names)}.")
    try:
        return kind(**content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _load_weights(path: Path, module: torch.nn.Module, kind: str) -> None:
    try:
        module.load_state_dict(load_file(path))
    except _UNLOADABLE as error:
        raise UserError(
            f"{path}: the {kind} weights can't be loaded: {in_one_line(error)}. {_MEND}"
        ) from error


def _load_lora(path: Path, model: VideoUNet) -> None:
    own = lora_state(model)
    try:
        stored = load_file(path)
        for word, names in (
            ("Missing", own.keys() - stored.keys()),
            ("Unexpected", stored.keys() - own.keys()),
        ):
            if names:
                raise RuntimeError(f"{word} key: {min(names)}")
        with torch.no_grad():
            model.image_model.load_state_dict(stored, strict=False)
    except _UNLOADABLE as error:
        raise UserError(f"{path}: the LoRA weights can't be loaded: {in_one_line(error)}. {_MEND}") from error


def load_stage_info(folder: str | Path) -> StageInfo:
    """What the weights in `folder` were trained for; UserError when it does not say."""
    path = Path(folder) / "stage.json"
    if not path.is_file():
        raise UserError(
            f"{folder} does not say what it was trained for: stage.json is missing. Train the stage first."
        )
    content = read_json(path)
    try:
        tuples: dict[str, Any] = {
            key: tuple(content[key]) for key in ("shape", "sigma_range") if key in content
        }
        return StageInfo(**(content | tuples))
    except TypeError as error:  # a key that is missing or unknown, a shape that is none
        raise UserError(
            f"{path} is not what a stage was trained for ({error}): put the file back, or train the stage anew."
        ) from error


def _save_info(folder: Path, info: StageInfo | None) -> None:
    if info is not None:
        (folder / "stage.json").write_text(json.dumps(asdict(info), indent=2) + "\n")


def read_json(path: Path, mend: str = "write it anew") -> dict[str, Any]:
    """The content of a JSON file of names with values; UserError, which says `mend`, where it is something else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): it was cut short or edited; {mend}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not names with values: {mend}.")
    return content


def weights_sha256(model: torch.nn.Module) -> str:
    """Digest of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
