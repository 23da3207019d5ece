"""The exceptions whose messages are written for the user."""


class UserError(Exception):
    """A problem that the user can fix; its message is one line that names the file, row or key, and the fix.

    Scripts and the workflow print the message without a traceback and end with exit code 1.
    """


class PermanentError(UserError):
    """A `UserError` in which every further attempt with the same configuration and data would end, too."""


class Unfinished(Exception):
    """Work that stops before its end and loses nothing: it continues when it is run again. The exit code is 75."""
