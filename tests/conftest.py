"""Videos that the tests make for themselves."""

import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ffnrepro.logs import stop_logging

from .trainings import make_data

VideoWriter = Callable[..., Path]

# A shell lets its background processes, and their children, ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_files_are_closed() -> Iterator[None]:
    """What a test lets the package say goes to its own files only."""
    yield
    stop_logging()


@pytest.fixture(scope="session")
def write_video() -> VideoWriter:
    """Give a function that writes frames (n, H, W, 3) to a video: VP9, 12 frames a second by default.

    `times` are the frames' times, in units of a frame; further options are the container's.
    """

    def write(
        target: Any,
        frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        fps: int = 12,
        codec: str = "libvpx-vp9",
        container: str | None = None,
        times: Sequence[int] | None = None,
        b_frames: int = 0,
        **muxer: str,
    ) -> Path:
        options = {"libvpx-vp9": {"crf": "10", "deadline": "realtime", "cpu-used": "8"}}.get(codec, {})
        file = target if hasattr(target, "write") else str(target)
        with av.open(file, "w", format=container, options=muxer) as output:
            stream = output.add_stream(codec, rate=Fraction(fps), options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.max_b_frames = b_frames
            if not options:
                stream.bit_rate = 8_000_000
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = number if times is None else times[number]
                frame.time_base = Fraction(1, fps)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return target

    return write


@pytest.fixture(scope="session")
def numbered_frames() -> Callable[..., NDArray[np.uint8]]:
    """Give a function that draws plain grey frames: frame i has the grey level 20 + 4 * i."""

    def draw(frames: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
        levels = (20 + 4 * np.arange(frames)).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()

    return draw


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory of the workflow, made up to the manifest (`trainings.make_data`). Tests only read it."""
    return make_data(tmp_path_factory.mktemp("data"))
