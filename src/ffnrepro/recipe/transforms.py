"""Crops and normalisation of a clip (the augmentation of TSN and TSM, which the paper uses).

Pure functions: all randomness comes from the generator that is passed in. Pixels stay uint8, and the channel
stays the last dimension in memory, until the batch is on the device. Resizing is about three times as fast
that way, only a quarter of the bytes are copied to the device, and the convolutions use channels-last memory anyway.

`mirrored` is not for Something-Something, which has classes such as "Pushing something from left to right" and its
counterpart from right to left: a flipped clip of one class is a clip of the other.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SCALES = (1.0, 0.875, 0.75, 0.66)
# Width and height may differ by at most one scale step, so that objects are not stretched too much.
_SCALE_PAIRS = tuple((h, w) for h in range(4) for w in range(4) if abs(h - w) <= 1)
# Offsets (down, right) in quarters of the free margin: corners, middles of the edges and the centre; then the inner
# quarter points.
_OFFSETS = (
    *((down, right) for down in (0, 2, 4) for right in (0, 2, 4)),
    *((down, right) for down in (1, 3) for right in (1, 3)),
)


class Box(NamedTuple):
    """A rectangle in pixels of the decoded frame."""

    top: int
    left: int
    height: int
    width: int


def multi_scale_crop_box(height: int, width: int, generator: np.random.Generator) -> Box:
    """Draw the published training crop: four scales of the short side, thirteen fixed places, all equally likely.

    Args:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        generator: Source of randomness.

    Returns:
        The crop, still to be resized to the network's input size.
    """
    short = min(height, width)
    scale_down, scale_right = _SCALE_PAIRS[generator.integers(len(_SCALE_PAIRS))]
    down, right = _OFFSETS[generator.integers(len(_OFFSETS))]
    crop_height = max(1, int(short * _SCALES[scale_down]))
    crop_width = max(1, int(short * _SCALES[scale_right]))
    return Box(
        top=down * ((height - crop_height) // 4),
        left=right * ((width - crop_width) // 4),
        height=crop_height,
        width=crop_width,
    )


def random_crop_box(
    height: int, width: int, size: int, short_side: int, generator: np.random.Generator
) -> Box:
    """Draw a plain random crop: a square of ``size``, anywhere in the frame resized to ``short_side``.

    Args:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        size: Height and width of the crop, in pixels of the resized frame.
        short_side: Short side of the resized frame in pixels, at least ``size``.
        generator: Source of randomness.

    Returns:
        The crop in pixels of the original frame, still to be resized to ``size``.
    """
    edge = max(1, round(min(height, width) * size / short_side))
    top = int(generator.integers(height - edge + 1))
    left = int(generator.integers(width - edge + 1))
    return Box(top, left, edge, edge)


def crop_resize(frames: NDArray[np.uint8], box: Box, size: int) -> torch.Tensor:
    """Cut the same box out of every frame and resize it to a square, bilinear with antialiasing.

    Args:
        frames: RGB of shape (n, H, W, 3), uint8.
        box: The crop, inside the frames; a crop smaller than ``size`` is enlarged.
        size: Height and width of the result in pixels.

    Returns:
        uint8 of shape (n, 3, size, size) in channels-last memory.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    cut = pixels[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    return _resize(cut, size, size)


def mirrored(pixels: torch.Tensor) -> torch.Tensor:
    """Flip frames (n, 3, H, W) horizontally; the memory layout stays the same."""
    return pixels.flip(-1)


def evaluation_crop(frames: NDArray[np.uint8], short_side: int = 256, size: int = 224) -> torch.Tensor:
    """Resize the short side to ``short_side``, then cut the square of ``size`` in the centre, as published.

    Args:
        frames: RGB of shape (n, H, W, 3), uint8.
        short_side: Short side after resizing in pixels; the long side is rounded down.
        size: Height and width of the crop in pixels, at most ``short_side``.

    Returns:
        uint8 of shape (n, 3, size, size) in channels-last memory.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    height, width = pixels.shape[-2:]
    if height <= width:
        resized = _resize(pixels, short_side, short_side * width // height)
    else:
        resized = _resize(pixels, short_side * height // width, short_side)
    cropped: torch.Tensor = functional.center_crop(resized, [size, size])
    return cropped


def normalise(clip: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalise pixels with ImageNet's mean and standard deviation, on the device that they are on.

    Args:
        clip: uint8 of shape (N, 3, T, S, S).
        dtype: Floating type of the result.

    Returns:
        The same shape and memory layout: ``(clip / 255 - mean) / std``, channel by channel.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=clip.device)
    std = torch.tensor(IMAGENET_STD, device=clip.device)
    scale, shift = 1 / (255 * std), -mean / std
    if clip.stride(1) == 1:
        # In channels-last memory, three numbers per pixel are too short a row for vector instructions. Repeated along
        # the width, scale and shift have the layout of a row of pixels, which takes a sixth (for a small clip) to two
        # thirds of the time.
        scale, shift = (values.repeat(clip.shape[-1], 1).t()[:, None, None, :] for values in (scale, shift))
    else:
        scale, shift = (values[:, None, None, None] for values in (scale, shift))
    return clip.to(dtype).mul_(scale).add_(shift)


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    resized: torch.Tensor = functional.resize(pixels, [height, width], antialias=True)
    return resized
