"""One reader over two decoders: decord where it is installed and takes the file, PyAV everywhere else.

decord refuses sound files (a single frame, no duration in the header, AV1, widths that it pads) and has no
wheel for every platform; PyAV reads them all. A reader belongs to one process: decord hangs in a child when
it was opened before the fork, so it is opened where it is used, in the loader's worker. One thread a reader:
the workers are the parallelism.
"""

import contextlib
import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.video.reformatter
import numpy as np
from numpy.typing import NDArray

NO_SUCH_FILE = "no such file"
EMPTY_FILE = "empty file"
NO_VIDEO_STREAM = "no video stream"
DOES_NOT_DECODE = "does not decode"


class DecodeError(Exception):
    """A video that cannot be read; the message names the file, ``reason`` says why in a few words."""

    def __init__(self, message: str, reason: str = DOES_NOT_DECODE) -> None:
        super().__init__(message)  # a loader worker rebuilds the error from its message alone
        self.reason = reason


@dataclass(frozen=True)
class VideoHeader:
    """What a file says of its first video stream; None where it says nothing."""

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
        with _open_container(self.path) as container:
            return _read_header(container)

    @property
    def width(self) -> int:
        """Width of the stored picture in pixels."""
        return self._header.width

    @property
    def height(self) -> int:
        """Height of the stored picture in pixels."""
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
        _ = self._header  # refuse here, when opened, what is no video

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        return examine(self.path)[1]

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        reformatter = av.video.reformatter.VideoReformatter()
        pictures: list[NDArray[np.uint8]] = []
        seen = 0
        with _open_container(self.path) as container:
            for position, frame in enumerate(_decoded_frames(self.path, container)):
                seen = position + 1
                if position == ascending[len(pictures)]:
                    picture: Any = reformatter.reformat(frame, format="rgb24").to_ndarray()
                    pictures.append(picture)
                    if len(pictures) == len(ascending):
                        break
        if len(pictures) < len(ascending):
            raise DecodeError(
                f"{self.path}: has {seen} frames, frame {ascending[-1]} was asked for", "too few frames"
            )
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise DecodeError(f"{self.path}: its frames change size", "frames change size")
        return np.stack(pictures)


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
    """Open a video with decord, or with PyAV when decord is not installed or refuses the file.

    Args:
        path: The video file.

    Returns:
        A reader for use in this process.

    Raises:
        DecodeError: Neither opens the file; the message names it and the reason.
    """
    path = Path(path)
    _require_content(path)
    decord = _import_decord()
    if decord is not None:
        # What decord refuses is PyAV's to read, or to name the reason.
        with contextlib.suppress(*_decord_errors(decord)):
            return _DecordReader(path, decord)
    return _PyAVReader(path)


def examine(path: Path | str) -> tuple[VideoHeader, int]:
    """Decode a whole video and count its frames; damage anywhere in it is an error.

    PyAV does this on every platform, so an index does not depend on the decoder that is installed. It makes
    no RGB pictures, and it cannot hang as decord does on a file that promises more frames than it holds.

    Args:
        path: The video file.

    Returns:
        What the header says, and the number of frames that decode, at least 1.

    Raises:
        DecodeError: The file does not decode to its end, or to no frame at all.
    """
    path = Path(path)
    _require_content(path)
    with _open_container(path) as container:
        header = _read_header(container)
        frames = sum(1 for _ in _decoded_frames(path, container))
    if frames == 0:
        raise DecodeError(f"{path}: {DOES_NOT_DECODE} (not one frame)")
    return header, frames


def _require_content(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DecodeError(f"{path}: {NO_SUCH_FILE}", NO_SUCH_FILE) from error
    if size == 0:
        raise DecodeError(f"{path}: {EMPTY_FILE}", EMPTY_FILE)


def _open_container(path: Path) -> Any:
    try:
        # The "file:" protocol keeps FFmpeg from reading a name such as "a:b.webm" as an address.
        container = av.open(f"file:{path}")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{path}: {DOES_NOT_DECODE} ({_words(error)})") from error
    if not container.streams.video:
        container.close()
        raise DecodeError(f"{path}: {NO_VIDEO_STREAM}", NO_VIDEO_STREAM)
    return container


def _read_header(container: Any) -> VideoHeader:
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


def _decoded_frames(path: Path, container: Any) -> Iterator[Any]:
    """Yield every frame of the first video stream; a damaged packet anywhere is a DecodeError."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{path}: {DOES_NOT_DECODE} ({_words(error)})") from error


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
