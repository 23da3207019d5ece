"""How a training shows its progress: a bar on the screen, `progress.json`, a log line and TensorBoard's curves."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ffnrepro.estimate import duration
from ffnrepro.faults import not_distilled, overfitted
from ffnrepro.files import write_json
from ffnrepro.optional import import_optional
from ffnrepro.recipe.clips import Batch
from ffnrepro.training.processes import Processes
from ffnrepro.training.state import TrainingState

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Least time between two reports within an epoch, in seconds. A report takes about a millisecond."""

Row = dict[str, float]


class Progress:
    """The progress of one training. Only the first process shows it.

    Args:
        folder: state folder of the training.
        name: name of the run.
        epochs: number of epochs of the whole training.
        steps: number of steps of an epoch.
        processes: the processes, each of which trains on an equal part of every batch.
    """

    def __init__(self, folder: Path, name: str, epochs: int, steps: int, processes: Processes) -> None:
        self._folder = folder
        self._name = name
        self._epochs = epochs
        self._steps = steps
        self._processes = processes
        self._written = -math.inf

    def bar(self, batches: Iterator[Batch], state: TrainingState) -> "tqdm[Batch]":
        """The rest of an epoch's batches, with a bar on the screen."""
        return tqdm(
            batches,
            desc=f"{self._name} {len(state.history) + 1}/{self._epochs}",
            initial=state.step,
            total=self._steps,
            leave=False,
            disable=None if self._processes.first else True,
            unit="step",
        )

    def report_step(self, state: TrainingState) -> None:
        """Write `progress.json`, which `ffnrepro watch` shows, at most every `INTERVAL` seconds within an epoch.

        An interruption may lose the file: a training continues from its checkpoints only.
        """
        now, epoch, step, steps = time.monotonic(), len(state.history), state.step, self._steps
        if not self._processes.first or (0 < step < steps and now - self._written < INTERVAL):
            return
        last, sums = state.history[-1] if state.history else None, state.sums
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
            content["loss"] = sums.train["train_loss"] / sums.samples
            content["frames_per_second"] = self._processes.count * sums.frames / sums.seconds
        # Until an epoch is finished, the time of a validation is not known, and is left out.
        seconds = last["seconds"] if last else sums.seconds / sums.steps * steps if step else None
        if seconds is not None:
            content["seconds_left"] = seconds * (self._epochs - epoch - step / steps)
        # If the disk is full, the next save reports it.
        with suppress(OSError):
            write_json(self._folder / "progress.json", content)
        self._written = now

    def report_epoch(self, state: TrainingState, *, select_by: str) -> None:
        """Report the epoch that has just ended: `progress.json`, log line, curves and warnings.

        Args:
            state: state of the training after this epoch.
            select_by: name of the validation score that chooses the best epoch.
        """
        self.report_step(state)
        if not self._processes.first:
            return
        write_scalars(self._folder / "tensorboard" / self._name, state.history[-1])
        logger.info("%s", epoch_line(self._name, self._epochs, state.history[-1]))
        for warning in warnings(state.history, select_by=select_by):
            logger.warning("%s: %s", self._name, warning)


def epoch_line(name: str, epochs: int, row: Row) -> str:
    """Log line of an epoch.

    Args:
        name: name of the run.
        epochs: number of epochs of the whole training.
        row: row of the history.
    """
    parts = ", ".join(
        f"{key.removeprefix('train_').replace('_', ' ')} {value:.3f}"
        for key, value in row.items()
        if key.startswith(("train_cross_entropy", "train_kl"))
    )
    scores = ", ".join(
        f"{key.removeprefix('validation_top1_')} {value:.1f}/{row[key.replace('top1', 'top5')]:.1f}"
        for key, value in row.items()
        if key.startswith("validation_top1_")
    )
    hours = (epochs - row["epoch"]) * row["seconds"] / 3600
    return (
        f"{name}: epoch {row['epoch']:.0f}/{epochs}, loss {row['train_loss']:.3f} ({parts}), top-1/top-5 train "
        f"{row['train_top1']:.1f}/{row['train_top5']:.1f}, validation {scores}, learning rate "
        f"{row['learning_rate']:.2g}, {row['frames_per_second']:.0f} frames/s, {row['data_wait']:.0f} % waiting for "
        f"data, {row['seconds']:.0f} s" + (f", {duration(hours)} left" if hours else "")
    )


def warnings(history: Sequence[Row], *, select_by: str) -> list[str]:
    """Warnings about the last epoch; each is given once, when its condition becomes true.

    Args:
        history: one row for each epoch.
        select_by: name of the validation score that chooses the best epoch.
    """
    checks = [partial(not_distilled, key=key) for key in history[-1] if key.startswith("train_kl_")]
    checks.append(partial(overfitted, select_by=select_by))
    return [
        " ".join(finding)
        for check in checks
        for finding in check(history)
        if next(check(history[:-1]), None) is None
    ]


def write_scalars(folder: Path, row: Row) -> None:
    """Add an epoch to the curves of TensorBoard. If it is broken or the disk is full, only the curves are lost."""
    # TensorBoard loads TensorFlow where that is installed, broken or not.
    tensorboard = import_optional("torch.utils.tensorboard", "there are no curves for TensorBoard")
    if tensorboard is None:
        return
    try:
        with tensorboard.SummaryWriter(str(folder)) as writer:
            for key, value in row.items():
                if key != "epoch":
                    writer.add_scalar(key.replace("_", "/", 1), value, int(row["epoch"]))
    except OSError as error:
        logger.warning("%s: the curves of epoch %d are lost (%s)", folder, row["epoch"], error)
