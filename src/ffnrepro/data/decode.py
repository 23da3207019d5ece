"""One reader over videos and folders of JPEG frames: decord, PyAV or Pillow behind it.

A video is what a player shows, whatever decodes it: turned as its display matrix says, without the frames that
an edit list cuts away. decord ignores edit lists, so it reads Matroska (``.webm``) only, which has none; PyAV
reads every other container, what is to be turned, what decord refuses (a single frame, no duration in the header,
AV1, widths that it pads), and everything where decord has no wheel. On short clips neither is faster.

A reader belongs to one process: decord hangs in a child when it was opened before the fork, so it is opened
where it is used, in the loader's worker. One thread a reader: the workers are the parallelism.
"""

import contextlib
import functools
import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av
import av.video.reformatter
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Verify = Literal["decode", "packets"]

NO_SUCH_FILE = "no such file"
EMPTY_FILE = "empty file"
NO_PERMISSION = "no permission to read it"
WEB_PAGE = "a web page, not a video"
TEXT = "text, not a video"
DOES_NOT_OPEN = "does not open"
NO_VIDEO_STREAM = "no video stream"
UNKNOWN_CODEC = "a codec without a decoder here"
DOES_NOT_DECODE = "does not decode"
TRUNCATED = "truncated"
NO_FRAMES = "no frames"
FRAMES_MISSING = "frames missing"
FRAMES_CHANGE_SIZE = "frames change size"

_MATROSKA = b"\x1a\x45\xdf\xa3"
_PROJECTION = b"\x76\x70"  # Matroska's element that holds a rotation, which decord passes over
_TEXT_ART = ("tty", "bin", "xbin", "adf", "idf")  # what FFmpeg draws text with, going by a file's ending


class DecodeError(Exception):
    """A video that cannot be read; the message names the file, ``reason`` says why in a few words."""

    def __init__(self, message: str, reason: str = DOES_NOT_DECODE) -> None:
        super().__init__(message)  # a loader worker rebuilds the error from its message alone
        self.reason = reason


@dataclass(frozen=True)
class VideoHeader:
    """What a file says of its first video stream, as shown; None where it says nothing."""

    width: int
    height: int
    fps: float | None
    codec: str
    duration: float | None


class VideoReader(ABC):
    """Frames of one video by their position, and what the header says of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames, as the decoder counts them."""

    @abstractmethod
    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        """Decode the frames at distinct ascending positions to (n, H, W, 3)."""

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the frames at ``indices``, which may repeat and stand in any order; each is decoded once.

        Args:
            indices: Positions of the n wanted frames, from 0.

        Returns:
            RGB of shape (n, H, W, 3), uint8, in the order of ``indices``.

        Raises:
            DecodeError: The file does not decode, or has no frame at one of the positions.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size == 0 or wanted.min() < 0:
            raise ValueError(f"frame indices must be one or more numbers from 0, got {wanted.tolist()}")
        distinct, positions = np.unique(wanted, return_inverse=True)
        decoded = self._decode(distinct.tolist())
        if np.array_equal(distinct, wanted):
            return decoded
        return decoded[positions]

    @functools.cached_property
    def _header(self) -> VideoHeader:
        return _header_of(self.path)

    @property
    def width(self) -> int:
        """Width of the picture as shown, in pixels."""
        return self._header.width

    @property
    def height(self) -> int:
        """Height of the picture as shown, in pixels."""
        return self._header.height

    @property
    def fps(self) -> float | None:
        """Average frame rate in frames a second; None when the header has none."""
        return self._header.fps

    @property
    def codec(self) -> str:
        """Name of the codec, as FFmpeg spells it."""
        return self._header.codec

    @property
    def duration(self) -> float | None:
        """Duration in seconds that the header promises; None when it promises none."""
        return self._header.duration


class _PyAVReader(VideoReader):
    """Reads from the first frame on: exact whatever the key frames; short clips need no seeking."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _open_container(path).close()  # refuse here, when opened, what is no video

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        return examine(self.path)[1]

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        reformatter = av.video.reformatter.VideoReformatter()
        pictures: list[NDArray[np.uint8]] = []
        seen, size = 0, (0, 0)
        with _open_container(self.path) as container:
            for position, frame in enumerate(_decoded_frames(self.path, container)):
                seen = position + 1
                if position == 0:
                    size = frame.width, frame.height
                if position == ascending[len(pictures)]:
                    pictures.append(_as_shown(frame, reformatter, size))
                    if len(pictures) == len(ascending):
                        break
        if len(pictures) < len(ascending):
            raise DecodeError(
                f"{self.path}: has {seen} frames, frame {ascending[-1]} was asked for", "too few frames"
            )
        return _stack(self.path, pictures)


class _FramesReader(VideoReader):
    """Reads a folder of pictures, one a frame."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = _frame_files(path)

    @functools.cached_property
    def _header(self) -> VideoHeader:
        return _examine_frames(self.path, "packets")[0]

    def __len__(self) -> int:
        return len(self._files)

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        if ascending[-1] >= len(self):
            raise DecodeError(
                f"{self.path}: has {len(self)} frames, frame {ascending[-1]} was asked for", "too few frames"
            )
        return _stack(self.path, [_read_picture(self._files[position]) for position in ascending])


class _DecordReader(VideoReader):
    """decord, with PyAV behind it for a file that decord opens and then fails to decode."""

    def __init__(self, path: Path, decord: Any) -> None:
        super().__init__(path)
        self._errors = _decord_errors(decord)
        self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)

    def __len__(self) -> int:
        return len(self._reader)

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        if ascending[-1] >= len(self):  # asked all the same, decord may spin for ever
            return _PyAVReader(self.path)._decode(ascending)
        try:
            frames: NDArray[np.uint8] = self._reader.get_batch(ascending).asnumpy()
        except self._errors:  # a width that it pads, damage, ...: PyAV's answer stands either way
            return _PyAVReader(self.path)._decode(ascending)
        return frames


@functools.cache
def _import_decord() -> Any | None:
    """Import decord at the first use: the platforms without a wheel have none."""
    try:
        decord = importlib.import_module("decord")
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.FATAL)  # what goes wrong is raised, not written to the console
    return decord


def _decord_errors(decord: Any) -> tuple[type[Exception], ...]:
    """Name what decord raises when it opens or decodes: it has no common base."""
    return decord.DECORDError, RuntimeError, AssertionError


def open_video(path: Path | str) -> VideoReader:
    """Open a video, or a folder of JPEG frames.

    decord opens Matroska files; PyAV all others, what is to be turned, and what decord refuses or is not there for.

    Args:
        path: The video file, or the folder of frames.

    Returns:
        A reader for use in this process.

    Raises:
        DecodeError: Nothing opens it; the message names it and the reason.
    """
    path = Path(path)
    if is_folder(path):
        return _FramesReader(path)
    start = _first_bytes(path)
    decord = _import_decord() if start.startswith(_MATROSKA) and _PROJECTION not in start else None
    if decord is not None:
        # What decord refuses is PyAV's to read, or to name the reason.
        with contextlib.suppress(*_decord_errors(decord)):
            return _DecordReader(path, decord)
    return _PyAVReader(path)


def examine(path: Path | str, verify: Verify = "decode") -> tuple[VideoHeader, int]:
    """Count the frames of a video; damage anywhere in it, and an end that is missing, are errors.

    PyAV does this on every platform, so an index does not depend on the decoder that is installed. It makes
    no RGB pictures, and it does not hang as decord does on a file that promises more frames than it holds.

    Args:
        path: The video file, or a folder of JPEG frames.
        verify: ``decode`` decodes every frame; ``packets`` decodes the first, reads the rest of the container and
            counts the packets of the video (of a folder: the files), which finds a missing end but not every
            damage.

    Returns:
        What the header says, and the number of frames, at least 1.

    Raises:
        DecodeError: It does not decode to its end, ends before the time that its header promises, or has not
            one frame.
    """
    path = Path(path)
    if is_folder(path):
        return _examine_frames(path, verify)
    _first_bytes(path)
    with _open_container(path) as container:
        header = _read_header(container)
        promised = _promised_end(container)
        picture, frames, seen, frame_length = _count(path, container, decode=verify == "decode")
    if picture is None:
        raise DecodeError(f"{path}: {DOES_NOT_DECODE} (not one frame)")
    # Times are compared, not frames x rate: a clip of variable rate holds fewer frames than that.
    if promised is not None and seen is not None and seen < promised - 2 * frame_length:
        raise DecodeError(f"{path}: {TRUNCATED} (ends at {seen:.2f} s of {promised:.2f} s)", TRUNCATED)
    return _turned(header, picture), frames


def _count(path: Path, container: Any, *, decode: bool) -> tuple[Any, int, float | None, float]:
    """Go through a container; give the first picture, the frames, the end in seconds of the last, the length of one."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    nominal = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    # A Matroska file promises one duration for all of its streams together.
    others = stream.duration is None and len(container.streams) > 1
    picture, frames, first, last, end = None, 0, None, None, None
    with _decoding(path):
        for packet in container.demux() if others else container.demux(stream):
            if packet.is_corrupt:  # the file ends within it
                raise DecodeError(f"{path}: {TRUNCATED} (in the packet of frame {frames})", TRUNCATED)
            if packet.stream.index != stream.index:
                units: list[Any] = []
                if packet.pts is not None and packet.duration:
                    end = max(end or 0.0, float((packet.pts + packet.duration) * packet.time_base))
            else:
                units = packet.decode() if decode or picture is None else []
                if any(frame.is_corrupt for frame in units):  # some decoders patch damage up and go on
                    raise ValueError("a damaged frame")
                picture = picture or next(iter(units), None)
                if not decode:
                    units = [packet] if _is_shown(packet) else []
            for unit in units:
                frames += 1
                if unit.pts is None:
                    continue
                time = float(unit.pts * unit.time_base)
                length = float(unit.duration * unit.time_base) if unit.duration else nominal
                first = time if first is None else min(first, time)
                last = time if last is None else max(last, time)
                end = max(end or 0.0, time + length)
    mean = (last - first) / (frames - 1) if frames > 1 and first is not None and last is not None else 0.0
    return picture, frames, end, max(nominal, mean)


def _is_shown(packet: Any) -> bool:
    """Tell whether a packet gives a picture: not the empty one that ends a demuxing, nor what an edit list cuts away."""
    if not packet.size or packet.is_discard:
        return False
    # VP8 has frames that others are predicted from and nobody sees: the fifth bit of the packet says so.
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _promised_end(container: Any) -> float | None:
    """Time in seconds at which the header says that the video ends."""
    stream = container.streams.video[0]
    if stream.duration is not None:  # mp4, mov and avi: from the stream's own start
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return None if container.duration is None else float(container.duration / av.time_base)


def _examine_frames(path: Path, verify: Verify) -> tuple[VideoHeader, int]:
    files = _frame_files(path)
    shape = _read_picture(files[0]).shape
    for file in files[1:] if verify == "decode" else []:
        if _read_picture(file).shape != shape:
            raise DecodeError(f"{file}: {FRAMES_CHANGE_SIZE}", FRAMES_CHANGE_SIZE)
    return VideoHeader(width=shape[1], height=shape[0], fps=None, codec="jpeg", duration=None), len(files)


def _frame_files(folder: Path) -> list[Path]:
    """Pictures of a folder by the number at the end of their names (``00001.jpg``, ``img_00001.jpg``)."""
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DecodeError(f"{folder}: {NO_PERMISSION} ({error.strerror})", NO_PERMISSION) from error
    numbered = sorted(
        (int(found[1]), name) for name in names if (found := re.search(r"(\d+)\.jpe?g$", name, re.IGNORECASE))
    )
    if not numbered:
        raise DecodeError(f"{folder}: {NO_FRAMES} (such as 00001.jpg)", NO_FRAMES)
    if [number for number, _ in numbered] != list(range(numbered[0][0], numbered[0][0] + len(numbered))):
        # What is counted is what is shown: a gap would be a jump in the motion.
        raise DecodeError(
            f"{folder}: {FRAMES_MISSING} ({len(numbered)} files, numbered {numbered[0][0]} to {numbered[-1][0]})",
            FRAMES_MISSING,
        )
    return [folder / name for _, name in numbered]


def _read_picture(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{file}: {DOES_NOT_DECODE} ({_words(error)})") from error


def _stack(path: Path, pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise DecodeError(f"{path}: its {FRAMES_CHANGE_SIZE}", FRAMES_CHANGE_SIZE)
    return np.stack(pictures)


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder, one of frames then."""
    try:
        return path.is_dir()
    except OSError:  # of a disk that fails: reading the file says so
        return False


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError as error:
        raise DecodeError(f"{path}: {NO_SUCH_FILE}", NO_SUCH_FILE) from error
    except PermissionError as error:
        raise DecodeError(f"{path}: {NO_PERMISSION}", NO_PERMISSION) from error
    except OSError as error:
        raise DecodeError(f"{path}: {DOES_NOT_OPEN} ({_words(error)})", DOES_NOT_OPEN) from error
    if not start:
        raise DecodeError(f"{path}: {EMPTY_FILE}", EMPTY_FILE)
    return start


def _open_container(path: Path) -> Any:
    try:
        # The "file:" protocol keeps FFmpeg from reading a name such as "a:b.webm" as an address.
        container = av.open(f"file:{path}")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = _what_it_is_instead(path)
        raise DecodeError(f"{path}: {reason} ({_words(error)})", reason) from error
    if container.format.name in _TEXT_ART:
        container.close()
        raise DecodeError(f"{path}: {TEXT}", TEXT)
    if not container.streams.video:
        container.close()
        raise DecodeError(f"{path}: {NO_VIDEO_STREAM}", NO_VIDEO_STREAM)
    if container.streams.video[0].codec_context is None:
        container.close()
        raise DecodeError(f"{path}: {UNKNOWN_CODEC}", UNKNOWN_CODEC)
    return container


def _what_it_is_instead(path: Path) -> str:
    """Reason for a file that is no container: a failed download is often a page that says so."""
    start = _first_bytes(path)[:512]
    if re.match(rb"\s*(<!doctype html|<html|<\?xml)", start.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        return WEB_PAGE
    return TEXT if start.isascii() and b"\0" not in start else DOES_NOT_OPEN


def _header_of(path: Path) -> VideoHeader:
    with _open_container(path) as container:
        header = _read_header(container)
        return _turned(header, next(_decoded_frames(path, container), None))


def _turned(header: VideoHeader, picture: Any) -> VideoHeader:
    """Give the size as shown: only a decoded picture has the display matrix."""
    if picture is not None and _quarter_turns(picture) % 2 == 1:
        return replace(header, width=header.height, height=header.width)
    return header


def _read_header(container: Any) -> VideoHeader:
    """Read the header, with the size of the picture as stored."""
    stream = container.streams.video[0]
    duration = None
    if container.duration is not None:
        duration = container.duration / av.time_base
    elif stream.duration is not None:
        duration = float(stream.duration * stream.time_base)
    context = stream.codec_context
    return VideoHeader(
        width=context.width,
        height=context.height,
        fps=float(stream.average_rate) if stream.average_rate else None,
        codec=context.name if context.codec is None else context.codec.canonical_name,
        duration=duration,
    )


def _quarter_turns(frame: Any) -> int:
    """Quarter turns, anticlockwise, from the stored picture to the one shown."""
    turns: int = round(frame.rotation / 90)
    return turns % 4


def _as_shown(
    frame: Any, reformatter: av.video.reformatter.VideoReformatter, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Give a picture upright, and in the size of the video's first: some recorders go down with a slow line."""
    picture: Any = reformatter.reformat(frame, *size, format="rgb24").to_ndarray()
    return np.rot90(picture, _quarter_turns(frame))


def _decoded_frames(path: Path, container: Any) -> Iterator[Any]:
    """Yield every frame of the first video stream; a damaged packet anywhere is a DecodeError."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    with _decoding(path):
        yield from container.decode(stream)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{path}: {DOES_NOT_DECODE} ({_words(error)})") from error


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
