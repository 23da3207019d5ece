"""Which frames of a video make a clip: one frame from each of T equal segments, as in TSN, TSM and the paper.

The segments are real intervals, so together they cover the whole video. (The published code takes segments of
``n // T`` whole frames: of 46 frames and T = 16 the last 14 would never be seen. See docs/deviations.md.)
"""

import numpy as np
from numpy.typing import NDArray


def segment_indices(
    frames: int, segments: int, generator: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Choose one frame from each of ``segments`` equal segments of a video.

    Segment i is the real interval ``[i * n / T, (i + 1) * n / T)`` with n ``frames`` and T ``segments``. With a
    generator (training) the choice is uniform over the whole frames in it; without one (evaluation) it is the
    centre, ``floor((2 i + 1) n / 2 T)``. If a video has fewer than T frames, some segments have no whole frame.
    Then the centres are taken in both modes, which repeats the frames evenly and in order. A video of T frames
    gives each frame once.

    Args:
        frames: Number of frames of the video, n >= 1.
        segments: Number of frames to choose, T >= 1.
        generator: Source of randomness of one sample; None for the deterministic centres.

    Returns:
        Frame indices in ascending order, int64, of shape (T,).

    Raises:
        ValueError: ``frames`` or ``segments`` is less than 1.
    """
    if frames < 1 or segments < 1:
        raise ValueError(f"cannot choose {segments} frames of a video of {frames}: both must be at least 1")
    # Whole-number arithmetic throughout: n / T in floating point may fall on the wrong side of a frame.
    position = np.arange(segments, dtype=np.int64)
    if generator is None or frames < segments:
        return (2 * position + 1) * frames // (2 * segments)
    edges = -(-np.arange(segments + 1, dtype=np.int64) * frames // segments)  # ceil(i * n / T)
    return generator.integers(edges[:-1], edges[1:])
