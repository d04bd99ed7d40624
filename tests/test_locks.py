"""Two runs on one folder: the second is refused before it has done anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from projects import kedro_run, make_project, tree


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def test_a_second_ingest_is_refused_and_changes_nothing(project):
    (project / "data/ci/03_primary").mkdir(parents=True)
    before = tree(project / "data")
    with FileLock(project / "data/ci/03_primary/.lock-clips", timeout=0):
        result = kedro_run(project, "--env", "ci", "--pipelines", "ingest")

    assert result.exit_code == 1
    assert "another run is writing into" in result.output
    assert "03_primary/clips: wait for it or stop it" in result.output
    assert tree(project / "data").keys() - before.keys() <= {"ci/03_primary/.lock-clips"}


def test_the_lock_ends_with_the_run(project):
    for _ in range(2):
        assert kedro_run(project, "--env", "ci", "--pipelines", "ingest").exit_code == 0
        assert not list((project / "data").rglob(".lock-*"))


def test_a_run_that_fails_lets_go_of_its_locks(project):
    result = kedro_run(
        project, "--env", "ci", "--pipelines", "ingest", params={"ingest.text_encoder": "nowhere"}
    )

    assert result.exit_code == 1
    assert not list((project / "data").rglob(".lock-*"))
