"""Lock files, the list of what is installed, and what is said of vulnerabilities."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from projects import REPOSITORY

from pyoco_pipeline.evaluation.digits3d import ASSETS, CARD_FILE
from pyoco_pipeline.evaluation.extractors import LITE0_SHA256
from pyoco_pipeline.models import shipped, text

LOCKS = sorted(path.name for path in REPOSITORY.glob("requirements*.lock"))
audit = runpy.run_path(str(REPOSITORY / "scripts/audit.py"))["verdict"]


def locked(name: str) -> dict[str, list[str]]:
    """ "name==version" -> the hashes that its file may have."""
    lines = (REPOSITORY / name).read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {entry.split()[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", entry) for entry in entries}


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_the_hashes_of_its_files(name):
    packages = locked(name)

    assert packages
    assert [package for package in packages if not re.fullmatch(r"[a-z0-9-]+==[0-9][^;*,]*", package)] == []
    assert [package for package, hashes in packages.items() if not hashes] == []


def test_no_package_is_locked_twice():
    names = [package.partition("==")[0] for name in LOCKS for package in locked(name)]

    assert len(names) == len(set(names))


def test_the_lock_files_fit_what_the_project_asks_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    versions = dict(package.split("==") for name in LOCKS for package in locked(name))
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    asked = [Requirement(text) for text in [*project["dependencies"], *extras]]

    wrong = [str(r) for r in asked if versions.get(canonicalize_name(r.name), "") not in r.specifier]
    assert wrong == []


def test_both_builds_of_torch_are_locked():
    (hashes,) = locked("requirements-torch.lock").values()
    cpu = {
        line.split()[0] for line in (REPOSITORY / "scripts/torch_cpu_wheels.sha256").read_text().splitlines()
    }

    assert cpu < set(hashes)
    assert any(package.startswith("nvidia-cudnn") for package in locked("requirements-cuda.lock"))


@pytest.mark.slow
def test_the_bill_of_materials_names_packages_and_the_sha256_that_weights_are_checked_against(tmp_path):
    command = [sys.executable, REPOSITORY / "scripts/sbom.py", tmp_path / "sbom.json"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    bom = json.loads((tmp_path / "sbom.json").read_text())
    weights = {
        part["hashes"][0]["content"] for part in bom["components"] if part["type"] == "machine-learning-model"
    }
    cards = (shipped.FOLDER / "card.json", ASSETS / CARD_FILE)

    assert bom["bomFormat"] == "CycloneDX"
    assert {"torch", "kedro", "diffusers"} <= {part["name"] for part in bom["components"]}
    assert weights == {
        LITE0_SHA256,
        text._MINILM_SHA256,
        *(json.loads(c.read_text())["sha256"] for c in cards),
    }


def checked(name: str, *found: str) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [{"id": i, "fix_versions": ["1.1"]} for i in found]}


SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "stderr", "status", "words"),
    [
        ([checked("a"), checked("b")], "", 0, "2 packages checked, 0 known vulnerabilities"),
        ([checked("a"), checked("b", "PYSEC-1")], "", 1, "b 1.0: PYSEC-1, fixed in 1.1"),
        ([checked("a"), SKIPPED], "", 0, "1 packages checked, 0 known vulnerabilities, not checked: c"),
        ([SKIPPED], "", 0, "nothing was checked"),
        (
            None,
            "requests.exceptions.ConnectionError: no route",
            0,
            "no vulnerability service .* nothing was checked",
        ),
        (None, "error: invalid choice", 1, "pip-audit failed:\nerror: invalid choice"),
    ],
)
def test_an_audit_fails_on_a_vulnerability_and_says_when_nothing_was_checked(packages, stderr, status, words):
    found = audit("" if packages is None else json.dumps({"dependencies": packages}), stderr)

    assert found[0] == status
    assert re.search(words, found[1])
