"""How far a running training is: `progress.json` in its state folder, which `ffnrepro watch` shows."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ffnrepro.files import write_json

EVERY = 10.0
"""Seconds between two reports within an epoch. A report takes about a millisecond."""


class LiveProgress:
    """Writes the file. It holds what an interruption may lose; all else is in the checkpoints.

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
        """Write the place of the training, unless the last report within this epoch is younger than `EVERY` seconds.

        Args:
            epoch: number of finished epochs.
            step: number of finished steps of the next epoch.
            sums: sums of the running epoch in this process.
            history: one row for each finished epoch.
        """
        now, steps = time.monotonic(), self._steps
        if 0 < step < steps and now - self._written < EVERY:
            return
        last = dict(history[-1]) if history else None
        place: dict[str, Any] = {
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
            place["loss"] = sums["train_loss"] / sums["samples"]
            place["frames_per_second"] = self._processes * sums["frames"] / sums["seconds"]
        # Without a finished epoch, the time of a validation is not known.
        seconds = last["seconds"] if last else sums["seconds"] / sums["steps"] * steps if step else None
        if seconds is not None:
            place["seconds_left"] = seconds * (self._epochs - epoch - step / steps)
        # On a full disk, the next save says so.
        with suppress(OSError):
            write_json(self._file, place)
        self._written = now
