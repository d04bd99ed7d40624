"""Keep secrets out of whatever is logged or shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

MASK = "********"
_SECRET_KEY = re.compile(r"passw(or)?d|secret|api_?key|credential", re.IGNORECASE)
_GIVEN = re.compile(r"input_value=.*(?=, input_type=)")  # as Pydantic quotes it
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def redact(value: Any, key: str = "") -> Any:
    """A copy of nested dicts and lists in which secrets are masked.

    A value is a secret when its key holds password, secret, credential, api_key or token; numbers under keys
    like `num_tokens` are not, nor is a `tokenizer`. Logins inside URLs are masked wherever they stand.
    """
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if value is None or value == "":
        return value
    if _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, str):
        if "token" in key.lower() and "tokenizer" not in key.lower():
            return MASK
        return redact_url(value)
    return value


def redact_url(text: str) -> str:
    """The text with `user:password@` in URLs masked."""
    return _URL_LOGIN.sub(f"{MASK}@", text)


def redact_traceback(record: logging.LogRecord) -> bool:
    """A filter of a logger: its tracebacks leave out what Pydantic quotes of given parameters, which may be keys."""
    if record.exc_info:
        text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = _GIVEN.sub(f"input_value={MASK}", text)
    return True
