"""What a run leaves for the next one is damaged: it is made again, passed over, or a sentence says what to run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import kedro_run, make_project
from safetensors.torch import load_file, save_file
from test_damaged_files import DAMAGES, break_file, parquet
from test_ingest import digits, options
from test_published_clip import folder as clip_folder  # noqa: F401 (a fixture)
from tiny import make_batches, make_objective, make_store, make_video_unet, train_settings
from video_files import write_video

from pyoco_pipeline.cascade.plan import from_json
from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.data import tasks as tasks_module
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.ingest import ingest_clips, plan_tasks
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.clips_to_score import ClipChoice, kept_clips
from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.training.checkpoint import CheckpointFolder, mark_finished
from pyoco_pipeline.training.trainer import train

SOME = ("cut", "garbage", "other 0")  # of the damages, where a run takes its time

# --- Ingest ---


@pytest.mark.parametrize("damage", SOME)
@pytest.mark.parametrize("file", ["task.json", "*.parquet"])
def test_a_task_of_ingest_that_is_damaged_is_done_again(tmp_path, caplog, file, damage):
    source, how = digits(), options()
    captions = source.captions().assign(source=0)
    tasks = plan_tasks([source], captions, how, tmp_path / "work")
    (tmp_path / "work").mkdir()
    for task in tasks:
        tasks_module.run_task(task)
    path = next(tasks[1].folder.glob(file))
    break_file(path, damage)
    manifest = ingest_clips(tmp_path / "clips", tmp_path / "work", [source], captions, how)
    whole = ingest_clips(tmp_path / "whole", tmp_path / "elsewhere", [source], captions, how)

    assert manifest == whole
    assert f"{path} is damaged" in caplog.text
    assert len(ClipStore(tmp_path / "clips").take()) == 13


# --- Training ---


@pytest.fixture
def trained(tmp_path, digits_store, digits_embeddings) -> Callable[[], list[dict[str, Any]]]:
    """Train to step 4, with checkpoints of steps 2 and 4 in tmp_path / "checkpoints", or go on from there."""
    settings = train_settings(steps=4, checkpoint_every=2, log_every=1)

    def trained() -> list[dict[str, Any]]:
        network = make_video_unet(trained=False)
        batches = make_batches(digits_store, digits_embeddings, settings)
        return train(network, batches, make_objective(), settings, stage="base", checkpoints=tmp_path / "checkpoints",
                     identity={})  # fmt: skip

    return trained


@pytest.mark.parametrize("damage", SOME)
@pytest.mark.parametrize("file", ["state.json", "network.safetensors"])
def test_a_damaged_checkpoint_is_passed_over_or_named(tmp_path, caplog, trained, file, damage):
    caplog.set_level(logging.INFO)
    losses = [row["loss"] for row in trained()]
    newest = tmp_path / "checkpoints/step-00000004"
    break_file(newest / file, damage)

    if file.endswith("safetensors") and damage.startswith("other"):  # known when its tensors are asked for
        with pytest.raises(UserError, match=rf"{newest} holds other tensors .*: delete it"):
            trained()
        shutil.rmtree(newest)
    assert [row["loss"] for row in trained()] == losses
    assert "going on from step 2 of 4" in caplog.text


def test_a_checkpoint_of_another_shape_is_named(tmp_path, trained):
    trained()
    path = tmp_path / "checkpoints/step-00000004/ema.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda n: tensors[n].ndim)
    save_file(tensors | {name: tensors[name][:1].contiguous()}, path)

    with pytest.raises(UserError, match=r"step-00000004 holds other tensors than this run's .*: delete it"):
        trained()


@pytest.mark.parametrize("damage", SOME)
def test_a_checkpoint_that_cannot_be_marked_is_named(tmp_path, trained, damage):
    trained()
    break_file(tmp_path / "checkpoints/step-00000004/state.json", damage)

    with pytest.raises(UserError, match=r"state\.json can't be read .*: delete .*step-00000004, "):
        mark_finished(tmp_path / "checkpoints")


def test_no_checkpoint_can_be_read(tmp_path, caplog, trained):
    trained()
    for path in CheckpointFolder(tmp_path / "checkpoints", 9).paths():
        break_file(path / "state.json", "garbage")

    assert CheckpointFolder(tmp_path / "checkpoints", 9).find() is None
    assert caplog.text.count("can't be read") == 2


# --- Sampling and evaluation ---


@pytest.mark.parametrize("content", [[3], [{"unknown": 1}], 3])
def test_a_plan_of_something_else_ends_in_a_sentence(content):
    with pytest.raises(UserError, match=r"cascade\.json holds no plan .*: run `generate`"):
        from_json(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("cut_from.json", "cut"),
        ("cut_from.json", "other 0"),
        ("manifest.json", "garbage"),
        ("*.parquet", "cut"),
    ],
)
def test_clips_that_were_cut_before_and_are_damaged_are_cut_anew(tmp_path, file, damage):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a_red_ball.mp4", 6)
    choice = ClipChoice(num_frames=4)
    kept_clips(tmp_path / "videos", choice, tmp_path / "cut")
    (path,) = (tmp_path / "cut").glob(file)
    break_file(path, damage)

    store, _ = kept_clips(tmp_path / "videos", choice, tmp_path / "cut")
    assert len(store.take()) == 1


@pytest.mark.parametrize("damage", ["cut", "garbage", "pickled"])
@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_damaged_tokeniser_of_clip_ends_in_a_sentence(clip_folder, tmp_path, file, damage):  # noqa: F811
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    extractor = open_extractor("clip_vitb32", folder)
    break_file(folder / file, damage)

    with pytest.raises(UserError, match=rf"{folder}.*anew"):
        extractor.text_features(["a"])


# --- The catalog and conf/ ---


@pytest.fixture
def project(tmp_path) -> Path:
    """A project in which everything that `report` reads is there, though empty."""
    project = make_project(tmp_path)
    data = project / "data/ci"
    folders = ("03_primary/clips", "06_models/base", "07_model_output/clips", "07_model_output/videos",
               "07_model_output/stage_videos", "08_reporting")  # fmt: skip
    for name in folders:
        (data / name).mkdir(parents=True)
    for name in ("image", *STAGES):
        (data / f"08_reporting/history_{name}.json").write_text("[]")
    for name in ("08_reporting/metrics.json", "07_model_output/cascade.json"):
        (data / name).write_text("{}")
    (data / "02_intermediate").mkdir()
    (data / "02_intermediate/captions.parquet").write_bytes(parquet(caption=["a"]))
    return project


def sentence_of(project: Path, *options: str) -> str:
    """With which a run ends."""
    result = kedro_run(project, "--env", "ci", *options)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "a traceback"
    (sentence,) = re.findall(r"^Error: (.*)$", result.output, re.MULTILINE)
    return sentence


@pytest.mark.parametrize("damage", ["cut", "garbage"])
@pytest.mark.parametrize(
    ("node", "name", "file", "maker"),
    [
        ("draw_loss_curves", "image_history", "08_reporting/history_image.json", "pretrain_image"),
        ("write_report", "captions", "02_intermediate/captions.parquet", "ingest"),
    ],
)
def test_a_damaged_file_of_the_catalog_ends_in_a_sentence(project, node, name, file, maker, damage):
    path = project / "data/ci" / file
    break_file(path, damage)

    sentence = sentence_of(project, "--pipelines", "report", "--nodes", node)
    assert sentence.startswith(f"{name} can't be read ({path}: ")
    assert sentence.endswith(f"run `kedro run --pipelines {maker}` again.")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("globals.yml", b"\x82\xff"),
        ("catalog.yml", b"[1, 2]\n"),
        ("parameters_ingest.yml", b"3\n"),
        ("parameters_ingest.yml", b"a:\n\t- b\n"),
    ],
)
def test_a_damaged_configuration_is_named(project, file, content):
    path = project / "conf/base" / file
    path.write_bytes(content)

    assert re.match(rf"{path} (can't be read as YAML|holds a ).*: mend it", sentence_of(project))


@pytest.mark.parametrize("content", [b"", b"\x82\xff", b"a\n1,2\n1,2,3\n"])
def test_a_damaged_quarantine_is_named(tmp_path, content):
    from pyoco_pipeline.pipelines.report.nodes import _ingest_facts

    make_store(tmp_path)
    (tmp_path / "quarantine.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"quarantine\.csv can't be read as a table .*: run `ingest` again"):
        _ingest_facts(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_are_named_before_a_card_is_written(tmp_path, damage):
    from pyoco_pipeline.pipelines.export.nodes import _metrics

    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"reference_sha256": "d" * 64}))
    break_file(path, damage)
    with pytest.raises(UserError, match=rf"{path} .*run `evaluate` again"):
        _metrics(path, tmp_path, "d" * 64)


@pytest.mark.parametrize("damage", [*DAMAGES, "other 0"])
def test_damaged_timings_are_begun_anew(tmp_path, damage):
    from pyoco_pipeline.hooks import _write_timing

    path = tmp_path / "timings.json"
    path.write_text(json.dumps({"a": 1.0}))
    break_file(path, damage)
    _write_timing(path, "b", 2.0)

    assert json.loads(path.read_text()) == {"b": 2.0}
