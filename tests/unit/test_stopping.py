"""When to stop: signals and deadlines."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from ffnrepro.errors import Unfinished
from ffnrepro.logs import run
from ffnrepro.training.stopping import StopRequest, end_of_job


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop_and_the_old_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.reason() == number.name
    assert signal.getsignal(number) is before


def test_a_repeated_sigterm_is_only_noted() -> None:
    """A cluster sends SIGTERM several times. If the second one acted, it would interrupt the save that the first one requested."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        pytest.fail("it ended the work")

    before = signal.signal(signal.SIGTERM, end)
    try:
        with StopRequest() as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.reason() == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_ctrl_c_acts_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_deadline_keeps_time_for_the_save() -> None:
    stop = StopRequest(time.time() + 10_000)  # a margin of 60 s
    assert stop.reason() is None
    assert stop.reason(reserve=9_900) is None
    assert stop.reason(reserve=9_945) == "the time limit is near"


def test_a_short_budget_has_a_short_margin() -> None:
    stop = StopRequest(time.time() + 100)
    assert stop.reason(reserve=90) is None
    assert stop.reason(reserve=96) is not None


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that puts a `squeue` with this answer on the path, and makes this process one of job 12."""

    def answer(text: str) -> None:
        program = tmp_path / "squeue"
        program.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --jobs 12 --format %e" ] && echo "{text}"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv("SLURM_JOB_ID", "12")

    return answer


def test_the_earlier_end_of_budget_and_job_counts(squeue: Callable[[str], None]) -> None:
    assert end_of_job(None) is None
    assert end_of_job(30) == pytest.approx(time.time() + 1800, abs=5)
    squeue(datetime.fromtimestamp(time.time() + 600).isoformat(timespec="seconds"))
    assert end_of_job(None) == pytest.approx(time.time() + 600, abs=5)
    assert end_of_job(30) == pytest.approx(time.time() + 600, abs=5)
    assert end_of_job(5) == pytest.approx(time.time() + 300, abs=5)


def test_a_job_that_has_ended_is_not_this_one(
    squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A shell of `salloc` keeps the variables of its job. SLURM_JOB_END_TIME is not used at all."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert end_of_job(None) is None
    assert not caplog.records
    squeue("2023-11-14T22:13:20")
    assert end_of_job(None) is None
    assert end_of_job(30) == pytest.approx(time.time() + 1800, abs=5)
    assert (
        "SLURM job 12 (SLURM_JOB_ID) ended at 2023-11-14T22:13:20, so this process is not part of it"
        in caplog.text
    )


@pytest.mark.parametrize("answer", ["Unknown", ""])
def test_a_job_with_an_unknown_end_gives_a_warning(
    squeue: Callable[[str], None], answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    squeue(answer)
    assert end_of_job(None) is None
    assert "the end of SLURM job 12 is unknown; set runtime.time_budget" in caplog.text


def test_a_job_without_squeue_has_no_known_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert end_of_job(None) is None


def test_unfinished_work_has_an_exit_code_and_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise Unfinished("ffn: SIGTERM, saved at epoch 3")

    assert run(work) == 75
    assert "unfinished, run again: ffn: SIGTERM, saved at epoch 3" in capsys.readouterr().err


def test_a_closed_screen_changes_neither_exit_code_nor_log_file(tmp_path: Path) -> None:
    """Such as `snakemake | tee`, if Ctrl-C ends `tee` as well, or a closed terminal."""
    text = """
import sys
from pathlib import Path
from ffnrepro.errors import Unfinished
from ffnrepro.logs import logger, run

def work():
    sys.stdin.read()  # until the reader is gone
    logger.info("saved")
    raise Unfinished("SIGINT")

sys.exit(run(work, Path(sys.argv[1])))
"""
    log = tmp_path / "log"
    command = [sys.executable, "-c", text, str(log)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stderr.close()
    process.stdin.close()
    assert process.wait(60) == 75
    assert [line.split(" ", 3)[-1] for line in log.read_text().splitlines()] == [
        "saved",
        "unfinished, run again: SIGINT",
    ]
