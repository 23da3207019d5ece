"""Exceptions with messages for the user."""


class UserError(Exception):
    """A problem that the user can fix; its message is one line that names the file, row or key, and the fix.

    Scripts and the workflow print the message without a traceback and end with exit code 1.
    """


class PermanentError(UserError):
    """A `UserError` that would also end every further attempt with the same configuration and data."""


class Unfinished(Exception):
    """Work that stopped early without losing anything: it continues when it is run again. The exit code is 75."""
