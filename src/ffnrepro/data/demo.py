"""The demo data: a small synthetic data set that shows the effect of the paper within minutes on two CPU cores.

According to the paper ("Temporal Frequency Deviation"), a network trained at 16 frames fails at 4, because everything
moves four times as far from one frame to the next. Here this holds by construction: in eight of the twelve classes one
object moves in a direction either FAR or SLIGHTLY, and a slight motion sampled at 4 frames moves as far between frames as
a far motion sampled at 16. The clips are drawn and built to show the effect: a score on them is no evidence about
Something-Something or any other videos.

The folder has the layout of Something-Something V2: label files of the same names and fields, and one VP9 ``.webm`` for
each video. Lengths are in units of the width of the picture; x points to the right, y downwards.
"""

import hashlib
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ffnrepro.errors import UserError
from ffnrepro.files import replacing

Array = NDArray[np.float32]
Span = tuple[float, float]


class Motion(NamedTuple):
    """What happens in the clips of a class: ``direction`` is (x, y), ``distance`` the shortest and the longest one."""

    kind: Literal["move", "grow", "shrink", "approach", "part"]
    direction: tuple[int, int] = (0, 0)
    distance: Span = (0.0, 0.0)


#: Raised by hand when the code below draws other clips for the same seed.
RECIPE_VERSION: Final = 1
FRAMES_PER_SECOND: Final = 12
FAR: Final[Span] = (0.43, 0.61)
SLIGHTLY: Final[Span] = (0.13, 0.20)
RADIUS: Final[Span] = (0.13, 0.18)
ZOOM: Final[Span] = (1.8, 2.8)
#: The fraction of the clip during which the object moves; it rests before and after.
DURATION: Final[Span] = (0.7, 1.0)
#: Standard deviations of a pixel, of the brightness of a frame (a factor), of the position of a frame, of the background.
SENSOR_NOISE: Final = 6 / 255
FLICKER: Final = 0.02
JITTER: Final = 0.8 / 48
BACKGROUND_CONTRAST: Final = 0.04
ENCODER: Final = {"crf": "32", "deadline": "realtime", "cpu-used": "8", "threads": "1"}

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
SPLITS: Final = ("train", "validation")
SHAPES: Final = ("disc", "square", "triangle", "diamond", "hexagon", "cross", "ring")
TEXTURES: Final = ("striped", "checked", "banded")

README: Final = """\
Clips drawn by ffnrepro (ffnrepro.data.demo), in the layout of Something-Something V2.

This data set is built to show one effect: a network trained at 16 frames fails at 4. A slight motion sampled at
4 frames moves as far between frames as a far motion sampled at 16, so the two are confused by construction. A score on
these clips is no evidence about Something-Something or any other videos.

labels/   labels.json, train.json, validation.json
videos/   one VP9 clip for each id
recipe.json   the settings that the clips were drawn with; the same settings give the same files on the same machine
"""


@dataclass(frozen=True)
class Thing:
    """An object of a clip. ``path`` has shape (frames, 3): x and y of the centre, and the radius, in picture widths."""

    shape: str
    texture: str
    colours: Array
    angle: float
    waves: float
    path: Array

    @property
    def name(self) -> str:
        """Its name in captions."""
        return f"{self.texture} {self.shape}"


@dataclass(frozen=True)
class Clip:
    """A clip of the data set. Everything about it is a function of these fields only."""

    seed: int
    split: int
    label: int
    number: int
    frames: int
    size: int

    def generator(self) -> np.random.Generator:
        """Return the random generator of this clip."""
        return np.random.default_rng([self.seed, self.split, self.label, self.number])


def make_demo_data(
    folder: Path,
    *,
    seed: int = 0,
    train_per_class: int = 80,
    validation_per_class: int = 40,
    frames: int = 48,
    size: int = 64,
    workers: int | None = None,
    progress: bool = False,
) -> str:
    """Write the data set into ``folder``: ``labels/*.json``, ``videos/{id}.webm``, ``recipe.json``, ``README.txt``.

    The same arguments give the same files, byte for byte, on the same machine. A complete folder is left unchanged, an
    interrupted one is continued, and a file that was removed is written again.

    Args:
        folder: The folder to write to; it may exist if it is empty or was made with the same arguments.
        seed: A number from 0.
        train_per_class: Training clips of each of the twelve classes.
        validation_per_class: Validation clips of each class.
        frames: Frames of a clip, at 12 a second.
        size: Width and height in pixels; decord reads no clip of 48.
        workers: Processes that draw and encode; by default one for each CPU. They are spawned, so a script that calls
            this function must guard its entry with ``if __name__ == "__main__"``.
        progress: Whether to show a progress bar.

    Returns:
        One line: how many clips were made, or that the folder was already complete.

    Raises:
        UserError: The folder holds something else, or clips made with other arguments.
    """
    folder = Path(folder)
    counts = dict(zip(SPLITS, (train_per_class, validation_per_class), strict=True))
    _claim(folder, _recipe(seed=seed, counts=counts, frames=frames, size=size))

    clips = [
        Clip(seed, split, label, number, frames, size)
        for split, name in enumerate(SPLITS)
        for label in range(len(CLASSES))
        for number in range(counts[name])
    ]
    # Ids are in a random order, so that no listing is sorted by class.
    ids = [str(i + 1) for i in np.random.default_rng([seed, len(SPLITS)]).permutation(len(clips))]
    named = dict(sorted(zip(ids, clips, strict=True), key=lambda item: int(item[0])))

    videos, labels = folder / "videos", folder / "labels"
    videos.mkdir(exist_ok=True)
    labels.mkdir(exist_ok=True)
    present = {path.name for path in videos.iterdir()}
    missing = [
        (videos / f"{name}.webm", clip) for name, clip in named.items() if f"{name}.webm" not in present
    ]
    texts = [labels / "labels.json", *(labels / f"{split}.json" for split in SPLITS), folder / "README.txt"]
    if not missing and all(path.is_file() for path in texts):
        return f"{folder}: already complete, {len(clips)} clips"

    for _ in tqdm(
        _write_all(missing, workers), total=len(missing), desc="clips", unit="clip", disable=not progress
    ):
        pass
    # Texts are written after the clips, and README.txt last: a folder without it is incomplete.
    _write(texts[0], _as_json({_class_name(template): str(index) for index, template in enumerate(CLASSES)}))
    for split, path in enumerate(texts[1:-1]):
        _write(path, _as_json([_row(name, clip) for name, clip in named.items() if clip.split == split]))
    _write(texts[-1], README.encode())
    return f"{folder}: made {len(missing)} of {len(clips)} clips, complete"


def plan(clip: Clip) -> tuple[list[Thing], np.random.Generator]:
    """Draw the objects of a clip and their paths.

    Returns:
        The objects, and the generator of the clip, from which the rest of the clip is drawn.
    """
    generator = clip.generator()
    motion = list(CLASSES.values())[clip.label]
    progress = _progress(clip.frames, generator)
    if motion.kind in ("approach", "part"):
        paths = _pair(motion, progress, generator)
    elif motion.kind == "move":
        paths = [_move(motion, progress, generator)]
    else:
        paths = [_zoom(motion, progress, generator)]
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
    """Draw the frames of a clip: (frames, size, size, 3)."""
    things, generator = plan(clip)
    frames, size = clip.frames, clip.size
    camera = (
        (generator.standard_normal((frames, 2)) * JITTER).clip(-3 * JITTER, 3 * JITTER).astype(np.float32)
    )
    pictures = _background(things[0].colours[0], camera, size, generator)
    for thing in things:
        _paint(pictures, thing, camera)
    pictures *= 1 + FLICKER * generator.standard_normal((frames, 1, 1, 1), dtype=np.float32)
    pictures += SENSOR_NOISE * generator.standard_normal(pictures.shape, dtype=np.float32)
    pictures *= 255
    pictures += 0.5
    return np.clip(pictures, 0, 255, out=pictures).astype(np.uint8)


def encode(pictures: NDArray[np.uint8]) -> bytes:
    """Encode RGB frames (frames, H, W, 3) to VP9 ``.webm``: the same bytes for the same frames on the same machine."""
    import av  # noqa: PLC0415 - not needed to recognise a complete folder

    buffer = io.BytesIO()
    # Without "bitexact" the muxer writes a random segment id.
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=FRAMES_PER_SECOND, options=dict(ENCODER))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 0
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# How things move: (frames, 3) paths of x, y and radius.


def _progress(frames: int, generator: np.random.Generator) -> NDArray[np.float64]:
    duration = generator.uniform(*DURATION)
    start = generator.uniform(0, 1 - duration)
    progress = np.clip((np.linspace(0, 1, frames) - start) / duration, 0, 1)
    if generator.random() < 0.5:
        progress = progress * progress * (3 - 2 * progress)
    return progress


def _move(
    motion: Motion, progress: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    # The whole path lies inside the picture and is uniform there, for far and slight motion alike, so that one frame
    # tells as little as possible about the class.
    radius = generator.uniform(*RADIUS)
    way = generator.uniform(*motion.distance) * np.array(motion.direction)
    middle = generator.uniform(radius + abs(way) / 2, 1 - radius - abs(way) / 2)
    centre = middle + (progress[:, None] - 0.5) * way
    return np.column_stack([centre, np.full(len(progress), radius)])


def _zoom(
    motion: Motion, progress: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    # The object has the usual radius in the middle of the motion.
    radius = generator.uniform(*RADIUS)
    zoom = generator.uniform(*ZOOM)
    largest = radius * zoom**0.5
    centre = generator.uniform(largest, 1 - largest, 2)
    power = progress - 0.5 if motion.kind == "grow" else 0.5 - progress
    return np.column_stack([np.tile(centre, (len(progress), 1)), radius * zoom**power])


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
    # Where the objects are farthest apart, both are inside the picture.
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


def _background(colour: Array, camera: Array, size: int, generator: np.random.Generator) -> Array:
    """Draw smooth noise around a colour, (frames, size, size, 3), seen by a camera that shakes by ``camera``."""
    margin = int(np.ceil(3 * JITTER * size)) + 1
    full = size + 2 * margin
    noise = sum(
        _stretch(generator.standard_normal((cells, cells, 3), dtype=np.float32), full) for cells in (4, 9, 20)
    )
    scene = colour + BACKGROUND_CONTRAST * cast(Array, noise)
    pictures = np.empty((len(camera), size, size, 3), np.float32)
    whole = np.floor(camera * size)
    rest = camera * size - whole
    for picture, (left, top), (x, y) in zip(pictures, whole.astype(int) + margin, rest, strict=True):
        rows = scene[top : top + size + 1, left : left + size + 1]
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
    """Paint an object into pictures (frames, size, size, 3), in place."""
    size = pictures.shape[1]
    pixels = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    radius = thing.path[:, 2]
    across = (pixels - (thing.path[:, 0] - camera[:, 0])[:, None]) / radius[:, None]
    down = (pixels - (thing.path[:, 1] - camera[:, 1])[:, None]) / radius[:, None]
    # Only a window around the object is painted. It moves with the object and has the same size in every frame.
    window = min(size, int(np.ceil(2 * float(radius.max()) * size)) + 2)
    left, top = (
        np.clip(((centre - shift) * size - window / 2).round().astype(int), 0, size - window)
        for centre, shift in zip(thing.path.T[:2], camera.T, strict=True)
    )
    frames = np.arange(len(pictures))[:, None]
    columns = left[:, None] + np.arange(window)
    rows = top[:, None] + np.arange(window)
    x = across[frames, columns][:, None, :]
    y = down[frames, rows][:, :, None]

    cosine, sine = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u, v = x * cosine + y * sine, y * cosine - x * sine
    edge = _outside(thing.shape, u, v) * (radius * size)[:, None, None]
    cover = np.clip(0.5 - edge, 0, 1)[..., None]
    blend = _texture(thing.texture, u * np.float32(thing.waves), v * np.float32(thing.waves))[..., None]
    paint = thing.colours[1] + blend * (thing.colours[2] - thing.colours[1])
    where = (frames[:, :, None], rows[:, :, None], columns[:, None, :])
    under = pictures[where]
    pictures[where] = under + cover * (paint - under)


def _outside(shape: str, u: Array, v: Array) -> Array:
    """Return about how far a point lies outside a shape within the unit circle; negative inside."""
    if shape == "square":
        return cast(Array, np.maximum(abs(u), abs(v)) - np.float32(0.5**0.5))
    if shape == "triangle":
        return _polygon(3, u, v)
    if shape == "hexagon":
        return _polygon(6, u, v)
    if shape == "diamond":
        return cast(Array, (abs(u) * np.float32(0.6) + abs(v) - np.float32(0.6)) * np.float32(0.857))
    if shape == "cross":
        long, short = np.float32(0.93), np.float32(0.36)
        upright = np.maximum(abs(u) - short, abs(v) - long)
        return cast(Array, np.minimum(upright, np.maximum(abs(u) - long, abs(v) - short)))
    from_centre = np.hypot(u, v)
    if shape == "ring":
        return cast(Array, abs(from_centre - np.float32(0.7)) - np.float32(0.3))
    return cast(Array, from_centre - np.float32(1))


def _polygon(corners: int, u: Array, v: Array) -> Array:
    sides = 2 * np.pi * np.arange(corners) / corners
    distance = -np.ones_like(u)
    for side in sides:
        np.maximum(distance, u * np.float32(np.cos(side)) + v * np.float32(np.sin(side)), out=distance)
    return cast(Array, distance - np.float32(np.cos(np.pi / corners)))


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


def _recipe(*, seed: int, counts: dict[str, int], frames: int, size: int) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "made_by": "ffnrepro.data.demo",
        "version": RECIPE_VERSION,
        "seed": seed,
        "clips_per_class": counts,
        "frames": frames,
        "size": size,
        "frames_per_second": FRAMES_PER_SECOND,
        "radius": RADIUS,
        "zoom": ZOOM,
        "duration": DURATION,
        "sensor_noise": SENSOR_NOISE,
        "flicker": FLICKER,
        "jitter": JITTER,
        "background_contrast": BACKGROUND_CONTRAST,
        "encoder": ENCODER,
        "classes": {template: motion._asdict() for template, motion in CLASSES.items()},
    }
    return {**recipe, "digest": hashlib.sha256(_as_json(recipe)).hexdigest()}


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Write the recipe into a new folder before all else; refuse a folder that holds something else."""
    fix = "delete it or choose another folder"
    marker = folder / "recipe.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder for the demo data")
    if marker.is_file():
        try:
            found = json.loads(marker.read_bytes())["digest"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{marker} is not a recipe of demo data: {fix}") from None
        if found != recipe["digest"]:
            raise UserError(f"{folder} holds demo data of another recipe (see {marker}): {fix}")
        return
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files and no recipe.json of demo data: {fix}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(marker, _as_json(recipe))


def _write_all(missing: list[tuple[Path, Clip]], workers: int | None) -> Iterator[None]:
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, len(missing))
    if workers <= 1:
        yield from map(_write_clip, missing)
        return
    # Spawned, because a fork breaks the threads that the caller may have (of PyTorch, of a decoder).
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(_write_clip, missing, chunksize=8)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """End a worker when its parent is killed; otherwise it would wait for ever."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_clip(task: tuple[Path, Clip]) -> None:
    path, clip = task
    _write(path, encode(draw(clip)))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _row(name: str, clip: Clip) -> dict[str, Any]:
    template = list(CLASSES)[clip.label]
    things = [f"a {thing.name}" for thing in plan(clip)[0]]
    label = template.lower()
    for thing in things:
        label = label.replace("[something]", thing, 1)
    return {"id": name, "label": label, "template": template, "placeholders": things}


def _class_name(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
