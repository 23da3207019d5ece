"""Batches of videos from workers that are watched: neither a file that goes bad nor one that hangs stops a training.

The index has left out what was broken then. A file that does not decode later is tried again, then left out of its
batch, named and counted; in evaluation, which counts every video once, it ends the run with its name. A worker that
is stuck in a decoder (native code, which nothing in its own process can interrupt), or that the decoder has killed,
gives no batch within the time limit: then all workers are replaced and go on at the batch that was waited for.
"""

import logging
import multiprocessing.connection
import multiprocessing.util
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import UserError
from ffnrepro.recipe.clips import Index, collate_clips

logger = logging.getLogger(__name__)

Batch = tuple[Any, Tensor]
"""Of `ffnrepro.recipe.clips.collate_clips`."""


class VideoSource(Protocol):
    """A data set that can name the file of a sample."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, key: Any) -> tuple[Any, int]:
        """Give a sample, or raise DecodeError."""

    def path_of(self, index: int) -> Any:
        """Give the file of a sample."""


class VideoBatches:
    """Batches of a data set, in the order of its sampler.

    Args:
        dataset: Of clips.
        sampler: Gives the keys of an epoch, ``index`` or ``(epoch, index)``.
        batch_size: Samples a batch; fewer in the last one, and where a video is left out.
        drop_last: Leave out the last batch where it is not whole.
        workers: Processes that decode; with 0 nothing can be watched, and a decoder that hangs, hangs.
        pin_memory: Put batches where a GPU fetches them from.
        max_bad_fraction: Fraction of an epoch's samples that may be left out, one at least; 0 allows none.
            None is for evaluation: the first video that cannot be read ends it.
        seconds: Time within which workers must give a batch.

    Attributes:
        batch_size: Samples a batch.
        bad_videos: Samples left out since the last iteration began.
    """

    def __init__(
        self,
        dataset: VideoSource,
        *,
        sampler: Sampler[Any],
        batch_size: int,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        max_bad_fraction: float | None = None,
        seconds: float = 120,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.bad_videos = 0
        self._drop_last = drop_last
        self._workers = workers
        self._pin_memory = pin_memory
        self._max_bad_fraction = max_bad_fraction
        self._seconds = seconds
        self._watched = _WatchedDataset(dataset, workers)
        self._plan = _Plan()
        self._loader: DataLoader[Any] | None = None
        self._hangs: Counter[int] = Counter()
        self._processes: list[Any] = []
        # They leave SIGTERM to the trainer, and Python sends no more than that at its end, and then waits.
        multiprocessing.util.Finalize(self, _kill, args=(self._processes,), exitpriority=10)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        samples = len(self.sampler)  # type: ignore[arg-type]
        return samples // self.batch_size if self._drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of an epoch.

        Raises:
            UserError: More videos cannot be read than allowed, or a whole batch cannot, or workers give nothing and no
                file is to blame.
        """
        try:
            yield from self._batches()
        except BaseException:  # also of the one who iterates, and when it goes no further
            self.close()
            raise

    def close(self) -> None:
        """End the workers, also those that do not answer: a process whose workers live on never ends."""
        try:
            if self._loader is not None and self._loader._iterator is not None:
                self._loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        finally:
            _kill(self._processes)  # those that answer have ended
            self._processes.clear()
            self._loader = None

    def _batches(self) -> Iterator[Batch]:
        self.bad_videos = 0
        keys = list(self.sampler)  # fewer than an epoch's where the sampler starts within one
        end = len(keys) - len(keys) % self.batch_size if self._drop_last else len(keys)
        batches = [keys[start : start + self.batch_size] for start in range(0, end, self.batch_size)]
        done = unexplained = 0
        while done < len(batches):
            self._plan.batches = [
                [key for key in batch if not self._hung(_index(key))] for batch in batches[done:]
            ]
            try:
                for batch, bad in self._iterate():
                    done, unexplained = done + 1, 0
                    hung = [
                        self._words_of(_index(key)) for key in batches[done - 1] if self._hung(_index(key))
                    ]
                    self._leave_out([*bad, *hung])
                    if (
                        batch is None
                    ):  # every step of an epoch has its batch, or a resumed run would lose count
                        raise UserError(
                            f"no video of a batch could be read, the last one {[*bad, *hung][-1]}: check the disk of "
                            "`data.videos` and run again"
                        )
                    yield batch
            except _NoBatch as error:
                stuck = self._replace_workers()
                self._hangs.update(stuck)
                unexplained += not stuck or len(stuck) == self._workers > 1  # all of them: that is the disk
                names = ", ".join(str(self.dataset.path_of(index)) for index in stuck)
                logger.warning("%s; the workers are replaced (%s)", error, names or "no file is to blame")
                if unexplained > 2:
                    raise UserError(
                        f"{error}, three times, and no file is to blame: check the disk of `data.videos`, or lower "
                        "`runtime.workers`"
                    ) from error

    def _iterate(self) -> Iterator[tuple[Batch | None, list[str]]]:
        """Go through the plan; what the loader says of its workers becomes `_NoBatch`."""
        try:
            if self._loader is None:
                self._loader = self._build()
            before = multiprocessing.active_children()
            try:
                batches = iter(self._loader)
            finally:  # also where not all of them could be started
                self._processes += [
                    child for child in multiprocessing.active_children() if child not in before
                ]
            if self._workers and threading.current_thread() is threading.main_thread():
                # PyTorch would raise the death of a worker wherever this process happens to be, in the middle of a
                # step; without its handler it is noticed where the batch is waited for.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while (batch := self._next(batches)) is not None:
                yield batch
        except Exception as error:
            # Of a worker that gives nothing, and of one that has died; all else is passed on.
            if str(error).startswith(("DataLoader timed out", "DataLoader worker")):
                raise _NoBatch(str(error).splitlines()[0]) from error
            # A batch is fetched over a connection to the worker that made it. One that is ending has closed it before it
            # counts as dead, and PyTorch then passes on what the connection says: EOFError, ConnectionResetError,
            # FileNotFoundError. What a worker itself raised begins with "Caught".
            if str(error).startswith("Caught") or not self._ended_workers(seconds=30):
                raise
            raise _NoBatch(f"a DataLoader worker ended ({type(error).__name__})") from error

    def _next(self, batches: Iterator[Any]) -> Any:
        # PyTorch's time limit ends where a batch is being fetched from a worker's memory. One that hangs then, in the
        # next sample, answers never: killed, it is noticed.
        watch = threading.Timer(1.5 * self._seconds, self._kill_those_at_work, [0.8 * self._seconds])
        watch.daemon = True
        if self._workers:
            watch.start()
        try:
            return next(batches, None)
        finally:
            watch.cancel()

    def _worker_processes(self) -> list[Any]:
        if self._loader is None or self._loader._iterator is None:  # without workers it keeps none
            return []
        return list(self._loader._iterator._workers)  # type: ignore[attr-defined]

    def _ended_workers(self, seconds: float) -> list[int]:
        """Workers that have ended, or do within so many seconds: their sentinels say so before they count as dead."""
        sentinels = [worker.sentinel for worker in self._worker_processes()]
        ended = multiprocessing.connection.wait(sentinels, timeout=seconds) if sentinels else []
        return [number for number, sentinel in enumerate(sentinels) if sentinel in ended]

    def _kill_those_at_work(self, seconds: float) -> None:
        """Kill the workers that have been at a sample for so long."""
        workers = self._worker_processes()
        _kill([workers[number] for number in self._watched.at_work(seconds) if number < len(workers)])

    def _build(self) -> DataLoader[Any]:
        return DataLoader(
            self._watched,
            batch_sampler=self._plan,
            collate_fn=_collate,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            timeout=self._seconds if self._workers else 0,
            pin_memory=self._pin_memory,
            worker_init_fn=_leave_signals_to_the_trainer,
            # A generator of its own: making an iterator must not draw from the one that dropout uses.
            generator=torch.Generator(),
        )

    def _replace_workers(self) -> list[int]:
        """End all workers; give the samples that they were stuck in, or that killed them."""
        stuck = list(self._watched.at_work(0.8 * self._seconds, self._ended_workers(seconds=0)).values())
        # The thread that pins memory may wait for one of them, and PyTorch, in its shutdown, for the thread.
        self._kill_those_at_work(0)
        self.close()
        self._watched.clear()
        return stuck

    def _hung(self, index: int) -> bool:
        return self._hangs[index] > 1  # it was tried again

    def _words_of(self, index: int) -> str:
        return f"{self.dataset.path_of(index)}: the decoder did not finish in {self._seconds:g} s, or killed its process"

    def _leave_out(self, bad: list[str]) -> None:
        for words in bad:
            if self._max_bad_fraction is None:
                raise UserError(
                    f"{words}; evaluation counts each video once, so it stops: restore the file, or let the index "
                    "find it (`data.watch: stat`)"
                )
            self.bad_videos += 1
            logger.warning("left out of its batch: %s", words)
            allowed = max(1, self._max_bad_fraction * len(self.dataset)) if self._max_bad_fraction else 0
            if self.bad_videos > allowed:
                raise UserError(
                    f"{self.bad_videos} of {len(self.dataset)} videos could not be read in this epoch, more than "
                    f"`data.max_bad_fraction` {self._max_bad_fraction:g} allows, the last one {words}: check the disk of "
                    "`data.videos` and run again"
                )


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()


class _NoBatch(Exception):
    """The loader waits in vain."""


class _Plan:
    """The batches that a loader is to give: its workers outlive an epoch, so the plan changes under it."""

    def __init__(self) -> None:
        self.batches: list[list[Index]] = []

    def __iter__(self) -> Iterator[list[Index]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class _BadVideo:
    """Stands in a batch for a sample that cannot be read."""

    words: str


class _WatchedDataset(Dataset[Any]):
    """Tries a sample twice; and each worker notes what it is at, in memory that is read when it is stuck."""

    def __init__(self, dataset: VideoSource, workers: int) -> None:
        self._dataset = dataset
        self._at = torch.zeros(max(workers, 1), 2, dtype=torch.float64)
        self._at.share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, key: Index) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self._sample(key)
        self._at[worker.id, 1] = time.monotonic()
        self._at[worker.id, 0] = _index(key) + 1
        try:
            return self._sample(key)
        finally:
            self._at[worker.id, 0] = 0

    def _sample(self, key: Index) -> Any:
        try:
            return self._dataset[key]
        except DecodeError:
            try:
                return self._dataset[key]
            except DecodeError as error:
                return _BadVideo(str(error))

    def at_work(self, seconds: float, dead: Collection[int] = ()) -> dict[int, int]:
        """Workers that have been at a sample for so long, or were when they died, and the sample."""
        now = time.monotonic()
        return {
            worker: int(index) - 1
            for worker, (index, since) in enumerate(self._at.tolist())
            if index and (worker in dead or now - since >= seconds)
        }

    def clear(self) -> None:
        """Forget what workers that are gone were at."""
        self._at.zero_()


def _index(key: Index) -> int:
    return key if isinstance(key, int) else key[1]


def _collate(samples: list[Any]) -> tuple[Batch | None, list[str]]:
    """Collate what could be read (None where nothing could), and tell what could not."""
    bad = [sample.words for sample in samples if isinstance(sample, _BadVideo)]
    good = [sample for sample in samples if not isinstance(sample, _BadVideo)]
    return collate_clips(good) if good else None, bad


def _leave_signals_to_the_trainer(worker: int) -> None:  # noqa: ARG001
    # A job's end signals every process; without its workers the trainer could not end the step and save.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
