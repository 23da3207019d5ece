"""The choice of the epoch whose network is kept: the best epoch on validation, as published."""

from collections.abc import Mapping, Sequence


def selection_score(scores: Mapping[str, float], frame_counts: Sequence[int]) -> float:
    """The score that chooses the epoch: top-1 in percent at the highest frame count.

    Args:
        scores: Scores of a validation, by name: `top1_16f`, `top5_16f`.
        frame_counts: Frame counts that are validated.
    """
    return scores[f"top1_{max(frame_counts)}f"]


def is_better(score: float, best: float | None) -> bool:
    """Whether an epoch replaces the best epoch so far; if both scores are equal, the earlier epoch is kept."""
    return best is None or score > best
