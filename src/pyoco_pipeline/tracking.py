"""One MLflow run per `kedro run`: where it is stored, what is written to it, and live metrics from the log.

Layers that train or sample don't know MLflow. They log to the logger `pyoco_pipeline.metrics`, with
`extra={"stage": ..., "step": ..., "metrics": {...}}` or `extra={"stage": ..., "step": ..., "image": path}`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.results import flatten_metrics as flatten_evaluation
from pyoco_pipeline.reporting.redact import redact, redact_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

METRICS_LOGGER = "pyoco_pipeline.metrics"
MAX_FOLDER_MB = 50.0
_MAX_PARAMETER_LENGTH = 6000  # MLflow's limit
_PARAMETERS_PER_CALL = 100  # MLflow's limit
_METRICS_PER_CALL = 1000  # MLflow's limit
_MAX_WAITING = 20_000  # metrics kept while the server doesn't answer; the oldest go first
_FLUSH_SECONDS = 5.0
_CLOSE_SECONDS = 30.0
_SYSTEM_SAMPLING_SECONDS = 10
_log = logging.getLogger(__name__)


class TrackingSettings(BaseModel):
    """Parameters under `tracking`."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    experiment: str = "pyoco_pipeline"
    tracking_uri: str | None = None  # None: sqlite:///<project>/mlflow.db; MLFLOW_TRACKING_URI wins over both
    artifact_root: str | None = None  # None: <project>/mlartifacts, or the server's own for an http(s) server
    run_name: str | None = None  # None: the pipelines' names with the noise prior
    tags: dict[str, str] = {}


@dataclass(frozen=True)
class Store:
    """Where runs are kept; `artifact_root` is a URI, None leaves it to the server."""

    tracking_uri: str
    artifact_root: str | None

    @property
    def ui_address(self) -> str:
        """The UI that shows this store: the server itself, or the one that `make ui` starts."""
        return self.tracking_uri.rstrip("/") if self._is_server else "http://127.0.0.1:5000"

    @property
    def _is_server(self) -> bool:
        return self.tracking_uri.startswith(("http://", "https://"))

    @classmethod
    def locate(cls, settings: TrackingSettings, project_path: Path) -> Store:
        """Resolve the settings against the project.

        A queued DVC experiment runs in a copy that is deleted afterwards: its runs go to the repository that
        DVC_ROOT names.
        """
        home = Path(os.environ.get("DVC_ROOT") or project_path).resolve()
        uri = (
            os.environ.get("MLFLOW_TRACKING_URI")
            or settings.tracking_uri
            or f"sqlite:///{home / 'mlflow.db'}"
        )
        root = settings.artifact_root
        if root is None and not uri.startswith(("http://", "https://")):
            root = "mlartifacts"
        if root is not None and "://" not in root:
            root = (home / root).resolve().as_uri()
        return cls(uri, root)


def flatten_parameters(parameters: Any) -> dict[str, str]:
    """Nested parameters as `a.b.c` -> text, secrets masked, overlong values shortened.

    Pydantic models and dataclasses count as mappings; lists become JSON.
    """
    flat = {}
    for key, value in _leaves(redact(_plain(parameters))):
        shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        if len(shown) > _MAX_PARAMETER_LENGTH:
            shown = shown[: _MAX_PARAMETER_LENGTH - 1] + "…"
        flat[_key(key)] = shown
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def flatten_metrics(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of an output, by name: of metrics.json its metrics, of another mapping all its numbers."""
    if "schema_version" in content:
        return {_key(f"{prefix}{name}"): value for name, value in flatten_evaluation(content).items()}
    return dict(_numbers(content, prefix))


def _numbers(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, item in content.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{name}_")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield _key(name), float(item)


def _key(name: str) -> str:
    """A name in the letters that MLflow allows in keys."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]


class TrackedRun:
    """An open MLflow run, addressed by its id. Only `open` raises: tracking must not stop what it tracks."""

    def __init__(self, client: MlflowClient, store: Store, experiment_id: str, run_id: str) -> None:
        self.client = client
        self.store = store
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._warned = False
        self._system_metrics: Any = None

    @classmethod
    def open(
        cls, store: Store, experiment: str, name: str, parameters: Mapping[str, str], tags: Mapping[str, str]
    ) -> TrackedRun:
        """Create the run, and the experiment where there is none, and log all parameters.

        Raises UserError when mlflow is not installed or the store can't be used.
        """
        try:
            import mlflow
            from mlflow.entities import Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError(
                f"tracking.enabled is true but mlflow can't be imported ({error}). Install mlflow, or set "
                "tracking.enabled to false."
            ) from error
        for chatty in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.system_metrics"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        # MLflow's seven retries make every call to a server that went away last for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        try:
            client = mlflow.MlflowClient(tracking_uri=store.tracking_uri)
            experiment_id = _experiment_id(client, experiment, store.artifact_root)
            run_id = client.create_run(experiment_id, run_name=name, tags=redact(tags)).info.run_id
            run = cls(client, store, experiment_id, run_id)
            items = [Param(key, value) for key, value in parameters.items()]
            for start in range(0, len(items), _PARAMETERS_PER_CALL):
                client.log_batch(run_id, params=items[start : start + _PARAMETERS_PER_CALL])
        except (MlflowException, OSError) as error:
            raise UserError(
                f"Can't record runs at {redact_url(store.tracking_uri)}: {redact_url(str(error))} Set "
                "MLFLOW_TRACKING_URI or tracking.tracking_uri to a store that can be used, or "
                "tracking.enabled to false."
            ) from error
        return run

    @property
    def link(self) -> str:
        """The address of this run in the UI."""
        return f"{self.store.ui_address}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def start_system_metrics(self) -> None:
        """Sample CPU, memory, disk, network and GPU every ten seconds until the run is closed."""
        with self.lossy("system metrics"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._system_metrics = SystemMetricsMonitor(
                self.run_id, sampling_interval=_SYSTEM_SAMPLING_SECONDS, tracking_uri=self.store.tracking_uri
            )
            self._system_metrics.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at one step."""
        with self.lossy("metrics"):
            self.send([_metric(key, value, step) for key, value in metrics.items()])

    def send(self, metrics: list[Metric]) -> None:
        """Log metrics now; raises when the server doesn't take them."""
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder of at most 50 MB; a larger one is left out with a warning."""
        with self.lossy(f"artifact {path}"):
            if path.is_file():
                self.client.log_artifact(self.run_id, str(path), folder)
            elif path.is_dir():
                size_mb = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
                if size_mb > MAX_FOLDER_MB:
                    _log.warning(
                        "%s is not logged: %.0f MB, at most %.0f MB are.", path, size_mb, MAX_FOLDER_MB
                    )
                else:
                    self.client.log_artifacts(self.run_id, str(path), folder or path.name)

    def log_image(self, path: Path, stage: str, step: int) -> None:
        """Log an image at a step: PNG and JPEG under the run's images, animations as artifacts."""
        with self.lossy(f"image {path}"):
            if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                from PIL import Image

                with Image.open(path) as image:
                    self.client.log_image(
                        self.run_id,
                        image.convert("RGB"),
                        key=_key(f"{stage}/samples"),
                        step=step,
                        synchronous=True,
                    )
            else:
                self.client.log_artifact(self.run_id, str(path), _key(f"samples/{stage}"))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, secrets masked."""
        with self.lossy("tags"):
            for key, value in redact(tags).items():
                self.client.set_tag(self.run_id, key, value)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        with self.lossy("system metrics"):
            if self._system_metrics is not None:
                self._system_metrics.finish()
        with self.lossy("the end of the run"):
            self.client.set_terminated(self.run_id, status)

    def lossy(self, what: str) -> _Lossy:
        """A context in which a failure to record `what` is warned about once per run, and nothing more."""
        return _Lossy(self, what)

    def warn(self, what: str, error: BaseException) -> None:
        """Say once that something could not be recorded."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "MLflow at %s did not take %s (%s: %s). The run goes on; further losses are not announced.",
                redact_url(self.store.tracking_uri),
                what,
                type(error).__name__,
                redact_url(str(error)),
            )


class _Lossy:
    def __init__(self, run: TrackedRun, what: str) -> None:
        self._run, self._what = run, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._run.warn(self._what, error)
        return True


def _experiment_id(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_root)
        except MlflowException:  # another process created it in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment {name!r} was deleted. Restore it with `mlflow experiments restore -x "
            f"{found.experiment_id}`, or choose another name as tracking.experiment."
        )
    return found.experiment_id


def _metric(key: str, value: float, step: int, timestamp_ms: int | None = None) -> Metric:
    from mlflow.entities import Metric

    return Metric(_key(key), float(value), timestamp_ms or int(time.time() * 1000), step)


class MlflowLogHandler(logging.Handler):
    """Forwards metrics and images on log records to a run, from a thread of its own.

    Metrics are sent in batches every five seconds and on close. While the server doesn't answer they wait,
    at most 20,000 of them; the caller never waits and never sees an error.
    """

    def __init__(self, run: TrackedRun, flush_seconds: float = _FLUSH_SECONDS) -> None:
        super().__init__(level=logging.INFO)
        self._run = run
        self._flush_seconds = flush_seconds
        self._metrics: deque[Metric] = deque(maxlen=_MAX_WAITING)
        self._images: deque[tuple[Path, str, int]] = deque()
        self._closing = threading.Event()
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._send_until_closed, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue what the record carries; records without `metrics` and `image` are passed over."""
        stage, step = str(getattr(record, "stage", "run")), int(getattr(record, "step", 0))
        for name, value in (getattr(record, "metrics", None) or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._metrics.append(_metric(f"{stage}/{name}", value, step, int(record.created * 1000)))
        image = getattr(record, "image", None)
        if image is not None:
            self._images.append((Path(image), stage, step))

    def flush(self) -> None:
        """Send what waits; metrics that the server doesn't take go on waiting."""
        with self._sending:
            batch: list[Metric] = []
            while self._metrics:
                batch.append(self._metrics.popleft())
            try:
                self._run.send(batch)
            except Exception as error:
                self._metrics.extendleft(reversed(batch))
                self._run.warn("live metrics", error)
            while self._images:
                self._run.log_image(*self._images.popleft())

    def close(self) -> None:
        """Send the rest, for at most thirty seconds, and stop the thread."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)
        super().close()

    def _send_until_closed(self) -> None:
        while not self._closing.wait(self._flush_seconds):
            self.flush()
        self.flush()
