"""Specialized Normalization: a private BatchNorm for each frame count (paper, "Multi-Frequency Adaptation").

The statistics of features differ between frame counts, so each sub-network normalises with its own mean,
variance, scale and shift, while the convolutions are shared.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class SpecializedBatchNorm2d(nn.ModuleDict):
    """A private BatchNorm for each frame count; its weights are named `4.weight`, `8.weight`, ...

    Args:
        channels: C of the features.
        frame_counts: the frame counts that are trained.
    """

    def __init__(self, channels: int, frame_counts: Sequence[int]) -> None:
        super().__init__({str(frames): nn.BatchNorm2d(channels) for frames in frame_counts})

    def forward(self, x: Tensor, subnetwork: int) -> Tensor:
        """Normalise features `(N*T, C, H, W)` with the BatchNorm of the frame count `subnetwork`."""
        normalised: Tensor = self[str(subnetwork)](x)
        return normalised
