"""Saves: whole or not at all, two generations, and what is left of a run that failed for good."""

import errno
import os
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from ffnrepro.cli import main
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.lease import Lease


def content(number: int) -> dict[str, Any]:
    return {"epoch": number, "step": 0, "tensor": torch.full((1000,), float(number))}


def saved(folder: Path, count: int) -> StateDirectory:
    state = StateDirectory(folder / "train", {}, about={"experiment": "ffn", "seed": 3, "epochs": 50})
    for number in range(count):
        state.save(content(number))
    return state


def epoch_of(state: StateDirectory) -> int | None:
    loaded = state.load()
    if loaded is None:
        return None
    assert torch.equal(loaded["tensor"], content(loaded["epoch"])["tensor"])
    return int(loaded["epoch"])


def test_state_of_other_settings_is_never_taken(tmp_path: Path) -> None:
    StateDirectory(tmp_path, {"learning_rate": 0.1}).save(content(1))
    assert StateDirectory(tmp_path, {"learning_rate": 0.2}).load() is None
    assert epoch_of(StateDirectory(tmp_path, {"learning_rate": 0.1})) == 1


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
def test_a_damaged_save_falls_back_to_the_one_before(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(tmp_path, 3)
    newest = state.generations()[0]
    damage(newest)
    assert epoch_of(state) == 1
    assert f"{newest}: damaged, deleted; goes back to the save before it" in caplog.text
    state.save(content(2))
    assert epoch_of(state) == 2
    for file in state.generations():
        damage(file) if damage is not flip else cut(file)
    assert epoch_of(state) is None


def test_an_unreadable_save_falls_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(tmp_path, 3)
    newest = state.generations()[0]
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == newest:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert epoch_of(state) == 1
    assert f"{newest}: not readable (Input/output error); goes back to the save before it" in caplog.text
    assert newest.exists()  # it may be the disk's fault, for a while
    state.save(content(2))
    kept = [torch.load(file, weights_only=True)["epoch"] for file in state.generations()]
    assert kept == [2, 1]  # and not the unreadable one in the place of a good one


def test_saves_that_cannot_be_read_for_a_while_are_not_begun_anew_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = saved(tmp_path, 3)

    def read_bytes(_: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(
            UserError, match=r"none of its saves can be read; see to the disk or the permissions"
        ):
            state.load()
    assert len(state.generations()) == 2
    assert epoch_of(state) == 2


def test_what_is_known_of_the_saves_after_a_failure(tmp_path: Path) -> None:
    state = saved(tmp_path, 0)
    assert state.last_finite() == "No save is left without nan or inf in it"
    state.save(content(4))
    state.save(content(5) | {"optimizer": {"state": [torch.tensor([1.0, float("nan")])]}})
    good = state.generations()[1]
    assert state.last_finite().startswith(
        f"The newest save without nan or inf is {good}, after epoch 4 and 0 steps;"
    )
    state.save(content(6) | {"model": {"fc": torch.tensor([float("inf")])}})
    assert state.last_finite() == "No save is left without nan or inf in it"


def test_a_full_disk_during_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    state = saved(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            UserError, match=r"cannot be saved \(File too large; 0 MB to write, \d+ MB free\); make room"
        ):
            state.save(content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert epoch_of(state) == 1
    assert len(state.generations()) == 2
    assert not list(state.path.glob(".*"))
    state.save(content(2))
    assert epoch_of(state) == 2


def test_what_a_killed_save_left_is_cleared(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    (state.path / ".state-00000002-0123-abcdef.pt").write_bytes(b"half")
    with state.held():
        assert not list(state.path.glob(".*"))
    assert epoch_of(state) == 0


def test_a_save_is_due_after_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = StateDirectory(tmp_path, {}, save_minutes=2)
    now += 119
    assert not state.is_due()
    now += 2
    assert state.is_due()
    state.save(content(0))
    assert not state.is_due()


def test_who_lost_the_lease_saves_no_more(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    with state.held():
        state.save(content(1))
        (state.path / "lease.json").write_text('{"token": "of another process"}')
        with pytest.raises(Unfinished, match="another process took over"):
            state.save(content(2))
    assert epoch_of(state) == 1
    assert (state.path / "lease.json").exists()


def fail(state: StateDirectory, error: Exception) -> None:
    with state.held():
        raise error


def test_a_permanent_failure_stops_the_next_try_with_the_same_words(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    with pytest.raises(PermanentError):
        fail(state, PermanentError("the loss is nan at epoch 3"))
    words = rf"^the loss is nan at epoch 3 \(.*ffnrepro state retry {state.key}\)$"
    with pytest.raises(PermanentError, match=words), state.held():
        pytest.fail("it was tried again")
    with StateDirectory(tmp_path / "train", {"learning_rate": 0.001}).held():
        pass  # another configuration is another state
    assert main(["state", "retry", state.key[:6], "--folder", str(tmp_path)]) == 0
    with state.held():
        assert epoch_of(state) == 0


def test_a_failure_of_the_one_that_was_waited_for_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = saved(tmp_path, 1)

    class OfAnother(Lease):
        def held(self, check: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
            (self.path.parent / "failed.json").write_text('{"message": "the loss is nan", "time": "now"}')
            return super().held(check)

    monkeypatch.setattr("ffnrepro.training.checkpoints.Lease", OfAnother)
    with pytest.raises(PermanentError, match=r"^the loss is nan \(so it ended on now"), state.held():
        pytest.fail("it was tried again")
    assert not (state.path / "lease.json").exists()


def test_what_ended_a_training_is_said_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = saved(tmp_path, 1)
    monkeypatch.setattr("ffnrepro.training.checkpoints.write_json", full)
    with pytest.raises(PermanentError, match=r"^the loss is nan$"):
        fail(state, PermanentError("the loss is nan"))
    assert "failed.json: cannot be written (No space left on device)" in caplog.text
    assert not (state.path / "lease.json").exists()


def test_a_lease_that_cannot_be_given_back_hides_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stale(_: Any) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    state = saved(tmp_path, 1)
    monkeypatch.setattr(Lease, "is_mine", stale)
    with pytest.raises(Unfinished, match=r"^SIGTERM$"):
        fail(state, Unfinished("SIGTERM"))
    assert "lease.json: could not be given back (Stale file handle)" in caplog.text


@pytest.mark.parametrize("error", [UserError("disk full"), Unfinished("SIGTERM"), RuntimeError("a fault")])
def test_other_ends_are_tried_again(tmp_path: Path, error: Exception) -> None:
    state = saved(tmp_path, 1)
    with pytest.raises(type(error)):
        fail(state, error)
    with state.held():
        pass


def test_list_and_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert main(["state", "list", *folder]) == 0
    assert "no states" in capsys.readouterr().out
    state = saved(tmp_path, 8)
    with pytest.raises(PermanentError):
        fail(state, PermanentError("the loss is nan at epoch 8"))
    other = StateDirectory(tmp_path / "train", {"seed": 4}, about={"experiment": "tsm", "epochs": 2})
    with other.held():
        other.save(content(2))
        assert main(["state", "list", *folder]) == 0
        rows = capsys.readouterr().out.splitlines()
        first = next(row for row in rows if state.key in row)
        assert first.split()[:5] == ["train", state.key, "ffn", "3", "7/50"]  # of the frames nothing is known
        assert "the loss is nan at epoch 8" in first
        second = next(row for row in rows if other.key in row)
        assert "2/2" in second
        assert f"process {os.getpid()} on" in second
    assert main(["state", "prune", "no-such-key", *folder]) == 1
    capsys.readouterr()
    for said in ("may be tried again", "has not failed for good; nothing to do"):
        assert main(["state", "retry", state.key, *folder]) == 0
        assert capsys.readouterr().out == f"{state.path}: {said}\n"
    assert main(["state", "prune", state.key, *folder]) == 0
    assert capsys.readouterr().out == f"{state.path}: deleted\n"
    assert not state.path.exists()
    assert other.path.exists()


def test_a_state_at_work_is_not_pruned(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    with state.held():
        lease = state.path / "lease.json"
        lease.write_text(lease.read_text().replace(str(os.getpid()), str(os.getppid())))
        assert main(["state", "prune", state.key, "--folder", str(tmp_path)]) == 1
    assert epoch_of(state) == 0
