"""A lease lets only one process at a time write to a folder, even if the processes are on different machines.

It works on a network file system and needs no lock server: a lease is a file that only one process can create. Its owner
touches the file every `HEARTBEAT` seconds. A process that finds the lease taken watches it, and takes it over if it is not
touched for `EXPIRY` seconds of the watcher's own clock. So the clocks of the machines need not agree.
"""

import json
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ffnrepro.errors import Unfinished
from ffnrepro.files import write_json

logger = logging.getLogger(__name__)

HEARTBEAT = 20.0
"""Seconds between two heartbeats."""

EXPIRY = 180.0
"""Seconds without a heartbeat after which a lease expires: three times as long as NFS caches a file's attributes."""

LONG_AGO = 3600.0
"""Age of the last heartbeat in seconds, by the file's time, above which a lease has expired without being watched.
Clocks differ by less."""

SETTLE = 1.0
"""Seconds that a process waits after a takeover, because another process may have taken over at the same moment."""


class LeaseStatus(NamedTuple):
    """Owner of a lease, and its last heartbeat (the file's modification time in nanoseconds)."""

    owner: dict[str, Any]
    heartbeat: int

    @property
    def name(self) -> str:
        """Description of the owner, for messages."""
        job = f"job {self.owner['slurm_job']}, " if self.owner.get("slurm_job") else ""
        return f"{job}process {self.owner.get('pid')} on {self.owner.get('host')}"

    def owner_is_dead(self) -> bool:
        """Whether the owner is known to be dead, without waiting for the lease to expire."""
        if time.time() - self.heartbeat / 1e9 > LONG_AGO:
            return True
        pid = self.owner.get("pid")
        if not isinstance(pid, int) or self.owner.get("machine") != _machine():
            return False
        try:
            os.kill(pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        # A lease with this process's own number was left by an earlier process.
        return pid == os.getpid()


class Lease:
    """The right to write to a folder.

    Args:
        path: the file of the lease.
        expiry: seconds without a heartbeat after which it expires.
    """

    def __init__(self, path: Path, *, expiry: float = EXPIRY) -> None:
        self.path = path
        self._expiry = expiry
        self._owner = {
            "token": uuid.uuid4().hex,
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }

    @contextmanager
    def held(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Take the lease, keep it alive, and release it.

        Args:
            check: called each second while this process waits for the lease; it may raise.

        Raises:
            Unfinished: another process has the lease and is alive.
        """
        self._acquire(check)
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            try:
                if self.is_mine():
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                # An error of the work itself matters more, and other processes will notice that this one has ended.
                logger.warning("%s: could not be released (%s)", self.path, error.strerror)

    def is_mine(self) -> bool:
        """Whether this process still has the lease. It may have expired while this process was paused."""
        status = read_lease(self.path)
        return status is not None and status.owner == self._owner

    def _acquire(self, check: Callable[[], None]) -> None:
        while not self._create():
            status = read_lease(self.path)
            gone = status is not None and (status.owner_is_dead() or self._expires(status, check))
            if status is not None and gone and read_lease(self.path) == status:
                logger.warning("taking over from %s, which has ended", status.name)
                write_json(self.path, self._owner)
                time.sleep(SETTLE)
                if self.is_mine():
                    return

    def _create(self) -> bool:
        try:
            with self.path.open("x", encoding="utf-8") as stream:
                json.dump(self._owner, stream)
        except FileExistsError:
            return False
        return True

    def _expires(self, status: LeaseStatus, check: Callable[[], None]) -> bool:
        """Watch the lease, and return whether it expires; False if it gets another owner or none."""
        logger.info("%s: held by %s; watching for a heartbeat", self.path, status.name)
        interval = min(1.0, self._expiry / 10)
        # Whatever pauses this process (a suspended machine, a network disk) pauses the owner, too. So reads of the lease
        # are counted, not seconds.
        for _ in range(math.ceil(self._expiry / interval)):
            time.sleep(interval)
            check()
            now = read_lease(self.path)
            if now is None or now.owner != status.owner:
                return False
            if now.heartbeat != status.heartbeat:
                raise Unfinished(
                    f"{self.path.parent}: {status.name} is working on this training; nothing was written. Wait for that "
                    "process to end, or stop it"
                )
        return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(min(HEARTBEAT, self._expiry / 5)):
            try:
                # Touching the file writes nothing, so it needs no space and does not take the lease back from a new owner.
                os.utime(self.path)
            except OSError as error:
                logger.warning("%s: no heartbeat (%s)", self.path, error.strerror)


def read_lease(path: Path) -> LeaseStatus | None:
    """Read a lease; None if there is none."""
    try:
        # Opening the file makes a network file system update its attributes.
        with path.open(encoding="utf-8") as file:
            text = file.read()
            heartbeat = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return LeaseStatus(json.loads(text), heartbeat)
    except ValueError:
        # The file is being written, or its owner died while it wrote.
        return LeaseStatus({}, heartbeat)


def _machine() -> str:
    """Identity of the system in which process numbers are unique: host, boot, and namespace of a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()
