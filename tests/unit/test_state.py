"""What a training continues from, beyond what the runs of `test_loop` show: the loss scale, which trainings on the CPU lack."""

from pathlib import Path

import torch
from torch import nn

from ffnrepro.recipe.step import make_scaler
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.processes import Processes
from ffnrepro.training.state import TrainingState


def new_state(precision: str) -> TrainingState:
    model = nn.Linear(2, 2)
    return TrainingState(
        model, torch.optim.SGD(model.parameters()), make_scaler(torch.device("cpu"), precision)
    )


def test_the_loss_scale_is_restored_where_there_is_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, run="tsm", seed=0, epochs=2, data="0" * 64)
    saved = new_state("float16")
    saved.scaler.scale(torch.ones(()))
    saved.scaler.update(new_scale=8.0)
    saved.step = 3
    saved.save(checkpoints, Processes())
    for precision, scale in (("float16", 8.0), ("float32", 1.0)):
        state = new_state(precision)
        state.restore(checkpoints, Processes(), name="tsm", epochs=2)
        assert (state.scaler.get_scale(), state.step) == (scale, 3)
        assert torch.equal(state.model.weight, saved.model.weight)
