"""Top-1 and top-5 accuracy."""

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k best classes of each row and their probabilities, best first.

    Args:
        scores: (N, classes) logits.
        k: at most; fewer where there are fewer classes.

    Returns:
        (N, k) probabilities of the softmax over all classes, and (N, k) class indices.
    """
    return torch.softmax(scores.float(), dim=1).topk(min(k, scores.shape[1]), dim=1)


def correct_within(classes: Tensor, labels: Tensor, k: int) -> int:
    """How many rows have their label among the first k of `classes`.

    Args:
        classes: (N, at least k where there are so many classes) indices, best first.
        labels: (N,) class indices.
        k: 1 for top-1, 5 for top-5.
    """
    return int((classes[:, :k] == labels[:, None]).any(dim=1).sum())
