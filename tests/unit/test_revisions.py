"""The output of each data stage for fixed input: if it changes, existing results must be made again."""

import hashlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ffnrepro.data import frame_cache, labels, manifest, video_index


def make_labels(folder, *_):
    """Read label files with placeholders, repeated rows and a test split without answers."""
    template = "Moving [something] {}"
    files = {
        "labels": {"Moving something up": "1", "Moving something down": "0"},
        "train": [{"id": id_, "template": template.format(way)} for id_, way in [("10", "up"), ("9", "down"), ("10", "up")]],
        "validation": [{"id": 3, "template": template.format("down")}],
        "test": [{"id": "7"}],
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    classes, table = labels.read_labels(folder)
    return [classes, rows_of(table)]


def make_index(folder, write_video, numbered_frames):
    """Index sound and broken videos and folders of frames."""
    for name, sizes in {"1": [(32, 24)] * 3, "2": [(32, 24), (24, 32)], "3": []}.items():
        (folder / name).mkdir()
        for number, size in enumerate(sizes):
            Image.new("RGB", size).save(folder / name / f"{number:05d}.jpg")
    (folder / "4.webm").touch()
    (folder / "5.webm").write_text("<html>")
    write_video(folder / "6.webm", numbered_frames(12))
    content = write_video(folder / "7.webm", numbered_frames(40)).read_bytes()
    (folder / "7.webm").write_bytes(content[: len(content) // 2])
    names = [*video_index.list_videos(folder, "frames"), *video_index.list_videos(folder, "videos")]
    index = video_index.index_videos(folder, names, entries=folder / "index/0-of-1.jsonl")
    shards = [video_index.shard_of([f"{n}.webm" for n in range(9)], shard, 3) for shard in range(3)]
    # The number of bytes depends on the encoders, the duration in the header on the muxer, and details on the decoders.
    index["detail"] = index["detail"].ne("")
    return [rows_of(index.drop(columns="bytes").round({"duration": 1})), shards]


def make_manifest(*_):
    """Join labels and index with missing, damaged, unlabelled and renamed files."""
    table = pd.DataFrame(
        [("10", "train", 1), ("9", "train", 0), ("2", "train", 0), ("8", "train", 0), ("3", "validation", 1), ("7", "test", None)],
        columns=["id", "split", "class"],
    ).astype({"class": "Int64"})  # fmt: skip
    index = pd.DataFrame(
        [("10", 48, ""), ("v_009", 30, ""), ("2", None, "does not decode"), ("3", 12, ""), ("7", 16, ""), ("stray", 4, "")],
        columns=["id", "frames", "reason"],
    ).astype({"frames": "Int64"})  # fmt: skip
    index["detail"] = index["reason"].str.removeprefix("does not ")
    index["path"] = index["id"] + ".webm"
    index["status"] = np.where(index["reason"] == "", "ok", "excluded")
    result = manifest.build_manifest(["down", "up"], table, index)
    return [result.digest, rows_of(result.excluded), result.summary]


def make_frame_cache(folder, write_video, numbered_frames):
    """Cache a video: the grey of each frame, quantisation and sampling of the JPEGs."""
    path = write_video(folder / "1.webm", numbered_frames(6, height=30, width=46))
    state = frame_cache._Video(path.name, 6, 0, 0)
    jpegs = frame_cache.encode_video(state, folder=folder, quality=90)
    pictures = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]
    videos = pd.DataFrame({"path": [path.name], "frames": [6]})
    file = folder / "0-of-1.arrow"
    record = frame_cache.write_shard(file, videos, folder=folder, quality=90, frames_of_all=6)
    return [
        {key: record[key] for key in ("videos", "frames", "paths")},
        [[picture.size, round((np.asarray(picture).mean() - 20) / 4), picture.layer] for picture in pictures],
        pictures[0].quantization,
    ]


def rows_of(table):
    rows = table.astype("object").itertuples(index=False)
    return [list(table.columns), *([None if pd.isna(value) else value for value in row] for row in rows)]


@pytest.mark.parametrize(
    ("stage", "make", "revision", "digest"),
    [
        (labels, make_labels, 2, "98ce82f72d9688f9"),
        (video_index, make_index, 2, "64ef8d324a311d99"),
        (manifest, make_manifest, 2, "357200c3db742700"),
        (frame_cache, make_frame_cache, 1, "a9b9068a3ef477d2"),
    ],
)
def test_another_output_needs_another_revision(
    stage, make, revision, digest, tmp_path, write_video, numbered_frames
):
    content = json.dumps(make(tmp_path, write_video, numbered_frames))
    found = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert (stage.REVISION, found) == (revision, digest), (
        f"{stage.__name__}: output changed: if that is meant, raise REVISION; output: {content}"
    )
