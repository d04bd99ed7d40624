"""A training run that is killed again and again, without warning, ends with the weights of one that never was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 10


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_a_run_killed_ten_times_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(KILLS), "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["exits"] == KILLS * [-signal.SIGKILL]
    assert result["torn"] > 0  # checkpoints that a kill left half-written
    assert result["resumed"] == result["whole"]
