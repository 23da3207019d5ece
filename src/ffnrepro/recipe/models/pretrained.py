"""Start a network from ImageNet weights: the backbone is copied, and each BatchNorm into all its private copies.

Classifier and weight alteration stay as they were initialised.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def pretrained_targets(model: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors of a network that start from pretrained weights, by the name of their source in torchvision's file.

    Args:
        model: TSM, FrameFlexibleNetwork or SeparateNetworks.
    """
    targets: dict[str, list[Tensor]] = {}
    for own_name, tensor in model.state_dict().items():
        name = re.sub(r"^subnetworks\.\d+\.", "", own_name)
        # torchvision's files have no count of batches (`num_batches_tracked`), which starts at zero.
        if not (name.startswith("fc.") or ".alteration." in name or name.endswith(".num_batches_tracked")):
            targets.setdefault(re.sub(r"(bn\d|downsample\.1)\.\d+\.", r"\1.", name), []).append(tensor)
    return targets


@torch.no_grad()
def load_pretrained(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy ImageNet weights into a network.

    Args:
        model: TSM, FrameFlexibleNetwork or SeparateNetworks, changed in place.
        weights: torchvision's state dict of the same depth.
    """
    for name, copies in pretrained_targets(model).items():
        for copy in copies:
            copy.copy_(weights[name])
