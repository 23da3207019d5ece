"""Start the processes of a training, one for each GPU: `python -m ffnrepro.training.launch COUNT SCRIPT ARGUMENT...`.

It sets the same environment variables as torchrun, which can start the scripts, too. But torchrun exits with code 1 whatever
the codes of its processes, and after a signal it kills them within 30 s, even in the middle of a save. Here "unfinished" (75)
stays "unfinished", SIGTERM may come any number of times, and a second Ctrl-C ends all at once.
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
"""Seconds for the others after a process has failed: one may be saving, and one may wait for the failed one for ever."""


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
            # A terminal sends Ctrl-C to the processes as well. Passing on SIGINT would be their second one; a further
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
        if received:  # before all were started
            for process in processes:
                process.terminate()
        failures = _wait(processes, patience)
    except BaseException:
        # Such as no memory for the next process, which the others would wait for.
        for process in processes:
            process.kill()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received.count(signal.SIGINT) > 1:
        return 128 + signal.SIGINT
    # Of processes that failed at the same time, some only failed because of another. SIGTERM ends a process that has not yet
    # installed its handler.
    causes = [code for code in failures if code != UNFINISHED and not (received and code == -signal.SIGTERM)]
    if causes:
        return causes[0] if causes[0] > 0 else 128 - causes[0]
    return UNFINISHED if failures else 0


def _wait(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> list[int]:
    """Wait for all; return the codes of those that failed first, since others may fail because of them."""
    while not any(codes := [process.poll() for process in processes]) and None in codes:
        time.sleep(0.05)
    # A killed process prints nothing, and only the first one has a log.
    for rank, code in enumerate(codes):
        if code and code != UNFINISHED:
            how = f"with code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
            _print(f"process {rank} of {len(codes)} ended {how}")
    deadline = time.monotonic() + patience
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _print(f"the other processes did not end within {patience:g} s and are killed")
        for process in processes:
            process.kill()
            process.wait()
    return [code for code in codes if code]


def _print(message: str) -> None:
    # The screen may be gone while the processes still save.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{message}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
