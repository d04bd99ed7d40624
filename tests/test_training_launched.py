"""Training under torchrun, on one machine and on several, gives the training of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launched_training import settings_of
from projects import make_project
from safetensors.torch import load_file

from pyoco_pipeline.config import InflateSettings, StageSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import InflationOptions, save_video_model
from pyoco_pipeline.training import handover, launched, processes, stages

SCRIPT = Path(__file__).with_name("launched_training.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a training needs, for processes that share nothing but a folder."""
    store = tiny.make_store(tmp_path / "clips")
    tiny.make_embeddings(tmp_path / "text", [item.caption for item in store.take()])
    save_video_model(tiny.make_video_unet(trained=False), tmp_path / "inflated")
    return tmp_path


@dataclass(frozen=True)
class Machine:
    """A name that its commands begin with, its address, and its network card."""

    address: str = "127.0.0.1"
    within: tuple[str, ...] = ()
    card: str = "lo"


def launch(
    machines: Sequence[Machine], each: int, *what: str, cwd: Path | None = None, only_first: bool = False
) -> tuple[list[int], str]:
    """Run something on machines, each a torchrun of its own, with so many processes each.

    only_first: kill the others when the first ends, as Slurm does.
    """
    port = _free_port()
    launchers = [
        subprocess.Popen(
            [
                *machine.within, sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(machines)}",
                f"--nproc-per-node={each}", "--rdzv-backend=c10d", "--rdzv-id=test",
                f"--rdzv-endpoint={machines[0].address}:{port}", f"--rdzv-conf=is_host={machine is machines[0]}",
                f"--local-addr={machine.address}", *what,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=_clean_environment() | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": machine.card},
        )
        for machine in machines
    ]  # fmt: skip
    try:
        said = [
            launcher.communicate(timeout=100)[0] for launcher in (launchers[:1] if only_first else launchers)
        ]
    finally:
        for launcher in launchers:
            launcher.kill()
            launcher.wait()
    return [launcher.returncode for launcher in launchers], "\n".join(said)


def _free_port() -> int:
    """One that no other test is given before the launcher listens on it, for then the second launcher waits for ever.

    Ports for connections and for those who ask for any are Linux's 32768 and up.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def _clean_environment() -> dict[str, str]:
    """Without what training in this process may have left for its own."""
    left = (
        "ACCELERATE_",
        "FSDP_",
        "GROUP_",
        "LOCAL_",
        "MASTER_",
        "RANK",
        "ROLE_",
        "TORCHELASTIC_",
        "WORLD_SIZE",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(left)}


@pytest.fixture
def torchrun(folder: Path) -> Callable[..., Any]:
    """Run the script beside this file, which trains, on machines that are given or on so many torchruns of this one."""

    def run(machines: int | list[Machine], each: int, name: str, **changes: Any) -> tuple[list[int], str]:
        if isinstance(machines, int):
            machines = [Machine() for _ in range(machines)]
        only_first = changes.get("the_other") == "is cut off"
        return launch(
            machines, each, str(SCRIPT), str(folder), name, json.dumps(changes), only_first=only_first
        )

    return run


@contextmanager
def networks() -> Iterator[list[Machine] | None]:
    """Two with network stacks of their own, joined by a cable: namespaces of Linux, which only root can make."""
    names = [f"pyoco{os.getpid()}{letter}" for letter in "ab"]
    cards = [f"v{os.getpid()}{letter}" for letter in "ab"]

    def ip(*words: str) -> bool:
        return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0

    try:
        if shutil.which("ip") is None or not all(ip("netns", "add", name) for name in names):
            yield None
            return
        assert ip("link", "add", cards[0], "type", "veth", "peer", "name", cards[1])
        for number, (name, card) in enumerate(zip(names, cards, strict=True), start=1):
            assert ip("link", "set", card, "netns", name)
            assert ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", card)
            assert ip("-n", name, "link", "set", card, "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        yield [
            Machine(f"10.77.0.{number}", ("ip", "netns", "exec", name), card)
            for number, (name, card) in enumerate(zip(names, cards, strict=True), start=1)
        ]
    finally:
        if shutil.which("ip") is not None:
            for name in names:
                ip("netns", "del", name)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two whose cable can be cut."""
    with networks() as made:
        if made is None:
            pytest.skip("no right to make network namespaces")
        yield made


def pids_of(argument: str) -> list[int]:
    """Processes that were started with an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def trained(folder: Path, checkpoints: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training in this process, from the checkpoints that there are."""
    model, _, history = stages.train_video_model(
        "base", settings_of({}), folder / "inflated", ClipStore(folder / "clips"), TextEmbeddings(folder / "text"),
        folder / checkpoints, inflation=InflationOptions(),
    )  # fmt: skip
    return model.state_dict(), [row["loss"] for row in history]


def alone(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    return trained(folder, "alone")


def assert_trained_as_alone(folder: Path, name: str) -> None:
    weights, losses = alone(folder)
    found = json.loads((folder / f"{name}.json").read_text())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for key, weight in load_file(folder / f"{name}.safetensors").items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "each", "parallel"), [(1, 2, "fsdp"), (2, 1, "ddp")])
def test_a_launchers_processes_train_as_one_does(
    torchrun: Callable[..., Any], folder: Path, nodes: int, each: int, parallel: str
) -> None:
    status, said = torchrun(nodes, each, "shared", parallel=parallel)
    assert status == [0] * nodes, said
    assert_trained_as_alone(folder, "shared")


@pytest.mark.slow
def test_machines_with_networks_of_their_own_train_as_one_process_does(
    torchrun: Callable[..., Any], folder: Path
) -> None:
    with networks() as machines:  # without the right to make some, both are on the loopback interface
        status, said = torchrun(machines or 2, 1, "far", parallel="fsdp")
    assert status == [0, 0], said
    assert_trained_as_alone(folder, "far")


@pytest.mark.slow
def test_kedro_and_mlflow_run_once_whatever_the_launcher_starts(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    asked = ["--pipelines", "ingest,pretrain_image,inflate,finetune_video", "--env", "ci"]
    asked += ["--params", "finetune_video.base.train.parallel=fsdp"]
    status, said = launch(
        [Machine(), Machine()], 1, "-m", "pyoco_pipeline.distributed", "run", *asked, cwd=project
    )

    assert status == [0, 0], said
    assert said.count("Running node: fine_tune: fine_tune([params:finetune_video.base") == 1
    with closing(sqlite3.connect(project / "mlflow.db")) as runs:
        assert runs.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
    checkpoints = project / "data/ci/06_models/base_checkpoints"
    assert len(list((checkpoints / "step-00000004").glob("network-*-of-00002.safetensors"))) == 2
    assert (project / "data/ci/06_models/base/temporal.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_on_every_machine_and_the_same_command_goes_on(
    torchrun: Callable[..., Any], folder: Path
) -> None:
    status, said = torchrun(2, 1, "killed", the_other="dies")
    assert status == [1, 1]
    assert "Process 2 of 2 is gone" in said
    assert sorted(path.name for path in (folder / "killed-6").glob("step-*")) == [
        "step-00000002",
        "step-00000004",
    ]

    status, said = torchrun(1, 1, "killed")
    assert status == [0], said
    torch.testing.assert_close(
        torch.tensor(json.loads((folder / "killed.json").read_text())),
        torch.tensor(alone(folder)[1]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_a_machine_that_no_longer_answers_ends_the_run_and_its_checkpoints_can_be_gone_on_from(
    torchrun: Callable[..., Any], folder: Path, machines: list[Machine]
) -> None:
    status, said = torchrun(machines, 1, "cut", parallel="fsdp", the_other="is cut off")
    assert status[0] == 1
    assert "Process 2 of 2 is gone: it has said nothing for" in said
    until = time.monotonic() + 60
    while left := pids_of(str(folder)):  # the one that is cut off ends by itself
        assert time.monotonic() < until, left
        time.sleep(0.1)

    assert (folder / "cut-6" / "step-00000002").is_dir()
    resumed, whole = trained(folder, "cut-6"), alone(folder)
    assert len(resumed[1]) == len(whole[1]) == 6
    torch.testing.assert_close(torch.tensor(resumed[1]), torch.tensor(whole[1]), rtol=1e-5, atol=1e-6)
    for key, weight in resumed[0].items():
        torch.testing.assert_close(weight, whole[0][key], rtol=1e-4, atol=1e-5, msg=key)


def test_a_number_of_processes_that_the_launcher_did_not_start_is_refused_and_the_others_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = torch.distributed.HashStore()
    first, second = (launched.World(rank, rank, 2, {}, store, store) for rank in (0, 1))
    with pytest.raises(
        UserError, match=r"train.num_processes=3, but the launcher started 2 processes: set it to auto"
    ):
        launched.lead(first, lambda: processes.on_every_device(3, print))
    monkeypatch.setattr(launched, "_beat", lambda world: None)
    assert launched.follow(second) == 1


def arguments(folder: Path) -> tuple[Any, ...]:
    store, embeddings = ClipStore(folder / "clips"), TextEmbeddings(folder / "text")
    settings = settings_of({"num_processes": 2})
    assert settings.sigma.max == float("inf")
    return "base", settings, folder / "inflated", store, embeddings, folder / "checkpoints"


def test_a_training_is_handed_over_as_json_and_read_as_it_was(folder: Path) -> None:
    given = arguments(folder)
    inflation = InflationOptions(**InflateSettings().options())
    text = handover.to_json(stages.train_video_model, given, {"inflation": inflation})
    work, found = handover.from_json(json.dumps(json.loads(text)))

    assert work is stages.train_video_model
    assert (found["stage"], found["settings"], found["inflation"]) == ("base", given[1], inflation)
    assert isinstance(found["settings"], StageSettings)
    assert (found["init"], found["checkpoints"]) == (folder / "inflated", folder / "checkpoints")
    assert found["store"].manifest == given[3].manifest
    assert found["embeddings"].folder == folder / "text"


def test_nothing_but_a_training_is_handed_over(folder: Path) -> None:
    with pytest.raises(TypeError, match="is not a training"):
        handover.to_json(print, (), {})
    with pytest.raises(TypeError, match="can't be handed over"):
        handover.to_json(stages.train_video_model, (*arguments(folder), print), {})
    with pytest.raises(KeyError, match="system"):
        handover.from_json(json.dumps({"work": "system", "arguments": {}}))


def test_a_machine_that_sees_other_clips_says_so(folder: Path) -> None:
    text = handover.to_json(stages.train_video_model, arguments(folder), {})
    manifest = json.loads((folder / "clips" / "manifest.json").read_text())
    (folder / "clips" / "manifest.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))

    with pytest.raises(UserError, match=r"clips has other content here .* see the same data folder"):
        handover.from_json(text)


def test_a_machine_that_does_not_see_the_checkpoints_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launched, "_SEEN_S", 0.5)
    with pytest.raises(UserError, match="is not the folder that rank 0 writes its checkpoints to"):
        launched._check_token(tmp_path / ".seen-1", "a")


def test_kedro_run_by_itself_is_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes .* `-m pyoco_pipeline.distributed run …`"):
        processes.on_every_device("auto", print)


def test_the_launchers_part_is_refused_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK is not set: .* `kedro run` starts its own"):
        launched.world()
