"""Unpack the downloaded parts of an archive into a folder of videos, in one pass and without a joined copy.

The parts are the pieces of one `.tar.gz`, numbered from 00, each possibly in its own zip. They are read in sequence as
one stream. Files that exist already are skipped, so an interrupted command can be repeated. It still reads the stream from
the start, because a gzip stream cannot be read from anywhere else.
"""

import gzip
import io
import re
import shutil
import tarfile
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from ffnrepro.errors import UserError
from ffnrepro.files import replacing

SOMETHING_SOMETHING_V2 = 220_847
"""Number of videos of Something-Something V2."""

_PART = re.compile(r"(?P<stem>[^.].*?)-(?P<number>\d{2,3})(?:\.zip)?", re.IGNORECASE)
_CHUNK = 1 << 20


def unpack(folder: Path, into: Path, *, expect: int = SOMETHING_SOMETHING_V2) -> str:
    """Join the parts of an archive and unpack its files.

    Args:
        folder: Folder that holds the parts, ``20bn-something-something-v2-00`` and so on, or a zip of each.
        into: Folder in which the archive's own folder is created.
        expect: Number of files that the archive must hold.

    Returns:
        One line: how many files there are, where, and how many were written.

    Raises:
        UserError: A part is missing or damaged, the archive holds anything but plain files inside its folder or another
            number of files, or a file cannot be written.
    """
    inside = into.resolve()
    files: set[Path] = set()
    written = 0
    try:
        parts = _find_parts(folder)
        with (
            tqdm(total=expect, desc="unpacking", disable=None) as bar,
            closing(_Joined(parts)) as joined,
            # GzipFile checks that the stream is complete, and its check sum; tarfile's own mode "r|gz" checks neither.
            gzip.GzipFile(fileobj=joined, mode="rb") as stream,  # type: ignore[call-overload]
            tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive,
        ):
            while (member := archive.next()) is not None:
                # Without this line tarfile keeps all members in memory.
                archive.members = []  # type: ignore[attr-defined]
                if member.isdir():
                    continue
                target = into / member.name
                if not (member.isfile() and target.resolve().is_relative_to(inside)):
                    raise UserError(
                        f"{parts[0]}: refused, because {member.name!r} is not a plain file inside its folder: download the "
                        "archive from its publisher"
                    )
                content = cast(IO[bytes], archive.extractfile(member))
                files.add(target)
                bar.update()
                if not (target.is_file() and target.stat().st_size == member.size):
                    with replacing(target) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(content, file, _CHUNK)
                    written += 1
            while stream.read(_CHUNK):
                pass
    except (
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        tarfile.TarError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{parts[joined.number]}: the archive cannot be read any further in this part ({error}): this part or an earlier one is "
            "incomplete or damaged (all but the last have the same size), or later parts are missing: download "
            f"them again, delete the unpacked files in {into}, and repeat the command"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or into}: {error.strerror or error}: fix this (no such folder? disk full? quota?), then repeat "
            "the command: unpacked files are kept"
        ) from error
    if len(files) != expect:
        raise UserError(
            f"{folder}: {len(files):,} files were unpacked instead of {expect:,}: check that these are the parts of this "
            f"data set, the last of which is {parts[-1].name}; for another data set use --expect {len(files)}"
        )
    folders = ", ".join(sorted({str(file.parent) for file in files}))
    return f"{expect:,} files in {folders} ({written:,} written, {expect - written:,} already there)"


def _find_parts(folder: Path) -> list[Path]:
    """Find the parts, in order, and check that their numbers have no gap.

    Other files, such as `scan-2024-11`, are ignored.
    """
    # The zip of a part sorts behind the part itself and replaces it, because a zip has a check sum.
    matches = [
        match for path in sorted(folder.iterdir()) if path.is_file() and (match := _PART.fullmatch(path.name))
    ]
    stems = {match["stem"] for match in matches if int(match["number"]) == 0}
    if len(stems) != 1:
        raise UserError(
            f"{folder}: holds the first part of {' and of '.join(sorted(stems)) or 'no archive'}: give a folder with the "
            "parts of one archive: 20bn-something-something-v2-00 (or its zip) and so on"
        )
    parts = {int(match["number"]): folder / match[0] for match in matches if match["stem"] in stems}
    missing = ", ".join(f"-{number:02d}" for number in range(max(parts)) if number not in parts)
    if missing:
        raise UserError(f"{folder}: parts {missing} are missing among the {len(parts)} parts: download them")
    return [parts[number] for number in sorted(parts)]


class _Joined:
    """The parts as one stream of bytes; ``number`` is the number of the part that is being read."""

    def __init__(self, parts: list[Path]) -> None:
        self._parts = parts
        self._file: IO[bytes] = io.BytesIO()
        self.number = -1

    def read(self, size: int) -> bytes:
        while not (chunk := self._file.read(size)) and self.number + 1 < len(self._parts):
            self.close()
            self.number += 1
            self._file = _open(self._parts[self.number])
        return chunk

    def close(self) -> None:
        self._file.close()


def _open(path: Path) -> IO[bytes]:
    """Open a part, or the only file of a zip.

    The content, not the name, shows whether the file is a zip, because some downloads save a part under the name of a zip,
    or a zip under the name of a part.
    """
    file = path.open("rb")
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return file
    file.close()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX/" not in name]
        if len(names) != 1:
            raise zipfile.BadZipFile(f"a zip of {len(names)} files instead of one part")
        # The zip itself is closed with its file.
        return archive.open(names[0])
