"""A child process that answers calls within a time limit and a memory limit.

FFmpeg is C code that reads files which nobody has checked. Decoded in a child, a file that hangs or crashes it
costs one child, not the run. The child is a fresh `python -c`, so neither threads nor the main script of the
parent matter to it; calls and answers go through its standard input and output. It is no sandbox: it may do
whatever its parent may.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np

from pyoco_pipeline.errors import UserError

START_S = 120.0  # a loaded machine may take long to start Python and import what is called
ADDRESS_SPACE = Path("/proc/self/statm")

# The search path of the parent comes first of all: it may be what makes this package importable.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pyoco_pipeline.data.isolation import _serve; _serve(int(sys.argv[2]))"
)
_crowded_bytes: int | None = None  # in the child: an address space from which it is to be replaced


class IsolationError(Exception):
    """A call without an answer; `reason` completes a sentence that begins with the name of the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TimedOut(IsolationError):
    """The call took longer than its time limit."""


class Died(IsolationError):
    """The child ended without an answer, or needed more memory than its limit."""


class Isolated:
    """One child process for calls of importable functions, to be used in a `with` statement.

    timeout_s: longest time of a call, in seconds, not counting the start of the child; None: no limit
    memory_mb: how much the child's address space may grow, in MB, beyond what it takes to import what is called;
        None: no limit. Needs Linux.
    environment: variables that the child has from its start, beside this process's

    The child starts with the first call, ends with the `with` block, and ends when its parent does, however that
    ends. It is replaced after a call that failed it, and after one that left more than half of its memory limit
    occupied, so that a call does not suffer from those before it.
    """

    def __init__(
        self, *, timeout_s: float | None, memory_mb: int | None, environment: Mapping[str, str] | None = None
    ) -> None:
        if memory_mb is not None and not ADDRESS_SPACE.exists():
            raise UserError(
                f"This system cannot limit a process to {memory_mb} MB of memory, only Linux can; set the limit "
                "to null."
            )
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; a later call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def cancel(self) -> None:
        """Ends, from another thread, the call in progress; it and later ones raise Died."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(*args)` returns or raises in the child; one call at a time.

        Function, arguments and result must be picklable; the function is found by its module and name, so it
        cannot be one of the main script. Raises TimedOut or Died. A call during which a child dies that has
        answered others is tried once more in a fresh one.
        """
        fresh = self._process is None
        try:
            return self._isolated(function, args)
        except Died:
            if fresh or self._cancelled:
                raise
        return self._isolated(function, args)

    def _isolated(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            if self._process is None:
                self._start(function)
            return self._ask(function, args, self.timeout_s)
        except MemoryError as error:
            self.close()
            if self.memory_mb is None:
                raise
            raise Died(f"needs more than {self.memory_mb} MB of memory") from error

    def _start(self, function: Callable[..., Any]) -> None:
        with self._lock:
            if self._cancelled:
                raise Died("was cancelled")
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # The work is spread over processes; threads of BLAS would each reserve address space.
                env={"OMP_NUM_THREADS": "1", **os.environ, **self.environment},
                start_new_session=True,  # a Ctrl-C is for the parent, which then ends its child
            )
        try:
            self._ask(_prepare, (function, self.memory_mb), START_S)
        except IsolationError as error:
            if self._cancelled:
                raise
            raise UserError(
                f"A worker process ended at once or took more than {START_S:g} s to start; look at what it "
                "printed above, and at the machine's free memory."
            ) from error

    def _ask(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float | None) -> Any:
        process = self._process
        assert process is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_s, expire) if timeout_s is not None else None
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            _write(cast(FileIO, process.stdin), _pickled((function, args, timeout_s)))
            head, arrays = _receive(cast(FileIO, process.stdout))
            returned, value, is_crowded = pickle.loads(head, buffers=arrays)  # noqa: S301 (own child)
        except (EOFError, BrokenPipeError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)  # its pipes close a little before it has ended
            self.close()
            if expired.is_set() or process.returncode == -signal.SIGALRM:
                raise TimedOut(f"takes longer than {timeout_s:g} s to decode") from None
            raise Died("was cancelled" if self._cancelled else _ending(process.returncode)) from None
        except BaseException:
            self.close()  # an answer that nobody waits for any more must not be taken for the next one
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if is_crowded or expired.is_set():
            self.close()
        if returned:
            return value
        raise value


def _ending(returncode: int) -> str:
    what = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"ends the process that works on it ({what})"


def _end_with_parent(pipe: int, parent: int) -> None:
    """Ends this process when `pipe` is closed at its other end, or within a second when `parent` is gone.

    pipe: file descriptor of the reading end; parent: its process id. A signal on the parent's death (Linux's
    PR_SET_PDEATHSIG) would come too early: when the *thread* ends that started this process.
    """
    poll = select.poll()
    poll.register(pipe, 0)  # reports a hang-up only

    def watch() -> None:
        # A forked sibling may hold the other end open, so the parent is looked for as well.
        while os.getppid() == parent and not poll.poll(1000):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(parent: int) -> None:
    """The child: answers requests from standard input until it is closed."""
    import resource

    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not get among the answers
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _end_with_parent(requests.fileno(), parent)
    with suppress(EOFError, BrokenPipeError):
        while True:
            _write(answers, _answer(_receive(requests)))


def _answer(request: tuple[bytes, list[memoryview]]) -> list[bytes | memoryview]:
    try:
        function, args, timeout_s = pickle.loads(request[0], buffers=request[1])  # noqa: S301 (own parent)
        # Should the parent be gone and C code keep the watching thread out, this still ends the call.
        signal.setitimer(signal.ITIMER_REAL, 0 if timeout_s is None else timeout_s + 1)
        return _pickled((True, function(*args), _is_crowded()))
    except Exception as error:
        return _pickled((False, _portable(error), _is_crowded()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _prepare(function: Callable[..., Any], memory_mb: int | None) -> None:
    """In the child: `function` has been imported by now; from here on memory counts."""
    global _crowded_bytes
    if memory_mb is not None:
        import resource

        used = _address_space()
        resource.setrlimit(
            resource.RLIMIT_AS, (used + memory_mb * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1])
        )
        _crowded_bytes = used + memory_mb * 2**19


def _address_space() -> int:
    return int(ADDRESS_SPACE.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _is_crowded() -> bool:
    return _crowded_bytes is not None and _address_space() > _crowded_bytes


def _portable(error: Exception) -> Exception:
    """The error with the child's traceback as a note, as one that the parent can read."""
    trace = "".join(traceback.format_exception(error))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (made in the same line)
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the child process:\n{trace}")
    return error


# A message is: the number of parts and the size of each (8 bytes each), a pickle, the arrays that belong to it.


def _pickled(value: Any) -> list[bytes | memoryview]:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts: list[bytes | memoryview] = [head, *(buffer.raw() for buffer in buffers)]
    sizes = [memoryview(part).nbytes for part in parts]
    return [struct.pack(f"={len(parts) + 1}Q", len(parts), *sizes), *parts]


def _write(pipe: FileIO, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest.nbytes:
            rest = rest[pipe.write(rest) :]


def _receive(pipe: FileIO) -> tuple[bytes, list[memoryview]]:
    """A message's pickle and arrays; raises EOFError where the other end is closed."""
    (count,) = struct.unpack("=Q", _read(pipe, 8))
    sizes = struct.unpack(f"={count}Q", _read(pipe, 8 * count))
    return bytes(_read(pipe, sizes[0])), [_read(pipe, size) for size in sizes[1:]]


def _read(pipe: FileIO, size: int) -> memoryview:
    data = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]  # unlike a bytearray, not zeroed first
    rest = data
    while rest.nbytes:
        count = pipe.readinto(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
