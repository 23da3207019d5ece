"""BatchNorm statistics against the state dict."""

import pytest
import torch

from ffnrepro.batchnorm import batchnorm_statistics
from ffnrepro.errors import UserError
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM

NUMBERS = {"mean": "running_mean", "variance": "running_var", "scale": "weight", "bias": "bias"}
SMALL = {"classes": 3, "depth": 10, "width": 8, "stem": 3}


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network with other values everywhere."""
    torch.manual_seed(0)
    for values in network.state_dict().values():
        if values.is_floating_point():
            values.copy_(torch.rand_like(values))
    return network


@pytest.mark.parametrize("kind", [FrameFlexibleNetwork, SeparateNetworks])
def test_numbers_are_those_of_the_state_dict(kind: type) -> None:
    network = randomised(kind(frame_counts=(4, 16), **SMALL))
    state = network.state_dict()
    statistics = batchnorm_statistics(network)
    # One block of the fourth stage, of 64 channels.
    assert list(dict.fromkeys(statistics["layer"])) == [
        "layer4.0.bn1", "layer4.0.bn2", "layer4.0.downsample.1"
    ]  # fmt: skip
    assert len(statistics) == 3 * 2 * 64
    for line in statistics.to_dict("records"):
        prefix = f"subnetworks.{line['frames']}." if kind is SeparateNetworks else ""
        for column, name in NUMBERS.items():
            stored = state[f"{prefix}{line['layer']}.{line['frames']}.{name}"][line["channel"]]
            assert line[column] == pytest.approx(float(stored), abs=0)
    assert not statistics.duplicated(["layer", "frames", "channel"]).any()


def test_a_network_without_private_norms_is_refused() -> None:
    for network in (TSM(**SMALL), FrameFlexibleNetwork(specialized_normalization=False, **SMALL)):
        with pytest.raises(UserError, match="no private BatchNorms; give an FFN with"):
            batchnorm_statistics(network)
