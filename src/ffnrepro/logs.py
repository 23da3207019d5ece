"""Messages of the scripts, in the terminal and in log files, and their exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from ffnrepro.errors import Unfinished, UserError
from ffnrepro.files import write_json

logger = logging.getLogger("ffnrepro")

UNFINISHED = 75
"""Exit code of work that stopped early and has to be run again (`EX_TEMPFAIL`)."""


class _ScreenHandler(logging.Handler):
    """Writes above a progress bar instead of through it.

    If the terminal is gone (it was closed, or is a pipe whose reader was stopped by the same Ctrl-C), the work goes on.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stderr)


class _LastWarning(logging.Handler):
    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            message += f" ({record.exc_info[1]!r})"
        # The log has the message, too.
        with suppress(OSError):
            write_json(self._file, {"time": f"{datetime.now():%F %T}", "message": message})


def log_to(file: Path, *, mode: str) -> None:
    """Write all further messages to a file, too; `mode` is that of `open`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, mode=mode, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def keep_last_warning(file: Path) -> None:
    """Keep the last warning or error in a JSON file, with its time; `ffnrepro watch` shows it."""
    logger.addHandler(_LastWarning(file))


def stop_logging() -> None:
    """Close the log files and remove all handlers."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def run(work: Callable[[], object], log: Path | None = None) -> int:
    """Run a script's work and return its exit code.

    A `UserError` ends in one line and code 1, `Unfinished` in one line and code 75, Ctrl-C in one line and code 130. Any
    other exception is a fault of this project; its traceback also goes to the log file, since the terminal output of a
    cluster job is seldom kept.
    """
    logger.setLevel(logging.INFO)
    stop_logging()
    logger.addHandler(_ScreenHandler())
    # If there are several processes, only the first one writes the log file.
    if log is not None and os.environ.get("RANK", "0") == "0":
        log_to(log, mode="w")
    try:
        work()
    except UserError as error:
        logger.error("error: %s", error)
        return 1
    except Unfinished as why:
        logger.warning("unfinished, run again: %s", why)
        return UNFINISHED
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 128 + signal.SIGINT
    except Exception:
        logger.exception("an unexpected error; please report it with this text")
        return 1
    return 0
