"""Training on processes that a launcher started, on one machine or many: torchrun or accelerate launch.

Rank 0 leads: it alone runs Kedro, and hands every training over to the others, as JSON in the store that the launcher
made for its processes. The others follow: they wait for trainings and take part, until rank 0 ends. Whoever can reach
that store can take part, so the machines' network is trusted, as by the launcher itself and by torch.distributed.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.training.processes import join, leave, let_go

R = TypeVar("R")
_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS = (*_NEEDED, "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
_BEAT_S, _GONE_S = (
    1.0,
    30.0,
)  # a process says that it is there, and is taken for gone when it has not for so long
_START_S = 300.0  # a process may take as long to start
_SEEN_S = 30.0  # a shared file system may take as long to show a new file on another machine
_FAILED, _END = "failed", "end"


@dataclass(frozen=True)
class World:
    """The launcher's processes, and this one's place among them."""

    rank: int
    local_rank: int
    size: int
    environment: Mapping[str, str]  # what torch.distributed and Accelerate read
    store: Any  # of the main thread
    beats: Any  # the same store, of another thread


leading: Leader | None = None  # in rank 0, once there is one


def world() -> World:
    """What the launcher says in the environment, which is removed from there; UserError where there is no launcher."""
    import torch
    from torch import distributed

    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise UserError(
            f"{missing[0]} is not set: start this with torchrun or accelerate launch (docs/operations.md); on one "
            "machine `kedro run` starts its own processes."
        )
    store, beats = (next(distributed.rendezvous("env://"))[0] for _ in range(2))
    own = {name: value for name, value in os.environ.items() if name.startswith(_LAUNCHERS)}
    for name in own:  # what is started from here is no process of the launcher's
        del os.environ[name]
    environment = {name: own[name] for name in _NEEDED}
    environment["LOCAL_WORLD_SIZE"] = own.get("LOCAL_WORLD_SIZE", "1")
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    return World(int(own["RANK"]), int(own["LOCAL_RANK"]), int(own["WORLD_SIZE"]), environment, store, beats)


def lead(world: World, command: Callable[[], int]) -> int:
    """`command()`, an exit status, during which the others take part in every training; they end with the same status.

    So that a launcher on another machine sees a failure, and does not wait for the others to end well.
    """
    global leading
    leading, status = Leader(world), 1
    try:
        status = command()
        return status
    finally:
        leading = None
        with suppress(
            Exception
        ):  # of a store that is gone: so are the others then, and what happened here is said
            world.store.set(_END, str(status))


class Leader:
    """Rank 0's side."""

    def __init__(self, world: World) -> None:
        self.world, self.trainings = world, 0

    def train(
        self,
        num_processes: int | Literal["auto"],
        work: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        only_here: Mapping[str, Any],
    ) -> R:
        """`work(*args, **kwargs)` on every process of the launcher's, as `processes.on_every_device` does it."""
        from pyoco_pipeline.training.handover import to_json

        world = self.world
        if num_processes not in ("auto", world.size):
            raise UserError(
                f"train.num_processes={num_processes}, but the launcher started {world.size} processes: set it to auto."
            )
        seen, token = _leave_token(work, args, kwargs)
        job = {
            "call": to_json(work, args, kwargs),
            "folder": str(Path.cwd()),
            "seen": str(seen),
            "token": token,
        }
        number, self.trainings = self.trainings, self.trainings + 1
        watch = _Watch(world, number)
        try:
            world.store.set(f"training/{number}", json.dumps(job))
            watch.wait_for_all()
            with _joined(world, number):
                return work(*args, **kwargs, **only_here)
        except UserError:
            raise
        except Exception as error:
            said = watch.said()
            if said is None:
                raise
            raise said from error
        finally:
            watch.end()
            seen.unlink(missing_ok=True)


def _leave_token(
    work: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Path, str]:
    """A file in the folder of the checkpoints that every machine has to see."""
    import inspect

    folder = Path(inspect.signature(work).bind(*args, **kwargs).arguments["checkpoints"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path, token = folder / f".seen-{os.getpid()}", secrets.token_hex(8)
    path.write_text(token)
    return path, token


class _Watch:
    """Looks, in a thread, whether a process failed or is gone, so that rank 0 does not wait for it."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.failure: UserError | None = None
        self._patience_s = _GONE_S
        self._beats = {rank: (b"", time.monotonic()) for rank in range(1, world.size)}
        self._found, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Until every process has read what there is to do; raises where one of them can't."""
        ready = f"ready/{self.number}"
        while self.world.store.add(ready, 0) < self.world.size - 1:
            if self.failure is not None:
                raise self.failure
            time.sleep(0.05)

    def said(self) -> UserError | None:
        """Why this process lost the others, as far as that shows within a few seconds."""
        self._patience_s = 4 * _BEAT_S
        self._found.wait(8 * _BEAT_S)
        return self.failure

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self.failure is None and not self._over.wait(_BEAT_S):
            with suppress(Exception):  # of the store: then the launcher is gone, and ends this process
                self.failure = self._look()
        if self.failure is None:
            return
        self._found.set()
        let_go()
        if not self._over.wait(
            _GONE_S
        ):  # it waits for what can't be let go: a machine that no longer answers
            print(f"Error: {self.failure}", file=sys.stderr, flush=True)
            os._exit(1)

    def _look(self) -> UserError | None:
        beats = self.world.beats
        if beats.check([_FAILED]):
            return UserError(json.loads(beats.get(_FAILED)))
        for rank, (last, since) in self._beats.items():
            name = f"beat/{rank}"
            beat = beats.get(name) if beats.check([name]) else b""
            if beat != last:
                self._beats[rank] = (beat, time.monotonic())
            elif time.monotonic() - since > self._patience_s + (0 if last else _START_S):
                return UserError(
                    f"Process {rank + 1} of {self.world.size} is gone: it has said nothing for {self._patience_s:g} s. "
                    "The same command goes on from the last checkpoint."
                )
        return None


def follow(world: World) -> int:
    """Take part in every training that rank 0 hands over, until it ends; the exit status of this process."""
    import torch

    threading.Thread(target=_beat, args=(world,), daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    number = 0
    while True:
        while not world.store.check([f"training/{number}"]):
            if world.store.check([_END]):
                return int(world.store.get(_END))
            time.sleep(0.2)
        try:
            _take_part(world, number, json.loads(world.store.get(f"training/{number}")))
        except Stopped:
            pass
        except Exception as error:
            what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            said = f"Process {world.rank + 1} of {world.size}, on {socket.gethostname()}: {what}"
            world.store.compare_set(_FAILED, "", json.dumps(said))  # the first to fail says why
            if isinstance(error, UserError):
                print(said, file=sys.stderr, flush=True)
                return 1
            raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        number += 1


def _take_part(world: World, number: int, job: dict[str, str]) -> None:
    from pyoco_pipeline.training.handover import from_json

    _check_token(Path(job["seen"]), job["token"])
    os.chdir(job["folder"])
    work, arguments = from_json(job["call"])
    world.store.add(f"ready/{number}", 1)
    with _joined(world, number):
        work(**arguments)


def _check_token(path: Path, token: str) -> None:
    until = time.monotonic() + _SEEN_S
    while time.monotonic() < until:
        with suppress(OSError):
            list(path.parent.iterdir())  # makes a network file system look again
            if path.read_text() == token:
                return
        time.sleep(0.2)
    raise UserError(
        f"{path.parent} here is not the folder that rank 0 writes its checkpoints to: let every machine see the same "
        "data folder under the same path."
    )


def _beat(world: World) -> None:
    """Say every second that this process is there, and end it where the launcher's store or rank 0 is gone."""
    count, ended_since = 0, None
    while True:
        count += 1
        watchdog = threading.Timer(
            2 * _GONE_S, os._exit, (1,)
        )  # a store that no longer answers is waited for without end
        watchdog.daemon = True
        watchdog.start()
        try:
            world.beats.set(f"beat/{world.rank}", str(count))
            ended = world.beats.check([_END])
        except Exception:
            os._exit(1)
        watchdog.cancel()
        if ended and ended_since is None:
            ended_since = time.monotonic()
        if ended_since is not None and time.monotonic() - ended_since > _GONE_S:
            os._exit(1)  # it still waits for rank 0
        time.sleep(_BEAT_S)


@contextmanager
def _joined(world: World, number: int) -> Iterator[None]:
    """Within: this process is in a group of all of them, which torch.distributed and Accelerate know."""
    from torch import distributed

    before = dict(os.environ)
    os.environ.update(world.environment)
    try:
        leave()  # what an earlier training found out about its processes
        join(distributed.PrefixStore(f"group/{number}", world.store), world.rank, world.size)
        yield
    finally:
        leave()
        os.environ.clear()
        os.environ.update(before)
