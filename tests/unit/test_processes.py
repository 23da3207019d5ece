"""Two processes (gloo, on the CPU) train as one: the same gradients, the same videos, the same saves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ffnrepro.recipe.losses import Loss, frame_flexible_loss
from torch.utils.data import Dataset, SequentialSampler

from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.evaluation import score
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.launch import launch
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
        assert found["total"] == {"a": 3.0, "b": 10.0, "only first": 7.0}
        assert found["any"] == [False, True, True]
        assert found["same"] == [True, False]
        assert found["gradients"].keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_what_one_process_meets_ends_both_after_the_save(tmp_path: Path) -> None:
    """A validation of unequal parts, a signal to one, a loss of one that is not finite: neither waits for the other for ever."""
    code, said = launched(tmp_path, __file__, "ends")
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["validation"] == "validation: another process stops; what was done before is saved"
    assert second["validation"] == "validation: SIGTERM; what was done before is saved"
    assert first["signal"] == "tsm: another process stops, saved at epoch 1 of 4, step 1"
    assert second["signal"] == "tsm: SIGTERM, saved at epoch 1 of 4, step 1"
    assert first["saved"] == second["saved"] == 1  # the first process took its time
    for end in (first, second):
        assert "at epoch 1, step 2" in end["not finite"]
        assert "and the gradient's norm nan" in end["not finite"]
    assert first["alone"].startswith("another process of this training has ended")


WORK = """
import os, signal, sys, time
from pathlib import Path
from ffnrepro.training.stopping import StopRequest

rank = os.environ["RANK"]
with StopRequest() as stop:
    Path("ready" + rank).touch()
    while stop.reason() is None:
        time.sleep(0.01)
    Path("saving" + rank).touch()
    time.sleep(2)
    Path("saved" + rank).touch()
sys.exit(75)
"""


def wait_for(folder: Path, name: str) -> None:
    end = time.monotonic() + 60
    while not all((folder / f"{name}{rank}").exists() for rank in range(2)):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The launcher of two processes, in a process group of its own as that of a terminal."""
    (tmp_path / "work.py").write_text(WORK)
    process = start(tmp_path, "work.py", start_new_session=True)
    wait_for(tmp_path, "ready")
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def saved(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("saved*"))


@pytest.mark.parametrize("to_all", [False, True])
def test_sigterm_may_come_as_often_as_it_likes(
    tmp_path: Path, at_work: subprocess.Popen[str], to_all: bool
) -> None:
    for _ in range(4):
        os.killpg(at_work.pid, signal.SIGTERM) if to_all else at_work.terminate()
        time.sleep(0.2)
    assert at_work.wait(60) == 75
    assert saved(tmp_path) == ["saved0", "saved1"]


@pytest.mark.parametrize("to_all", [False, True])
def test_ctrl_c_asks_and_a_second_one_acts_at_once(
    tmp_path: Path, at_work: subprocess.Popen[str], to_all: bool
) -> None:
    for again in (False, True):
        os.killpg(at_work.pid, signal.SIGINT) if to_all else at_work.send_signal(signal.SIGINT)
        if not again:
            wait_for(tmp_path, "saving")
    assert at_work.wait(60) == 130
    time.sleep(2.5)
    assert not saved(tmp_path)


def test_one_ctrl_c_of_a_terminal_is_one(tmp_path: Path, at_work: subprocess.Popen[str]) -> None:
    os.killpg(at_work.pid, signal.SIGINT)
    assert at_work.wait(60) == 75
    assert saved(tmp_path) == ["saved0", "saved1"]


@pytest.mark.parametrize(
    ("of_rank_0", "of_rank_1", "code", "said"),
    [
        (
            "time.sleep(1); Path('saved0').touch(); sys.exit(1)",
            "sys.exit(3)",
            3,
            "process 1 of 2 ended with code 3\n",
        ),  # by the other's end
        (
            "time.sleep(1); Path('saved0').touch(); time.sleep(60)",
            "sys.exit(75)",
            75,
            "the others have not ended within 4 s, and are killed\n",
        ),  # waits for ever
        (
            "Path('saved0').touch()",
            "os.kill(os.getpid(), 9)",
            137,
            "process 1 of 2 ended by signal 9 (Killed)\n",
        ),
        ("Path('saved0').touch()", "pass", 0, ""),
    ],
)
def test_the_first_failure_decides_and_the_others_may_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    of_rank_0: str,
    of_rank_1: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "import os, sys, time\nfrom pathlib import Path\nif os.environ['RANK'] == '0':\n"
    text += "    while not Path('gone').exists():\n        time.sleep(0.01)\n"
    text += f"    {of_rank_0}\nelse:\n    Path('gone').touch()\n    {of_rank_1}\n"
    Path("work.py").write_text(text)
    assert launch(2, ["work.py"], patience=4) == code
    assert capfd.readouterr().err == said
    assert saved(tmp_path) == ["saved0"]


def test_sigterm_before_the_work_begins_is_unfinished_too(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import os, time\nfrom pathlib import Path\nPath('ready' + os.environ['RANK']).touch()\ntime.sleep(60)\n"
    )
    process = start(tmp_path, "work.py")
    wait_for(tmp_path, "ready")
    process.terminate()
    process.communicate()
    assert process.returncode == 75


def test_a_training_of_two_processes(tmp_path: Path, data: Path) -> None:  # noqa: F811
    def train(name: str, script: Path, arguments: list[str], *more: str) -> tuple[int, str]:
        own = ["--state", f"{name}/state", "--output", f"{name}/output", "--log", f"{name}/log", *more]
        return launched(tmp_path, str(script), *arguments, *own)

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
    if processes.first:
        try:
            processes.wait()
        except Unfinished as error:
            found["alone"] = str(error)
    Path(f"{processes.rank}.json").write_text(json.dumps(found))
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    processes, _ = start_processes(torch.device("cpu"), 2)
    first = processes.rank == 0
    if sys.argv[1:] == ["ends"]:
        ends(processes)
    content: dict[str, Any] = {
        "gradients": gradients(2 * processes.rank, 2 * processes.rank + 2, processes.wrap),
        "total": processes.total({"a": 1.0, "b": 3.0, "only first": 7.0} if first else {"a": 2.0, "b": 7.0}),
        "same": [processes.same((1, 2)), processes.same(processes.rank)],
        "any": [processes.any(False), processes.any(first), processes.any(not first)],
    }
    torch.save(content, f"{processes.rank}.pt")
    processes.wait()
    processes.end()


if __name__ == "__main__":
    main()
