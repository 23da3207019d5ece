"""Checkpoints of a training: each is saved whole, and restored by the next attempt.

They are in `state/{run}/seed{n}-{data}/`. The run's name holds the cache key of its settings and code, and `data` is the
beginning of the digest of its data. So a training never continues from a state of other settings or data, and returning to
earlier settings or data finds their state again. Snakemake does not know these files, because it would delete them as
outputs of a killed job, which has to continue from them.

    state-00000012-0123456789abcdef.pt   the last two saves; the name holds the digest of the file's bytes
    about.json                           run, seed, data, and how far the training has come
    lease.json                           the process that works on the training (`lease`)
    failed.json                          why another attempt would also fail
    log.txt                              messages of all attempts
    progress.json                        progress of the running epoch, and the last row of the history (`progress`)
    warning.json                         the last warning or error
    tensorboard/
"""

import hashlib
import io
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ffnrepro import __version__
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.files import read_record, replacing, write_json
from ffnrepro.training.lease import Lease

logger = logging.getLogger(__name__)

GENERATIONS = 2


class Checkpoints:
    """Saves of one training.

    Args:
        folder: folder of this training alone.
        run: name of the run, for messages.
        seed: seed of the training.
        epochs: number of epochs of the whole training.
        data: digest of its data.
        start: digest of the network that the training starts from, if it is the network of another run.
        save_minutes: minutes between two saves within an epoch.

    Attributes:
        save_seconds: seconds that the longest save took.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        seed: int,
        epochs: int,
        data: str,
        start: str | None = None,
        save_minutes: float = 10.0,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save_seconds = 0.0
        self._about = {"run": run, "seed": seed, "epochs": epochs, "data": data}
        self._start = start
        self._save_minutes = save_minutes
        self._saved_at = time.monotonic()
        self._lease: Lease | None = None

    @contextmanager
    def held(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lease of this training: only its holder saves.

        Args:
            check: called each second while this process waits for the lease; it may raise.

        Raises:
            PermanentError: an earlier attempt failed, and another attempt would fail in the same way.
            Unfinished: another process is working on this training.
        """
        lease = Lease(self.folder / "lease.json")
        with lease.held(check):
            mark = self.folder / "failed.json"
            failure, now = read_record(mark), {"data": self._about["data"], "version": __version__}
            if failure.items() >= now.items():
                raise PermanentError(
                    f"{failure['message']} (this training failed on {failure['time']}; to try the same settings and data again: "
                    f"ffnrepro runs retry {self._about['run']})"
                )
            self._lease = lease
            for leftover in [mark, *self.folder.glob(".*-*")]:  # temporary files of killed saves
                leftover.unlink(missing_ok=True)
            try:
                yield
            except PermanentError as error:
                failure = {
                    "message": str(error),
                    "time": f"{datetime.now():%F %T}",
                    "host": platform.node(),
                    **now,
                }
                try:
                    write_json(mark, failure)
                except OSError as write_error:
                    logger.warning("%s: cannot be written (%s)", mark, write_error.strerror)
                raise

    def generations(self) -> list[Path]:
        """The saved files, the newest first."""
        return sorted(self.folder.glob("state-*-*.pt"), reverse=True)

    def is_due(self) -> bool:
        """Whether the last save was at least `save_minutes` ago."""
        return time.monotonic() - self._saved_at >= 60 * self._save_minutes

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, whole or not at all.

        Args:
            state: tensors and plain values, with `epoch` and `step`.

        Raises:
            UserError: it cannot be written; earlier saves are untouched.
            Unfinished: another process has taken over the lease.
        """
        started = time.monotonic()
        buffer = io.BytesIO()
        torch.save({**state, "start": self._start}, buffer)
        content = buffer.getbuffer()
        generations = self.generations()
        number = 1 + (int(generations[0].name.split("-")[1]) if generations else 0)
        file = self.folder / f"state-{number:08d}-{_digest(content)}.pt"
        try:
            if self._lease is not None and not self._lease.is_mine():
                raise Unfinished(
                    f"{self.folder}: another process took over while this one was paused; nothing was written"
                )
            with replacing(file) as temporary, temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            write_json(
                self.folder / "about.json",
                {**self._about, "epoch": state["epoch"], "step": state["step"]},
            )
        except OSError as error:
            raise UserError(
                f"{self.folder}: the state cannot be saved ({error.strerror}; {len(content) / 1e6:.0f} MB to write); "
                "free some space and run again: the training continues from the previous save"
            ) from error
        for old in generations[GENERATIONS - 1 :]:
            with suppress(OSError):
                old.unlink()
        self._saved_at = time.monotonic()
        self.save_seconds = max(self.save_seconds, self._saved_at - started)

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole save, on the CPU, or None if there is none; damaged ones are deleted.

        Raises:
            UserError: the newest save cannot be read now, or belongs to a training that started from another network.
        """
        for file in self.generations():
            try:
                content = file.read_bytes()
            except FileNotFoundError:  # another process of this training found it damaged
                continue
            except OSError as error:
                raise UserError(
                    f"{file}: cannot be read ({error.strerror}); check the disk and run again, or delete the file: training "
                    "then continues from the previous save"
                ) from error
            if not file.stem.endswith(_digest(content)):
                logger.warning("%s: damaged and deleted; using the previous save", file)
                file.unlink(missing_ok=True)
                continue
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if (start := state.pop("start", None)) != self._start:
                raise UserError(
                    f"{self.folder}: this training started from the network {start}, but now it would start from "
                    f"{self._start}; to start again: ffnrepro runs prune {self._about['run']}"
                )
            return state
        return None


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
