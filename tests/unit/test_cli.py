"""The command by hand: what `inspect` tells of videos."""

import json

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


def test_inspect_tells_what_the_index_would(folder, capsys):
    assert main(["inspect", str(folder), str(folder.parent / "frames"), "nowhere.webm", "--json"]) == 0
    first, empty, frames, missing = json.loads(capsys.readouterr().out)
    assert first == {
        "path": str(folder / "1.webm"), "status": "ok", "reason": "", "frames": 24, "width": 64, "height": 36,
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
