"""Clips of videos, the order of an epoch's samples, and batches.

A sample is a function of (seed, epoch, index) alone, not of workers, processes or interruptions. So a
training sample is requested by the pair (epoch, index).

A clip has the shape (3, T, S, S), but its memory layout is that of (T, S, S, 3), which decoders and resizing use.
`collate_clips` keeps this layout for a batch. Folding the batch to (N*T, 3, S, S) in channels-last memory is then
a view, while PyTorch's default collation would copy every pixel twice more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ffnrepro.recipe import transforms
from ffnrepro.recipe.sampling import segment_indices

Crop = Literal["multi_scale", "random", "centre"]

Key = int | tuple[int, int]
"""The key that requests a sample: (epoch, index) in training, index in evaluation."""

Sample = tuple[dict[int, Tensor], int]
"""Clips by frame count T, uint8 of shape (3, T, S, S), and the label."""

Batch = tuple[dict[int, Tensor], Tensor]
"""Clips by frame count T, uint8 of shape (N, 3, T, S, S), and labels, int64 of shape (N,)."""


class Video(Protocol):
    """An opened video."""

    def frames(self, positions: Any) -> NDArray[np.uint8]:
        """Decode the frames at these positions: RGB of shape (n, H, W, 3)."""


class ClipDataset(Dataset[Sample]):
    """The clips of each video, one for each frame count, from one decoding and one crop.

    Frames are drawn for each frame count independently. Errors of `open_video` are passed on.

    Args:
        manifest: Rows of one split with the columns `id`, `path` (relative to `videos`), `frames` and `class`.
        videos: Folder of the videos.
        open_video: Function that opens a video file, or a folder of frames.
        frame_counts: Number of frames T of each clip of a sample.
        size: Height and width S of the clips in pixels.
        short_side: Length in pixels to which a frame's short side is resized before the crop of `size` (unused by
            `multi_scale`, whose crops are fractions of the short side).
        crop: `multi_scale` (published) or `random` for training, with random frames; `centre` for evaluation, with
            the centre frames and nothing random.
        flip: Whether a random half of the training samples is flipped horizontally, all clips of a sample
            alike.
        seed: Seed that, together with epoch and index, determines everything random.
        cache: Whether each process keeps every decoded video in memory; for small data sets.
    """

    def __init__(
        self,
        *,
        manifest: pd.DataFrame,
        videos: Path,
        open_video: Callable[[Path], Video],
        frame_counts: Sequence[int],
        size: int = 224,
        short_side: int = 256,
        crop: Crop,
        flip: bool = False,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        if crop not in ("multi_scale", "random", "centre"):
            raise ValueError(f"crop must be multi_scale, random or centre, not {crop!r}")
        if not frame_counts or min(frame_counts) < 1:
            raise ValueError(f"a clip needs at least 1 frame, got {tuple(frame_counts)}")
        if not 1 <= size <= short_side:
            raise ValueError(f"a crop of {size} does not fit into a short side of {short_side}")
        if manifest["class"].isna().any():
            raise ValueError("the manifest has rows without a class: a data set needs a label for each")
        # Arrays of fixed width, not lists of objects: forked workers would copy each memory page whose reference counts
        # they change.
        self._paths = np.asarray(manifest["path"], dtype=np.str_)
        self._frames = np.asarray(manifest["frames"], dtype=np.int64)
        self._classes = np.asarray(manifest["class"], dtype=np.int64)
        self._videos = Path(videos)
        self._open_video = open_video
        self._frame_counts = tuple(frame_counts)
        self._size = size
        self._short_side = short_side
        self._crop = crop
        self._flip = flip
        self._seed = seed
        self._cache: dict[int, NDArray[np.uint8]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._paths)

    def path_of(self, index: int) -> Path:
        """Return the file, or the folder of frames, of a sample."""
        return self._videos / str(self._paths[index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cache: a spawned worker fills its own."""
        return self.__dict__ | {"_cache": None if self._cache is None else {}}

    def __getitem__(self, key: Key) -> Sample:
        """Return the clips and the label of a video."""
        generator, index = self._generator(key)
        frames = int(self._frames[index])
        chosen = [segment_indices(frames, count, generator) for count in self._frame_counts]
        # A frame that several frame counts share is decoded and resized once.
        union, positions = np.unique(np.concatenate(chosen), return_inverse=True)
        pixels = self._crop_frames(self._read(index, union), generator)
        # In memory order: (n, S, S, 3).
        rows = pixels.permute(0, 2, 3, 1)
        parts = np.split(positions, np.cumsum(self._frame_counts)[:-1])
        clips = {
            count: rows[torch.from_numpy(part)].permute(3, 0, 1, 2)
            for count, part in zip(self._frame_counts, parts, strict=True)
        }
        return clips, int(self._classes[index])

    def _generator(self, key: Key) -> tuple[np.random.Generator | None, int]:
        if self._crop == "centre":
            return None, key if isinstance(key, int) else key[1]
        if isinstance(key, int):
            # With a plain index, every epoch would repeat the crops and frames of the first epoch.
            raise TypeError("a training sample is asked for by (epoch, index)")
        epoch, index = key
        return np.random.default_rng([self._seed, epoch, index]), index

    def _read(self, index: int, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        path = self.path_of(index)
        if self._cache is None:
            return self._open_video(path).frames(positions)
        if index not in self._cache:
            self._cache[index] = self._open_video(path).frames(np.arange(self._frames[index]))
        return self._cache[index][positions]

    def _crop_frames(self, frames: NDArray[np.uint8], generator: np.random.Generator | None) -> Tensor:
        height, width = frames.shape[1:3]
        if generator is None:
            return transforms.evaluation_crop(frames, self._short_side, self._size)
        if self._crop == "multi_scale":
            box = transforms.multi_scale_crop_box(height, width, generator)
        else:
            box = transforms.random_crop_box(height, width, self._size, self._short_side, generator)
        pixels = transforms.crop_resize(frames, box, self._size)
        # This is drawn last, so that frames and crops are the same with and without it.
        if self._flip and generator.integers(2):
            pixels = transforms.mirrored(pixels)
        return pixels


def collate_clips(samples: Sequence[Sample]) -> Batch:
    """Collate N samples and keep the channels last in memory: the memory layout is that of (N, T, S, S, 3)."""
    clips = {
        frames: torch.stack([clip[frames].permute(1, 2, 3, 0) for clip, _ in samples]).permute(0, 4, 1, 2, 3)
        for frames in samples[0][0]
    }
    return clips, torch.tensor([label for _, label in samples])


def training_batches(
    length: int, *, seed: int, epoch: int, batch_size: int, rank: int = 0, processes: int = 1
) -> list[list[Key]]:
    """The batches of an epoch for one process: every sample at most once, in an order that depends on (seed, epoch).

    The last, incomplete batch of the epoch is dropped. Each process has its own part of every batch.

    Args:
        length: Number of samples.
        seed: Seed that, together with the epoch, determines the order.
        epoch: Number of the epoch, from 0.
        batch_size: Samples per step, over all processes.
        rank: Number of this process.
        processes: Number of processes that share each batch.

    Returns:
        Keys (epoch, index), one list for each step.
    """
    # NumPy pads seeds with zeros. The spawn key keeps this random stream apart from that of the sample (seed, epoch, 0).
    sequence = np.random.SeedSequence([seed, epoch], spawn_key=(0,))
    order = np.random.default_rng(sequence).permutation(length)
    steps = length // batch_size
    parts = order[: steps * batch_size].reshape(steps, processes, batch_size // processes)[:, rank]
    return [[(epoch, index) for index in part] for part in parts.tolist()]


def evaluation_batches(length: int, *, batch_size: int, rank: int = 0, processes: int = 1) -> list[list[Key]]:
    """The batches of an evaluation for one process: every sample of its part once, in order.

    Args:
        length: Number of samples.
        batch_size: Samples per step of this process; the last batch may have fewer.
        rank: Number of this process.
        processes: Number of processes that share the samples.
    """
    indices: list[Key] = list(range(rank, length, processes))
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
