"""Finds the residual branches of any convolutional network."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ffnrepro.errors import UserError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_PIXELS = 224


def branch_entries(model: nn.Module, frames: int | None) -> list[str]:
    """The names of the first convolutions of all residual branches, in the order of the network's modules.

    The network runs once on PyTorch's meta device, which computes no values, and the graph that autograd records is searched.
    If it adds two tensors that stem from the same tensor, and one of them (the shortcut) has passed at most one convolution
    since then, the convolutions of the other one are a residual branch.

    Args:
        model: 2D or 3D network; it is not changed.
        frames: number of frames of the clip (1, 3, frames, 224, 224); None: an image (1, 3, 224, 224).

    Raises:
        UserError: the network does not run on this input, or has no residual branch.
    """
    kind = type(model).__name__
    network = copy.deepcopy(model).to("meta", torch.float32).eval().requires_grad_(True)
    names: dict[Any, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, CONVOLUTIONS):
            module.register_forward_hook(partial(_remember, names, name))
    shape = (1, 3, _PIXELS, _PIXELS) if frames is None else (1, 3, frames, _PIXELS, _PIXELS)
    try:
        last = network(torch.empty(shape, device="meta", requires_grad=True)).grad_fn
    except Exception as error:
        raise UserError(
            f"the residual branches of {kind} are not found: on an input of the shape {shape} it fails with "
            f"{type(error).__name__} ({error}); choose the convolutions with `alter`"
        ) from error
    entries: set[str] = set()
    for node in _origins(last):
        if "AddBackward" in node.name() and len(node.next_functions) == 2:
            one, other = (_origins(summand) for summand, _ in node.next_functions)
            shortcut, branch = sorted([(one - other) & names.keys(), (other - one) & names.keys()], key=len)
            if one & other and len(shortcut) <= 1 and len(branch) > len(shortcut):
                entries |= {names[first] for first in branch if _origins(first) & branch == {first}}
    if not entries:
        raise UserError(f"{kind} has no residual branch; choose the convolutions to alter with `alter`")
    return [name for name, _ in network.named_modules() if name in entries]


def _remember(names: dict[Any, str], name: str, _: nn.Module, __: Any, output: Tensor) -> None:
    names[output.grad_fn] = name


def _origins(node: Any) -> set[Any]:
    """All nodes of the graph that a node depends on, and the node itself."""
    found: set[Any] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return found
