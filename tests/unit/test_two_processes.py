"""Two processes (gloo, on the CPU) train as one: the same gradients, the same videos, the same saves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ffnrepro.recipe.losses import Loss, frame_flexible_loss
from torch.utils.data import Dataset, SequentialSampler

from ffnrepro.errors import PermanentError, Unfinished
from ffnrepro.evaluation import score
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes, start_processes
from ffnrepro.training.stopping import StopRequest
from ffnrepro.weights import load_checkpoint
from tests.unit.test_resumption import arguments_of, data, newest_state  # noqa: F401 - data is a fixture
from tests.unit.test_training import run

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


def start(
    folder: Path,
    *command: str,
    module: Sequence[str] = ("ffnrepro.training.launch",),
    start_new_session: bool = False,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *module, "2", *command],
        start_new_session=start_new_session,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(
    folder: Path, *command: str, module: Sequence[str] = ("ffnrepro.training.launch",)
) -> tuple[int, str]:
    """Exit code, and what was said."""
    process = start(folder, *command, module=module)
    said = process.communicate(timeout=600)[1]
    return process.returncode, said


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    # By torchrun: it, too, can start a training.
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
    code, said = launched(tmp_path, __file__, module=torchrun)
    assert code == 0, said
    alone = gradients(0, 4, lambda model: model)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["gradients"].keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_what_one_process_meets_ends_both_after_the_save(tmp_path: Path) -> None:
    """A validation of unequal parts, a signal to one, a loss of one that is not finite: neither waits for the other for ever."""
    code, said = launched(tmp_path, __file__, "ends")
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["validation"] == "validation: another process stops; earlier work is saved"
    assert second["validation"] == "validation: SIGTERM; earlier work is saved"
    assert first["signal"] == "tsm: another process stops, saved at epoch 1 of 4, step 1"
    assert second["signal"] == "tsm: SIGTERM, saved at epoch 1 of 4, step 1"
    assert first["saved"] == second["saved"] == 1  # the first process took its time
    for end in (first, second):
        assert "at epoch 1, step 2" in end["not finite"]
        assert "and the gradient's norm nan" in end["not finite"]


def test_a_training_of_two_processes(tmp_path: Path, data: Path) -> None:  # noqa: F811
    def train(name: str, script: Path, arguments: list[str], *more: str) -> tuple[int, str]:
        own = ["--state", f"{name}/state", "--output", f"{name}/output", "--log", f"{name}/log", *more]
        return launched(tmp_path, str(script), *arguments, *own)

    script = ROOT / "workflow/scripts/train_ffn.py"
    arguments = arguments_of(data, "ffn", gpus=2, epochs=2)
    assert train("broken", script, arguments, "--time-budget", "0")[0] == 75
    assert (
        "unfinished, run again: ffn: the time is nearly used up, saved at epoch 1"
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


class Clips(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def path_of(self, index: int) -> str:
        return f"{index}.webm"

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.zeros(3, 2, 16, 16, dtype=torch.uint8), 0


def ends(processes: Processes) -> None:
    """Only the second process meets something; note how both end."""
    found: dict[str, Any] = {}
    calls = 0

    def reason() -> str | None:
        nonlocal calls
        calls += 1
        return "SIGTERM" if not processes.first and calls == 2 else None

    clips = Clips(3 if processes.first else 2)
    try:
        score(
            TSM(classes=3, depth=10, width=8, stem=3),
            VideoBatches(clips, sampler=SequentialSampler(clips), batch_size=1),
            frame_counts=(2,),
            device=torch.device("cpu"),
            stop_reason=reason,
            total=processes.total,
        )
    except Unfinished as error:
        found["validation"] = str(error)

    save = StateDirectory.save

    def slow_save(self: StateDirectory, state: dict[str, Any]) -> None:
        time.sleep(2)
        save(self, state)

    StateDirectory.save = slow_save  # type: ignore[method-assign]

    def terminate() -> None:
        if not processes.first:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with StopRequest() as stop:
            run(Path("signal"), "tsm", processes=processes, before_step=terminate, stop=stop)
    except Unfinished as error:
        found["signal"] = str(error)
        found["saved"] = len(list(Path("signal").glob("*/state-*.pt")))
    steps = 0

    def spoil(loss: Loss) -> Loss:
        nonlocal steps
        steps += 1
        factor = float("nan") if steps == 2 and not processes.first else 1.0
        return Loss(loss.total * factor, loss.parts, loss.logits)

    try:
        run(Path("not finite"), "tsm", processes=processes, spoil=spoil)
    except PermanentError as error:
        found["not finite"] = str(error)
    Path(f"{processes.rank}.json").write_text(json.dumps(found))
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    processes, _ = start_processes(torch.device("cpu"), 2)
    if sys.argv[1:] == ["ends"]:
        ends(processes)
    content: dict[str, Any] = {
        "gradients": gradients(2 * processes.rank, 2 * processes.rank + 2, processes.wrap),
    }
    torch.save(content, f"{processes.rank}.pt")
    processes.wait()
    processes.end()


if __name__ == "__main__":
    main()
