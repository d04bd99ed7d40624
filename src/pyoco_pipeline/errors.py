"""The one exception that is written for the user."""


class UserError(Exception):
    """Something the user can put right; the message says what was found, where, and what to do."""
