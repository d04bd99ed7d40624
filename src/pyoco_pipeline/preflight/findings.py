"""All that is found, in the order in which a run would meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.preflight.plan import Plan

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a sentence, and whether a run would end there."""

    level: Level
    what: str


Check = Callable[[Plan], Iterator[Finding]]


def find_all(parameters: Mapping[str, Any], data: Path, project: Path) -> Iterator[Finding]:
    """Look at everything; parameters: the typed settings by section, data: the environment's data folder,
    project: the folder that other paths are from.
    """
    from pyoco_pipeline.preflight.disk import check_disk
    from pyoco_pipeline.preflight.memory import check_memory
    from pyoco_pipeline.preflight.paths import check_paths
    from pyoco_pipeline.preflight.shapes import check_shapes

    plan = Plan(parameters, data, project)
    checks: tuple[Check, ...] = (check_paths, check_shapes, check_memory, check_disk)
    for check in checks:
        try:
            yield from check(plan)
        except UserError as error:
            yield Finding("problem", str(error))
