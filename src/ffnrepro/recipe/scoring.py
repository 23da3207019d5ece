"""Logits of clips in evaluation, the mean of several networks, and top-1 and top-5 accuracy."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ffnrepro.recipe.transforms import normalise


@torch.inference_mode()
def clip_logits(network: nn.Module, clips: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Logits (N, classes) of clips at each frame count, in evaluation mode.

    Args:
        network: TSM or FFN; it is put into evaluation mode.
        clips: uint8 (N, 3, T, S, S) by frame count T, on the network's device.
    """
    network.eval()
    dtype = next(network.parameters()).dtype
    return {frames: network(normalise(clip, dtype)) for frames, clip in clips.items()}


def ensemble_log_probabilities(networks: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the class probabilities of several networks (N, classes), in float64.

    Args:
        networks: log-probabilities (N, classes) of each network, for the same clips.
    """
    return torch.stack([scores.double() for scores in networks]).logsumexp(dim=0) - math.log(len(networks))


def best_classes(logits: Tensor, k: int = 5) -> Tensor:
    """The k classes with the largest logits, best first; fewer where there are fewer classes.

    Args:
        logits: (N, classes).
        k: number of classes to return.

    Returns:
        Class indices (N, k).
    """
    return logits.topk(min(k, logits.shape[1]), dim=1).indices


def correct_within(classes: Tensor, labels: Tensor, k: int) -> int:
    """How many clips have their label among the first k of `classes`.

    Args:
        classes: class indices (N, number of predictions), best first.
        labels: (N,) class indices.
        k: 1 for top-1, 5 for top-5.
    """
    return int((classes[:, :k] == labels[:, None]).any(dim=1).sum())
