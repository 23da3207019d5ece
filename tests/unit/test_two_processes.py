"""Two processes (gloo, on the CPU) train as one: the same videos, the same saves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import Dataset

from ffnrepro.errors import PermanentError, Unfinished
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes, start_processes
from ffnrepro.training.stopping import StopRequest
from ffnrepro.training.validation import validate
from ffnrepro.weights import load_checkpoint
from tests.trainings import ROOT, arguments_of, newest_state
from tests.unit.test_loop import run


def start(
    folder: Path,
    *command: str,
    module: Sequence[str] = (),
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *module, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(folder: Path, *command: str, module: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and output."""
    process = start(folder, *command, module=module)
    said = process.communicate(timeout=600)[1]
    return process.returncode, said


def test_a_stop_or_failure_in_one_process_ends_both_after_the_save(tmp_path: Path) -> None:
    """Unequal parts of validation, a signal to one process, a loss that is not finite in one: neither waits forever."""
    code, said = launched(tmp_path, __file__, module=["-m", "ffnrepro.training.launch", "2"])
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["validation"] == "validation: another process stops; earlier work is saved"
    assert second["validation"] == "validation: SIGTERM; earlier work is saved"
    assert first["signal"] == "tsm: another process stops, saved at epoch 1 of 4, step 1"
    assert second["signal"] == "tsm: SIGTERM, saved at epoch 1 of 4, step 1"
    assert first["saved"] == second["saved"] == 1  # the first process took its time
    for end in (first, second):
        assert "epoch 1, step 2: " in end["not finite"]
        assert "and the gradient's norm nan" in end["not finite"]


def test_a_training_of_two_processes(tmp_path: Path, data: Path) -> None:
    script = str(ROOT / "workflow/scripts/train.py")

    def train(name: str, *more: str) -> tuple[int, str]:
        arguments = arguments_of(data, tmp_path / name, "ffn", gpus=2, epochs=2)
        log = ["--log", str(tmp_path / name / "log")]
        return launched(tmp_path, script, *arguments, *log, *more)

    # The script starts its processes itself.
    assert train("broken", "--time-budget", "1e-6")[0] == 75
    said = (tmp_path / "broken/log").read_text()
    assert re.search(r"unfinished, run again: ffn-\w+: the time limit is near, saved at epoch 1", said)
    assert newest_state(tmp_path / "broken")["step"] == 1
    for name in ("broken", "unbroken"):
        code, said = train(name)
        assert code == 0, said
    states = [newest_state(tmp_path / name) for name in ("broken", "unbroken")]
    folders = [next((tmp_path / name).glob("results/runs/*/seed5")) for name in ("broken", "unbroken")]
    histories = [pd.read_parquet(folder / "history.parquet") for folder in folders]
    columns = ["train_loss", "train_top1", "gradient_norm", "validation_top1_4f", "validation_top5_16f"]
    pd.testing.assert_frame_equal(histories[0][columns], histories[1][columns], rtol=1e-5)
    # Of 12 validation videos each counts once: accuracies are twelfths.
    twelfths = histories[1]["validation_top1_16f"] * 12 / 100
    assert (twelfths - twelfths.round()).abs().max() < 1e-9
    assert histories[1]["skipped_steps"].eq(0).all()
    for name, tensor in states[1]["model"].items():
        torch.testing.assert_close(states[0]["model"][name], tensor, msg=name)
    load_checkpoint(folders[0] / "model.pt")
    assert json.loads((folders[0] / "run.json").read_text())["settings"]["training"]["gpus"] == 2


def test_sigterm_to_the_script_saves_in_all_processes(tmp_path: Path, data: Path) -> None:
    arguments = arguments_of(data, tmp_path, "tsm", gpus=2, epochs=200)
    process = start(tmp_path, str(ROOT / "workflow/scripts/train.py"), *arguments, "--log", "log")
    while not list(tmp_path.glob("state/*/*/state-*.pt")) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 75, said
    assert "unfinished, run again: tsm" in (tmp_path / "log").read_text()


class Clips(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def path_of(self, index: int) -> str:
        return f"{index}.webm"

    def __getitem__(self, index: int) -> tuple[dict[int, torch.Tensor], int]:
        return {2: torch.zeros(3, 2, 16, 16, dtype=torch.uint8)}, 0


def ends(processes: Processes) -> None:
    """Only the second process meets something; note how both end."""
    found: dict[str, Any] = {}
    calls = 0

    def reason() -> str | None:
        nonlocal calls
        calls += 1
        return "SIGTERM" if not processes.first and calls == 2 else None

    try:
        validate(
            TSM(classes=3, depth=10, width=8, stem=3),
            loader=VideoBatches(Clips(5)),  # type: ignore[arg-type]
            frame_counts=(2,),
            batch_size=1,
            device=torch.device("cpu"),
            stop_reason=reason,
            processes=processes,
            name="validation",
        )
    except Unfinished as error:
        found["validation"] = str(error)

    save = Checkpoints.save

    def slow_save(self: Checkpoints, state: dict[str, Any]) -> None:
        time.sleep(2)
        save(self, state)

    Checkpoints.save = slow_save  # type: ignore[method-assign]

    def terminate() -> None:
        if not processes.first:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with StopRequest() as stop:
            run(Path("signal"), "tsm", processes=processes, before_step=terminate, stop=stop)
    except Unfinished as error:
        found["signal"] = str(error)
        found["saved"] = len(list(Path("signal").glob("state-*.pt")))
    steps = 0

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return loss * (float("nan") if steps == 2 and not processes.first else 1.0)

    try:
        run(Path("not finite"), "tsm", processes=processes, spoil=spoil)
    except PermanentError as error:
        found["not finite"] = str(error)
    Path(f"{processes.rank}.json").write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ends(start_processes(torch.device("cpu"), 2)[0])
