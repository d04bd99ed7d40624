"""Trains a tiny video model, kills it at random moments, resumes it, and prints what became of it as JSON.

Everything slow to start is imported once; each run is a fork of this process.

python killed_training.py <empty folder> <kills> <seed>
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import make_batches, make_embeddings, make_objective, make_store, make_video_unet, train_settings

from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.training.trainer import train

STEPS = 100


def train_once(folder: Path, checkpoints: Path) -> None:
    """Train, or go on, to the end, and write the digest of the weights."""
    torch.set_num_threads(1)
    store = make_store(folder / "clips")
    embeddings = make_embeddings(folder / "text", [item.caption for item in store.take()])
    settings = train_settings(
        steps=STEPS, image_share=0.3, checkpoint_every=2, batch_size=2, warmup_steps=10, log_every=5
    )
    model = make_video_unet(trained=False, dropout=0.1)
    train(
        model,
        make_batches(store, embeddings, settings),
        make_objective(),
        settings,
        stage="base",
        checkpoints=checkpoints,
        identity={},
    )
    (checkpoints / "result").write_text(weights_sha256(model))


def fork(folder: Path, checkpoints: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        train_once(folder, checkpoints)
    except BaseException as error:
        print(f"a run failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def newest(checkpoints: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint after the newest is being written; one left by a killed run is never after it."""
    return any(int(path.name[14:]) > newest(checkpoints) for path in checkpoints.glob(".writing-step-*"))


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    assert finish(fork(folder, folder / "whole")) == 0
    killed, exits, torn = folder / "killed", [], 0
    for kill in range(kills):
        pid, target = fork(folder, killed), newest(killed) + draw.randint(1, STEPS // (2 * kills))
        while newest(killed) < target:
            time.sleep(0.002)
        if kill % 2:  # in the middle of a checkpoint
            while not is_writing(killed):
                time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.01 if kill % 2 else 0.1))
        os.kill(pid, signal.SIGKILL)
        exits.append(finish(pid))
        torn += is_writing(killed)
    assert finish(fork(folder, killed)) == 0
    whole, resumed = ((path / "result").read_text() for path in (folder / "whole", killed))
    print(json.dumps({"exits": exits, "torn": torn, "whole": whole, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
