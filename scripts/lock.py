"""Write the lock files from what is installed: `python scripts/lock.py`.

requirements.lock: what `kedro run`, `make ui` and `make viz` need. requirements-dev.lock: what the tests and the extras
need beside it.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def closure(requirements: list[str]) -> dict[str, str]:
    """name -> version of every installed package that the requirements lead to."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(text), "") for text in requirements]
    while queue:
        requirement, of_extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is needed and not installed: pip install -e '.[dev]' first") from error
        found[name] = package.version.partition("+")[
            0
        ]  # a local build such as +cpu is no version of an index
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                queue += [(Requirement(text), extra) for text in package.requires or []]
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    run = closure([*project["dependencies"], *extras["gpu"], *extras["viz"]])
    everything = closure([*project["dependencies"], *(text for names in extras.values() for text in names)])
    for name, packages in (
        ("requirements.lock", run),
        ("requirements-dev.lock", {k: v for k, v in everything.items() if k not in run}),
    ):
        lines = [f"{package}=={version}" for package, version in sorted(packages.items())]
        (ROOT / name).write_text("\n".join(lines) + "\n")
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
