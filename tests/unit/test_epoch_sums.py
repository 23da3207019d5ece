"""The sums of an epoch and its row of the history, against a calculation by hand."""

import pytest
import torch

from ffnrepro.recipe.step import StepResult
from ffnrepro.training.epoch_sums import EpochSums
from ffnrepro.training.processes import Processes


def result(loss: float, norm: float, *, skipped: bool = False) -> StepResult:
    # Seven classes: class 0 is best, and classes 5 and 6 are not among the best five.
    logits = -torch.arange(7.0).repeat(3, 1)
    return StepResult({"loss": loss, "kl_4f": loss / 2}, norm, True, skipped, logits)


class Twice(Processes):
    """Two processes with the same sums."""

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        return {name: 2 * value for name, value in sums.items()}


def test_a_row_of_the_history() -> None:
    sums = EpochSums()
    clips = {n: torch.zeros(3, 3, n, 1, 1) for n in (4, 8)}
    sums.count_step(result(2.0, 5.0), clips, torch.tensor([0, 1, 5]), requested=4)
    sums.count_step(result(4.0, float("inf"), skipped=True), clips, torch.tensor([0, 0, 6]), requested=3)
    sums.count_step(result(3.0, 7.0), clips, torch.tensor([2, 6, 6]), requested=3)
    sums.seconds, sums.waited, sums.seconds_validation = 6.0, 1.5, 4.0
    assert sums.total(Twice(count=2)).history_row({"top1_8f": 50.0}, 2) == pytest.approx(
        {
            "train_loss": 3.0,
            "train_kl_4f": 1.5,
            "train_top1": 100 * 3 / 9,
            "train_top5": 100 * 5 / 9,
            "gradient_norm": 6.0,
            "skipped_steps": 1,
            "bad_videos": 2,
            "validation_top1_8f": 50.0,
            "seconds": 10.0,
            "frames_per_second": 2 * 3 * 3 * (4 + 8) / 6,
            "data_wait": 25.0,
        }
    )


def test_the_names_in_a_save_stay() -> None:
    """A save of an earlier version is continued; sums that it lacks are zero."""
    saved = {
        "bad_videos": 1.0, "steps": 2.0, "samples": 8.0, "frames": 32.0, "skipped_steps": 0.0, "norm": 3.0, "train_loss": 4.0,
        "train_top1": 100.0, "seconds": 6.0, "waited": 1.0,
    }  # fmt: skip
    assert EpochSums.from_dict(saved).as_dict() == {**saved, "seconds_validation": 0.0}
    assert EpochSums.from_dict({}) == EpochSums()
