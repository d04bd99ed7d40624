"""Kedro hooks: one MLflow run per `kedro run`, and the wall time of every node.

Outputs are logged as their catalog entry says:

    metadata: {mlflow: metrics}    its numbers as metrics, and the file
    metadata: {mlflow: history}    the file; its rows were logged live
    metadata: {mlflow: artifact}   the file or folder
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from pydantic import ValidationError

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.tracking import (
    METRICS_LOGGER,
    MlflowLogHandler,
    Store,
    TrackedRun,
    TrackingSettings,
    flatten_metrics,
    flatten_parameters,
)

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

REPORTING_FOLDER = "reporting_folder"  # the catalog's folder that timings.json is written into
CLIPS = "clips"  # the catalog's folder of clips, whose manifest names the data
_PIPELINES_WITH_PRIOR = {"__default__", "finetune_video", "generate"}
_log = logging.getLogger(__name__)


class MlflowHooks:
    """Records a run in MLflow unless `tracking.enabled` is false; times nodes always.

    Works under the sequential and the thread runner. Under the parallel runner nodes run in processes of
    their own: marked outputs are logged when all are done, live metrics and node times are not recorded.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._project_path = Path.cwd()
        self._catalog: CatalogProtocol | None = None
        self._run: TrackedRun | None = None
        self._handler: MlflowLogHandler | None = None
        self._logger_level = logging.NOTSET
        self._logged: set[str] = set()
        self._started_s: dict[str, float] = {}
        self._timings_lock = threading.Lock()

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Open the run; UserError where tracking is enabled and can't be."""
        self._pid = os.getpid()
        self._project_path = Path(run_params.get("project_path") or Path.cwd())
        self._catalog = catalog
        self._logged = set()
        parameters = _parameters(catalog)
        settings = tracking_settings(parameters.get("tracking"))
        if not settings.enabled:
            return
        self._run = TrackedRun.open(
            Store.locate(settings, self._project_path),
            settings.experiment,
            settings.run_name or _run_name(run_params, parameters),
            flatten_parameters(parameters),
            {**_provenance(run_params, self._project_path), **settings.tags},
        )
        self._run.start_system_metrics()
        self._handler = MlflowLogHandler(self._run)
        logger = logging.getLogger(METRICS_LOGGER)
        self._logger_level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)
        atexit.register(self._close_interrupted)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        self._started_s[node.name] = time.monotonic()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Log an output as its catalog entry says, and the node's seconds up to here.

        Folders are computed while they are saved, so a node's work ends with its last output, not with its function.
        """
        if os.getpid() != self._pid:
            return
        self._time(node)
        if self._run:
            self._log_output(self._run, dataset_name, data)

    def _time(self, node: Node) -> None:
        started_s = self._started_s.get(node.name)
        if started_s is None:
            return
        seconds = time.monotonic() - started_s
        folder = self._local_path(REPORTING_FOLDER)
        if folder:
            with self._timings_lock:
                _write_timing(folder / "timings.json", node.name, seconds)
        if self._run:
            self._run.log_metrics({f"seconds/{node.name}": seconds})

    def _local_path(self, name: str) -> Path | None:
        dataset = self._catalog.get(name) if self._catalog and name in self._catalog else None
        return _local_path(dataset)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Close the run as finished and say where to look at it."""
        if not self._run:
            return
        if "ParallelRunner" in str(run_params.get("runner")):
            for name in sorted(pipeline.all_outputs() - self._logged):
                self._log_output(self._run, name, None)
        link = self._run.link
        self._close("FINISHED")
        hint = " (start `make ui` first)" if "//127.0.0.1" in link else ""
        _log.info("Recorded in MLflow: %s%s", link, hint)

    @hook_impl
    def on_pipeline_error(self, error: BaseException) -> None:
        """Close the run as failed, or as killed where it was interrupted."""
        self._close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")

    def _close_interrupted(self) -> None:
        # Kedro calls on_pipeline_error for an Exception only: Ctrl-C leaves through here.
        if os.getpid() == self._pid:
            self._close("KILLED")

    def _close(self, status: str) -> None:
        if not self._run:
            return
        run, self._run = self._run, None
        atexit.unregister(self._close_interrupted)
        if self._handler:
            logger = logging.getLogger(METRICS_LOGGER)
            logger.removeHandler(self._handler)
            logger.setLevel(self._logger_level)
            self._handler.close()
            self._handler = None
        with run.lossy("the last metrics"):
            run.set_tags(_clips_tags(self._project_path, self._local_path(CLIPS)))
            run.log_metrics({"peak_memory_gb": _peak_memory_gb()})
        run.close(status)

    def _log_output(self, run: TrackedRun, name: str, data: Any) -> None:
        with run.lossy(f"the output {name}"):
            dataset = self._catalog.get(name) if self._catalog else None
            kind = (getattr(dataset, "metadata", None) or {}).get("mlflow")
            if kind is None:
                return
            self._logged.add(name)
            if kind == "metrics":
                content = data if isinstance(data, Mapping) else dataset.load()  # type: ignore[union-attr]
                namespace = name.rpartition(".")[0]
                run.log_metrics(flatten_metrics(content, f"{namespace}/" if namespace else ""))
            elif kind not in ("history", "artifact"):
                _log.warning(
                    "The catalog entry %s has metadata.mlflow: %s, expected metrics, history or artifact.",
                    name,
                    kind,
                )
                return
            if path := _local_path(dataset):
                run.log_artifact(path)


def tracking_settings(value: object) -> TrackingSettings:
    """The parameters below `tracking`; UserError where they are not valid."""
    if isinstance(value, TrackingSettings):
        return value
    try:
        return TrackingSettings.model_validate(value or {})
    except ValidationError as error:
        problems = "; ".join(
            f"tracking.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise UserError(f"The parameters under `tracking` are not valid. {problems}.") from error


def _parameters(catalog: CatalogProtocol) -> dict[str, Any]:
    dataset = catalog.get("parameters")
    return dataset.load() if dataset else {}


def _pipeline_names(run_params: Mapping[str, Any]) -> list[str]:
    # Kedro passes the names through a set: their order says nothing.
    return sorted(run_params.get("pipeline_names") or ["__default__"])


def _run_name(run_params: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    names = _pipeline_names(run_params)
    shown = " ".join("default" if name == "__default__" else name for name in names)
    if not _PIPELINES_WITH_PRIOR.intersection(names):
        return shown
    flat = flatten_parameters(parameters)
    kind, alpha = (flat.get(f"finetune_video.base.noise.{key}") for key in ("kind", "alpha"))
    if not kind or kind == "null":
        return shown
    if kind in ("iid", "empirical") or not alpha or alpha == "null":
        return f"{shown} {kind}"
    return f"{shown} {kind} α={float(alpha):g}"


def _provenance(run_params: Mapping[str, Any], project_path: Path) -> dict[str, str]:
    """Tags that say what code, data and versions ran; nothing about the machine or its user."""
    names = " ".join(_pipeline_names(run_params))
    tags = {
        "pipelines": names,
        "env": str(run_params.get("env") or "local"),
        "mlflow.source.name": f"kedro run --pipelines {names}",
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
    }
    for package in ("pyoco_pipeline", "torch"):
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    if commit := _git(project_path, "rev-parse", "HEAD"):
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        changes = _git(project_path, "status", "--porcelain", "--untracked-files=no")
        tags["git.dirty"] = "false" if changes == "" else "true"
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = experiment
    return tags


def _git(project_path: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(project_path), *command], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _locked_md5(project_path: Path, folder: Path) -> str | None:
    """The md5 that dvc.lock has for a folder that the ingest stage writes, or None."""
    import yaml

    try:
        outputs = yaml.safe_load((project_path / "dvc.lock").read_text())["stages"]["ingest"]["outs"]
        return next(
            (o["md5"] for o in outputs if (project_path / o["path"]).resolve() == folder.resolve()), None
        )
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None


def _clips_tags(project_path: Path, clips: Path | None) -> dict[str, str]:
    """Which data the run used: the digest in the clips' manifest, and DVC's hash of the folder where it has one."""
    if clips is None or not (clips / "manifest.json").is_file():
        return {}
    tags = {"clips.sha256": json.loads((clips / "manifest.json").read_text())["sha256"]}
    if md5 := _locked_md5(project_path, clips):
        tags["dvc.data_md5"] = md5
    return tags


def _local_path(dataset: Any) -> Path | None:
    """The file or folder that a dataset writes on this machine; None for one in memory or in a bucket."""
    path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
    if path is None or getattr(dataset, "_protocol", "file") not in ("file", "local", "", None):
        return None
    return Path(str(path))


def _write_timing(file: Path, node_name: str, seconds: float) -> None:
    """Put one node's seconds into the file, which is whole at every moment; other nodes' are kept."""
    try:
        timings = json.loads(file.read_text())
    except (OSError, ValueError):
        timings = {}
    if not isinstance(timings, dict):
        timings = {}
    timings[node_name] = round(seconds, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(timings, indent=2) + "\n")
    partial.replace(file)


def _peak_memory_gb() -> float:
    """The largest resident set of this process or of one that it started, in GB."""
    import resource

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
