"""The one exception that is written for the user."""

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can put right; the message says what was found, where, and what to do."""


class Stopped(UserError):
    """A run that a signal ended after it wrote a checkpoint: the same command goes on."""


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed for want of room: of the disk, a quota or a limit; libraries in Rust put it in words."""
    words = ("No space left", *(f"(os error {number})" for number in _FULL))
    return getattr(error, "errno", None) in _FULL or any(word in str(error) for word in words)
