"""What can happen to a training from outside: processes killed, data that are no numbers, a clock that is set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_batches, make_embeddings, make_objective, make_store, make_video_unet, train_settings

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.training import stages
from pyoco_pipeline.training.processes import on_every_device
from pyoco_pipeline.training.settings import NoiseSettings
from pyoco_pipeline.training.trainer import train

STEPS = 24
KILLED_AFTER = 4  # steps


def make_inputs(folder: Path) -> None:
    store = make_store(folder / "clips")
    make_embeddings(folder / "text", [item.caption for item in store.take()])
    save_video_model(make_video_unet(trained=False), folder / "inflated")


def train_on(processes: int, folder: Path, checkpoints: str) -> dict[str, torch.Tensor]:
    """The weights of a stage trained on so many processes of the CPU."""
    train = train_settings(steps=STEPS, checkpoint_every=2, learning_rate=1e-3, num_processes=processes)
    stage = StageSettings(noise=NoiseSettings(kind="progressive", alpha=2.0), train=train)
    store, texts = ClipStore(folder / "clips"), TextEmbeddings(folder / "text")
    arguments = ("base", stage, folder / "inflated", store, texts, folder / checkpoints)
    return on_every_device(processes, stages.train_video_model, *arguments)[0].state_dict()


def steps_kept(checkpoints: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in checkpoints.glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["all processes", "the one that started them"])
def test_a_training_on_two_processes_goes_on_after_kill_9_of(tmp_path, killed):
    make_inputs(tmp_path)
    command = [sys.executable, __file__, str(tmp_path), "killed"]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as launcher:
        deadline = time.monotonic() + 120
        while max(steps_kept(tmp_path / "killed"), default=0) < KILLED_AFTER:
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        assert ranks
        for process in [*ranks, launcher] if killed == "all processes" else [launcher]:
            os.kill(process.pid, signal.SIGKILL)
    assert launcher.returncode == -signal.SIGKILL
    assert psutil.wait_procs(ranks, timeout=20)[1] == []  # none is left behind
    assert max(steps_kept(tmp_path / "killed")) < STEPS

    resumed, whole = train_on(1, tmp_path, "killed"), train_on(1, tmp_path, "whole")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_a_clip_that_is_not_a_number_ends_training_and_no_checkpoint_holds_its_traces(tmp_path, digits_store):
    clips = [
        replace(item, clip=replace(item.clip, video=item.clip.video.astype(np.float16)))
        for item in digits_store.take("train")
    ]
    clips[5].clip.video[1, 2, 3] = np.nan
    write_clips(tmp_path / "clips", clips, kind="broken", shape=digits_store.shape, fps=8.0, dtype="float16")
    store = ClipStore(tmp_path / "clips")
    embeddings = make_embeddings(tmp_path / "text", [item.caption for item in clips])
    settings = train_settings(batch_size=2, checkpoint_every=1, log_every=1, keep_checkpoints=10)

    for _ in range(2):  # the same command comes to the same clip
        with pytest.raises(UserError, match=r"the loss is nan .* or look at the data") as error:
            train(make_video_unet(trained=False), make_batches(store, embeddings, settings), make_objective(),
                  settings, stage="base", checkpoints=tmp_path / "checkpoints", identity={})  # fmt: skip
        kept = steps_kept(tmp_path / "checkpoints")
        assert f"at step {max(kept, default=0) + 1} " in str(error.value)
        for path in (tmp_path / "checkpoints").rglob("*.safetensors"):
            assert all(value.isfinite().all() for value in load_file(path).values())


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_is_set_neither_ends_training_nor_changes_it(
    tmp_path, monkeypatch, digits_store, digits_embeddings, jump
):
    settings = train_settings(max_minutes=10.0, log_every=1)

    def trained(folder: str) -> tuple[list[float], list[dict[str, Any]]]:
        network = make_video_unet(trained=False)
        batches = make_batches(digits_store, digits_embeddings, settings)
        history = train(network, batches, make_objective(), settings, stage="base", checkpoints=tmp_path / folder,
                        identity={})  # fmt: skip
        return [row["loss"] for row in history], history

    losses, _ = trained("as it is")
    now, calls = time.time(), count()
    monkeypatch.setattr(time, "time", lambda: now + jump * next(calls))
    found, history = trained("set")

    assert found == losses
    assert all(row["clips_per_second"] > 0 for row in history)
    assert len(history) == settings.steps


if __name__ == "__main__":
    train_on(2, Path(sys.argv[1]), sys.argv[2])
