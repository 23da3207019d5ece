"""Temporal shift of the TSM backbone that FFN builds on (Lin et al., TSM, ICCV 2019, section 3).

Of C channels the first C/8 take the next frame's values, the next C/8 the previous frame's, and the rest
stay: `out[t] = x[t + 1]` and `out[t] = x[t - 1]`, with zeros where a clip ends. The shift has no parameters.
"""

from typing import Any

import torch
from torch import Tensor

SHIFT_FRACTION = 8
"""One in this many channels is shifted, in each direction."""


def temporal_shift(x: Tensor, frames: int) -> Tensor:
    """Shift the first channels by one frame, inside each clip.

    Args:
        x: features `(N*T, C, H, W)`, with the T frames of a clip adjacent, in either memory format.
        frames: T, the number of frames of a clip.

    Returns:
        The shifted features, same shape and memory format.

    Raises:
        ValueError: the first dimension is not a multiple of `frames`.
    """
    if frames < 1 or x.shape[0] % frames:
        raise ValueError(f"{x.shape[0]} rows are not a whole number of clips of {frames} frames")
    shifted: Tensor = _TemporalShift.apply(x, frames)
    return shifted


class _TemporalShift(torch.autograd.Function):
    """The shift as one node of the graph. If autograd recorded each slice, backward would take three to eight times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frames: int) -> Tensor:
        ctx.frames = frames
        fold = x.shape[1] // SHIFT_FRACTION
        return _shift(x, frames, from_next=slice(0, fold), from_previous=slice(fold, 2 * fold))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # The transpose of a shift is the shift in the opposite direction.
        fold = gradient.shape[1] // SHIFT_FRACTION
        back = _shift(gradient, ctx.frames, from_next=slice(fold, 2 * fold), from_previous=slice(0, fold))
        return back, None


def _shift(x: Tensor, frames: int, *, from_next: slice, from_previous: slice) -> Tensor:
    out = x.clone()
    source, target = (tensor.view(-1, frames, *tensor.shape[1:]) for tensor in (x, out))
    target[:, :-1, from_next] = source[:, 1:, from_next]
    target[:, -1, from_next] = 0
    target[:, 1:, from_previous] = source[:, :-1, from_previous]
    target[:, 0, from_previous] = 0
    return out
