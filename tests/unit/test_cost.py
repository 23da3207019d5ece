"""Multiply-adds against the published figures, and against a count by hand."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ffnrepro.cost import gflops, record_speeds
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.tables import read_published

PUBLISHED = read_published(Path(__file__).parents[2] / "resources/published.csv")


@pytest.mark.parametrize(("name", "kind"), [("TSM", TSM), ("TSM-FFN", FrameFlexibleNetwork)])
def test_resnet_50_costs_what_the_paper_says(name: str, kind: type[nn.Module]) -> None:
    figures = {
        int(row["frames"]): float(row["gflops"])
        for row in PUBLISHED
        if row["method"] == name and row["gflops"]
    }
    assert sorted(figures) == [4, 8, 16]
    network = kind(classes=174)
    for frames, figure in figures.items():
        assert gflops(network, frames=frames, size=224) == pytest.approx(figure, rel=0.01)
    # The network itself is as before.
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    assert network.training


def test_weight_alteration_counts_as_a_depthwise_convolution() -> None:
    """ResNet-18 at 32 px: the features at the entries of the eight branches have 64 to 512 channels and 8 to 1 pixels."""
    entries = [(64, 8), (64, 8), (64, 8), (128, 4), (128, 4), (256, 2), (256, 2), (512, 1)]
    by_hand = 5 * sum(channels * side**2 for channels, side in entries)
    networks = (kind(classes=7, depth=18) for kind in (TSM, FrameFlexibleNetwork))
    plain, altered = (gflops(network, frames=5, size=32) for network in networks)
    assert 1e9 * (altered - plain) == pytest.approx(by_hand)


def test_the_speed_is_that_of_the_network_alone() -> None:
    class Slow(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            time.sleep(0.05)
            return clips

    network = Slow()
    speeds = record_speeds(network)
    time.sleep(0.5)
    network(torch.zeros(2, 1))
    # Two clips in 0.05 s, or a little more on a busy machine; not in 0.55 s.
    assert 4 < speeds[0] <= 40
