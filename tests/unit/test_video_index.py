"""The index of a folder of sound and broken videos made here."""

from pathlib import Path

import pandas as pd
import pytest

from ffnrepro.data.video_index import index_videos, list_videos, listing_digest, shard_of
from ffnrepro.errors import UserError


def test_videos_are_listed_by_their_endings_in_order(tmp_path):
    for name in ["10.webm", "2.mp4", "a b.WEBM", "c.mkv", "d.avi", "e.mov", "f.m4v", "notes.txt", "._2.webm"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.webm").mkdir()
    (tmp_path / "gone.webm").symlink_to(tmp_path / "nowhere.webm")
    expected = ["10.webm", "2.mp4", "a b.WEBM", "c.mkv", "d.avi", "e.mov", "f.m4v", "gone.webm"]
    assert list_videos(tmp_path) == expected


def test_no_folder_and_no_videos_are_named_with_the_key(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*data\.videos"):
        list_videos(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no videos.*data\.videos"):
        list_videos(tmp_path)
    below = tmp_path / "20bn-something-something-v2"
    below.mkdir()
    (below / "1.webm").touch()
    with pytest.raises(UserError, match=r"but \S*/20bn-something-something-v2 does.*data\.videos"):
        list_videos(tmp_path)


def test_listing_digest_changes_with_the_names_only():
    digest = listing_digest(["1.webm", "2.webm"])
    assert digest == listing_digest(["2.webm", "1.webm"])
    others = [["1.webm"], ["1.webm", "2.webm", "3.webm"], ["1.webm", "22.webm"], ["1.webm2.webm"]]
    assert len({digest, *map(listing_digest, others)}) == 5


def test_shards_divide_the_names_and_a_new_one_changes_one_shard():
    names = [f"{number}.webm" for number in range(2000)]
    before = [shard_of(names, shard, 8) for shard in range(8)]
    assert sorted(name for shard in before for name in shard) == sorted(names)
    assert min(map(len, before)) > 200
    after = [shard_of(["0000.webm", *names], shard, 8) for shard in range(8)]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    # CRC-32 of "123456789" is known to be 0xCBF43926: the division must not change between releases.
    assert shard_of(["123456789"], 0xCBF43926 % 10, 10) == ["123456789"]
    with pytest.raises(ValueError, match="no shard 8"):
        shard_of(names, 8, 8)


def test_index_tells_what_each_file_is(write_video, numbered_frames, tmp_path):
    write_video(tmp_path / "1.webm", numbered_frames(24, 36, 64))
    write_video(tmp_path / "name with space.mp4", numbered_frames(10), codec="mpeg4", fps=25)
    write_video(tmp_path / "one frame.webm", numbered_frames(1))
    (tmp_path / "empty.webm").touch()
    (tmp_path / "page.webm").write_text("<html>502 Bad Gateway</html>")
    (tmp_path / "gone.webm").symlink_to(tmp_path / "nowhere.webm")
    table = index_videos(tmp_path, list_videos(tmp_path)).set_index("id")

    assert list(table.index) == ["1", "empty", "gone", "name with space", "one frame", "page"]
    assert table["path"].tolist() == [
        "1.webm", "empty.webm", "gone.webm", "name with space.mp4", "one frame.webm", "page.webm",
    ]  # fmt: skip
    assert table["status"].tolist() == ["ok", "excluded", "excluded", "ok", "ok", "excluded"]
    assert table["reason"].tolist() == ["", "empty file", "no such file", "", "", "does not decode"]
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


def test_index_has_one_form_whatever_it_holds(write_video, numbered_frames, tmp_path):
    write_video(tmp_path / "1.webm", numbered_frames(3))
    (tmp_path / "2.webm").touch()
    parts = [index_videos(tmp_path, names) for names in ([], ["1.webm"], ["2.webm"])]
    assert len({tuple(part.dtypes.astype(str).items()) for part in parts}) == 1
    for number, part in enumerate(parts):
        part.to_parquet(tmp_path / f"{number}.parquet")
    read = pd.concat([pd.read_parquet(Path(tmp_path / f"{number}.parquet")) for number in range(3)])
    assert read["id"].tolist() == ["1", "2"]
