"""`kedro run --pipeline export`: from what `finetune_video` left on disk to a folder, whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from projects import kedro_run, make_project, only_base
from tiny import make_embeddings, make_store, make_video_unet, stage_info

from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.latents import write_latents
from pyoco_pipeline.models import save_video_model

PARAMS = {
    "pretrain_image.init": "scratch",
    "generate.num_clips": 5,
    "generate.batch_size": 2,
    "generate.sampler.steps": 2,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which ingest and finetune_video have run."""
    project = make_project(tmp_path)
    data = project / "data"
    store = make_store(data / "03_primary/clips")
    make_embeddings(data / "04_feature/text_embeddings", [item.caption for item in store.take()])
    write_latents(data / "04_feature/latents", clips=store.folder, autoencoder=None)
    info = stage_info(data_sha256=store.manifest.sha256, noise={"name": "progressive", "alpha": 2.0})
    save_video_model(make_video_unet(), data / "06_models/base", info)
    only_base(data)
    return project


def metrics(project: Path, **changes: Any) -> dict[str, Any]:
    """Writes data/08_reporting/metrics.json, of this project's clips and newer than its model."""
    sha256 = ClipStore(project / "data/03_primary/clips").manifest.sha256
    entry = {
        "value": 3.0,
        "floor": 1.0,
        "num_generated": 5,
        "extractor": "lite0",
        "extractor_sha256": "a" * 64,
    }
    content = {"metrics": {"fid_lite0": entry}, "reference_sha256": sha256} | changes
    (project / "data/08_reporting").mkdir(exist_ok=True)
    (project / "data/08_reporting/metrics.json").write_text(json.dumps(content))
    return content


def header(project: Path) -> dict[str, Any]:
    text = (project / "data/06_models/export/README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])["pyoco"]


def test_what_export_writes_samples_what_generate_writes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for pipeline in ("generate", "export"):
        done = kedro_run(project, "--pipelines", pipeline, params=PARAMS)
        assert done.exit_code == 0, done.output
    items = ClipStore(project / "data/07_model_output/clips").take()
    folder = str(project / "data/06_models/export")
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    video = pipe([item.caption for item in items], output_type="uint8")

    assert torch.equal(video.frames, torch.stack([torch.tensor(item.clip.video) for item in items]))
    assert video.fps == 8.0
    assert (header(project)["prior"], header(project)["alpha"]) == ("progressive", 2.0)
    assert header(project)["data_sha256"] == ClipStore(project / "data/03_primary/clips").manifest.sha256
    assert "metrics" not in header(project)
    assert not list((project / "data/06_models").glob(".[wo]*"))  # .writing-…, .old-…


def test_the_card_has_the_metrics_of_this_model(project: Path) -> None:
    metrics(project)
    assert kedro_run(project, "--pipelines", "export", params=PARAMS).exit_code == 0
    assert header(project)["metrics"] == {"fid_lite0": 3.0, "fid_lite0_floor": 1.0}


@pytest.mark.parametrize("stale", ["older", "of other clips"])
def test_metrics_of_another_model_stay_out_of_the_card(project: Path, stale: str) -> None:
    metrics(project, **({} if stale == "older" else {"reference_sha256": "0" * 64}))
    if stale == "older":
        os.utime(project / "data/08_reporting/metrics.json", (0, 0))
    assert kedro_run(project, "--pipelines", "export", params=PARAMS).exit_code == 0
    assert "metrics" not in header(project)


def test_without_a_model_the_run_names_the_pipeline_to_run_first(tmp_path: Path) -> None:
    done = kedro_run(make_project(tmp_path), "--pipelines", "export")

    assert done.exit_code == 1
    assert "base.model is missing" in done.output
    assert "run `kedro run --pipelines finetune_video` first" in done.output


def test_a_folder_that_is_no_trained_stage_is_one_sentence_and_leaves_the_last_export(project: Path) -> None:
    assert kedro_run(project, "--pipelines", "export", params=PARAMS).exit_code == 0
    before = (project / "data/06_models/export/README.md").read_text()
    (project / "data/06_models/base/temporal.json").unlink()
    done = kedro_run(project, "--pipelines", "export", params=PARAMS)

    assert done.exit_code == 1
    assert "holds no video model: temporal.json is missing" in done.output
    assert "Traceback" not in done.output
    assert (project / "data/06_models/export/README.md").read_text() == before
    assert not list((project / "data/06_models").glob(".[wo]*"))  # .writing-…, .old-…


def test_a_model_of_other_clips_than_ingested_is_refused(project: Path) -> None:
    path = project / "data/06_models/base/stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "0" * 64}))
    done = kedro_run(project, "--pipelines", "export", params=PARAMS)

    assert done.exit_code == 1
    assert "was trained on clips with the sha256 000000000000…" in done.output


def test_a_misspelt_parameter_is_named(project: Path) -> None:
    done = kedro_run(project, "--pipelines", "export", params={"export.include_encoder": "true"})

    assert done.exit_code == 1
    assert "export.include_encoder" in done.output
