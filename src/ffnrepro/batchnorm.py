"""Statistics of the private BatchNorms of a network (paper, Figures 10 and 11)."""

from collections.abc import Iterator

import pandas as pd
from torch import nn

from ffnrepro.errors import UserError
from ffnrepro.recipe.models.specialized_norm import SpecializedBatchNorm2d

STAGE = "layer4"
"""The fourth stage, as torchvision names it."""


def batchnorm_statistics(network: nn.Module) -> pd.DataFrame:
    """The private BatchNorms of the fourth stage, one line per layer, frame count and channel.

    Args:
        network: FFN, with one set of convolutions or with separate networks.

    Returns:
        `layer` (as in the state dict, such as `layer4.0.bn1`), `frames`, `channel`, `mean` and `variance` (running
        statistics), `scale` and `bias`; layers in the order in which they are applied, a shortcut last in its block.

    Raises:
        UserError: the network has no private BatchNorms.
    """
    parts = [
        pd.DataFrame(
            {
                "layer": layer,
                "frames": frames,
                "channel": range(norm.num_features),
                "mean": norm.running_mean,
                "variance": norm.running_var,
                "scale": norm.weight.detach(),
                "bias": norm.bias.detach(),
            }
        )
        for layer, frames, norm in _private_norms(network)
    ]
    if not parts:
        raise UserError("the network has no private BatchNorms; give an FFN with specialised normalisation")
    return pd.concat(parts, ignore_index=True)


def _private_norms(network: nn.Module) -> Iterator[tuple[str, int, nn.BatchNorm2d]]:
    for name, module in network.named_modules():
        # Separate networks have the name of their frame count before that of the layer.
        _, stage, block = name.partition(STAGE)
        if stage and isinstance(module, SpecializedBatchNorm2d):
            for frames, norm in module.items():
                assert isinstance(norm, nn.BatchNorm2d)
                yield stage + block, int(frames), norm
