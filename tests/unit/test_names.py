"""Labelled ids and the names of videos, compared before any video is decoded."""

import logging

import pandas as pd
import pytest

from ffnrepro.data.names import compare_names
from ffnrepro.data.video_index import list_videos
from ffnrepro.errors import UserError

IDS = ["clip_a", "clip_b", "clip_c", "clip_d"]
SPLITS = ["train", "train", "validation", "validation"]


def compare(folder, files, *, ids=IDS, splits=SPLITS, videos=".", layout="videos", max_excluded=0.1):
    """Compare ids with the files of a folder that hold nothing; a name without an ending is a folder of frames."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if "." in path.name else path.mkdir()
    labels = pd.DataFrame({"id": ids, "split": splits[: len(ids)]}, dtype="str")
    names = list_videos(folder / videos, layout)
    compare_names(labels, names, folder / videos, layout, max_excluded=max_excluded)


def test_names_that_fit_say_nothing(tmp_path, caplog):
    compare(tmp_path / "files", [f"{name}.mp4" for name in IDS])
    compare(tmp_path / "frames", IDS, layout="frames")
    # By number, as in the manifest.
    compare(tmp_path / "numbers", [f"video_0{n}.webm" for n in range(4)], ids=list("0123"))
    # For networks that are imported, labels without a training split are enough.
    compare(tmp_path / "imports", MP4[:2], ids=IDS[:2], splits=["validation"] * 2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_few_that_do_not_fit_are_counted_with_examples(tmp_path, caplog):
    ids = [str(number) for number in range(40)]
    files = [f"{name}.mp4" for name in ids[2:]] + ["stray.mp4"]
    compare(tmp_path, files, ids=ids, splits=["train", "validation"] * 20)
    assert (
        f"2 of the 40 labelled ids have no file in {tmp_path} (such as '0', '1'), and 1 of its 39 files have no label "
        "(such as 'stray.mp4')"
    ) in caplog.text


def test_most_files_without_a_label_are_a_warning(tmp_path, caplog):
    compare(tmp_path, [f"{name}.mp4" for name in [*IDS, *"vwxyz"]])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "0 of the 4 labelled ids have no file in" in record.getMessage()
    assert "5 of its 9 files have no label (such as 'v.mp4', 'w.mp4', 'x.mp4')" in record.getMessage()


MP4 = [f"{name}.mp4" for name in IDS]
MISFITS = {
    "too high": ({"files": ["intro.mp4", *(f"clips/{name}" for name in MP4)]}, r"they are in .*/clips: set `data\.videos` to it"),
    "too low": ({"files": [*MP4, "preview/x.mp4"], "videos": "preview"}, r"they are in .*: set `data\.videos` to it"),
    "beside": ({"files": [*(f"videos/{n}" for n in MP4), "preview/x.mp4"], "videos": "preview"}, r"they are in .*/videos: set"),
    "one folder of several": (
        {"files": ["walk/clip_a.mp4", "run/clip_b.mp4", "walk/clip_c.mp4", "run/clip_d.mp4", "sit/x.mp4"], "videos": "sit"},
        r"they are in 2 folders, such as .*: link them into one folder, `mkdir .*/flat && find .*\*\.mp4",
    ),
    "frames in folders of classes": (
        {"files": ["walk/clip_a", "run/clip_b", "walk/clip_c", "run/clip_d"], "layout": "frames"},
        r"they are in 2 folders, such as .*: link them into one folder",
    ),
    "videos in folders of classes, as frames": (
        {"files": ["walk/clip_a.mp4", "run/clip_b.mp4", "walk/clip_c.mp4", "run/clip_d.mp4"], "layout": "frames"},
        r"as video files, they are in 2 folders, .*\*\.mp4.*, and set `data\.videos: flat`, and `data\.layout: videos`$",
    ),
    "a part as frames, all as videos": (
        {"files": [*(f"frames/{name}" for name in IDS[:1]), *(f"videos/{name}" for name in MP4)], "videos": "frames", "layout": "frames"},
        r"as video files, they are in .*/videos: set `data\.videos` to it, and `data\.layout: videos`$",
    ),
    "suffix": ({"files": [f"{name}_000001_000011.mp4" for name in IDS]}, r"in what the files have after the id \(id 'clip_.', file 'clip_._000001"),
    "prefix": ({"files": [f"v_{name}.mp4" for name in IDS]}, r"in what the files have before the id \(id 'clip_(.)', file 'v_clip_\1'"),
    "suffix of ids": ({"files": [f"{name}.mp4" for name in "abcd"], "ids": [f"{name}_000001_000011" for name in "abcd"]}, r"the ids have after the name"),
    "prefix of ids": ({"files": [f"{name}.mp4" for name in "abcd"]}, r"the ids have before the name"),
    "capitals": ({"files": [f"{name.title()}.mp4" for name in IDS]}, r"in capital letters .*\(id 'clip_(.)', file 'Clip_"),
    "accents": ({"files": [f"e\u0301{name}.mp4" for name in "abcd"], "ids": [f"\u00e9{name}" for name in "abcd"]}, r"encoding of accents"),
    "misread rows": ({"files": MP4, "ids": [f"{name} 121" for name in IDS]}, r"'clip_a 121'.* misread rows: compare"),
    "another data set": ({"files": ["x.mp4", "y.mp4"]}, r"labels of one data set and the videos of another"),
    "a part": ({"files": [*MP4[:1], *MP4[2:]]}, r"1 of the 4 .*'clip_b'\), .*a part of the videos: unpack all"),
    "no validation video": ({"files": MP4[:2], "max_excluded": 1.0}, r"all videos of validation are missing, and no others: unpack them$"),
    "no training video": (
        {"files": MP4[2:], "ids": [*IDS, "t1"], "splits": [*SPLITS, "test"]},
        r"all videos of train and test are missing, .*move the labels of train and test out of `data\.labels` if nothing is to be trained$",
    ),
    "no test video": (
        {"files": MP4, "ids": [*IDS, "t1", "t2"], "splits": [*SPLITS, "test", "test"]},
        r"all videos of test are missing, and no others: unpack them, or move the labels of test out of `data\.labels`$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_the_likeliest_reason_is_named(tmp_path, case):
    arguments, says = MISFITS[case]
    with pytest.raises(UserError, match=says) as caught:
        compare(tmp_path / "data", **arguments)
    assert "\n" not in str(caught.value)


def test_as_many_missing_as_allowed_are_no_error(tmp_path):
    compare(tmp_path, [*MP4[:1], *MP4[2:]], max_excluded=0.25)
