"""An interpreter that has imported what programs need and forks for each of them, so that one starts in milliseconds.

What kills a program then meets its work, and seldom its imports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SERVER = """
import importlib, json, os, sys, traceback
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print("ready", flush=True)
while line := sys.stdin.readline():
    program, arguments = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["program", *arguments]
        try:
            exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Programs:
    """Runs one program after another, each a fork of the same process."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        self._server = server
        assert self._line() == "ready"

    def start(self, program: str, *arguments: object) -> int:
        """Start Python code with `sys.argv[1:]`; its process id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([program, [str(a) for a in arguments]]).encode() + b"\n")
        self._server.stdin.flush()
        return int(self._line())

    def has_ended(self, within_s: float = 0.0) -> bool:
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], within_s)[0])

    def status(self) -> int:
        """The exit status of the program that was started last, once it has ended; negative: of a signal."""
        return int(self._line())

    def run(self, program: str, *arguments: object) -> int:
        self.start(program, *arguments)
        return self.status()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().decode().strip()


@contextmanager
def programs(imported: Sequence[str]) -> Iterator[Programs]:
    """Within: programs can be started, for which these modules are imported; they find the tests' modules too."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, json.dumps(imported)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield Programs(server)
    finally:
        server.send_signal(signal.SIGKILL)
        server.communicate()
