"""Logits of clips in evaluation, and top-1 and top-5 accuracy."""

from collections.abc import Mapping

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
