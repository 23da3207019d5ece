"""Frame Flexible Network: one network for all frame counts (paper, "Frame Flexible Network").

Convolutions and classifier are shared by the frame counts that are trained (Weight Sharing); normalisation
and weight alteration are private to each of them (Specialized Normalization, Weight Alteration). Clips of any
other frame count go through the nearest sub-network (inference at any frame, Table 7).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from ffnrepro.recipe.models.specialized_norm import SpecializedBatchNorm2d
from ffnrepro.recipe.models.tsm import PlainBatchNorm2d, PlainConv2d, ShiftedResNet
from ffnrepro.recipe.models.weight_alteration import AlteredConv2d
from ffnrepro.recipe.network import Shift


def nearest(frame_counts: Sequence[int], frames: int) -> int:
    """The trained frame count that is nearest to `frames`; of two equally near ones, the larger."""
    return min(frame_counts, key=lambda count: (abs(count - frames), -count))


class FrameFlexibleNetwork(ShiftedResNet):
    """TSM with specialised normalisation and weight alteration for each trained frame count.

    Args:
        classes: number of classes.
        frame_counts: the frame counts that are trained, each with a sub-network.
        depth: 10, 18, 50 or 101.
        width: channels of the first convolution; the stages have 1, 2, 4 and 8 times as many.
        stem: kernel size of the first convolution.
        dropout: probability with which a feature is dropped before the classifier.
        shift: the blocks that are shifted: `all`, `every_second` (0, 2, 4, ... of each stage) or `none`.
        specialized_normalization: whether each frame count has a private BatchNorm.
        weight_alteration: whether each frame count has a private weight alteration.
        training_shift: `per_clip`; or `authors`, as in the authors' code: in training the shift treats as many rows
            as the highest frame count as one clip, so that frames leak between neighbouring clips of a batch.
            A batch that does not fill whole chunks of this length, because a video could not be read, is shifted
            per clip. Evaluation always shifts per clip.
        adapter_init: `near_zero`: standard deviation 0.001, as in the paper; or `authors`: sqrt(2 / C), because
            in the authors' code the Kaiming initialisation overwrites the value of the paper.
    """

    def __init__(
        self,
        *,
        classes: int,
        frame_counts: Sequence[int] = (4, 8, 16),
        depth: int = 50,
        width: int = 64,
        stem: int = 7,
        dropout: float = 0.5,
        shift: Shift = "all",
        specialized_normalization: bool = True,
        weight_alteration: bool = True,
        training_shift: Literal["per_clip", "authors"] = "per_clip",
        adapter_init: Literal["near_zero", "authors"] = "near_zero",
    ) -> None:
        super().__init__(
            classes=classes,
            depth=depth,
            width=width,
            stem=stem,
            dropout=dropout,
            shift=shift,
            norm=partial(SpecializedBatchNorm2d, frame_counts=frame_counts)
            if specialized_normalization
            else PlainBatchNorm2d,
            entry=partial(AlteredConv2d, frame_counts=frame_counts) if weight_alteration else PlainConv2d,
        )
        self.frame_counts = tuple(frame_counts)
        self.training_shift = training_shift
        self.architecture |= {
            "frame_counts": list(frame_counts),
            "specialized_normalization": specialized_normalization,
            "weight_alteration": weight_alteration,
        }
        if adapter_init == "authors":
            for module in self.modules():
                if isinstance(module, AlteredConv2d):
                    for alteration in module.alteration.values():
                        nn.init.normal_(alteration, 0.0, math.sqrt(2 / module.in_channels))

    def forward(self, clip: Tensor) -> Tensor:
        """Logits `(N, classes)` of normalised clips `(N, 3, T, H, W)`, at any T, by the nearest sub-network.

        Raises:
            ValueError: the clips have another shape, or are not of a floating-point type.
        """
        # The shift uses the true number of frames, not the frame count of the sub-network.
        frames = clip.shape[2] if clip.dim() == 5 else 0
        longest = max(self.frame_counts)
        leaks = self.training and self.training_shift == "authors" and len(clip) * frames % longest == 0
        return self.score(clip, nearest(self.frame_counts, frames), shift_length=longest if leaks else None)


class SeparateNetworks(nn.Module):
    """FFN without weight sharing: a network for each frame count, trained together (Table 4).

    Args:
        classes: number of classes.
        frame_counts: the frame counts that are trained.
        **settings: the other arguments of each `FrameFlexibleNetwork`.

    Attributes:
        architecture: the arguments that build these networks again, as plain values.
    """

    def __init__(self, *, classes: int, frame_counts: Sequence[int] = (4, 8, 16), **settings: Any) -> None:
        super().__init__()
        self.frame_counts = tuple(frame_counts)
        networks = [
            FrameFlexibleNetwork(classes=classes, frame_counts=(frames,), **settings)
            for frames in frame_counts
        ]
        self.subnetworks = nn.ModuleDict({str(network.frame_counts[0]): network for network in networks})
        self.architecture: dict[str, Any] = {
            **networks[0].architecture,
            "frame_counts": list(frame_counts),
        }

    def forward(self, clip: Tensor) -> Tensor:
        """Logits `(N, classes)` of normalised clips `(N, 3, T, H, W)`, by the network of the nearest frame count.

        Raises:
            ValueError: the clips have another shape, or are not of a floating-point type.
        """
        frames = clip.shape[2] if clip.dim() == 5 else 0
        logits: Tensor = self.subnetworks[str(nearest(self.frame_counts, frames))](clip)
        return logits
