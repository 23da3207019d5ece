"""Checkpoints: whole or not at all, two generations; and the mark of a training that failed permanently."""

import errno
import json
import os
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from ffnrepro import __version__
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.files import write_json
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.lease import Lease

DATA = "0123456789abcdef" * 4


def content(number: int) -> dict[str, Any]:
    return {"epoch": number, "step": 0, "tensor": torch.full((1000,), float(number))}


def checkpoints(folder: Path, *, data: str = DATA, save_minutes: float = 10) -> Checkpoints:
    return Checkpoints(
        folder / f"seed3-{DATA[:8]}",
        run="ffn-89abcdef",
        seed=3,
        epochs=50,
        data=data,
        save_minutes=save_minutes,
    )


def saved(folder: Path, count: int) -> Checkpoints:
    state = checkpoints(folder)
    for number in range(count):
        state.save(content(number))
    return state


def epoch_of(state: Checkpoints) -> int | None:
    loaded = state.load()
    if loaded is None:
        return None
    assert torch.equal(loaded["tensor"], content(loaded["epoch"])["tensor"])
    return int(loaded["epoch"])


def test_two_generations_are_kept(tmp_path: Path) -> None:
    state = saved(tmp_path, 12)
    assert [file.name.split("-")[1] for file in state.generations()] == ["00000012", "00000011"]
    assert epoch_of(state) == 11


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit in the middle of a tensor: torch.load would not see it."""
    data = bytearray(file.read_bytes())
    data[data.index(torch.full((500,), 2.0).numpy().tobytes()) + 400] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_save_falls_back_to_the_previous_save(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(tmp_path, 3)
    newest = state.generations()[0]
    damage(newest)
    assert epoch_of(state) == 1
    assert f"{newest}: damaged and deleted; using the previous save" in caplog.text
    state.save(content(2))
    assert epoch_of(state) == 2
    for file in state.generations():
        damage(file) if damage is not flip else cut(file)
    assert epoch_of(state) is None


def test_training_does_not_start_again_while_a_save_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = saved(tmp_path, 3)

    def read_bytes(_: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        message = (
            rf"^{state.generations()[0]}: cannot be read \(Stale file handle\); check the disk and run again"
        )
        with pytest.raises(UserError, match=message):
            state.load()
    # It may be the disk's fault, for a while.
    assert len(state.generations()) == 2
    assert epoch_of(state) == 2


def test_a_full_disk_during_a_save_leaves_the_previous_save(tmp_path: Path) -> None:
    state = saved(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            UserError, match=r"cannot be saved \(File too large; 0 MB to write\); free some space"
        ):
            state.save(content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert epoch_of(state) == 1
    assert len(state.generations()) == 2
    assert not list(state.folder.glob(".*"))
    state.save(content(2))
    assert epoch_of(state) == 2


def test_leftovers_of_a_killed_save_are_deleted(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    (state.folder / ".state-00000002-0123-abcdef.pt").write_bytes(b"half")
    with state.held():
        assert not list(state.folder.glob(".*"))
    assert epoch_of(state) == 0


def test_a_save_is_due_after_save_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = checkpoints(tmp_path, save_minutes=2)
    now += 119
    assert not state.is_due()
    now += 2
    assert state.is_due()
    state.save(content(0))
    assert not state.is_due()


def test_a_process_that_lost_the_lease_does_not_save(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    with state.held():
        state.save(content(1))
        (state.folder / "lease.json").write_text('{"token": "of another process"}')
        with pytest.raises(Unfinished, match="another process took over"):
            state.save(content(2))
    assert epoch_of(state) == 1
    assert (state.folder / "lease.json").exists()


def fail(state: Checkpoints, error: Exception) -> None:
    with state.held():
        raise error


def test_a_permanent_failure_stops_the_next_attempt_with_the_same_message(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    with pytest.raises(PermanentError):
        fail(state, PermanentError("the loss is nan at epoch 3"))
    message = r"^the loss is nan at epoch 3 \(.*: ffnrepro runs retry ffn-89abcdef\)$"
    with pytest.raises(PermanentError, match=message), state.held():
        pytest.fail("it was tried again")
    (state.folder / "failed.json").unlink()
    with state.held():
        assert epoch_of(state) == 0


@pytest.mark.parametrize("changed", ["data", "version", "damaged"])
def test_a_failure_with_other_data_or_another_version_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    state = saved(tmp_path, 1)
    with pytest.raises(PermanentError):
        fail(state, PermanentError("the loss is nan"))
    if changed == "data":
        state = checkpoints(tmp_path, data=DATA[:8] + 56 * "0")
    elif changed == "version":
        monkeypatch.setattr("ffnrepro.training.checkpoints.__version__", "9.9")
    else:
        (state.folder / "failed.json").write_text("{")
    with state.held():
        assert not (state.folder / "failed.json").exists()


def test_a_failure_of_an_earlier_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = saved(tmp_path, 1)

    class LeaseOfAnother(Lease):
        def held(self, check: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
            mark = {"message": "the loss is nan", "time": "now", "data": DATA, "version": __version__}
            write_json(self.path.parent / "failed.json", mark)
            return super().held(check)

    monkeypatch.setattr("ffnrepro.training.checkpoints.Lease", LeaseOfAnother)
    with pytest.raises(PermanentError, match=r"^the loss is nan \(this training failed on now"), state.held():
        pytest.fail("it was tried again")
    assert not (state.folder / "lease.json").exists()


def test_a_full_disk_does_not_hide_why_a_training_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = saved(tmp_path, 1)
    monkeypatch.setattr("ffnrepro.training.checkpoints.write_json", full)
    with pytest.raises(PermanentError, match=r"^the loss is nan$"):
        fail(state, PermanentError("the loss is nan"))
    assert "failed.json: cannot be written (No space left on device)" in caplog.text
    assert not (state.folder / "lease.json").exists()


def test_a_lease_that_cannot_be_given_back_does_not_hide_why_a_training_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stale(_: Any) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    state = saved(tmp_path, 1)
    monkeypatch.setattr(Lease, "is_mine", stale)
    with pytest.raises(Unfinished, match=r"^SIGTERM$"):
        fail(state, Unfinished("SIGTERM"))
    assert "lease.json: could not be released (Stale file handle)" in caplog.text


@pytest.mark.parametrize("error", [UserError("disk full"), Unfinished("SIGTERM"), RuntimeError("a fault")])
def test_other_failures_are_tried_again(tmp_path: Path, error: Exception) -> None:
    state = saved(tmp_path, 1)
    with pytest.raises(type(error)):
        fail(state, error)
    with state.held():
        pass


def test_a_save_says_how_far_the_training_has_come(tmp_path: Path) -> None:
    state = checkpoints(tmp_path)
    state.save(content(7) | {"step": 12})
    about = json.loads((state.folder / "about.json").read_text())
    assert about == {"run": "ffn-89abcdef", "seed": 3, "epochs": 50, "data": DATA, "epoch": 7, "step": 12}
