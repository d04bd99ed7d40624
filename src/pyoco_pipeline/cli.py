"""`kedro run` with one sentence for what the user can put right, instead of a traceback."""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from yaml import YAMLError, safe_load

from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.reporting.redact import redact, redact_traceback

logger = logging.getLogger(__name__)  # goes to info.log alone: conf/logging.yml
logger.addFilter(redact_traceback)

_CONF = "conf/ can't be read"
# How long a thread of torch waits awake for the others, in turns of a loop: docs/decisions/0011.
_SPIN_COUNT = "3000"
# Kedro's own words for an unknown node, tag or namespace.
_NO_SUCH_NODE = ("Pipeline does not contain", "Pipeline contains no nodes")


@click.group()
def cli() -> None:
    """Commands of this project."""


def _run(verbose: bool, **options: Any) -> Any:
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read when torch is imported, which nodes do
    try:
        return kedro_run.callback(**options)
    except Exception as error:
        message = _conf_message(user_message(error))
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

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ParameterValidationError):
        return _parameter_message(str(error))
    if isinstance(error, MissingConfigException):
        return f"{error}. Environments are the folders of conf/."
    if isinstance(error, OmegaConfBaseException | YAMLError):
        return f"{_CONF}: {error}"
    if isinstance(error, ImportError) and error.__cause__ is None:
        unknown = re.search(r"'pyoco_pipeline\.pipelines\.(\w+)' module", str(error))
        return f"there is no pipeline {unknown[1]}: `kedro registry list` names them." if unknown else None
    if isinstance(error, ValueError) and str(error).startswith(_NO_SUCH_NODE):
        return f"{str(error).rstrip('.')}. `kedro registry describe` names the nodes."
    if type(error).__name__ == "OutOfMemoryError":  # torch's; to import it takes longer than all else here
        return (
            "The GPU's memory ran out: take a smaller batch_size, or in training more accumulation or "
            "gradient_checkpointing=true, and look with `nvidia-smi` for what else is on it. `kedro check-config` "
            "estimates what training takes."
        )
    return None


def _conf_message(message: str | None) -> str | None:
    """The message, but of what no one or only "conf/" is named for, which file of conf/ is damaged, where one is."""
    from kedro.utils import find_kedro_project

    if message is not None and not message.startswith(_CONF):
        return message
    for path in sorted(((find_kedro_project(Path.cwd()) or Path.cwd()) / "conf").rglob("*.yml")):
        try:
            content = safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, YAMLError) as error:
            return f"{path} can't be read as YAML ({in_one_line(error)}): mend it, or restore it from git."
        if not isinstance(content, dict | None):
            return f"{path} holds a {type(content).__name__}, not names with values: mend it, or restore it from git."
    return message


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
            wrong.append(f"{name}: {found['message']}, found {_without_secrets(found['value'], name)}")
        elif parameter and line.strip() and "errors.pydantic.dev" not in line:
            key = line.strip()
    return "wrong parameters in conf/ or --params: " + ("; ".join(wrong) or text)


def _without_secrets(value: str, key: str) -> str:
    """A value as Python writes it, with secrets masked; of one cut short, the whole where a word in it hints at one."""
    try:
        plain = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return str(redact(value, f"{key} {value}"))
    masked = redact(plain, key)
    return value if masked == plain else repr(masked)


def split_params(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """`--params` as Kedro reads them, but a comma inside of brackets, braces or quotes parts no parameters.

    So lists can be given: `--params "generate.prompts=[a red digit 3, a blue digit 5],generate.seed=1"`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, dict):
        return value
    items = _items(value or "")
    for item in items:
        if not item.partition("=")[1] or not item.partition("=")[0].strip():
            ctx.fail(f"--params has {item!r}: expected a key and a value, as in generate.seed=1.")
    try:
        return OmegaConf.to_container(
            OmegaConf.from_dotlist([re.sub(r"\s*=\s*", "=", i, count=1) for i in items])
        )
    except (OmegaConfBaseException, YAMLError) as error:
        ctx.fail(f"--params can't be read: {error}")


def _items(text: str) -> list[str]:
    """The parts of a text between commas that stand outside of brackets, braces and quotes."""
    items, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            items.append("")
            continue
        # An apostrophe within a word quotes nothing.
        if quote or (letter in "\"'" and items[-1].rstrip()[-1:] in ("", "=", "[", "{", ":", ",")):
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        items[-1] += letter
    return [item.strip() for item in items if item.strip()]


def _own(option: click.Parameter) -> click.Parameter:
    if option.name == "params":
        option = copy(option)
        option.callback = split_params
    return option


@cli.command("check-config")
@click.option("--env", "-e", default=None, help="The environment, a folder of conf/.")
@click.option("--params", default="", callback=split_params, help="Parameters, as for `kedro run`.")
def check_config(env: str | None, params: dict[str, Any]) -> None:
    """Look at all that can be known before a run: values, files, shapes, memory, disk. Nothing is run or written."""
    try:
        findings = list(_findings(env, params))
    except Exception as error:
        message = _conf_message(user_message(error))
        if message is None:
            raise
        findings = [("problem", message)]
    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
    for level, what in findings:
        mark, colour = marks[level]
        click.echo(f"{click.style(mark, fg=colour)} {what}")
    problems = sum(level == "problem" for level, _ in findings)
    if problems:
        click.secho(f"{problems} of {len(findings)} would end the run.", fg="red", err=True)
        sys.exit(1)


def _findings(env: str | None, params: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project
    from kedro.utils import find_kedro_project

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    bootstrap_project(project)
    with KedroSession.create(project_path=project, env=env, runtime_params=params) as session:
        catalog = session.load_context().catalog
        from pyoco_pipeline.inputs_hook import check_parameters
        from pyoco_pipeline.preflight import find_all

        check_parameters(catalog.load("parameters"))
        names = [name.removeprefix("params:") for name in list(catalog) if name.startswith("params:")]
        parameters = {name: catalog.load(f"params:{name}") for name in names}
        yield "ok", f"the parameters of {env or 'the default environment'} are valid."
        data = Path(catalog.get("reporting_folder")._filepath).parent
        for finding in find_all(parameters, data, project):
            yield finding.level, finding.what


cli.add_command(
    click.Command(
        name="run",
        help=kedro_run.help,
        params=[
            *map(_own, kedro_run.params),
            click.Option(["--verbose"], is_flag=True, help="Show the traceback of every error."),
        ],
        callback=_run,
    )
)
