"""The index of a folder of sound and broken videos made here."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pandas as pd
import pytest

from ffnrepro.data import video_index
from ffnrepro.data.decode import examine
from ffnrepro.data.isolation import examine_in_child, in_child
from ffnrepro.data.label_formats import VIDEO_ENDINGS, id_of
from ffnrepro.data.video_index import check_frames, index_videos, list_videos, shard_of, watch_digests
from ffnrepro.errors import UserError


def test_videos_are_listed_by_their_endings_in_order(tmp_path):
    for name in ["10.webm", "2.mp4", "a b.WEBM", "c.mkv", "d.avi", "e.mov", "f.m4v", "notes.txt", "._2.webm"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.webm").mkdir()
    (tmp_path / "gone.webm").symlink_to(tmp_path / "nowhere.webm")
    expected = ["10.webm", "2.mp4", "a b.WEBM", "c.mkv", "d.avi", "e.mov", "f.m4v", "gone.webm"]
    assert list_videos(tmp_path) == expected


def test_every_ending_is_listed_and_is_not_part_of_the_id(tmp_path):
    for ending in VIDEO_ENDINGS:
        (tmp_path / f"clip 1{ending}").touch()
    names = list_videos(tmp_path)
    assert len(names) == 12
    assert {id_of(f"folder/{name}") for name in names} == {"clip 1"}


def test_a_missing_folder_and_missing_videos_are_named_with_the_key(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere.*data\.videos"):
        list_videos(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no videos.*data\.videos"):
        list_videos(tmp_path)
    below = tmp_path / "20bn-something-something-v2"
    below.mkdir()
    (below / "1.webm").touch()
    with pytest.raises(
        UserError, match=r"holds no videos.*its folder 20bn-something-something-v2 does.*`data\.videos`"
    ):
        list_videos(tmp_path)
    # In folders of classes, as in UCF101.
    for name in ("walk", "run it"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / f"{name} 1.avi").touch()
    # The command makes the folder where the workflow runs, wherever the command is given.
    (tmp_path / "work here").mkdir()
    monkeypatch.chdir(tmp_path / "work here")
    with pytest.raises(UserError, match=r"2 of its folders do, such as run it; link them") as caught:
        list_videos(tmp_path / "classes")
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True, cwd="/")
    flat = Path("flat")
    assert str(caught.value).endswith("set `data.videos: flat`")
    assert list_videos(flat) == ["run it 1.avi", "walk 1.avi"]
    assert all((flat / name).exists() for name in list_videos(flat))


def test_shards_divide_the_names_and_a_new_one_changes_one_shard():
    names = [f"{number}.webm" for number in range(2000)]
    before = [shard_of(names, shard, 8) for shard in range(8)]
    assert sorted(name for shard in before for name in shard) == sorted(names)
    assert min(map(len, before)) > 200
    after = [shard_of(["0000.webm", *names], shard, 8) for shard in range(8)]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    # CRC-32 of "123456789" is known to be 0xCBF43926: the division must not change between releases.
    assert shard_of(["123456789"], 0xCBF43926 % 10, 10) == ["123456789"]


def test_the_index_describes_each_file(write_video, numbered_frames, tmp_path):
    write_video(tmp_path / "1.webm", numbered_frames(24, 36, 64))
    write_video(tmp_path / "name with space.mp4", numbered_frames(10), codec="mpeg4", fps=25)
    write_video(tmp_path / "one frame.webm", numbered_frames(1))
    (tmp_path / "empty.webm").touch()
    (tmp_path / "page.webm").write_text("<html>502 Bad Gateway</html>")
    (tmp_path / "gone.webm").symlink_to(tmp_path / "nowhere.webm")
    entries = tmp_path / "state/0-of-1.jsonl"
    table = index_videos(tmp_path, list_videos(tmp_path), entries=entries).set_index("id")

    assert list(table.index) == ["1", "empty", "gone", "name with space", "one frame", "page"]
    assert table["path"].tolist() == [
        "1.webm", "empty.webm", "gone.webm", "name with space.mp4", "one frame.webm", "page.webm",
    ]  # fmt: skip
    assert table["status"].tolist() == ["ok", "excluded", "excluded", "ok", "ok", "excluded"]
    assert table["reason"].tolist() == ["", "empty file", "no such file", "", "", "a web page, not a video"]
    first = table.loc["1"]
    assert (first["frames"], first["width"], first["height"], first["codec"]) == (24, 64, 36, "vp9")
    assert first["fps"] == pytest.approx(12)
    assert first["duration"] == pytest.approx(2, abs=0.01)
    assert first["bytes"] == (tmp_path / "1.webm").stat().st_size
    assert table.loc["name with space", "frames"] == 10
    assert table.loc["name with space", "fps"] == pytest.approx(25)
    assert table.loc["one frame", "frames"] == 1
    broken = table.loc[["empty", "gone", "page"], ["frames", "width", "height", "fps", "duration"]]
    assert broken.isna().all(axis=None)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system has no such names")
def test_a_name_in_another_encoding_excludes_only_its_own_file(write_video, numbered_frames, tmp_path):
    write_video(tmp_path / "1.webm", numbered_frames(3))
    write_video(tmp_path / os.fsdecode(b"caf\xe9.webm"), numbered_frames(3))
    table = index_videos(tmp_path, list_videos(tmp_path), entries=tmp_path / "state" / "0-of-1.jsonl")
    table.to_parquet(tmp_path / "part.parquet")
    assert table["path"].tolist() == ["1.webm", "caf\ufffd.webm"]
    assert table["reason"].tolist() == ["", "its name is not UTF-8"]


def test_the_index_has_the_same_columns_whatever_it_holds(write_video, numbered_frames, tmp_path):
    write_video(tmp_path / "1.webm", numbered_frames(3))
    (tmp_path / "2.webm").touch()
    entries = tmp_path / "state/0-of-1.jsonl"
    parts = [index_videos(tmp_path, names, entries=entries) for names in ([], ["1.webm"], ["2.webm"])]
    assert len({tuple(part.dtypes.astype(str).items()) for part in parts}) == 1
    for number, part in enumerate(parts):
        part.to_parquet(tmp_path / f"{number}.parquet")
    read = pd.concat([pd.read_parquet(Path(tmp_path / f"{number}.parquet")) for number in range(3)])
    assert read["id"].tolist() == ["1", "2"]


def test_frames_are_listed_by_their_folders_and_the_other_layout_is_named(tmp_path):
    (tmp_path / "frames" / "2").mkdir(parents=True)
    (tmp_path / "frames" / "2" / "00001.jpg").touch()
    (tmp_path / "frames" / "1.webm").touch()
    assert list_videos(tmp_path / "frames", "frames") == ["2"]
    (tmp_path / "frames" / "1.webm").unlink()
    with pytest.raises(UserError, match=r"holds no videos.*its folders hold frames.*`data\.layout: frames`"):
        list_videos(tmp_path / "frames")
    # Folders of frames may lie in folders of classes.
    (tmp_path / "frames").rename(tmp_path / "walk")
    (tmp_path / "frames").mkdir()
    (tmp_path / "walk").rename(tmp_path / "frames" / "walk")
    with pytest.raises(UserError, match=r"its folders hold frames.*`data\.layout: frames`"):
        list_videos(tmp_path / "frames")
    with pytest.raises(UserError, match=r"the frames of one video.*folder above"):
        list_videos(tmp_path / "frames" / "walk" / "2", "frames")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "1.webm").touch()
    with pytest.raises(UserError, match=r"holds no folders of frames.*video files.*`data\.layout: videos`"):
        list_videos(tmp_path / "videos", "frames")


def test_a_wrong_layout_of_frames_is_found_before_the_index(tmp_path, caplog):
    """As long as one of the folders that are tried holds frames, the index says which do not."""
    for number in range(60):
        (tmp_path / f"{number:02d}/rgb").mkdir(parents=True)
    names = list_videos(tmp_path, "frames")
    with pytest.raises(
        UserError, match=r"/00: no frames \(it holds the folder rgb; .*; 20 of 60 folders .* none holds"
    ):
        check_frames(tmp_path, names)
    (tmp_path / "57/1.jpg").touch()
    check_frames(tmp_path, names)
    assert not caplog.records
    for name in ("img_1.jpg", "flow_x_1.jpg", "flow_y_1.jpg"):
        (tmp_path / "03" / name).touch()
    check_frames(tmp_path, names)
    assert (
        caplog.records[0]
        .getMessage()
        .endswith("/03: the frames are img_*.jpg; optical flow is left out: flow_x_*.jpg, flow_y_*.jpg")
    )


def test_watched_changes_and_no_others_change_the_digest_of_their_shard(tmp_path):
    def changed(change, watch):
        """Shards whose digest a change of the folder changes."""
        before = watch_digests(folder, list_videos(folder), shards=4, watch=watch)
        change()
        after = watch_digests(folder, list_videos(folder), shards=4, watch=watch)
        return [shard for shard in range(4) if before[shard] != after[shard]]

    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.webm").write_bytes(b"12")
    names = list_videos(folder)
    shards = {name: shard for shard in range(4) for name in shard_of([*names, "40.webm"], shard, 4)}
    first = shard_of(names, 2, 4)[0]
    assert shards["8.webm"] != 2  # so that the file below is not the first of its shard
    assert names.index("8.webm") > 4

    assert changed(lambda: (folder / "8.webm").write_bytes(b"1"), "names") == []
    assert changed(lambda: (folder / "8.webm").write_bytes(b"123"), "stat") == [shards["8.webm"]]
    assert changed(lambda: os.utime(folder / "8.webm", (0, 0)), "stat") == [shards["8.webm"]]
    assert changed((folder / "40.webm").touch, "names") == [shards["40.webm"]]
    assert changed((folder / "40.webm").unlink, "none") == []
    # Another encoding of the videos has the same names.
    assert changed(lambda: (folder / first).write_bytes(b"123"), "names") == [2]
    for watch in ("names", "stat"):
        before = watch_digests(folder, list_videos(folder), shards=4, watch=watch)
        shutil.copytree(folder, tmp_path / f"moved {watch}")
        assert watch_digests(tmp_path / f"moved {watch}", names, shards=4, watch=watch) == before
    of_folder, of_other = (watch_digests(path, [], shards=4, watch="none") for path in (folder, tmp_path))
    assert of_folder != of_other


@pytest.fixture
def examined(monkeypatch):
    """Names of the files that are examined again, in order."""
    names: list[str] = []
    original = video_index.examine_in_child

    def watched(paths, **options):
        paths = list(paths)
        names.extend(path.name for path in paths)
        return original(paths, **options)

    monkeypatch.setattr(video_index, "examine_in_child", watched)
    return names


def test_unchanged_files_are_not_decoded_again(write_video, numbered_frames, tmp_path, examined, monkeypatch):
    folder, entries = tmp_path / "videos", tmp_path / "state" / "0-of-1.jsonl"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"{number}.webm", numbered_frames(4))
    (folder / "page.webm").write_text("<html>")
    (folder / "gone.webm").symlink_to(tmp_path / "nowhere.webm")
    names = list_videos(folder)
    first = index_videos(folder, names, entries=entries)
    assert sorted(examined) == sorted(names)
    examined.clear()
    pd.testing.assert_frame_equal(index_videos(folder, names, entries=entries), first)
    assert examined == ["gone.webm"]  # what may have been a fault of the disk is tried again

    examined.clear()
    write_video(folder / "1.webm", numbered_frames(6))
    changed = (folder / "2.webm").stat().st_mtime_ns + 10**9
    os.utime(folder / "2.webm", ns=(changed, changed))
    with entries.open("a") as file:
        file.write('\n{"key": ["3.webm", 12')  # a line that a kill cut short
    table = index_videos(folder, names, entries=entries).set_index("id")
    assert examined == ["1.webm", "2.webm", "gone.webm"]
    assert table["frames"].dropna().tolist() == [4, 6, 4, 4]

    examined.clear()
    index_videos(folder, names, entries=entries.with_name("0-of-2.jsonl"))  # shards divided anew
    assert examined == ["gone.webm"]
    index_videos(folder, names, entries=entries, verify="packets")
    assert sorted(examined[1:]) == sorted(names)

    examined.clear()
    monkeypatch.setattr(video_index, "REVISION", video_index.REVISION + 1)
    index_videos(folder, names, entries=entries)
    assert sorted(examined) == sorted(names)


def test_a_killed_index_is_continued(write_video, numbered_frames, tmp_path, examined):
    folder, entries = tmp_path / "videos", tmp_path / "state" / "0-of-1.jsonl"
    folder.mkdir()
    write_video(tmp_path / "clip.webm", numbered_frames(40, 240, 427))
    names = [f"{number}.webm" for number in range(100)]
    for name in names:
        (folder / name).symlink_to(tmp_path / "clip.webm")
    script = Path(__file__).parents[2] / "workflow/scripts/index_videos.py"
    options = {
        "--videos": folder, "--shard": 0, "--shards": 1, "--layout": "videos", "--verify": "decode",
        "--entries": entries.parent, "--output": tmp_path / "part.parquet",
    }  # fmt: skip
    command = [sys.executable, script, *(str(word) for option in options.items() for word in option)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not entries.exists() or entries.read_text().count("\n") < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    done = entries.read_text().count("\n")
    assert 20 <= done < 100
    assert not (tmp_path / "part.parquet").exists()
    table = index_videos(folder, names, entries=entries)
    # The last line may have been cut short.
    assert len(examined) in (100 - done, 100 - done + 1)
    assert table["id"].tolist() == [name.removesuffix(".webm") for name in names]
    assert set(table["frames"]) == {40}


def hang_or_die(path):
    """Stands for `examine` with a decoder that never returns (and holds the interpreter lock), crashes, or raises."""
    if "hangs" in path.name:
        ctypes.PyDLL(None).pause()
    if "dies" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "surprises" in path.name:
        raise AttributeError("'NoneType' object has no attribute 'width'")
    return examine(path)


def test_a_file_that_hangs_or_kills_the_decoder_excludes_only_itself(write_video, numbered_frames, tmp_path):
    names = ["0.webm", "hangs.webm", "1.webm", "2.webm", "dies.webm", "surprises.webm", "3.webm"]
    paths = [write_video(tmp_path / name, numbered_frames(3)) for name in names]
    outcomes = dict(in_child(hang_or_die, paths, seconds=1.5))
    assert list(outcomes) == paths
    assert outcomes.pop(tmp_path / "hangs.webm") == ("decoder did not finish", "in 1.5 s")
    assert outcomes.pop(tmp_path / "dies.webm") == ("decoder crashed", "")
    reason, detail = outcomes.pop(tmp_path / "surprises.webm")
    assert (reason, detail[:26]) == ("decoder crashed", "AttributeError: 'NoneType'")
    assert {frames for _, frames in outcomes.values()} == {3}
    assert len(outcomes) == 4
    assert list(examine_in_child([])) == []


def test_paths_are_read_one_by_one_and_a_caller_may_stop(tmp_path):
    def paths():
        for number in range(1000):
            read.append(number)
            yield tmp_path / f"{number}.webm"

    read: list[int] = []
    found = examine_in_child(paths())
    assert next(found) == (tmp_path / "0.webm", ("no such file", ""))
    found.close()
    assert len(read) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the pool
def test_a_child_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    resource_tracker.ensure_running()  # a child process of Python's own, which must start
    monkeypatch.setattr("multiprocessing.spawn._python_exe", (shutil.which("false") or "").encode())
    with pytest.raises(UserError, match="does not start"):
        list(examine_in_child([tmp_path / "1.webm"]))
