"""`kedro run` with one sentence for what the user can put right, instead of a traceback."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)


@click.group()
def cli() -> None:
    """Commands of this project."""


def _run(verbose: bool, **options: Any) -> Any:
    try:
        return kedro_run.callback(**options)
    except Exception as error:
        message = user_message(error)
        if message is None or verbose:
            raise
        click.secho(f"Error: {message}", fg="red", err=True)
        click.echo("(`--verbose` shows where in the code.)", err=True)
        sys.exit(1)


def user_message(error: BaseException) -> str | None:
    """What a user can do about an error, or None for an error of the program."""
    from kedro.framework.cli.utils import KedroCliError
    from kedro.validation.exceptions import ParameterValidationError
    from omegaconf.errors import OmegaConfBaseException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, ParameterValidationError):
            return _parameter_message(str(cause))
        if isinstance(cause, OmegaConfBaseException):
            return f"conf/ can't be read: {cause}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, KedroCliError):
        return None  # Kedro prints these itself
    # An unknown pipeline or environment, missing inputs: Kedro's own sentence says it.
    if isinstance(error, ValueError) and ("pipeline" in str(error) or "catalog" in str(error)):
        return str(error)
    return None


def _parameter_message(text: str) -> str:
    """Pydantic's report in one line per wrong key."""
    lines = [line for line in text.splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    wrong: list[str] = []
    parameter = key = ""
    for line in lines:
        if line.startswith("- Parameter"):
            parameter, key = line.split("'")[1], ""
        elif line.startswith("    ") or (line.startswith("  ") and "[type=" in line):
            wrong.append(f"{parameter}{'.' + key if key else ''}: {line.strip().split(' [type=')[0]}")
        elif parameter:
            key = line.strip()
    return "wrong parameters in conf/ or --params: " + "; ".join(wrong or lines)


cli.add_command(
    click.Command(
        name="run",
        help=kedro_run.help,
        params=[
            *kedro_run.params,
            click.Option(["--verbose"], is_flag=True, help="Show the traceback of every error."),
        ],
        callback=_run,
    )
)
