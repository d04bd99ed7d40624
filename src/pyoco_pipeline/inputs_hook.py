"""Before anything starts: is every parameter read by a pipeline, and is everything there that the run reads?

And when it fails: was a file of the catalog damaged, and what makes it again?
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError

from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.hooks import tracking_settings

# Kedro's own words.
_UNLOADED = re.compile(
    r"(?P<name>[^\s:]+): Failed while loading data from dataset \w[\w.]*\((?:.*?filepath=\w*\('(?P<place>[^']*)'\))?"
)
# What readers of JSON, Parquet, text and pictures raise for files that are cut short or of something else.
_UNREADABLE = (ValueError, OSError, EOFError, SyntaxError)


class InputsHook:
    """Ends a run with a parameter that nothing reads, or whose inputs are missing or damaged: it names what to run."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        parameters = catalog.load("parameters")
        check_parameters(parameters)
        tracking_settings(parameters.get("tracking"))
        data = [name for name in sorted(pipeline.inputs()) if not name.startswith("params:")]
        missing = [name for name in data if name != "parameters" and not catalog.exists(name)]
        if not missing:
            return
        name = missing[0]
        maker = _maker(name)
        place = getattr(catalog.get(name), "_filepath", None)
        first = f"run `kedro run --pipelines {maker}` first" if maker else "put it there"
        raise UserError(f"{name} is missing{f' ({place})' if place else ''}: {first}.")

    @hook_impl(trylast=True)  # the others close what they have opened
    def on_pipeline_error(self, error: Exception) -> None:
        """UserError in place of what a library raises while it reads a damaged file of the catalog."""
        found = _UNLOADED.match(str(error)) if isinstance(error, DatasetError) else None
        cause: BaseException | None = error
        while isinstance(cause, DatasetError):
            cause = cause.__cause__
        if found is None or not isinstance(cause, _UNREADABLE):
            return
        maker = _maker(found["name"])
        place = f"{found['place']}: " if found["place"] else ""
        raise UserError(
            f"{found['name']} can't be read ({place}{in_one_line(cause)}): "
            f"{f'run `kedro run --pipelines {maker}` again' if maker else 'put it there anew'}."
        ) from error


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """UserError for a misspelt section; the keys inside a section are checked by its settings."""
    read = {"tracking"}
    for pipeline in _all_pipelines().values():
        read |= {name.removeprefix("params:") for name in pipeline.inputs() if name.startswith("params:")}
    for key in _sections(parameters, read):
        if key not in read:
            raise UserError(
                f"wrong parameters in conf/ or --params: no pipeline reads {key}, only {', '.join(sorted(read))}."
            )


def _sections(tree: Mapping[str, Any], read: set[str], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in read):
            yield from _sections(value, read, f"{key}.")
        else:
            yield key


def _all_pipelines() -> Mapping[str, Any]:
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)  # the session narrowed the registry to what it runs
    return pipelines


def _maker(dataset: str) -> str | None:
    for name, pipeline in _all_pipelines().items():
        if name != "__default__" and dataset in pipeline.outputs() | pipeline.all_outputs():
            return name
    return None
