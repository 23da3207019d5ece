"""The Temporal Shift Module on a ResNet, the baseline of the tables (Lin et al., TSM, ICCV 2019).

`ShiftedResNet` is the network that TSM and FFN share: a ResNet over single frames, in which the input of each
residual branch is shifted in time ("blockres"), and the scores of the frames are averaged. Weights are named
as torchvision names them. Shapes: `N` clips of `T` frames, folded to `N*T` rows in the convolutional part.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ffnrepro.recipe.models.running_statistics import running_statistics_kept
from ffnrepro.recipe.models.temporal_shift import temporal_shift
from ffnrepro.recipe.network import Shift

Norm = Callable[[int], nn.Module]
"""Makes the normalisation for this many channels. The layer is called with the features and the sub-network."""

Entry = Callable[[int, int, int, int], nn.Module]
"""Makes the first convolution of a residual branch from input channels, output channels, kernel size and stride.
The layer is called with the shifted features and the sub-network."""


class PlainBatchNorm2d(nn.BatchNorm2d):
    """One BatchNorm that all sub-networks share."""

    def forward(self, x: Tensor, subnetwork: int = 0) -> Tensor:  # noqa: ARG002
        """Normalise features `(N*T, C, H, W)`, whatever the sub-network."""
        return super().forward(x)


class PlainConv2d(nn.Conv2d):
    """One convolution that all sub-networks share, without bias and padded to keep the size at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)

    def forward(self, x: Tensor, subnetwork: int = 0) -> Tensor:  # noqa: ARG002
        """Convolve features `(N*T, C, H, W)`, whatever the sub-network."""
        return super().forward(x)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, its branch shifted in time (ResNet-10 and 18).

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: spatial stride of the first convolution and of the shortcut.
        norm: makes a normalisation.
        entry: makes the first convolution of the residual branch.
        shifts: whether the branch is shifted.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, norm: Norm, entry: Entry, shifts: bool
    ) -> None:
        super().__init__()
        self.shifts = shifts
        self.conv1 = entry(in_channels, channels, 3, stride)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _downsample(in_channels, channels, stride, norm)

    def forward(self, x: Tensor, frames: int, subnetwork: int) -> Tensor:
        """Map features `(N*T, C, H, W)` with `frames` frames per clip to `(N*T, C', H', W')`."""
        out = self.conv1(temporal_shift(x, frames) if self.shifts else x, subnetwork)
        out = F.relu(self.bn1(out, subnetwork), inplace=True)
        out = self.bn2(self.conv2(out), subnetwork)
        out += _shortcut(self.downsample, x, subnetwork)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, its branch shifted in time (ResNet-50 and 101).

    The stride is in the 3x3 convolution, as in torchvision.

    Args:
        in_channels: channels of the input.
        channels: channels of the 3x3 convolution; the output has four times as many.
        stride: spatial stride of the 3x3 convolution and of the shortcut.
        norm: makes a normalisation.
        entry: makes the first convolution of the residual branch.
        shifts: whether the branch is shifted.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, norm: Norm, entry: Entry, shifts: bool
    ) -> None:
        super().__init__()
        self.shifts = shifts
        out_channels = self.expansion * channels
        self.conv1 = entry(in_channels, channels, 1, 1)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor, frames: int, subnetwork: int) -> Tensor:
        """Map features `(N*T, C, H, W)` with `frames` frames per clip to `(N*T, C', H', W')`."""
        out = self.conv1(temporal_shift(x, frames) if self.shifts else x, subnetwork)
        out = F.relu(self.bn1(out, subnetwork), inplace=True)
        out = F.relu(self.bn2(self.conv2(out), subnetwork), inplace=True)
        out = self.bn3(self.conv3(out), subnetwork)
        out += _shortcut(self.downsample, x, subnetwork)
        return F.relu(out, inplace=True)


def _downsample(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.ModuleList | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.ModuleList(
        [nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels)]
    )


def _shortcut(downsample: nn.ModuleList | None, x: Tensor, subnetwork: int) -> Tensor:
    if downsample is None:
        return x
    convolution, norm = downsample
    out: Tensor = norm(convolution(x), subnetwork)
    return out


BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""Kind of block and number of blocks of each stage, by the depth of the ResNet."""


def is_shifted(shift: Shift, index: int) -> bool:
    """Whether the block with this index, counted from 0 in its stage, is shifted (see `NetworkSettings.shift`)."""
    return {"all": True, "every_second": index % 2 == 0, "none": False}[shift]


class ShiftedResNet(nn.Module):
    """ResNet over frames with temporal shift, and the mean of the frames' scores.

    Args:
        classes: number of classes.
        depth: 10, 18, 50 or 101.
        width: channels of the first convolution; the stages have 1, 2, 4 and 8 times as many.
        stem: kernel size of the first convolution.
        dropout: probability with which a feature is dropped before the classifier.
        shift: the blocks that are shifted: `all`, `every_second` (0, 2, 4, ... of each stage) or `none`.
        norm: makes a normalisation.
        entry: makes the first convolution of the residual branch.

    Attributes:
        architecture: the arguments that build this network again, as plain values.
        recompute: whether training keeps only the input of each residual block (and of the layers before them), and
            computes the rest again in the backward pass; False at first. It changes memory and time, and no number.
    """

    def __init__(
        self,
        *,
        classes: int,
        depth: int = 50,
        width: int = 64,
        stem: int = 7,
        dropout: float = 0.5,
        shift: Shift = "all",
        norm: Norm = PlainBatchNorm2d,
        entry: Entry = PlainConv2d,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "classes": classes,
            "depth": depth,
            "width": width,
            "stem": stem,
            "dropout": dropout,
            "shift": shift,
        }
        self.recompute = False
        block, blocks = BLOCKS[depth]

        self.conv1 = nn.Conv2d(3, width, stem, stride=2, padding=stem // 2, bias=False)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        stages = []
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            stages.append(nn.ModuleList())
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                shifts = is_shifted(shift, index)
                stages[-1].append(
                    block(in_channels, channels, stride=stride, norm=norm, entry=entry, shifts=shifts)
                )
                in_channels = block.expansion * channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0.0, 0.001)
        nn.init.zeros_(self.fc.bias)

    def score(self, clip: Tensor, subnetwork: int, shift_length: int | None = None) -> Tensor:
        """Logits `(N, classes)` of clips `(N, 3, T, H, W)`, by the sub-network of one frame count.

        Args:
            clip: the clips.
            subnetwork: frame count of the sub-network.
            shift_length: number of rows that the shift treats as one clip; None: T.

        Raises:
            ValueError: the clips have another shape, or are not of a floating-point type.
        """
        if clip.dim() != 5 or clip.shape[1] != 3 or not clip.is_floating_point():
            raise ValueError(
                f"clips must be normalised, of a floating-point type and the shape (N, 3, T, H, W), not {clip.dtype} "
                f"{tuple(clip.shape)}"
            )
        clips, _, frames = clip.shape[:3]
        x = clip.transpose(1, 2).flatten(0, 1)
        x = self._run(self._first_layers, self.bn1, x, subnetwork)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._run(block, block, x, shift_length or frames, subnetwork)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.fc(self.dropout(x))
        return logits.view(clips, frames, -1).mean(1)

    def _first_layers(self, x: Tensor, subnetwork: int) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x), subnetwork), inplace=True)
        pooled: Tensor = self.maxpool(x)
        return pooled

    def _run(self, part: Callable[..., Tensor], norms: nn.Module, *arguments: Any) -> Tensor:
        """Run a part of the network, whose BatchNorms are in `norms`; with `recompute`, keep only its arguments."""
        if not (self.recompute and self.training):
            return part(*arguments)
        # The forward pass has already changed the running statistics, so the second run, in the backward pass, must not.
        out: Tensor = checkpoint(
            part,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), running_statistics_kept(norms)),
        )
        return out


class TSM(ShiftedResNet):
    """Temporal Shift Module: one set of weights for all frame counts."""

    def forward(self, clip: Tensor) -> Tensor:
        """Logits `(N, classes)` of normalised clips `(N, 3, T, H, W)`.

        Raises:
            ValueError: the clips have another shape, or are not of a floating-point type.
        """
        return self.score(clip, subnetwork=0)
