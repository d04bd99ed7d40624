"""The pipelines, their layers and their configuration, without running any of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.session import KedroSession
from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline
from projects import REPOSITORY, inside, make_project

from pyoco_pipeline import config
from pyoco_pipeline.analysis.settings import AnalyseNoiseSettings
from pyoco_pipeline.datasets import WorkFolderDataset
from pyoco_pipeline.evaluation.settings import Digits3DTraining, EvaluateSettings
from pyoco_pipeline.pipeline_registry import SPINE, register_pipelines
from pyoco_pipeline.study.settings import AblateAlphaSettings

PACKAGE = REPOSITORY / "src/pyoco_pipeline"
ENVIRONMENTS = [
    *("base", "gpu", "study", "study_alphas", "study_sigma", "crossing", "assets", "ci"),
    *("videos", "ucf101", "cascade", "gpu_cascade", "paper"),
]
SETTINGS = {
    "ingest": config.IngestSettings,
    "pretrain_image": config.PretrainImageSettings,
    "inflate": config.InflateSettings,
    "finetune_video.base": config.StageSettings,
    "generate": config.GenerateSettings,
    "evaluate": EvaluateSettings,
    "report": config.ReportSettings,
    "export": config.ExportSettings,
    "analyse_noise": AnalyseNoiseSettings,
    "digits_classifier": Digits3DTraining,
    "ablate_alpha": AblateAlphaSettings,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def pipelines(project: Path) -> dict[str, Pipeline]:
    with inside(project):
        return register_pipelines()


def load_catalog(project: Path, env: str) -> Any:
    with inside(project), KedroSession.create(env=env) as session:
        return session.load_context().catalog


def data_names(names: set[str]) -> set[str]:
    return {name for name in names if name != "parameters" and not name.startswith("params:")}


def test_the_registry_holds_every_step_and_their_sum(pipelines: dict[str, Pipeline]) -> None:
    assert set(pipelines) == {
        "ingest",
        "pretrain_image",
        "inflate",
        "finetune_video",
        "generate",
        "evaluate",
        "report",
        "export",
        "ablate_alpha",
        "analyse_noise",
        "digits_classifier",
        "__default__",
    }
    assert SPINE == (
        "ingest",
        "pretrain_image",
        "inflate",
        "finetune_video",
        "generate",
        "evaluate",
        "report",
    )
    default = {node.name for node in pipelines["__default__"].nodes}
    assert default == {node.name for name in SPINE for node in pipelines[name].nodes}


def test_a_pipeline_fits_a_screen(pipelines: dict[str, Pipeline]) -> None:
    sizes = {name: len(pipeline.nodes) for name, pipeline in pipelines.items() if name != "__default__"}
    assert all(1 <= size <= 8 for size in sizes.values()), sizes


def test_the_default_run_starts_from_nothing_but_parameters_and_work_folders(
    project: Path, pipelines: dict[str, Pipeline]
) -> None:
    catalog = load_catalog(project, "base")
    free = data_names(pipelines["__default__"].inputs())
    assert {name for name in free if not isinstance(catalog.get(name), WorkFolderDataset)} == set()


def test_every_dataset_is_kept_by_the_catalog(project: Path, pipelines: dict[str, Pipeline]) -> None:
    catalog = load_catalog(project, "base")
    names = set().union(*(data_names(pipeline.datasets()) for pipeline in pipelines.values()))
    kept = {name: catalog.get(name) for name in names}
    assert {
        n for n, dataset in kept.items() if dataset is None or isinstance(dataset, MemoryDataset)
    } == set()


def test_no_two_datasets_share_a_file(project: Path, pipelines: dict[str, Pipeline]) -> None:
    catalog = load_catalog(project, "base")
    names = sorted(set().union(*(data_names(pipeline.datasets()) for pipeline in pipelines.values())))
    paths = [str(catalog.get(name)._filepath) for name in names]
    assert len(set(paths)) == len(paths), dict(zip(names, paths, strict=True))


@pytest.mark.parametrize(
    "command",
    ["import pyoco_pipeline", "kedro registry list", "kedro run --help"],
)
def test_commands_that_compute_nothing_import_nothing_heavy(project: Path, command: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "mlflow", "great_expectations")
    program = f"""
import json, sys
if {command!r}.startswith("import"):
    {command if command.startswith("import") else "pass"}
else:
    from kedro.framework.cli.cli import main
    sys.argv = {command.split()!r}
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_registry_itself_imports_nothing_heavy(project: Path) -> None:
    program = """
import sys
from pathlib import Path
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
from kedro.framework.project import pipelines
assert len(dict(pipelines)) == 12
print([name for name in ("torch", "diffusers", "mlflow", "great_expectations") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def modules_below_kedro() -> Iterator[Path]:
    """The layers that run where only torch, diffusers, transformers and accelerate are installed."""
    yield from (
        *sorted(PACKAGE.glob("noise*.py")),
        PACKAGE / "generation.py",
        PACKAGE / "sampling.py",
        PACKAGE / "launch.py",
    )
    for layer in (
        "diffusion",
        "models",
        "data",
        "cascade",
        "training",
        "evaluation",
        "exporting",
        "reporting",
    ):
        yield from sorted((PACKAGE / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", modules_below_kedro(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_layers_below_kedro_do_not_know_it(path: Path) -> None:
    orchestration = {"kedro", "kedro_datasets", "mlflow", "dvc", "great_expectations"}
    found = {name for name in imported(path) if name.split(".")[0] in orchestration}
    if path.name == "expectations.py":  # the one module with Great Expectations
        assert {name.split(".")[0] for name in found} == {"great_expectations"}
    else:
        assert found == set()


@pytest.mark.parametrize("layer", ["noise.py", "noise_prior.py", "diffusion"])
def test_noise_and_diffusion_know_no_network_class(layer: str) -> None:
    files = [PACKAGE / layer] if layer.endswith(".py") else sorted((PACKAGE / layer).rglob("*.py"))
    for path in files:
        own = {name for name in imported(path) if name.startswith("pyoco_pipeline")}
        assert {name.split(".")[1] for name in own} <= {
            "noise",
            "noise_kernels",
            "noise_prior",
            "diffusion",
            "errors",
        }, path
        assert not {name for name in imported(path) if name.split(".")[0] in ("diffusers", "transformers")}


def test_every_environment_of_conf_is_tested() -> None:
    folders = {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()}
    assert folders - {"local"} == set(ENVIRONMENTS)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_environment_gives_valid_typed_settings(project: Path, env: str) -> None:
    catalog = load_catalog(project, env)
    for key, settings in SETTINGS.items():
        assert isinstance(catalog.load(f"params:{key}"), settings)


def test_environments_with_other_clips_keep_their_data_apart(project: Path) -> None:
    paths = {env: str(load_catalog(project, env).get("clips")._filepath) for env in ENVIRONMENTS}
    assert len(set(paths.values())) == len(ENVIRONMENTS), paths


def test_an_environment_that_sets_alpha_keeps_the_kind_of_noise(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    base = load_catalog(project, "base").load("params:finetune_video.base")
    extra = project / "conf/gpu/parameters_alpha.yml"
    extra.write_text("finetune_video: {base: {noise: {alpha: 1.0}}}\n")
    # Within one environment a key may stand in one file only.
    gpu = project / "conf/gpu/parameters_finetune_video.yml"
    gpu.unlink()
    stage = load_catalog(project, "gpu").load("params:finetune_video.base")
    assert (stage.noise.kind, stage.noise.alpha) == (base.noise.kind, 1.0)
    assert stage.sigma == base.sigma
    assert stage.train == base.train


def test_the_shipped_gpu_environment_keeps_the_prior_and_moves_sigma_with_the_resolution(
    project: Path,
) -> None:
    base, gpu = (load_catalog(project, env).load("params:finetune_video.base") for env in ("base", "gpu"))
    assert gpu.noise == base.noise
    assert gpu.sigma.mean > base.sigma.mean  # more pixels average more noise out
    assert gpu.train.steps > base.train.steps
