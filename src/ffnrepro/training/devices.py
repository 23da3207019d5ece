"""The device that a network runs on."""

import os

import torch
from torch import Tensor, nn

from ffnrepro.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return a device by name.

    Args:
        name: `cuda`, `mps` or `cpu`; `auto` takes the first of them that this machine has.

    Raises:
        UserError: this machine does not have the device; or `auto` finds no GPU in a SLURM job (on the CPU, training would
            take weeks).
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
        if name == "cpu" and (job := os.environ.get("SLURM_JOB_ID")):
            raise UserError(
                f"SLURM job {job} sees no GPU (CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); "
                "request one (profiles/slurm/config.yaml), or set runtime.device: cpu"
            )
    if not available[name]:
        raise UserError(
            f"config: runtime.device is {name}, which this machine does not have; use auto or cpu"
        )
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU that does not support it.

    Raises:
        UserError: the GPU does not support bfloat16.
    """
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise UserError(
            f"config: training.precision is bfloat16, which {torch.cuda.get_device_name(device)} does not support; "
            "use float16"
        )


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor of a batch to the device, on CUDA without waiting. On MPS, not waiting gave wrong values."""
    if device.type == "mps":
        tensor = tensor.contiguous()
    return tensor.to(device, non_blocking=device.type == "cuda")


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, in channels-last memory except on MPS, where channels-last memory does not work."""
    model = model.to(device)
    return model if device.type == "mps" else model.to(memory_format=torch.channels_last)
