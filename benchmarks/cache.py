"""What the frame cache could be made of: JPEG libraries, file formats, and the time to make it.

Each format is read with a cold page cache (the file's pages are dropped first) and with a warm one, by one process and by
four processes. They read 16 or 4 random frames of one video after the other, with the videos in random order. LMDB and
PyTurboJPEG are measured if they are installed: pip install lmdb 'PyTurboJPEG<2', apt-get install libturbojpeg0.

Goal: making the cache runs at 80 % or more of bare decoding and bare encoding.
"""

import io
import mmap
import multiprocessing as mp
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import simplejpeg
import torch
from clips import FRAMES, make_clips
from PIL import Image
from results import write_section
from torchvision.io import decode_jpeg, encode_jpeg

from ffnrepro.data.decode import open_video
from ffnrepro.data.frame_cache import _Shard, _Video, encode_video

WORK = Path(__file__).parent / "work/cache"
VIDEOS = 400
"""Videos in the files of the formats; about half a gigabyte."""

Jpegs = list[list[bytes]]


def main() -> int:
    """Measure, print tables, write them to RESULTS.md and compare with the goal."""
    torch.set_num_threads(1)
    paths = make_clips(WORK / "videos", 24)
    jpegs = [encode_video(_Video(path.name, FRAMES, 0, 0), folder=path.parent, quality=90) for path in paths]
    libraries, formats = libraries_table(paths[0], jpegs[0]), formats_table(jpegs)
    ratio, making = making_text(paths)
    text = f"`python benchmarks/cache.py`: clips of {FRAMES} frames of 427x240, quality 90, one core.\n\n"
    text += f"{libraries}\n\n{formats}\n\n{making}\n\n{DECISION}"
    print(text)
    write_section("cache.py", text)
    return int(ratio < 0.8)


DECISION = """Decisions: We use simplejpeg, because it is the fastest, its wheel includes libjpeg-turbo, and all libraries decode a
file to the same pixels. We use Arrow IPC, because one file describes itself, and pyarrow is a dependency anyway.
Arrow's own memory map requests a whole record from the system, so a clip of 4 frames reads all 48 from a cold disk; a
map with MADV_RANDOM and one MADV_WILLNEED per frame reads only the frames in use, in parallel. `pread` from a tar
file saves another 0.1 to 0.5 ms, but it needs a separate file of offsets. LMDB is slower to write, takes more space,
and its authors advise against network disks. Each look-up is short compared with the 4 to 6 ms of decoding 16 frames."""


def alternate(functions: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each function; they take turns, because the machine is never quiet."""
    spans: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            spans[name].append(1000 * (time.perf_counter() - started))
    return {name: median(values) for name, values in spans.items()}


def libraries_table(video: Path, jpegs: list[bytes]) -> str:
    """Milliseconds to decode and to encode 16 frames."""
    pictures = list(open_video(video).frames(range(16)))
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
    buffer = np.empty_like(pictures[0])

    def pillow_encode(picture: Any) -> None:
        Image.fromarray(picture).save(io.BytesIO(), "jpeg", quality=90)

    decoders: dict[str, Callable[[Any], object]] = {
        "simplejpeg": lambda jpeg: simplejpeg.decode_jpeg(jpeg, buffer=buffer),
        "torchvision": lambda jpeg: decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)),
        "Pillow": lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg))),
    }
    encoders: dict[str, Callable[[Any], object]] = {
        "simplejpeg": lambda picture: simplejpeg.encode_jpeg(picture, 90, colorsubsampling="420"),
        "Pillow": pillow_encode,
    }
    with suppress(ImportError, RuntimeError):
        from turbojpeg import TJSAMP_420, TurboJPEG  # noqa: PLC0415

        turbo = TurboJPEG(os.environ.get("TURBOJPEG"))
        decoders["PyTurboJPEG"] = lambda jpeg: turbo.decode(jpeg, pixel_format=0)
        encoders["PyTurboJPEG"] = lambda picture: turbo.encode(picture, 90, 0, TJSAMP_420)
    functions: dict[str, Callable[[], object]] = {
        f"decode {name}": lambda one=one: [one(jpeg) for jpeg in jpegs[:16]] for name, one in decoders.items()
    }
    functions |= {
        f"encode {name}": lambda one=one: [one(picture) for picture in pictures]
        for name, one in encoders.items()
    }
    functions["encode torchvision"] = lambda: [encode_jpeg(tensor, 90) for tensor in tensors]
    positions = np.linspace(0, FRAMES - 1, 16).astype(int)
    functions["video"] = lambda: open_video(video).frames(positions)
    found = alternate(functions)
    base = found["video"]
    lines = [f"| {name} | {ms:.1f} ms | {ms / base:.2f} |" for name, ms in found.items()]
    title = "| 16 frames | time | of decoding them from the video |\n|---|---|---|\n"
    return title + "\n".join(lines)


class Arrow:
    """One record batch a video, with Arrow's memory map."""

    file = WORK / "arrow.arrow"

    @classmethod
    def write(cls, videos: Jpegs) -> None:
        """Write the file."""
        schema = pa.schema({"jpegs": pa.list_(pa.binary())})
        with pa.OSFile(str(cls.file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for jpegs in videos:
                writer.write_batch(pa.record_batch([[jpegs]], schema=schema))

    def open(self) -> None:
        """Open the file in this process."""
        self.reader = pa.ipc.open_file(pa.memory_map(str(self.file)))

    def read(self, video: int, positions: Sequence[int]) -> list[Any]:
        """JPEGs of some frames."""
        values = self.reader.get_batch(video).column(0).flatten()
        ends, data = np.frombuffer(values.buffers()[1], np.int32), memoryview(values.buffers()[2])
        return [data[ends[n] : ends[n + 1]] for n in positions]


class FrameCacheFile(Arrow):
    """The frame cache: the same with MADV_RANDOM, MADV_WILLNEED for each frame, and a check of each frame."""

    file = WORK / "cache.arrow"

    @classmethod
    def write(cls, videos: Jpegs) -> None:
        """Write the file."""
        from ffnrepro.data.frame_cache import _write  # noqa: PLC0415

        rows = ((_Video(str(n), len(jpegs), 0, 0), jpegs) for n, jpegs in enumerate(videos))
        _write(cls.file, rows, b"", 0, lambda _: None)

    def open(self) -> None:
        """Open the file in this process."""
        self.shard = _Shard(self.file)

    def read(self, video: int, positions: Sequence[int]) -> list[Any]:
        """JPEGs of some frames."""
        return self.shard.jpegs(video, positions, str(video))


class Tar:
    """A tar file and an array of offsets, read with pread after fadvise for each frame."""

    file = WORK / "videos.tar"

    @classmethod
    def write(cls, videos: Jpegs) -> None:
        """Write the file."""
        offsets = np.zeros((len(videos), FRAMES, 2), np.int64)
        with tarfile.open(cls.file, "w") as archive:
            for n, jpegs in enumerate(videos):
                for k, jpeg in enumerate(jpegs):
                    info = tarfile.TarInfo(f"{n}/{k:05d}.jpg")
                    info.size = len(jpeg)
                    offsets[n, k] = archive.offset + tarfile.BLOCKSIZE, len(jpeg)
                    archive.addfile(info, io.BytesIO(jpeg))
        np.save(cls.file.with_suffix(".npy"), offsets)

    def open(self) -> None:
        """Open the file in this process."""
        self.handle = os.open(self.file, os.O_RDONLY)
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_RANDOM)
        self.offsets = np.load(self.file.with_suffix(".npy"))

    def read(self, video: int, positions: Sequence[int]) -> list[Any]:
        """JPEGs of some frames."""
        places = [self.offsets[video, n].tolist() for n in positions]
        for start, length in places:
            os.posix_fadvise(self.handle, start, length, os.POSIX_FADV_WILLNEED)
        return [os.pread(self.handle, length, start) for start, length in places]


class Lmdb:
    """LMDB with a key for each frame."""

    file = WORK / "videos.lmdb"

    @classmethod
    def write(cls, videos: Jpegs) -> None:
        """Write the file."""
        import lmdb  # noqa: PLC0415

        cls.file.unlink(missing_ok=True)
        with lmdb.open(str(cls.file), map_size=4 << 30, subdir=False) as environment:
            for n, jpegs in enumerate(videos):
                with environment.begin(write=True) as transaction:
                    for k, jpeg in enumerate(jpegs):
                        transaction.put(f"{n:06d}/{k:05d}".encode(), jpeg)

    def open(self) -> None:
        """Open the file in this process."""
        import lmdb  # noqa: PLC0415

        self.environment = lmdb.open(str(self.file), readonly=True, lock=False, subdir=False)

    def read(self, video: int, positions: Sequence[int]) -> list[Any]:
        """JPEGs of some frames."""
        with self.environment.begin() as transaction:
            return [transaction.get(f"{video:06d}/{n:05d}".encode()) for n in positions]


def formats_table(jpegs: Jpegs) -> str:
    """Time to write a video, and time and bytes to read frames of it."""
    formats: list[Any] = [Arrow, FrameCacheFile, Tar]
    with suppress(ImportError):
        __import__("lmdb")
        formats.append(Lmdb)
    videos = [jpegs[n % len(jpegs)] for n in range(VIDEOS)]
    raw = sum(len(jpeg) for frames in videos for jpeg in frames)
    lines = []
    for each in formats:
        started = time.perf_counter()
        each.write(videos)
        writing = 1000 * (time.perf_counter() - started) / VIDEOS
        cells = [f"{writing:.1f} ms, {each.file.stat().st_size / raw - 1:+.1%}"]
        for frames in (16, 4):
            for workers in (1, 4):
                for cold in (True, False):
                    rounds = [read_all(each, frames, workers, cold=cold) for _ in range(3)]
                    cell = f"{median(seconds for seconds, _ in rounds) * 1e6 / VIDEOS:.0f} us"
                    cells.append(f"{cell}, {rounds[0][1] / VIDEOS / 1000:.0f} kB" if cold else cell)
        lines.append(f"| {each.__doc__.split(':')[0].rstrip('.')} | {' | '.join(cells)} |")
    heads = [
        f"{n} frames, {w} process{'es' * (w > 1)}, {c}"
        for n in (16, 4)
        for w in (1, 4)
        for c in ("cold", "warm")
    ]
    return (
        f"| format | writing a video, overhead | {' | '.join(heads)} |\n|{'---|' * (2 + len(heads))}\n"
        + "\n".join(lines)
    )


def read_all(each: Any, frames: int, workers: int, *, cold: bool) -> tuple[float, int]:
    """Seconds for random frames of every video by several processes, and bytes that the disk read."""
    if cold:
        handle = os.open(each.file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    order = np.random.default_rng(1).permutation(VIDEOS).tolist()
    queue: Any = mp.Queue()
    jobs = [
        mp.Process(target=read_part, args=(each(), order[n::workers], frames, queue)) for n in range(workers)
    ]
    for job in jobs:
        job.start()
    found = [queue.get() for _ in jobs]
    for job in jobs:
        job.join()
    return max(seconds for seconds, _ in found), sum(count for _, count in found)


def read_part(opened: Any, videos: list[int], frames: int, queue: Any) -> None:
    """Read random frames of some videos, one byte of each page."""
    opened.open()
    generator = np.random.default_rng(0)
    before, started = bytes_from_disk(), time.perf_counter()
    for video in videos:
        for jpeg in opened.read(video, np.sort(generator.choice(FRAMES, frames, replace=False)).tolist()):
            sum(memoryview(jpeg).cast("B")[:: mmap.PAGESIZE])
    queue.put((time.perf_counter() - started, bytes_from_disk() - before))


def bytes_from_disk() -> int:
    """Bytes that the disk has read for this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def making_text(paths: list[Path]) -> tuple[float, str]:
    """Videos a second of the workflow's script, against bare decoding and encoding, which are measured before and after it."""
    names = [link(path, number) for number in range(25) for path in paths]
    table = pd.DataFrame({"path": names, "frames": FRAMES, "class": 0})
    manifest = WORK / "train.parquet"
    table.to_parquet(manifest)
    # Disk is counted for both splits of a training.
    table.head(0).to_parquet(manifest.with_stem("validation"))
    shutil.rmtree(WORK / "making", ignore_errors=True)
    script = Path(__file__).parents[1] / "workflow/scripts/cache_frames.py"
    command = [
        sys.executable,
        script,
        "--videos",
        paths[0].parent,
        "--manifest",
        manifest,
        "--shard",
        "0",
        "--shards",
        "1",
    ]
    command += [
        "--quality",
        "90",
        "--cache-folder",
        WORK / "making/train",
        "--output",
        WORK / "making/part-0.json",
    ]
    before = bare_seconds(paths[0].parent, names[::2])
    started = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
    cache = len(names) / (time.perf_counter() - started)
    bare = len(names) / (before + bare_seconds(paths[0].parent, names[1::2]))
    return cache / bare, (
        f"Making the cache of {len(names)} videos: {cache:.1f} videos/s (workflow/scripts/cache_frames.py, its start "
        f"included); bare decoding and encoding on one core {bare:.1f} videos/s: {cache / bare:.2f} of it (goal: at least 0.80)."
    )


def bare_seconds(folder: Path, names: list[str]) -> float:
    """Seconds to decode and encode videos, and nothing else."""
    started = time.perf_counter()
    for name in names:
        for picture in open_video(folder / name).frames(range(FRAMES)):
            simplejpeg.encode_jpeg(picture, 90, colorsubsampling="420")
    return time.perf_counter() - started


def link(path: Path, number: int) -> str:
    """Name of another link to a video."""
    other = path.with_name(f"{path.stem}-{number}{path.suffix}")
    if not other.exists():
        os.link(path, other)
    return other.name


if __name__ == "__main__":
    sys.exit(main())
