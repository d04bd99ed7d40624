"""The image model that this package ships for the embedded data set, and how such a model is packed.

python -m pyoco_pipeline.models.shipped <folder of a trained image model> --command "<what trained it>"
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.inflation import ImageUNet
from pyoco_pipeline.models.io import load_image_model, load_stage_info, read_json, save_image_model, sha256_of

FOLDER = Path(__file__).parents[1] / "assets" / "digits_unet"
_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def load_shipped(kind: str, size: tuple[int, int], text_encoder_sha256: str) -> ImageUNet:
    """The shipped image model in float32, for clips of `kind` and (height, width) `size`.

    Raises UserError when clips or text encoder are not those it was made for.
    """
    card = read_json(FOLDER / "card.json", "reinstall")
    found = sha256_of(FOLDER / _WEIGHTS)
    if found != card["sha256"]:
        raise UserError(f"{FOLDER / _WEIGHTS} has sha256 {found}, its card says {card['sha256']}: reinstall.")
    info = load_stage_info(FOLDER)
    wanted = ("moving_digits", *info.shape[1:], info.text_encoder_sha256)
    given = (kind, *size, text_encoder_sha256)
    for name, expected, actual in zip(
        ("clips", "height", "width", "text encoder"), wanted, given, strict=True
    ):
        if expected != actual:
            raise UserError(
                f"pretrain_image.init=shipped is for {name} {expected}, found {actual}: set it to scratch or to a "
                "diffusers folder."
            )
    return load_image_model(FOLDER).float()


def pack(trained: Path, folder: Path, command: str) -> None:
    """Write the model of a pretrain_image run in half precision into `folder`, with a card."""
    info = load_stage_info(trained)
    model = load_image_model(trained).half()
    save_image_model(model, folder, info)
    card = {
        "command": command,
        "date": date.today().isoformat(),
        "torch": info.torch,
        "device": info.device,
        "seed": info.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": info.steps,
        "data_sha256": info.data_sha256,
        "sha256": sha256_of(folder / _WEIGHTS),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Pack a trained image model as the one that the package ships."
    )
    parser.add_argument("trained", type=Path, help="folder of the image model that pretrain_image wrote")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--command", required=True, help="the command that trained it, for the card")
    arguments = parser.parse_args()
    pack(arguments.trained, arguments.folder, arguments.command)
