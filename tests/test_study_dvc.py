"""The α grid as DVC experiments: queued from the command line, run one after another, listed side by side."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from test_dvc import dvc, reproduced, run  # noqa: F401

ALPHA = "conf/base/parameters_finetune_video.yml:finetune_video.base.noise.alpha"


@pytest.mark.slow
def test_a_grid_of_alphas_is_queued_run_and_shown_as_experiments(
    reproduced: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The queue's worker calls `dvc` by name.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kept = reproduced / "data/01_raw/.gitkeep"  # as the repository has it
    kept.touch()
    run(reproduced, "git", "add", "-f", str(kept))
    run(reproduced, "git", "add", ".")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    run(reproduced, "git", *author, "commit", "-q", "-m", "all")
    dvc(reproduced, "exp", "run", "-q", "--queue", "-S", f"{ALPHA}=0.5,1")
    dvc(reproduced, "exp", "run", "--run-all", "--jobs", "1")
    shown = json.loads(dvc(reproduced, "exp", "show", "--json"))
    experiments = [e for row in shown for e in row.get("experiments") or []]
    seen = {}
    for experiment in experiments:
        data = experiment["revs"][0]["data"]
        file, keys = ALPHA.split(":")
        value = data["params"][file]["data"]
        for key in keys.split("."):
            value = value[key]
        seen[value] = data["outs"]["data/06_models/base"]["hash"]
    assert set(seen) == {0.5, 1}
    assert len(set(seen.values())) == 2  # each trained its own
