"""The device that computes."""

from typing import Literal

import torch

from ffnrepro.errors import UserError


def choose_device(name: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """The device of a name; `auto` takes cuda, then mps, then cpu.

    Raises:
        UserError: the device that is asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise UserError(f"config: runtime.device is {name}, which is not on this machine; use auto or cpu")
    return torch.device(name)
