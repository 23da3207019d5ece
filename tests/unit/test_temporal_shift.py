import pytest
import torch

from ffnrepro.recipe.models.temporal_shift import temporal_shift


def naive(x, frames):
    rows, channels = x.shape[:2]
    fold = channels // 8
    out = torch.zeros_like(x)
    for row in range(rows):
        t = row % frames
        for c in range(channels):
            if c < fold:
                if t + 1 < frames:
                    out[row, c] = x[row + 1, c]
            elif c < 2 * fold:
                if t > 0:
                    out[row, c] = x[row - 1, c]
            else:
                out[row, c] = x[row, c]
    return out


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize("channels", [8, 16, 20])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_agrees_with_a_loop_over_clips_frames_and_channels(frames, channels, layout):
    x = torch.randn(3 * frames, channels, 4, 5).to(memory_format=layout)
    shifted = temporal_shift(x, frames)
    assert torch.equal(shifted, naive(x, frames))
    assert shifted.is_contiguous(memory_format=layout)


def test_first_eighth_is_of_the_next_frame_and_second_of_the_previous():
    x = torch.arange(1.0, 4).view(3, 1, 1, 1).expand(3, 8, 1, 1)
    shifted = temporal_shift(x, 3).squeeze()
    assert shifted[:, 0].tolist() == [2, 3, 0]
    assert shifted[:, 1].tolist() == [0, 1, 2]
    assert shifted[:, 2:].tolist() == x[:, 2:].squeeze().tolist()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_agrees_with_the_loop(layout):
    x = torch.randn(6, 16, 2, 3).to(memory_format=layout).requires_grad_()
    weight = torch.randn_like(x)
    (temporal_shift(x, 3) * weight).sum().backward()
    own, x.grad = x.grad, None
    (naive(x, 3) * weight).sum().backward()
    assert torch.equal(own, x.grad)


def test_the_input_is_unchanged():
    x = torch.randn(4, 8, 2, 2)
    before = x.clone()
    temporal_shift(x, 4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("frames", [0, 4])
def test_refuses_rows_that_are_not_whole_clips(frames):
    with pytest.raises(ValueError, match=f"6 rows are not a whole number of clips of {frames} frames"):
        temporal_shift(torch.zeros(6, 8, 1, 1), frames)
