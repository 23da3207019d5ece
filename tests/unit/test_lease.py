"""One process at a time holds a lease; a dead process's is taken over, a living process's never."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ffnrepro.errors import Unfinished
from ffnrepro.training import lease as module
from ffnrepro.training.lease import Lease, LeaseStatus, read_lease

HOLD = """
import sys, time, pathlib
from ffnrepro.training.lease import Lease
with Lease(pathlib.Path(sys.argv[1]), expiry=1.0).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE", 0.2)


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def left_by(path: Path, **changes: Any) -> None:
    """A lease as another process left it."""
    with Lease(path).held():
        owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "token": "another", **changes}))


def test_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    for _ in range(2):
        lease = Lease(path)
        with lease.held():
            assert lease.is_mine()
            status = read_lease(path)
            assert status is not None
            assert status.owner["pid"] == os.getpid()
        assert not path.exists()


def test_a_process_that_waits_can_be_stopped(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="another")

    def check() -> None:
        raise Unfinished("SIGTERM")

    with pytest.raises(Unfinished, match="SIGTERM"), Lease(path, expiry=60).held(check):
        pytest.fail("another process holds it")
    assert json.loads(path.read_text())["token"] == "another"


def test_a_living_process_keeps_it_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with holder(path) as first:
        text = path.read_text()
        message = rf"process {first.pid} on .* is working on this training; nothing was written"
        with pytest.raises(Unfinished, match=message), Lease(path, expiry=30.0).held():
            pass
        assert path.read_text() == text
        first.kill()
        first.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Lease, "_expires", lambda *_: pytest.fail("the process is known to be dead: no need to watch")
            )
            with Lease(path, expiry=30.0).held():
                pass
    assert not path.exists()


def test_a_heartbeat_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with Lease(path, expiry=1).held():
        first = status = read_lease(path)
        end = time.monotonic() + 30
        while status == first and time.monotonic() < end:
            time.sleep(0.01)
            status = read_lease(path)
    assert first is not None
    assert status is not None
    assert status.heartbeat > first.heartbeat
    assert status.owner == first.owner


def test_on_another_machine_it_expires_by_the_watchers_own_clock(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="elsewhere", host="node7")
    os.utime(path, (time.time() + 600, time.time() + 600))  # its clock is ten minutes ahead
    started = time.monotonic()
    lease = Lease(path, expiry=0.5)
    with lease.held():
        assert lease.is_mine()
        assert time.monotonic() - started >= 0.5


def test_a_pause_of_the_machine_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="elsewhere")
    touched = path.stat().st_mtime
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        if now > 100:  # the owner, which the same disk paused, continues a moment later
            os.utime(path, (touched + 1,) * 2)
        now += seconds + (0 if now else 100)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(Unfinished, match="working on this training"), Lease(path, expiry=1.0).held():
        pytest.fail("another process holds it")


@pytest.mark.parametrize(
    ("changes", "age", "dead"),
    [
        ({"pid": 2**22 + 1}, 0, True),  # more than any process number
        ({"pid": os.getppid()}, 0, False),
        ({"pid": 2**22 + 1, "machine": "elsewhere"}, 0, False),
        ({"pid": 2**22 + 1, "machine": "elsewhere"}, 7200, True),
        ({}, 0, True),  # this process's own number: an earlier one with the same
    ],
)
def test_which_owners_are_known_to_be_dead(
    tmp_path: Path, changes: dict[str, Any], age: float, dead: bool
) -> None:
    path = tmp_path / "lease.json"
    left_by(path, **changes)
    os.utime(path, (time.time() - age,) * 2)
    status = read_lease(path)
    assert status is not None
    assert status.owner_is_dead() is dead


@pytest.mark.parametrize("text", ["", "{", '{"token"'])
def test_a_lease_that_was_cut_short_expires_like_any_other(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lease.json"
    path.write_text(text)
    with Lease(path, expiry=0.5).held():
        pass


def test_of_many_processes_that_take_over_at_once_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, pid=2**22 + 1)
    inside: list[int] = []
    most: list[int] = []

    def take(number: int) -> str:
        try:
            with Lease(path, expiry=1.0).held():
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.5)
                inside.remove(number)
        except Unfinished:
            return "stopped"
        return "held"

    # Threads share a process number, which here would be taken for a dead process of the same number.
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setattr(LeaseStatus, "owner_is_dead", lambda status: status.owner.get("token") == "another")
        ends = list(pool.map(take, range(6)))
    assert max(most) == 1
    assert ends.count("held") >= 1
