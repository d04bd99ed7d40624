"""The stages of dvc.yaml: the pipelines, their files as the catalog has them, and what a changed value makes anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from projects import REPOSITORY, inside, make_project

from pyoco_pipeline.cascade import stages as cascade
from pyoco_pipeline.datasets import WorkFolderDataset
from pyoco_pipeline.pipeline_registry import SPINE, register_pipelines

WRITTEN: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
CASCADE = [f"finetune_video@{stage}" for stage in cascade.STAGES]  # DVC's names of a matrix
ALL = [name for stage in SPINE for name in (CASCADE if stage == "finetune_video" else [stage])]


def expanded(stage: str) -> Any:
    """A stage as DVC reads it, with its place in the matrix put in."""
    name, _, item = stage.partition("@")
    return yaml.safe_load(yaml.safe_dump(WRITTEN[name]).replace("${item.stage}", item))


STAGES: dict[str, Any] = {stage: expanded(stage) for stage in ALL}


def outputs(stage: str) -> set[str]:
    """The paths that a stage makes; options such as `cache: false` aside."""
    entries = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def downstream(stage: str) -> set[str]:
    """A stage and all that are made from what it makes."""
    reached = {stage}
    for name in STAGES:  # in running order
        made = set().union(*(outputs(other) for other in reached))
        if made & set(STAGES[name]["deps"]):
            reached.add(name)
    return reached


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Pipeline], Any, Path]:
    """The pipelines, the catalog of the default environment, and the project that both are of."""
    project = make_project(tmp_path_factory.mktemp("described"))
    with inside(project), KedroSession.create() as session:
        return register_pipelines(), session.load_context().catalog, project


def paths(names: set[str], catalog: Any, project: Path) -> set[str]:
    """The files and folders of datasets; parameters and work folders have none that DVC should know."""
    data = [catalog.get(n) for n in names if n != "parameters" and not n.startswith("params:")]
    return {
        str(Path(str(dataset._filepath)).relative_to(project))
        for dataset in data
        if not isinstance(dataset, WorkFolderDataset)
    }


def test_the_stages_are_the_spine_in_its_order() -> None:
    assert tuple(WRITTEN) == SPINE
    assert WRITTEN["finetune_video"]["matrix"] == {"stage": list(cascade.STAGES)}
    for name, stage in STAGES.items():
        pipeline, _, namespace = name.partition("@")
        only = f" --namespaces {namespace}" if namespace else ""
        assert stage["cmd"] == f"kedro run --pipelines {pipeline}{only}"


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_makes_and_needs_what_the_catalog_says(
    described: tuple[dict[str, Pipeline], Any, Path], stage: str
) -> None:
    pipelines, catalog, project = described
    name, _, namespace = stage.partition("@")
    pipeline = pipelines[name].filter(node_namespaces=[namespace] if namespace else None)
    made = paths(pipeline.all_outputs(), catalog, project)
    beside = {"data/02_intermediate/captions.html"} if stage == "ingest" else set()  # the validator's page
    assert outputs(stage) == made | beside
    assert paths(pipeline.inputs(), catalog, project) <= set(STAGES[stage]["deps"])


@pytest.mark.parametrize("stage", ALL)
def test_the_code_and_parameters_of_a_stage_exist(stage: str) -> None:
    parameters = [next(iter(entry)) for entry in STAGES[stage]["params"]]
    pipeline = stage.partition("@")[0]
    assert parameters[0] == f"conf/base/parameters_{pipeline}.yml"
    kept = [path for path in STAGES[stage]["deps"] if not path.startswith("data/")] + parameters
    assert [path for path in kept if not (REPOSITORY / path).exists()] == []
    assert f"src/pyoco_pipeline/pipelines/{pipeline}" in kept


def test_alpha_matters_from_fine_tuning_on() -> None:
    assert downstream("finetune_video@base") == {"finetune_video@base", "generate", "evaluate", "report"}


def test_a_stage_of_the_cascade_is_trained_anew_without_the_others() -> None:
    for stage in CASCADE:
        assert downstream(stage) == {stage, "generate", "evaluate", "report"}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC copy of the project in which every stage has been run by a stand-in for `kedro`."""
    project = make_project(tmp_path_factory.mktemp("dvc"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, project)
    (project / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc/config", project / ".dvc/config")
    (project / "src").rmdir()
    shutil.copytree(
        REPOSITORY / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    (project / "bin").mkdir()
    (project / "bin/kedro").write_text(STAND_IN.format(python=sys.executable))
    (project / "bin/kedro").chmod(0o755)
    (project / "bin/outputs.json").write_text(json.dumps({name: sorted(outputs(name)) for name in STAGES}))
    run(project, "git", "init", "-q")
    dvc(project, "repro", "-q")
    return project


def run(project: Path, *command: str) -> str:
    """The command's output; `kedro` in it is the project's stand-in, which notes the stage and makes its outputs."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    environment["PATH"] = f"{project / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(project: Path, *options: str) -> str:
    return run(project, str(Path(sys.executable).with_name("dvc")), *options)


def changed(project: Path) -> set[str]:
    return set(json.loads(dvc(project, "status", "--json")))


STAND_IN = """#!{python}
import json, sys, uuid
from pathlib import Path

arguments = sys.argv[sys.argv.index("--pipelines") + 1 :]
stage = "@".join([arguments[0], *arguments[2:]])
with Path("ran.txt").open("a") as log:
    log.write(stage + "\\n")
for path in json.loads(Path("bin/outputs.json").read_text())[stage]:
    file = Path(path) if Path(path).suffix else Path(path) / "content"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({{"made": uuid.uuid4().hex}}))
"""


@pytest.mark.slow
def test_a_first_reproduction_runs_the_whole_method_once(reproduced: Path) -> None:
    assert (reproduced / "ran.txt").read_text().split() == ALL
    assert changed(reproduced) == set()


@pytest.mark.slow
def test_another_alpha_makes_fine_tuning_and_what_follows_anew_and_nothing_before(reproduced: Path) -> None:
    file = reproduced / "conf/base/parameters_finetune_video.yml"
    default = file.read_text()
    assert default.count("alpha: 2.0") == 1
    file.write_text(default.replace("alpha: 2.0", "alpha: 1.0"))
    (reproduced / "ran.txt").unlink()
    assert changed(reproduced) == {"finetune_video@base"}
    dvc(reproduced, "repro", "-q")
    assert (reproduced / "ran.txt").read_text().split() == [
        "finetune_video@base",
        "generate",
        "evaluate",
        "report",
    ]

    file.write_text(default)
    dvc(reproduced, "repro", "-q")  # what was made with the first alpha comes back from the cache
    assert len((reproduced / "ran.txt").read_text().split()) == 4
    assert changed(reproduced) == set()
