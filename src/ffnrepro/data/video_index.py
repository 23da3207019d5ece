"""What is in the folder of videos: every file decoded once, and its frames counted.

The published lists count the frames of an extraction at another rate, and headers of ``.webm`` files hold no
count: so the frames are decoded, and damaged files are found before training. The index is made in shards; a
file belongs to a shard by its name alone, so a new file changes one shard only.
"""

import contextlib
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ffnrepro.code_digest import code_digests
from ffnrepro.data import isolation
from ffnrepro.data.decode import NO_PERMISSION, NO_SUCH_FILE, Verify, is_folder
from ffnrepro.data.isolation import CRASHED, NOT_FINISHED, Outcome, examine_apart
from ffnrepro.decides import key_of
from ffnrepro.errors import UserError

Layout = Literal["videos", "frames"]
Watch = Literal["names", "stat", "none"]

NAME_IS_NO_TEXT = "its name is not UTF-8"

ENDINGS = (
    ".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp",
)  # fmt: skip

_TYPES = {
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
}


def list_videos(folder: Path, layout: Layout = "videos") -> list[str]:
    """List the videos of a folder, without touching the files.

    Args:
        folder: The folder of videos; its subfolders are not searched.
        layout: ``videos``: one file each, told by its ending; ``frames``: one folder of JPEG frames each.

    Returns:
        Names of the files or folders, sorted.

    Raises:
        UserError: The folder does not exist, or holds no video.
    """
    try:
        names = sorted(_video_names(folder, layout))
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of videos ({error.strerror}): set `data.videos`"
        ) from error
    if not names:
        what = f"videos ({', '.join(ENDINGS)})" if layout == "videos" else "folders of frames"
        raise UserError(
            f"{folder}: holds no {what}{_where_instead(folder, layout)}: unpack the "
            "videos into it, or name their folder in `data.videos`"
        )
    return names


def _video_names(folder: Path, layout: Layout) -> list[str]:
    with os.scandir(folder) as entries:
        # Hidden files are what other systems leave behind (._1.webm of a Mac's archive). A folder is told
        # without a look at the file itself: 220,847 such looks take minutes on a network file system.
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        if layout == "frames":
            return [entry.name for entry in visible if entry.is_dir()]
        return [
            entry.name
            for entry in visible
            if entry.name.lower().endswith(ENDINGS) and not entry.is_dir(follow_symlinks=False)
        ]


def _where_instead(folder: Path, layout: Layout) -> str:
    """Name the subfolder that has them (an archive brings its own folder), or the layout that fits."""
    if layout == "frames":
        return " but video files: set `data.layout: videos`" if _video_names(folder, "videos") else ""
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        with contextlib.suppress(OSError):  # of another user
            if _video_names(below, "videos"):
                return f", but {below} does"
            if holds_frames(below):
                return " but folders of frames: set `data.layout: frames`"
    return ""


def holds_frames(folder: Path) -> bool:
    """Tell whether there are JPEG files in a folder."""
    return any(path.suffix.lower() in (".jpg", ".jpeg") for path in folder.iterdir())


def listing_digest(names: Iterable[str]) -> str:
    """Digest a listing: it changes when a file is added, removed or renamed, and with nothing else.

    Args:
        names: File names in any order.

    Returns:
        SHA-256 in hexadecimal.
    """
    return hashlib.sha256(b"\0".join(sorted(map(os.fsencode, names)))).hexdigest()


def watch_digests(
    folder: Path, *, shards: int, layout: Layout = "videos", watch: Watch = "names"
) -> list[str]:
    """Digest, shard by shard, what a change of the videos is told by.

    Args:
        folder: The folder of videos.
        shards: Number of shards.
        layout: As in :func:`list_videos`.
        watch: ``names``: files added, removed or renamed; ``stat``: size and time of each file too, which is
            slow on a network file system; ``none``: nothing, the folder is not even listed.

    Returns:
        A digest for each shard.

    Raises:
        UserError: The folder does not exist, or holds no video.
    """
    parts: list[list[str]] = [[] for _ in range(shards)]
    if watch != "none":
        for name in list_videos(folder, layout):
            parts[_shard(name, shards)].append(name)
    return [watch_digest(folder, part, watch) for part in parts]


def watch_digest(folder: Path, names: Iterable[str], watch: Watch = "names") -> str:
    """Digest what a change of these videos is told by, as :func:`watch_digests` does for each shard.

    Args:
        folder: The folder of videos.
        names: Names in it.
        watch: As in :func:`watch_digests`.
    """
    if watch == "none":
        return "not watched"
    if watch == "stat":
        names = ["\0".join(map(str, (name, *_stat(folder / name)))) for name in names]
    return listing_digest(names)


def shard_of(names: Iterable[str], shard: int, shards: int) -> list[str]:
    """Choose the names of one shard, by a hash of each name alone.

    Args:
        names: File names.
        shard: Number of the shard, from 0.
        shards: Number of shards.

    Returns:
        The names of this shard, in the order given.

    Raises:
        ValueError: There is no such shard.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"no shard {shard} among {shards}: shards are numbered from 0")
    return [name for name in names if _shard(name, shards) == shard]


def _shard(name: str, shards: int) -> int:
    return zlib.crc32(os.fsencode(name)) % shards


def index_videos(
    folder: Path,
    names: Sequence[str],
    *,
    verify: Verify = "decode",
    entries: Path | None = None,
    workers: int = 1,
    seconds: float = 30,
) -> pd.DataFrame:
    """Examine videos and record what they are.

    Args:
        folder: The folder of videos.
        names: Names in it, of files or of folders of frames, in any number (also none).
        verify: ``decode`` decodes each in full; ``packets`` reads the container and decodes the first frame, and finds less damage.
        entries: File, such as ``3-of-64.jsonl``, that keeps what was found, a line a video, as soon as it is
            found: a call that is killed is continued by the next one, and a file of the same name, size and time
            is not examined again, unless the code that examines has changed. Where it does not exist yet, files of other divisions beside it are read.
        workers: Child processes that decode side by side.
        seconds: Time that a file may take.

    Returns:
        One row a video: ``id`` (name without its ending), ``path`` (relative to the folder), ``frames``
        (decoded), ``width``, ``height`` (pixels, as shown), ``fps``, ``codec``, ``duration`` (seconds in the
        header; missing where it has none), ``bytes``, ``status`` (``ok`` or ``excluded``) and ``reason`` (empty
        when ok). What a file does not tell is missing.
    """
    # Other code may find something else in a file.
    code = key_of(code_digests(Path(isolation.__file__)))
    keys = {name: (name, *_stat(folder / name), verify, code) for name in names}
    kept = _read_entries(entries, set(keys.values()))
    rows = {name: kept[key] for name, key in keys.items() if key in kept}
    # No table can hold such a name, nor any label name it.
    rows |= {
        name: _row(Path(printable(name)), keys[name][1], NAME_IS_NO_TEXT)
        for name in names
        if printable(name) != name
    }
    new = {folder / name: name for name in names if name not in rows}
    with _appending(entries if new else None) as append:
        for path, outcome in examine_apart(new, verify=verify, workers=workers, seconds=seconds):
            name = new[path]
            rows[name] = _row(path, keys[name][1], outcome)
            # What may be otherwise at the next try is tried again then.
            if not rows[name]["reason"].startswith((NO_SUCH_FILE, NO_PERMISSION, NOT_FINISHED, CRASHED)):
                append({"key": keys[name], "row": rows[name]})
    return pd.DataFrame([rows[name] for name in names], columns=list(_TYPES)).astype(_TYPES)


def printable(name: str) -> str:
    """Give a file's name as text: of one in another encoding than UTF-8, with marks for what cannot be read."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _row(path: Path, size: int, outcome: Outcome) -> dict[str, Any]:
    row = {
        "id": path.name if is_folder(path) else path.stem,
        "path": path.name,
        "bytes": size,
        "codec": "",
    }
    if isinstance(outcome, str):
        return row | {"status": "excluded", "reason": outcome}
    header, frames = outcome
    return row | vars(header) | {"frames": frames, "status": "ok", "reason": ""}


def _stat(path: Path) -> tuple[int, int]:
    """Bytes, and time of the last change in ns; of a folder of frames all its files together, and the latest."""
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
        with os.scandir(path) as entries:
            inside = [entry.stat() for entry in entries]
    except OSError:
        return 0, 0  # the examination gives the reason
    return sum(s.st_size for s in inside), max([status.st_mtime_ns, *(s.st_mtime_ns for s in inside)])


_Key = tuple[str, int, int, str, str]


def _read_entries(path: Path | None, wanted: Collection[_Key]) -> dict[_Key, dict[str, Any]]:
    if path is None:
        return {}
    division = path.name.partition("-of-")[2]
    others = [file for file in path.parent.glob("*.jsonl") if file.name.partition("-of-")[2] != division]
    kept: dict[_Key, dict[str, Any]] = {}
    for file in [path] if path.exists() else others:
        for line in file.read_text(encoding="utf-8").splitlines():
            # A line that a kill cut short is no JSON: its video is examined again.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if (key := tuple(entry["key"])) in wanted:
                    kept[key] = entry["row"]
    return kept


@contextlib.contextmanager
def _appending(path: Path | None) -> Iterator[Callable[[object], None]]:
    """Give a function that appends a line of JSON, which is in the file before the function returns."""
    if path is None:
        yield lambda _entry: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # ends a line that was cut short; an empty line is skipped

        def append(entry: object) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield append
