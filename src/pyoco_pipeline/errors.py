"""The one exception that is written for the user."""


class UserError(Exception):
    """Something the user can put right; the message says what was found, where, and what to do."""


class Stopped(UserError):
    """A run that a signal ended after it wrote a checkpoint: the same command goes on."""
