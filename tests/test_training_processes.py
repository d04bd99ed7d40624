"""Training shared out over processes gives the training of one, and nothing is lost where one of them is."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.training import stages
from pyoco_pipeline.training.processes import on_every_device
from pyoco_pipeline.training.settings import NoiseSettings

pytestmark = pytest.mark.slow  # every process imports torch and diffusers first

STEPS = 6


@pytest.fixture
def inflated(tmp_path: Path) -> Path:
    save_video_model(tiny.make_video_unet(trained=False), tmp_path / "inflated")
    return tmp_path / "inflated"


@pytest.fixture
def train(
    tmp_path: Path, inflated: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings
) -> Callable[..., Any]:
    """Train a stage, images beside clips, and give its weights and logged losses."""

    def run(
        processes: int, folder: str, work: Callable[..., Any] = stages.train_video_model, **changes: Any
    ) -> Any:
        options = {
            "steps": STEPS,
            "image_share": 0.5,
            "log_every": 1,
            "checkpoint_every": 2,
            "learning_rate": 1e-3,
        }
        settings = StageSettings(
            noise=NoiseSettings(kind="progressive", alpha=2.0),
            train=tiny.train_settings(**(options | {"num_processes": processes} | changes)),
        )
        arguments = ("base", settings, inflated, digits_store, digits_embeddings, tmp_path / folder)
        model, _, history = on_every_device(processes, work, *arguments)
        return model.state_dict(), [row["loss"] for row in history]

    return run


def assert_same(found: Any, expected: Any) -> None:
    """Losses and weights, to what another order of summing float32 leaves."""
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), rtol=1e-5, atol=1e-6)
    for name, weight in expected[0].items():
        torch.testing.assert_close(found[0][name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("parallel", "processes", "changes"),
    [
        ("ddp", 2, {}),
        ("ddp", 2, {"accumulation": 2}),
        ("ddp", 4, {}),
        ("fsdp", 1, {}),
        ("fsdp", 2, {"accumulation": 2}),
        ("fsdp", 2, {"gradient_checkpointing": True, "channels_last": False}),
        ("fsdp", 4, {}),
    ],
)
def test_processes_that_share_a_batch_train_as_one_does(
    train: Callable[..., Any], parallel: str, processes: int, changes: dict[str, Any]
) -> None:
    alone = train(1, "alone", **changes)
    assert_same(train(processes, "shared", parallel=parallel, **changes), alone)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("ddp", 2), [("ddp", 1)]),
        (("ddp", 1), [("ddp", 2)]),
        (("fsdp", 4), [("ddp", 1), ("fsdp", 2)]),
        (("ddp", 2), [("fsdp", 2)]),
    ],
)
def test_what_so_many_processes_left_goes_on_in_any_number_of_them(
    train: Callable[..., Any], tmp_path: Path, first: tuple[str, int], then: list[tuple[str, int]]
) -> None:
    whole = train(1, "whole")
    train(first[1], "left", stop_after_three_steps, parallel=first[0])
    for parallel, processes in then:
        folder = f"{parallel}-{processes}"
        shutil.copytree(tmp_path / "left", tmp_path / folder)
        assert_same(train(processes, folder, parallel=parallel), whole)


def stop_after_three_steps(*arguments: Any) -> Any:
    """As a run that is stopped by a signal leaves it, with the same seeds and schedule."""

    def stop(run: Any) -> None:
        run.stopped_by = "SIGTERM"

    try:
        return at_the_fourth_step(stop, *arguments)
    except Stopped:
        return torch.nn.Module(), None, []


def die_at_the_fourth_step(*arguments: Any) -> Any:
    """Rank 1 is killed while rank 0 waits for its gradients."""

    def die(run: Any) -> None:
        if not run.is_main:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_the_fourth_step(die, *arguments)


def at_the_fourth_step(act: Callable[[Any], None], *arguments: Any) -> Any:
    """Train as `train_video_model` does, and act on the run before its fourth step."""
    from pyoco_pipeline.training.trainer import _Run

    step = _Run._train_step

    def stepping(run: Any) -> Any:
        if run.step == 3:
            act(run)
        return step(run)

    _Run._train_step = stepping  # type: ignore[method-assign]
    try:
        return stages.train_video_model(*arguments)
    finally:
        _Run._train_step = step  # type: ignore[method-assign]


def test_a_killed_process_ends_the_run_with_a_sentence_and_the_next_goes_on_from_the_checkpoint(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"Process 2 of 2, on cpu, is gone: its training ends the process"
    ) as error:
        train(2, "killed", die_at_the_fourth_step)
    assert "goes on from the last checkpoint" in str(error.value)
    assert (tmp_path / "killed").is_dir()
    assert_same(train(2, "killed"), train(1, "whole"))


class Fatal:
    """Ends the process that it is sent to, before that has done anything."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_ends_before_it_joined_is_not_waited_for() -> None:
    with pytest.raises(UserError, match=r"Process 2 of 2, on cpu, is gone: .*exit code 3"):
        on_every_device(2, print, Fatal())
    assert "WORLD_SIZE" not in os.environ


def test_a_batch_without_equal_parts_is_refused_before_anything_is_trained(train: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"train.batch_size=4 has no 3 equal parts"):
        train(3, "three")


def test_one_process_starts_no_other(monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]) -> None:
    monkeypatch.setattr("pyoco_pipeline.training.processes.Isolated", None)
    train(1, "alone")
    assert "WORLD_SIZE" not in os.environ
