"""Forward passes in training mode that leave the running statistics of BatchNorm unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Normalise with the statistics of the batch, and leave the running statistics of `model` unchanged.

    With the momentum 0, a BatchNorm computes and stores the same tensors for backward as with any other momentum.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
