"""Layers with private weights for each frame count, for networks whose code does not pass the frame count on.

See `frame_flexible`. The layers read the sub-network from a `Selection`, which only one thread at a time may use.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ffnrepro.recipe.models.temporal_shift import temporal_shift
from ffnrepro.recipe.models.weight_alteration import Alterations


@dataclass
class Selection:
    """The sub-network in use, and the number of frames T of its clips."""

    subnetwork: int
    frames: int

    def shift(self, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Shift the input (N*T, C, H, W) of a convolution."""
        return temporal_shift(inputs[0], self.frames)


class PrivateBatchNorm(nn.ModuleDict):
    """A copy of a BatchNorm for each frame count; its weights are named `4.weight`, `8.weight`, ..."""

    def __init__(self, norm: nn.Module, frame_counts: Sequence[int], selection: Selection) -> None:
        super().__init__({str(frames): copy.deepcopy(norm) for frames in frame_counts})
        self._selection = selection
        self.register_load_state_dict_pre_hook(_load_plain_norm)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features with the BatchNorm of the selected sub-network."""
        normalised: Tensor = self[str(self._selection.subnetwork)](x)
        return normalised


class WeightAlteration(nn.Module):
    """Multiplies a convolution's weight by `1 + a` along its input channels; `a` is that of the selected sub-network."""

    def __init__(self, convolution: Any, frame_counts: Sequence[int], selection: Selection) -> None:
        super().__init__()
        zeros = convolution.weight.detach().new_zeros(convolution.in_channels)
        self.alteration = Alterations({str(n): nn.Parameter(torch.normal(zeros, 1e-3)) for n in frame_counts})
        self._groups, self._selection = convolution.groups, selection

    def forward(self, weight: Tensor) -> Tensor:
        """Alter the weight `(out_channels, in_channels / groups, ...)`."""
        scale = 1 + self.alteration[str(self._selection.subnetwork)]
        scale = scale.view(self._groups, 1, -1, *[1] * (weight.dim() - 2))
        altered: Tensor = weight.view(self._groups, -1, *weight.shape[1:]) * scale
        return altered.flatten(0, 1)


def _load_plain_norm(norms: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Copy the state of a plain BatchNorm to those of all frame counts."""
    for key in [key for key in state if key.startswith(prefix) and "." not in key.removeprefix(prefix)]:
        tensor = state.pop(key)
        state |= {
            f"{prefix}{frames}.{key.removeprefix(prefix)}": tensor for frames, _ in norms.named_children()
        }


def load_plain_weight(convolution: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load the weight of a plain convolution, and keep the alterations."""
    if f"{prefix}weight" in state:
        state |= {
            prefix + name: tensor
            for name, tensor in convolution.state_dict().items()
            if ".alteration." in name
        }
        state[f"{prefix}parametrizations.weight.original"] = state.pop(f"{prefix}weight")
