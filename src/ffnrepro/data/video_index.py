"""What is in the folder of videos: every file decoded once, and its frames counted.

The published lists count the frames of an extraction at another rate, and headers of ``.webm`` files hold no
count: so the frames are decoded, and damaged files are found before training. The index is made in shards; a
file belongs to a shard by its name alone, so a new file changes one shard only.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ffnrepro.data.decode import DecodeError, examine
from ffnrepro.errors import UserError

ENDINGS = (".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v")

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


def list_videos(folder: Path) -> list[str]:
    """List the videos of a folder by their endings, without touching the files.

    Args:
        folder: The folder of videos; its subfolders are not searched.

    Returns:
        File names, sorted.

    Raises:
        UserError: The folder does not exist, or holds no video.
    """
    try:
        names = sorted(_video_names(folder))
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of videos ({error.strerror}): set `data.videos`"
        ) from error
    if not names:
        raise UserError(
            f"{folder}: holds no videos ({', '.join(ENDINGS)}){_where_instead(folder)}: unpack the "
            "videos into it, or name their folder in `data.videos`"
        )
    return names


def _video_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        # Hidden files are what other systems leave behind (._1.webm of a Mac's archive). A folder is told
        # without a look at the file itself: 220,847 such looks take minutes on a network file system.
        return [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(ENDINGS)
            and not entry.name.startswith(".")
            and not entry.is_dir(follow_symlinks=False)
        ]


def _where_instead(folder: Path) -> str:
    """Name the subfolder that has them: an archive brings its own folder."""
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        if _video_names(below):
            return f", but {below} does"
    return ""


def listing_digest(names: Iterable[str]) -> str:
    """Digest a listing: it changes when a file is added, removed or renamed, and with nothing else.

    Args:
        names: File names in any order.

    Returns:
        SHA-256 in hexadecimal.
    """
    return hashlib.sha256(b"\0".join(sorted(map(os.fsencode, names)))).hexdigest()


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
    return [name for name in names if zlib.crc32(os.fsencode(name)) % shards == shard]


def index_videos(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """Decode videos in full and record what they are.

    Args:
        folder: The folder of videos.
        names: File names in it, in any number (also none).

    Returns:
        One row a video: ``id`` (file name without its ending), ``path`` (relative to the folder), ``frames``
        (decoded), ``width``, ``height`` (pixels), ``fps``, ``codec``, ``duration`` (seconds in the header;
        missing where it has none), ``bytes``, ``status`` (``ok`` or ``excluded``) and ``reason`` (empty when
        ok). What a file does not tell is missing.
    """
    rows = [_index_video(folder, name) for name in names]
    return pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)


def _index_video(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # examine() gives the reason
    row = {"id": Path(name).stem, "path": Path(name).as_posix(), "bytes": size, "codec": ""}
    try:
        header, frames = examine(path)
    except DecodeError as error:
        return row | {"status": "excluded", "reason": error.reason}
    return row | {
        "frames": frames,
        "width": header.width,
        "height": header.height,
        "fps": header.fps,
        "codec": header.codec,
        "duration": header.duration,
        "status": "ok",
        "reason": "",
    }
