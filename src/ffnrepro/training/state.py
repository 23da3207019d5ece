"""What a training continues from: everything that its saves hold."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ffnrepro.errors import Unfinished
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.epoch_sums import EpochSums
from ffnrepro.training.processes import Processes

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All values of a training that change from step to step.

    Attributes:
        model: the network.
        optimizer: its optimiser.
        scaler: its loss scaler.
        history: one row for each finished epoch.
        best: `epoch`, `score` and `model` (a state dict on the CPU) of the best of these epochs; empty before the first.
        step: number of finished steps of the next epoch.
        sums: sums over these steps, in this process.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    sums: EpochSums = field(default_factory=EpochSums)

    def save(self, checkpoints: Checkpoints, processes: Processes) -> None:
        """Save; all processes call it, and the first one writes.

        Raises:
            UserError: the save cannot be written.
            Unfinished: another process has taken over the lease, or has ended.
        """
        totals = self.sums.total(processes)
        if processes.first:
            checkpoints.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "epoch": len(self.history),
                    "step": self.step,
                    "sums": totals.as_dict(),
                    "history": self.history,
                    "best": self.best,
                }
            )

    def restore(self, checkpoints: Checkpoints, processes: Processes, *, name: str, epochs: int) -> None:
        """Restore the newest save, if there is one.

        Args:
            checkpoints: saves of the training.
            processes: processes that all restore it.
            name: name of the run, for the log.
            epochs: number of epochs of the whole training.

        Raises:
            UserError: the newest save cannot be read now, or belongs to a training that started from another network.
            Unfinished: one process cannot read the save that another reads.
        """
        saved = checkpoints.load()
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            # A run may continue on another kind of device; without float16, there is no loss scale.
            if saved["scaler"]:
                self.scaler.load_state_dict(saved["scaler"])
            self.history, self.best, self.step = saved["history"], saved["best"], saved["step"]
            # The saved sums are totals over all processes; the others start with zeros under the same names.
            sums = saved["sums"] if processes.first else dict.fromkeys(saved["sums"], 0.0)
            self.sums = EpochSums.from_dict(sums)
            if len(self.history) < epochs:
                logger.info(
                    "%s: continues at epoch %d, after %d steps", name, len(self.history) + 1, self.step
                )
            else:
                logger.info(
                    "%s: is already trained; the log of its training is in %s", name, checkpoints.folder
                )
        if not processes.same((len(self.history), self.step)):
            raise Unfinished(
                f"{name}: {checkpoints.folder}: one process cannot read the save that another continues from"
            )
