"""Cost of a network: multiply-adds of a clip, as the paper counts them (GFLOPs of Table 1), and clips per second."""

import copy
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ffnrepro.recipe.models.weight_alteration import AlteredConv2d


def gflops(network: nn.Module, *, frames: int, size: int) -> float:
    """Multiply-adds of one clip, in 10^9, counted from the shapes, without computing.

    Convolutions and the classifier count, as in the paper. Weight alteration counts as the depthwise convolution of the
    paper, although it is folded into the next convolution here.

    Args:
        network: TSM, FrameFlexibleNetwork or SeparateNetworks, on any device; it is not changed.
        frames: frame count T of the clip.
        size: height and width of the clip in pixels.
    """
    shapes = copy.deepcopy(network).to("meta").eval()
    altered = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal altered
        altered += inputs[0].numel()

    for module in shapes.modules():
        if isinstance(module, AlteredConv2d):
            module.register_forward_pre_hook(count)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(torch.empty(1, 3, frames, size, size, device="meta"))
    # The counter counts a multiplication and an addition as two operations.
    multiply_adds: float = counter.get_total_flops() / 2 + altered
    return multiply_adds / 1e9


def record_speeds(network: nn.Module) -> list[float]:
    """Make a network record its speed: from now on, each forward pass adds its clips per second to the returned list.

    Only the network is timed, from the normalised clips on the device to the logits on the device.
    """
    speeds: list[float] = []
    started = 0.0

    def start(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal started
        _wait_for_device(inputs[0])
        started = time.perf_counter()

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        _wait_for_device(logits)
        speeds.append(len(inputs[0]) / (time.perf_counter() - started))

    network.register_forward_pre_hook(start)
    network.register_forward_hook(stop)
    return speeds


def _wait_for_device(tensor: Tensor) -> None:
    """Wait until a GPU has finished its work: GPUs compute asynchronously."""
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()
