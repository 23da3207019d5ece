"""Clips like those of Something-Something V2, for the benchmarks: VP9, 427x240, 12 frames a second.

Their size matters to decoders: the pictures have the spectrum of natural scenes and the noise of a sensor, set so that a
JPEG of quality 80, 90 and 95 takes 18, 27 and 39 kB, as measured on the data set.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ffnrepro.files import replacing

HEIGHT, WIDTH, FRAMES = 240, 427, 48


def make_clips(folder: Path, count: int) -> list[Path]:
    """Write clips of 48 frames, unless they are there, and return their paths."""
    paths = [folder / f"{number}.webm" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            with replacing(path) as temporary:
                _write(temporary, np.random.default_rng(number))
    return paths


def _write(path: Path, generator: np.random.Generator) -> None:
    scene = _scene(generator)
    options = {"deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(12), options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 190_000
        for t in range(FRAMES):
            # The camera moves across the scene.
            pixels = scene[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] + generator.normal(0, 4, (HEIGHT, WIDTH, 3))
            picture = np.clip(pixels, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _scene(generator: np.random.Generator) -> NDArray[np.float64]:
    height, width = HEIGHT + FRAMES, WIDTH + 2 * FRAMES
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    noise = generator.standard_normal((3, height, width))
    layers = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.45, (height, width))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    colours = layers.transpose(1, 2, 0)
    return 120 + 40 * (0.85 * colours[..., :1] + 0.3 * colours)
