"""`kedro` on the processes of a launcher: `torchrun … -m pyoco_pipeline.distributed run --env paper --pipelines …`.

The first process is `kedro` with these arguments; the others take part in its trainings (`training.launched`).
"""

from __future__ import annotations

import sys
from typing import Any

from pyoco_pipeline.errors import UserError


def main(arguments: list[str]) -> int:
    """The exit status of this process."""
    from pyoco_pipeline.training.launched import follow, lead, world

    try:
        here = world()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if here.rank:
        return follow(here)
    return lead(here, lambda: _kedro(arguments))


def _kedro(arguments: list[str]) -> int:
    from kedro.framework.cli import main as kedro

    sys.argv = ["kedro", *arguments]
    try:
        status: Any = kedro()
    except SystemExit as end:
        status = end.code
    return status if isinstance(status, int) else int(status is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
