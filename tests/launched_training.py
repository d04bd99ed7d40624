"""A training of a launcher's processes: rank 0 leads and writes losses and weights, the others follow.

torchrun … launched_training.py <folder with inflated, clips and text> <name of the result> <settings of train as JSON>
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import InflationOptions
from pyoco_pipeline.training import launched, stages, trainer
from pyoco_pipeline.training.processes import on_every_device
from pyoco_pipeline.training.settings import NoiseSettings


def settings_of(changes: dict[str, object]) -> StageSettings:
    """Six steps on clips and images."""
    options = {"steps": 6, "image_share": 0.5, "log_every": 1, "checkpoint_every": 2, "learning_rate": 1e-3}
    train = tiny.train_settings(**(options | {"num_processes": "auto"} | changes))
    return StageSettings(noise=NoiseSettings(kind="progressive", alpha=2.0), train=train)


def two_trainings(folder: Path, name: str, changes: dict[str, object]) -> int:
    """A short one, so that there is one before, and the one that counts."""
    store, embeddings = ClipStore(folder / "clips"), TextEmbeddings(folder / "text")
    settings = [settings_of({**changes, "steps": steps}) for steps in (2, 6)]
    for stage in settings:
        model, _, history = on_every_device(
            stage.train.num_processes, stages.train_video_model, "base", stage, folder / "inflated",
            store, embeddings, folder / f"{name}-{stage.train.steps}", inflation=InflationOptions(),
            only_here={"validate": None},
        )  # fmt: skip
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps([row["loss"] for row in history]))
    return 0


def at_step(number: int, happens: Callable[[], object]) -> None:
    """Let something happen before a step of the second training."""
    step = trainer._Run._train_step

    def stepping(run: trainer._Run) -> object:
        if run.step == number and run.settings.steps == 6:
            happens()
        return step(run)

    trainer._Run._train_step = stepping  # type: ignore[method-assign]


def die() -> None:
    """As a machine does that is switched off."""
    os.kill(os.getpid(), signal.SIGKILL)


def cut_the_cable() -> None:
    """So that nothing answers any more, and nothing says so."""
    subprocess.run(["ip", "link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down"], check=True)


def main(folder: Path, name: str, changes: dict[str, object]) -> int:
    torch.set_num_threads(1)
    happens = {None: None, "dies": die, "is cut off": cut_the_cable}[changes.pop("the_other", None)]  # type: ignore[index]
    launched._GONE_S = 6.0
    world = launched.world()
    if world.rank:
        if happens is not None:
            at_step(4, happens)
        return launched.follow(world)
    try:
        return launched.lead(world, lambda: two_trainings(folder, name, changes))
    except UserError as error:
        print(f"Error: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
