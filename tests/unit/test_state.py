"""What a training continues from, beyond what the runs of `test_loop` show: the loss scale, which trainings on the CPU lack."""

from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("before", "after", "scale"),
    [("float16", "float16", 8.0), ("float16", "float32", 1.0), ("float32", "float16", 2.0**16)],
)
def test_the_loss_scale_is_restored_where_there_is_one(
    tmp_path: Path, before: str, after: str, scale: float
) -> None:
    checkpoints = Checkpoints(tmp_path, run="tsm", seed=0, epochs=2, data="0" * 64)
    saved, restored = new_state(before), new_state(after)
    saved.scaler.scale(torch.ones(()))
    saved.scaler.update(new_scale=8.0)
    saved.step = 3
    saved.save(checkpoints, Processes())
    restored.restore(checkpoints, Processes(), name="tsm", epochs=2)
    assert (restored.scaler.get_scale(), restored.step) == (scale, 3)
    assert torch.equal(restored.model.weight, saved.model.weight)
