"""The frame cache against frames that the test draws itself."""

import logging
import pickle
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from ffnrepro.data import frame_cache
from ffnrepro.data.decode import DecodeError, open_video
from ffnrepro.data.frame_cache import FrameCache, opener, write_shard
from ffnrepro.errors import UserError
from ffnrepro.files import write_json
from ffnrepro.recipe.clips import ClipDataset

LENGTHS = {"9.webm": 5, "10.webm": 12, "a b.webm": 1}


@pytest.fixture
def videos(tmp_path, write_video, numbered_frames):
    """Three videos; frame i has the grey level 20 + 4 * i."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, length in LENGTHS.items():
        write_video(folder / name, numbered_frames(length, height=30, width=46))
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Names of the videos that are decoded."""
    names, original = [], frame_cache.in_child

    def watched(work, items, *, seconds):
        for item, result in original(work, items, seconds=seconds):
            names.append(item.path)
            yield item, result

    monkeypatch.setattr(frame_cache, "in_child", watched)
    return names


def write(videos, lengths=LENGTHS, *, quality=90, frames_of_all=18):
    """Write one shard and its record beside the folder of videos; return both."""
    table = pd.DataFrame({"path": list(lengths), "frames": list(lengths.values())})
    file = videos.parent / "cache/0-of-1.arrow"
    record = write_shard(file, table, folder=videos, quality=quality, frames_of_all=frames_of_all)
    write_json(videos.parent / "records/part-0.json", {"shards": 1, **record})
    return file, record


def opened(videos, quality=90):
    return FrameCache(videos.parent / "cache", videos.parent / "records", quality=quality)


def levels(pictures):
    """The numbers of frames, by their grey level."""
    return ((pictures.mean(axis=(1, 2, 3)) - 20) / 4).round().astype(int).tolist()


def test_frames_are_those_of_the_video(videos):
    file, record = write(videos)
    assert record["frames"] == 18
    assert record["bytes"] == file.stat().st_size
    cache = opened(videos)
    for name, length in LENGTHS.items():
        positions = np.arange(length)[::-1].repeat(2)
        pictures = cache(Path("elsewhere") / name).frames(positions)
        assert pictures.shape == (2 * length, 30, 46, 3)
        assert levels(pictures) == positions.tolist()
        assert np.abs(pictures.astype(int) - open_video(videos / name).frames(positions)).max() <= 3
    with pytest.raises(DecodeError, match="frame 5 of 5"):
        cache(Path("9.webm")).frames([5])


def test_a_shard_of_no_video_and_a_clip_of_one(videos):
    _, record = write(videos, {})
    assert (record["videos"], record["paths"]) == (0, [])
    with pytest.raises(UserError, match=r"lacks 1 videos, such as 9\.webm; run snakemake again"):
        opened(videos).check(["9.webm"])
    write(videos, {"9.webm": 5})
    opened(videos).check(["9.webm"])


def test_only_new_and_changed_videos_are_decoded(videos, decoded, write_video, numbered_frames):
    file, record = write(videos, {"9.webm": 5, "10.webm": 12})
    assert sorted(decoded) == ["10.webm", "9.webm"]
    decoded.clear()
    before = file.stat().st_mtime_ns
    assert write(videos, {"10.webm": 12, "9.webm": 5})[1] == record
    assert (decoded, file.stat().st_mtime_ns) == ([], before)

    write_video(videos / "9.webm", numbered_frames(9, height=30, width=46)[4:])
    changed = write(videos)[1]
    assert decoded == ["9.webm", "a b.webm"]
    assert changed["digest"] != record["digest"]
    cache = opened(videos)
    assert levels(cache(Path("9.webm")).frames(range(5))) == [4, 5, 6, 7, 8]
    assert levels(cache(Path("10.webm")).frames(range(12))) == list(range(12))
    decoded.clear()
    assert write(videos, {"10.webm": 12})[1]["paths"] == ["10.webm"]
    assert decoded == []
    # Another quality is another cache.
    write(videos, {"10.webm": 12}, quality=50)
    assert decoded == ["10.webm"]
    with pytest.raises(UserError, match=r"made with quality 50, .* not with quality 90.*; make it again"):
        opened(videos)


SLOW = """
import itertools, sys, time
from pathlib import Path
import pandas as pd
from ffnrepro.data import frame_cache
from ffnrepro.data.frame_cache import write_shard

def two_videos_then_wait(work, items, *, seconds):
    for item in itertools.islice(items, 2):
        yield item, work(item)
    print("ready", flush=True)
    time.sleep(60)

frame_cache.in_child = two_videos_then_wait
table = pd.DataFrame({"path": ["10.webm", "9.webm", "a b.webm"], "frames": [12, 5, 1]})
folder = Path(sys.argv[1])
write_shard(folder.parent / "cache/0-of-1.arrow", table, folder=folder, quality=90, frames_of_all=18)
"""


def test_a_killed_job_leaves_nothing_that_counts(videos):
    with subprocess.Popen([sys.executable, "-c", SLOW, videos], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "ready\n"
        job.kill()
    (left,) = (videos.parent / "cache").iterdir()
    assert left.name.startswith(".0-of-1-")
    file, record = write(videos)
    assert list(file.parent.iterdir()) == [file]
    # Nor does a file that lost its end.
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"0-of-1\.arrow: not the file that this record describes; make it again"
    ):
        opened(videos)
    assert write(videos)[1] == record
    opened(videos)
    file.unlink()
    with pytest.raises(
        UserError,
        match=r"0-of-1\.arrow: no such file; make it again, .*: snakemake --cores 1 --until cache_frames ",
    ):
        opened(videos)
    (videos.parent / "records/part-0.json").unlink()
    with pytest.raises(
        UserError,
        match=r"records: the frame cache is not complete; make it again, .*: snakemake --cores 1 --until cache_frames",
    ):
        opened(videos)


def test_damage_is_found_where_it_is_read(videos, decoded, caplog):
    file, _ = write(videos)
    content = bytearray(file.read_bytes())
    # In the last of the 12 JPEGs of the video whose row comes first.
    end = content.index(b"\xff\xd9", content.rindex(b"\xff\xd8", 0, content.index(b"9.webm"))) - 2
    content[end] ^= 1
    file.write_bytes(content)
    cache = opened(videos)
    assert levels(cache(Path("10.webm")).frames(range(11))) == list(range(11))
    with pytest.raises(DecodeError) as error:
        cache(Path("10.webm")).frames([0, 11])
    assert re.fullmatch(
        r".*cache/0-of-1\.arrow: cannot be used for 10\.webm \(frame 11 is damaged\); delete the file and make it again, "
        "with your --directory and --configfile: snakemake --cores 1 --until cache_frames --forcerun cache_frames; then run "
        "snakemake again",
        str(error.value),
    )
    # Nor is it copied.
    decoded.clear()
    lengths = {"9.webm": 5, "10.webm": 12}
    write(videos, lengths)
    assert decoded == ["10.webm"]
    assert "10.webm: frame 11 is damaged in the cache; it is decoded again" in caplog.text
    assert levels(opened(videos)(Path("10.webm")).frames(range(12))) == list(range(12))


def test_any_damaged_byte_is_an_error_or_harmless(videos):
    file, _ = write(videos, {"9.webm": 5})
    content = file.read_bytes()
    right = opened(videos)(Path("9.webm")).frames(range(5))
    for place in np.random.default_rng(0).integers(len(content), size=300).tolist():
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with suppress(DecodeError):
            assert (opened(videos)(Path("9.webm")).frames(range(5)) == right).all(), place


def test_a_video_that_went_bad_is_named(videos):
    (videos / "10.webm").write_bytes(b"no video")
    with pytest.raises(
        UserError, match=r"videos/10\.webm: text, not a video, although the index could read it"
    ):
        write(videos)
    assert list((videos.parent / "cache").iterdir()) == []


def test_space_is_checked_before_much_is_written(videos, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9))
    # 1e9 frames of such small pictures are about a terabyte.
    with pytest.raises(
        UserError, match=r"takes about \d{3,4}\.\d GB in .*cache .*only 1\.0 GB .*data\.cache_folder"
    ):
        write(videos, frames_of_all=10**9)
    assert list((videos.parent / "cache").iterdir()) == []
    _, record = write(videos)
    stated = float(re.search(r"takes about .* \((\d+) kB a frame\); 1\.0 GB are free", caplog.text)[1])
    assert stated == round(record["bytes"] / 18 / 1000)
    # What is already in the other folder that is counted needs no more space. (This file is small, so its index counts.)
    file, other = videos.parent / "train/0-of-1.arrow", videos.parent / "validation/0-of-1.arrow"
    table = pd.DataFrame({"path": list(LENGTHS), "frames": list(LENGTHS.values())})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(4 * record["bytes"]))
    options = {
        "folder": videos,
        "quality": 90,
        "frames_of_all": 10 * 18,
        "folders": [file.parent, other.parent],
    }
    with pytest.raises(UserError, match=r"GB in .*train, .*validation \("):
        write_shard(file, table, **options)
    other.parent.mkdir()
    other.write_bytes(bytes(6 * record["bytes"]))
    write_shard(file, table, **options)


def test_workers_read_as_this_process(videos):
    write(videos)
    table = pd.DataFrame(
        {"id": list(LENGTHS), "path": list(LENGTHS), "frames": list(LENGTHS.values()), "class": 0}
    )
    source = opener(
        "jpeg",
        quality=90,
        folder=videos.parent / "cache",
        records=videos.parent / "records",
        paths=table["path"],
    )
    dataset = ClipDataset(
        manifest=table,
        videos=videos,
        open_video=source,
        frame_counts=(4,),
        size=16,
        short_side=20,
        crop="centre",
    )
    # The maps of this process are open when a worker is forked, and stay here when one is spawned.
    here = [dataset[index][0][4] for index in range(3)]
    forked = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    spawned = pickle.loads(pickle.dumps(dataset))
    for index, (clips, _) in enumerate(forked):
        assert torch.equal(clips[4], here[index])
        assert torch.equal(spawned[index][0][4], here[index])


def test_without_a_cache_videos_are_opened(tmp_path):
    assert opener("none", quality=90, folder=tmp_path, records=tmp_path, paths=["1.webm"]) is open_video
