"""One flat MLflow run per cell of a study, which goes on when the cell does. Nested ones would hide the charts."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyoco_pipeline.reporting.video_files import write_video
from pyoco_pipeline.study.work import CellFolder, write_json
from pyoco_pipeline.tracking import Store, TrackedRun, TrackingSettings

_RESAMPLED = ("solver_steps", "sigma_max")  # lists of a record
_STATUS = {"done": "FINISHED", "failed": "FAILED", "waiting": "KILLED"}


class TrackedCells:
    """Called with the record of a cell: writes what is new of it into its run.

    Which run is a cell's, and what it holds already, is kept beside the cell, so that a study in pieces fills one run.
    """

    def __init__(self, settings: TrackingSettings, work: Path, fps: float) -> None:
        self.settings, self.work, self.fps = settings, work, fps
        self.store = Store.locate(settings, Path.cwd())
        self.experiment_id: str | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        folder = CellFolder(self.work, record["id"])
        state = self._state(folder)
        run = self._run(record, state)
        self.experiment_id = run.experiment_id
        new = [row for row in record["evaluations"] if row["step"] not in state["steps"]]
        rows = [row for row in folder.history() if row["step"] > state["history"]]
        until = record["until"]
        again = {
            name: [row for row in record[name] if [until, row[name]] not in state[name]]
            for name in _RESAMPLED
        }
        is_same = state["run_id"] == run.run_id and state["status"] == record["status"]
        if is_same and not new and not rows and not any(again.values()):
            return
        for row in new:
            run.log_metrics(row["values"], row["step"])
        for row in again["solver_steps"]:
            by_steps = {f"by_solver_steps/{name}": value for name, value in row["values"].items()}
            run.log_metrics(by_steps, row["solver_steps"])
        for row in again["sigma_max"]:
            begun = {f"sampled_from_{row['sigma_max']:.10g}/{name}": v for name, v in row["values"].items()}
            run.log_metrics(begun, until)
        with run.lossy("the training losses"):
            run.send(_losses(rows))
        if new:
            self._log_videos(run, folder, new[-1]["step"])
        if record["error"]:
            run.set_tags({"error": record["error"]})
        run.log_metrics({name: record[name] for name in ("train_s", "score_s")}, record["step"])
        run.close(_STATUS[record["status"]])
        kept = {
            "store": self._store_digest(),
            "run_id": run.run_id,
            "status": record["status"],
            "steps": [row["step"] for row in record["evaluations"]],
            "history": max([state["history"], *(row["step"] for row in rows)]),
            **{name: [[until, row[name]] for row in record[name]] for name in _RESAMPLED},
        }
        write_json(folder.folder / "mlflow.json", kept)

    def compare_link(self, study: str) -> str | None:
        """The address at which the UI compares all cells of a study in charts; None before there is a run."""
        if self.experiment_id is None:
            return None
        wanted = quote(f'tags.study = "{study}"')
        return (
            f"{self.store.ui_address}/#/experiments/{self.experiment_id}/runs?searchFilter={wanted}"
            "&compareRunsMode=CHART"
        )

    def _state(self, folder: CellFolder) -> dict[str, Any]:
        path = folder.folder / "mlflow.json"
        try:
            state = json.loads(path.read_text())
            known = state["store"] == self._store_digest()
        except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged: a new run is begun
            return _nothing()
        if not known:  # another server has nothing of the cell yet
            return _nothing()
        return _nothing() | state

    def _store_digest(self) -> str:
        text = f"{self.store.tracking_uri}\0{self.settings.experiment}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _run(self, record: Mapping[str, Any], state: dict[str, Any]) -> TrackedRun:
        """The cell's run, where it still is, or a new one."""
        if state["run_id"]:
            import mlflow
            from mlflow.exceptions import MlflowException

            client = mlflow.MlflowClient(tracking_uri=self.store.tracking_uri)
            try:
                info = client.get_run(state["run_id"]).info
                if info.lifecycle_stage == "active":
                    return TrackedRun(client, self.store, info.experiment_id, state["run_id"])
            except MlflowException:  # deleted there
                pass
            state |= _nothing()
        return TrackedRun.open(
            self.store, self.settings.experiment, record["name"], _parameters(record), self._tags(record)
        )

    def _tags(self, record: Mapping[str, Any]) -> dict[str, str]:
        own = {
            "study": record["study"],
            "pipelines": "ablate_alpha",
            "prior": record["prior"],
            "family": record["family"],
            "configuration": record["configuration"],
            "alpha": str(record["alpha"]),
            "P_mean": str(record["sigma_mean"]),
            "P_std": str(record["sigma_std"]),
            "seed": str(record["seed"]),
            "cell": record["id"],
            "code.sha256": " ".join(record["code"]),
        }
        return self.settings.tags | own

    def _log_videos(self, run: TrackedRun, folder: CellFolder, step: int) -> None:
        with run.lossy("videos"), tempfile.TemporaryDirectory() as scratch:
            for number, clip in enumerate(folder.evaluations.clips(step)):
                write_video(Path(scratch) / f"step-{step:08d}-{number:02d}.mp4", clip, self.fps)
            run.log_artifact(Path(scratch), "videos")


def _nothing() -> dict[str, Any]:
    return {"run_id": None, "status": None, "steps": [], "history": 0, **{name: [] for name in _RESAMPLED}}


def _parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """What tells the cells of a study apart, as columns of parallel coordinates.

    α is 0 for i.i.d. noise; neighbour_correlation is the number that every prior has, also where α is infinite.
    """
    alpha = 0 if record["kind"] == "iid" else record["alpha"]
    values = {
        "init": record["init"],
        "prior": record["kind"],
        "alpha": "measured" if alpha is None else alpha,
        "neighbour_correlation": round(record["neighbour_correlation"], 6),
        "P_mean": record["sigma_mean"],
        "P_std": record["sigma_std"],
        "seed": record["seed"],
        "train_clips": record["num_clips"] or "all",
    }
    return {name: str(value) for name, value in values.items()}


def _losses(rows: list[dict[str, Any]]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    names = ("loss", "clips_per_second")
    return [Metric(f"train/{name}", float(row[name]), now, row["step"]) for row in rows for name in names]
