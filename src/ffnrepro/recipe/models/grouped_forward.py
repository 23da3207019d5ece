"""BatchNorm over groups of the clips of a step: what several GPUs of the published run do, on one.

The published run sent the 32 clips of a step through two GPUs of 16 clips, and each GPU normalised its own. The
running statistics that were saved were those of the first GPU.
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
        size: clips of a group; None: all N.

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
    """Normalise with a batch's own statistics and leave the running ones as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (mean, variance, batches) in zip(norms, buffers, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, batches
