"""Parameter groups and learning-rate schedule of the published recipe (section 4.1; the authors' scripts).

The groups are part of the recipe: an independent reproduction with one learning rate for all fell short of the paper.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ffnrepro.recipe.models.weight_alteration import AlteredConv2d


def parameter_groups(model: nn.Module, *, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The published groups: convolutions, adapters and their biases, normalisation, classifier.

    | group | members | learning rate | weight decay |
    |---|---|---|---|
    | conv_weight | weights of convolutions, adapters included | x1 | yes |
    | conv_bias | biases of convolutions | x2 | no |
    | normalisation | weights and biases of every BatchNorm | x1 | no |
    | classifier_weight | weight of the linear layer | x5 | yes |
    | classifier_bias | bias of the linear layer | x10 | no |

    Args:
        model: TSM or FrameFlexibleNetwork.
        learning_rate: of a group with multiplier 1; stands in each group's `base_lr` times its multiplier.
        weight_decay: of a group that has it.

    Returns:
        Groups for a torch optimiser, the empty ones left out; each parameter in exactly one.

    Raises:
        TypeError: a layer of a kind for which the recipe has no group.
    """
    members: dict[str, list[Tensor]] = {name: [] for name in _MULTIPLIERS}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Conv2d):
            members["conv_weight"].append(module.weight)
            if isinstance(module, AlteredConv2d):
                members["conv_weight"] += module.alteration.values()
            if module.bias is not None:
                members["conv_bias"].append(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            members["normalisation"] += own.values()
        elif isinstance(module, nn.Linear):
            members["classifier_weight"].append(module.weight)
            members["classifier_bias"].append(module.bias)
        elif own and not isinstance(module, nn.ParameterDict):
            raise TypeError(f"the recipe has no parameter group for {type(module).__name__}")
    return [
        {
            "name": name,
            "params": members[name],
            "lr": learning_rate * lr_multiplier,
            "base_lr": learning_rate * lr_multiplier,
            "weight_decay": weight_decay * decay_multiplier,
        }
        for name, (lr_multiplier, decay_multiplier) in _MULTIPLIERS.items()
        if members[name]
    ]


_MULTIPLIERS = {
    "conv_weight": (1, 1),
    "conv_bias": (2, 0),
    "normalisation": (1, 0),
    "classifier_weight": (5, 1),
    "classifier_bias": (10, 0),
}


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
        progress: epochs done, fractions included: epoch 3, step 5 of 10 is 3.5.
        epochs: epochs in all.
        schedule: `step`: x0.1 at each milestone, constant within an epoch; `cosine`: half a cosine to zero.
        milestones: epochs, counted from 0, from whose first step on a further x0.1 holds.
        warmup_epochs: over these the factor rises linearly from 0 to the schedule's.
    """
    if progress < warmup_epochs:
        return progress / warmup_epochs
    if schedule == "step":
        return float(0.1 ** sum(progress >= milestone for milestone in milestones))
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_epochs) / (epochs - warmup_epochs)))
