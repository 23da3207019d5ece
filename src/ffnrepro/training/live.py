"""Progress of a running training: `progress.json` in its state folder, which `ffnrepro watch` shows."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ffnrepro.files import write_json

INTERVAL = 10.0
"""Shortest time between two reports within an epoch, in seconds. A report takes about a millisecond."""


class LiveProgress:
    """Writes the file. An interruption may lose it: a training continues from its checkpoints only.

    Args:
        folder: state folder of the training.
        epochs: number of epochs of the whole training.
        steps: number of steps of an epoch.
        processes: number of processes, each of which trains on an equal part of every batch.
    """

    def __init__(self, folder: Path, *, epochs: int, steps: int, processes: int) -> None:
        self._file = folder / "progress.json"
        self._epochs = epochs
        self._steps = steps
        self._processes = processes
        self._written = -math.inf

    def report(
        self,
        *,
        epoch: int,
        step: int,
        sums: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
    ) -> None:
        """Write how far the training is, unless the last report was written less than `INTERVAL` seconds ago within this epoch.

        Args:
            epoch: number of finished epochs.
            step: number of finished steps of the next epoch.
            sums: sums over the steps of the unfinished epoch in this process.
            history: one row for each finished epoch.
        """
        now, steps = time.monotonic(), self._steps
        if 0 < step < steps and now - self._written < INTERVAL:
            return
        last = dict(history[-1]) if history else None
        content: dict[str, Any] = {
            "time": f"{datetime.now():%F %T}",
            "epoch": epoch,
            "epochs": self._epochs,
            "step": step,
            "steps": steps,
            "loss": last and last["train_loss"],
            "frames_per_second": last and last["frames_per_second"],
            "seconds_left": None,
            "last_epoch": last,
        }
        if step:
            content["loss"] = sums["train_loss"] / sums["samples"]
            content["frames_per_second"] = self._processes * sums["frames"] / sums["seconds"]
        # Until an epoch is finished, the time of a validation is not known, and is left out.
        seconds = last["seconds"] if last else sums["seconds"] / sums["steps"] * steps if step else None
        if seconds is not None:
            content["seconds_left"] = seconds * (self._epochs - epoch - step / steps)
        # If the disk is full, the next save reports it.
        with suppress(OSError):
            write_json(self._file, content)
        self._written = now
