"""BatchNorm over groups of the clips of a step: what several GPUs of the published run do, on one.

Its 32 clips a step went through two GPUs of 16, and each normalised its own. The running statistics that were saved were those
of the first GPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def forward_in_groups(model: nn.Module, clips: Tensor | Sequence[Tensor], size: int | None) -> Any:
    """The output of a network in training, normalised in groups of `size` clips.

    Args:
        model: TSM or FrameFlexibleNetwork.
        clips: (N, 3, T, H, W), or one such tensor for each frame count.
        size: clips of a group; None: all N.

    Returns:
        What the model returns for all N clips. Only the first group changes the running statistics.
    """
    several = not isinstance(clips, Tensor)
    count = len(clips[0]) if several else len(clips)
    if size is None or count <= size:
        return model(clips)
    parts = [
        [clip[start : start + size] for clip in clips] if several else clips[start : start + size]
        for start in range(0, count, size)
    ]
    outputs = [model(parts[0])]
    with _statistics_kept(model):
        outputs += [model(part) for part in parts[1:]]
    return [torch.cat(logits) for logits in zip(*outputs, strict=True)] if several else torch.cat(outputs)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
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
