"""Several GPUs of one machine: a process for each, started by `launch`, or by torchrun.

Each process takes its part of every batch; gradients are averaged, so a step is that of the whole batch. Normalisation is private
to a process, as in the published run.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ffnrepro.errors import Unfinished, UserError


class Processes:
    """This process among those of a training; the first one speaks, saves and writes.

    Args:
        rank: number of this process.
        count: of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @property
    def first(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as it is called in training: with several processes, backward averages the gradients."""
        # Each process keeps running statistics of its own; share_statistics makes them the first one's.
        return model if self.count == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def share_statistics(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics, which are those that are saved and evaluated."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all have to ask."""
        return flag if self.count == 1 else any(self._gather(flag))

    def total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes; all have to ask."""
        if self.count == 1:
            return dict(sums)
        result: dict[str, float] = {}
        for part in self._gather(dict(sums)):
            for key, value in part.items():
                result[key] = result.get(key, 0.0) + value
        return result

    def same(self, value: Any) -> bool:
        """Whether all processes have the same value; all have to ask."""
        return self.count == 1 or len(set(self._gather(value))) == 1

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self._gather(None)

    def end(self) -> None:
        """Part, at the end of the work."""
        if self.count > 1:
            dist.destroy_process_group()

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise Unfinished(
                f"another process of this training has ended, or cannot be reached; the job's screen output says more ({error})"
            ) from error
        return values


def check_count(device: torch.device, count: int) -> None:
    """Refuse a machine with fewer GPUs than processes.

    Raises:
        UserError: there are fewer.
    """
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise UserError(
            f"config: training.gpus is {count}, and {torch.cuda.device_count()} can be seen here; ask for as many"
        )


def start_processes(device: torch.device, count: int) -> tuple[Processes, torch.device]:
    """Join the processes that were started together, and the device that is this one's.

    Args:
        device: of their kind.
        count: how many there have to be.

    Raises:
        UserError: there are more or fewer, or fewer GPUs.
    """
    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != count:
        raise UserError(
            f"config: training.gpus is {count}, and {found} processes were started; start them with "
            f"python -m ffnrepro.training.launch {count}, as the workflow does"
        )
    check_count(device, count)
    if count == 1:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # One process may replace loader workers that hang, for minutes, while the others wait; one that dies ends them.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=1))
    return Processes(dist.get_rank(), count), device
