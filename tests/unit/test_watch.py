"""`ffnrepro watch`: what it says about state folders in each state, and about a training that really runs."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ffnrepro import watch as module
from ffnrepro.cli import main
from ffnrepro.config import RuntimeSettings
from ffnrepro.logs import UNFINISHED, run
from ffnrepro.runs import RUNS, run_name, run_settings, write_run
from ffnrepro.training import progress as progress_module
from ffnrepro.training.epoch_sums import EpochSums
from ffnrepro.training.job import Job, run_job
from ffnrepro.training.processes import Processes
from ffnrepro.training.progress import Progress
from ffnrepro.training.state import TrainingState
from ffnrepro.watch import MAX_ENDED, Training, read_trainings, view

from ..trainings import configuration

ROW = {
    "epoch": 2, "train_loss": 2.5, "validation_top1_4f": 41.25, "validation_top5_4f": 70.0, "validation_top1_16f": 51.0,
    "seconds": 1200.0, "frames_per_second": 800.0,
}  # fmt: skip


def make(
    root: Path,
    run: str = "ffn-0123abcd",
    *,
    epoch: int = 2,
    heartbeat: float | None = None,
    data: str = "d" * 8,
    **files: dict[str, Any],
) -> Path:
    """Write the state folder of a training of 50 epochs.

    Args:
        root: Folder of the states.
        run: Name of the run.
        epoch: Number of finished epochs.
        heartbeat: Seconds since the last heartbeat of a process on another machine; None: no lease.
        data: Beginning of the data's digest.
        files: Content of further files, such as `failed`.
    """
    folder = root / run / f"seed3-{data}"
    folder.mkdir(parents=True)
    files = {"about": {"run": run, "seed": 3, "epochs": 50, "epoch": epoch, "step": 0}, **files}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if heartbeat is not None:
        lease = folder / "lease.json"
        lease.write_text(json.dumps({"host": "node7", "machine": "node7", "pid": 12, "slurm_job": "42"}))
        os.utime(lease, (time.time() - heartbeat,) * 2)
    return folder


def shown(trainings: list[Training], width: int = 200) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(view(trainings))
    return capture.get()


def place(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": 2, "epochs": 50, "step": step, "steps": 400, "loss": 2.25, "frames_per_second": 812.3,
        "seconds_left": 5400.0, "last_epoch": ROW, **changes,
    }  # fmt: skip


WARNING = {"time": "2026-01-02 03:04:05", "message": "ffn-0123abcd: kl_4f went [up]"}


@pytest.mark.parametrize(
    ("files", "state", "message"),
    [
        ({"heartbeat": 5}, "running", "job 42, process 12 on node7"),
        ({"heartbeat": 5, "warning": WARNING}, "running", "job 42, process 12 on node7; 2026-01-02 03:04:05 kl_4f went [up]"),
        ({"heartbeat": 600, "warning": WARNING}, "no heartbeat", "job 42, process 12 on node7 has been silent for 10 minutes: it is paused, or"),
        ({"heartbeat": 7200}, "killed", "job 42, process 12 on node7 was killed; run snakemake again, and the training continues"),
        ({"failed": {"message": "the loss is nan"}}, "failed", "the loss is nan (another attempt: ffnrepro runs retry ffn-0123abcd)"),
        ({}, "stopped", "run snakemake again to continue"),
        ({"warning": WARNING}, "stopped", "kl_4f went [up]; run snakemake again to continue"),
        (
            {"warning": WARNING | {"message": "unfinished, run again: ffn-0123abcd: SIGINT, saved at epoch 3"}},
            "stopped",
            "2026-01-02 03:04:05 SIGINT, saved at epoch 3; run snakemake again to continue",
        ),
        ({"epoch": 50, "warning": WARNING}, "finished", ""),
        ({"epoch": 50, "heartbeat": 5}, "running", "job 42, process 12 on node7"),
    ],
)  # fmt: skip
def test_the_state_of_a_training(files: dict[str, Any], state: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, **files)
    (training,) = read_trainings(tmp_path)
    assert (training.run, training.seed, training.state) == ("ffn-0123abcd", "3", state)
    assert message in training.message
    assert bool(message) == bool(training.message)
    text = shown([training])
    assert message in text
    assert ("No training is running here" in text) == (state not in ("running", "no heartbeat"))


@pytest.mark.parametrize(
    ("progress", "cells"),
    [
        (place(100), "3/50, 25 % 2.250 4f 41.2, 16f 51.0 812 1.5 hours"),
        (place(400), "3/50, validation 2.250 4f 41.2, 16f 51.0 812 1.5 hours"),
        # The first steps of a training.
        (place(1, epoch=0, last_epoch=None, seconds_left=600.0), "1/50, 0 % 2.250 812 10 minutes"),
        # Before the first step.
        (dict.fromkeys(place(0)) | {"epoch": 0, "epochs": 50, "step": 0, "steps": 400}, "1/50, 0 %"),
    ],
)
def test_the_progress_of_a_training(progress: dict[str, Any], cells: str, tmp_path: Path) -> None:
    make(tmp_path, heartbeat=5, progress=progress)
    line = next(line for line in shown(read_trainings(tmp_path)).splitlines() if "ffn-0123abcd" in line)
    assert " ".join(line.split()) == f"ffn-0123abcd 3 running {cells}"


def test_a_training_that_hangs(tmp_path: Path) -> None:
    folders = [
        make(tmp_path, run, heartbeat=5, progress=place(step))
        for run, step in (("a-00000000", 1), ("b-00000000", 400))
    ]
    for folder in folders:
        os.utime(folder / "progress.json", (time.time() - 1200,) * 2)
    hangs, validates = read_trainings(tmp_path)
    assert hangs.message == "job 42, process 12 on node7; no step has ended for 20 minutes"
    assert validates.message == "job 42, process 12 on node7"


def test_running_trainings_are_first_and_many_ended_ones_are_counted(tmp_path: Path) -> None:
    for number in range(MAX_ENDED + 3):
        os.utime(make(tmp_path, f"x{number}-00000000", epoch=50), (1e9 + number,) * 2)
    os.utime(make(tmp_path, "z-00000000", heartbeat=5), (1e9 - 1,) * 2)
    # The same training on older data.
    os.utime(make(tmp_path, "z-00000000", data="e" * 8), (1e9 - 2,) * 2)
    trainings = read_trainings(tmp_path)
    assert [each.run.partition("-")[0] for each in trainings][:3] == ["z", "x12", "x11"]
    assert len(trainings) == MAX_ENDED + 4
    text = shown(trainings)
    assert "x3-00000000" in text
    assert "x2-00000000" not in text
    assert "trainings that have ended and are not shown: 3; ffnrepro runs lists them" in text


def test_files_that_are_being_written_or_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken, pruned = (make(tmp_path, f"{name}-00000000", heartbeat=5) for name in "abc")
    for name in ("lease", "about", "progress"):
        (broken / f"{name}.json").write_text('{"epo')
    read = module.read_lease

    def prune_meanwhile(path: Path) -> Any:
        lease = read(path)
        if path.parent == pruned:
            shutil.rmtree(path.parents[1])
        return lease

    monkeypatch.setattr(module, "read_lease", prune_meanwhile)
    one, other = read_trainings(tmp_path)
    assert (one.state, one.run) == ("running", whole.parent.name)
    assert (other.state, other.progress) == ("running", {})
    assert "b-00000000" in shown([one, other])


def test_a_folder_without_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Here the output is no terminal, so the command ends by itself.
    assert main(["watch", "--directory", str(tmp_path)]) == 0
    assert "No training is running here. Start snakemake" in capsys.readouterr().out
    assert main(["watch", "--directory", "nowhere"]) == 1
    assert "--directory nowhere: no such folder" in capsys.readouterr().err


def test_a_terminal_shows_changes_until_ctrl_c(tmp_path: Path) -> None:
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "ffnrepro.cli", "watch", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=other_end, stderr=other_end) as process:
        os.close(other_end)

        def wait_for(text: str) -> None:
            read, end = "", time.monotonic() + 60
            while text not in read:
                assert time.monotonic() < end, read
                read += os.read(terminal, 1000).decode()

        wait_for("No training is running")
        make(tmp_path / "state", heartbeat=5)
        wait_for("node7")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    os.close(terminal)


def test_what_a_training_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: seconds)
    progress = Progress(tmp_path, "ffn", epochs=10, steps=400, processes=Processes(count=2))

    def report(step: int, history: list[dict[str, float]]) -> list[Any]:
        # In each of two processes: 16 videos in 2 seconds.
        sums = EpochSums(steps=step, samples=16 * step, frames=256 * step, seconds=2 * step)
        sums.train["train_loss"] = 48 * step
        parts = (SimpleNamespace(),) * 3
        progress.report_step(TrainingState(*parts, history=history, step=step, sums=sums))
        written = json.loads((tmp_path / "progress.json").read_text())
        return [written[key] for key in ("epoch", "step", "loss", "frames_per_second", "seconds_left")]

    assert report(0, []) == [0, 0, None, None, None]
    seconds += progress_module.INTERVAL
    # 4000 steps of 2 seconds, one of which is done.
    assert report(1, []) == [0, 1, 3.0, 256.0, 7998.0]
    assert report(2, [])[1] == 1  # too early
    assert report(400, [])[1] == 400
    # 8 of 10 epochs are left.
    assert report(0, [ROW] * 2) == [2, 0, 2.5, 800.0, 9600.0]
    seconds += progress_module.INTERVAL
    assert report(100, [ROW] * 2) == [2, 100, 3.0, 256.0, 9300.0]
    monkeypatch.setattr(progress_module, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert report(0, [ROW] * 3)[0] == 2


def test_a_training_that_runs_and_is_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(training={"epochs": 3, "batch_size": 4, "warmup_epochs": 1})
    name = run_name(config, "tsm")
    write_run(tmp_path / RUNS / name, run_settings(config, "tsm"))
    job = Job(
        run=tmp_path / RUNS / name, seed=5, videos=data / "data/videos", classes=data / "results/labels/classes.csv",
        manifest=data / "results/manifest", state=tmp_path / "state",
        runtime=RuntimeSettings(device="cpu", threads=1, workers=0),
    )  # fmt: skip
    command = [sys.executable, "-m", "ffnrepro.cli", "watch", "--once", "--directory", str(tmp_path)]
    look = partial(subprocess.run, command, capture_output=True, text=True, check=True)
    seen: list[str] = []

    def at_the_end_of_the_first_epoch(*_: Any) -> None:
        seen.append(look().stdout)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ffnrepro.training.progress.write_scalars", at_the_end_of_the_first_epoch)
    assert run(lambda: run_job(job)) == UNFINISHED
    running, process = (line for line in seen[0].splitlines() if name in line)
    assert " ".join(running.split()).startswith(f"{name} 5 running 2/3, 0 % ")
    assert "16f " in running
    assert process.startswith(f"{name}, seed 5: process {os.getpid()} on ")
    (training,) = read_trainings(tmp_path / "state")
    assert training.state == "stopped"
    assert "SIGTERM, saved at epoch 2 of 3, step 1" in training.message
    assert training.message.endswith("; run snakemake again to continue")
