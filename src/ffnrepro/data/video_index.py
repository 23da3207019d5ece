"""The index: number of frames, frame size and condition of each file in the folder of videos.

Published lists have the numbers of frames of an extraction at another rate, and the header of a ``.webm`` file has none.
So every video is decoded once, which also finds damaged files before training does. The index is made in shards.
The shard of a file depends on its name alone, so a new file changes one shard only.
"""

import contextlib
import hashlib
import json
import logging
import os
import shlex
import stat
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ffnrepro.data.decode import NO_PERMISSION, NO_SUCH_FILE, DecodeError, Verify, frame_files, is_folder
from ffnrepro.data.isolation import CRASHED, NOT_FINISHED, Outcome, Refusal, examine_in_child
from ffnrepro.data.label_formats import VIDEO_ENDINGS
from ffnrepro.errors import UserError

logger = logging.getLogger(__name__)

REVISION = 2
"""Raised by hand when the index of the same files changes, so that videos are examined again."""

Layout = Literal["videos", "frames"]
Watch = Literal["names", "stat", "none"]

NAME_NOT_UTF8 = "its name is not UTF-8"

_COLUMNS = {
    "id": "str",
    "path": "str",
    "frames": "Int64",
    "width": "Int64",
    "height": "Int64",
    "fps": "float64",
    "codec": "str",
    "duration": "float64",
    "bytes": "int64",
    "status": "str",
    "reason": "str",
    "detail": "str",
}


def list_videos(folder: Path, layout: Layout = "videos") -> list[str]:
    """List the videos of a folder without touching the files.

    Args:
        folder: The folder of videos; its subfolders are not searched.
        layout: ``videos``: each video is one file, recognised by its ending; ``frames``: each is a folder of images.

    Returns:
        Names of the files or folders, sorted.

    Raises:
        UserError: The folder does not exist or holds no video.
    """
    try:
        with os.scandir(folder) as entries:
            # Other systems leave hidden files behind, such as ._1.webm in an archive from a Mac. The listing itself says
            # whether a name is a folder: 220,847 calls of stat take minutes on a network file system.
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (
                    entry.is_dir()
                    if layout == "frames"
                    else entry.name.lower().endswith(VIDEO_ENDINGS)
                    and not entry.is_dir(follow_symlinks=False)
                )
            )
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of videos ({error.strerror}; relative paths start at {Path.cwd()}): set `data.videos`"
        ) from error
    if not names:
        kind = f"videos ({', '.join(VIDEO_ENDINGS)})" if layout == "videos" else "folders of frames"
        raise UserError(f"{folder}: holds no {kind}: {_instead(folder, layout)}")
    return names


def _instead(folder: Path, layout: Layout) -> str:
    """Say what a folder without videos holds instead, and how to fix it."""
    if layout == "frames":
        if holds_frames(folder):
            return "these are the frames of one video; set `data.videos` to the folder above"
        if _holds_videos(folder):
            return "it holds video files; set `data.layout: videos`"
    else:
        # There are never so many folders of classes; more than that are folders of frames.
        some = subfolders(folder)[:1000]
        inside = [place for place in some if _holds_videos(place)]
        if len(inside) == 1:
            return f"its folder {inside[0].name} does; set `data.videos` to {inside[0]}"
        if inside:
            return (
                f"{len(inside)} of its folders do, such as {inside[0].name}; {link_advice(inside[0], layout)}"
            )
        places = [place for some_folder in some[:3] for place in (some_folder, *subfolders(some_folder)[:1])]
        if any(holds_frames(place) for place in places):
            return "its folders hold frames; set `data.layout: frames`"
    return "unpack the videos into it, or set `data.videos` to the folder that holds them"


def _holds_videos(folder: Path) -> bool:
    try:
        return bool(list_videos(folder))
    except UserError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
            )
    except OSError:
        return []
    return [folder / name for name in names]


def link_advice(folder: Path, layout: Layout) -> str:
    """Say how to bring the videos of several folders together; `folder` is one of these folders."""
    ending = f" -name '*{Path(list_videos(folder, layout)[0]).suffix}'" if layout == "videos" else ""
    above = shlex.quote(str(folder.absolute().parent))
    # The command may be given in another folder than the one that relative paths start at (`--directory`).
    flat = shlex.quote(str(Path.cwd() / "flat"))
    return (
        f"link them into one folder, `mkdir {flat} && find {above} -mindepth 2 -maxdepth 2{ending} -exec ln -s {{}} {flat} \\;`, "
        "and set `data.videos: flat`"
    )


def holds_frames(folder: Path) -> bool:
    """Check whether a folder holds images."""
    return any(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in folder.iterdir())


def check_frames(folder: Path, names: Sequence[str]) -> None:
    """List some of the folders of frames, to find a wrong layout before the index reads all of them.

    If there is optical flow next to the frames, a warning says that it is ignored.

    Args:
        folder: The folder of videos.
        names: Names of the folders of frames in it.

    Raises:
        UserError: None of them holds usable frames.
    """
    some = names[:: max(1, len(names) // 20)]
    problems = []
    for name in some:
        try:
            used, *others = frame_files(folder / name)[1]
        except DecodeError as error:
            problems.append(str(error))
        else:
            if others:
                logger.warning(
                    "%s: the frames are %s; optical flow is left out: %s",
                    folder / name,
                    used,
                    ", ".join(others),
                )
            return
    raise UserError(
        f"{problems[0]}; {len(some)} of {len(names):,} folders in `data.videos` were tried, and none holds usable frames"
    )


def watch_digests(folder: Path, names: Sequence[str], *, shards: int, watch: Watch = "names") -> list[str]:
    """Compute a digest for each shard that changes when its videos must be indexed again.

    Args:
        folder: The folder of videos. Its path is not part of the digests, so that the videos may be moved.
        names: Its videos, from :func:`list_videos`.
        shards: Number of shards.
        watch: ``names``: the digest depends on the names of the files, and on the size of the first file of the shard;
            ``stat``: also on size and time of every file, which takes long on a network file system; ``none``: only on
            the path of the folder, not on ``names``.

    Returns:
        One digest for each shard.
    """
    if watch == "none":
        return [f"not watched: {folder}"] * shards
    parts: list[list[str]] = [[] for _ in range(shards)]
    for name in names:
        parts[_shard(name, shards)].append(name)
    digests = []
    for part in parts:
        if watch == "stat":
            stats: list[Any] = [size_and_time(folder / name) for name in part]
        else:
            # Another encoding of the data set has the same names, but its first file is unlikely to have the same size.
            stats = [size_and_time(folder / name)[0] for name in part[:1]]
        digests.append(hashlib.sha256(json.dumps([part, stats]).encode()).hexdigest())
    return digests


def shard_of(names: Iterable[str], shard: int, shards: int) -> list[str]:
    """Choose the names of one shard.

    Args:
        names: File names.
        shard: Number of the shard, from 0.
        shards: Number of shards.

    Returns:
        The names of this shard, in the order given.

    """
    return [name for name in names if _shard(name, shards) == shard]


def _shard(name: str, shards: int) -> int:
    return zlib.crc32(os.fsencode(name)) % shards


def index_videos(
    folder: Path, names: Sequence[str], *, entries: Path, verify: Verify = "decode"
) -> pd.DataFrame:
    """Examine videos and record their frames, size and condition.

    Args:
        folder: The folder of videos.
        names: Names of files, or of folders of frames, in the folder; may be empty.
        entries: File, such as ``3-of-64.jsonl``, to which each result is appended as soon as it exists. So the next call
            continues a call that was killed, and a file of the same name, size and time is not examined again, unless
            `REVISION` was raised. Files in its folder that were written with another number of shards are also read.
        verify: ``decode`` decodes each video in full; ``packets`` reads the container and decodes the first frame only,
            and finds less damage.

    Returns:
        One row for each video: ``id`` (name without its ending), ``path`` (relative to the folder), ``frames``
        (decoded), ``width``, ``height`` (pixels, as shown), ``fps``, ``codec``, ``duration`` (seconds, from the
        header), ``bytes``, ``status`` (``ok`` or ``excluded``), ``reason`` and ``detail`` (both empty when ok, and
        ``detail`` where there is none). Unknown values are missing.

    Raises:
        UserError: The child process that examines videos cannot be started.
    """
    keys = {name: (name, *size_and_time(folder / name), verify, REVISION) for name in names}
    known = _read_entries(entries, set(keys.values()))
    rows = {name: known[key] for name, key in keys.items() if key in known}
    # Parquet cannot store a name that is not UTF-8, and no label can refer to it.
    rows |= {
        name: _row(Path(printable(name)), keys[name][1], Refusal(NAME_NOT_UTF8))
        for name in names
        if printable(name) != name
    }
    new = {folder / name: name for name in names if name not in rows}
    entries.parent.mkdir(parents=True, exist_ok=True)
    with entries.open("a", encoding="utf-8") as file:
        for path, outcome in examine_in_child(new, verify=verify):
            name = new[path]
            rows[name] = _row(path, keys[name][1], outcome)
            # These reasons may no longer hold at the next call, so the file is examined again then.
            if not rows[name]["reason"].startswith((NO_SUCH_FILE, NO_PERMISSION, NOT_FINISHED, CRASHED)):
                # The line break comes first, so that it also ends a line that was cut short when the process was killed.
                file.write("\n" + json.dumps({"key": keys[name], "row": rows[name]}))
                file.flush()
    return pd.DataFrame([rows[name] for name in names], columns=list(_COLUMNS)).astype(_COLUMNS)


def printable(name: str) -> str:
    """Return a file name as valid text: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _row(path: Path, size: int, outcome: Outcome) -> dict[str, Any]:
    row = {
        "id": path.name if is_folder(path) else path.stem,
        "path": path.name,
        "bytes": size,
        "codec": "",
    }
    if isinstance(outcome, Refusal):
        return row | {"status": "excluded", **outcome._asdict()}
    header, frames = outcome
    return row | vars(header) | {"frames": frames, "status": "ok", "reason": "", "detail": ""}


def size_and_time(path: Path) -> tuple[int, int]:
    """Return size in bytes and modification time in ns; for a folder of frames, total size and latest time of its files."""
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
        with os.scandir(path) as entries:
            files = [entry.stat() for entry in entries]
    except OSError:
        # `examine` will give the reason.
        return 0, 0
    return sum(file.st_size for file in files), max(
        [status.st_mtime_ns, *(file.st_mtime_ns for file in files)]
    )


_Key = tuple[str, int, int, str, int]


def _read_entries(path: Path, keys: Collection[_Key]) -> dict[_Key, dict[str, Any]]:
    """Read the rows that earlier calls saved for these keys."""
    shards = path.name.partition("-of-")[2]
    files = [
        file
        for file in path.parent.glob("*.jsonl")
        if file == path or not file.name.endswith(f"-of-{shards}")
    ]
    rows: dict[_Key, dict[str, Any]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            # A line that was cut short is not valid JSON; its video is examined again.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if (key := tuple(entry["key"])) in keys:
                    rows[key] = entry["row"]
    return rows
