"""A training as JSON, for processes on other machines: which function, its settings and its folders.

What a process is sent can name only the trainings listed here, and only their own arguments.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyoco_pipeline.config import PretrainImageSettings, StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import InflationOptions
from pyoco_pipeline.training import stages

_WORKS: dict[str, Callable[..., Any]] = {
    "train_image_model": stages.train_image_model,
    "train_video_model": stages.train_video_model,
}
_SETTINGS = {kind.__name__: kind for kind in (PretrainImageSettings, StageSettings)}


def to_json(work: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call as text. Raises TypeError for a function or an argument that can't be sent."""
    if _WORKS.get(work.__name__) is not work:
        raise TypeError(f"{work} is not a training that can be handed over")
    arguments = inspect.signature(work).bind(*args, **kwargs).arguments
    return json.dumps(
        {"work": work.__name__, "arguments": {name: _packed(value) for name, value in arguments.items()}}
    )


def from_json(text: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function and its arguments by name.

    Raises UserError where this machine does not see the same clips or embeddings.
    """
    content = json.loads(text)
    return _WORKS[content["work"]], {name: _unpacked(**value) for name, value in content["arguments"].items()}


def _packed(value: Any) -> dict[str, Any]:
    match value:
        case None | str() | int() | float():
            return {"kind": "plain", "value": value}
        case Path():
            return {"kind": "path", "value": str(value.absolute())}
        case PretrainImageSettings() | StageSettings():
            return {"kind": type(value).__name__, "value": value.model_dump()}
        case ClipStore():
            folder = str(value.folder if value.is_remote else Path(value.folder).absolute())
            return {"kind": "clips", "value": folder, "sha256": value.manifest.sha256}
        case TextEmbeddings():
            return {
                "kind": "embeddings",
                "value": str(value.folder.absolute()),
                "sha256": value.encoder_sha256,
            }
        case InflationOptions():
            return {"kind": "inflation", "value": asdict(value)}
    raise TypeError(f"{value!r} can't be handed over")


def _unpacked(kind: str, value: Any, sha256: str | None = None) -> Any:
    if kind in _SETTINGS:
        return _SETTINGS[kind].model_validate(value)
    if kind == "path":
        return Path(value)
    if kind == "inflation":
        return InflationOptions(**value)
    if kind == "clips":
        store = ClipStore(value)
        _check_same(value, store.manifest.sha256, sha256)
        return store
    if kind == "embeddings":
        embeddings = TextEmbeddings(value)
        _check_same(value, embeddings.encoder_sha256, sha256)
        return embeddings
    assert kind == "plain", kind
    return value


def _check_same(folder: str, found: str, expected: str | None) -> None:
    if found != expected:
        raise UserError(
            f"{folder} has other content here (sha256 {found[:12]}…) than where the run was started "
            f"({str(expected)[:12]}…): let every machine see the same data folder under the same path."
        )
