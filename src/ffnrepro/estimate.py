"""How long a training takes: on the GPU, and to decode its videos. The slower of the two decides."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.runs import RunSettings
from ffnrepro.settings import read_settings

FRAMES_PER_SECOND = {"tsm": 5293, "ffn": 4758}
"""Frames that one H200 trains in a second: ResNet-50, 224 px, float16, batches of 32 clips."""

DECODED_PER_SECOND = 16
"""Training samples that one core decodes in a second: videos of about 48 frames, 427x240 px."""

GFLOPS = {10: 0.9, 18: 1.8, 50: 4.1, 101: 7.8}
"""Multiply-adds of one frame at 224 px, in thousand millions, by depth."""

VIDEOS = {"something-something-v1": 86_017, "something-something-v2": 168_913, "kinetics-400": 240_000}
"""Videos of the training splits."""


class Estimate(NamedTuple):
    """GPU hours of a training (None: unknown), and what they are based on."""

    hours: float | None
    basis: str


def estimate(
    settings: RunSettings, *, videos: int | None, cores: int, gpu: bool, past: Mapping[str, Any] | None
) -> Estimate:
    """Estimate a whole training.

    Args:
        settings: of the run.
        videos: of the training split; None: as of the data set, where its size is known.
        cores: that decode.
        gpu: whether a GPU trains; for other devices nothing is known beforehand.
        past: `run.json` of an earlier training of the same family; its time is scaled by the estimates of both.
    """
    videos = videos or VIDEOS.get(settings.dataset)
    if past is not None:
        earlier = read_settings(RunSettings, past["settings"])
        ratio = _seconds(settings, 1, cores) / _seconds(earlier, 1, cores)
        hours = past["wall_seconds"] / 3600 * settings.training.gpus * ratio
        return Estimate(hours, f"measured on {past['run']}, seed {past['seed']}")
    if videos is None or not gpu:
        return Estimate(None, "nothing like it was trained here")
    seconds = _seconds(settings, videos, cores)
    side = "decoding" if seconds > _seconds(settings, videos, cores=10**6) else "the GPU"
    return Estimate(
        seconds / 3600 * settings.training.gpus, f"on an H200 with {cores} cores, limited by {side}"
    )


def _seconds(settings: RunSettings, videos: int, cores: int) -> float:
    frames = sum(settings.method.frame_counts)
    cost = _cost(settings.network) * (settings.crop_size / 224) ** 2
    computing = frames * cost / FRAMES_PER_SECOND[settings.method.family] / settings.training.gpus
    decoding = 1 / (DECODED_PER_SECOND * cores)
    return settings.training.epochs * videos * max(computing, decoding)


def _cost(network: NetworkSettings) -> float:
    """Cost of a frame, relative to that of ResNet-50."""
    return GFLOPS[network.depth] / GFLOPS[50] * (network.width / 64) ** 2


def duration(hours: float, *, gpu: bool = False) -> str:
    """Hours in words, or minutes where it is less than an hour."""
    unit = "GPU " if gpu else ""
    if hours >= 1:
        return f"{hours:.0f} {unit}hours" if hours >= 10 else f"{hours:.1f} {unit}hours"
    return f"{60 * hours:.0f} {unit}minutes" if hours > 1 / 60 else f"a {unit}minute"
