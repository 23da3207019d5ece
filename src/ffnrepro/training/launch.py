"""Start the processes of a training, one for each GPU: `python -m ffnrepro.training.launch COUNT SCRIPT ARGUMENT...`.

It sets the same environment variables as torchrun, which can start the scripts, too. But torchrun always exits with code 1,
whatever the exit codes of its processes, and after a signal it kills them within 30 s, even in the middle of a save. Here
"unfinished" (75) stays "unfinished", SIGTERM may come any number of times, and a second Ctrl-C ends all processes at once.
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
"""Seconds that the other processes have to exit after one has failed: some may be saving, others may wait for it forever."""


def launch(count: int, command: Sequence[str], *, patience: float = PATIENCE) -> int:
    """Run a Python script in several processes, and return the exit code of the first one that failed.

    Args:
        count: number of processes.
        command: the script and its arguments.
        patience: seconds that the others have to end by themselves after one has failed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        at_once = number == signal.SIGINT and number in received
        received.append(number)
        for process in processes:
            # A terminal sends Ctrl-C to the processes as well, so a SIGINT from here would be their second. Another
            # SIGTERM changes nothing.
            process.kill() if at_once else process.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, *command], env={**os.environ, **common, **own})
            )
        if received:  # a signal came before all processes were started
            for process in processes:
                process.terminate()
        failures = _wait(processes, patience)
    except BaseException:
        # If a process cannot start, for example for lack of memory, the others would wait for it.
        for process in processes:
            process.kill()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received.count(signal.SIGINT) > 1:
        return 128 + signal.SIGINT
    # If several processes failed at the same time, some only failed because of another. "Unfinished" is no cause, nor is
    # the death by SIGTERM of a process that had not yet installed its handler.
    causes = [code for code in failures if code != UNFINISHED and not (received and code == -signal.SIGTERM)]
    if causes:
        return causes[0] if causes[0] > 0 else 128 - causes[0]
    return UNFINISHED if failures else 0


def _wait(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> list[int]:
    """Wait for all processes; return the exit codes of those that failed first, because others may fail as a result."""
    while not any(codes := [process.poll() for process in processes]) and None in codes:
        time.sleep(0.05)
    # A killed process prints nothing, and only the first process has a log.
    for rank, code in enumerate(codes):
        if code and code != UNFINISHED:
            how = f"with code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
            _print(f"process {rank} of {len(codes)} ended {how}")
    deadline = time.monotonic() + patience
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _print(f"the other processes did not end within {patience:g} s, so they are killed")
        for process in processes:
            process.kill()
            process.wait()
    return [code for code in codes if code]


def _print(message: str) -> None:
    # The terminal may be gone while the processes still save.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{message}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
