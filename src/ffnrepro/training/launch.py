"""Start a training's processes, one a GPU: `python -m ffnrepro.training.launch COUNT SCRIPT ARGUMENT...`.

They find each other as torchrun's do, and torchrun can start the scripts, too. But it ends with code 1 whatever its processes
end with, and a second signal makes it leave them, or kill them in the middle of a save. Here "unfinished" (75) stays
"unfinished", SIGTERM may come as often as it likes, and a second Ctrl-C ends all at once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ffnrepro.logs import UNFINISHED

PATIENCE = 60.0
"""Seconds for the others once a process has failed: one may be saving, and one may wait for ever for the failed one."""


def launch(count: int, command: Sequence[str], *, patience: float = PATIENCE) -> int:
    """Run a Python script in several processes, and return the exit code of the first that failed.

    Args:
        count: of processes.
        command: the script and its arguments.
        patience: seconds that the others have to end by themselves once one has failed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        at_once = number == signal.SIGINT and number in asked
        asked.append(number)
        for process in processes:
            # A terminal sends Ctrl-C to them, too: SIGTERM, which they only note, makes no second one of it.
            process.kill() if at_once else process.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, *command], env={**os.environ, **common, **own})
            )
        if asked:  # while they were being started
            for process in processes:
                process.terminate()
        failures = _wait(processes, patience)
    except BaseException:  # such as no memory for the next one: it would be waited for
        for process in processes:
            process.kill()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if asked.count(signal.SIGINT) > 1:
        return 128 + signal.SIGINT
    # Of those that failed at the same time, one may only have missed the other. SIGTERM ends a process that has not yet begun
    # its work.
    causes = [code for code in failures if code != UNFINISHED and not (asked and code == -signal.SIGTERM)]
    if causes:
        return causes[0] if causes[0] > 0 else 128 - causes[0]
    return UNFINISHED if failures else 0


def _wait(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> list[int]:
    """Wait for all; give the codes of those that failed first: others may fail since these are gone."""
    first: list[int] = []
    failed_at = 0.0
    killed = False
    while None in (codes := [process.poll() for process in processes]):
        if not first:
            first = _failures(codes)
            failed_at = time.monotonic()
        elif not killed and time.monotonic() - failed_at > patience:
            killed = True
            _say(f"the others have not ended within {patience:g} s, and are killed")
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return first or _failures(codes)


def _failures(codes: Sequence[int | None]) -> list[int]:
    """Codes of those that failed. It is said, too: one that was killed, or whose log is nobody's, says nothing itself."""
    for rank, code in enumerate(codes):
        if code and code != UNFINISHED:
            how = f"with code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
            _say(f"process {rank} of {len(codes)} ended {how}")
    return [code for code in codes if code]


def _say(words: str) -> None:
    with suppress(OSError, ValueError):  # the screen may be gone, and others may be saving
        sys.stderr.write(f"{words}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
