"""What a `kedro run` leaves in MLflow."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from PIL import Image

from pyoco_pipeline.datasets import FolderDataset, WorkFolderDataset
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.hooks import MlflowHooks, _clips_tags, _run_name
from pyoco_pipeline.reporting.redact import MASK
from pyoco_pipeline.tracking import (
    METRICS_LOGGER,
    MlflowLogHandler,
    Store,
    TrackedRun,
    TrackingSettings,
    flatten_metrics,
    flatten_parameters,
)

METRICS = {
    "schema_version": 1,
    "metrics": {
        "fvd_digits3d": {"value": 30.5, "floor": 2.25, "num_generated": 96, "extractor": "digits3d"},
        "caption_accuracy": {
            "value": 0.5,
            "real": 1.0,
            "attributes": {"digit": {"value": 0.75, "real": 1.0, "chance": 0.1, "num": 96}},
        },
    },
    "refused": {"fid_lite0": "no"},
    "seed": 3,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all tests: the first use of a store costs seconds of migrations."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


def run_kedro(project: Path, *, failure: BaseException | None = None, **tracking: Any) -> None:
    """Run two nodes under the hooks as a Kedro session does; the first logs as training does."""
    sheet = project / "sheet.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(sheet)
    (project / "samples").mkdir(exist_ok=True)
    (project / "samples" / "a.txt").write_text("a")

    def train(alpha: float) -> list[dict[str, float]]:
        logger = logging.getLogger(METRICS_LOGGER)
        for step in (0, 10, 20):
            metrics = {"loss": 1.0 / (1 + step), "skipped": "text", "is_last": step == 20}
            logger.info("step %d", step, extra={"stage": "base", "step": step, "metrics": metrics})
        logger.info("samples", extra={"stage": "base", "step": 20, "image": sheet})
        if failure:
            raise failure
        return [{"step": 0, "loss": alpha}]

    pipeline = Pipeline(
        [
            Node(train, "params:finetune_video.base.noise.alpha", "history", name="base.train"),
            Node(lambda history: METRICS, "history", "metrics", name="evaluate"),
        ]
    )
    parameters = {
        "finetune_video": {"base": {"noise": {"kind": "progressive", "alpha": 2.0}}},
        "store": {"secret_key": "hush", "num_tokens": 16},  # pragma: allowlist secret
        "tracking": tracking,
    }
    catalog = DataCatalog(
        {
            "parameters": MemoryDataset(parameters),
            "params:finetune_video.base.noise.alpha": MemoryDataset(2.0),
            "clips": FolderDataset(filepath=str(project / "clips")),
            "reporting_folder": WorkFolderDataset(filepath=str(project / "reporting")),
            "history": JSONDataset(filepath=str(project / "history.json"), metadata={"mlflow": "history"}),
            "metrics": JSONDataset(filepath=str(project / "metrics.json"), metadata={"mlflow": "metrics"}),
        }
    )
    hooks = _create_hook_manager()
    hooks.register(MlflowHooks())
    context = {
        "run_params": {"project_path": str(project), "pipeline_names": None, "env": None, "runner": "S"},
        "pipeline": pipeline,
        "catalog": catalog,
    }
    hooks.hook.before_pipeline_run(**context)
    try:
        result = SequentialRunner().run(pipeline, catalog, hooks)
    except BaseException as error:
        hooks.hook.on_pipeline_error(error=error, **context)
        raise
    hooks.hook.after_pipeline_run(run_result=result, **context)


def client_of(project: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def only_run(project: Path, experiment: str) -> Any:
    client = client_of(project)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def open_run(project: Path, experiment: str) -> TrackedRun:
    store = Store.locate(TrackingSettings(), project)
    return TrackedRun.open(store, experiment, "a run", {}, {})


def test_a_finished_run_holds_parameters_metrics_artifacts_and_tags(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = project / "clips/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"sha256": "abc"}')
    caplog.set_level(logging.INFO, logger="pyoco_pipeline.hooks")

    run_kedro(project, experiment="finished", tags={"study": "alpha"})

    run = only_run(project, "finished")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "default progressive α=2"
    assert run.data.params["finetune_video.base.noise.alpha"] == "2.0"
    assert run.data.params["store.secret_key"] == MASK
    assert run.data.params["store.num_tokens"] == "16"
    assert run.data.metrics["fvd_digits3d"] == 30.5
    assert run.data.metrics["fvd_digits3d_floor"] == 2.25
    assert run.data.metrics["caption_accuracy_digit"] == 0.75
    assert {"seconds/base.train", "seconds/evaluate", "peak_memory_gb"} <= set(run.data.metrics)
    assert run.data.tags["study"] == "alpha"
    assert run.data.tags["clips.sha256"] == "abc"
    files = {item.path for item in client_of(project).list_artifacts(run.info.run_id)}
    assert {"history.json", "metrics.json", "images"} <= files
    assert run.info.artifact_uri.startswith((project / "mlartifacts").as_uri())
    assert f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in caplog.text

    timings = json.loads((project / "reporting/timings.json").read_text())
    assert set(timings) == {"base.train", "evaluate"}


def test_live_metrics_keep_their_stage_and_step(project: Path) -> None:
    run_kedro(project, experiment="live")
    run = only_run(project, "live")
    history = client_of(project).get_metric_history(run.info.run_id, "base/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (10, 1 / 11), (20, 1 / 21)]
    assert "base/is_last" not in run.data.metrics
    assert not [h for h in logging.getLogger(METRICS_LOGGER).handlers if isinstance(h, MlflowLogHandler)]


@pytest.mark.parametrize(
    ("failure", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_breaks_is_closed_with_what_it_had_logged(
    project: Path, failure: BaseException, status: str
) -> None:
    with pytest.raises(type(failure)):
        run_kedro(project, failure=failure, experiment=status)
    run = only_run(project, status)
    assert run.info.status == status
    assert run.data.metrics["base/loss"] == 1 / 21


def test_an_interrupt_that_kedro_does_not_report_closes_the_run_at_exit(project: Path) -> None:
    hooks = MlflowHooks()
    hooks._run = open_run(project, "at exit")
    hooks._close_interrupted()
    assert only_run(project, "at exit").info.status == "KILLED"


def test_disabled_tracking_still_times_nodes(tmp_path: Path) -> None:
    run_kedro(tmp_path, enabled=False)
    assert not (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "reporting/timings.json").is_file()


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.experimemt"):
        run_kedro(tmp_path, experimemt="typo")


def test_a_missing_mlflow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(UserError, match=r"Install mlflow, or set tracking\.enabled to false"):
        run_kedro(tmp_path)


def test_an_unusable_store_is_a_user_error_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.tracking_uri") as raised:
        run_kedro(tmp_path, tracking_uri="nosuchdb://user:hunter2@host/db")  # pragma: allowlist secret
    assert "hunter2" not in str(raised.value)


def test_a_server_that_goes_away_is_warned_about_once_and_metrics_wait(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(project, "broken")
    handler = MlflowLogHandler(run, flush_seconds=3600)
    log_batch = run.client.log_batch

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("gone")

    def log(step: int) -> None:
        record = logging.makeLogRecord({"stage": "base", "step": step, "metrics": {"loss": float(step)}})
        handler.handle(record)
        handler.flush()

    monkeypatch.setattr(run.client, "log_batch", refuse)
    log(1)
    log(2)
    run.log_metrics({"other": 1.0})
    assert [record.levelname for record in caplog.records if "gone" in record.getMessage()] == ["WARNING"]
    monkeypatch.setattr(run.client, "log_batch", log_batch)
    log(3)
    handler.close()
    history = client_of(project).get_metric_history(run.run_id, "base/loss")
    assert [point.step for point in history] == [1, 2, 3]


def test_folders_are_logged_up_to_a_size(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(project, "folders")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.txt").write_text("a")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "b.bin").write_bytes(bytes(2000))
    monkeypatch.setattr("pyoco_pipeline.tracking.MAX_FOLDER_MB", 0.001)
    run.log_artifact(tmp_path / "small")
    run.log_artifact(tmp_path / "large")
    run.close("FINISHED")
    assert [item.path for item in run.client.list_artifacts(run.run_id)] == ["small"]
    assert "large is not logged" in caplog.text


def test_queued_experiments_are_recorded_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/repository")
    store = Store.locate(TrackingSettings(), Path("/copy"))
    assert store == Store("sqlite:////repository/mlflow.db", "file:///repository/mlartifacts")


def test_the_environment_names_the_server_which_keeps_its_own_artifacts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/")
    store = Store.locate(TrackingSettings(tracking_uri="sqlite:///other.db"), Path("/project"))
    assert store == Store("https://mlflow.example.org/", None)
    assert store.ui_address == "https://mlflow.example.org"


def test_parameters_are_flat_short_and_without_secrets() -> None:
    flat = flatten_parameters(
        {
            "a": {"b": [1, 2], "none": None, "empty": {}},
            "hub_token": "hf_x",
            "max_tokens": 77,
            "tokenizer": "t5",
            "servers": [{"password": "p"}],
            "uri": "s3://key:hush@bucket/x",  # pragma: allowlist secret
            "long": "x" * 9000,
            "tracking": TrackingSettings(),
        }
    )
    assert flat["a.b"] == "[1, 2]"
    assert flat["a.none"] == "null"
    assert flat["a.empty"] == "{}"
    assert flat["hub_token"] == MASK
    assert (flat["max_tokens"], flat["tokenizer"]) == ("77", "t5")
    assert '"p"' not in flat["servers"]
    assert "hush" not in flat["uri"]
    assert len(flat["long"]) == 6000
    assert flat["tracking.experiment"] == "pyoco_pipeline"


def test_metrics_are_the_numbers_only() -> None:
    assert flatten_metrics(METRICS) == {
        "fvd_digits3d": 30.5,
        "fvd_digits3d_floor": 2.25,
        "caption_accuracy": 0.5,
        "caption_accuracy_real": 1.0,
        "caption_accuracy_digit": 0.75,
        "caption_accuracy_digit_real": 1.0,
    }
    assert flatten_metrics({"loss": 1, "ok": True, "note": "x"}, "base/") == {"base/loss": 1.0}


def test_run_names_are_sorted_and_name_the_prior_where_it_acts() -> None:
    def base(kind: str) -> dict[str, Any]:
        return {"finetune_video": {"base": {"noise": {"kind": kind, "alpha": 1}}}}

    noise = base("mixed")
    assert _run_name({"pipeline_names": ["generate", "evaluate"]}, noise) == "evaluate generate mixed α=1"
    assert _run_name({"pipeline_names": ["ingest"]}, noise) == "ingest"
    assert _run_name({}, base("iid")) == "default iid"
    assert _run_name({}, {}) == "default"


def test_data_is_named_by_its_manifest_and_by_dvc_only_where_dvc_made_it(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    assert _clips_tags(tmp_path, clips) == {}
    clips.mkdir()
    (clips / "manifest.json").write_text('{"sha256": "abc"}')
    assert _clips_tags(tmp_path, clips) == {"clips.sha256": "abc"}
    outs = "stages:\n  ingest:\n    outs:\n    - {path: %s, md5: def.dir}\n"
    (tmp_path / "dvc.lock").write_text(outs % "other")
    assert _clips_tags(tmp_path, clips) == {"clips.sha256": "abc"}
    (tmp_path / "dvc.lock").write_text(outs % "clips")
    assert _clips_tags(tmp_path, clips) == {"clips.sha256": "abc", "dvc.data_md5": "def.dir"}
