"""The device that computes."""

import os
from typing import TypeVar

import torch
from torch import Tensor, nn

from ffnrepro.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """The device of a name, `cuda`, `mps` or `cpu`; `auto` takes the first of them that is there.

    Raises:
        UserError: the device that is asked for is not there; `auto` finds no GPU in a SLURM job, where a training
            would go on for weeks on the CPU.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
        if name == "cpu" and (job := os.environ.get("SLURM_JOB_ID")):
            raise UserError(
                f"SLURM job {job} sees no GPU (CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); "
                "ask for one (profiles/slurm/config.yaml), or set runtime.device: cpu"
            )
    if not present[name]:
        raise UserError(f"config: runtime.device is {name}, which is not on this machine; use auto or cpu")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU that has none.

    Raises:
        UserError: the device computes no bfloat16.
    """
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise UserError(
            f"config: training.precision is bfloat16, which {torch.cuda.get_device_name(device)} does not compute; "
            "use float16"
        )


def precision_on(device: torch.device, precision: str) -> str:
    """The precision of the forward pass: the configured one on CUDA, elsewhere float32."""
    return precision if device.type == "cuda" else "float32"


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a batch's tensor to the device; on CUDA without waiting, which elsewhere is not safe (on MPS, wrong values)."""
    if device.type == "mps":
        tensor = tensor.contiguous()
    return tensor.to(device, non_blocking=device.type == "cuda")


def place(model: Network, device: torch.device) -> Network:
    """Bring a network to the device, channels last where that is faster and known to work (not on MPS)."""
    model = model.to(device)
    return model if device.type == "mps" else model.to(memory_format=torch.channels_last)
