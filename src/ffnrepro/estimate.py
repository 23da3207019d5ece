"""How long a training takes: the time on the GPU or the time to decode its videos, whichever is longer."""

import math
from typing import NamedTuple

from ffnrepro.runs import RunSettings

FRAMES_PER_SECOND = {"tsm": 5293, "ffn": 4758}
"""Frames that one H200 trains on per second: ResNet-50, 224 px, float16, batches of 32 videos."""

DECODED_PER_SECOND = 16
"""Training samples that one core decodes per second: videos of about 48 frames, 427x240 px."""

GFLOPS = {10: 0.9, 18: 1.8, 50: 4.1, 101: 7.8}
"""Billions of multiply-adds per frame at 224 px, by depth."""

VIDEOS = {"something-something-v1": 86_017, "something-something-v2": 168_913, "kinetics-400": 240_000}
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
        cores: Number of CPU cores that decode.
        gpu: Whether a GPU trains. For a CPU there are no measured rates, and decoding time is negligible.
        past: An earlier training of the same family, whose measured time is scaled.
    """
    videos = videos or VIDEOS.get(settings.dataset)
    if videos is None:
        return Estimate(None, "the videos are not counted yet")
    decoders = cores if gpu else math.inf
    seconds = _seconds(settings, videos, decoders)
    gpus = settings.training.gpus
    if past is not None:
        ratio = seconds / _seconds(past.settings, past.videos, decoders)
        return Estimate(past.hours * ratio * gpus, f"measured on {past.name}")
    if not gpu:
        return Estimate(None, "no similar training has finished here")
    side = "decoding" if seconds > _seconds(settings, videos, math.inf) else "the GPU"
    return Estimate(seconds / 3600 * gpus, f"on an H200 with {cores} cores, limited by {side}")


def _seconds(settings: RunSettings, videos: int, cores: float) -> float:
    frames = sum(settings.method.frame_counts)
    network = settings.network
    # Cost of a frame, relative to a frame through ResNet-50 at 224 px.
    cost = GFLOPS[network.depth] / GFLOPS[50] * (network.width / 64 * settings.crop_size / 224) ** 2
    computing = frames * cost / FRAMES_PER_SECOND[settings.method.family] / settings.training.gpus
    decoding = 1 / (DECODED_PER_SECOND * cores)
    return settings.training.epochs * videos * max(computing, decoding)


def duration(hours: float, *, gpu: bool = False) -> str:
    """A duration in words: hours, or minutes if it is less than an hour."""
    unit = "GPU " if gpu else ""
    if hours >= 1:
        return f"{hours:.0f} {unit}hours" if hours >= 10 else f"{hours:.1f} {unit}hours"
    return f"{60 * hours:.0f} {unit}minutes" if hours > 1 / 60 else f"a {unit}minute"
