"""Models in a local folder of Hugging Face's layout: which weights it holds, and loading all of them or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.published.weights import Weights

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def weights_file(folder: str | Path) -> Path:
    """The file of weights in a model folder, safetensors first. Raises UserError where there is none."""
    folder = Path(folder)
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no model folder: it needs config.json and one of {', '.join(WEIGHT_FILES)} in one piece."
        )
    return found[0]


def load_folder(model_class: Any, weights: Weights, kind: str) -> Any:
    """A transformers model in float32 and eval mode from the folder of `weights`; nothing is fetched.

    kind: the `model_type` that its config.json must name. Raises UserError for another one, for a file that cannot be
    read, and where a weight of the network is missing in the file (transformers would draw it at random).
    """
    folder = weights.path.parent
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read ({error}): copy the folder anew."
        ) from error
    if found != kind:
        raise UserError(f"{folder} holds a model of type {found!r}, expected {kind!r}: name another folder.")
    try:
        model, info = model_class.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            dtype="float32",
            use_safetensors=weights.path.suffix == ".safetensors",
        )
    except Exception as error:  # transformers, safetensors and torch raise many types for damaged files
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"{weights.path} cannot be loaded ({first}): copy the folder anew.") from error
    lacking = sorted(info["missing_keys"]) or sorted(str(key[0]) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise UserError(
            f"{weights.path} lacks {lacking[0]} ({len(lacking)} weights in all) of {model_class.__name__}: name a "
            "folder that holds the whole model."
        )
    return model.eval().requires_grad_(False)
