"""Progress of a training: a log line and points of TensorBoard's curves for each epoch, and warnings of silent failures."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ffnrepro.estimate import duration
from ffnrepro.faults import not_distilled, overfitted
from ffnrepro.optional import import_optional

logger = logging.getLogger(__name__)

Row = dict[str, float]


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
        " ".join(sign)
        for check in checks
        for sign in check(history)
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
