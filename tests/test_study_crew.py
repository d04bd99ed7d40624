"""Processes of one machine that train cells side by side: each has one GPU to itself from its start."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyoco_pipeline.study import workers
from pyoco_pipeline.study.workers import cell_runner


@dataclass(frozen=True)
class StartedWith:
    """A task that tells which GPUs its process saw when it was started."""

    number: int

    def run(self) -> str:
        started_with = Path("/proc/self/environ").read_bytes().split(b"\0")
        return next((v.decode() for v in started_with if v.startswith(b"CUDA_VISIBLE_DEVICES=")), "")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's /proc")
def test_workers_are_started_on_one_gpu_each_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set later, it would do nothing: what is sent to a worker may ask for CUDA as it is read.
    monkeypatch.setattr(workers, "_gpus", lambda: ["4", "5"])
    settings = SimpleNamespace(executor="processes", workers=3)
    with cell_runner(settings) as run:
        seen = sorted(outcome for _, outcome in run([StartedWith(number) for number in range(3)]))
    assert seen == ["CUDA_VISIBLE_DEVICES=4", "CUDA_VISIBLE_DEVICES=4", "CUDA_VISIBLE_DEVICES=5"]
