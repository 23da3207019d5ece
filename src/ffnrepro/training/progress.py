"""Progress of a training: a log line and points of TensorBoard's curves for each epoch, and warnings of silent failures."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ffnrepro.estimate import duration
from ffnrepro.optional import import_optional

logger = logging.getLogger(__name__)

Row = dict[str, float]

LEARNED = 0.1
"""The teacher's cross entropy must fall by this many nats before its students are judged."""

UNLEARNED = 0.5
"""A student does not learn if its divergence rises by more than this fraction of the fall in the teacher's cross entropy."""

OVERFITTED = 98.0
"""Training accuracy in percent above which a falling validation accuracy means overfitting."""

FALLEN = 1.0
"""A validation accuracy this many points below the best one counts as a fall, not as noise."""


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
    left = duration((epochs - row["epoch"]) * row["seconds"] / 3600)
    return (
        f"{name}: epoch {row['epoch']:.0f}/{epochs}, loss {row['train_loss']:.3f} ({parts}), top-1/top-5 train "
        f"{row['train_top1']:.1f}/{row['train_top5']:.1f}, validation {scores}, learning rate "
        f"{row['learning_rate']:.2g}, {row['frames_per_second']:.0f} frames/s, {row['data_wait']:.0f} % waiting for "
        f"data, {row['seconds']:.0f} s, {left} left"
    )


def warnings(history: Sequence[Row], *, select_by: str) -> list[str]:
    """Warnings about the last epoch; each is given once, when its condition becomes true.

    Args:
        history: one row for each epoch.
        select_by: name of the validation score that chooses the best epoch.
    """
    now, before = history[-1], history[:-1]
    found = [
        f"{key.removeprefix('train_')} went from {history[0][key]:.3f} to {now[key]:.3f}: the highest frame count learns, "
        "but this one does not learn from it; check distillation_weight and the learning rate"
        for key in now
        if key.startswith("train_kl_") and _not_learning(history, key) and not _not_learning(before, key)
    ]
    if _overfits(history, select_by) and not _overfits(before, select_by):
        best = max(row[f"validation_{select_by}"] for row in history)
        found.append(
            f"training accuracy is {now['train_top1']:.1f} %, but {select_by} on validation fell from "
            f"{best:.1f} to {now[f'validation_{select_by}']:.1f}: the network overfits; check training.crop "
            "(multi_scale), network.dropout and training.weight_decay"
        )
    return found


def _not_learning(history: Sequence[Row], key: str) -> bool:
    # A divergence starts near zero, because the teacher knows nothing yet, and even in a good training it may rise for many
    # epochs (on the built-in data from 0.01 to 0.10 in 14 epochs). If a student learns nothing, its divergence rises as much
    # as the teacher's cross entropy falls.
    if not history:
        return False
    learned = history[0]["train_cross_entropy"] - history[-1]["train_cross_entropy"]
    return learned > LEARNED and history[-1][key] - history[0][key] > UNLEARNED * learned


def _overfits(history: Sequence[Row], select_by: str) -> bool:
    scores = [row[f"validation_{select_by}"] for row in history]
    return bool(scores) and history[-1]["train_top1"] > OVERFITTED and scores[-1] <= max(scores) - FALLEN


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
