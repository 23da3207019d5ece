"""Sums over the steps of an epoch, from which its row of the history is computed."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ffnrepro.recipe.scoring import best_classes, correct_within
from ffnrepro.recipe.step import StepResult
from ffnrepro.training.processes import Processes


@dataclass
class EpochSums:
    """Sums over the steps of an epoch, in one process or over all processes.

    Attributes:
        steps: number of steps; a step counts once in each process.
        skipped_steps: number of those that the loss scaler skipped.
        samples: number of trained samples.
        bad_videos: number of samples that were left out as unreadable.
        frames: number of frames of the clips.
        norm: sum of the gradient's norms of the steps that were not skipped.
        seconds: time of the steps, with that of waiting for their batches.
        waited: time of waiting for batches.
        seconds_validation: time of the validation after the steps.
        train: sums over samples, by column of the history: each loss, and 100 for each correct prediction.
    """

    steps: float = 0.0
    skipped_steps: float = 0.0
    samples: float = 0.0
    bad_videos: float = 0.0
    frames: float = 0.0
    norm: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    seconds_validation: float = 0.0
    train: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "EpochSums":
        """The sums that `as_dict` returned."""
        train = {name: value for name, value in values.items() if name.startswith("train_")}
        others = {name: value for name, value in values.items() if name not in train}
        return cls(**others, train=defaultdict(float, train))

    def as_dict(self) -> dict[str, float]:
        """All sums by name, as they are saved."""
        others = {name: value for name, value in vars(self).items() if name != "train"}
        return {**others, **self.train}

    def total(self, processes: Processes) -> "EpochSums":
        """The sums over all processes; all of them call it."""
        return EpochSums.from_dict(processes.total(self.as_dict()))

    def count_step(
        self, result: StepResult, clips: Mapping[int, Tensor], labels: Tensor, *, requested: int
    ) -> None:
        """Add a step of this process, without its times.

        Args:
            result: what the step did.
            clips: clips of the step (N, 3, T, S, S), by frame count T.
            labels: class indices (N,).
            requested: number of samples that were requested for the step; those that are missing could not be read.
        """
        self.steps += 1
        self.samples += len(labels)
        self.bad_videos += requested - len(labels)
        self.frames += sum(len(clip) * frames for frames, clip in clips.items())
        if result.skipped:
            self.skipped_steps += 1
        else:
            self.norm += result.gradient_norm
        for name, value in result.losses.items():
            self.train[f"train_{name}"] += value * len(labels)
        classes = best_classes(result.logits)
        for k in (1, 5):
            self.train[f"train_top{k}"] += 100 * correct_within(classes, labels, k)

    def history_row(self, scores: Mapping[str, float], processes: int) -> dict[str, float]:
        """Columns of the history, from the sums over all processes.

        Args:
            scores: scores of the validation, by name.
            processes: number of processes.
        """
        return {
            **{name: value / self.samples for name, value in self.train.items()},
            "gradient_norm": self.norm / max(1, self.steps - self.skipped_steps),
            "skipped_steps": self.skipped_steps / processes,
            "bad_videos": self.bad_videos,
            **{f"validation_{name}": score for name, score in scores.items()},
            "seconds": (self.seconds + self.seconds_validation) / processes,
            "frames_per_second": processes * self.frames / self.seconds,
            "data_wait": 100 * self.waited / self.seconds,
        }
