"""Processes of one training (gloo, on the CPU): what they exchange, and how the launcher starts and ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from ffnrepro.errors import Unfinished, UserError
from ffnrepro.training.launch import _free_port, launch
from ffnrepro.training.processes import Processes, start_processes


def exchange(processes: Processes) -> dict[str, Any]:
    first = processes.first
    return {
        "flags": processes.any_of([False, first, not first]),
        "total": processes.total({"a": 1.0, "b": 3.5} if first else {"b": 7.0, "a": 2.0}),
        "same": [processes.same((1, "x")), processes.same((1, processes.rank))],
    }


def meet_an_end(processes: Processes) -> dict[str, Any]:
    """The second process ends while the first one waits for it."""
    if not processes.first:
        return {}
    with pytest.raises(Unfinished) as caught:
        processes.wait()
    return {"message": str(caught.value)}


def meet_other_sums(processes: Processes) -> dict[str, Any]:
    with pytest.raises(ValueError, match=r"another process does not have the sums \['[ab]'\]"):
        processes.total({"a": 1.0} if processes.first else {"b": 1.0})
    return {}


def in_process(
    work: Callable[[Processes], dict[str, Any]], rank: int, port: int, answers: Connection
) -> None:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    answers.send(work(start_processes(torch.device("cpu"), 2)[0]))
    os._exit(0)


def in_two_processes(work: Callable[[Processes], dict[str, Any]]) -> list[dict[str, Any]]:
    context, port = get_context("fork"), _free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=in_process, args=(work, rank, port, pipe[1]))
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(60)
        return [receive.recv() for receive, _ in pipes if receive.poll()]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_exchange_flags_and_sums() -> None:
    expected = {"flags": [False, True, True], "total": {"a": 3.0, "b": 10.5}, "same": [True, False]}
    assert in_two_processes(exchange) == [expected, expected]


def test_one_process_exchanges_with_nobody() -> None:
    assert exchange(Processes()) == {
        "flags": [False, True, False],
        "total": {"a": 1.0, "b": 3.5},
        "same": [True, True],
    }


def test_sums_of_different_names_are_refused() -> None:
    assert in_two_processes(meet_other_sums) == [{}, {}]


def test_the_end_of_another_process_is_unfinished_work() -> None:
    message = in_two_processes(meet_an_end)[0]["message"]
    assert message.startswith("another process of this training has ended, or cannot be reached")


@pytest.mark.parametrize(("started", "configured"), [(None, 2), ("2", 1)])
def test_as_many_processes_are_started_as_configured(
    monkeypatch: pytest.MonkeyPatch, started: str | None, configured: int
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if started is not None:
        monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(
        UserError, match=rf"training\.gpus is {configured}, but {started or 1} processes were started"
    ):
        start_processes(torch.device("cpu"), configured)


WORK = """
import os, signal, sys, time
from pathlib import Path
from ffnrepro.training.stopping import StopRequest

rank = os.environ["RANK"]
note = StopRequest._note

def note_and_count(*arguments):
    note(*arguments)
    with Path("signals" + rank).open("a") as file:
        file.write(".")

StopRequest._note = note_and_count
with StopRequest() as stop:
    Path("ready" + rank).touch()
    while stop.reason() is None:
        time.sleep(0.01)
    Path("saving" + rank).touch()
    while not Path("disk").exists():
        time.sleep(0.01)
    Path("saved" + rank).touch()
sys.exit(75)
"""


def start(folder: Path, *, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Start the launcher of two processes of `work.py`."""
    return subprocess.Popen(
        [sys.executable, "-m", "ffnrepro.training.launch", "2", "work.py"],
        start_new_session=start_new_session,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(folder: Path, name: str, *, size: int = 0) -> None:
    """Wait until both processes have written a file."""
    end = time.monotonic() + 60
    while len([file for file in folder.glob(f"{name}[01]") if file.stat().st_size >= size]) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The launcher of two processes, in a process group of its own, as in a terminal."""
    (tmp_path / "work.py").write_text(WORK)
    process = start(tmp_path, start_new_session=True)
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
    for count in range(1, 5):
        os.killpg(at_work.pid, signal.SIGTERM) if to_all else at_work.terminate()
        wait_for(tmp_path, "signals", size=count)
        wait_for(tmp_path, "saving")
    (tmp_path / "disk").touch()
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
    assert not saved(tmp_path)


def test_one_ctrl_c_of_a_terminal_is_one(tmp_path: Path, at_work: subprocess.Popen[str]) -> None:
    os.killpg(at_work.pid, signal.SIGINT)
    wait_for(tmp_path, "signals", size=2)
    (tmp_path / "disk").touch()
    assert at_work.wait(60) == 75
    assert saved(tmp_path) == ["saved0", "saved1"]


@pytest.mark.parametrize(
    ("of_rank_0", "of_rank_1", "patience", "code", "printed"),
    [
        # The first process fails because the other one has failed.
        ("save(); sys.exit(1)", "sys.exit(3)", 60, 3, "process 1 of 2 ended with code 3\n"),
        # The first process waits forever for the other one.
        (
            "save(); time.sleep(60)",
            "sys.exit(75)",
            1,
            75,
            "the other processes did not end within 1 s, so they are killed\n",
        ),
        ("save()", "os.kill(os.getpid(), 9)", 60, 137, "process 1 of 2 ended by signal 9 (Killed)\n"),
        ("save()", "pass", 60, 0, ""),
    ],
)
def test_the_first_failure_gives_the_exit_code_and_the_others_may_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    of_rank_0: str,
    of_rank_1: str,
    patience: float,
    code: int,
    printed: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "def save():\n"
        "    while not Path('ending').exists():\n"
        "        time.sleep(0.01)\n"
        "    time.sleep(0.2)\n"
        "    Path('saved0').touch()\n"
        "if os.environ['RANK'] == '0':\n"
        f"    {of_rank_0}\n"
        "else:\n"
        "    Path('ending').touch()\n"
        f"    {of_rank_1}\n"
    )
    assert launch(2, ["work.py"], patience=patience) == code
    assert capfd.readouterr().err == printed
    assert saved(tmp_path) == ["saved0"]


def test_sigterm_before_the_work_begins_is_unfinished_too(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import os, time\nfrom pathlib import Path\nPath('ready' + os.environ['RANK']).touch()\ntime.sleep(60)\n"
    )
    process = start(tmp_path)
    wait_for(tmp_path, "ready")
    process.terminate()
    process.communicate()
    assert process.returncode == 75
