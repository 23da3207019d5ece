"""Readers for video files and folders of frames, based on decord, PyAV and Pillow.

Every decoder gives the frames that a player shows: rotated as the display matrix says, and without the frames that an edit
list removes. decord ignores edit lists, so it is used only for Matroska files (``.webm``), which have none. PyAV reads all
other containers, rotated videos, whatever decord refuses (a single frame, no duration in the header, AV1, widths that
decord pads), and everything on platforms without decord. On short clips neither is faster.

A reader belongs to one process, because decord hangs in a child process if the reader was opened before the fork. So
videos are opened in the loader worker that decodes them. A reader uses one thread, because there are many workers.
"""

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import av.video.reformatter
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ffnrepro.optional import import_optional

Verify = Literal["decode", "packets"]

NO_SUCH_FILE = "no such file"
NO_PERMISSION = "no permission to read it"
WEB_PAGE = "a web page, not a video"
TEXT = "text, not a video"
PICTURE = "a picture, not a video"
EMPTY = "empty file"
DOES_NOT_OPEN = "does not open"
DOES_NOT_DECODE = "does not decode"
TRUNCATED = "truncated or damaged"
NO_FRAMES = "no frames"
FRAMES_MISSING = "frames missing"
FRAMES_UNCLEAR = "frames of several kinds"
FRAMES_CHANGE_SIZE = "frames change size"

_MATROSKA = b"\x1a\x45\xdf\xa3"
# The element of Matroska that holds a rotation, which decord ignores.
_PROJECTION = b"\x76\x70"
_PICTURE = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)\.(?P<ending>jpe?g|png)", re.IGNORECASE)
_FLOW = re.compile(r"(?P<flow>.*flow_?)?[xyuv]_\*")
_OTHER_AXIS = str.maketrans("xyuv", "yxvu")
# FFmpeg opens text files with certain endings in these formats, and renders the text as an image.
_TEXT_ART = ("tty", "bin", "xbin", "adf", "idf")


class DecodeError(Exception):
    """A video that cannot be read: ``reason`` says why in a few words, ``detail`` gives details.

    ``fix`` says what helps if the video is not to blame.
    """

    def __init__(
        self, path: Path | str, reason: str = DOES_NOT_DECODE, detail: str = "", fix: str = ""
    ) -> None:
        # A loader worker sends the error to the main process, which rebuilds it from these arguments.
        super().__init__(str(path), reason, detail, fix)
        self.reason = reason
        self.detail = detail
        self.fix = fix

    def __str__(self) -> str:
        path, reason, detail, fix = self.args
        text = f"{path}: {reason} ({detail})" if detail else f"{path}: {reason}"
        return f"{text}; {fix}" if fix else text


@dataclass(frozen=True)
class VideoHeader:
    """What a file says about its first video stream.

    Attributes:
        width: Pixels, as shown.
        height: Pixels, as shown.
        fps: Average frames per second; None if unknown.
        codec: Name of the codec, as FFmpeg spells it.
        duration: Seconds; None if unknown.
    """

    width: int
    height: int
    fps: float | None
    codec: str
    duration: float | None


class VideoReader(ABC):
    """The frames of one video, by their positions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        """Decode the frames at distinct ascending positions to (n, H, W, 3)."""

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the frames at ``indices``, each of them once.

        Args:
            indices: Positions of n frames, from 0, in any order and perhaps repeated.

        Returns:
            RGB of shape (n, H, W, 3), uint8, in the order of ``indices``.

        Raises:
            DecodeError: The file does not decode, or has no frame at one of the positions.
            ValueError: There is no index, or a negative one.
        """
        requested = np.asarray(indices, dtype=np.int64)
        if requested.size == 0 or requested.min() < 0:
            raise ValueError(f"frame indices must be one or more numbers from 0, got {requested.tolist()}")
        distinct, positions = np.unique(requested, return_inverse=True)
        decoded = self._decode(distinct.tolist())
        # In the usual case no copy is needed.
        return decoded if np.array_equal(distinct, requested) else decoded[positions]


class _PyAVReader(VideoReader):
    """Decodes from the first frame, which is exact for any key frames; short clips need no seeking."""

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        reformatter = av.video.reformatter.VideoReformatter()
        pictures: list[NDArray[np.uint8]] = []
        seen, size = 0, None
        with _open_container(self.path) as container, _decoding(self.path):
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for position, frame in enumerate(container.decode(stream)):
                seen = position + 1
                # Some recorders reduce the size on a slow line; all frames are resized to the first frame's size.
                size = size or (frame.width, frame.height)
                if position == ascending[len(pictures)]:
                    picture: Any = reformatter.reformat(frame, *size, format="rgb24").to_ndarray()
                    pictures.append(np.rot90(picture, _quarter_turns(frame)))
                    if len(pictures) == len(ascending):
                        break
        if len(pictures) < len(ascending):
            raise _too_few_frames(self.path, seen, ascending[-1])
        return _stack(self.path, pictures)


class _FramesReader(VideoReader):
    """Reads a folder of images, one per frame."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = frame_files(path)[0]

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        if ascending[-1] >= len(self._files):
            raise _too_few_frames(self.path, len(self._files), ascending[-1])
        return _stack(self.path, [_read_picture(self._files[position]) for position in ascending])


class _DecordReader(VideoReader):
    """Decodes with decord, and with PyAV if decord opens the file and then fails to decode it."""

    def __init__(self, path: Path, decord: Any) -> None:
        super().__init__(path)
        self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)

    def _decode(self, ascending: list[int]) -> NDArray[np.uint8]:
        # decord may never return if it is asked for a frame after the end.
        if ascending[-1] < len(self._reader):
            # decord fails on widths that it pads, which PyAV reads, and on damaged files, for which PyAV gives the reason.
            with contextlib.suppress(Exception):
                frames: NDArray[np.uint8] = self._reader.get_batch(ascending).asnumpy()
                return frames
        return _PyAVReader(self.path)._decode(ascending)


def find_decord() -> Any | None:
    """Load decord at the first use; None where it is not installed (it has no wheel for some platforms) or is broken."""
    decord = import_optional("decord", "PyAV decodes instead")
    if decord is not None:
        # decord raises its errors, so they need not be written to the console, too.
        decord.logging.set_level(decord.logging.FATAL)
    return decord


def open_video(path: Path | str) -> VideoReader:
    """Open a video, or a folder of frames.

    Args:
        path: The video file, or the folder of frames.

    Returns:
        A reader for use in this process.

    Raises:
        DecodeError: There is no such file, or it is empty or cannot be read. A file that is not a video is refused when
            frames are read.
    """
    path = Path(path)
    if is_folder(path):
        return _FramesReader(path)
    start = _first_bytes(path)
    decord = find_decord() if start.startswith(_MATROSKA) and _PROJECTION not in start else None
    if decord is not None:
        # PyAV reads files that decord refuses, or gives the reason.
        with contextlib.suppress(Exception):
            return _DecordReader(path, decord)
    return _PyAVReader(path)


def examine(path: Path | str, verify: Verify = "decode") -> tuple[VideoHeader, int]:
    """Count the frames of a video. Damage anywhere in the file and a missing end are errors.

    This uses PyAV on every platform, so an index does not depend on the installed decoders. No frame is converted to RGB,
    and PyAV does not hang, as decord does, on a file that holds fewer frames than its header says.

    Args:
        path: The video file, or a folder of frames.
        verify: ``decode`` decodes every frame; ``packets`` decodes the first, reads the rest of the container and
            counts the packets of the video (of a folder: the files), which finds a missing end but not all damage.

    Returns:
        The header, and the number of frames, at least 1.

    Raises:
        DecodeError: The video does not decode to its end, ends before the duration in its header, or has no frame.
    """
    path = Path(path)
    if is_folder(path):
        return _examine_frames(path, verify)
    _first_bytes(path)
    with _open_container(path) as container:
        header = _read_header(container)
        stated_end = _stated_end(container)
        first, frames, end, frame_length = _count(path, container, decode=verify == "decode")
    if first is None:
        raise DecodeError(path, DOES_NOT_DECODE, "no frame")
    # Times are compared, not numbers of frames, because a video of variable rate holds fewer frames than duration x rate.
    if stated_end is not None and end is not None and end < stated_end - 2 * frame_length:
        raise DecodeError(path, TRUNCATED, f"ends at {end:.2f} s of {stated_end:.2f} s")
    # Only a decoded frame has the display matrix.
    if _quarter_turns(first) % 2 == 1:
        header = replace(header, width=header.height, height=header.width)
    return header, frames


def _count(path: Path, container: Any, *, decode: bool) -> tuple[Any, int, float | None, float]:
    """Read a container to its end.

    Returns:
        The first frame, the number of frames, the end of the last one in seconds, and the length of a frame in seconds.
    """
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    nominal = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    # The header of a Matroska file has one duration for all of its streams.
    others = stream.duration is None and len(container.streams) > 1
    picture, frames = None, 0
    times: list[float] = []
    ends: list[float] = []
    with _decoding(path):
        for packet in container.demux() if others else container.demux(stream):
            # The file ends within this packet.
            if packet.is_corrupt:
                raise DecodeError(path, TRUNCATED, f"in the packet of frame {frames}")
            if packet.stream.index != stream.index:
                units: list[Any] = []
                if packet.pts is not None and packet.duration:
                    ends.append(float((packet.pts + packet.duration) * packet.time_base))
            else:
                units = packet.decode() if decode or picture is None else []
                # Some decoders conceal damage and go on.
                if any(frame.is_corrupt for frame in units):
                    raise ValueError("a damaged frame")
                picture = picture or next(iter(units), None)
                if not decode:
                    units = [packet] if _is_shown(packet) else []
            for unit in units:
                frames += 1
                if unit.pts is not None:
                    length = float(unit.duration * unit.time_base) if unit.duration else nominal
                    times.append(float(unit.pts * unit.time_base))
                    ends.append(times[-1] + length)
    mean = (max(times) - min(times)) / (frames - 1) if frames > 1 and times else 0.0
    return picture, frames, max(ends, default=None), max(nominal, mean)


def _is_shown(packet: Any) -> bool:
    """Check whether a packet holds a frame that is shown: it is not the empty last packet, nor cut away by an edit list."""
    if not packet.size or packet.is_discard:
        return False
    # VP8 has frames that are only used to predict others; the fifth bit of their packet is 0.
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _stated_end(container: Any) -> float | None:
    """Return the time in seconds at which the video ends according to its header."""
    stream = container.streams.video[0]
    # In mp4, mov and avi the duration counts from the start of the stream.
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return None if container.duration is None else float(container.duration / av.time_base)


def _examine_frames(path: Path, verify: Verify) -> tuple[VideoHeader, int]:
    files, (kind, *_) = frame_files(path)
    shape = _read_picture(files[0]).shape
    for file in files[1:] if verify == "decode" else []:
        if _read_picture(file).shape != shape:
            raise DecodeError(path, FRAMES_CHANGE_SIZE, f"from {files[0].name} to {file.name}")
    codec = "png" if kind.endswith("png") else "jpeg"
    return VideoHeader(width=shape[1], height=shape[0], fps=None, codec=codec, duration=None), len(files)


def frame_files(folder: Path) -> tuple[list[Path], list[str]]:
    """List the images of a folder by the number at the end of their names (``00001.jpg``, ``img_00001.png``).

    Optical flow next to the frames, as mmaction2 and TSN write it (``flow_x_00001.jpg``, ``x_00001.jpg``), is left out.

    Returns:
        The files in order, and the kinds of images that the folder holds: that of the files, such as ``img_*.jpg``, then
        those that are ignored.

    Raises:
        DecodeError: The folder cannot be listed, has no such file, has several kinds of them, or a number is missing or
            appears twice.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise DecodeError(folder, NO_PERMISSION, _description(error)) from error
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if match := _PICTURE.fullmatch(name):
            ending = match["ending"].lower().replace("jpeg", "jpg")
            kinds.setdefault(f"{match['prefix']}*.{ending}", []).append((int(match["number"]), name))
    flow = [kind for kind in kinds if _is_flow(kind, kinds)]
    frames = [kind for kind in kinds if kind not in flow]
    if not frames:
        found = f"only optical flow: {', '.join(flow)}" if flow else _what_it_holds(folder, names)
        raise DecodeError(folder, NO_FRAMES, f"{found}; expected files such as 00001.jpg or img_00001.png")
    if len(frames) > 1:
        raise DecodeError(folder, FRAMES_UNCLEAR, f"{_shortened(frames)}; keep one of them")
    numbered = kinds[frames[0]]
    numbered.sort()
    numbers = [number for number, _ in numbered]
    for (number, name), (after, other) in pairwise(numbered):
        if after == number:
            raise DecodeError(
                folder, FRAMES_UNCLEAR, f"{name} and {other} have the same number; keep one of them"
            )
    if missing := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)):
        # A gap would be a jump in the motion.
        between = f"between {numbered[0][1]} and {numbered[-1][1]}"
        raise DecodeError(folder, FRAMES_MISSING, f"no number {_shortened(map(str, missing))} {between}")
    return [folder / name for _, name in numbered], [*frames, *flow]


def _is_flow(kind: str, kinds: Collection[str]) -> bool:
    """Check for optical flow. A prefix such as `v_` may be of frames, so there must be the other axis, too."""
    match = _FLOW.match(kind)
    return match is not None and (bool(match["flow"]) or kind[0].translate(_OTHER_AXIS) + kind[1:] in kinds)


def _what_it_holds(folder: Path, names: Sequence[str]) -> str:
    if not names:
        return "an empty folder"
    return f"it holds {'the folder' if is_folder(folder / names[0]) else 'files such as'} {names[0]}"


def _shortened(words: Iterable[str]) -> str:
    """The first words, and how many more there are."""
    words = list(words)
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def _read_picture(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError("16 or 32 bits a pixel, expected 8 for each colour")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(file.parent, DOES_NOT_DECODE, f"{file.name}: {_description(error)}") from error


def _too_few_frames(path: Path, frames: int, position: int) -> DecodeError:
    return DecodeError(path, "too few frames", f"has {frames} frames, frame {position} was requested")


def _stack(path: Path, pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise DecodeError(path, FRAMES_CHANGE_SIZE)
    return np.stack(pictures)


def is_folder(path: Path) -> bool:
    """Check whether a path is a folder (of frames); False if the disk fails."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises errors of the disk


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        reasons: dict[type[OSError], str] = {FileNotFoundError: NO_SUCH_FILE, PermissionError: NO_PERMISSION}
        if type(error) in reasons:
            raise DecodeError(path, reasons[type(error)]) from error
        raise DecodeError(path, DOES_NOT_OPEN, _description(error)) from error
    if not start:
        raise DecodeError(path, EMPTY)
    return start


def _open_container(path: Path) -> Any:
    try:
        # Without "file:" FFmpeg would take a name such as "a:b.webm" for an address.
        container = av.open(f"file:{path}")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = _reason_not_opened(path)
        raise DecodeError(path, reason, _description(error) if reason == DOES_NOT_OPEN else "") from error
    streams = container.streams.video
    problems = {
        TEXT: container.format.name in _TEXT_ART,
        # FFmpeg's formats of single images are called jpeg_pipe, png_pipe and so on.
        PICTURE: container.format.name.endswith("_pipe"),
        "no video stream": not streams,
        "a codec without a decoder here": streams and streams[0].codec_context is None,
    }
    for reason, is_present in problems.items():
        if is_present:
            container.close()
            raise DecodeError(path, reason)
    return container


def _reason_not_opened(path: Path) -> str:
    """Say why a file is not a video: a failed download is often a web page with an error message."""
    start = _first_bytes(path)[:512]
    if re.match(rb"\s*(<!doctype html|<html|<\?xml)", start.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        return WEB_PAGE
    return TEXT if start.isascii() and b"\0" not in start else DOES_NOT_OPEN


def _read_header(container: Any) -> VideoHeader:
    """Read the header, with the size of the frames as stored."""
    stream = container.streams.video[0]
    context = stream.codec_context
    return VideoHeader(
        width=context.width,
        height=context.height,
        fps=float(stream.average_rate) if stream.average_rate else None,
        codec=context.name if context.codec is None else context.codec.canonical_name,
        duration=None if container.duration is None else container.duration / av.time_base,
    )


def _quarter_turns(frame: Any) -> int:
    """Return the quarter turns, anticlockwise, from the stored frame to the shown one."""
    return round(float(frame.rotation) / 90) % 4


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, DOES_NOT_DECODE, _description(error)) from error


def _description(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
