"""Parameter groups and learning rates against the published recipe, written out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.optim import learning_rate_factor, make_optimizer, parameter_groups, set_learning_rate


def expected_group(name: str, parameter: nn.Parameter) -> str:
    """Group of a parameter by its name and shape alone: a rule of its own, apart from the module types."""
    if "fc." in name:
        return "classifier_bias" if name.endswith("bias") else "classifier_weight"
    if ".alteration." in name or parameter.dim() == 4:
        return "conv_weight"
    return "normalisation"


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("make", [TSM, FrameFlexibleNetwork, SeparateNetworks])
def test_each_parameter_is_in_its_group_once(make: Callable[..., nn.Module], depth: int) -> None:
    with torch.device("meta"):
        model = make(classes=5, depth=depth)
    groups = parameter_groups(model, learning_rate=0.01, weight_decay=5e-4)
    found = {id(p): group["name"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == expected_group(name, parameter), name


def test_multipliers_momentum_and_schedule() -> None:
    model = TSM(classes=5, depth=10, width=16)
    # No published network has a convolution with a bias; the recipe has a group for it.
    model.conv1.bias = nn.Parameter(torch.zeros(16))
    optimizer = make_optimizer(model, learning_rate=0.01, momentum=0.8, weight_decay=5e-4)
    for factor in (1, 0.5, 0.1):
        set_learning_rate(optimizer, factor)
        assert {g["name"]: (pytest.approx(g["lr"]), g["weight_decay"]) for g in optimizer.param_groups} == {
            "conv_weight": (0.01 * factor, 5e-4),
            "conv_bias": (0.02 * factor, 0),
            "normalisation": (0.01 * factor, 0),
            "classifier_weight": (0.05 * factor, 5e-4),
            "classifier_bias": (0.1 * factor, 0),
        }
    assert {(g["momentum"], g["dampening"], g["nesterov"]) for g in optimizer.param_groups} == {
        (0.8, 0, False)
    }


def test_a_layer_without_a_group_is_refused() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        parameter_groups(nn.Sequential(nn.LayerNorm(3)), learning_rate=0.1, weight_decay=0)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 1), (19.99, 1), (20, 0.1), (39.99, 0.1), (40, 0.01), (49.9, 0.01)],
)
def test_step_schedule(progress: float, factor: float) -> None:
    published = learning_rate_factor(progress, epochs=50, schedule="step", milestones=(20, 40))
    assert published == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 0), (1, 0.5), (2, 1), (12, 0.5), (22, 0), (7, (1 + math.sqrt(0.5)) / 2)],
)
def test_cosine_schedule_with_warm_up(progress: float, factor: float) -> None:
    found = learning_rate_factor(progress, epochs=22, schedule="cosine", warmup_epochs=2)
    assert found == pytest.approx(factor, abs=1e-12)
