"""Frame Flexible Network: one network for every number of frames (paper, "Frame Flexible Network").

Convolutions and classifier are shared by the frame counts that are trained (Weight Sharing); normalisation
and weight alteration are private to each of them (Specialized Normalization, Weight Alteration). Any other
frame count is given to the nearest sub-network (inference at any frame, Table 7).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, overload

from torch import Tensor, nn

from ffnrepro.recipe.models.specialized_norm import SpecializedBatchNorm2d
from ffnrepro.recipe.models.tsm import ShiftedResNet
from ffnrepro.recipe.models.weight_alteration import AlteredConv2d


class FrameFlexibleNetwork(ShiftedResNet):
    """TSM with specialised normalisation and weight alteration for each trained frame count.

    Args:
        classes: number of classes.
        frame_counts: the frame counts that are trained, each with a sub-network.
        depth: 10, 18, 50 or 101.
        width: channels of the first convolution; the stages have 1, 2, 4 and 8 times as many.
        stem: kernel size of the first convolution.
        dropout: probability with which a feature is dropped before the classifier.
        training_shift: `per_clip`, or as in the authors' code, `authors`: in training the shift takes every so many
            rows as the highest frame count has for one clip, so that frames leak between neighbouring clips of a
            batch. Batches have to fill whole such pieces at each frame count; one that does not, since a video could not
            be read, is shifted per clip. Evaluation is always per clip.
        adapter_init: `near_zero`, standard deviation 0.001, as the paper says; or as in the authors' code,
            `authors`: sqrt(2 / C), since their Kaiming loop overwrites the former.

    Raises:
        ValueError: an argument makes no network.
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
        training_shift: Literal["per_clip", "authors"] = "per_clip",
        adapter_init: Literal["near_zero", "authors"] = "near_zero",
    ) -> None:
        if not frame_counts or min(frame_counts) < 1 or len(set(frame_counts)) < len(frame_counts):
            raise ValueError(f"frame_counts must be different positive numbers, not {list(frame_counts)}")
        super().__init__(
            classes=classes,
            depth=depth,
            width=width,
            stem=stem,
            dropout=dropout,
            norm=partial(SpecializedBatchNorm2d, frame_counts=frame_counts),
            altered=frame_counts,
        )
        self.frame_counts = tuple(frame_counts)
        self.training_shift = training_shift
        if adapter_init == "authors":
            for module in self.modules():
                if isinstance(module, AlteredConv2d):
                    for alteration in module.alteration.values():
                        nn.init.normal_(alteration, 0.0, math.sqrt(2 / module.in_channels))

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments that make this network again, as plain values."""
        return {**super().architecture, "frame_counts": list(self.frame_counts)}

    def nearest(self, frames: int) -> int:
        """The trained frame count that is nearest to `frames`; of two as near, the larger."""
        return min(self.frame_counts, key=lambda count: (abs(count - frames), -count))

    @overload
    def forward(self, clips: Tensor) -> Tensor: ...

    @overload
    def forward(self, clips: Sequence[Tensor]) -> list[Tensor]: ...

    def forward(self, clips: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits of clips of one frame count, or of several in one call.

        In training all frame counts of a sample go through one call: what wraps the network for several
        devices counts a step's gradients by its forward calls.

        Args:
            clips: normalised clips `(N, 3, T, H, W)`, or one such tensor for each frame count.

        Returns:
            Logits `(N, classes)`, or a list of them in the order of the clips.

        Raises:
            ValueError: clips have another shape, or are not of a floating-point type.
        """
        if isinstance(clips, Tensor):
            # The sub-network is the nearest; the shift goes over the frames that there are.
            frames = clips.shape[2] if clips.dim() == 5 else 0
            longest = max(self.frame_counts)
            leaks = self.training and self.training_shift == "authors" and len(clips) * frames % longest == 0
            return self.score(clips, self.nearest(frames), shift_length=longest if leaks else None)
        return [self(clip) for clip in clips]
