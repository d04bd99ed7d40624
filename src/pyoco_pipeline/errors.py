"""The one exception that is written for the user."""

import errno
from textwrap import shorten

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can put right; the message says what was found, where, and what to do."""


class Stopped(UserError):
    """A run that a signal ended after it wrote a checkpoint: the same command goes on."""


def in_one_line(error: BaseException) -> str:
    """What a library says is wrong with a file, short and without its last stop, to stand in a sentence."""
    if isinstance(error, TypeError | AttributeError):  # which speak of the code, not of the file
        return "it holds something else"
    if isinstance(error, KeyError) and len(str(error).split()) == 1:
        return f"it lacks {error}"
    # The first line of torch's errors is a heading, the second says what is wrong.
    said = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
    return shorten(said, 300).rstrip(".")


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed for want of room: of the disk, a quota or a limit; libraries in Rust put it in words."""
    words = ("No space left", *(f"(os error {number})" for number in _FULL))
    return getattr(error, "errno", None) in _FULL or any(word in str(error) for word in words)
