"""When to stop before the end: a signal, or the end of the cluster job."""

import logging
import os
import signal
import subprocess
import time
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any, Self

from ffnrepro.errors import Unfinished

logger = logging.getLogger(__name__)

MARGIN = 60.0
"""Seconds kept at the end of a job beside what the last step and the save take."""


class StopRequest:
    """Asks to stop after SIGTERM or Ctrl-C, or before `end`.

    A cluster may send SIGTERM several times: a repeated one is only noted, or it would end the save that the first asked
    for. A second Ctrl-C acts at once.

    Within a `with` block, in the main thread.

    Args:
        end: of the time that there is, in seconds as `time.time()` counts them; None: no end.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])

    def announce(self) -> None:
        """Tell when it stops, where that is known."""
        if self._end is not None:
            end = f"{datetime.fromtimestamp(self._end):%F %T}"
            logger.info("stops before %s, and continues when it is run again", end)

    def reason(self, reserve: float = 0.0) -> str | None:
        """Why to stop now, or None.

        Args:
            reserve: seconds that stopping takes.
        """
        if self._signal is not None:
            return self._signal
        if self._end is not None and time.time() + reserve + self._margin >= self._end:
            return "the time is nearly used"
        return None

    def check(self, where: str) -> None:
        """Stop where there is nothing to save.

        Raises:
            Unfinished: there is a reason.
        """
        if (reason := self.reason()) is not None:
            raise Unfinished(f"{where}: {reason}; what was done before is saved")


def end_of_job(time_budget: float | None) -> float | None:
    """When the time is used, as `time.time()` counts: by a budget in minutes, by the SLURM job, or None.

    Args:
        time_budget: minutes from now.
    """
    ends = [] if time_budget is None else [time.time() + 60 * time_budget]
    if (job := os.environ.get("SLURM_JOB_ID")) is not None and (end := _end_of_slurm_job(job)) is not None:
        ends.append(end)
    return min(ends, default=None)


def _end_of_slurm_job(job: str) -> float | None:
    if (stamp := os.environ.get("SLURM_JOB_END_TIME", "")).isdecimal():
        return float(stamp)
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]  # older than SLURM 22.05
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return datetime.fromisoformat(answer.split()[0]).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        logger.warning("the end of SLURM job %s is not known; set runtime.time_budget if it has one", job)
        return None
