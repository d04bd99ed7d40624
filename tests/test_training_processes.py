"""Training shared out over processes gives the training of one, and nothing is lost where one of them is."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, zeros

from pyoco_pipeline.config import StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.models import save_video_model
from pyoco_pipeline.training import stages
from pyoco_pipeline.training.checkpoint import Stored
from pyoco_pipeline.training.pieces import Pieces, write
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
        processes: int,
        folder: str,
        work: Callable[..., Any] = stages.train_video_model,
        validate: Callable[..., Any] | None = None,
        trainable: Any = "all",
        **changes: Any,
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
            trainable=trainable,
            train=tiny.train_settings(**(options | {"num_processes": processes} | changes)),
        )
        arguments = ("base", settings, inflated, digits_store, digits_embeddings, tmp_path / folder)
        model, _, history = on_every_device(
            processes, work, *arguments, only_here={"validate": validate} if validate else None
        )
        return model.state_dict(), [row["loss"] for row in history]

    return run


def assert_same(found: Any, expected: Any) -> None:
    """Losses and weights, to what another order of summing float32 leaves."""
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), rtol=1e-5, atol=1e-6)
    for name, weight in expected[0].items():
        torch.testing.assert_close(found[0][name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.parametrize(
    ("parallel", "processes", "changes"),
    [
        ("ddp", 2, {}),
        ("ddp", 2, {"accumulation": 2}),
        ("ddp", 4, {}),
        ("fsdp", 1, {}),
        ("fsdp", 2, {"accumulation": 2}),
        ("fsdp", 2, {"gradient_checkpointing": True, "channels_last": False}),
        ("fsdp", 2, {"trainable": "lora"}),
        ("fsdp", 4, {}),
    ],
)
def test_processes_that_share_a_batch_train_as_one_does(
    train: Callable[..., Any], parallel: str, processes: int, changes: dict[str, Any]
) -> None:
    alone = train(1, "alone", **changes)
    assert_same(train(processes, "shared", parallel=parallel, **changes), alone)


@pytest.mark.usefixtures("kept_processes")
def test_parts_in_bfloat16_train_as_the_whole_does_to_its_rounding(train: Callable[..., Any]) -> None:
    alone, shared = (train(k, f"{k}", parallel="fsdp", precision="bf16") for k in (1, 2))
    torch.testing.assert_close(torch.tensor(shared[1]), torch.tensor(alone[1]), rtol=2**-7, atol=0.0)
    assert all(value.dtype == torch.float32 for value in shared[0].values())


@pytest.mark.usefixtures("kept_processes")
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


def written_again(source: Path, out: Path) -> None:
    """Read a checkpoint in as many pieces as there are processes, and write them."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    mesh, stored = init_device_mesh("cpu", (count,)), Stored(source)
    parts = {
        part: {
            name: pieces.read(name, zeros(shape, device_mesh=mesh, placements=[Shard(0)]) if shape else None)
            for name, shape in pieces.shapes.items()
        }
        for part, pieces in (
            ("network", stored.network),
            ("ema", stored.ema),
            ("optimizer", stored.optimizer),
        )
    }
    write(out, parts, rank, count)


@pytest.mark.usefixtures("kept_processes")
def test_pieces_of_two_processes_are_bit_for_bit_those_of_three(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    train(2, "two", stop_after_three_steps, parallel="fsdp")
    two, three = tmp_path / "two" / "step-00000004", tmp_path / "three"
    three.mkdir()
    on_every_device(3, written_again, two, three)

    assert len(list(three.glob("*.safetensors"))) == 9
    for part in ("network", "ema", "optimizer"):
        written, again = Pieces(two, part, 2), Pieces(three, part, 3)
        assert written.shapes == again.shapes
        assert written.shapes
        assert all(torch.equal(written.read(name), again.read(name)) for name in written.shapes)


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.parametrize("damaged", ["network-00002-of-00002.safetensors", "index-00001-of-00002.json"])
def test_a_piece_cut_short_makes_all_processes_go_on_from_the_checkpoint_before(
    train: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    train(2, "cut", stop_after_three_steps, parallel="fsdp")
    path = tmp_path / "cut" / "step-00000004" / damaged
    path.write_bytes(path.read_bytes()[:-100])

    with caplog.at_level(logging.INFO):
        resumed = train(2, "cut", parallel="fsdp")
    assert "step-00000004 can't be read" in caplog.text
    assert "going on from step 2 of 6" in caplog.text
    assert_same(resumed, train(1, "whole"))


@pytest.mark.usefixtures("kept_processes")
def test_validation_sees_the_averaged_weights_whole(train: Callable[..., Any]) -> None:
    shown: dict[str, list[torch.Tensor]] = {"alone": [], "shared": []}
    x, sigma = torch.randn(1, 3, 4, 8, 8), torch.ones(1)
    for name, processes in (("alone", 1), ("shared", 2)):

        def validate(step: int, denoise: Any, name: str = name) -> None:
            shown[name].append(denoise(x, sigma, **tiny.text_condition(1)))

        train(processes, name, validate=validate, parallel="fsdp", sample_every=2)
    assert len(shown["alone"]) == 3
    for alone, shared in zip(*shown.values(), strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


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
