"""Batches whose files go bad, or whose workers hang or die: which samples are left out or tried again, and which errors stop the run."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_sharer
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import UserError
from ffnrepro.logs import run
from ffnrepro.recipe.clips import collate_clips
from ffnrepro.training import loader as module
from ffnrepro.training.loader import VideoBatches


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


class Numbers:
    """Sample i is a clip of value i and the label i. A fault strikes some samples always, or the first time only."""

    def __init__(self, length: int, folder: Path, **faults: tuple[int, ...]) -> None:
        self.length = length
        self.folder = folder
        self.faults = faults

    def __len__(self) -> int:
        return self.length

    def path_of(self, index: int) -> str:
        return f"videos/{index}.webm"

    def _has(self, fault: str, index: int) -> bool:
        if index in self.faults.get(fault, ()):
            return True
        mark = self.folder / f"{fault} {index}"  # in a file, since another worker may try again
        if index in self.faults.get(f"{fault}_once", ()) and not mark.exists():
            mark.touch()
            return True
        return False

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[dict[int, torch.Tensor], int]:
        index = key if isinstance(key, int) else key[1]
        if self._has("bad", index):
            raise DecodeError(self.path_of(index))
        if self._has("damaged", index):
            raise DecodeError("0.arrow", "cannot be used", fix="rm 0.arrow")
        if self._has("hangs", index):
            ctypes.PyDLL(None).pause()  # native code that keeps the interpreter lock and never returns
        if self._has("kills", index):
            os.kill(os.getpid(), signal.SIGSEGV)
        for fault in ("leaves", "freezes"):
            if self._has(fault, index):
                while len(resource_sharer._resource_sharer._cache) < 2:  # type: ignore[attr-defined]
                    time.sleep(0.01)  # until the batch before, clips and labels, is on its way
                if fault == "freezes":  # with all its threads, so it cannot hand over the batch before
                    (self.folder / "is away").touch()
                    ctypes.PyDLL(None).pause()
                resource_sharer.stop()  # the end of a process in slow motion: first its connections, then itself
                (self.folder / "is away").touch()
                wait_for(self.folder / "is missed")
                os.kill(os.getpid(), signal.SIGKILL)
        if index in self.faults.get("faulty", ()):
            raise RuntimeError("a fault of the code")
        return {2: torch.full((3, 2, 4, 4), index, dtype=torch.uint8)}, index


@pytest.fixture(autouse=True)
def quick_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch looks every 5 s whether a worker has died."""
    assert _MultiProcessingDataLoaderIter._try_get_data.__defaults__ == (5.0,)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def keys_of(count: int, size: int = 4) -> list[list[int]]:
    return [list(range(count))[start : start + size] for start in range(0, count, size)]


def read(loader: VideoBatches, keys: Any = None) -> list[list[int]]:
    rows = []
    for clips, labels in loader.batches(keys or keys_of(len(loader.dataset))):
        assert clips[2][:, 0, 0, 0, 0].tolist() == labels.tolist()
        rows.append(labels.tolist())
    return rows


@pytest.fixture
def make() -> Iterator[Any]:
    """Give a function that makes loaders, which are closed at the end."""
    made = []

    def make_loader(data: Any, **options: Any) -> VideoBatches:
        made.append(VideoBatches(data, **options))
        return made[-1]

    yield make_loader
    for loader in made:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_requested_ones(tmp_path: Path, make: Any, workers: int) -> None:
    loader = make(Numbers(10, tmp_path), workers=workers)
    first = [[(3, 7), (3, 1)], [(3, 9), (3, 0), (3, 4)], [(3, 2)]]
    assert read(loader, first) == [[7, 1], [9, 0, 4], [2]]
    workers_before = multiprocessing.active_children()
    assert read(loader, [[5, 6]]) == [[5, 6]]
    assert multiprocessing.active_children() == workers_before  # they outlive an epoch
    assert loader.bad_videos == 0


def test_workers_begin_before_the_first_batch_is_asked_for(tmp_path: Path, make: Any) -> None:
    batches = make(Numbers(4, tmp_path, bad_once=(2,)), workers=1).batches(keys_of(4))
    deadline = time.monotonic() + 20
    while not (tmp_path / "bad 2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [labels.tolist() for _, labels in batches] == keys_of(4)


def test_a_worker_that_dies_between_two_epochs_is_replaced(tmp_path: Path, make: Any) -> None:
    loader = make(Numbers(4, tmp_path), workers=1)
    assert read(loader) == keys_of(4)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    assert read(loader) == keys_of(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_video_is_tried_again_then_left_out(
    tmp_path: Path, make: Any, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = Numbers(200, tmp_path, bad=(1, 4, 5, 6, 9), bad_once=(2,))
    loader = make(data, workers=workers, max_bad_fraction=0.025)
    for _ in range(2):
        caplog.clear()
        assert read(loader) == [[0, 2, 3], [7], [8, 10, 11], *keys_of(200)[3:]]
        assert loader.bad_videos == 5
        assert [record.getMessage() for record in caplog.records] == [
            f"left out of its batch: videos/{n}.webm: does not decode" for n in (1, 4, 5, 6, 9)
        ]


def test_a_batch_of_unreadable_videos_stops_the_run(tmp_path: Path, make: Any) -> None:
    loader = make(Numbers(200, tmp_path, bad=(4, 5, 6, 7)), max_bad_fraction=0.5)
    with pytest.raises(
        UserError, match=r"no video of a batch could be read; the last error is videos/7\.webm"
    ):
        read(loader)


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.001, 1), (0.02, 2), (0.03, 3)])
def test_more_bad_videos_than_allowed_stop_the_run(
    tmp_path: Path, make: Any, fraction: float, allowed: int
) -> None:
    read(make(Numbers(100, tmp_path, bad=tuple(range(allowed))), max_bad_fraction=fraction))
    loader = make(Numbers(100, tmp_path, bad=tuple(range(allowed + 1))), max_bad_fraction=fraction)
    with pytest.raises(UserError) as caught:
        read(loader)
    assert str(caught.value).startswith(f"{allowed + 1} of 100 videos could not be read")
    assert f"`data.max_bad_fraction` {fraction:g}" in str(caught.value)
    assert f"videos/{allowed}.webm: does not decode" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "workers", "words"),
    [("bad", 0, "does not decode"), ("hangs", 1, "the decoder did not finish in 1 s")],
)
def test_evaluation_stops_with_the_name_of_the_video(
    tmp_path: Path, make: Any, fault: str, workers: int, words: str
) -> None:
    data = Numbers(6, tmp_path, **{f"{fault}_once": (2,)})
    assert read(make(data, workers=workers, seconds=1)) == keys_of(6)
    with pytest.raises(UserError, match=rf"videos/5\.webm: {words}.*; evaluation must count every video"):
        read(make(Numbers(6, tmp_path, **{fault: (5,)}), workers=workers, seconds=1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("allowed", [None, 0.0, 0.5])
def test_what_fixes_a_cache_is_the_only_advice(
    tmp_path: Path, make: Any, workers: int, allowed: float | None
) -> None:
    data = Numbers(8, tmp_path, damaged=(4, 5, 6, 7))
    with pytest.raises(UserError) as caught:
        read(make(data, workers=workers, max_bad_fraction=allowed))
    text = str(caught.value)
    assert "0.arrow: cannot be used; rm 0.arrow" in text
    assert "data.videos" not in text
    assert "restore" not in text


@pytest.mark.parametrize("fault", ["hangs", "kills"])
def test_workers_are_replaced_when_native_code_hangs_or_crashes(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    data = Numbers(24, tmp_path, **{fault: (9,), f"{fault}_once": (2,)})
    loader = make(data, workers=2, max_bad_fraction=0.1, seconds=1)
    # 2 comes at the second try; nothing comes twice, nothing is missing.
    expected = [[8, 10, 11] if row[0] == 8 else row for row in keys_of(24)]
    assert read(loader) == expected
    assert loader.bad_videos == 1
    messages = [record.getMessage() for record in caplog.records]
    deaths = [text for text in messages if text.startswith("a worker died; all workers are replaced")]
    assert sum("videos/2.webm" in text for text in deaths) == 1
    assert sum("videos/9.webm" in text for text in deaths) == 2
    left_out = "left out of its batch: videos/9.webm: the decoder did not finish in 1 s, or crashed"
    assert messages[-1] == left_out
    caplog.clear()
    # The file is known now. It is not tried again, but counted again. And the time limit is not for idle workers.
    time.sleep(1.1)
    assert read(loader) == expected
    assert loader.bad_videos == 1
    assert [record.getMessage() for record in caplog.records] == [left_out]


@pytest.mark.parametrize("fault", ["leaves", "freezes"])
def test_a_batch_that_a_dying_worker_cannot_deliver_comes_from_its_replacement(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    samples_of_dead = VideoBatches._samples_of_dead

    def missed(loader: VideoBatches, timeout: float) -> list[int]:
        (tmp_path / "is missed").touch()
        return samples_of_dead(loader, timeout)

    monkeypatch.setattr(VideoBatches, "_samples_of_dead", missed)
    data = Numbers(24, tmp_path, **{f"{fault}_once": (9,)})
    loader = make(data, workers=1, max_bad_fraction=0.1, seconds=2 if fault == "freezes" else 120)
    rows = []
    for _, labels in loader.batches(keys_of(24)):
        rows.append(labels.tolist())
        # Then the second batch lies ready, in the memory of a worker that cannot hand it over.
        wait_for(tmp_path / "is away")
    assert rows == keys_of(24)
    assert loader.bad_videos == 0
    assert [record.getMessage() for record in caplog.records] == [
        "a worker died; all workers are replaced (videos/9.webm)"
    ]


def test_workers_that_die_without_a_file_to_blame_stop_the_run(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def die_later(worker: int) -> None:  # noqa: ARG001
        if (tmp_path / "kills 2").exists():
            os.kill(os.getpid(), signal.SIGKILL)  # as if there were no memory for a new worker

    monkeypatch.setattr(module, "_ignore_signals", die_later)
    loader = make(Numbers(4, tmp_path, kills_once=(2,)), workers=1, max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"died three times, and no file is to blame: check the memory"):
        read(loader)
    assert [record.getMessage().split("(")[1] for record in caplog.records] == [
        "videos/2.webm)",
        *3 * ["no file is to blame)"],
    ]


def test_workers_that_all_hang_stop_the_run(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (1.0,))
    data = Numbers(200, tmp_path, hangs=tuple(range(200)))
    with pytest.raises(UserError, match=r"check the memory and the disk of `data\.videos`"):
        read(make(data, workers=2, max_bad_fraction=0.5, seconds=0.3))


def test_deaths_between_which_batches_come_do_not_stop_the_run(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_once(samples: Any) -> Any:
        first = samples[0][1]
        if not (tmp_path / f"died {first}").exists():
            if first > 0:
                wait_for(tmp_path / f"received {first - 4}")
            (tmp_path / f"died {first}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return collate_clips(samples)

    monkeypatch.setattr(module, "collate_clips", die_once)
    for _, labels in make(Numbers(20, tmp_path), workers=1).batches(keys_of(20)):
        (tmp_path / f"received {labels[0]}").touch()
    assert len(list(tmp_path.glob("died *"))) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_the_code_is_passed_on(tmp_path: Path, make: Any, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of the code"):
        read(make(Numbers(4, tmp_path, faulty=(1,)), workers=workers, max_bad_fraction=0.5))


def test_workers_finish_their_batches_after_the_signals_of_a_cluster(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    batches = make(Numbers(40, tmp_path), workers=2).batches(keys_of(40))
    rows = [next(batches)[1].tolist() for _ in range(2)]  # one of each worker
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            assert worker.pid is not None
            os.kill(worker.pid, number)
    assert rows + [labels.tolist() for _, labels in batches] == keys_of(40)
    assert not caplog.records


def test_stopping_early_ends_the_workers_at_once(tmp_path: Path, make: Any) -> None:
    batches = make(Numbers(40, tmp_path, hangs_once=(6,)), workers=2).batches(keys_of(40))
    next(batches)
    wait_for(tmp_path / "hangs 6")
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 4  # PyTorch would wait for 5 s
    assert not multiprocessing.active_children()


kept: list[Any] = []


def fail(place: str, folder: Path) -> None:
    """Run in a process of its own, and fail."""
    start = BaseProcess.start

    def start_first(process: BaseProcess) -> None:
        if kept:
            time.sleep(0.5)  # the first one ignores SIGTERM by then
            raise BlockingIOError("no more processes")
        kept.append(process)
        start(process)

    def work() -> None:
        if place == "the start of a worker":
            BaseProcess.start = start_first  # type: ignore[method-assign]
        batches = VideoBatches(Numbers(40, folder), workers=2).batches(keys_of(40))
        for step, _ in enumerate(batches):
            kept.append(batches)  # nobody closes it
            assert step < 2

    raise SystemExit(run(work, folder / "log"))


@pytest.mark.parametrize(
    ("place", "error"), [("the loop", "AssertionError"), ("the start of a worker", "no more processes")]
)
def test_a_run_that_fails_ends_with_its_workers(tmp_path: Path, place: str, error: str) -> None:
    """They ignore SIGTERM, and would keep a failed process, and its GPU, forever."""
    process = multiprocessing.get_context("fork").Process(target=fail, args=(place, tmp_path))
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 1
    assert error in (tmp_path / "log").read_text()
