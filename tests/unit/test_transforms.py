"""Crops against their definition and Pillow, normalisation against plain arithmetic."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ffnrepro.recipe.transforms import (
    Box,
    crop_resize,
    evaluation_crop,
    multi_scale_crop_box,
    normalise,
    random_crop_box,
)


def texture(frames, height, width):
    noise = np.random.default_rng(1).uniform(0, 255, (frames, height // 6 + 1, width // 6 + 1, 3))
    return noise.repeat(6, 1).repeat(6, 2)[:, :height, :width].astype(np.uint8)


def published_boxes(height, width):
    """Every crop that the published augmentation can draw, spelled out."""
    short = min(height, width)
    edges = [int(short * scale) for scale in (1, 0.875, 0.75, 0.66)]
    boxes = []
    for (i, h), (j, w) in itertools.product(enumerate(edges), repeat=2):
        if abs(i - j) > 1:
            continue
        down, right = height - h, width - w
        corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
        edge_middles = [(0, 2), (2, 0), (2, 4), (4, 2)]
        quarters = [(1, 1), (1, 3), (3, 1), (3, 3)]
        for a, b in [*corners, (2, 2), *edge_middles, *quarters]:
            boxes.append((a * int(down / 4), b * int(right / 4), h, w))  # whole steps of a quarter
    return boxes


@pytest.mark.parametrize(("height", "width"), [(240, 427), (427, 240), (256, 256)])
def test_multi_scale_draws_each_published_crop_equally(height, width):
    generator = np.random.default_rng(5)
    draws = 20_000
    drawn = Counter(tuple(multi_scale_crop_box(height, width, generator)) for _ in range(draws))
    expected = Counter(published_boxes(height, width))
    assert sum(expected.values()) == 130  # 10 pairs of scales, 13 places
    assert set(drawn) == set(expected)
    for box, ways in expected.items():
        assert drawn[box] == pytest.approx(draws * ways / 130, abs=6 * np.sqrt(draws * ways / 130))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (32, 64), (239, 427)])
def test_crops_stay_inside_the_picture(height, width):
    generator = np.random.default_rng(5)
    for _ in range(300):
        boxes = (
            multi_scale_crop_box(height, width, generator),
            random_crop_box(height, width, 224, 256, generator),
        )
        for top, left, h, w in boxes:
            assert min(h, w) >= 1
            assert min(top, left) >= 0
            assert top + h <= height
            assert left + w <= width


def test_random_crop_is_a_square_of_its_share_anywhere():
    generator = np.random.default_rng(2)
    boxes = [random_crop_box(64, 80, 40, 48, generator) for _ in range(6000)]
    edge = round(64 * 40 / 48)
    assert {(box.height, box.width) for box in boxes} == {(edge, edge)}
    for drawn, free in (([box.top for box in boxes], 64 - edge), ([box.left for box in boxes], 80 - edge)):
        counts = np.bincount(drawn, minlength=free + 1)
        assert len(counts) == free + 1
        expected = 6000 / (free + 1)
        # At most 28 cells: chi-square of 27 degrees of freedom exceeds 55.5 once in a thousand.
        assert ((counts - expected) ** 2 / expected).sum() < 55.5


@pytest.mark.parametrize("box", [Box(10, 33, 210, 180), Box(0, 0, 158, 158), Box(3, 5, 20, 30)])
def test_crop_resize_is_pillows(box):
    frames = texture(3, 240, 427)
    clip = crop_resize(frames, box, 112)
    assert clip.dtype == torch.uint8
    assert clip.shape == (3, 3, 112, 112)
    assert clip.is_contiguous(memory_format=torch.channels_last)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    for frame, ours in zip(frames, clip, strict=True):
        expected = Image.fromarray(frame).crop(corners).resize((112, 112), Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(expected).astype(int) - ours.permute(1, 2, 0).numpy().astype(int))
        assert difference.max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [(240, 427, (256, 455)), (427, 240, (455, 256)), (32, 64, (256, 512)), (300, 300, (256, 256))],
)
def test_evaluation_crop_is_pillows_two_steps(height, width, resized):
    frames = texture(2, height, width)
    clip = evaluation_crop(frames)
    assert clip.dtype == torch.uint8
    assert clip.shape == (2, 3, 224, 224)
    top, left = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    for frame, ours in zip(frames, clip, strict=True):
        whole = Image.fromarray(frame).resize(resized[::-1], Image.Resampling.BILINEAR)
        expected = np.asarray(whole)[top : top + 224, left : left + 224].astype(int)
        assert np.abs(expected - ours.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_evaluation_crop_takes_other_sizes():
    assert evaluation_crop(texture(5, 64, 64), short_side=48, size=40).shape == (5, 3, 40, 40)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalise(dtype, tolerance, channels_last):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 6), dtype=np.uint8)
    mean = np.array([0.485, 0.456, 0.406])[:, None, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None, None]
    clip = torch.from_numpy(pixels)
    if channels_last:
        clip = clip.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    result = normalise(clip, dtype)
    assert result.dtype == dtype
    assert result.stride() == clip.stride()
    np.testing.assert_allclose(
        result.double().numpy(), (pixels / 255 - mean) / std, rtol=tolerance, atol=tolerance
    )
    assert (clip.numpy() == pixels).all()
