"""The demo data: a small synthetic data set that shows the effect of the paper within minutes on two CPU cores.

According to the paper ("Temporal Frequency Deviation"), a network trained at 16 frames fails at 4, because everything
moves four times as far from one frame to the next. Here this holds by construction: in eight of the twelve classes one
object moves in a direction either FAR or SLIGHTLY, and a slight motion sampled at 4 frames moves as far between frames as
a far motion sampled at 16. The clips are synthetic and designed to show the effect: a score on them is no evidence about
Something-Something or any other videos.

The folder has the layout of Something-Something V2: label files of the same names and fields, and one VP9 ``.webm`` for
each video. Lengths are in units of the image width; x points to the right, y downwards.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ffnrepro.errors import UserError
from ffnrepro.files import replacing, write_json, write_text

Array = NDArray[np.float32]
Span = tuple[float, float]


class Motion(NamedTuple):
    """The motion in the clips of a class: ``direction`` is (x, y), ``distance`` is the shortest and the longest distance."""

    kind: Literal["move", "grow", "shrink", "approach", "part"]
    direction: tuple[int, int] = (0, 0)
    distance: Span = (0.0, 0.0)


#: Raised by hand when the code below draws other clips for the same seed.
RECIPE_VERSION: Final = 1
SIZE: Final = 64
FAR: Final[Span] = (0.43, 0.61)
SLIGHTLY: Final[Span] = (0.13, 0.20)
RADIUS: Final[Span] = (0.13, 0.18)
#: Standard deviation of the position of the camera, which shakes, in a frame.
JITTER: Final = 0.8 / 48

#: Templates, in the form of the label files of Something-Something V2.
CLASSES: Final[dict[str, Motion]] = {
    "Moving [something] and [something] away from each other": Motion("part"),
    "Moving [something] and [something] closer to each other": Motion("approach"),
    "Moving [something] far down": Motion("move", (0, 1), FAR),
    "Moving [something] far to the left": Motion("move", (-1, 0), FAR),
    "Moving [something] far to the right": Motion("move", (1, 0), FAR),
    "Moving [something] far up": Motion("move", (0, -1), FAR),
    "Moving [something] slightly down": Motion("move", (0, 1), SLIGHTLY),
    "Moving [something] slightly to the left": Motion("move", (-1, 0), SLIGHTLY),
    "Moving [something] slightly to the right": Motion("move", (1, 0), SLIGHTLY),
    "Moving [something] slightly up": Motion("move", (0, -1), SLIGHTLY),
    "[Something] growing": Motion("grow"),
    "[Something] shrinking": Motion("shrink"),
}
SHAPES: Final = ("disc", "square", "triangle", "diamond", "hexagon", "cross", "ring")
CORNERS: Final = {"triangle": 3, "square": 4, "hexagon": 6}
TEXTURES: Final = ("striped", "checked", "banded")


@dataclass(frozen=True)
class Thing:
    """An object of a clip. ``path`` has shape (frames, 3): x and y of the centre, and the radius, in image widths."""

    shape: str
    texture: str
    colours: Array
    angle: float
    waves: float
    path: Array


@dataclass(frozen=True)
class Clip:
    """A clip of the data set. Everything about it is a function of these fields only."""

    seed: int
    split: int
    label: int
    number: int
    frames: int


def make_demo_data(
    folder: Path,
    *,
    seed: int = 0,
    train_per_class: int = 80,
    validation_per_class: int = 40,
    frames: int = 48,
    workers: int | None = None,
) -> str:
    """Write the data set into ``folder``: ``labels/*.json``, ``videos/{id}.webm``, ``recipe.json``, ``README.txt``.

    The same arguments give the same files, byte for byte, on the same machine. Clips that exist are kept, so an
    interrupted call can be repeated.

    Args:
        folder: The folder to write to; it may exist if it is empty or was made with the same arguments.
        seed: Seed of the data set, 0 or more.
        train_per_class: Training clips of each of the twelve classes.
        validation_per_class: Validation clips of each class.
        frames: Frames per clip, at 12 per second.
        workers: Threads that draw and encode; by default one for each CPU.

    Returns:
        One line: how many videos there are, and how many are new.

    Raises:
        UserError: The folder holds other files, or clips made with other arguments.
    """
    counts = {"train": train_per_class, "validation": validation_per_class}
    recipe = {"version": RECIPE_VERSION, "seed": seed, "clips_per_class": counts, "frames": frames}
    _claim(folder, recipe)
    clips = [
        Clip(seed, split, label, number, frames)
        for split, count in enumerate(counts.values())
        for label in range(len(CLASSES))
        for number in range(count)
    ]
    # Ids are in a random order, so that no listing is sorted by class.
    ids = (np.random.default_rng([seed, len(counts)]).permutation(len(clips)) + 1).tolist()
    named = sorted(zip(ids, clips, strict=True))

    missing = {path: clip for name, clip in named if not (path := folder / f"videos/{name}.webm").exists()}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        written = pool.map(_write_clip, missing, missing.values())
        for _ in tqdm(written, total=len(missing), desc="clips", unit="clip", disable=None):
            pass
    classes = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(CLASSES)}
    write_json(folder / "labels/labels.json", classes)
    for split, name in enumerate(counts):
        rows = [_row(number, clip) for number, clip in named if clip.split == split]
        write_json(folder / f"labels/{name}.json", rows)
    write_text(folder / "README.txt", f"Generated by {__name__}.\n\n{__doc__}")
    return f"{folder}: {len(clips)} videos, {len(missing)} of them new"


def plan(clip: Clip) -> tuple[list[Thing], np.random.Generator]:
    """Draw the objects of a clip and their paths.

    Returns:
        The objects, and the generator of the clip, from which the rest of the clip is drawn.
    """
    generator = np.random.default_rng([clip.seed, clip.split, clip.label, clip.number])
    motion = list(CLASSES.values())[clip.label]
    progress = _progress(clip.frames, generator)
    paths = {"move": _move, "grow": _zoom, "shrink": _zoom, "approach": _pair, "part": _pair}[motion.kind](
        motion, progress, generator
    )
    grey = generator.uniform(0.3, 0.7)
    things = [
        Thing(
            shape=str(generator.choice(SHAPES)),
            texture=str(generator.choice(TEXTURES)),
            colours=_colours(grey, generator),
            angle=float(generator.uniform(0, 2 * np.pi)),
            waves=float(generator.uniform(4, 8)),
            path=path.astype(np.float32),
        )
        for path in paths
    ]
    return things, generator


def draw(clip: Clip) -> NDArray[np.uint8]:
    """Draw the frames of a clip: (frames, SIZE, SIZE, 3)."""
    things, generator = plan(clip)
    shaking = (generator.standard_normal((clip.frames, 2)) * JITTER).clip(-3 * JITTER, 3 * JITTER)
    camera = shaking.astype(np.float32)
    pictures = _background(things[0].colours[0], camera, generator)
    for thing in things:
        _paint(pictures, thing, camera)
    # The brightness flickers from frame to frame, and each pixel has the noise of a sensor.
    pictures *= 1 + 0.02 * generator.standard_normal((clip.frames, 1, 1, 1), dtype=np.float32)
    pictures += 6 / 255 * generator.standard_normal(pictures.shape, dtype=np.float32)
    pictures *= 255
    pictures += 0.5
    return np.clip(pictures, 0, 255, out=pictures).astype(np.uint8)


def encode(pictures: NDArray[np.uint8], path: Path) -> None:
    """Encode RGB frames (frames, H, W, 3) to VP9 ``.webm``: the same bytes for the same frames on the same machine."""
    options = {"crf": "32", "deadline": "realtime", "cpu-used": "8", "threads": "1"}
    # Without "bitexact" the muxer writes a random segment id.
    with av.open(str(path), "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 0
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


# How things move: (frames, 3) paths of x, y and radius.


def _progress(frames: int, generator: np.random.Generator) -> NDArray[np.float64]:
    # The object moves during this fraction of the clip, and rests before and after.
    duration = generator.uniform(0.7, 1)
    start = generator.uniform(0, 1 - duration)
    progress = np.clip((np.linspace(0, 1, frames) - start) / duration, 0, 1)
    if generator.random() < 0.5:
        progress = progress * progress * (3 - 2 * progress)
    return progress


def _move(
    motion: Motion, progress: NDArray[np.float64], generator: np.random.Generator
) -> list[NDArray[np.float64]]:
    # The whole path is inside the image and is uniform there, for far and slight motion alike, so that one frame
    # tells as little as possible about the class.
    radius = generator.uniform(*RADIUS)
    way = generator.uniform(*motion.distance) * np.array(motion.direction)
    middle = generator.uniform(radius + abs(way) / 2, 1 - radius - abs(way) / 2)
    centre = middle + (progress[:, None] - 0.5) * way
    return [np.column_stack([centre, np.full(len(progress), radius)])]


def _zoom(
    motion: Motion, progress: NDArray[np.float64], generator: np.random.Generator
) -> list[NDArray[np.float64]]:
    # The object has the usual radius in the middle of the motion.
    radius = generator.uniform(*RADIUS)
    zoom = generator.uniform(1.8, 2.8)
    largest = radius * zoom**0.5
    centre = generator.uniform(largest, 1 - largest, 2)
    power = progress - 0.5 if motion.kind == "grow" else 0.5 - progress
    return [np.column_stack([np.tile(centre, (len(progress), 1)), radius * zoom**power])]


def _pair(
    motion: Motion, progress: NDArray[np.float64], generator: np.random.Generator
) -> list[NDArray[np.float64]]:
    # Each object moves slightly, along a line of any direction; at the smallest distance they touch.
    radii = generator.uniform(*RADIUS, 2)
    nearest = radii.sum()
    angle = generator.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    farthest = (1 - nearest) / abs(along).max()
    change = min(2 * generator.uniform(*SLIGHTLY), farthest - nearest)
    near = generator.uniform(nearest, max(nearest, farthest - change))
    # Both objects are inside the image even where they are farthest apart.
    half = (near + change) / 2 * along
    low = np.maximum(radii[0] + half, radii[1] - half)
    high = np.minimum(1 - radii[0] + half, 1 - radii[1] - half)
    middle = generator.uniform(low, np.maximum(low, high))
    apart = near + change * (progress if motion.kind == "part" else 1 - progress)
    return [
        np.column_stack([middle + sign * apart[:, None] / 2 * along, np.full(len(progress), radius)])
        for sign, radius in zip((-1, 1), radii, strict=True)
    ]


# How things look.


def _colours(grey: float, generator: np.random.Generator) -> Array:
    """Draw three colours, (3, 3): of the background, and two of the texture that differ clearly from it."""
    background = grey + generator.uniform(-0.05, 0.05, 3)
    candidates = generator.random((2, 6, 3))
    distance = abs((candidates - background) @ np.array([0.3, 0.6, 0.1]))
    chosen = candidates[np.arange(2), distance.argmax(axis=1)]
    return np.vstack([background, chosen]).astype(np.float32)


def _background(colour: Array, camera: Array, generator: np.random.Generator) -> Array:
    """Draw smooth noise around a colour, (frames, SIZE, SIZE, 3), seen by a camera that shakes by ``camera``."""
    margin = int(np.ceil(3 * JITTER * SIZE)) + 1
    grids = (generator.standard_normal((cells, cells, 3), dtype=np.float32) for cells in (4, 9, 20))
    noise = sum(_stretch(grid, SIZE + 2 * margin) for grid in grids)
    scene = colour + 0.04 * cast(Array, noise)
    pictures = np.empty((len(camera), SIZE, SIZE, 3), np.float32)
    whole = np.floor(camera * SIZE)
    rest = camera * SIZE - whole
    for picture, (left, top), (x, y) in zip(pictures, whole.astype(int) + margin, rest, strict=True):
        rows = scene[top : top + SIZE + 1, left : left + SIZE + 1]
        rows = rows[:-1] + y * (rows[1:] - rows[:-1])
        picture[:] = rows[:, :-1] + x * (rows[:, 1:] - rows[:, :-1])
    return pictures


def _stretch(grid: Array, size: int) -> Array:
    """Interpolate a grid (cells, cells, 3) linearly to (size, size, 3)."""
    position = np.linspace(0, len(grid) - 1, size, dtype=np.float32)
    low = np.minimum(position.astype(int), len(grid) - 2)
    part = (position - low).astype(np.float32)[:, None]
    rows = grid[low] + part[..., None] * (grid[low + 1] - grid[low])
    return cast(Array, rows[:, low] + part * (rows[:, low + 1] - rows[:, low]))


def _paint(pictures: Array, thing: Thing, camera: Array) -> None:
    """Paint an object into pictures (frames, SIZE, SIZE, 3), in place."""
    pixels = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) / np.float32(SIZE)
    radius = thing.path[:, 2, None, None]
    centre = (thing.path[:, :2] - camera)[:, :, None, None]
    x = (pixels - centre[:, 0]) / radius
    y = (pixels[:, None] - centre[:, 1]) / radius
    cosine, sine = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u = cast(Array, x * cosine + y * sine)
    v = cast(Array, y * cosine - x * sine)
    edge = _distance_outside(thing.shape, u, v) * (radius * SIZE)
    cover = np.clip(0.5 - edge, 0, 1)[..., None]
    blend = _texture(thing.texture, u * np.float32(thing.waves), v * np.float32(thing.waves))[..., None]
    paint = thing.colours[1] + blend * (thing.colours[2] - thing.colours[1])
    pictures += cover * (paint - pictures)


def _distance_outside(shape: str, u: Array, v: Array) -> Array:
    """Return about how far a point lies outside a shape within the unit circle; negative inside."""
    if shape in CORNERS:
        sides = 2 * np.pi * np.arange(CORNERS[shape]) / CORNERS[shape]
        normals = np.column_stack([np.cos(sides), np.sin(sides)]).astype(np.float32)
        farthest = np.max([u * x + v * y for x, y in normals], axis=0)
        return cast(Array, farthest - np.float32(np.cos(np.pi / CORNERS[shape])))
    if shape == "diamond":
        return cast(Array, (abs(u) * np.float32(0.6) + abs(v) - np.float32(0.6)) * np.float32(0.857))
    if shape == "cross":
        long, short = np.float32(0.93), np.float32(0.36)
        upright = np.maximum(abs(u) - short, abs(v) - long)
        return cast(Array, np.minimum(upright, np.maximum(abs(u) - long, abs(v) - short)))
    if shape == "ring":
        return cast(Array, abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.3))
    return cast(Array, np.hypot(u, v) - np.float32(1))


def _texture(texture: str, u: Array, v: Array) -> Array:
    """Return the share of the second colour, 0 to 1."""
    if texture == "striped":
        wave = np.sin(u)
    elif texture == "checked":
        wave = np.sin(u) * np.sin(v) * np.float32(2)
    else:
        wave = np.cos(np.hypot(u, v))
    return cast(Array, np.clip(np.float32(0.5) + np.float32(1.5) * wave, 0, 1))


# Files.


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Write the recipe into a new folder before anything else; refuse a folder that holds other files."""
    marker, text = folder / "recipe.json", json.dumps(recipe)
    is_known = marker.is_file() and marker.read_bytes() == text.encode()
    if not is_known and folder.exists() and (folder.is_file() or any(folder.glob("[!.]*"))):
        raise UserError(
            f"{folder}: holds other files, or demo data of other settings or another version than {recipe}: delete it or "
            "choose another folder"
        )
    write_text(marker, text)


def _write_clip(path: Path, clip: Clip) -> None:
    with replacing(path) as temporary:
        encode(draw(clip), temporary)


def _row(number: int, clip: Clip) -> dict[str, Any]:
    template = list(CLASSES)[clip.label]
    things = [f"a {thing.texture} {thing.shape}" for thing in plan(clip)[0]]
    label = template.lower().replace("[something]", "{}").format(*things)
    return {"id": str(number), "label": label, "template": template, "placeholders": things}
