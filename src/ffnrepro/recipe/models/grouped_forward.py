"""BatchNorm over groups of the clips of a step: it does on one GPU what the published run did on several.

The published run split the 32 clips of a step between two GPUs, and each GPU normalised its own 16 clips. The running
statistics of the first GPU were saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def forward_in_groups(model: nn.Module, clips: Tensor, size: int | None) -> Tensor:
    """The logits of a network in training, normalised in groups of `size` clips.

    Args:
        model: TSM or FrameFlexibleNetwork.
        clips: (N, 3, T, H, W).
        size: number of clips in a group; None: all N.

    Returns:
        Logits (N, classes). Only the first group changes the running statistics.
    """
    first, *others = torch.split(clips, size or len(clips))
    logits = [model(first)]
    if others:
        with _running_statistics_kept(model):
            logits += [model(part) for part in others]
    return torch.cat(logits) if others else logits[0]


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Normalise with the statistics of the batch, and leave the running statistics unchanged."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (mean, variance, batches) in zip(norms, buffers, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, batches
