"""Optimiser, parameter groups and learning rate of the published recipe (section 4.1; the authors' scripts).

The groups are part of the recipe: an independent reproduction with one learning rate for all fell short of the paper.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

_MULTIPLIERS = {
    "conv_weight": (1, 1),
    "conv_bias": (2, 0),
    "normalisation": (1, 0),
    "classifier_weight": (5, 1),
    "classifier_bias": (10, 0),
}
"""Factors of learning rate and weight decay, by group."""


def make_optimizer(
    model: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with the published parameter groups.

    Args:
        model: the network.
        learning_rate: learning rate of a group with the factor 1.
        momentum: momentum of SGD.
        weight_decay: weight decay of a group with the factor 1.
    """
    groups = parameter_groups(model, learning_rate=learning_rate, weight_decay=weight_decay)
    return torch.optim.SGD(groups, momentum=momentum)


def parameter_groups(model: nn.Module, *, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The published groups: convolutions and weight alteration, their biases, normalisation, classifier.

    | group | members | learning rate | weight decay |
    |---|---|---|---|
    | conv_weight | weights of convolutions and of weight alteration | x1 | yes |
    | conv_bias | biases of convolutions | x2 | no |
    | normalisation | weights and biases of every BatchNorm | x1 | no |
    | classifier_weight | weight of the linear layer | x5 | yes |
    | classifier_bias | bias of the linear layer | x10 | no |

    A layer of any other kind names the group of its parameters in an attribute `parameter_group`.

    Args:
        model: the network.
        learning_rate: learning rate of a group with the factor 1; `base_lr` of a group is its factor times this.
        weight_decay: weight decay of a group with the factor 1.

    Returns:
        Groups for a torch optimiser, without empty groups; each parameter is in exactly one group.

    Raises:
        TypeError: the recipe has no group for a layer of this kind.
    """
    members: dict[str, list[Tensor]] = {name: [] for name in _MULTIPLIERS}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.BatchNorm2d):
            members["normalisation"] += own.values()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            kind = "conv" if isinstance(module, nn.Conv2d) else "classifier"
            for name, parameter in own.items():
                members[f"{kind}_{name}"].append(parameter)
        elif own:
            group = getattr(module, "parameter_group", None)
            if group not in members:
                raise TypeError(f"the recipe has no parameter group for {type(module).__name__}")
            members[group] += own.values()
    return [
        {
            "name": name,
            "params": members[name],
            "lr": learning_rate * lr_factor,
            "base_lr": learning_rate * lr_factor,
            "weight_decay": weight_decay * decay_factor,
        }
        for name, (lr_factor, decay_factor) in _MULTIPLIERS.items()
        if members[name]
    ]


def learning_rate_factor(
    progress: float,
    *,
    epochs: int,
    schedule: Literal["step", "cosine"],
    milestones: Sequence[int] = (),
    warmup_epochs: int = 0,
) -> float:
    """Factor on the learning rate at a point of training.

    Args:
        progress: finished epochs, fractions included: 3.5 after half of the fourth epoch.
        epochs: number of epochs of the whole training.
        schedule: `step`: x0.1 at each milestone, constant within an epoch; `cosine`: half a cosine to zero.
        milestones: numbers of finished epochs at which the factor is multiplied by 0.1.
        warmup_epochs: number of epochs over which the factor rises linearly from 0.
    """
    if progress < warmup_epochs:
        return progress / warmup_epochs
    if schedule == "step":
        return float(0.1 ** sum(progress >= milestone for milestone in milestones))
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_epochs) / (epochs - warmup_epochs)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its `base_lr` times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
