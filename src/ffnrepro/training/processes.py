"""The processes of one training, one for each GPU of a machine, started by `launch` or by torchrun.

Each process takes its part of every batch. `recipe.step` exchanges gradients and normalisation between them; this module
exchanges the rest: requests to stop and sums for the history, and lets processes wait for each other.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from ffnrepro.errors import Unfinished, UserError


class Processes:
    """This process among the processes of a training; the first process logs, saves and writes results.

    All processes must call the methods that exchange values in the same order.

    Args:
        rank: number of this process.
        count: number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self.first = rank == 0

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set in any process.

        Raises:
            Unfinished: another process has ended.
        """
        return [value > 0 for value in self._reduce(flags, dist.ReduceOp.MAX)]

    def total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes.

        Raises:
            ValueError: the processes have sums of different names.
            Unfinished: another process has ended.
        """
        names = sorted(sums)
        if not self.same(names):
            raise ValueError(f"another process does not have the sums {names}")
        totals = dict(
            zip(names, self._reduce([sums[name] for name in names], dist.ReduceOp.SUM), strict=True)
        )
        return {name: totals[name] for name in sums}

    def same(self, value: object) -> bool:
        """Whether a plain value is the same in all processes.

        Raises:
            Unfinished: another process has ended.
        """
        digest = zlib.crc32(repr(value).encode())
        highest, lowest = self._reduce([digest, -digest], dist.ReduceOp.MAX)
        return highest == -lowest

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            Unfinished: another process has ended.
        """
        self.any_of([False])

    def end(self) -> None:
        """Disconnect from the other processes, at the end of the work."""
        if self.count > 1:
            dist.destroy_process_group()

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        """Combine the values of all processes."""
        reduced = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            try:
                dist.all_reduce(reduced, operation)
            except RuntimeError as error:
                raise Unfinished(
                    "another process of this training has ended, or cannot be reached; see the terminal output of the job "
                    f"({error})"
                ) from error
        return reduced.tolist()


def check_count(device: torch.device, count: int) -> None:
    """Refuse a machine with fewer GPUs than processes.

    Raises:
        UserError: there are fewer.
    """
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise UserError(
            f"config: training.gpus is {count}, but this machine shows only {torch.cuda.device_count()}; request {count}"
        )


def start_processes(device: torch.device, count: int) -> tuple[Processes, torch.device]:
    """Join the processes that were started together; return this one and its device.

    Args:
        device: kind of device.
        count: number of processes that the settings require.

    Raises:
        UserError: another number of processes was started, or there are fewer GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != count:
        raise UserError(
            f"config: training.gpus is {count}, but {started} processes were started; start them with "
            f"python -m ffnrepro.training.launch {count}, as the workflow does"
        )
    check_count(device, count)
    if count == 1:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Flags and sums are on the CPU, where gloo exchanges them: gloo notices at once when a process has ended.
        # The timeout is long, because one process may replace loader workers for minutes while the others wait.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=1)
        )
    return Processes(dist.get_rank(), count), device
