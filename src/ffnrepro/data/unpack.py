"""From the downloaded parts of an archive to a folder of videos, in one pass and without a joined copy.

The parts are the pieces of one `.tar.gz`, numbered from 00, each perhaps in a zip of its own. They are read one
after the other as one stream. What is there already is passed over, so a call that was interrupted is called
again; the stream has to be read from its start all the same, as gzip can be entered nowhere else.
"""

import gzip
import io
import logging
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

SOMETHING_SOMETHING_V2 = 220_847
"""Videos of Something-Something V2."""

_PART = re.compile(r"(?P<stem>[^.].*?)-(?P<number>\d{2,3})(?:\.zip)?", re.IGNORECASE)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Part:
    """A piece of the archive; ``member`` is its name in the zip that holds it."""

    path: Path
    member: str | None
    size: int


def unpack(folder: Path, into: Path, *, expect: int = SOMETHING_SOMETHING_V2, progress: bool = False) -> str:
    """Join the parts of an archive and unpack its files.

    Args:
        folder: Holds the parts, ``20bn-something-something-v2-00`` and so on, or a zip of each.
        into: Where the archive's own folder is made.
        expect: How many files must come out.
        progress: Whether to draw a progress bar.

    Returns:
        A line that says what was done.

    Raises:
        UserError: A part is missing or damaged, the archive holds what it should not, or another number of files.
    """
    parts = _find_parts(folder)
    files: set[PurePosixPath] = set()
    written, current = 0, -1
    suspects: list[Path] = []  # files of the part that is being read: damage shows at its end only
    with (
        tqdm(
            total=sum(part.size for part in parts),
            unit="B",
            unit_scale=True,
            desc="unpacking",
            disable=not progress,
        ) as bar,
        _JoinedParts(parts, bar) as joined,
    ):
        try:
            # gzip checks the sum at the end, and that there is an end; tarfile's own "r|gz" does neither.
            with (
                gzip.GzipFile(fileobj=io.BufferedReader(joined, _CHUNK)) as stream,
                tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive,
            ):
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    if member.isdir():
                        continue
                    name = _safe_name(member, into)
                    content = archive.extractfile(member) if name else None
                    if name is None or content is None:
                        raise UserError(
                            f"{parts[0].path}: holds {member.name!r}, which is not a plain file inside its folder: "
                            "refused; this is no archive of videos: download it from its publisher"
                        )
                    files.add(name)
                    is_new = _write(content, into / name, member.size)
                    written += is_new
                    if joined.current != current:  # the file may end in the new part
                        current, suspects = joined.current, []
                    if is_new:
                        suspects.append(into / name)
                while stream.read(_CHUNK):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError) as error:
            if not isinstance(error, EOFError):
                for path in suspects:
                    path.unlink(missing_ok=True)
            raise _damaged(parts, joined.current, into, error) from error
        except OSError as error:
            raise UserError(
                f"{error.filename or into}: {error.strerror or error}: mend this (disk full? quota?), then call "
                "this again: what is unpacked stays"
            ) from error
    if len(files) != expect:
        raise UserError(_wrong_number(folder, parts, len(files), expect))
    folders = sorted({str(into / name.parent) for name in files})
    return (
        f"{len(files):,} files in {folders[0]}{f' and {len(folders) - 1} more folders' if folders[1:] else ''} "
        f"({written:,} written, {len(files) - written:,} were there)"
    )


def _find_parts(folder: Path) -> list[_Part]:
    """Find the parts, in order, and check that their numbers have no gap."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder ({error.strerror}): name the folder of the downloads"
        ) from error
    found: dict[str, dict[int, Path]] = {}
    for name in names:  # a zip sorts behind the part itself and is taken: it has a check sum
        if match := _PART.fullmatch(name):
            found.setdefault(match["stem"], {})[int(match["number"])] = folder / name
    # One file that ends in some other number than 00, such as scan-2024-11, is no archive.
    found = {stem: numbered for stem, numbered in found.items() if 0 in numbered or len(numbered) > 1}
    if not found:
        raise UserError(
            f"{folder}: holds no parts of an archive{_strays(folder, '')}: download 20bn-something-something-v2-00 "
            "(or its zip) and the others into it"
        )
    if len(found) > 1:
        raise UserError(
            f"{folder}: holds parts of several archives, {' and '.join(sorted(found))}: put each in a folder of its own"
        )
    ((stem, numbered),) = found.items()
    missing = [f"{stem}-{number:02d}" for number in range(max(numbered)) if number not in numbered]
    if missing:
        raise UserError(
            f"{folder}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing between the "
            f"{len(numbered)} parts{_strays(folder, stem)}: download what is missing"
        )
    parts = [_part(path) for _, path in sorted(numbered.items())]
    with _opened(parts[0]) as first:
        start = first.read(3)
    if start[:2] != b"\x1f\x8b":
        raise UserError(
            f"{parts[0].path}: does not start as a gzip archive does, but with {start!r}: download this part again"
        )
    return parts


def _strays(folder: Path, stem: str) -> str:
    """Name what looks like a part but for its name: a browser's second copy (`-02 (1)`), or what it has not finished."""
    looks = re.compile(re.escape(stem) + r".*-\d{2,3}(?!\d).*", re.IGNORECASE)
    strays = [path.name for path in sorted(folder.iterdir()) if looks.fullmatch(path.name)]
    strays = [name for name in strays if not _PART.fullmatch(name) or not (folder / name).is_file()]
    if not strays:
        return ""
    return f" ({', '.join(map(repr, strays))}: not finished? If it is a whole part, give it the name of one)"


def _part(path: Path) -> _Part:
    """Look into a zip: the part is the one file in it.

    The content tells it, as many a part that is no zip was saved under the name of one, and the reverse.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if not is_zip:
        return _Part(path, None, path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                entry
                for entry in archive.infolist()
                if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")
            ]
            if len(members) != 1:
                raise UserError(
                    f"{path}: holds {len(members)} files where one part is expected: unzip it by hand into this "
                    "folder, move it away, and call this again"
                )
            archive.open(members[0].filename).close()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is not a complete zip ({error}): download this part again") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression of others' programs; a password
        raise UserError(
            f"{path}: cannot be unzipped here ({error}): unzip it by hand, move the zip away, and call this again"
        ) from error
    return _Part(path, members[0].filename, members[0].file_size)


@contextmanager
def _opened(part: _Part) -> Iterator[IO[bytes]]:
    if part.member is None:
        with part.path.open("rb") as file:
            yield file
    else:
        with zipfile.ZipFile(part.path) as archive, archive.open(part.member) as content:
            yield content


class _JoinedParts(io.RawIOBase):
    """The parts as one stream of bytes; ``current`` is the number of the part that is being read."""

    def __init__(self, parts: Sequence[_Part], bar: "tqdm[Any]") -> None:
        self._parts = parts
        self._bar = bar
        self._resources = ExitStack()
        self._file: IO[bytes] | None = None
        self.current = -1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            chunk = self._file.read(len(buffer)) if self._file else b""
            if chunk:
                buffer[: len(chunk)] = chunk
                self._bar.update(len(chunk))
                return len(chunk)
            if self.current + 1 == len(self._parts):
                return 0
            self._resources.close()
            self.current += 1
            self._file = self._resources.enter_context(_opened(self._parts[self.current]))

    def close(self) -> None:
        self._resources.close()
        super().close()


def _safe_name(member: tarfile.TarInfo, into: Path) -> PurePosixPath | None:
    """Give the place of a plain file below ``into``; None for anything else, links among it."""
    name = PurePosixPath(member.name)
    inside = not name.is_absolute() and ".." not in name.parts and "\\" not in member.name
    return name if member.isreg() and inside and _stays_inside((into / name).parent, into) else None


@cache
def _stays_inside(folder: Path, into: Path) -> bool:
    """Tell whether no link that stands there already leads out."""
    return folder.resolve().is_relative_to(into.resolve())


def _write(content: IO[bytes], target: Path, size: int) -> bool:
    """Write a file unless it is there in full size; it appears whole."""
    try:
        if target.stat().st_size == size:
            return False
    except OSError:
        target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")  # always the same: nothing is left behind
    try:
        with unfinished.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _damaged(parts: list[_Part], current: int, into: Path, error: Exception) -> UserError:
    """Name the part at fault: one that is shorter than others, or else the one that was being read."""
    again = "download it again, then call this again: what is unpacked stays"
    full = max(part.size for part in parts)
    short = [part for part in parts[:-1] if part.size < full]  # all but the last have one size
    if short:
        return UserError(
            f"{short[0].path}: is incomplete: it has {short[0].size:,} bytes, other parts {full:,}: {again}"
        )
    part = parts[max(current, 0)]
    if isinstance(error, EOFError):
        stem = part.path.name.removesuffix(".zip").rpartition("-")[0]
        return UserError(
            f"{part.path}: the archive ends too early: this last part is incomplete ({part.size:,} bytes), "
            f"or parts after it are missing{_strays(part.path.parent, stem)}: {again}"
        )
    if isinstance(error, gzip.BadGzipFile) and "CRC" in str(error):
        return UserError(
            f"{part.path.parent}: the check sum of the whole archive is wrong: one of the {len(parts)} parts is "
            f"damaged, and videos with it: download them again, delete what is unpacked in {into}, and repeat"
        )
    return UserError(f"{part.path}: is damaged, or the part before it is incomplete ({error}): {again}")


def _wrong_number(folder: Path, parts: list[_Part], found: int, expected: int) -> str:
    if found < expected:
        mend = f"see that all parts are there, the last of which is {parts[-1].path.name}"
    else:
        mend = "see that they are of this data set"
    return f"{folder}: {found:,} files came out where {expected:,} are expected: {mend}; for another set: --expect {found}"
