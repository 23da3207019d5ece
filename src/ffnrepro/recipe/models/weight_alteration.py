"""Weight Alteration: a depthwise 1x1 convolution for each frame count (paper, "Multi-Frequency Adaptation").

At the entry of a residual branch the paper adds to the shifted features their depthwise convolution,
`y = s + a * s` with one weight `a` for each channel, and the block's first convolution follows. Both are linear, so
`conv(s + a * s, W) = conv(s, W * (1 + a))`: the alteration is folded into the weights of the convolution,
which gives the same values and gradients without another pass over the features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Alterations(nn.ParameterDict):
    """The weights of the alteration: one tensor `(in_channels,)` for each frame count."""

    parameter_group = "conv_weight"


class AlteredConv2d(nn.Conv2d):
    """A shared convolution without bias, whose input channels are weighted separately for each frame count.

    The weights `alteration.4`, `alteration.8`, ... of shape `(in_channels,)` start near zero, so that the layer
    starts as the convolution of the backbone.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: stride in both directions.
        frame_counts: the frame counts that have an alteration.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        frame_counts: Sequence[int],
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.alteration = Alterations(
            (str(frames), nn.Parameter(torch.empty(in_channels))) for frames in frame_counts
        )
        for alteration in self.alteration.values():
            nn.init.normal_(alteration, 0.0, 1e-3)

    def forward(self, x: Tensor, subnetwork: int) -> Tensor:  # type: ignore[override]
        """Convolve features `(N*T, C, H, W)` with the weights of the frame count `subnetwork`."""
        weight = self.weight * (1 + self.alteration[str(subnetwork)].view(1, -1, 1, 1))
        out: Tensor = self._conv_forward(x, weight, None)
        return out
