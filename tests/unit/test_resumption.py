"""Trainings by the real script, killed with their whole process group at random moments, end as unbroken ones.

Each attempt is a process of its own. They are forked from one process that has loaded torch and computed nothing, so
that an attempt costs no loading time: this file, started as a script.
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ffnrepro.training.lease import Lease
from ffnrepro.training.loop import TIMES
from ffnrepro.weights import load_checkpoint

from ..trainings import ROOT, arguments_of, assert_same, newest_state

# --- The process that the attempts are forked from


def start(arguments: list[str], *, kill_in_save: int | None = None) -> int:
    """Start an attempt in a process group of its own; it may die in the middle of one of its saves."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        saves = 0

        def die(file: int) -> None:
            nonlocal saves
            saves += 1
            if saves == kill_in_save:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.killpg(0, signal.SIGKILL)

        os.fsync = die
        script = str(ROOT / "workflow/scripts/train.py")
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)
    raise AssertionError


def place_of(folder: str) -> list[int]:
    """Epoch and step of a training's last save."""
    for file in Path(folder).glob("state/*/*/about.json"):
        about = json.loads(file.read_text())
        return [about["epoch"], about["step"]]
    return []


def carry_out(attempt: dict[str, Any], unit: float) -> dict[str, Any]:
    """Run an attempt to its end.

    Args:
        attempt: Folder and arguments; perhaps a signal that the whole process group gets some time after its first save.
        unit: Seconds; `after` counts in it.
    """
    folder = attempt["folder"]
    started, before = time.monotonic(), place_of(folder)
    child = start(attempt["arguments"], kill_in_save=attempt.get("kill_in_save"))
    if "signal" in attempt:
        while place_of(folder) == before and time.monotonic() < started + 120:
            time.sleep(0.002)
        time.sleep(unit * attempt["after"])
        os.killpg(child, attempt["signal"])
    _, status, used = os.wait4(child, 0)
    # What was computed, not the time that passed, in which the machine may have done something else.
    return {
        "code": os.waitstatus_to_exitcode(status),
        "computed": used.ru_utime + used.ru_stime,
        "place": place_of(folder),
    }


def serve() -> None:
    """Carry out the attempts that come as lines of JSON."""
    unit = 0.0
    for line in sys.stdin:
        end = carry_out(json.loads(line), unit)
        unit = unit or end["computed"]
        print(json.dumps(end), flush=True)


# --- The tests

Attempt = Callable[..., int]


@pytest.fixture(scope="module")
def attempt() -> Iterator[Attempt]:
    """A function that trains in a folder and returns the exit code."""
    command = [sys.executable, "-m", "tests.unit.test_resumption"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout

        def carry_out(folder: Path, arguments: list[str], *more: str, **fate: Any) -> int:
            options = [*arguments, "--log", str(folder / "log"), *more]
            print(
                json.dumps({"folder": str(folder), "arguments": options, **fate}),
                file=server.stdin,
                flush=True,
            )
            end = json.loads(server.stdout.readline())
            print(more, fate, end)
            return int(end["code"])

        yield carry_out
        server.stdin.close()


@pytest.fixture(scope="module")
def unbroken(attempt: Attempt, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert attempt(folder, arguments_of(data, folder, "ffn")) == 0
    return folder


def seed_folder(folder: Path) -> Path:
    (found,) = folder.glob("results/runs/*/seed5")
    return found


def assert_ended_as_unbroken(unbroken: Path, broken: Path) -> None:
    assert_same(newest_state(unbroken), newest_state(broken))
    one, other = (
        pd.read_parquet(seed_folder(folder) / "history.parquet").drop(columns=list(TIMES))
        for folder in (unbroken, broken)
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    first, second = (
        load_checkpoint(seed_folder(folder) / "model.pt").state_dict() for folder in (unbroken, broken)
    )
    assert_same(dict(first), dict(second))
    assert not list(broken.glob("state/*/*/.*"))
    assert not list(broken.glob("state/*/*/lease.json"))


def test_a_run_killed_at_random_moments_ends_like_an_unbroken_run(
    attempt: Attempt, unbroken: Path, data: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(data, tmp_path, "ffn")
    often = ["--save-minutes", "0.0005"]
    for fate in (
        {"kill_in_save": 2},
        *({"workers": workers, "signal": signal.SIGKILL} for workers in (0, 2)),
        {"kill_in_save": 1},
        *({"workers": workers, "signal": signal.SIGKILL} for workers in (2, 0)),
    ):
        workers = ["--workers", str(fate.pop("workers", 0))]
        code = attempt(tmp_path, arguments, *often, *workers, after=random.uniform(0, 0.12), **fate)
        assert code == -signal.SIGKILL
    assert attempt(tmp_path, arguments, "--workers", "1") == 0
    assert_ended_as_unbroken(unbroken, tmp_path)


def test_sigterm_to_the_whole_process_group_saves_and_says_so(
    attempt: Attempt, unbroken: Path, data: Path, tmp_path: Path
) -> None:
    """As a cluster ends a job: the loader's workers are signalled, too."""
    arguments = arguments_of(data, tmp_path, "ffn")
    often = ["--workers", "2", "--save-minutes", "0.0005"]
    assert attempt(tmp_path, arguments, *often, signal=signal.SIGTERM, after=0.02) == 75
    assert attempt(tmp_path, arguments, "--time-budget", "1e-6") == 75
    assert attempt(tmp_path, arguments) == 0
    assert_ended_as_unbroken(unbroken, tmp_path)
    # Of all attempts.
    (log,) = tmp_path.glob("state/*/*/log.txt")
    text = log.read_text()
    assert text.count("unfinished, run again: ffn") == 2
    assert text.count(": continues at epoch") == 2
    assert [text.count(f": epoch {epoch}/3") for epoch in (1, 2, 3)] == [1] * 3


def test_a_second_trainer_writes_nothing_while_the_first_is_at_work(
    attempt: Attempt, data: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(data, tmp_path, "tsm")
    assert attempt(tmp_path, arguments, "--time-budget", "1e-6") == 75
    (folder,) = (tmp_path / "state").glob("*/*")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("state-*.pt")}
    # A lease that expires soon has a heartbeat often.
    with Lease(folder / "lease.json", expiry=1).held():
        assert attempt(tmp_path, arguments) == 75
    assert "is working on this training; nothing was written" in (tmp_path / "log").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("state-*.pt")} == before
    assert not list(tmp_path.glob("results/runs/*/seed*"))


def test_a_loss_that_is_not_finite_is_not_tried_twice(attempt: Attempt, data: Path, tmp_path: Path) -> None:
    arguments = arguments_of(data, tmp_path, "tsm", learning_rate=1e30, clip_norm=None)
    assert attempt(tmp_path, arguments) == 1
    first = (tmp_path / "log").read_text().split("error: ")[1].strip()
    assert "the loss is nan" in first
    # The second attempt would fail on the videos, if it came so far.
    assert attempt(tmp_path, arguments, "--videos", "not/there") == 1
    second = (tmp_path / "log").read_text()
    assert f"error: {first} (this training failed on " in second
    assert "ffnrepro runs retry tsm-" in second


if __name__ == "__main__":
    serve()
