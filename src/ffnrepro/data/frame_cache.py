"""The frame cache: the frames of each usable video as JPEG, in one file per split and shard of the index.

To decode some frames of a video, all frames before them have to be decoded as well. JPEGs are decoded independently, so a
clip of 16 frames takes about 0.3 of the time, and one of 4 frames about 0.1 (benchmarks/RESULTS.md).

A shard is an Arrow IPC file with a record batch of one row for each video. It is read from a memory map, and only the
requested frames are read from the disk. Each frame has a CRC-32, which is checked whenever the frame is
read. A shard is written under a temporary name, and renamed once it is complete; an incomplete Arrow file cannot be opened.
So the remains of a killed job cannot be mistaken for a shard.
"""

import hashlib
import json
import logging
import mmap
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from ffnrepro.data.decode import DecodeError, VideoReader, open_video
from ffnrepro.data.isolation import Refusal, in_child
from ffnrepro.data.video_index import size_and_time
from ffnrepro.errors import UserError
from ffnrepro.files import read_record, replacing
from ffnrepro.recipe import REVISION as RECIPE_REVISION

logger = logging.getLogger(__name__)

REVISION = 1
"""Raised by hand when the same videos would give other frames, so that they are encoded again."""

Cache = Literal["none", "jpeg"]

# This needs a snakemake command of its own, because the same command would also rerun all trainings and evaluations, whereas
# the next one compares the content of the records. Snakemake does not see the shards; the jobs of intact ones take a second.
_MAKE_AGAIN = (
    "make it again, with your --directory and --configfile: snakemake --cores 1 --until cache_frames --forcerun cache_frames; "
    "then run snakemake again"
)

SAMPLE = 16
"""Videos after which a job estimates the size of the whole cache."""

_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "frames": pa.int64(),
        "bytes": pa.int64(),
        "time": pa.int64(),
        "checksums": pa.list_(pa.uint32()),
        "jpegs": pa.list_(pa.binary()),
    }
)
_NO_JPEGS = pa.ipc.IpcReadOptions(included_fields=list(range(len(_SCHEMA) - 1)), use_threads=False)


class _Video(NamedTuple):
    """A video: name, number of frames, and size in bytes and modification time in ns of its file."""

    path: str
    frames: int
    bytes: int
    time: int


class _Shard:
    """An open shard. Frames are read from the memory map only when they are requested.

    Raises:
        OSError: There is no such file.
        pa.ArrowInvalid: The file is not complete.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        # Without this, the system reads ahead after each frame, so 4 frames would read the whole video.
        self._map.madvise(mmap.MADV_RANDOM)
        buffer = pa.py_buffer(self._map)
        self._start: int = buffer.address
        self._reader = pa.ipc.open_file(buffer, options=pa.ipc.IpcReadOptions(use_threads=False))
        self.made_with: str = (self._reader.schema.metadata or {}).get(b"made_with", b"").decode()

    def videos(self) -> Iterator[tuple[_Video, list[int]]]:
        """Each video, in order, with the checksums of its frames."""
        rows = pa.ipc.open_file(pa.py_buffer(self._map), options=_NO_JPEGS).read_all().to_pylist()
        for row in rows:
            checksums = row.pop("checksums")
            yield _Video(**row), checksums

    def jpegs(self, row: int, positions: Iterable[int], path: str) -> list[memoryview]:
        """The frames of the video in a row of the file.

        Raises:
            ValueError: The row holds another video, or a frame is damaged or does not exist.
        """
        batch = self._reader.get_batch(row)
        # With damaged offsets, Arrow would read outside its buffer.
        batch.validate()
        if batch.column(0)[0].as_py() != path:
            raise ValueError("it holds another video")
        checksums = np.asarray(batch.column(4).flatten())
        values = batch.column(5).flatten()
        ends, data = np.frombuffer(values.buffers()[1], np.int32), values.buffers()[2]
        positions = list(positions)
        if not 0 <= min(positions) <= max(positions) < len(values):
            raise ValueError(f"frame {max(positions)} of {len(values)}")
        # Request all frames before the first one is used, so that the disk reads them in parallel.
        for position in positions:
            start = data.address - self._start + int(ends[position])
            page = start - start % mmap.PAGESIZE
            self._map.madvise(
                mmap.MADV_WILLNEED, page, start - page + int(ends[position + 1] - ends[position])
            )
        view = memoryview(data).cast("B")
        found = [view[ends[position] : ends[position + 1]] for position in positions]
        for position, jpeg in zip(positions, found, strict=True):
            if zlib.crc32(jpeg) != checksums[position]:
                raise ValueError(f"frame {position} is damaged")
        return found


def shard_name(shard: int, shards: int) -> str:
    """Name of a shard's file."""
    return f"{shard}-of-{shards}.arrow"


def write_shard(
    file: Path,
    videos: pd.DataFrame,
    *,
    folder: Path,
    quality: int,
    frames_of_all: int,
    folders: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write the frames of some videos into a file, unless it already holds exactly them.

    If it already holds some of these videos, unchanged, their frames are copied, and only the other videos are decoded.

    Args:
        file: File of the shard.
        videos: The videos, with the columns `path` (relative to `folder`) and `frames`.
        folder: Folder of the videos.
        quality: Quality of the JPEGs.
        frames_of_all: Number of frames in all shards that are needed together, to estimate the size of the cache.
        folders: Folders of all these shards; by default, the folder of the file.

    Returns:
        The record of the shard: what it was made with, its videos in order, numbers of videos, frames and bytes, and the
        SHA-256 of the names and of the checksums of all frames.

    Raises:
        UserError: A video can no longer be decoded, or the disk is too small for the whole cache.
    """
    made_with = _made_with(quality)
    rows = videos[["path", "frames"]].sort_values("path").itertuples(index=False)
    needed = {_Video(path, int(frames), *size_and_time(folder / path)) for path, frames in rows}
    # Temporary files of killed jobs.
    for left in file.parent.glob(f".{file.stem}-*"):
        left.unlink(missing_ok=True)
    old = None
    with suppress(OSError, ValueError):
        old = _Shard(file)
    known: dict[_Video, int] = {}
    if old is not None and old.made_with == made_with:
        known = {video: row for row, (video, _) in enumerate(old.videos())}
    if old is None or known.keys() != needed:
        kept, new = sorted(needed & known.keys()), sorted(needed - known.keys())
        logger.info("%s: %d videos to decode, %d are kept", file, len(new), len(kept))
        encoded = _encoded(old, {video: known[video] for video in kept}, new, folder, quality)
        try:
            _write(
                file,
                encoded,
                made_with,
                min(SAMPLE, len(needed)),
                partial(_check_space, file, folders or [file.parent], frames_of_all),
            )
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error}); set data.cache_folder to another folder"
            ) from error
    contents = list(_Shard(file).videos())
    return {
        "made_with": made_with,
        "videos": len(contents),
        "frames": sum(video.frames for video, _ in contents),
        "bytes": file.stat().st_size,
        "digest": hashlib.sha256(
            json.dumps([[video.path, checksums] for video, checksums in contents]).encode()
        ).hexdigest(),
        "paths": [video.path for video, _ in contents],
    }


def _made_with(quality: int) -> str:
    return f"quality {quality}, revision {RECIPE_REVISION}.{REVISION}"


def _write(
    file: Path,
    videos: Iterable[tuple[_Video, Sequence[bytes | memoryview]]],
    made_with: str,
    sample: int,
    check_space: Callable[[float], None],
) -> None:
    """Write videos with their frames; after `sample` videos, call `check_space` with the bytes per frame so far."""
    schema = _SCHEMA.with_metadata({"made_with": made_with})
    with (
        replacing(file) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        frames = 0
        for number, (video, jpegs) in enumerate(videos, start=1):
            row = [[value] for value in (*video, [zlib.crc32(jpeg) for jpeg in jpegs], jpegs)]
            writer.write_batch(pa.record_batch(row, schema=schema))
            frames += video.frames
            if number == sample:
                check_space(sink.tell() / frames)


def _encoded(
    old: _Shard | None, kept: dict[_Video, int], new: list[_Video], folder: Path, quality: int
) -> Iterator[tuple[_Video, Sequence[bytes | memoryview]]]:
    """The frames of kept videos from the old shard, then those of new videos and of videos whose frames are damaged."""
    damaged = []
    for video, row in kept.items():
        assert old is not None
        try:
            yield video, old.jpegs(row, range(video.frames), video.path)
        except ValueError as error:
            logger.warning("%s: %s in the cache; it is decoded again", video.path, error)
            damaged.append(video)
    new = new + damaged
    for video, jpegs in in_child(partial(encode_video, folder=folder, quality=quality), new, seconds=300):
        if isinstance(jpegs, Refusal):
            raise UserError(
                f"{folder / video.path}: {': '.join(filter(None, jpegs))}, although the index could read it: restore the file, or let the index exclude "
                "it (`data.watch: stat`)"
            )
        yield video, jpegs


def encode_video(video: _Video, *, folder: Path, quality: int) -> list[bytes]:
    """Decode all frames of a video and encode each as JPEG, with colours at half the resolution, as in the videos.

    Raises:
        DecodeError: The video cannot be decoded.
    """
    pictures = open_video(folder / video.path).frames(range(video.frames))
    return [simplejpeg.encode_jpeg(picture, quality, colorsubsampling="420") for picture in pictures]


def _check_space(file: Path, folders: Sequence[Path], frames_of_all: int, bytes_per_frame: float) -> None:
    """Log how much disk space the whole cache takes, and refuse a disk that is too small.

    Raises:
        UserError: The disk is too small.
    """
    whole = bytes_per_frame * frames_of_all
    # Files that other jobs are writing also count. The old file of this shard is kept until the new one is complete.
    pattern = f"*-of-{file.stem.rpartition('-')[2]}*.arrow"
    all_shards = (path for folder in folders for path in folder.glob(pattern))
    done = sum(path.stat().st_size for path in all_shards if path != file and path.exists())
    free = shutil.disk_usage(file.parent).free
    text = f"the frame cache takes about {whole / 1e9:.1f} GB in {', '.join(map(str, folders))} ({bytes_per_frame / 1e3:.0f} kB a frame)"
    if free < whole - done:
        raise UserError(
            f"{text}, but only {free / 1e9:.1f} GB are free there; set data.cache_folder to a folder on a larger disk, lower "
            "data.jpeg_quality, or set data.cache: none"
        )
    logger.info("%s; %.1f GB are free", text, free / 1e9)


class FrameCache:
    """Opens videos from the frame cache. Each process opens a shard when it first needs it.

    Args:
        folder: Folder of the shards' files.
        records: Folder of the shards' records, `part-0.json` and so on.
        quality: Quality of the JPEGs.

    Raises:
        UserError: A record or a file of a shard is missing, or they do not belong together.
    """

    def __init__(self, folder: Path, records: Path, *, quality: int) -> None:
        self._records = records
        shards = read_record(records / "part-0.json").get("shards", 1)
        self._files = [folder / shard_name(shard, shards) for shard in range(shards)]
        self._opened: dict[int, _Shard] = {}
        places: dict[str, tuple[int, int]] = {}
        for shard, file in enumerate(self._files):
            record = read_record(records / f"part-{shard}.json")
            made_with = _made_with(quality)
            if not record:
                raise UserError(f"{records}: the frame cache is not complete; {_MAKE_AGAIN}")
            if record["made_with"] != made_with:
                problem = f"made with {record['made_with']}, not with {made_with}"
            elif not file.exists():
                problem = "no such file"
            elif file.stat().st_size != record["bytes"]:
                problem = "not the file that this record describes"
            else:
                places |= {path: (shard, row) for row, path in enumerate(record["paths"])}
                continue
            raise UserError(f"{file}: {problem}; {_MAKE_AGAIN}")
        # Arrays of fixed width, not a dict: forked workers would copy each memory page whose reference counts they change.
        self._paths = np.array(sorted(places), dtype=np.str_)
        self._places = np.array([places[path] for path in self._paths.tolist()])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the memory maps: a spawned worker opens its own."""
        return self.__dict__ | {"_opened": {}}

    def __call__(self, path: Path) -> VideoReader:
        """Open a video; the name of its file is enough."""
        return _JpegCacheReader(path, self)

    def check(self, paths: Iterable[str]) -> None:
        """Check whether the cache holds all of these videos.

        Raises:
            UserError: A video is missing.
        """
        missing = sorted(set(paths).difference(self._paths.tolist()))
        if missing:
            raise UserError(
                f"{self._records}: the frame cache lacks {len(missing)} videos, such as {missing[0]}; run snakemake again"
            )

    def read(self, path: Path, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames of a video: RGB of shape (n, H, W, 3).

        Raises:
            DecodeError: The shard is damaged, or does not hold the frames.
        """
        number = int(np.searchsorted(self._paths, path.name))
        if number == len(self._paths) or self._paths[number] != path.name:
            raise DecodeError(path, "not in the frame cache", fix="run snakemake again")
        shard, row = self._places[number].tolist()
        try:
            if shard not in self._opened:
                self._opened[shard] = _Shard(self._files[shard])
            jpegs = self._opened[shard].jpegs(row, positions, path.name)
            height, width = simplejpeg.decode_jpeg_header(jpegs[0])[:2]
            pictures = np.empty((len(jpegs), height, width, 3), np.uint8)
            for picture, jpeg in zip(pictures, jpegs, strict=True):
                simplejpeg.decode_jpeg(jpeg, buffer=picture)
        except (OSError, ValueError) as error:
            file = self._files[shard]
            fix = f"delete the file and {_MAKE_AGAIN}"
            raise DecodeError(file, f"cannot be used for {path.name}", str(error), fix) from error
        return pictures


class _JpegCacheReader(VideoReader):
    """Reads a video from the frame cache."""

    def __init__(self, path: Path, cache: FrameCache) -> None:
        super().__init__(path)
        self._cache = cache

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        return self._cache.read(self.path, ascending)


def opener(
    cache: Cache, *, quality: int, folder: Path, records: Path, paths: Iterable[str]
) -> Callable[[Path], VideoReader]:
    """The function that opens videos: `open_video`, or the frame cache.

    Args:
        cache: `none` reads the videos themselves.
        quality: Quality of the JPEGs in the cache.
        folder: Folder of the cache's shards.
        records: Folder of the shards' records.
        paths: Names of the videos that will be opened.

    Raises:
        UserError: The cache lacks some of the videos, or is incomplete.
    """
    if cache == "none":
        return open_video
    found = FrameCache(folder, records, quality=quality)
    found.check(paths)
    return found
