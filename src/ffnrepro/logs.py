"""What a script says: to the screen, and the same to its log file."""

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
"""Exit code of work that stopped in time and is to be run again (`EX_TEMPFAIL`)."""


class _ScreenHandler(logging.Handler):
    """Writes above a progress bar instead of through it.

    The screen may be gone: its terminal was closed, or what read it through a pipe ended by the same Ctrl-C. Work goes on.
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
    """Close the files that messages go to; nobody gets them any more."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def also_log_to(file: Path) -> None:
    """Append what is said from now on to a file, too: Snakemake deletes a job's own log with each attempt."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


def run(work: Callable[[], object], log: Path | None = None) -> int:
    """Run a script's work and return its exit code.

    A `UserError` ends in one line and code 1, `Unfinished` in one line and code 75 ("temporary failure"), Ctrl-C in one line
    and code 130. Anything else is a fault of ours: its traceback goes to the log file, too, since the screen of a cluster
    job is seldom kept.
    """
    if int(os.environ.get("RANK", "0")):  # of several processes the first one speaks
        log = None
    start_logging(log)
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
