"""Checks of what a training or evaluation needs from its machine; they take milliseconds."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import UserError

PREFETCHED = 2
"""Batches that each loader worker holds ready: PyTorch's default."""


def run_checks(work: str, checks: Mapping[str, Callable[[], str]]) -> list[str]:
    """Run all checks and return a line for each.

    Args:
        work: What is checked, such as `this training`.
        checks: Functions, by the name of what they check; each returns what it found.

    Raises:
        UserError: Some failed; the message holds all problems, with their fixes.
    """
    lines, problems = [], []
    for name, check in checks.items():
        try:
            lines.append(f"ok  {name}: {check()}")
        except (UserError, DecodeError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError(f"{work} would not run: {'; '.join(problems)}")
    return lines


def check_shared_memory(*, frames: int, size: int, workers: int) -> str:
    """Check shared memory, through which loader workers pass their batches; a container has 64 MB by default.

    Args:
        frames: Frames of a batch, over all of its clips.
        size: Height and width of a frame in pixels.
        workers: Number of workers.

    Raises:
        UserError: There is too little.
    """
    # uint8 RGB
    needed = frames * 3 * size**2 * PREFETCHED * workers
    shared = Path("/dev/shm")
    if not needed or not shared.exists():
        return "none needed"
    return _check_space(shared, needed, "lower runtime.workers, or give the container more (--shm-size)")


def check_disk(folder: Path, needed: float) -> str:
    """Check that a folder, or the nearest one above it that exists, can be written to.

    Args:
        folder: The folder; it may not exist yet.
        needed: Bytes that will be written.

    Raises:
        UserError: It is not writable, or has too little space.
    """
    folder = existing(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} is not writable; change its permissions, or move the folder")
    return _check_space(folder, needed, "free some space, or move the folder")


def check_folder_of_videos(folder: Path) -> str:
    """Check that the folder of videos is there.

    Raises:
        UserError: It is not.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; is its disk mounted on this machine? If it was moved, set `data.videos`"
        )
    return f"{folder} exists"


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def size_text(count: float) -> str:
    """A number of bytes in words, such as `1.2 GB`."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _check_space(folder: Path, needed: float, fix: str) -> str:
    free = shutil.disk_usage(folder).free
    text = f"{size_text(free)} free in {folder}, {size_text(needed)} needed"
    if free < needed:
        raise UserError(f"{text}; {fix}")
    return text
