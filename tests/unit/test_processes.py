"""Two processes (gloo, on the CPU) train as one: the same gradients, the same videos, the same saves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ffnrepro.errors import UserError
from ffnrepro.losses import frame_flexible_loss
from ffnrepro.models.ffn import FrameFlexibleNetwork
from ffnrepro.models.weights import load_checkpoint
from ffnrepro.processes import start_processes
from tests.unit.test_resumption import arguments_of, data, newest_state  # noqa: F401 - data is a fixture

ROOT = Path(__file__).parents[2]
COUNTS = (2, 4)


def gradients(
    start: int, stop: int, wrap: Callable[[torch.nn.Module], torch.nn.Module]
) -> dict[str, torch.Tensor]:
    """Of a step of four clips, or of a part of them, with BatchNorm in evaluation mode."""
    torch.manual_seed(0)
    model = FrameFlexibleNetwork(classes=5, frame_counts=COUNTS, depth=10, width=8, stem=3)
    torch.nn.init.normal_(model.fc.weight)
    clips = [torch.randn(4, 3, count, 16, 16) for count in COUNTS]
    labels = torch.tensor([0, 3, 1, 2])
    network = wrap(model.eval())
    output = network([clip[start:stop] for clip in clips])
    loss = frame_flexible_loss(output, labels[start:stop], frame_counts=COUNTS, distillation_weight=1.0)
    loss.total.backward()
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ffnrepro.launch", "2", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(folder: Path, *command: str) -> tuple[int, str]:
    """Exit code, and what was said."""
    process = start(folder, *command)
    said = process.communicate(timeout=600)[1]
    return process.returncode, said


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    code, said = torchrun(tmp_path, __file__)
    assert code == 0, said
    alone = gradients(0, 4, lambda model: model)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["total"] == {"a": 3.0, "b": 10.0, "only first": 7.0}
        assert found["any"] == [False, True, True]
        assert found["gradients"].keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_a_training_of_two_processes(tmp_path: Path, data: Path) -> None:  # noqa: F811
    def train(name: str, script: Path, arguments: list[str], *more: str) -> tuple[int, str]:
        own = ["--state", f"{name}/state", "--output", f"{name}/output", "--log", f"{name}/log", *more]
        return torchrun(tmp_path, str(script), *arguments, *own)

    script = ROOT / "workflow/scripts/train_ffn.py"
    arguments = arguments_of(data, "ffn", gpus=2, epochs=2)
    assert train("broken", script, arguments, "--time-budget", "0")[0] == 75
    assert (
        "unfinished, run again: ffn: the time is nearly used, saved at epoch 1"
        in (tmp_path / "broken/log").read_text()
    )
    assert newest_state(tmp_path / "broken")["step"] == 1
    for name in ("broken", "unbroken"):
        code, said = train(name, script, arguments)
        assert code == 0, said
    states = [newest_state(tmp_path / name) for name in ("broken", "unbroken")]
    histories = [
        pd.read_parquet(tmp_path / name / "output/history.parquet") for name in ("broken", "unbroken")
    ]
    columns = ["train_loss", "train_top1", "gradient_norm", "validation_top1_4f", "validation_top5_16f"]
    pd.testing.assert_frame_equal(histories[0][columns], histories[1][columns], rtol=1e-5)
    # Of 12 validation videos each counts once: accuracies are twelfths.
    twelfths = histories[1]["validation_top1_16f"] * 12 / 100
    assert (twelfths - twelfths.round()).abs().max() < 1e-9
    assert histories[1]["skipped_steps"].eq(0).all()
    for name, tensor in states[1]["model"].items():
        torch.testing.assert_close(states[0]["model"][name], tensor, msg=name)
    load_checkpoint(tmp_path / "broken/output/model.pt")
    assert json.loads((tmp_path / "broken/output/run.json").read_text())["settings"]["training"]["gpus"] == 2


def test_sigterm_to_the_launcher_saves_in_all_processes(tmp_path: Path, data: Path) -> None:  # noqa: F811
    arguments = arguments_of(data, "tsm", gpus=2, epochs=200)
    script = str(ROOT / "workflow/scripts/train_tsm.py")
    process = start(tmp_path, script, *arguments, "--state", "state", "--output", "output", "--log", "log")
    while not list(tmp_path.glob("state/*/state-*.pt")) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 75, said
    assert "unfinished, run again: tsm" in (tmp_path / "log").read_text()


def test_the_number_of_processes_is_the_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"training\.gpus is 2, and 1 processes were started"):
        start_processes(torch.device("cpu"), 2)
    assert start_processes(torch.device("cpu"), 1)[0].first


def main() -> None:
    torch.set_num_threads(1)
    processes, _ = start_processes(torch.device("cpu"), 2)
    first = processes.rank == 0
    content: dict[str, Any] = {
        "gradients": gradients(2 * processes.rank, 2 * processes.rank + 2, processes.wrap),
        "total": processes.total({"a": 1.0, "b": 3.0, "only first": 7.0} if first else {"a": 2.0, "b": 7.0}),
        "any": [processes.any(False), processes.any(first), processes.any(not first)],
    }
    torch.save(content, f"{processes.rank}.pt")
    processes.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
