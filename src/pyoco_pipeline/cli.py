"""`kedro run` with one sentence for what the user can put right, instead of a traceback."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)  # goes to info.log alone: conf/logging.yml

# Kedro's own words for an unknown node, tag or namespace.
_NO_SUCH_NODE = ("Pipeline does not contain", "Pipeline contains no nodes")


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
        logger.error("The run failed", exc_info=error)
        click.secho(f"Error: {message}", fg="red", err=True)
        click.echo("(`--verbose` shows where in the code.)", err=True)
        sys.exit(1)


def user_message(error: BaseException) -> str | None:
    """What a user can do about an error, or None for an error of the program."""
    cause: BaseException | None = error
    while cause is not None:
        message = _message(cause)
        if message:
            return message
        cause = cause.__cause__ or cause.__context__
    return None


def _message(error: BaseException) -> str | None:
    from kedro.config import MissingConfigException
    from kedro.validation.exceptions import ParameterValidationError
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ParameterValidationError):
        return _parameter_message(str(error))
    if isinstance(error, MissingConfigException):
        return f"{error}. Environments are the folders of conf/."
    if isinstance(error, OmegaConfBaseException | YAMLError):
        return f"conf/ can't be read: {error}"
    if isinstance(error, ImportError) and error.__cause__ is None:
        unknown = re.search(r"'pyoco_pipeline\.pipelines\.(\w+)' module", str(error))
        return f"there is no pipeline {unknown[1]}: `kedro registry list` names them." if unknown else None
    if isinstance(error, ValueError) and str(error).startswith(_NO_SUCH_NODE):
        return f"{str(error).rstrip('.')}. `kedro registry describe` names the nodes."
    return None


_FOUND = re.compile(r"(?P<message>.*?) \[type=\w+, input_value=(?P<value>.*), input_type=\w+\]")


def _parameter_message(text: str) -> str:
    """Pydantic's report as one clause per wrong key: the key, what is expected, what was found."""
    wrong: list[str] = []
    parameter = key = ""
    for line in text.splitlines():
        found = _FOUND.match(line.strip())
        if line.startswith("- Parameter"):
            parameter, key = line.split("'")[1], ""
        elif found:
            name = f"{parameter}.{key}" if key else parameter
            wrong.append(f"{name}: {found['message']}, found {found['value']}")
        elif parameter and line.strip() and "errors.pydantic.dev" not in line:
            key = line.strip()
    return "wrong parameters in conf/ or --params: " + ("; ".join(wrong) or text)


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
