"""The exceptions that the user is meant to read."""


class UserError(Exception):
    """Something that the user can mend: one line that names the file, the row or the key, and the mend.

    Scripts and the workflow print its message without a traceback and end with exit code 1.
    """


class PermanentError(UserError):
    """A `UserError` that the same configuration and data would end in again, however often it is tried."""


class Unfinished(Exception):
    """Work that stops before its end and loses nothing: run again, it continues. The exit code is 75."""
