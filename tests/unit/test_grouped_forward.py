"""Normalised in groups, a network gives the same result as for each group alone."""

import copy
from functools import partial

import pytest
import torch

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.grouped_forward import forward_in_groups
from ffnrepro.recipe.models.tsm import TSM

SMALL = {"classes": 3, "depth": 10, "width": 8, "stem": 3, "dropout": 0.0}


@pytest.mark.parametrize(
    "make", [partial(TSM, **SMALL), partial(FrameFlexibleNetwork, frame_counts=(2, 4), **SMALL)]
)
def test_two_groups_are_two_gpus(make) -> None:
    torch.manual_seed(0)
    model = make().train()
    torch.nn.init.normal_(model.fc.weight)
    first_gpu, second_gpu, undivided = (copy.deepcopy(model) for _ in range(3))
    clips = torch.randn(4, 3, 4, 16, 16)
    found = forward_in_groups(model, clips, 2)
    expected = torch.cat([first_gpu(clips[:2]), second_gpu(clips[2:])])
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), p, q in zip(
        model.named_parameters(), first_gpu.parameters(), second_gpu.parameters(), strict=True
    ):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, p.grad + q.grad, msg=name, rtol=1e-4, atol=1e-5)
    statistics = first_gpu.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, statistics[name], msg=name)
    # It is not the same as one normalisation over all.
    whole = forward_in_groups(undivided, clips, None)
    assert not torch.allclose(whole, found, atol=1e-3)
    torch.testing.assert_close(whole, copy.deepcopy(undivided)(clips))


def test_evaluation_after_it_uses_the_running_statistics() -> None:
    model = TSM(**SMALL).train()
    forward_in_groups(model, torch.randn(4, 3, 2, 16, 16), 2)
    clip = torch.randn(1, 3, 2, 16, 16)
    model.eval()
    torch.testing.assert_close(model(clip), model(torch.cat([clip, torch.randn(1, 3, 2, 16, 16)]))[:1])
