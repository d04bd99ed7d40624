"""A copy of the project in a folder of its own, and `kedro run` in it from within the tests' process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner, Result

REPOSITORY = Path(__file__).parents[1]


def make_project(folder: Path) -> Path:
    """The repository's configuration with an empty data folder; the package itself is the installed one."""
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "conf", folder / "conf", ignore=lambda path, names: _local(path, names))
    (folder / "src").mkdir()
    (folder / "data/01_raw").mkdir(parents=True)
    return folder


def _local(path: str, names: list[str]) -> list[str]:
    return names if Path(path).name == "local" else []  # a developer's own values are not the project's


@contextmanager
def inside(project: Path) -> Iterator[None]:
    """Within: the process is in the project, and Kedro knows it."""
    from kedro.framework.startup import bootstrap_project

    folder, paths, environment = Path.cwd(), sys.path[:], dict(os.environ)
    os.chdir(project)
    try:
        bootstrap_project(project)
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = paths
        os.environ.clear()
        os.environ.update(environment)


def kedro_run(project: Path, *options: str, params: Mapping[str, object] | None = None) -> Result:
    """`kedro run` with these options and `--params`, without tracking unless they ask for it."""
    from pyoco_pipeline.cli import cli

    values = {"tracking.enabled": "false", **(params or {})}
    given = ",".join(f"{key}={value}" for key, value in values.items())
    with inside(project):
        return CliRunner().invoke(cli, ["run", "--params", given, *options])


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder with the time of its last change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def only_base(data: Path) -> None:
    """Say, as `finetune_video` does, that the cascade has no stage but base."""
    from pyoco_pipeline.cascade.folders import write_none
    from pyoco_pipeline.cascade.stages import STAGES

    for stage in STAGES[1:]:
        write_none(data / "06_models" / stage, stage=stage)
