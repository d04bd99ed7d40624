"""Write the lock files from pyproject.toml: `python scripts/lock.py [--upgrade]`; versions stay unless it is given.

requirements.lock: what `kedro run`, `make ui` and `make viz` need. requirements-dev.lock: what the tests and the extras
need beside it. requirements-torch.lock: torch, apart since one version has several builds: PyPI's, on Linux with CUDA,
and PyTorch's for CPUs. requirements-cuda.lock: what PyPI's build for Linux needs beside it.

One version of each package for every platform and Python 3.11 to 3.13, with the sha256 of every file of it that the
index has, so that pip refuses any other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = tuple(f"requirements{part}.lock" for part in ("", "-dev", "-torch", "-cuda"))
# PyTorch's own index is another than PyPI's: its CPU builds, as sha256sum lists them.
CPU_WHEELS = Path(__file__).with_name("torch_cpu_wheels.sha256")

Locked = dict[str, str]  # package -> its lines: name==version ; marker, hashes, and what leads to it


def resolve(*options: str, prefer: str, upgrade: bool) -> Locked:
    """All that pyproject.toml leads to with these options of `uv pip compile`; versions of `prefer` where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "all.lock"
        output.write_text(prefer)
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "pyproject.toml",
            "--output-file",
            str(output),
        ]
        command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--system-certs"]
        command += [
            "--no-header",
            "--annotation-style",
            "line",
            "--quiet",
            *(["--upgrade"] if upgrade else []),
        ]
        if subprocess.run([*command, *options], cwd=ROOT, check=False).returncode:
            raise SystemExit("the requirements can't be resolved: see above")
        blocks = re.findall(r"^\S.*(?:\n[ ].*)*", output.read_text(), re.MULTILINE)
    return {block.partition("==")[0]: _sources(block) for block in blocks}


def _sources(block: str) -> str:
    *lines, via = block.splitlines()
    names = [name for name in via.removeprefix("    # via ").split(", ") if not name.startswith("-c ")]
    return "\n".join([*lines, f"    # via {', '.join(names)}"])


def cuda_packages(locked: Locked) -> set[str]:
    """What is only there on Linux and only torch leads to."""
    leads = {name: set(block.rpartition("# via ")[2].split(", ")) for name, block in locked.items()}
    on_linux = {
        name for name, block in locked.items() if "sys_platform == 'linux'" in block.partition("\n")[0]
    }
    found: set[str] = set()
    while more := {name for name in on_linux - found if leads[name] <= {"torch"} | found}:
        found |= more
    return found


def with_cpu_wheels(torch: str) -> str:
    """torch's lines with the hashes of PyTorch's CPU builds of that version."""
    first, *rest = torch.splitlines()
    version = first.partition("==")[2].split()[0]
    hashes = [line.split() for line in CPU_WHEELS.read_text().splitlines()]
    known = [
        f"    --hash=sha256:{digest} \\"
        for digest, name in hashes
        if name.startswith(f"torch-{version}+cpu-")
    ]
    if not known:
        raise SystemExit(
            f"{CPU_WHEELS.name} has no CPU build of torch {version}: add them from PyTorch's index."
        )
    return "\n".join([first, *known, *rest])


def main(upgrade: bool) -> None:
    present = "\n".join((ROOT / name).read_text() for name in LOCKS if (ROOT / name).exists())
    everything = resolve("--all-extras", prefer=present, upgrade=upgrade)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as versions:
        versions.write("\n".join(block.partition(" \\")[0] for block in everything.values()))
        versions.flush()
        run = resolve("--extra", "gpu", "--extra", "viz", "-c", versions.name, prefer="", upgrade=False)
    cuda = cuda_packages(everything)
    run["torch"] = with_cpu_wheels(run["torch"])
    parts = (run.keys() - cuda - {"torch"}, everything.keys() - run.keys() - cuda, {"torch"}, cuda)
    for name, packages in zip(LOCKS, parts, strict=True):
        lines = [run.get(package, everything[package]) for package in sorted(packages)]
        (ROOT / name).write_text("\n".join(["# By `make lock`: scripts/lock.py says how.", *lines]) + "\n")
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main("--upgrade" in sys.argv[1:])
