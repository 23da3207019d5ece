import pytest
import torch
from torch.nn import functional as F

from ffnrepro.recipe.models.weight_alteration import AlteredConv2d


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_agrees_with_the_depthwise_convolution_written_out(kernel_size, stride):
    conv = AlteredConv2d(6, 4, kernel_size, stride=stride, frame_counts=(4, 8)).double()
    with torch.no_grad():
        conv.alteration["4"].normal_()
        conv.alteration["8"].normal_()
    x = torch.randn(3, 6, 7, 7, dtype=torch.double, requires_grad=True)
    leaves = (x, conv.weight, conv.alteration["8"])
    folded = conv(x, 8)
    gradient = torch.randn_like(folded)

    depthwise = F.conv2d(x, conv.alteration["8"].view(6, 1, 1, 1), groups=6)
    written_out = F.conv2d(x + depthwise, conv.weight, stride=stride, padding=kernel_size // 2)

    torch.testing.assert_close(folded, written_out)
    ours = torch.autograd.grad(folded, leaves, gradient)
    theirs = torch.autograd.grad(written_out, leaves, gradient)
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, their)


def test_starts_near_the_convolution_of_the_backbone():
    conv = AlteredConv2d(4096, 1, 1, frame_counts=(4, 8))
    for alteration in conv.alteration.values():
        assert 0.9e-3 < alteration.std() < 1.1e-3
        assert alteration.abs().max() < 1e-2
    assert not torch.equal(conv.alteration["4"], conv.alteration["8"])


def test_names_its_weights_by_frame_count():
    assert list(AlteredConv2d(8, 4, 3, frame_counts=(16, 4)).state_dict()) == [
        "weight",
        "alteration.16",
        "alteration.4",
    ]
