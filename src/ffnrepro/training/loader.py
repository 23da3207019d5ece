"""Batches of clips from worker processes that neither a broken file nor a hanging decoder can bring down.

The index leaves out files that are broken when it is made. A file that breaks later is tried twice, then left out of
its batch, named and counted. Evaluation has to count every video, so there such a file ends the run, with its name.
Nothing can interrupt a decoder that hangs in native code, so a watchdog ends a worker whose sample takes too long. When
a worker dies, for this or any other reason, all workers are replaced and continue with the batch that is needed next.
"""

import faulthandler
import logging
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import UserError
from ffnrepro.recipe.clips import Batch, ClipDataset, Key, collate_clips

logger = logging.getLogger(__name__)

NO_SAMPLE = -1


class _Unreadable(NamedTuple):
    """Why a sample cannot be read, and whether the text includes a fix, because the video is not to blame."""

    reason: str
    has_fix: bool = False


_Loaded = tuple[Batch | None, list[_Unreadable]]
"""The batch of the readable samples, None if there are none, and the reasons of the others."""

_CHECK_DISK = "; check the disk of `data.videos` and run again"


class VideoBatches:
    """Loads batches of a data set.

    Args:
        dataset: Data set of clips.
        workers: Number of processes that decode. With 0 this process decodes, and a hanging decoder is not interrupted.
        pin_memory: Whether to put batches into page-locked memory, from which a GPU copies faster.
        max_bad_fraction: Fraction of the samples that an epoch may leave out as unreadable; unless it is 0, one sample is
            always allowed. None is for evaluation: the first unreadable video ends it.
        seconds: Time limit for one sample.

    Attributes:
        bad_videos: Number of samples left out since the last call of `batches`.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        max_bad_fraction: float | None = None,
        seconds: float = 120,
    ) -> None:
        self.dataset = dataset
        self.bad_videos = 0
        self._workers = workers
        self._max_bad_fraction = max_bad_fraction
        self._samples = _GuardedSamples(dataset, workers, seconds)
        # Workers outlive an epoch, and so does this list: each epoch replaces its content.
        self._keys: list[Sequence[Key]] = []
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=self._keys,  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            # A generator of its own: the loader must not draw from the one that dropout uses.
            generator=torch.Generator(),
        )
        # Workers ignore SIGTERM, and at exit Python only sends SIGTERM and waits. So they are killed explicitly.
        multiprocessing.util.Finalize(None, _kill_daemons, exitpriority=10)

    def batches(self, keys: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        """Load batches, each without its unreadable samples; the workers begin before the first batch is requested.

        Args:
            keys: Keys of the samples of each batch.

        Raises:
            UnreadableVideo: A video is unreadable, and none may be left out.
            UserError: More videos are unreadable than allowed, all videos of a batch are unreadable, the frame cache is
                damaged and no video may be left out, or workers die and no file is to blame.
        """
        self.bad_videos = 0
        if self._samples_of_dead(timeout=0):
            # A worker died while it had nothing to do.
            self.close()
        self._keys[:] = keys
        return self._batches(keys, self._start())

    def _batches(self, keys: Sequence[Sequence[Key]], loading: Iterator[_Loaded]) -> Iterator[Batch]:
        done = unexplained = 0
        try:
            while done < len(keys):
                try:
                    for batch, unreadable in self._watch(loading):
                        done, unexplained = done + 1, 0
                        self._count(unreadable)
                        # Each step of an epoch needs a batch: a resumed run counts them.
                        if batch is None:
                            reason, has_fix = unreadable[-1]
                            raise UserError(
                                f"no video of a batch could be read; the last error is {reason}"
                                f"{'' if has_fix else _CHECK_DISK}"
                            )
                        yield batch
                except _WorkerDied:
                    unexplained += self._blame()
                    if unexplained > 2:
                        raise UserError(
                            "workers that decode videos died three times, and no file is to blame: check the memory and the "
                            "disk of `data.videos`, or lower `runtime.workers`"
                        ) from None
                    self.close()
                    self._keys[:] = keys[done:]
                    loading = self._start()
        except BaseException:  # also when the caller fails or stops early
            self.close()
            raise

    def close(self) -> None:
        """End the workers, including those that hang: a process does not end while its workers live."""
        at_work = self._samples_being_read()
        for worker, index in at_work:
            if index != NO_SAMPLE:
                # It may hang, and PyTorch would wait for it.
                worker.kill()
        try:
            if self._loader._iterator is not None:
                self._loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        finally:
            for worker, _ in at_work:
                worker.kill()
            self._loader._iterator = None
            self._samples.current.fill_(NO_SAMPLE)

    def _start(self) -> Iterator[_Loaded]:
        """Let the workers begin with the batches in `_keys`."""
        loading = iter(self._loader)
        if self._workers and threading.current_thread() is threading.main_thread():
            # When a worker dies, PyTorch's handler raises an error wherever this process is, such as in the middle of
            # a step. Without the handler the death is noticed where this process waits for the worker's batch.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return loading

    def _watch(self, loading: Iterator[_Loaded]) -> Iterator[_Loaded]:
        """What the loader loads.

        Raises:
            _WorkerDied: A worker has died.
        """
        try:
            yield from loading
        except Exception as error:
            # The text of an error raised in a worker begins with "Caught". Other errors follow the death of a worker:
            # PyTorch notices it, or the connection for fetching a batch breaks (EOFError, ConnectionResetError,
            # FileNotFoundError) a moment before the worker counts as dead.
            if str(error).startswith("Caught") or not self._samples_of_dead(timeout=30):
                raise
            raise _WorkerDied from error

    def _samples_being_read(self) -> list[tuple[BaseProcess, int]]:
        """The workers, and the sample that each of them is reading."""
        iterator: Any = self._loader._iterator
        workers = [] if iterator is None else iterator._workers
        return list(zip(workers, self._samples.current.tolist(), strict=False))

    def _samples_of_dead(self, timeout: float) -> list[int]:
        """Samples that dead workers were reading; waits for `timeout` seconds until a worker is dead."""
        at_work = self._samples_being_read()
        if not at_work:
            return []
        dead = multiprocessing.connection.wait([worker.sentinel for worker, _ in at_work], timeout)
        return [index for worker, index in at_work if worker.sentinel in dead]

    def _blame(self) -> bool:
        """Note the files that dead workers were reading, and return whether no file is to blame."""
        blamed = [index for index in self._samples_of_dead(timeout=0) if index != NO_SAMPLE]
        self._samples.deaths.update(blamed)
        names = ", ".join(str(self.dataset.path_of(index)) for index in blamed)
        logger.warning("a worker died; all workers are replaced (%s)", names or "no file is to blame")
        # If all workers hang at the same time, the disk is to blame.
        return not blamed or len(blamed) == self._workers > 1

    def _count(self, unreadable: list[_Unreadable]) -> None:
        for reason, has_fix in unreadable:
            if self._max_bad_fraction is None:
                if has_fix:
                    raise UserError(f"{reason} (evaluation must count every video, so it stops)")
                raise UnreadableVideo(
                    f"{reason}; evaluation must count every video, so it stops: restore this file, then run again. If the index "
                    "excludes it instead (a missing file at the next run, a damaged one with `data.watch: stat`), the data has "
                    "changed, and every network is trained again"
                )
            self.bad_videos += 1
            logger.warning("left out of its batch: %s", reason)
            allowed = max(1, self._max_bad_fraction * len(self.dataset)) if self._max_bad_fraction else 0
            if self.bad_videos > allowed:
                raise UserError(
                    f"{self.bad_videos} of {len(self.dataset)} videos could not be read in this epoch, more than "
                    f"`data.max_bad_fraction` {self._max_bad_fraction:g} allows; the last error is {reason}"
                    f"{'' if has_fix else _CHECK_DISK}"
                )


class UnreadableVideo(UserError):
    """A video that evaluation must count cannot be read any more."""


class _WorkerDied(Exception):
    """A worker process has ended."""


class _GuardedSamples(Dataset[Any]):
    """Samples; if one cannot be read, the reason in its place.

    Args:
        dataset: Data set of clips.
        workers: Number of workers.
        seconds: Time limit for one sample in a worker.

    Attributes:
        deaths: Number of workers that died while they read a sample, by sample; new workers have a copy.
        current: The sample that each worker is reading, in memory that is shared with the workers and outlives them.
    """

    def __init__(self, dataset: ClipDataset, workers: int, seconds: float) -> None:
        self.deaths: Counter[int] = Counter()
        self.current = torch.full((max(workers, 1),), NO_SAMPLE)
        self.current.share_memory_()  # type: ignore[no-untyped-call]
        self._dataset = dataset
        self._seconds = seconds

    def __getitem__(self, key: Key) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self._read(key)
        index = key if isinstance(key, int) else key[1]
        if self.deaths[index] > 1:
            path = self._dataset.path_of(index)
            return _Unreadable(f"{path}: the decoder did not finish in {self._seconds:g} s, or crashed")
        with Path(os.devnull).open("wb") as nowhere:
            self.current[worker.id] = index
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=nowhere)
            try:
                return self._read(key)
            finally:
                faulthandler.cancel_dump_traceback_later()
                self.current[worker.id] = NO_SAMPLE

    def _read(self, key: Key) -> Any:
        try:
            return self._dataset[key]
        except DecodeError:
            try:
                return self._dataset[key]
            except DecodeError as error:
                return _Unreadable(str(error), bool(error.fix))


def _collate(samples: list[Any]) -> _Loaded:
    readable = [sample for sample in samples if not isinstance(sample, _Unreadable)]
    unreadable = [sample for sample in samples if isinstance(sample, _Unreadable)]
    return collate_clips(readable) if readable else None, unreadable


def _ignore_signals(worker: int) -> None:  # noqa: ARG001
    # A cluster signals every process of a job, but the training process still needs its workers to finish the step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _kill_daemons() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
