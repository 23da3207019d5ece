"""Libraries that are missing or broken."""

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffnrepro.data import decode
from ffnrepro.data.decode import open_video
from ffnrepro.optional import import_optional
from ffnrepro.training.progress import write_scalars


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was imported before this test is imported again."""
    for name in ("decord", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import_optional.cache_clear()
    yield
    import_optional.cache_clear()


def break_library(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    "error",
    [
        "OSError('libnvcuvid.so.1: cannot open shared object file\\nNo such file')",
        "ImportError('numpy.core.multiarray failed to import')",
        "ModuleNotFoundError('No module named six', name='six')",
        "AttributeError('np.bool')",
        "SystemError()",
    ],
)
def test_a_broken_decord_counts_as_absent_with_one_warning(
    write_video, numbered_frames, tmp_path, monkeypatch, caplog, error
):
    break_library("decord", tmp_path, monkeypatch, error)
    path = write_video(tmp_path / "clip.webm", numbered_frames(3))
    for _ in range(2):
        reader = open_video(path)
        assert isinstance(reader, decode._PyAVReader)
        assert reader.frames([2]).shape == (1, 64, 64, 3)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("decord is installed but cannot be loaded (")
    assert message.endswith("); PyAV decodes instead")
    assert "\n" not in message


def test_an_absent_library_is_no_news(caplog):
    assert import_optional("no_such_library", "nothing happens") is None
    assert not caplog.records


def test_a_child_process_leaves_the_warning_to_its_parent(tmp_path, monkeypatch, caplog):
    break_library("broken", tmp_path, monkeypatch, "OSError('no system library')")
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert import_optional("broken", "nothing happens") is None
    assert not caplog.records


def test_without_tensorboard_only_the_curves_are_lost(tmp_path, monkeypatch, caplog):
    """It may be broken by a broken TensorFlow, which it imports if that is installed."""
    break_library("tensorboard", tmp_path, monkeypatch, "OSError('libcudnn.so.8')")
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    for epoch in (1, 2):
        write_scalars(tmp_path / "curves", {"epoch": epoch, "train_loss": 2.5})
    assert [record.getMessage() for record in caplog.records] == [
        "torch.utils.tensorboard is installed but cannot be loaded (libcudnn.so.8); there are no curves for TensorBoard"
    ]
