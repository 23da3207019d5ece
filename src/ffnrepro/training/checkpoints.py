"""The state of a training run: saved whole, resumed, and kept by what decides the result.

A state lies in `state/{stage}/{key}/`, where the key is the digest of everything that decides the result (settings,
data, pretrained weights, code: `decides`). So a run never continues from another configuration's state, and going back to an
earlier configuration finds its state again. Snakemake does not know these files: it deletes the declared outputs
of a job that was killed, and this is what such a job continues from.

    state-00000012-0123456789abcdef.pt   the last two saves; the name holds the digest of the file's bytes
    about.json                           what it is and how far it came, for people and `ffnrepro state list`
    lease.json                           who is at work on it (`lease`)
    failed.json                          why trying again is of no use
    log.txt                              what was said, by all attempts
    made_with.json                       of a finished training: digest of the network, versions, device, git revision
    tensorboard/
"""

import hashlib
import io
import json
import logging
import os
import platform
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ffnrepro.decides import key_of
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.files import replacing, write_json
from ffnrepro.training.lease import Lease, has_died, look

logger = logging.getLogger(__name__)

GENERATIONS = 2


class StateDirectory:
    """The folder of one run's state.

    Args:
        root: folder of the stage, such as `state/train`.
        decides: plain values that decide the result.
        about: what `about.json` says beside them: the experiment's name, the seed, the epochs.
        save_minutes: time between two saves within an epoch.

    Attributes:
        save_seconds: what the longest save took.
    """

    def __init__(
        self, root: Path, decides: Any, *, about: dict[str, Any] | None = None, save_minutes: float = 10.0
    ) -> None:
        self.key = key_of(decides)
        self.path = root / self.key
        self.path.mkdir(parents=True, exist_ok=True)
        self.save_seconds = 0.0
        self._unreadable: set[Path] = set()
        self._about = {**(about or {}), "decides": decides}
        self._save_minutes = save_minutes
        self._saved_at = time.monotonic()
        self._lease: Lease | None = None

    @contextmanager
    def held(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the state's lease: only its holder saves.

        Raises:
            PermanentError: it failed before, in a way that another try does not change.
            Unfinished: another process is at work on it.
        """
        self._check_not_failed()  # no need to wait for the lease then
        lease = Lease(self.path / "lease.json")
        with lease.held(check):
            self._check_not_failed()  # who had the lease may have failed meanwhile
            self._lease = lease
            for leftover in self.path.glob(".*-*"):  # of saves that were killed
                leftover.unlink(missing_ok=True)
            try:
                yield
            except PermanentError as error:
                try:
                    write_json(self._failed, {"message": str(error), "time": _now(), "host": platform.node()})
                except OSError as unmarked:
                    logger.warning("%s: cannot be written (%s)", self._failed, unmarked.strerror)
                raise
            finally:
                self._lease = None

    @property
    def _failed(self) -> Path:
        return self.path / "failed.json"

    def _check_not_failed(self) -> None:
        if self._failed.exists():
            before = json.loads(self._failed.read_text(encoding="utf-8"))
            raise PermanentError(
                f"{before['message']} (so it ended on {before['time']}; the same configuration and data are not tried "
                f"again before: ffnrepro state retry {self.key})"
            )

    def generations(self) -> list[Path]:
        """The saved files, the newest first."""
        return sorted(self.path.glob("state-*-*.pt"), reverse=True)

    def is_due(self) -> bool:
        """Whether the last save is `save_minutes` ago."""
        return time.monotonic() - self._saved_at >= 60 * self._save_minutes

    def save(self, state: dict[str, Any]) -> None:
        """Write the state: tensors and plain values, with `epoch` and `step`. A save that is cut short changes nothing.

        Raises:
            UserError: it cannot be written; what was saved before is untouched.
            Unfinished: the lease was lost.
        """
        started = time.monotonic()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        older = self.generations()
        number = 1 + (int(older[0].name.split("-")[1]) if older else 0)
        older = [file for file in older if file not in self._unreadable]  # they keep no good one from staying
        file = self.path / f"state-{number:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        try:
            if self._lease is not None and not self._lease.is_mine():
                raise Unfinished(
                    f"{self.path}: another process took over while this one stood still; nothing was written"
                )
            with replacing(file) as temporary, temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            write_json(
                self.path / "about.json",
                {**self._about, "epoch": state["epoch"], "step": state["step"], "saved": _now()},
            )
        except OSError as error:
            raise UserError(
                f"{self.path}: the state cannot be saved ({error.strerror}; {len(content) / 1e6:.0f} MB to write, "
                f"{_free(self.path)}); make room and run again: it continues from the save before"
            ) from error
        # What cannot be read is all that there is, until two that can be are there.
        unreadable = self._unreadable if len(older) >= GENERATIONS - 1 else ()
        for old in (*older[GENERATIONS - 1 :], *unreadable):
            with suppress(OSError):
                old.unlink()
        self._saved_at = time.monotonic()
        self.save_seconds = max(self.save_seconds, self._saved_at - started)

    def load(self) -> dict[str, Any] | None:
        """The newest save that is whole, on the CPU, or None where there is none.

        Raises:
            UserError: there are saves, and none can be read: it does not begin anew in their place.
        """
        state = next((state for _, state in self._saves()), None)
        if state is None and self._unreadable:
            raise UserError(
                f"{self.path}: none of its saves can be read; see to the disk or the permissions and run "
                f"again, or let it begin anew: ffnrepro state prune {self.key}"
            )
        return state

    def last_finite(self) -> str:
        """What is known of the saves once a training has gone wrong, for people: the newest that is finite throughout."""
        for file, state in self._saves():
            if _is_finite(state):
                return (
                    f"The newest save without nan or inf is {file}, after epoch {state['epoch']} and {state['step']} steps; "
                    "what went wrong may have begun before it"
                )
        return "No save is left without nan or inf in it"

    def _saves(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The saves that are whole, the newest first."""
        for file in self.generations():
            try:
                content = file.read_bytes()
            except FileNotFoundError:  # another process of this training found it damaged
                continue
            except OSError as error:
                logger.warning("%s: not readable (%s); goes back to the save before it", file, error.strerror)
                self._unreadable.add(file)
                continue
            if not file.stem.endswith(hashlib.sha256(content).hexdigest()[:16]):
                logger.warning("%s: damaged, deleted; goes back to the save before it", file)
                with suppress(OSError):
                    file.unlink()
                continue
            yield file, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    return all(_is_finite(item) for item in value) if isinstance(value, list) else True


def _now() -> str:
    return f"{datetime.now():%F %T}"


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path).free / 1e6:.0f} MB free"
    except OSError as error:
        return f"room unknown: {error.strerror}"


def _files(path: Path) -> list[os.stat_result]:
    """Of what a folder holds, though a training may be saving there."""
    files = []
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            if stat.S_ISREG((found := file.stat()).st_mode):
                files.append(found)
    return files


def list_states(root: Path) -> list[dict[str, str]]:
    """A row for each state below `root` (such as `state`): key, what it is, how far it came, size, age, lease, failure."""
    rows = []
    for path in _folders(root):
        about = _read_json(path / "about.json")
        sight = look(path / "lease.json")
        files = _files(path)
        hours = (time.time() - max((file.st_mtime for file in files), default=time.time())) / 3600
        rows.append(
            {
                "stage": path.parent.name,
                "key": path.name,
                "experiment": str(about.get("experiment", "")),
                "seed": str(about.get("seed", "")),
                "frames": _frames(about),
                "epoch": f"{about['epoch']}/{about.get('epochs', '?')}" if "epoch" in about else "",
                "megabytes": f"{sum(file.st_size for file in files) / 1e6:.1f}",
                "age": f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} d",
                "lease": "" if sight is None else ("stale: " if has_died(sight) else "") + sight.name,
                "failure": str(_read_json(path / "failed.json").get("message", "")),
            }
        )
    return rows


def _frames(about: dict[str, Any]) -> str:
    """Frame counts that a training is of, or an evaluation."""
    try:
        settings = (about.get("summary") or about["decides"])["settings"]
        return " ".join(map(str, settings.get("train_frames", [settings.get("frames", "")])))
    except (AttributeError, KeyError, TypeError):
        return ""


def retry(root: Path, key: str) -> str:
    """Take the mark of a permanent failure away, and say so.

    Raises:
        UserError: no state or several have this key.
    """
    path = _folder(root, key)
    mark = path / "failed.json"
    if not mark.exists():
        return f"{path}: has not failed for good; nothing to do"
    mark.unlink()
    return f"{path}: may be tried again"


def prune(root: Path, key: str) -> str:
    """Delete a state, with all that was computed, and say so.

    Raises:
        UserError: no state or several have this key, or a process is at work on it.
    """
    path = _folder(root, key)
    sight = look(path / "lease.json")
    if sight is not None and not has_died(sight):
        raise UserError(f"{path}: {sight.name} is at work on it, as far as is known; end it first")
    shutil.rmtree(path)
    return f"{path}: deleted"


def _folders(root: Path) -> list[Path]:
    marks = ("about.json", "failed.json", "lease.json")
    return sorted(path for path in root.glob("*/*") if any((path / mark).exists() for mark in marks))


def _folder(root: Path, key: str) -> Path:
    found = [path for path in _folders(root) if path.name.startswith(key)]
    if len(found) != 1:
        raise UserError(f"{root}: {len(found)} states have the key {key}; ffnrepro state list shows them")
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value
