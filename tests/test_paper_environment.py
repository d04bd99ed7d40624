"""conf/paper: the paper's cascade, which only a cluster trains; that it fits together is known before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kedro.framework.session import KedroSession
from projects import inside, make_project

from pyoco_pipeline.config import GenerateSettings, IngestSettings, PretrainImageSettings, StageSettings
from pyoco_pipeline.models import inflate
from pyoco_pipeline.models.scratch import build_image_unet
from pyoco_pipeline.training.stages import stage_condition, stage_shape, stage_view

T5_XXL_DIM = 4096


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The parameters, typed."""
    project = make_project(tmp_path_factory.mktemp("paper"))
    with inside(project), KedroSession.create(env="paper") as session:
        catalog = session.load_context().catalog
        names = ("base", "interpolation", "sr256", "sr1024")
        typed = {name: catalog.load(f"params:finetune_video.{name}") for name in names}
        return typed | {
            name: catalog.load(f"params:{name}")
            for name in ("ingest", "pretrain_image", "inflate", "generate")
        }


def store(ingest: IngestSettings, side: int | None = None) -> Any:
    """What ingest would have made, without the clips."""
    shape = ingest.num_frames, side or ingest.height, side or ingest.width
    shard = SimpleNamespace(height=shape[1], width=shape[2])
    return SimpleNamespace(
        shape=shape, folder=Path("clips"), manifest=SimpleNamespace(shards=[shard], autoencoder=None)
    )


def test_the_stages_are_those_of_the_paper(paper: dict[str, Any]) -> None:
    clips = store(paper["ingest"])
    assert stage_shape(paper["base"], clips) == (16, 64, 64)
    assert stage_shape(paper["interpolation"], clips) == (76, 64, 64)
    assert stage_shape(paper["sr256"], clips) == (76, 256, 256)
    assert stage_shape(paper["sr1024"], store(paper["ingest"], 1024)) == (76, 1024, 1024)


def test_every_stage_is_given_what_the_one_before_makes(paper: dict[str, Any]) -> None:
    interpolation = stage_condition(paper["interpolation"])
    assert 15 * interpolation.key_stride + 1 == 76
    for name in ("sr256", "sr1024"):
        condition = stage_condition(paper[name])
        assert condition.scale == 4
        generate: GenerateSettings = paper["generate"]
        assert generate.later(name).noise_level <= condition.max_noise_level


def test_training_parts_lie_within_the_clips(paper: dict[str, Any]) -> None:
    assert stage_view(paper["sr256"], store(paper["ingest"])).num_frames(76) == 16
    sr1024: StageSettings = paper["sr1024"]
    assert sr1024.train.image_share == 1  # its temporal modules are off
    assert stage_view(sr1024, store(paper["ingest"], 1024)).num_frames(76) == 1


def test_base_and_interpolation_have_the_papers_billion_parameters(paper: dict[str, Any]) -> None:
    pretrain: PretrainImageSettings = paper["pretrain_image"]
    with torch.device("meta"):
        image_model = build_image_unet(size=64, text_dim=T5_XXL_DIM, seed=0, **pretrain.unet.model_dump())
        model = inflate(image_model, **paper["inflate"].options())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.08e9, rel=0.02)
