"""Which device is chosen, and which settings are refused."""

import pytest
import torch

from ffnrepro.errors import UserError
from ffnrepro.training.devices import choose_device
from ffnrepro.training.processes import start_processes


@pytest.fixture(autouse=True)
def machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_auto_takes_the_cpu_if_there_is_nothing_else() -> None:
    assert choose_device("auto").type == "cpu"


def test_auto_does_not_take_the_cpu_in_a_cluster_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(
        UserError, match=r"SLURM job 12 sees no GPU \(CUDA_VISIBLE_DEVICES is 3\); request one"
    ):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"runtime\.device is cuda, which this machine does not have"):
        choose_device("cuda")


def test_fewer_gpus_than_requested_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"training\.gpus is 2, but this machine shows only 1; request 2"):
        start_processes(torch.device("cuda"), 2)
