"""Batches whose videos go bad, or whose workers hang: what is left out, what is tried again, what stops."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import UserError
from ffnrepro.recipe.clips import EpochSampler
from ffnrepro.training.loader import VideoBatches


class Numbers:
    """Sample i is a clip of value i and the label i. Some are bad, once or always; some hang, once or always."""

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
        mark = self.folder / f"{fault} {index}"  # in a file: another worker may be the one that tries again
        if index in self.faults.get(f"{fault}_once", ()) and not mark.exists():
            mark.touch()
            return True
        return False

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, int]:
        index = key if isinstance(key, int) else key[1]
        if self._has("bad", index):
            raise DecodeError(f"{self.path_of(index)}: does not decode")
        if self._has("hangs", index):
            ctypes.PyDLL(None).pause()  # native code that keeps the interpreter lock and never returns
        if self._has("kills", index):
            os.kill(os.getpid(), signal.SIGSEGV)
        for fault in ("leaves", "freezes"):
            if self._has(fault, index):
                while len(resource_sharer._resource_sharer._cache) < 2:  # type: ignore[attr-defined]
                    time.sleep(0.01)  # until the batch before, clips and labels, is on its way
                if fault == "freezes":  # with all its threads, so that it gives the batch before to nobody
                    (self.folder / "is away").touch()
                    ctypes.PyDLL(None).pause()
                resource_sharer.stop()  # what the end of a process is, but slowly: its connections, then itself
                (self.folder / "is away").touch()
                while not (self.folder / "is missed").exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
        if index in self.faults.get("slow", ()):
            time.sleep(0.9)
        if index in self.faults.get("faulty", ()):
            raise RuntimeError("a fault of the code")
        return torch.full((3, 2, 4, 4), index, dtype=torch.uint8), index


ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MP_STATUS_CHECK_INTERVAL == 5  # seconds that torch waits for a worker before it ends it
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


def batches_of(data: Numbers, *, shuffled: bool = False, **options: Any) -> VideoBatches:
    sampler: Any = EpochSampler(len(data), seed=1) if shuffled else SequentialSampler(data)
    return VideoBatches(data, sampler=sampler, batch_size=4, **options)


def read(batches: VideoBatches, *, step: float = 0) -> list[list[int]]:
    rows = []
    for clips, labels in batches:
        time.sleep(step)  # workers go on meanwhile, and may die
        assert clips[:, 0, 0, 0, 0].tolist() == labels.tolist()
        rows.append(labels.tolist())
    return rows


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_sampler(tmp_path: Path, workers: int, drop_last: bool) -> None:
    batches = batches_of(Numbers(10, tmp_path), shuffled=True, workers=workers, drop_last=drop_last)
    for epoch in (3, 4):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        order = [index for _, index in batches.sampler]
        expected = [order[:4], order[4:8], order[8:]]
        assert read(batches) == expected[: 2 if drop_last else 3]
        assert len(batches) == (2 if drop_last else 3)
        assert batches.bad_videos == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_video_is_tried_again_then_left_out(tmp_path: Path, workers: int, caplog: Any) -> None:
    data = Numbers(200, tmp_path, bad=(1, 4, 5, 6, 9), bad_once=(2,))
    batches = batches_of(data, workers=workers, max_bad_fraction=0.025)
    for _ in range(2):
        caplog.clear()
        rows = read(batches)
        assert rows == [[0, 2, 3], [7], [8, 10, 11], *([n, n + 1, n + 2, n + 3] for n in range(12, 200, 4))]
        assert batches.bad_videos == 5
        assert [record.getMessage() for record in caplog.records] == [
            f"left out of its batch: videos/{n}.webm: does not decode" for n in (1, 4, 5, 6, 9)
        ]


def test_a_batch_of_which_nothing_can_be_read_stops_the_run(tmp_path: Path) -> None:
    batches = batches_of(Numbers(200, tmp_path, bad=(4, 5, 6, 7)), max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"no video of a batch could be read, the last one videos/7\.webm"):
        read(batches)


def test_an_epoch_that_goes_on_within_gives_the_rest_of_its_batches(tmp_path: Path) -> None:
    batches = batches_of(Numbers(10, tmp_path), shuffled=True, drop_last=True)
    batches.sampler.set_epoch(3)  # type: ignore[attr-defined]
    whole = read(batches)
    batches.sampler.set_epoch(3, start=4)  # type: ignore[attr-defined]
    assert read(batches) == whole[1:]
    assert len(batches) == 2


@pytest.mark.parametrize(("fraction", "survives"), [(0.0, 0), (0.001, 1), (0.02, 2), (0.03, 3)])
def test_more_bad_videos_than_allowed_stop_the_run(tmp_path: Path, fraction: float, survives: int) -> None:
    read(batches_of(Numbers(100, tmp_path, bad=tuple(range(survives))), max_bad_fraction=fraction))
    batches = batches_of(Numbers(100, tmp_path, bad=tuple(range(survives + 1))), max_bad_fraction=fraction)
    with pytest.raises(
        UserError, match=rf"{survives + 1} of 100 videos .*`data\.max_bad_fraction` {fraction:g}"
    ) as e:
        read(batches)
    assert f"videos/{survives}.webm: does not decode" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_drops_nothing(tmp_path: Path, workers: int) -> None:
    assert read(batches_of(Numbers(6, tmp_path, bad_once=(2,)), workers=workers)) == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(
        UserError, match=r"videos/5\.webm: does not decode; evaluation counts each video once"
    ):
        read(batches_of(Numbers(6, tmp_path, bad=(5,)), workers=workers))


@pytest.mark.parametrize("fault", ["hangs", "kills"])
def test_a_worker_that_native_code_holds_or_kills_is_replaced(
    tmp_path: Path, caplog: Any, fault: str
) -> None:
    faults = {fault: (9,), f"{fault}_once": (2,)}
    batches = batches_of(Numbers(24, tmp_path, **faults), workers=2, max_bad_fraction=0.1, seconds=2)
    whole = [[n, n + 1, n + 2, n + 3] for n in range(0, 24, 4)]
    expected = [[8, 10, 11] if row[0] == 8 else row for row in whole]
    # 2 came at the second try; nothing comes twice, nothing is missing
    assert read(batches, step=0.1) == expected
    assert batches.bad_videos == 1
    messages = [record.getMessage() for record in caplog.records]
    assert any("workers are replaced" in words and "videos/2.webm" in words for words in messages)
    assert sum("workers are replaced" in words and "videos/9.webm" in words for words in messages) == 2
    assert (
        messages[-1]
        == "left out of its batch: videos/9.webm: the decoder did not finish in 2 s, or killed its process"
    )
    caplog.clear()
    batches.close()
    batches._seconds = 60  # a pause of this machine is no fault
    assert read(batches, step=0.1) == expected  # known now: not waited for again, but counted again
    assert batches.bad_videos == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fault", ["leaves", "freezes"])
def test_a_batch_that_its_worker_no_longer_gives_comes_from_the_next(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ended_workers = VideoBatches._ended_workers

    def missed(batches: VideoBatches, seconds: float) -> list[int]:
        (tmp_path / "is missed").touch()
        return ended_workers(batches, seconds)

    monkeypatch.setattr(VideoBatches, "_ended_workers", missed)
    data = Numbers(24, tmp_path, **{f"{fault}_once": (9,)})
    batches = batches_of(data, workers=1, max_bad_fraction=0.1, seconds=4 if fault == "freezes" else 120)
    rows = []
    for _, labels in batches:
        rows.append(labels.tolist())
        # Then the second batch lies ready, in the memory of a worker that cannot give it.
        while not (tmp_path / "is away").exists():
            time.sleep(0.01)
        time.sleep(0.1)
    assert rows == [[n, n + 1, n + 2, n + 3] for n in range(0, 24, 4)]
    assert batches.bad_videos == 0
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("; the workers are replaced (videos/9.webm)")


def test_evaluation_stops_with_the_name_of_the_video_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"videos/1\.webm: the decoder did not finish in 2 s, or killed its process; evaluation",
    ):
        read(batches_of(Numbers(4, tmp_path, hangs=(1,)), workers=1, seconds=2))


def test_a_slow_disk_is_no_fault_of_a_video(tmp_path: Path) -> None:
    data = Numbers(4, tmp_path, slow=(0, 1, 2, 3))
    with pytest.raises(UserError, match=r"three times, and no file is to blame: check the disk"):
        read(batches_of(data, workers=1, seconds=2, max_bad_fraction=0.5))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_code_is_passed_on(tmp_path: Path, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of the code"):
        read(batches_of(Numbers(4, tmp_path, faulty=(1,)), workers=workers, max_bad_fraction=0.5))


@pytest.mark.parametrize("where", ["in the loop", "in the batches", "at a worker's start"])
def test_a_run_that_fails_ends_with_its_workers(tmp_path: Path, where: str) -> None:
    """Workers that leave SIGTERM to the trainer would keep a failed process, and its GPU, for ever."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from contextlib import closing\n"
        "from multiprocessing.process import BaseProcess\n"
        "from pathlib import Path\n"
        "from ffnrepro.logs import run\n"
        "from tests.unit.test_loading import Numbers, batches_of\n"
        "start, started = BaseProcess.start, []\n"
        "def no_second(process):\n"
        "    if started:\n"
        "        time.sleep(1)\n"  # the first is at work by then, and leaves SIGTERM to the trainer
        "        raise BlockingIOError('no more processes')\n"
        "    started.append(process)\n"
        "    start(process)\n"
        "if __name__ == '__main__':\n"
        f'    BaseProcess.start = no_second if {where!r} == "at a worker\'s start" else start\n'
        f"    bad = tuple(range(8, 20)) if {where!r} == 'in the batches' else ()\n"
        "    batches = batches_of(Numbers(200, Path('.'), bad=bad), workers=2, max_bad_fraction=0.01)\n"
        "    def work():\n"
        "        with closing(batches):\n"
        "            for step, batch in enumerate(batches):\n"
        "                assert step < 4\n"
        "    sys.exit(run(work))\n"
    )
    result = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    said = {"in the loop": "AssertionError", "in the batches": "could not be read"}
    assert said.get(where, "no more processes") in result.stderr
