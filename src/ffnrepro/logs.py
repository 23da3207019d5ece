"""Messages of the scripts, on the screen and in log files, and their exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ffnrepro.errors import Unfinished, UserError

logger = logging.getLogger("ffnrepro")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"

UNFINISHED = 75
"""Exit code of work that stopped early and has to be run again (`EX_TEMPFAIL`)."""


class _ScreenHandler(logging.Handler):
    """Writes above a progress bar instead of through it.

    The screen may be gone (a closed terminal, or a pipe whose reader ended by the same Ctrl-C); the work goes on.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stderr)


def start_logging(log: Path | None = None) -> None:
    """Send the package's messages to the screen and, where one is given, to a log file."""
    logger.setLevel(logging.INFO)
    stop_logging()
    screen = _ScreenHandler()
    screen.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(screen)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log, mode="w", encoding="utf-8")
        file.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(file)


def stop_logging() -> None:
    """Close the log files and remove all handlers."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def also_log_to(file: Path) -> None:
    """Append all further messages to a file, too: Snakemake deletes a job's own log before each attempt."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


def run(work: Callable[[], object], log: Path | None = None) -> int:
    """Run a script's work and return its exit code.

    A `UserError` ends in one line and code 1, `Unfinished` in one line and code 75, Ctrl-C in one line and code 130. Any
    other exception is a fault of this project; its traceback goes to the log file, too, since the screen of a cluster job
    is seldom kept.
    """
    # Of several processes only the first one writes the log file.
    start_logging(None if int(os.environ.get("RANK", "0")) else log)
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
