"""What a user reads when `kedro run` can't go on: one sentence with the key, row or file, and what to do."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import click
import pytest
import tiny
import torch
import video_files as vf
from click.testing import Result
from projects import kedro_run, make_project, only_base, tree

from pyoco_pipeline import cli
from pyoco_pipeline.cli import split_params, user_message
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.latents import write_latents
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.noise import MixedNoise

TRAIN = "finetune_video.base.train"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def inflated(project: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings) -> Path:
    """A project in which everything up to `inflate` has run, with the smallest model."""
    shutil.copytree(digits_store.folder, project / "data/03_primary/clips")
    shutil.copytree(digits_embeddings.folder, project / "data/04_feature/text_embeddings")
    (project / "data/04_feature/latents").mkdir()
    write_latents(project / "data/04_feature/latents", clips=digits_store.folder, autoencoder=None)
    save_into(project / "data/06_models/inflated", trained_with=None)
    return project


def save_into(folder: Path, trained_with: MixedNoise | None) -> None:
    folder.mkdir(parents=True)
    info = tiny.stage_info(noise=trained_with.config()) if trained_with else None
    save_video_model(tiny.make_video_unet(), folder, info)


def sentence(result: Result, caplog: pytest.LogCaptureFixture) -> str:
    """The error that a run ended with, after a look at everything else that it must and must not do."""
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    for text in (result.stdout, result.stderr, *(r.getMessage() for r in caplog.records)):
        assert "Traceback" not in text
    # The traceback goes to info.log, through the one logger that conf/logging.yml keeps off the console.
    told = [r for r in caplog.records if r.exc_info and r.levelno >= logging.INFO]
    assert {r.name for r in told} <= {"pyoco_pipeline.cli"}
    return (
        result.stderr.removeprefix("Error: ").removesuffix("(`--verbose` shows where in the code.)\n").strip()
    )


def assert_nothing_half_written(project: Path) -> None:
    partial = [name for name in tree(project / "data") if ".writing-" in name or ".old-" in name]
    assert partial == []
    assert not list((project / "data").rglob("*.partial"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("generate.nois.kind", "iid", ["generate.nois", "not permitted"]),
        ("genrate.num_clips", 4, ["no pipeline reads genrate", "generate"]),
        ("finetune_video.bsae.noise.alpha", 1, ["no pipeline reads finetune_video.bsae", "finetune_video.base"]),
        ("tracking.enabld", "false", ["tracking.enabld"]),
        ("generate.num_clips", "many", ["generate.num_clips", "valid integer", "'many'"]),
        ("finetune_video.base.noise.alpha", -1, ["finetune_video.base.noise.alpha", "greater than or equal to 0"]),
        ("finetune_video.base.noise.alpha", ".nan", ["finetune_video.base.noise.alpha"]),
        ("finetune_video.base.noise.kind", "fractal", ["finetune_video.base.noise.kind", "'progressive'", "'fractal'"]),
        ("finetune_video.base.train.warmup_steps", 10**9, ["finetune_video.base.train", "is more than steps="]),
        ("ingest.source", "youtube", ["ingest.source", "'moving_digits', 'video_folder'"]),
        ("evaluate.metrics", "fvd", ["evaluate.metrics", "'auto'", "'fvd'"]),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named_before_anything_runs(
    project: Path, caplog: pytest.LogCaptureFixture, key: str, value: object, expected: list[str]
) -> None:
    message = sentence(kedro_run(project, params={key: value}), caplog)
    assert [part for part in expected if part not in message] == [], message
    assert "conf/ or --params" in message or "tracking" in message
    assert tree(project / "data") == {}


def test_all_wrong_parameters_are_named_at_once(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"finetune_video.base.noise.alpha": -1, "generate.num_clips": 0, "ingest.fps": 0}
    message = sentence(kedro_run(project, params=wrong), caplog)
    assert [key for key in wrong if key not in message] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pipelines", "fintune_video"], ["no pipeline fintune_video", "kedro registry list"]),
        (["--env", "gpus"], ["conf/gpus", "Environments are the folders of conf/"]),
        (["--nodes", "sample_clip"], ["nodes named ['sample_clip']", "kedro registry describe"]),
        (["--tags", "slow"], ["no nodes", "kedro registry describe"]),
        (["--namespaces", "sr512"], ["sr512", "kedro registry describe"]),
    ],
)
def test_an_unknown_name_on_the_command_line_is_said(
    project: Path, caplog: pytest.LogCaptureFixture, options: list[str], expected: list[str]
) -> None:
    message = sentence(kedro_run(project, *options), caplog)
    assert [part for part in expected if part not in message] == [], message
    assert tree(project / "data") == {}


@pytest.mark.parametrize("own", [None, "77"])
def test_threads_wait_awake_for_a_moment_only_or_as_long_as_the_user_says(
    project: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    """Beside a busy process they would else wait for their turn on a core that they keep from each other."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    seen = []
    monkeypatch.setattr(cli.kedro_run, "callback", lambda **_: seen.append(os.environ["GOMP_SPINCOUNT"]))
    kedro_run(project)
    assert seen == [own or "3000"]


def test_the_command_line_imports_no_torch_so_that_torch_finds_what_it_sets() -> None:
    code = "import sys, pyoco_pipeline.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_broken_configuration_file_is_named(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    (project / "conf/base/parameters_generate.yml").write_text("generate: {num_clips: [\n")
    message = sentence(kedro_run(project), caplog)
    assert "parameters_generate.yml" in message


@pytest.mark.parametrize(
    ("pipeline", "missing", "first"),
    [
        ("pretrain_image", "clips", "ingest"),
        ("inflate", "image_model", "pretrain_image"),
        ("finetune_video", "clips", "ingest"),
        ("generate", "base.model", "finetune_video"),
        ("evaluate", "clips", "ingest"),
        ("report", "base.history", "finetune_video"),
    ],
)
def test_a_pipeline_without_its_inputs_names_the_one_to_run_first(
    project: Path, caplog: pytest.LogCaptureFixture, pipeline: str, missing: str, first: str
) -> None:
    message = sentence(kedro_run(project, "--pipelines", pipeline), caplog)
    assert message.startswith(f"{missing} is missing ({project / 'data'}")
    assert message.endswith(f"run `kedro run --pipelines {first}` first.")
    assert tree(project / "data") == {}


def test_fine_tuning_after_ingest_asks_for_the_inflated_model(
    inflated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(inflated / "data/06_models/inflated")
    message = sentence(kedro_run(inflated, "--pipelines", "finetune_video"), caplog)
    assert "inflated_model is missing" in message
    assert "kedro run --pipelines inflate`" in message


def ingest_folder(project: Path) -> Result:
    return kedro_run(project, "--pipelines", "ingest", params={"ingest.source": "video_folder"})


def video_folder(project: Path, captions: str | None) -> Path:
    folder = project / "data/01_raw/videos"
    folder.mkdir(parents=True)
    if captions is not None:
        (folder / "captions.csv").write_text(captions)
    return folder


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (None, ["has no captions file", "captions.csv", "columns path and caption"]),
        ("path,text\na.mp4,a cat\n", ["captions.csv has no column caption", "its columns: path, text"]),
        ("path,caption\n", ["captions.csv has no rows", "add one row per video"]),
        ("path,caption\na.mp4,a cat, a dog\n", ["Line 2 of", "3 cells", '"quotes"']),
        ("path,caption,start\na.mp4,a cat,soon\n", ["Row 1 of", "column start", "'soon'", "write seconds"]),
        ("path,caption\nb.mp4,a dog\na.mp4,a cat\n", ["000002-a.mp4", "more than a fifth", "does not exist"]),
        ("path,caption\n../secret.mp4,a cat\n", ["secret.mp4", "outside the data root", "captions.html"]),
        ("path,caption\n/etc/hostname,a cat\n", ["etc_hostname", "outside the data root", "captions.html"]),
    ],
    ids=["no table", "no column", "no rows", "too many cells", "no number", "no file", "above", "absolute"],
)
def test_a_bad_captions_table_is_told_by_row_or_column(
    project: Path, caplog: pytest.LogCaptureFixture, captions: str | None, expected: list[str]
) -> None:
    folder = video_folder(project, captions)
    vf.write_video(folder / "b.mp4", 4)
    (project / "data/01_raw/secret.mp4").write_bytes(b"not to be read")
    message = sentence(ingest_folder(project), caplog)
    assert [part for part in expected if part not in message] == [], message
    assert not (project / "data/02_intermediate/captions.parquet").exists()
    assert not (project / "data/03_primary").exists()
    assert_nothing_half_written(project)


def test_a_missing_folder_of_videos_is_named(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = sentence(ingest_folder(project), caplog)
    assert f"{project / 'data/01_raw/videos'} is not a folder; set it" in message


def test_a_video_without_frames_is_named_where_no_other_is_left(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = video_folder(project, "path,caption\nempty.mp4,nothing at all\n")
    vf.write_without_frames(folder / "empty.mp4")
    message = sentence(ingest_folder(project), caplog)
    assert "1 of 1 segments could not be used, and no clip is left" in message
    assert "000001-empty.mp4" in message
    assert "Mend them, or give other videos" in message
    assert not (project / "data/03_primary/clips").exists()
    assert_nothing_half_written(project)


def fine_tune(project: Path, alpha: float, **train: object) -> Result:
    tiny_run = {"steps": 3, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 1, "keep_checkpoints": 3}
    params = {f"{TRAIN}.{key}": value for key, value in (tiny_run | train).items()}
    params["finetune_video.base.noise.alpha"] = alpha
    return kedro_run(project, "--pipelines", "finetune_video", params=params)


def test_an_unfinished_run_with_another_alpha_is_neither_continued_nor_lost(
    inflated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fine_tune(inflated, alpha=2).exit_code == 0
    models = inflated / "data/06_models"
    shutil.rmtree(
        models / "base_checkpoints/step-00000003"
    )  # as if the run had been killed at its third step
    shutil.rmtree(models / "base")
    before = tree(models)
    message = sentence(fine_tune(inflated, alpha=1), caplog)
    assert "base_checkpoints holds an unfinished run (step 2) with noise.alpha=2.0" in message
    assert "this run has noise.alpha=1.0" in message
    assert "train.resume=never" in message
    assert tree(models) == before
    assert fine_tune(inflated, alpha=1, resume="never").exit_code == 0
    assert (models / "base/temporal.safetensors").is_file()


def test_sampling_with_another_prior_than_trained_needs_saying_so(
    inflated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_into(inflated / "data/06_models/base", trained_with=MixedNoise(1.0))
    only_base(inflated / "data")
    other = {"generate.noise.kind": "progressive", "generate.noise.alpha": 2}
    message = sentence(kedro_run(inflated, "--pipelines", "generate", params=other), caplog)
    assert "generate.noise is ProgressiveNoise" in message
    assert "the model was trained with MixedNoise" in message
    assert "generate.allow_other_prior=true" in message
    assert not (inflated / "data/07_model_output/clips").exists()
    assert_nothing_half_written(inflated)
    small = {"generate.num_clips": 2, "generate.sampler.steps": 1, "generate.num_videos": 1}
    asked = other | small | {"generate.allow_other_prior": "true"}
    assert kedro_run(inflated, "--nodes", "check_cascade,sample_clips", params=asked).exit_code == 0


def test_a_digits_metric_asked_for_by_name_is_refused_for_other_videos(
    project: Path, digits_store: ClipStore, caplog: pytest.LogCaptureFixture
) -> None:
    items = [CaptionedClip(i.clip, i.caption, "train") for i in digits_store.take()]
    for place in ("03_primary/clips", "07_model_output/clips"):
        write_clips(project / "data" / place, items, kind="video_folder", shape=digits_store.shape, fps=8.0)
    (project / "conf/local").mkdir(exist_ok=True)
    (project / "conf/local/parameters.yml").write_text("evaluate: {metrics: [fvd_digits3d]}\n")
    message = sentence(kedro_run(project, "--pipelines", "evaluate"), caplog)
    assert message.startswith("evaluate.metrics: fvd_digits3d: Digits3D reads moving digits only")
    assert "kind video_folder" in message
    assert not (project / "data/08_reporting/metrics.json").exists()


def test_verbose_shows_where_in_the_code(project: Path) -> None:
    result = kedro_run(project, "--pipelines", "finetune_video", "--verbose")
    assert result.exit_code == 1
    assert isinstance(result.exception, UserError)
    assert result.exc_info is not None
    files = {Path(frame.filename).name for frame in traceback.extract_tb(result.exc_info[2])}
    assert "inputs_hook.py" in files


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    """A wrong shape is not the user's to put right, wherever the word pipeline stands in its text."""
    assert user_message(ValueError("pyoco_pipeline: shapes (2, 3) and (4,) do not fit")) is None
    assert user_message(KeyError("pipeline")) is None
    assert user_message(UserError("the row 3 is empty: fill it")) == "the row 3 is empty: fill it"


def test_a_gpu_whose_memory_ran_out_is_the_users_to_put_right() -> None:
    said = user_message(torch.OutOfMemoryError("CUDA out of memory. Process 1 has 7 GiB memory in use."))
    assert said is not None
    assert said.startswith("The GPU's memory ran out: take a smaller batch_size")


@pytest.mark.parametrize("verbose", [False, True])
def test_the_installed_command_ends_with_status_one(project: Path, verbose: bool) -> None:
    """Once as users do: the console of its own process, with Kedro's logging."""
    command = [str(Path(sys.executable).with_name("kedro")), "run", "--pipelines", "finetune_video"]
    done = subprocess.run(
        command + ["--verbose"] * verbose,
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == verbose
    assert "kedro run --pipelines ingest` first" in done.stderr
    if not verbose:
        assert done.stderr.count("kedro run --pipelines ingest` first") == 1
    assert tree(project / "data") == {}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a.b=1,c=x", {"a": {"b": 1}, "c": "x"}),
        (
            "g.prompts=[a red digit 3, a blue digit 5],g.seed=1",
            {"g": {"prompts": ["a red digit 3", "a blue digit 5"], "seed": 1}},
        ),
        ("buckets=[[16, 32],[32, 16]]", {"buckets": [[16, 32], [32, 16]]}),
        (
            "experts=[{model: a, sigma_max: 1}, {sigma_min: 1}]",
            {"experts": [{"model": "a", "sigma_max": 1}, {"sigma_min": 1}]},
        ),
        ("caption='one, two',alpha=.inf", {"caption": "one, two", "alpha": math.inf}),
        ("p=[a dog's tail],seed=1", {"p": ["a dog's tail"], "seed": 1}),
        ("", {}),
    ],
)
def test_params_may_hold_lists(given: str, read: dict[str, object]) -> None:
    context, option = click.Context(click.Command("run")), click.Option(["--params"])
    assert split_params(context, option, given) == read


@pytest.mark.parametrize("given", ["alpha", "=1", "a=[1, 2"])
def test_params_without_key_or_value_end_with_a_sentence(given: str) -> None:
    context, option = click.Context(click.Command("run")), click.Option(["--params"])
    with pytest.raises(click.UsageError, match="--params"):
        split_params(context, option, given)
