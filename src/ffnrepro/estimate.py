"""Estimates how long a training takes: the time of the GPU or the time to read the frames, whichever is longer.

docs/performance.md has a table of such estimates.
"""

import math
from typing import NamedTuple

from ffnrepro.methods import AnyMethod
from ffnrepro.recipe.methods.mixed import Mixed
from ffnrepro.recipe.methods.proportional import Proportional
from ffnrepro.runs import RunSettings

FRAMES_PER_SECOND = {"tsm": 5293, "ffn": 4758}
"""Frames that one H200 trains on per second: ResNet-50, 224 px, float16, batches of 32 videos."""

SECONDS_PER_FRAME = 1 / 16 / 48
"""Time of one core to decode a frame of a video of 427x240 px. At any frame count, a sample takes the time of all frames of its
video, because all frames before the last one that it needs are decoded. (Measured: 16 samples per second from videos of 48
frames.)"""

SECONDS_PER_CACHED_FRAME = 0.0011
"""Time of one core to read a frame from the frame cache on the same machine. (`benchmarks/loader.py` measures the ratio.)"""

FRAMES_OF_VIDEO = {"kinetics-400": 300, "hmdb51": 95}
"""Approximate number of frames of a video, by data set; 48 in all others."""

FRAME_DATASETS = ("something-something-v1",)
"""Data sets that are released as frames, which take as long to read as cached frames."""

GFLOPS = {10: 0.9, 18: 1.8, 50: 4.1, 101: 7.8}
"""Billions of multiply-adds per frame at 224 px, by depth."""

VIDEOS = {
    "something-something-v1": 86_017,
    "something-something-v2": 168_913,
    "kinetics-400": 240_000,
    "hmdb51": 3_570,
}
"""Number of videos in the training split, by data set."""


class Estimate(NamedTuple):
    """GPU hours of a training (None: unknown), and what they are based on."""

    hours: float | None
    basis: str


class PastTraining(NamedTuple):
    """A finished training.

    Attributes:
        name: Run and seed.
        settings: Settings of the run.
        videos: Number of videos in the training split.
        hours: Hours that it took, on all its GPUs together.
    """

    name: str
    settings: RunSettings
    videos: int
    hours: float


def estimate(
    settings: RunSettings, *, videos: int | None, cores: int, gpu: bool, past: PastTraining | None
) -> Estimate:
    """Estimate a whole training.

    Args:
        settings: Settings of the run.
        videos: Number of videos in the training split; None: the data set's official number, if known.
        cores: Number of CPU cores that read videos or cached frames.
        gpu: Whether a GPU trains. For a CPU there are no measured rates, and reading takes hardly any of the time.
        past: An earlier training of the same family, whose measured time is scaled.
    """
    videos = videos or VIDEOS.get(settings.dataset)
    if videos is None:
        return Estimate(None, "the videos are not counted yet")
    readers = cores if gpu else math.inf
    seconds = _seconds(settings, videos, readers)
    gpus = settings.training.gpus
    if past is not None:
        ratio = seconds / _seconds(past.settings, past.videos, readers)
        return Estimate(past.hours * ratio * gpus, f"measured on {past.name}")
    if not gpu:
        return Estimate(None, "no similar training has finished here")
    basis = f"on an H200 with {cores} cores, limited by "
    fastest = _seconds(settings, videos, math.inf)
    if seconds == fastest:
        basis += "the GPU"
    else:
        basis += "decoding" if settings.cache == "none" else "the frame cache"
        enough = math.ceil(cores * seconds / fastest)
        remedies = {f"with {enough} cores": fastest}
        if _decodes_videos(settings):
            cached = _seconds(settings.model_copy(update={"cache": "jpeg"}), videos, cores)
            remedies["with data.cache: jpeg"] = cached
        savings = [f"{duration(time / 3600 * gpus, gpu=True)} {remedy}" for remedy, time in remedies.items()]
        basis += f"; {', '.join(savings)}"
    return Estimate(seconds / 3600 * gpus, basis)


def _seconds(settings: RunSettings, videos: int, cores: float) -> float:
    counts = settings.method.frame_counts
    network = settings.network
    # Cost of a frame, relative to a frame through ResNet-50 at 224 px.
    cost = GFLOPS[network.depth] / GFLOPS[50] * (network.width / 64 * settings.crop_size / 224) ** 2
    computing = (
        _trained_frames(settings.method)
        * cost
        / FRAMES_PER_SECOND[settings.method.family]
        / settings.training.gpus
    )
    # Only frames in some clip are read; a clip of T frames has one frame from each T-th part of the video.
    frames = FRAMES_OF_VIDEO.get(settings.dataset, 48)
    left_out = math.prod(max(0.0, 1 - count / frames) for count in counts)
    if _decodes_videos(settings):
        reading = SECONDS_PER_FRAME * frames
    else:
        reading = SECONDS_PER_CACHED_FRAME * frames * (1 - left_out)
    return settings.training.epochs * videos * max(computing, reading / cores)


def _decodes_videos(settings: RunSettings) -> bool:
    """Whether samples are read from videos, and not from frames of a data set or of the frame cache."""
    return settings.cache == "none" and settings.dataset not in FRAME_DATASETS


def _trained_frames(method: AnyMethod) -> float:
    """Average number of frames of a video that a step trains on."""
    if not isinstance(method, Mixed | Proportional):
        return sum(method.frame_counts)
    low, high = method.train_frames
    share = method.rho if isinstance(method, Mixed) else 1 - method.varrho
    others = low + high if isinstance(method, Mixed) and method.unmixed == "both" else high
    return share * low + (1 - share) * others


def duration(hours: float, *, gpu: bool = False) -> str:
    """A duration in words: hours, or minutes if it is less than an hour."""
    unit = "GPU " if gpu else ""
    if hours >= 1:
        return f"{hours:.0f} {unit}hours" if hours >= 10 else f"{hours:.1f} {unit}hours"
    return f"{60 * hours:.0f} {unit}minutes" if hours >= 1.5 / 60 else f"a {unit}minute"
