"""One process at a time holds a lease; a dead one's is taken over, a living one's never."""

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
from ffnrepro.training.lease import Lease, has_died, look

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
            sight = look(path)
            assert sight is not None
            assert sight.owner["pid"] == os.getpid()
        assert not path.exists()


def test_who_waits_may_be_asked_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="another")

    def check() -> None:
        raise Unfinished("SIGTERM")

    with pytest.raises(Unfinished, match="SIGTERM"), Lease(path, expiry=60).held(check):
        pytest.fail("it is another's")
    assert json.loads(path.read_text())["token"] == "another"


def test_a_second_process_stops_with_a_clear_word_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with holder(path) as first:
        text = path.read_text()
        says = rf"process {first.pid} on .* is at work on this and alive; nothing was written"
        with pytest.raises(Unfinished, match=says), Lease(path, expiry=30.0).held():
            pass
        assert path.read_text() == text
        first.kill()
        first.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Lease, "_watch", lambda *_: pytest.fail("the process is known to be gone: nobody waits")
            )
            with Lease(path, expiry=30.0).held():
                pass
    assert not path.exists()


def test_a_sign_of_life_is_given(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with Lease(path, expiry=4).held():
        first = second = look(path)
        assert first is not None
        end = time.monotonic() + 3  # while it would expire in 4
        while second is not None and second.touched == first.touched and time.monotonic() < end:
            time.sleep(0.05)
            second = look(path)
    assert second is not None
    assert second.touched > first.touched
    assert second.owner == first.owner


def test_of_another_machine_it_expires_by_the_watchers_own_clock(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="elsewhere", host="node7")
    os.utime(path, (time.time() + 600, time.time() + 600))  # its clock is ten minutes ahead
    started = time.monotonic()
    lease = Lease(path, expiry=1.0)
    with lease.held():
        assert lease.is_mine()
        assert time.monotonic() - started >= 1.0


def test_a_pause_of_the_machine_is_no_silence_of_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lease.json"
    left_by(path, machine="elsewhere")
    touched = path.stat().st_mtime
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        if now > 100:  # the owner, which the same disk held up, goes on a moment later
            os.utime(path, (touched + 1,) * 2)
        now += seconds + (0 if now else 100)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(Unfinished, match="at work on this and alive"), Lease(path, expiry=1.0).held():
        pytest.fail("it is another's")


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
def test_who_is_known_to_be_dead(tmp_path: Path, changes: dict[str, Any], age: float, dead: bool) -> None:
    path = tmp_path / "lease.json"
    left_by(path, **changes)
    os.utime(path, (time.time() - age,) * 2)
    sight = look(path)
    assert sight is not None
    assert has_died(sight) is dead


@pytest.mark.parametrize("text", ["", "{", '{"token"'])
def test_a_lease_cut_short_expires_as_any_other(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lease.json"
    path.write_text(text)
    with Lease(path, expiry=0.5).held():
        pass


def test_of_many_that_take_over_at_once_one_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    left_by(path, pid=2**22 + 1)
    inside: list[int] = []
    most: list[int] = []

    def take(number: int) -> str:
        try:
            with Lease(path, expiry=3.0).held():
                inside.append(number)
                most.append(len(inside))
                time.sleep(1.5)
                inside.remove(number)
        except Unfinished:
            return "stopped"
        return "held"

    # Threads share a process number, which here would be taken for a dead process of the same number.
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setattr(module, "has_died", lambda sight: sight.owner.get("token") == "another")
        ends = list(pool.map(take, range(6)))
    assert max(most) == 1
    assert ends.count("held") >= 1
