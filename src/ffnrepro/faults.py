"""Signs of faults in a training, its network and its scores: pure functions over evidence that is read elsewhere.

Each function yields a `Sign` for each fault that it finds, and nothing for a healthy network. `ffnrepro.diagnosis` calls
them all on finished networks; `ffnrepro.training.progress` calls two of them after each epoch. The thresholds were
set on the built-in data: three seeds of TSM and FFN, and one of each baseline ("measured" below).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from ffnrepro.config import TrainingSettings
from ffnrepro.recipe.optim import learning_rate_factor
from ffnrepro.runs import RunSettings
from ffnrepro.statistics import bootstrap_interval

Row = Mapping[str, float]
"""An epoch of a history: its columns by name."""

RISEN = 1.0
"""A cross entropy that rises by more nats above its lowest earlier epoch explodes. Measured: at most 0.2 (Mixed Sampling)."""

LEARNED = 0.1
"""The teacher's cross entropy must fall by this many nats before its students are judged."""

UNLEARNED = 0.5
"""A student does not learn if its divergence rises by more than this fraction of the fall in the teacher's cross entropy.
Measured: at most 0.12."""

OVERFITTED = 98.0
"""Training accuracy in percent above which a falling validation accuracy means overfitting."""

FALLEN = 1.0
"""A validation accuracy this many points below the best one counts as a fall, not as noise. Measured: at most 0.9 where the
training accuracy is near `OVERFITTED`."""

SKIPPED = 0.01
"""Fraction of the steps after the first epoch. The loss scale doubles after 2,000 good steps, and then at most a step or two
are skipped: 0.001."""

WAITED = 50.0
"""Percent of the time of the median epoch: more than half. Measured: at most 31 (one core that decodes and trains)."""

LOST_SECONDS = 600.0
"""A training that waited less in all is too short to be worth a change."""

NEAR_CHANCE = 0.05
"""A network whose accuracy covers less of the way from chance to 100 % has learnt nothing."""

LEARNT = 40.0
"""Training accuracy in percent, at its best, of a network that has learnt its training videos."""

UNMATCHED = 0.25
"""Such a network's validation accuracy, as a fraction of that training accuracy, is at least this. A public reproduction that
overfits has 0.57. Measured with the demo's networks and the statistics of a new BatchNorm: at most 0.17, and 0.19 with
statistics that are a tenth of the way from new to right."""

SWALLOWED = 15.0
"""Points by which a class's share of the predictions may exceed its share of the videos. Measured: at most 4 at a trained
frame count (at others 23: the collapse)."""

PERMUTED = 10.0
"""Percent of the videos that a permutation of the classes must turn from wrong to right. Measured: 0."""

PERMUTED_SHARE = 0.4
"""Share of the videos of permuted classes that are predicted as the one other class."""

COLLAPSED = 0.05
"""The fall of TSM's accuracy from 16 frames to 4, as a fraction, is at least this. Published: at least 0.12 (Kinetics-400 and
HMDB51), and 0.48 on Something-Something V2. Measured: 0.25 to 0.42."""

CLASSIFIER_START = 0.002
"""Twice the standard deviation with which a classifier's weights start. Measured after training: 0.38 to 0.43."""

UPDATED = 0.1
"""BatchNorm counts the batches in training mode. Measured: one in each step, to the last one. Of a method that draws one of
several frame counts, a private BatchNorm sees only some steps."""

EXCLUDED = 0.005
"""Fraction of a split's videos; the default of `data.max_excluded`, which counts all splits together."""

FEWEST_VIDEOS = 100
"""With fewer evaluated videos, scores are too uncertain to judge a network by."""


class Sign(NamedTuple):
    """What points to a fault, its likely cause, and what to do; each of one to three short sentences."""

    evidence: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Network:
    """A network, trained or imported, and what is known about it.

    Attributes:
        settings: of its run, without those that have no effect.
        record: its `run.json`.
        history: a row for each epoch; empty if the network was imported.
        predictions: frame count -> a row for each video: `label` and the predicted class `class_1`, by id.
        tensors: its weights and statistics by name, as in `model.pt`.
    """

    settings: RunSettings
    record: Mapping[str, Any]
    history: Sequence[Row]
    predictions: Mapping[int, pd.DataFrame]
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """Run and seed."""
        return f"{self.record['run']}, seed {self.record['seed']}"

    @property
    def train_frames(self) -> tuple[int, ...]:
        """The frame counts that it was trained at; empty for an imported network that does not tell."""
        imported = self.record.get("imported")
        if imported:
            return tuple(imported["architecture"].get("frame_counts", ()))
        return self.settings.method.frame_counts

    @property
    def steps(self) -> int | None:
        """Steps of an epoch; None if the record does not tell."""
        videos = self.record.get("videos")
        return videos and videos // self.settings.training.batch_size

    @cached_property
    def top1(self) -> dict[int, float]:
        """Top-1 accuracy in percent by frame count."""
        return {
            frames: 100 * float((rows["label"] == rows["class_1"]).mean())
            for frames, rows in self.predictions.items()
        }

    @property
    def judged_frames(self) -> list[int]:
        """The evaluated frame counts at which a good network is accurate: those that it was trained at.

        Of a network that does not tell: the best one. Empty if too few videos were evaluated.
        """
        if any(len(rows) < FEWEST_VIDEOS for rows in self.predictions.values()):
            return []
        if not self.train_frames:
            return sorted(self.top1, key=lambda frames: self.top1[frames])[-1:]
        return [frames for frames in self.train_frames if frames in self.top1]

    def is_near_chance(self, frames: int) -> bool:
        """Whether the accuracy at a frame count is hardly above that of always predicting the most frequent class."""
        chance = self.chance(frames)
        return self.top1[frames] < chance + NEAR_CHANCE * (100 - chance)

    def chance(self, frames: int) -> float:
        """Share of the most frequent class in percent."""
        return 100 * float(self.predictions[frames]["label"].value_counts(normalize=True).max())

    @property
    def has_learnt_in_training_only(self) -> bool:
        """Whether the training accuracy is good, and the network nevertheless fails at all its frame counts."""
        best = max((row["train_top1"] for row in self.history), default=0.0)
        scores = [self.top1[frames] for frames in self.judged_frames]
        return best >= LEARNT and bool(scores) and max(scores) < UNMATCHED * best


# --- The history of a training -----------------------------------------------------------------------------------


def exploded(history: Sequence[Row]) -> Iterator[Sign]:
    """Find a cross entropy that is not finite, or that rises far above an earlier epoch."""
    cause = "The learning rate is too high, or numbers overflow in float16."
    remedy = "Lower training.learning_rate, or set training.warmup_epochs, training.clip_norm: 20 or training.precision: float32."
    losses = [row["train_cross_entropy"] for row in history]
    for row in history:
        if wrong := [
            name for name, value in row.items() if name.startswith("train_") and not math.isfinite(value)
        ]:
            yield Sign(f"{wrong[0]} is {row[wrong[0]]} in epoch {row['epoch']:.0f}.", cause, remedy)
            return
    rises = [losses[i] - min(losses[:i]) for i in range(1, len(losses))]
    if rises and max(rises) > RISEN:
        at = 1 + rises.index(max(rises))
        yield Sign(
            f"The training cross entropy rises from {min(losses[:at]):.2f} to {losses[at]:.2f} in epoch {at + 1}, where the "
            f"mean norm of the gradient is {history[at]['gradient_norm']:.3g}. In the last epoch it is {losses[-1]:.2f}.",
            cause,
            remedy,
        )


def not_distilled(history: Sequence[Row], key: str) -> Iterator[Sign]:
    """Find a frame count that does not learn from the highest one (eq. 4).

    Args:
        history: a row for each epoch.
        key: column of the frame count's divergence, such as `train_kl_4f`.
    """
    # A divergence starts near zero, because the teacher knows nothing yet, and even in a good training it may rise for many
    # epochs (on the built-in data from 0.01 to 0.10 in 14 epochs). If a student learns nothing, its divergence rises as much
    # as the teacher's cross entropy falls.
    if not history:
        return
    first, last = history[0], history[-1]
    learned = first["train_cross_entropy"] - last["train_cross_entropy"]
    if learned > LEARNED and last[key] - first[key] > UNLEARNED * learned:
        yield Sign(
            f"{key.removeprefix('train_')} went from {first[key]:.3f} to {last[key]:.3f}, while the cross entropy at the highest "
            f"frame count fell from {first['train_cross_entropy']:.3f} to {last['train_cross_entropy']:.3f}.",
            "The highest frame count learns, but this one does not learn from it.",
            "Check distillation_weight and training.learning_rate.",
        )


def overfitted(history: Sequence[Row], select_by: str, videos: int | None = None) -> Iterator[Sign]:
    """Find a validation accuracy that falls although nearly all training videos are right.

    Args:
        history: a row for each epoch.
        select_by: the validation score that chooses the best epoch, such as `top1_16f`.
        videos: number of validation videos; None: not known.
    """
    scores = [row[f"validation_{select_by}"] for row in history]
    if not scores or history[-1]["train_top1"] <= OVERFITTED:
        return
    best = max(scores)
    # Two standard errors of a difference, which are more than `FALLEN` with few videos.
    noise = 2 * math.sqrt(2 * best * (100 - best) / videos) if videos else 0.0
    if scores[-1] <= best - max(FALLEN, noise):
        yield Sign(
            f"The training accuracy is {history[-1]['train_top1']:.1f} %, but {select_by} on validation fell from {best:.1f} in epoch "
            f"{1 + scores.index(best)} to {scores[-1]:.1f} in epoch {len(scores)}.",
            "The network overfits: its training clips vary too little.",
            "The best epoch is kept. For a better one, check training.crop (multi_scale), network.dropout and training.weight_decay.",
        )


def learning_rate_wrong(history: Sequence[Row], training: TrainingSettings, steps: int) -> Iterator[Sign]:
    """Find a learning rate that is not the one of the schedule, or that is never lowered.

    Args:
        history: a row for each epoch, with the learning rate of its last step.
        training: settings of the training.
        steps: steps of an epoch.
    """
    for row in history:
        planned = training.learning_rate * learning_rate_factor(
            row["epoch"] - 1 / steps,
            epochs=training.epochs,
            schedule=training.schedule,
            milestones=training.milestones,
            warmup_epochs=training.warmup_epochs,
        )
        if not math.isclose(row["learning_rate"], planned, rel_tol=0.01, abs_tol=1e-7):
            yield Sign(
                f"In epoch {row['epoch']:.0f} the learning rate is {row['learning_rate']:.2g}, and by the settings it is {planned:.2g}.",
                "The code that sets the learning rate was changed, or the history belongs to other settings.",
                "Compare learning_rate in history.parquet with training.milestones and training.schedule, and train again.",
            )
            return
    if training.schedule == "step" and len(history) > 1 and not training.milestones:
        yield Sign(
            f"The learning rate is {training.learning_rate:g} in all {len(history)} epochs.",
            "No milestone lies within training.epochs.",
            "Set training.milestones, such as [20, 40] of 50 epochs in the published recipe.",
        )


def steps_skipped(history: Sequence[Row], steps: int) -> Iterator[Sign]:
    """Find a training that skipped many of its steps because gradients overflowed float16.

    Args:
        history: a row for each epoch.
        steps: steps of an epoch.
    """
    # In the first epoch, the loss scale is lowered until it fits.
    skipped, total = sum(row["skipped_steps"] for row in history[1:]), steps * (len(history) - 1)
    if skipped >= 10 and skipped > SKIPPED * total:
        yield Sign(
            f"{skipped:.0f} of {total:,} steps after the first epoch were skipped ({100 * skipped / total:.1f} %).",
            "The gradients overflow float16, and a skipped step changes no weight.",
            "Set training.precision: bfloat16 or float32, or lower training.learning_rate.",
        )


def waited(history: Sequence[Row], cache: str) -> Iterator[Sign]:
    """Find a training that waited for its data most of the time.

    Args:
        history: a row for each epoch.
        cache: `data.cache` of the run.
    """
    share = float(np.median([row["data_wait"] for row in history]))
    seconds = sum(row["data_wait"] / 100 * row["seconds"] for row in history)
    if share > WAITED and seconds > LOST_SECONDS:
        more = "Give a job more cores (runtime.threads, runtime.workers)"
        yield Sign(
            f"In the median epoch, the training waited for data {share:.0f} % of the time, about {seconds / 3600:.1f} hours in all.",
            "The clips are read more slowly than the network computes. This costs time, and changes no number.",
            f"{more}, or set data.cache: jpeg, which is another run; docs/performance.md has the hours."
            if cache == "none"
            else f"{more}, or move data.cache_folder to a faster disk.",
        )


# --- A network ---------------------------------------------------------------------------------------------------


def classifier_untrained(network: Network) -> Iterator[Sign]:
    """Find a classifier whose weights are still those that it starts with."""
    for name, weight in network.tensors.items():
        if name.endswith("fc.weight") and float(weight.std()) < CLASSIFIER_START:
            yield Sign(
                f"The standard deviation of {name} is {float(weight.std()):.4f}; it starts with 0.001.",
                "The classifier was not trained, or its weights were not read from the file.",
                "Check that the optimiser has the classifier's parameters; of an imported file, ffnrepro checkpoint show.",
            )
            return


def batchnorm_wrong(network: Network) -> Iterator[Sign]:
    """Find BatchNorms whose running statistics are not those of the features.

    The evidence is indirect: a count of batches in `model.pt`, statistics that never changed, or a network that has learnt its
    training videos (where the statistics of the batch count) and nothing else.
    """
    norms = [name.removesuffix(".running_mean") for name in network.tensors if name.endswith(".running_mean")]
    stale = [norm for norm in norms if _is_stale(network, norm)]
    if stale:
        yield Sign(
            f"The running statistics of {len(stale)} of {len(norms)} BatchNorms have seen no or few batches, such as {stale[0]}.",
            "These BatchNorms were in evaluation mode during training, or their statistics were not read from the file.",
            "Check that nothing calls eval() on a part of the network during training. Then train or import it again.",
        )
    elif network.has_learnt_in_training_only and not list(labels_permuted(network)):
        best = max(row["train_top1"] for row in network.history)
        yield Sign(
            f"The training accuracy reaches {best:.1f} %, but top-1 is {_scores(network, network.judged_frames)}.",
            "Training and evaluation differ: BatchNorm's running statistics are not those of the batches, or the labels or frames "
            "of the two splits do not belong together.",
            "Evaluate the training split (evaluation.split: train). If its top-1 is as low, look at the BatchNorms; if not, at the "
            "validation labels and videos.",
        )


def _is_stale(network: Network, norm: str) -> bool:
    """Whether running statistics are those of a new BatchNorm, or were updated in hardly any step."""
    mean, variance = (network.tensors[f"{norm}.{name}"] for name in ("running_mean", "running_var"))
    if bool((mean == 0).all()) and bool((variance == 1).all()):
        return True
    batches = network.tensors.get(f"{norm}.num_batches_tracked")
    if not network.history or not network.steps or batches is None:
        return False
    return bool(batches < UPDATED * network.steps * network.record["best_epoch"])


# --- The scores of a network -------------------------------------------------------------------------------------


def near_chance(network: Network) -> Iterator[Sign]:
    """Find a frame count, of those that were trained, at which the network is hardly better than chance."""
    frames = [frames for frames in network.judged_frames if network.is_near_chance(frames)]
    # Otherwise `batchnorm_wrong` or `labels_permuted` has more to say.
    if not frames or network.has_learnt_in_training_only or list(labels_permuted(network)):
        return
    trained = ""
    if network.history:
        trained = f" The training accuracy is {network.history[-1]['train_top1']:.1f} % in the last epoch."
    yield Sign(
        f"Top-1 is {_scores(network, frames)}. The most frequent class has {network.chance(frames[0]):.1f} % of the videos.{trained}",
        "The network has not learnt these clips: too few epochs, a wrong learning rate, or labels that do not belong to the videos."
        if network.history
        else "The network was trained on other classes, on another order of them, or on other frames.",
        "Look at train_loss in the history, and compare some videos with their labels in results/manifest/train.parquet."
        if network.history
        else "Compare its list of classes with results/labels/classes.csv (ffnrepro checkpoint show).",
    )


def one_class(network: Network) -> Iterator[Sign]:
    """Find a class that takes far more predictions than it has videos."""
    for frames in network.judged_frames:
        rows = network.predictions[frames]
        predicted, videos = (
            100 * np.bincount(rows[column], minlength=1 + int(rows.to_numpy().max())) / len(rows)
            for column in ("class_1", "label")
        )
        found = int((predicted - videos).argmax())
        if predicted[found] - videos[found] > SWALLOWED:
            yield Sign(
                f"At {frames} frames, class {found} has {predicted[found]:.1f} % of the predictions and {videos[found]:.1f} % of the videos.",
                "The classes of the training split are unbalanced, or the network has hardly learnt.",
                "Compare the class counts of train and validation in results/figures/class_counts.png, and look at the training loss.",
            )
            return


def labels_permuted(network: Network) -> Iterator[Sign]:
    """Find classes of which each is predicted as one other class: a confusion matrix close to a permutation."""
    for frames in reversed(network.judged_frames):
        rows = network.predictions[frames]
        size = 1 + int(rows.to_numpy().max())
        confusion = np.zeros((size, size), dtype=int)
        np.add.at(confusion, (rows["label"].to_numpy(), rows["class_1"].to_numpy()), 1)
        main = confusion.argmax(axis=1)
        times = np.bincount(main[confusion.any(axis=1)], minlength=size)
        # Where a network collapses, several classes are predicted as one. In a permutation, each has its own.
        moved = [label for label in range(size) if main[label] != label and times[main[label]] == 1]
        as_other = int(confusion[moved, main[moved]].sum())
        gain = 100 * (as_other - int(confusion[moved, moved].sum())) / len(rows)
        if gain > PERMUTED and as_other > PERMUTED_SHARE * confusion[moved].sum():
            examples = ", ".join(f"{label} as {main[label]}" for label in moved[:3])
            yield Sign(
                f"At {frames} frames, {len(moved)} of {size} classes are mostly predicted as one other class, such as {examples}. With "
                f"these classes exchanged, top-1 would be {network.top1[frames] + gain:.1f} % instead of {network.top1[frames]:.1f} %.",
                "The classes are numbered in another order in validation than in training, or than in the imported file.",
                "Check that all label files are of one release, and compare the order of the classes with results/labels/classes.csv.",
            )
            return


def not_collapsed(network: Network) -> Iterator[Sign]:
    """Find a vanilla TSM that keeps its accuracy at a quarter of its frames, unlike in the paper (Tables 1 and 9)."""
    if network.settings.method.method != "tsm" or not network.judged_frames:
        return
    (high,) = network.train_frames
    lower = [frames for frames in network.top1 if 4 * frames <= high]
    if not lower or high not in network.top1 or network.is_near_chance(high):
        return
    low = min(lower)
    fall = 1 - network.top1[low] / network.top1[high]
    if fall < COLLAPSED:
        yield Sign(
            f"Trained at {high} frames, top-1 is {_scores(network, [low, high])}: a fall of {100 * fall:.1f} % of it. In the paper "
            "it is 12 % or more.",
            "No block shifts (network.shift: none), so the network hardly depends on the frame count."
            if network.settings.network.shift == "none"
            else "The clips of both frame counts show the same: short videos, repeated frames, or classes that one frame tells apart.",
            "Set network.shift: all."
            if network.settings.network.shift == "none"
            else f"Check train_frames of the experiment, and the lengths in results/figures/clip_lengths.png: most videos need more than {high} "
            "frames.",
        )


def ffn_does_not_help(ffn: Network, tsm: Network) -> Iterator[Sign]:
    """Find an FFN that is not better than TSM at its lowest frame count (Table 9).

    Args:
        ffn: FFN.
        tsm: TSM of the same seed, trained at the highest frame count of FFN.
    """
    low = min(ffn.train_frames)
    if low not in ffn.top1 or low not in tsm.top1 or not ffn.judged_frames:
        return
    own, other = (
        (network.predictions[low]["label"] == network.predictions[low]["class_1"]).astype("int8")
        for network in (ffn, tsm)
    )
    below, above = bootstrap_interval((own - other).to_numpy()[None])
    if below <= 0:
        yield Sign(
            f"At {low} frames, top-1 is {ffn.top1[low]:.1f} %, and that of {tsm.name}, is {tsm.top1[low]:.1f} %. The difference is "
            f"{ffn.top1[low] - tsm.top1[low]:+.1f} points [{below:+.1f}, {above:+.1f}].",
            "The lower frame counts do not learn from the highest one, or TSM does not collapse, so that there is nothing to regain.",
            f"Look at train_kl_{low}f in the history, and check distillation_weight and the four switches of FFN.",
        )


def _scores(network: Network, frames: Sequence[int]) -> str:
    return ", ".join(f"{network.top1[n]:.1f} % at {n} frames" for n in frames)


# --- A row of a table, and the data ------------------------------------------------------------------------------


def unlike_published(
    numbers: Mapping[str, Any], frame_counts: Sequence[int], changes: Sequence[str]
) -> Iterator[Sign]:
    """Find a row whose published figures lie outside its intervals.

    Args:
        numbers: the row, with the columns of `ffnrepro.tables.assemble_table`.
        frame_counts: frame counts of the row.
        changes: settings in which its networks differ from the published recipe.
    """
    outside = [
        f"{numbers[f'top1_{n}f']:.1f} [{numbers[f'low_{n}f']:.1f}, {numbers[f'high_{n}f']:.1f}] at {n} frames (published "
        f"{numbers[f'published_{n}f']:.2f})"
        for n in frame_counts
        if numbers.get(f"published_{n}f") is not None
        and not numbers[f"low_{n}f"] <= numbers[f"published_{n}f"] <= numbers[f"high_{n}f"]
    ]
    if outside:
        yield Sign(
            f"Top-1 is {', '.join(outside)}.",
            f"Settings that differ from the published recipe: {', '.join(changes)}."
            if changes
            else "No setting differs from the published recipe.",
            "Undo what you did not mean to change. docs/deviations.md lists what differs from the authors' code, and what is known to "
            "cost accuracy. The published figures are of one run.",
        )


def many_excluded(summary: Mapping[str, Any], split: str) -> Iterator[Sign]:
    """Find a split of which many videos are left out.

    Args:
        summary: `results/manifest/summary.json`.
        split: name of the split.
    """
    labelled, reasons = summary["labelled"][split], summary["excluded"][split]
    lost = sum(reasons.values())
    if labelled and lost > EXCLUDED * labelled:
        counts = ", ".join(
            f"{reason} ({count:,})" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
        )
        yield Sign(
            f"{lost:,} of {labelled:,} {split} videos are left out ({100 * lost / labelled:.1f} %). Reasons: {counts}.",
            "The data set is incomplete or damaged, and data.max_excluded allows it.",
            "results/manifest/excluded.csv names each video and its reason. Download or unpack them again, or say with your numbers "
            "how many videos they count.",
        )
