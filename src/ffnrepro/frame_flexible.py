"""Turns your own convolutional network into a frame flexible network (paper, "Multi-Frequency Adaptation").

The network's code stays as it is. A `Selection` tells its BatchNorms and altered convolutions which sub-network to use. It
is set before each forward pass, and again before the backward pass of the same logits, because `torch.utils.checkpoint`
runs parts of the network once more there.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ffnrepro.errors import UserError
from ffnrepro.private_layers import PrivateBatchNorm, Selection, WeightAlteration, load_plain_weight
from ffnrepro.recipe.models.ffn import nearest
from ffnrepro.residual_branches import CONVOLUTIONS, branch_entries


def make_frame_flexible(
    model: nn.Module,
    frame_counts: Sequence[int],
    *,
    alter: Callable[[str, nn.Module], bool] | None = None,
    shift: bool = False,
) -> "FrameFlexible":
    """Make a frame flexible network from a copy of a 2D or 3D convolutional network.

    Every BatchNorm is replaced by a copy for each frame count. The first convolution of
    each residual branch gets a weight alteration, which starts near zero. Everything else is shared.

    Args:
        model: a network with a `Conv3d`, from clips `(N, 3, T, H, W)` to logits `(N, classes)`; or one without, from
            frames `(N, 3, H, W)`.
        frame_counts: the frame counts that are trained, each with a sub-network.
        alter: whether a convolution, given by name and module, gets a weight alteration; by default, the first convolution
            of each residual branch does, as `residual_branches.branch_entries` finds it.
        shift: whether the input of each altered convolution of a 2D network is shifted in time, as in TSM.

    Raises:
        UserError: the network has no BatchNorm or no residual branch, or `shift` is set for a 3D network.
    """
    kind, longest = type(model).__name__, max(frame_counts)
    selection = Selection(longest, longest)
    flexible = FrameFlexible(copy.deepcopy(model), frame_counts, selection)
    if shift and not flexible.is_2d:
        raise UserError(f"{kind} has 3D convolutions; the shift is for 2D networks")
    modules: dict[str, Any] = dict(flexible.network.named_modules())
    if alter is None:
        chosen = branch_entries(model, None if flexible.is_2d else longest)
    else:
        convolutions = {name: part for name, part in modules.items() if isinstance(part, CONVOLUTIONS)}
        chosen = [name for name, part in convolutions.items() if alter(name, part)]
    for name in chosen:
        convolution = modules[name]
        alteration = WeightAlteration(convolution, frame_counts, selection)
        parametrize.register_parametrization(convolution, "weight", alteration)
        convolution.register_load_state_dict_pre_hook(load_plain_weight)
        if shift:
            convolution.register_forward_pre_hook(selection.shift)
    norms = {
        part: PrivateBatchNorm(part, frame_counts, selection)
        for part in modules.values()
        if isinstance(part, _BatchNorm)
    }
    if not norms:
        raise UserError(f"{kind} has no BatchNorm that could be private to a frame count")
    for module in modules.values():
        for name, child in module.named_children():
            if child in norms:
                setattr(module, name, norms[child])
    return flexible


class FrameFlexible(nn.Module):
    """A network with a sub-network for each trained frame count; `make_frame_flexible` makes it.

    Attributes:
        network: the converted network. Its `load_state_dict` also takes the state of the plain network: each BatchNorm is
            copied to all frame counts, and alterations stay as they are.
        is_2d: whether the network is 2D. It then gets the frames `(N*T, 3, H, W)`, and the scores of a clip's frames are
            averaged.
    """

    def __init__(self, network: nn.Module, frame_counts: Sequence[int], selection: Selection) -> None:
        super().__init__()
        self.network, self.frame_counts, self._selection = network, tuple(frame_counts), selection
        self.is_2d = not any(isinstance(module, nn.Conv3d) for module in network.modules())

    def forward(self, clips: Tensor | Mapping[int, Tensor]) -> Any:
        """Logits `(N, classes)` of normalised clips `(N, 3, T, H, W)`, at any T; of `{T: clips}`, `{T: logits}`.

        Raises:
            ValueError: the clips have another shape.
        """
        if isinstance(clips, Mapping):
            return {frames: self(clip) for frames, clip in clips.items()}
        if clips.dim() != 5:
            raise ValueError(f"clips must have the shape (N, 3, T, H, W), not {tuple(clips.shape)}")
        frames = clips.shape[2]
        self._select(frames)
        logits: Tensor = self.network(clips.transpose(1, 2).flatten(0, 1) if self.is_2d else clips)
        if self.is_2d:
            logits = logits.view(len(clips), frames, -1).mean(1)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._select(frames))  # type: ignore[no-untyped-call]
        return logits

    def _select(self, frames: int) -> None:
        self._selection.subnetwork, self._selection.frames = nearest(self.frame_counts, frames), frames
