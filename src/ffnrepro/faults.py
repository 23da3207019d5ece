"""Checks for known faults of a training, its network and its scores, as pure functions, which read no files.

Each function yields a `Finding` for each fault, and nothing for a healthy network. `ffnrepro.diagnosis` calls them all
on finished networks; `ffnrepro.training.progress` calls two of them after each epoch. The thresholds were set on the
built-in data with three seeds of TSM and FFN and one seed of each baseline ("measured" below).
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
"""One epoch of a training history: values by column name."""

LOSS_RISE = 1.0
"""The loss explodes if the cross entropy rises by more nats than this above its lowest earlier epoch. Measured: at most 0.2
(Mixed Sampling)."""

TEACHER_FALL = 0.1
"""The teacher's cross entropy must fall by more nats than this before its students are judged."""

STUDENT_RISE = 0.5
"""A student does not learn if its divergence rises by more than this fraction of the fall in the teacher's cross entropy.
Measured: at most 0.12."""

MEMORISED = 98.0
"""Training accuracy in percent above which a fall of the validation accuracy means overfitting."""

VALIDATION_FALL = 1.0
"""A validation accuracy at least this many points below the best one is a fall, not noise. Measured: at most 0.9 where the
training accuracy is near `MEMORISED`."""

SKIPPED_SHARE = 0.01
"""Largest fraction of steps that may be skipped after the first epoch. A healthy training skips about 0.001: the loss scale
doubles after 2,000 good steps, and then one or two steps are skipped."""

WAIT_SHARE = 50.0
"""Largest data wait in percent of the time of the median epoch. Measured: at most 31 (one core that decodes and trains)."""

WAIT_SECONDS = 600.0
"""Total waiting time in seconds below which nothing needs to change."""

NEAR_CHANCE = 0.05
"""An accuracy that covers less than this fraction of the way from chance to 100 % is near chance."""

LEARNT_TRAINING = 40.0
"""A network with at least this best training accuracy in percent has learnt its training videos."""

VALIDATION_SHARE = 0.25
"""Smallest validation accuracy of such a network, as a fraction of its best training accuracy. A public reproduction that overfits
has 0.57. Measured on the demo's networks with wrong running statistics: at most 0.17 with those of a new BatchNorm, and 0.19
a tenth of the way from there to the right ones."""

CLASS_EXCESS = 15.0
"""Points by which a class's share of the predictions may exceed its share of the videos. Measured: at most 4 at trained frame
counts, and up to 23 at others, where TSM collapses."""

PERMUTATION_GAIN = 10.0
"""Labels are permuted if a permutation of the classes corrects more than this percentage of the videos. Measured: 0."""

PERMUTATION_SHARE = 0.4
"""More than this fraction of the videos of a permuted class must be predicted as one other class."""

COLLAPSE = 0.05
"""Smallest fall of TSM's accuracy from 16 frames to 4, as a fraction of that at 16. Published: at least 0.12 (Kinetics-400 and
HMDB51), and 0.48 on Something-Something V2. Measured: 0.25 to 0.42."""

UNTRAINED_DEVIATION = 0.002
"""A classifier is untrained if the standard deviation of its weights is lower: twice its initial value. Measured after
training: 0.38 to 0.43."""

UPDATED_SHARE = 0.1
"""Running statistics are stale if they were updated in a smaller fraction of the steps. Measured: in all steps. If a method
draws one of several frame counts in each step, a private BatchNorm is updated only in some of the steps."""

EXCLUDED_SHARE = 0.005
"""Largest fraction of a split's videos that may be excluded; also the default of `data.max_excluded`, which counts all splits
together."""

MIN_VIDEOS = 100
"""Scores of fewer videos are too uncertain to judge a network by."""


class Finding(NamedTuple):
    """A fault that was found: the evidence, the likely cause, and what to do, in one to three short sentences each."""

    evidence: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Network:
    """A trained or imported network, with everything that the checks look at.

    Attributes:
        settings: settings of its run, without those that have no effect.
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
        """The frame counts that it was trained at; empty for an imported network whose file does not say."""
        imported = self.record.get("imported")
        if imported:
            return tuple(imported["architecture"].get("frame_counts", ()))
        return self.settings.method.frame_counts

    @property
    def steps(self) -> int | None:
        """Number of steps of an epoch; None if the record does not say."""
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
        """The evaluated frame counts at which a good network must be accurate: those that it was trained at.

        If these are not known, the one with the highest accuracy. Empty if too few videos were evaluated.
        """
        if any(len(rows) < MIN_VIDEOS for rows in self.predictions.values()):
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
        """Whether the network fails at all its frame counts although the training accuracy is good."""
        best = max((row["train_top1"] for row in self.history), default=0.0)
        scores = [self.top1[frames] for frames in self.judged_frames]
        return best >= LEARNT_TRAINING and bool(scores) and max(scores) < VALIDATION_SHARE * best


# --- The history of a training -----------------------------------------------------------------------------------


def loss_explodes(history: Sequence[Row]) -> Iterator[Finding]:
    """Find a cross entropy that is not finite, or that rises far above an earlier epoch."""
    cause = "The learning rate is too high, or numbers overflow in float16."
    remedy = "Lower training.learning_rate, or set training.warmup_epochs, training.clip_norm: 20 or training.precision: float32."
    losses = [row["train_cross_entropy"] for row in history]
    for row in history:
        if wrong := [
            name for name, value in row.items() if name.startswith("train_") and not math.isfinite(value)
        ]:
            yield Finding(f"{wrong[0]} is {row[wrong[0]]} in epoch {row['epoch']:.0f}.", cause, remedy)
            return
    rises = [losses[i] - min(losses[:i]) for i in range(1, len(losses))]
    if rises and max(rises) > LOSS_RISE:
        at = 1 + rises.index(max(rises))
        yield Finding(
            f"The training cross entropy rises from {min(losses[:at]):.2f} to {losses[at]:.2f} in epoch {at + 1}, where the "
            f"mean norm of the gradient is {history[at]['gradient_norm']:.3g}. In the last epoch it is {losses[-1]:.2f}.",
            cause,
            remedy,
        )


def not_distilled(history: Sequence[Row], key: str) -> Iterator[Finding]:
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
    if learned > TEACHER_FALL and last[key] - first[key] > STUDENT_RISE * learned:
        yield Finding(
            f"{key.removeprefix('train_')} went from {first[key]:.3f} to {last[key]:.3f}, while the cross entropy at the highest "
            f"frame count fell from {first['train_cross_entropy']:.3f} to {last['train_cross_entropy']:.3f}.",
            "The highest frame count learns, but this one does not learn from it.",
            "Check distillation_weight and training.learning_rate.",
        )


def overfitted(history: Sequence[Row], select_by: str, videos: int | None = None) -> Iterator[Finding]:
    """Find a validation accuracy that falls although nearly all training videos are predicted correctly.

    Args:
        history: a row for each epoch.
        select_by: the validation score that selects the best epoch, such as `top1_16f`.
        videos: number of validation videos; None if it is not known.
    """
    scores = [row[f"validation_{select_by}"] for row in history]
    if not scores or history[-1]["train_top1"] <= MEMORISED:
        return
    best = max(scores)
    # Two standard errors of a difference. With few videos, they exceed `VALIDATION_FALL`.
    noise = 2 * math.sqrt(2 * best * (100 - best) / videos) if videos else 0.0
    if scores[-1] <= best - max(VALIDATION_FALL, noise):
        yield Finding(
            f"The training accuracy is {history[-1]['train_top1']:.1f} %, but {select_by} on validation fell from {best:.1f} in epoch "
            f"{1 + scores.index(best)} to {scores[-1]:.1f} in epoch {len(scores)}.",
            "The network overfits: its training clips vary too little.",
            "The best epoch is kept. For a better one, check training.crop (multi_scale), network.dropout and training.weight_decay.",
        )


def learning_rate_wrong(history: Sequence[Row], training: TrainingSettings, steps: int) -> Iterator[Finding]:
    """Find a learning rate that does not follow the schedule, or that is never lowered.

    Args:
        history: a row for each epoch, with the learning rate of its last step.
        training: settings of the training.
        steps: steps of an epoch.
    """
    wrong = []
    for row in history:
        planned = training.learning_rate * learning_rate_factor(
            row["epoch"] - 1 / steps,
            epochs=training.epochs,
            schedule=training.schedule,
            milestones=training.milestones,
            warmup_epochs=training.warmup_epochs,
        )
        if not math.isclose(row["learning_rate"], planned, rel_tol=0.01, abs_tol=1e-7):
            wrong.append((abs(row["learning_rate"] - planned), row["epoch"], row["learning_rate"], planned))
    if wrong:
        _, epoch, rate, planned = max(wrong)
        yield Finding(
            f"In {len(wrong)} of {len(history)} epochs the learning rate is not that of the settings. In epoch {epoch:.0f} it is "
            f"{rate:.2g} instead of {planned:.2g}.",
            "The code that sets the learning rate was changed, or the history belongs to other settings.",
            "Compare learning_rate in history.parquet with training.milestones and training.schedule, and train again.",
        )
        return
    if training.schedule == "step" and len(history) > 1 and not training.milestones:
        yield Finding(
            f"The learning rate is {training.learning_rate:g} in all {len(history)} epochs.",
            "No milestone is within training.epochs.",
            "Set training.milestones; the published recipe has [20, 40] for 50 epochs.",
        )


def steps_skipped(history: Sequence[Row], steps: int) -> Iterator[Finding]:
    """Find a training that skipped many of its steps because gradients overflowed float16.

    Args:
        history: a row for each epoch.
        steps: steps of an epoch.
    """
    # During the first epoch, the loss scale falls until the gradients fit.
    skipped, total = sum(row["skipped_steps"] for row in history[1:]), steps * (len(history) - 1)
    if skipped >= 10 and skipped > SKIPPED_SHARE * total:
        yield Finding(
            f"{skipped:.0f} of {total:,} steps after the first epoch were skipped ({100 * skipped / total:.1f} %).",
            "The gradients overflow float16. A skipped step changes no weight.",
            "Set training.precision: bfloat16 or float32, or lower training.learning_rate.",
        )


def long_data_wait(history: Sequence[Row], cache: str) -> Iterator[Finding]:
    """Find a training that waited for its data most of the time.

    Args:
        history: a row for each epoch.
        cache: `data.cache` of the run.
    """
    share = float(np.median([row["data_wait"] for row in history]))
    seconds = sum(row["data_wait"] / 100 * row["seconds"] for row in history)
    if share > WAIT_SHARE and seconds > WAIT_SECONDS:
        more = "Give a job more cores (runtime.threads, runtime.workers)"
        yield Finding(
            f"In the median epoch, the training waited for data {share:.0f} % of the time, about {seconds / 3600:.1f} hours in total.",
            "Reading the clips takes longer than computing the steps. This costs time, but changes no numbers.",
            f"{more}, or set data.cache: jpeg, which makes a new run; docs/performance.md has the hours."
            if cache == "none"
            else f"{more}, or move data.cache_folder to a faster disk.",
        )


# --- A network ---------------------------------------------------------------------------------------------------


def classifier_untrained(network: Network) -> Iterator[Finding]:
    """Find a classifier whose weights still have their initial spread."""
    for name, weight in network.tensors.items():
        if name.endswith("fc.weight") and float(weight.std()) < UNTRAINED_DEVIATION:
            yield Finding(
                f"The standard deviation of {name} is {float(weight.std()):.4f}; a new classifier has 0.001.",
                "The classifier was not trained, or its weights were not read from the file.",
                "Check that the optimiser has the classifier's parameters. For an imported file, run ffnrepro checkpoint show.",
            )
            return


def batchnorm_wrong(network: Network) -> Iterator[Finding]:
    """Find BatchNorms whose running statistics do not fit the features.

    The evidence is indirect: the count of batches in `model.pt`, statistics that never changed, or a network that is good on its
    training videos, where batches are normalised with their own statistics, and fails on all others.
    """
    norms = [name.removesuffix(".running_mean") for name in network.tensors if name.endswith(".running_mean")]
    stale = [norm for norm in norms if _is_stale(network, norm)]
    if stale:
        yield Finding(
            f"The running statistics of {len(stale)} of {len(norms)} BatchNorms were never or hardly ever updated, such as those of {stale[0]}.",
            "These BatchNorms were in evaluation mode during training, or their statistics were not read from the file.",
            "Check that nothing calls eval() on a part of the network during training. Then train or import the network again.",
        )
    elif network.has_learnt_in_training_only:
        best = max(row["train_top1"] for row in network.history)
        yield Finding(
            f"The training accuracy reaches {best:.1f} %, but top-1 is {_scores(network, network.judged_frames)}.",
            "Training and evaluation differ: BatchNorm's running statistics are not those of the batches, or the labels or frames "
            "of the two splits do not belong together.",
            "Evaluate the training split (evaluation.split: train). If its top-1 is as low, check the BatchNorms; if not, check the "
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
    return bool(batches < UPDATED_SHARE * network.steps * network.record["best_epoch"])


# --- The scores of a network -------------------------------------------------------------------------------------


def near_chance(network: Network) -> Iterator[Finding]:
    """Find trained frame counts at which the network is hardly better than chance."""
    frames = [frames for frames in network.judged_frames if network.is_near_chance(frames)]
    if not frames:
        return
    evidence = f"Top-1 is {_scores(network, frames)}. The most frequent class has {network.chance(frames[0]):.1f} % of the videos."
    if network.history:
        yield Finding(
            f"{evidence} The training accuracy is {network.history[-1]['train_top1']:.1f} % in the last epoch.",
            "The network has not learnt these clips: too few epochs, a wrong learning rate, or labels that do not belong to the videos.",
            "Look at train_loss in history.parquet, and compare some videos with their labels in results/manifest/train.parquet.",
        )
    else:
        yield Finding(
            evidence,
            "The network was trained on other classes, on the same classes in another order, or on other frames.",
            "Compare its class list with results/labels/classes.csv (ffnrepro checkpoint show).",
        )


def one_class(network: Network) -> Iterator[Finding]:
    """Find a class that is predicted far more often than it occurs."""
    for frames in network.judged_frames:
        rows = network.predictions[frames]
        predicted, videos = (
            100 * np.bincount(rows[column], minlength=1 + int(rows.to_numpy().max())) / len(rows)
            for column in ("class_1", "label")
        )
        found = int((predicted - videos).argmax())
        if predicted[found] - videos[found] > CLASS_EXCESS:
            yield Finding(
                f"At {frames} frames, class {found} has {predicted[found]:.1f} % of the predictions, but {videos[found]:.1f} % of the videos.",
                "The classes of the training split are unbalanced, or the network has hardly learnt.",
                "Compare the class counts of train and validation in results/figures/class_counts.png, and look at the training loss.",
            )
            return


def labels_permuted(network: Network) -> Iterator[Finding]:
    """Find classes that are each predicted as one other class: the confusion matrix is close to a permutation."""
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
        if gain > PERMUTATION_GAIN and as_other > PERMUTATION_SHARE * confusion[moved].sum():
            examples = ", ".join(f"{label} as {main[label]}" for label in moved[:3])
            yield Finding(
                f"At {frames} frames, {len(moved)} of {size} classes are mostly predicted as one other class, such as {examples}. With "
                f"these classes permuted, top-1 would be {network.top1[frames] + gain:.1f} % instead of {network.top1[frames]:.1f} %.",
                "The class order of the validation labels differs from that of training or of the imported file.",
                "Check that all label files are of one release, and compare the order of the classes with results/labels/classes.csv.",
            )
            return


def not_collapsed(network: Network) -> Iterator[Finding]:
    """Find a vanilla TSM that keeps its accuracy at a quarter of its frames. In the paper it does not (Tables 1 and 9)."""
    if network.settings.method.method != "tsm" or not network.judged_frames:
        return
    (high,) = network.train_frames
    lower = [frames for frames in network.top1 if 4 * frames <= high]
    if not lower or high not in network.top1 or network.is_near_chance(high):
        return
    low = min(lower)
    fall = 1 - network.top1[low] / network.top1[high]
    if fall < COLLAPSE:
        change = f"a fall by {100 * fall:.1f} %" if fall > 0 else "no fall"
        if network.settings.network.shift == "none":
            cause = "No block shifts (network.shift: none), so the network hardly depends on the frame count."
            remedy = "Set network.shift: all."
        else:
            cause = "Clips of both frame counts show the same: videos are short, frames repeat, or one frame is enough to tell the classes apart."
            remedy = (
                "Check train_frames of the experiment, and the lengths in results/figures/clip_lengths.png: most videos need more than "
                f"{high} frames."
            )
        yield Finding(
            f"Trained at {high} frames, top-1 is {_scores(network, [low, high])}: {change}. In the paper, it falls by 12 % or more.",
            cause,
            remedy,
        )


def ffn_does_not_help(ffn: Network, tsm: Network) -> Iterator[Finding]:
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
        yield Finding(
            f"At {low} frames, top-1 is {ffn.top1[low]:.1f} %; for {tsm.name}, it is {tsm.top1[low]:.1f} %. The difference is "
            f"{ffn.top1[low] - tsm.top1[low]:+.1f} points [{below:+.1f}, {above:+.1f}].",
            "The lowest frame count has learnt no more from the highest one than TSM learns without distillation.",
            f"Check distillation_weight and the four switches of FFN, and look at train_kl_{low}f in history.parquet.",
        )


def _scores(network: Network, frames: Sequence[int]) -> str:
    return ", ".join(f"{network.top1[n]:.1f} % at {n} frames" for n in frames)


# --- A row of a table, and the data ------------------------------------------------------------------------------


def unlike_published(
    numbers: Mapping[str, Any], frame_counts: Sequence[int], changes: Sequence[str]
) -> Iterator[Finding]:
    """Find a row with published figures outside its intervals.

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
        yield Finding(
            f"Top-1 is {', '.join(outside)}.",
            f"Settings that differ from the published recipe: {', '.join(changes)}."
            if changes
            else "No setting differs from the published recipe.",
            "Undo unintended changes. docs/deviations.md lists what differs from the authors' code, and what is known to "
            "cost accuracy. The published figures come from a single run.",
        )


def many_excluded(summary: Mapping[str, Any], split: str) -> Iterator[Finding]:
    """Find a split with many excluded videos.

    Args:
        summary: `results/manifest/summary.json`.
        split: name of the split.
    """
    labelled, reasons = summary["labelled"][split], summary["excluded"][split]
    lost = sum(reasons.values())
    if labelled and lost > EXCLUDED_SHARE * labelled:
        counts = ", ".join(
            f"{reason} ({count:,})" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
        )
        yield Finding(
            f"{lost:,} of {labelled:,} {split} videos are excluded ({100 * lost / labelled:.1f} %). Reasons: {counts}.",
            "The data set is incomplete or damaged, and data.max_excluded allows it.",
            "results/manifest/excluded.csv lists each video and its reason. Download or unpack them again, or report, with your "
            "numbers, how many videos they are based on.",
        )
