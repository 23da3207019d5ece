"""Normalised in groups, a network gives what it gives for each group alone."""

import copy

import pytest
import torch

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.grouped_forward import forward_in_groups
from ffnrepro.recipe.models.tsm import TSM

SMALL = {"classes": 3, "depth": 10, "width": 8, "stem": 3, "dropout": 0.0}


@pytest.mark.parametrize("several", [False, True])
def test_two_groups_are_two_gpus(several: bool) -> None:
    torch.manual_seed(0)
    model = (FrameFlexibleNetwork(frame_counts=(2, 4), **SMALL) if several else TSM(**SMALL)).train()
    torch.nn.init.normal_(model.fc.weight)
    first_gpu, second_gpu = copy.deepcopy(model), copy.deepcopy(model)
    clips = [torch.randn(4, 3, frames, 16, 16) for frames in (2, 4)]

    def part(start: int, stop: int) -> list[torch.Tensor] | torch.Tensor:
        return [clip[start:stop] for clip in clips] if several else clips[1][start:stop]

    found = forward_in_groups(model, part(0, 4), 2)
    one, two = first_gpu(part(0, 2)), second_gpu(part(2, 4))
    for logits, a, b in zip(*((found, one, two) if several else ([found], [one], [two])), strict=True):
        torch.testing.assert_close(logits, torch.cat([a, b]))
        logits.square().sum().backward(retain_graph=True)
        torch.cat([a, b]).square().sum().backward(retain_graph=True)
    for (name, ours), p, q in zip(
        model.named_parameters(), first_gpu.parameters(), second_gpu.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, p.grad + q.grad, msg=name, rtol=1e-4, atol=1e-5)
    statistics = first_gpu.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, statistics[name], msg=name)
    # It is not the same as one normalisation over all.
    whole = forward_in_groups(copy.deepcopy(model), part(0, 4), None)
    assert not torch.allclose(*(whole[1], found[1]) if several else (whole, found), atol=1e-3)


def test_evaluation_after_it_uses_the_running_statistics() -> None:
    model = TSM(**SMALL).train()
    forward_in_groups(model, torch.randn(4, 3, 2, 16, 16), 2)
    clip = torch.randn(1, 3, 2, 16, 16)
    model.eval()
    torch.testing.assert_close(model(clip), model(torch.cat([clip, torch.randn(1, 3, 2, 16, 16)]))[:1])
