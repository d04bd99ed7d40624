"""Before anything starts: is everything that the run reads there, and if not, which pipeline makes it?"""

from __future__ import annotations

from typing import Any

from kedro.framework.hooks import hook_impl

from pyoco_pipeline.errors import UserError


class InputsHook:
    """Ends a run whose inputs are missing with the name of the pipeline to run first."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        data = [name for name in sorted(pipeline.inputs()) if not name.startswith("params:")]
        missing = [name for name in data if name != "parameters" and not catalog.exists(name)]
        if not missing:
            return
        name = missing[0]
        maker = _maker(name)
        place = getattr(catalog.get(name), "_filepath", None)
        first = f"run `kedro run --pipeline {maker}` first" if maker else "put it there"
        raise UserError(f"{name} is missing{f' ({place})' if place else ''}: {first}.")


def _maker(dataset: str) -> str | None:
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)  # the session narrowed the registry to what it runs
    for name, pipeline in pipelines.items():
        if name != "__default__" and dataset in pipeline.outputs() | pipeline.all_outputs():
            return name
    return None
