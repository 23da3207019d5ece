"""Clips of videos as PyTorch data sets: one frame count, or all frame counts of a video from one decoding.

What a sample looks like is a function of (seed, epoch, index) alone: of no worker, no rank and no resumption.
Therefore the sampler hands out pairs ``(epoch, index)`` (:class:`EpochSampler`), so that a loader's workers,
which outlive an epoch, know which epoch they work for.

A clip has the shape (3, T, S, S), but its memory is that of (T, S, S, 3), as decoders and resizing want it.
:func:`collate_clips` keeps this for a batch, and folding the batch to (N*T, 3, S, S) in channels-last memory
is then a view, where PyTorch's default collation (which works too) copies every pixel twice more.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, default_collate

from ffnrepro.data.decode import open_video
from ffnrepro.recipe import transforms
from ffnrepro.recipe.sampling import segment_indices

Crop = Literal["multi_scale", "random", "centre"]
Index = int | tuple[int, int]


class _VideoDataset(Dataset[Any]):
    """What the two data sets share: the rows, and a sample's clips from one decoding and one crop.

    Args:
        manifest: Rows of one split with the columns ``id``, ``path`` (relative to ``videos``), ``frames`` and
            ``class``.
        videos: Folder of the videos.
        frame_counts: Frames T of each clip of a sample.
        size: Edge S of the clips in pixels.
        short_side: Short side in pixels that a picture is resized to before it is cropped to ``size`` (not by
            ``multi_scale``, whose crops are fractions of the short side).
        crop: ``multi_scale`` or ``random`` for training, with random frames; ``centre`` for evaluation, with
            the centre frames: nothing is random then.
        seed: With epoch and index, decides all that is random.
        cache: Keep every decoded video in memory, in each process; for a data set that is small enough.
    """

    def __init__(
        self,
        *,
        manifest: pd.DataFrame,
        videos: Path,
        frame_counts: tuple[int, ...],
        size: int,
        short_side: int,
        crop: Crop,
        seed: int,
        cache: bool,
    ) -> None:
        if crop not in ("multi_scale", "random", "centre"):
            raise ValueError(f"crop must be multi_scale, random or centre, not {crop!r}")
        if not frame_counts or min(frame_counts) < 1:
            raise ValueError(f"a clip needs at least 1 frame, got {frame_counts}")
        if not 1 <= size <= short_side:
            raise ValueError(f"a crop of {size} does not fit into a short side of {short_side}")
        if manifest["class"].isna().any():
            raise ValueError("the manifest has rows without a class: a data set needs a label for each")
        # Arrays of fixed width, not lists of objects: forked workers would copy each page whose counts they
        # touch.
        self._paths = np.asarray(manifest["path"], dtype=np.str_)
        self._frames = np.asarray(manifest["frames"], dtype=np.int64)
        self._classes = np.asarray(manifest["class"], dtype=np.int64)
        self._videos = Path(videos)
        self._frame_counts = frame_counts
        self._size = size
        self._short_side = short_side
        self._crop = crop
        self._seed = seed
        self._cache: dict[int, NDArray[np.uint8]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._paths)

    def path_of(self, index: int) -> Path:
        """Give the file, or folder of frames, of a sample."""
        return self._videos / str(self._paths[index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache behind: a worker that is spawned fills its own."""
        return self.__dict__ | {"_cache": None if self._cache is None else {}}

    def _sample(self, key: Index) -> tuple[tuple[torch.Tensor, ...], int]:
        """Clips of one video, one for each frame count, from one decoding and one crop; and the label."""
        generator, index = self._generator(key)
        frames = int(self._frames[index])
        chosen = [segment_indices(frames, count, generator) for count in self._frame_counts]
        # Each frame count draws its own frames; what they have in common is decoded and resized once.
        union, positions = np.unique(np.concatenate(chosen), return_inverse=True)
        pixels = self._crop_frames(self._read(index, union), generator)
        rows = pixels.permute(0, 2, 3, 1)  # in memory order: (n, S, S, 3)
        parts = np.split(positions, np.cumsum(self._frame_counts)[:-1])
        clips = tuple(rows[torch.from_numpy(part)].permute(3, 0, 1, 2) for part in parts)
        return clips, int(self._classes[index])

    def _generator(self, key: Index) -> tuple[np.random.Generator | None, int]:
        if self._crop == "centre":
            return None, key if isinstance(key, int) else key[1]
        if isinstance(key, int):
            # With a plain index every epoch would repeat the first one's crops and frames.
            raise TypeError("a training sample is asked for by (epoch, index): use EpochSampler")
        epoch, index = key
        return np.random.default_rng([self._seed, epoch, index]), index

    def _read(self, index: int, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        path = self.path_of(index)
        if self._cache is None:
            return open_video(path).frames(positions)
        if index not in self._cache:
            self._cache[index] = open_video(path).frames(np.arange(self._frames[index]))
        return self._cache[index][positions]

    def _crop_frames(self, frames: NDArray[np.uint8], generator: np.random.Generator | None) -> torch.Tensor:
        height, width = frames.shape[1:3]
        if generator is None:
            return transforms.evaluation_crop(frames, self._short_side, self._size)
        if self._crop == "multi_scale":
            box = transforms.multi_scale_crop_box(height, width, generator)
        else:
            box = transforms.random_crop_box(height, width, self._size, self._short_side, generator)
        return transforms.crop_resize(frames, box, self._size)


class ClipDataset(_VideoDataset):
    """One clip a video: ``(clip, label)`` with a uint8 clip of shape (3, T, S, S).

    A training sample is asked for by ``(epoch, index)``, an evaluation sample by ``index``. A video that does
    not decode raises :class:`ffnrepro.data.decode.DecodeError`, which names the file.

    Args:
        manifest: Rows of one split: ``id``, ``path`` (relative to ``videos``), ``frames``, ``class``.
        videos: Folder of the videos.
        frames: Frames T of a clip.
        size: Edge S of the clips in pixels.
        short_side: Short side in pixels of the picture that the clip is cropped from.
        crop: ``multi_scale`` (published) or ``random`` for training; ``centre`` for evaluation.
        seed: With epoch and index, decides all that is random.
        cache: Keep every decoded video in memory, in each process.
    """

    def __init__(
        self,
        *,
        manifest: pd.DataFrame,
        videos: Path,
        frames: int,
        size: int = 224,
        short_side: int = 256,
        crop: Crop,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__(
            manifest=manifest,
            videos=videos,
            frame_counts=(frames,),
            size=size,
            short_side=short_side,
            crop=crop,
            seed=seed,
            cache=cache,
        )

    def __getitem__(self, key: Index) -> tuple[torch.Tensor, int]:
        """Return the clip (3, T, S, S) and the label of a video."""
        (clip,), label = self._sample(key)
        return clip, label


class FrameCountsDataset(_VideoDataset):
    """The L, M and H clips of a video in one sample: ``(clips, label)``, one uint8 clip a frame count.

    One decoding and one crop serve all clips of a sample; each frame count draws its
    frames on its own. A sample is asked for as in :class:`ClipDataset`.

    Args:
        manifest: Rows of one split: ``id``, ``path`` (relative to ``videos``), ``frames``, ``class``.
        videos: Folder of the videos.
        frame_counts: Frames T of each clip, in the order in which the clips are returned.
        size: Edge S of the clips in pixels.
        short_side: Short side in pixels of the picture that the clips are cropped from.
        crop: ``multi_scale`` (published) or ``random`` for training; ``centre`` for evaluation.
        seed: With epoch and index, decides all that is random.
        cache: Keep every decoded video in memory, in each process.
    """

    def __init__(
        self,
        *,
        manifest: pd.DataFrame,
        videos: Path,
        frame_counts: Sequence[int] = (4, 8, 16),
        size: int = 224,
        short_side: int = 256,
        crop: Crop,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__(
            manifest=manifest,
            videos=videos,
            frame_counts=tuple(frame_counts),
            size=size,
            short_side=short_side,
            crop=crop,
            seed=seed,
            cache=cache,
        )

    def __getitem__(self, key: Index) -> tuple[tuple[torch.Tensor, ...], int]:
        """Return one clip (3, T, S, S) a frame count, and the label, of a video."""
        return self._sample(key)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)`` once for each index, in an order that (seed, epoch) alone decides.

    Args:
        length: Number of samples.
        seed: Decides the orders of all epochs.
        batch_size: Samples of a step over all processes; read where there are several.
        rank: Number of this process.
        processes: How many share each batch; then the last, incomplete one is left out.
    """

    def __init__(
        self, length: int, seed: int = 0, *, batch_size: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        self._length = length
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._processes = processes
        self._epoch = 0
        self._start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration is for.

        Args:
            epoch: From 0.
            start: Samples at the beginning of the epoch that are left out: those that a run did before it was
                interrupted. The length does not count this.
        """
        self._epoch = epoch
        self._start = start

    def __len__(self) -> int:
        if self._processes == 1:
            return self._length
        return self._length // self._batch_size * (self._batch_size // self._processes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The spawn key keeps this stream apart from that of sample (seed, epoch, 0): NumPy pads with zeros.
        sequence = np.random.SeedSequence([self._seed, self._epoch], spawn_key=(0,))
        order = np.random.default_rng(sequence).permutation(self._length)
        if self._processes > 1:
            steps = self._length // self._batch_size
            parts = order[: steps * self._batch_size].reshape(steps, self._processes, -1)
            order = parts[:, self._rank].reshape(-1)
        return iter([(self._epoch, index) for index in order[self._start :].tolist()])


def collate_clips(samples: list[tuple[Any, int]]) -> tuple[Any, torch.Tensor]:
    """Collate samples of either data set and keep the channel last in memory.

    Args:
        samples: Of :class:`ClipDataset` or :class:`FrameCountsDataset`, N of them.

    Returns:
        Clips, uint8 of shape (N, 3, T, S, S) (for a sample of several clips, a tuple of them), and labels,
        int64 of shape (N,). The memory of the clips is that of (N, T, S, S, 3).
    """
    clips = [clip for clip, _ in samples]
    labels: torch.Tensor = default_collate([label for _, label in samples])
    if isinstance(clips[0], torch.Tensor):
        return _stack(clips), labels
    return tuple(_stack(list(same_count)) for same_count in zip(*clips, strict=True)), labels


def _stack(clips: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([clip.permute(1, 2, 3, 0) for clip in clips]).permute(0, 4, 1, 2, 3)
