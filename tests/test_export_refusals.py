# ruff: noqa: F811 (fixtures)
"""What is not exported: what generate would refuse, and what one folder can not hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_export import embeddings, encoder, export, generate_settings, model, modules_cache  # noqa: F401

from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError


def untrained(folder: Path) -> str:
    (folder / "stage.json").unlink()
    return r"stage\.json is missing\. Train the stage first"


def image_model(folder: Path) -> str:
    (folder / "temporal.json").unlink()
    return "holds no video model"


def cut_short(folder: Path) -> str:
    weights = folder / "temporal.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return r"temporal\.safetensors: the temporal weights can't be loaded"


def other_encoder(folder: Path) -> str:
    info = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(info | {"text_encoder_sha256": "0" * 64}))
    return "trained with another text encoder than"


def expert(folder: Path) -> str:
    info = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(info | {"sigma_range": [0.0, 1.0]}))
    return "is an expert, trained on sigma 0 to 1"


@pytest.mark.parametrize("damage", [untrained, image_model, cut_short, other_encoder, expert])
def test_what_generate_would_refuse_is_not_exported(
    model: Path, embeddings: TextEmbeddings, tmp_path: Path, damage: Any
) -> None:
    stage = Path(shutil.copytree(model, tmp_path / "stage"))
    message = damage(stage)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "export", stage, embeddings)


def test_another_prior_than_trained_is_not_exported_unasked(
    model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="allow_other_prior=true"):
        export(tmp_path, model, embeddings, generate=generate_settings(noise={"kind": "iid"}))


def test_an_ensemble_of_experts_is_refused(model: Path, embeddings: TextEmbeddings, tmp_path: Path) -> None:
    experts = [{"sigma_max": 1.0}, {"sigma_min": 1.0}]
    with pytest.raises(
        UserError, match=r"export writes the stage in .*, and generate\.experts asks for something else"
    ):
        export(tmp_path, model, embeddings, generate=generate_settings(experts=experts))
