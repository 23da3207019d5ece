"""A lease: of several processes, on several machines, one at a time may write to a folder.

It works on a network file system and needs no lock daemon: a lease is a file that only one process can create. Its owner
touches it every `BEAT` seconds. Whoever finds it taken watches it: a file that is not touched for `EXPIRY` seconds of
the watcher's own clock is stale and taken over, so the clocks of the machines need not agree.
"""

import json
import logging
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

BEAT = 20.0
"""Seconds between two signs of life."""

EXPIRY = 180.0
"""Seconds without a sign of life after which a lease is stale; three times what NFS keeps attributes for."""

LONG_AGO = 3600.0
"""Seconds, by the file's own time, after which nobody waits; clocks differ by less."""

SETTLE = 1.0
"""Seconds in which another process that takes over at the same moment shows itself."""


class Sight(NamedTuple):
    """What a look at a lease shows: its owner, and when it last gave a sign of life (nanoseconds)."""

    owner: dict[str, Any]
    touched: int

    @property
    def name(self) -> str:
        """Who the owner is, for people."""
        job = self.owner.get("slurm_job")
        return (
            f"job {job}, " if job else ""
        ) + f"process {self.owner.get('pid')} on {self.owner.get('host')}"


class Lease:
    """The right to write to a folder.

    Args:
        path: the file.
        expiry: seconds without a sign of life after which it is stale.
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
        """Take the lease, keep it alive, give it back.

        Args:
            check: called each second while it is waited for; it may raise.

        Raises:
            Unfinished: another process has it and is alive.
        """
        self._acquire(check)
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            try:
                if self.is_mine():
                    self.path.unlink(missing_ok=True)
            except OSError as error:  # the work's own end counts, and others find this process gone
                logger.warning("%s: could not be given back (%s)", self.path, error.strerror)

    def is_mine(self) -> bool:
        """Whether the lease is this process's: no longer so after it was stopped for so long that it expired."""
        sight = look(self.path)
        return sight is not None and sight.owner == self._owner

    def _acquire(self, check: Callable[[], None]) -> None:
        while not self._create():
            seen = look(self.path)
            if seen is None:
                continue
            if not has_died(seen) and not self._watch(seen, check):
                continue
            if look(self.path) != seen:
                continue
            logger.warning("takes over from %s, which is no longer there", seen.name)
            write_json(self.path, self._owner)
            time.sleep(SETTLE)
            if self.is_mine():
                return

    def _create(self) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            json.dump(self._owner, stream)
        return True

    def _watch(self, seen: Sight, check: Callable[[], None]) -> bool:
        """Whether the lease stays without a sign of life; False where it changes hands meanwhile."""
        logger.info("%s: taken by %s; watches for a sign of life", self.path, seen.name)
        interval = min(1.0, self._expiry / 10)
        waited, last = 0.0, time.monotonic()
        while waited < self._expiry:
            time.sleep(interval)
            check()
            now = look(self.path)
            if now is None or now.owner != seen.owner:
                return False
            if now.touched != seen.touched:
                raise Unfinished(
                    f"{self.path.parent}: {seen.name} is at work on this and alive; nothing was written. Wait for it to "
                    "end, or end it"
                )
            # What stops this process (a paused machine, a network disk) stops the owner, too: that time does not count.
            last, before = time.monotonic(), last
            waited += min(last - before, 2 * interval)
        return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(min(BEAT, self._expiry / 5)):
            try:
                # No write, so it needs no space, and it does not take the file back from who took it over.
                os.utime(self.path)
            except OSError as error:
                logger.warning("%s: no sign of life could be given (%s)", self.path, error.strerror)


def look(path: Path) -> Sight | None:
    """The owner of a lease and its last sign of life, or None where there is no lease."""
    try:
        with path.open(encoding="utf-8") as file:  # opening it makes a network file system look anew
            text = file.read()
            touched = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return Sight(json.loads(text), touched)
    except ValueError:  # being written, or cut short
        return Sight({}, touched)


def has_died(sight: Sight) -> bool:
    """Whether the owner is known to be dead, without waiting for the lease to expire."""
    if time.time() - sight.touched / 1e9 > LONG_AGO:
        return True
    pid = sight.owner.get("pid")
    if not isinstance(pid, int) or sight.owner.get("machine") != _machine():
        return False
    if pid == os.getpid():  # of an earlier process with this number
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> str:
    """Where process numbers mean the same: host, its boot, and the namespace of a container."""
    parts = [platform.node()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # no Linux
        pass
    return " ".join(parts)
