"""Example clips: frames of the user's own videos as a strip of small images."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from ffnrepro.data.decode import open_video
from ffnrepro.data.isolation import Refusal, in_child
from ffnrepro.recipe.sampling import segment_indices
from ffnrepro.report.data import Confusion

SHORT_SIDE = 120
"""Largest short side of an image in pixels; a smaller frame keeps its size."""

EXAMPLES = 3
"""Number of classes, and of confused pairs, that are shown with a clip."""

MAX_PICTURES = 8
"""Largest number of images in a strip."""


@dataclass(frozen=True)
class Choice:
    """A video that was chosen as an example.

    Attributes:
        id: id of the video.
        true: its class.
        first: class that the first row predicts.
        second: class that the other row predicts.
    """

    id: str
    true: int
    first: int
    second: int


@dataclass(frozen=True)
class Strip:
    """The images of a video.

    Attributes:
        pictures: JPEG files as `data:` URLs; none if the video cannot be read.
        problem: why it cannot be read, or empty.
    """

    pictures: Sequence[str]
    problem: str = ""


def choose_gains(both: pd.DataFrame, gains: "pd.Series[float]") -> list[Choice]:
    """Videos that only the other row predicts correctly: one from each of the classes with the largest gains.

    Args:
        both: `id`, `label`, and the predicted classes `first` and `second`.
        gains: gain of each class in points.
    """
    right = both[(both["second"] == both["label"]) & (both["first"] != both["label"])]
    best = gains[gains > 0].sort_values(ascending=False, kind="stable").index[:EXAMPLES]
    return [choice for label in best for choice in _first_of(right[right["label"] == label])]


def choose_confusions(both: pd.DataFrame, pairs: Sequence[Confusion]) -> list[Choice]:
    """Videos that the other row predicts as another class: one for each of the first pairs.

    Args:
        both: as for `choose_gains`.
        pairs: confused classes, from `confusions`.
    """
    return [
        choice
        for pair in [pair for pair in pairs if pair.second > 0][:EXAMPLES]
        for choice in _first_of(both[(both["label"] == pair.true) & (both["second"] == pair.predicted)])
    ]


def _first_of(rows: pd.DataFrame) -> Iterator[Choice]:
    for row in rows.head(1).itertuples(index=False):
        yield Choice(str(row.id), int(row.label), int(row.first), int(row.second))  # type: ignore[arg-type]


def read_strips(ids: Sequence[str], manifest: pd.DataFrame, *, videos: Path, frames: int) -> dict[str, Strip]:
    """Decode the frames of each video that a network sees, in a child process with a time limit, because of damaged files.

    Args:
        ids: ids of the videos.
        manifest: the split that they belong to.
        videos: folder of the videos.
        frames: frame count; a strip has at most `MAX_PICTURES` pictures.
    """
    rows = manifest.set_index("id").loc[list(dict.fromkeys(ids))]
    read = partial(_pictures, videos=videos, segments=min(frames, MAX_PICTURES))
    items = [
        (id_, path, int(n)) for id_, path, n in zip(rows.index, rows["path"], rows["frames"], strict=True)
    ]
    return {
        item[0]: Strip([], ": ".join(filter(None, result))) if isinstance(result, Refusal) else Strip(result)
        for item, result in in_child(read, items, seconds=30)
    }


def _pictures(item: tuple[str, str, int], *, videos: Path, segments: int) -> list[str]:
    _, path, frames = item
    decoded = open_video(videos / path).frames(segment_indices(frames, segments))
    pictures = []
    for pixels in decoded:
        picture = Image.fromarray(pixels)
        scale = min(1.0, SHORT_SIDE / min(picture.size))
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        pictures.append(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
    return pictures
