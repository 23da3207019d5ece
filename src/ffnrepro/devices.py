"""The device that computes."""

import torch

from ffnrepro.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of a name, `cuda`, `mps` or `cpu`; `auto` takes the first of them that is there.

    Raises:
        UserError: the device that is asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise UserError(f"config: runtime.device is {name}, which is not on this machine; use auto or cpu")
    return torch.device(name)
