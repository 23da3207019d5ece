"""The command line: what `inspect` prints about videos."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ffnrepro.cli import main

from .test_wrong_files import write_frames


@pytest.fixture
def folder(write_video, numbered_frames, tmp_path):
    where = tmp_path / "my videos"
    where.mkdir()
    write_video(where / "1.webm", numbered_frames(24, 36, 64))
    (where / "2.webm").touch()
    write_frames(tmp_path / "frames", numbered_frames(5))
    return where


def test_inspect_prints_what_the_index_would_record(folder, capsys):
    assert main(["inspect", str(folder), str(folder.parent / "frames"), "nowhere.webm", "--json"]) == 0
    first, empty, frames, missing = json.loads(capsys.readouterr().out)
    assert first == {
        "path": str(folder / "1.webm"), "status": "ok", "reason": "", "detail": "", "frames": 24, "width": 64, "height": 36,
        "fps": 12.0, "codec": "vp9", "duration": pytest.approx(2, abs=0.01),
    }  # fmt: skip
    assert (empty["path"], empty["status"], empty["reason"]) == (
        str(folder / "2.webm"),
        "excluded",
        "empty file",
    )
    assert (frames["frames"], frames["codec"], frames["fps"]) == (5, "jpeg", None)
    assert (missing["path"], missing["reason"]) == ("nowhere.webm", "no such file")
    assert all(list(row) == list(first) for row in (empty, frames, missing))


def test_inspect_in_lines(folder, capsys):
    main(["inspect", str(folder / "1.webm"), str(folder / "2.webm")])
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / '1.webm'}: ok: 24 frames, 64x36, 12 frames/s, vp9, 2.00 s",
        f"{folder / '2.webm'}: excluded: empty file",
    ]


def test_inspect_of_a_folder_of_folders_of_frames(folder, numbered_frames, capsys):
    both = folder.parent / "v1"
    write_frames(both / "1", numbered_frames(3))
    (both / "2").mkdir()
    expected = "expected files such as 00001.jpg or img_00001.png"
    main(["inspect", str(both), str(folder.parent)])
    assert capsys.readouterr().out.splitlines() == [
        f"{both / '1'}: ok: 3 frames, 64x64, jpeg",
        f"{both / '2'}: excluded: no frames (an empty folder; {expected})",
        f"{folder.parent / 'frames'}: ok: 5 frames, 64x64, jpeg",
        f"{folder}: excluded: no frames (it holds files such as 1.webm; {expected})",
        f"{both}: excluded: no frames (it holds the folder 1; {expected})",
    ]


def run_inspect(paths, **options):
    command = [sys.executable, "-m", "ffnrepro.cli", "inspect", *paths]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_inspect_ends_quietly_when_its_reader_has_ended(folder):
    with run_inspect([folder / "2.webm"] * 3000) as process:  # more than a pipe holds
        assert process.stdout.readline() == f"{folder / '2.webm'}: excluded: empty file\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_any_command_ends_quietly_when_its_reader_has_ended(folder, monkeypatch, caplog):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.chdir(Path(__file__).parents[2])
        assert main(["runs", "--directory", str(folder)]) == 0
        monkeypatch.undo()
    assert not caplog.records


def test_an_interruption_is_one_line(folder):
    os.mkfifo(folder / "nobody writes.webm")
    with run_inspect(
        [folder / "1.webm"] * 8 + [folder / "nobody writes.webm"], start_new_session=True
    ) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130


def test_another_folder_than_that_of_the_snakefile_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 1
    assert (
        f"config/config.yaml: no such file in {tmp_path}; start ffnrepro in the folder of the" in caplog.text
    )


def test_inspect_does_not_wait_for_torch():
    command = "import sys; from ffnrepro import cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
