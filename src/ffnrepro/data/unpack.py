"""Unpack the downloaded parts of an archive into a folder of videos, in one pass and without a joined copy.

The parts are the pieces of one `.tar.gz`, numbered from 00, each perhaps in a zip of its own. They are read one after the
other as one stream. Files that exist already are skipped, so an interrupted call can be repeated. The stream is still
read from its start, because gzip cannot be entered anywhere else.
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
    """A part of the archive; ``member`` is its name in the zip that holds it, or None."""

    path: Path
    member: str | None
    size: int


def unpack(folder: Path, into: Path, *, expect: int = SOMETHING_SOMETHING_V2, progress: bool = False) -> str:
    """Join the parts of an archive and unpack its files.

    Args:
        folder: Holds the parts, ``20bn-something-something-v2-00`` and so on, or a zip of each.
        into: Where the folder in the archive is created.
        expect: Number of files that the archive must hold.
        progress: Whether to show a progress bar.

    Returns:
        One line: how many files there are, where, and how many were written.

    Raises:
        UserError: A part is missing or damaged, the archive holds something else than plain files inside its folder or
            another number of files, or a file cannot be written.
    """
    parts = _find_parts(folder)
    files: set[PurePosixPath] = set()
    written, current = 0, -1
    # Files written from the current part: damage of a part is only noticed at its end, and its files are then deleted.
    suspects: list[Path] = []
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
            # GzipFile checks the sum at the end, and that there is an end; tarfile's own mode "r|gz" checks neither.
            with (
                gzip.GzipFile(fileobj=io.BufferedReader(joined, _CHUNK)) as stream,
                tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive,
            ):
                while (member := archive.next()) is not None:
                    # Otherwise tarfile keeps all members in memory.
                    archive.members = []  # type: ignore[attr-defined]
                    if member.isdir():
                        continue
                    name = _safe_name(member, into)
                    content = archive.extractfile(member) if name else None
                    if name is None or content is None:
                        raise UserError(
                            f"{parts[0].path}: refused, because it holds {member.name!r}, which is not a plain file inside "
                            "its folder: download the archive from its publisher"
                        )
                    files.add(name)
                    is_new = _write(content, into / name, member.size)
                    written += is_new
                    # A file that ends in a new part counts as one of the new part.
                    if joined.current != current:
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
                f"{error.filename or into}: {error.strerror or error}: fix this (disk full? quota?), then repeat "
                "the command: what is unpacked stays"
            ) from error
    if len(files) != expect:
        raise UserError(_wrong_number(folder, parts, len(files), expect))
    folders = sorted({str(into / name.parent) for name in files})
    return (
        f"{len(files):,} files in {folders[0]}{f' and {len(folders) - 1} more folders' if folders[1:] else ''} "
        f"({written:,} written, {len(files) - written:,} already there)"
    )


def _find_parts(folder: Path) -> list[_Part]:
    """Find the parts, in order, and check that their numbers have no gap."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder ({error.strerror}): give the folder of the downloads"
        ) from error
    found: dict[str, dict[int, Path]] = {}
    for name in names:
        # The zip of a part sorts behind the part itself and replaces it, because a zip has a check sum.
        if match := _PART.fullmatch(name):
            found.setdefault(match["stem"], {})[int(match["number"])] = folder / name
    # A single file that ends in another number than 00, such as scan-2024-11, is no part of an archive.
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
            f"{folder}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing among the "
            f"{len(numbered)} parts{_strays(folder, stem)}: download the missing parts"
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
    """Name the files that may be parts under wrong names: a second copy (`-02 (1)`), or an unfinished download."""
    pattern = re.compile(re.escape(stem) + r".*-\d{2,3}(?!\d).*", re.IGNORECASE)
    strays = [path.name for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name)]
    strays = [name for name in strays if not _PART.fullmatch(name) or not (folder / name).is_file()]
    if not strays:
        return ""
    return f" ({', '.join(map(repr, strays))}: not finished? If it is a whole part, rename it to a part)"


def _part(path: Path) -> _Part:
    """Describe the part in a file, which may be a zip with the part as its only file.

    The content decides whether it is a zip, because parts are saved under the name of a zip, and zips under that of a part.

    Raises:
        UserError: The zip is damaged, holds another number of files, or cannot be read here.
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
                    "folder, move the zip away, and repeat the command"
                )
            archive.open(members[0].filename).close()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is not a complete zip ({error}): download this part again") from error
    # An unknown compression, or a password.
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be unzipped here ({error}): unzip it by hand, move the zip away, and repeat the command"
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
    """Return the path of a plain file below ``into``; None for anything else, such as a link."""
    name = PurePosixPath(member.name)
    inside = not name.is_absolute() and ".." not in name.parts and "\\" not in member.name
    return name if member.isreg() and inside and _stays_inside((into / name).parent, into) else None


@cache
def _stays_inside(folder: Path, into: Path) -> bool:
    """Check that a folder lies inside ``into`` even if a link already stands in its path."""
    return folder.resolve().is_relative_to(into.resolve())


def _write(content: IO[bytes], target: Path, size: int) -> bool:
    """Write a file, whole or not at all, unless it exists in full size; return whether it was written."""
    try:
        if target.stat().st_size == size:
            return False
    except OSError:
        target.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that what a kill leaves behind is overwritten by the next call.
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _damaged(parts: list[_Part], current: int, into: Path, error: Exception) -> UserError:
    """Name the damaged part: one that is shorter than the others, or else the one that was being read."""
    again = "download it again, then repeat the command: what is unpacked stays"
    full = max(part.size for part in parts)
    # All parts but the last have the same size.
    short = [part for part in parts[:-1] if part.size < full]
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
            f"damaged, and videos with it: download them again, delete what is unpacked in {into}, and repeat the command"
        )
    return UserError(f"{part.path}: is damaged, or the part before it is incomplete ({error}): {again}")


def _wrong_number(folder: Path, parts: list[_Part], found: int, expected: int) -> str:
    if found < expected:
        fix = f"check that all parts are there, the last of which is {parts[-1].path.name}"
    else:
        fix = "check that the parts are those of this data set"
    return f"{folder}: {found:,} files were unpacked instead of {expected:,}: {fix}; for another data set use --expect {found}"
