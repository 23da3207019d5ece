"""Which epoch's network is kept: the best on validation, as published."""

from collections.abc import Mapping, Sequence


def selection_score(scores: Mapping[str, float], frame_counts: Sequence[int]) -> float:
    """The score that chooses the epoch: top-1 in percent at the highest frame count.

    Args:
        scores: Of a validation, by name: `top1_16f`, `top5_16f`.
        frame_counts: That are trained.
    """
    return scores[f"top1_{max(frame_counts)}f"]


def is_better(score: float, best: float | None) -> bool:
    """Whether an epoch takes the place of the best one before it: of equal ones, the first stays."""
    return best is None or score > best
