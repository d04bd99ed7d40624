"""Keys in conf/local and in the environment are in nothing that a run says, logs, tracks or reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from projects import make_project

pytestmark = pytest.mark.slow

KEYS = {  # none of them is one
    "credentials": "cred-5up3r-f4k3",
    "parameter": "par4m-5up3r-f4k3",
    "address": "addr-5up3r-f4k3",
    "environment": "env-5up3r-f4k3",
    "typo": "typ0-5up3r-f4k3",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose conf/local holds the values of conf/ci and keys."""
    project = make_project(tmp_path_factory.mktemp("secrets"))
    shutil.copytree(project / "conf/ci", project / "conf/local", dirs_exist_ok=True)
    local = project / "conf/local"
    (local / "credentials.yml").write_text(
        yaml.safe_dump({"bucket": {"key": "me", "secret": KEYS["credentials"]}})
    )
    tags = {"api_key": KEYS["parameter"], "mirror": f"https://me:{KEYS['address']}@mirror.example/clips"}
    (local / "parameters_keys.yml").write_text(yaml.safe_dump({"tracking": {"tags": tags}}))
    return project


def kedro_run(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`kedro run` of conf/local in a process of its own, tracked as by default."""
    left_out = ("MLFLOW_TRACKING_URI", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [str(Path(sys.executable).with_name("kedro")), "run", *options],
        cwd=project,
        env=environment | {"OMP_NUM_THREADS": "1", "AWS_SECRET_ACCESS_KEY": KEYS["environment"]},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def where(project: Path, key: str) -> list[str]:
    """The files that a run has written which hold a key; a database's and a log's text lies in them as it is."""
    files = (path for path in project.rglob("*") if path.is_file() and project / "conf" not in path.parents)
    return [str(path.relative_to(project)) for path in files if key.encode() in path.read_bytes()]


def test_no_key_is_in_a_log_in_mlflow_or_in_the_report(project):
    done = kedro_run(project)

    assert done.returncode == 0, done.stderr
    assert (project / "data/ci/08_reporting/report.html").is_file()
    assert where(project, "mirror.example") != []  # the parameters beside the keys are there
    for name, key in KEYS.items():
        assert key not in done.stdout + done.stderr, name
        assert where(project, key) == [], name


@pytest.mark.parametrize(
    "option",
    [
        "ingest.api_key={typo}",
        "ingest.tasks={{secret: {typo}}}",
        "bucket.password={typo}",
        "ingest.height=none",
    ],
)
def test_no_key_is_in_what_is_said_of_a_run_that_fails(project, option):
    done = kedro_run(project, "--pipelines", "ingest", "--params", option.format(**KEYS))

    assert done.returncode == 1
    assert option.partition(".")[0] in done.stdout + done.stderr
    for name, key in KEYS.items():
        assert key not in done.stdout + done.stderr, name
        assert where(project, key) == [], name
