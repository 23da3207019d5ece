"""When to stop a training before its last epoch: after a signal, or shortly before the cluster job ends."""

import logging
import os
import signal
import subprocess
import time
from datetime import datetime
from types import FrameType
from typing import Any, Self

from ffnrepro.errors import Unfinished

logger = logging.getLogger(__name__)

MARGIN = 60.0
"""Seconds in reserve at the end of a job, in addition to the time of the last step and the save."""


class StopRequest:
    """A request to stop, by SIGTERM, Ctrl-C or a deadline.

    A cluster may send SIGTERM several times. A repeated SIGTERM changes nothing, because it would interrupt the save that the
    first one requested. A second Ctrl-C acts at once.

    Use it in a `with` block in the main thread; the block catches the signals.

    Args:
        end: deadline in seconds as `time.time()` counts them; None: no deadline.
    """

    def __init__(self, end: float | None = None) -> None:
        self._end = end
        self._margin = 0.0 if end is None else min(MARGIN, max(0.0, 0.05 * (end - time.time())))
        self._signal: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])

    def announce(self) -> None:
        """Log the deadline, if there is one."""
        if self._end is not None:
            end = f"{datetime.fromtimestamp(self._end):%F %T}"
            logger.info("the training stops before %s, and continues when it is run again", end)

    def reason(self, reserve: float = 0.0) -> str | None:
        """The reason to stop now, or None.

        Args:
            reserve: seconds that stopping takes.
        """
        if self._signal is not None:
            return self._signal
        if self._end is not None and time.time() + reserve + self._margin >= self._end:
            return "the time limit is near"
        return None

    def check(self, name: str) -> None:
        """Stop now if there is a reason; for places where there is nothing to save.

        Args:
            name: name of the work, for the message.

        Raises:
            Unfinished: there is a reason.
        """
        if (reason := self.reason()) is not None:
            raise Unfinished(f"{name}: {reason}; earlier work is saved")


def end_of_job(time_budget: float | None) -> float | None:
    """Deadline as `time.time()` counts, from a time budget and the SLURM job; None if there is neither.

    Args:
        time_budget: minutes from now.
    """
    ends = [] if time_budget is None else [time.time() + 60 * time_budget]
    if job := os.environ.get("SLURM_JOB_ID"):
        command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
            end = datetime.fromisoformat(answer.strip()).timestamp()
        except (OSError, subprocess.SubprocessError, ValueError):
            logger.warning(
                "the end of SLURM job %s is unknown; set runtime.time_budget if it has a time limit", job
            )
        else:
            # A shell keeps the variables of a job that has ended.
            if end > time.time():
                ends.append(end)
            else:
                logger.warning(
                    "SLURM job %s (SLURM_JOB_ID) ended at %s, so this process is not part of it, and its time limit is ignored",
                    job,
                    answer.strip(),
                )
    return min(ends, default=None)
