"""The one exception that the user is meant to read."""


class UserError(Exception):
    """Something that the user can mend: one line that names the file, the row or the key, and the mend.

    Scripts and the workflow print its message without a traceback and end with exit code 1.
    """
