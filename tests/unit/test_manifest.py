"""The join of labels and index."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ffnrepro.data.manifest import build_manifest
from ffnrepro.errors import UserError

CLASSES = ["moving up", "moving down"]


def labels(rows):
    table = pd.DataFrame(rows, columns=["id", "split", "class"])
    return table.astype({"id": "str", "split": "str", "class": "Int64"})


def index(rows):
    """Rows of (path, frames, reason)."""
    table = pd.DataFrame(rows, columns=["path", "frames", "reason"])
    table["id"] = [path.rsplit(".", 1)[0] for path in table["path"]]
    table["status"] = ["excluded" if reason else "ok" for reason in table["reason"]]
    table["detail"] = ["at 0.58 s" if reason.startswith("truncated") else "" for reason in table["reason"]]
    return table.astype({"frames": "Int64"})


LABELS = labels(
    [
        ("10", "train", 1), ("9", "train", 0), ("2", "train", 0), ("100", "train", 1), ("7", "train", 1),
        ("20", "validation", 0), ("3", "validation", 1),
        ("5", "test", None), ("40", "test", None),
    ]
)  # fmt: skip
INDEX = index(
    [
        ("100.webm", 48, ""), ("9.webm", 30, ""), ("10.mp4", 48, ""), ("2.webm", None, "truncated"),
        ("20.webm", 12, ""), ("3.webm", None, "empty file"), ("40.webm", 16, ""), ("stray.webm", 4, ""),
        ("broken stray.webm", None, "empty file"),
    ]
)  # fmt: skip


def rows(table):
    return [
        tuple(None if pd.isna(value) else value for value in row) for row in table.itertuples(index=False)
    ]


def test_usable_and_excluded_videos():
    manifest = build_manifest(CLASSES, LABELS, INDEX)
    assert list(manifest.splits) == ["train", "validation", "test"]
    assert rows(manifest.splits["train"]) == [
        ("9", "9.webm", 30, 0), ("10", "10.mp4", 48, 1), ("100", "100.webm", 48, 1),
    ]  # fmt: skip
    assert rows(manifest.splits["validation"]) == [("20", "20.webm", 12, 0)]
    assert rows(manifest.splits["test"]) == [("40", "40.webm", 16, None)]
    assert list(manifest.excluded.columns) == ["id", "split", "path", "reason", "detail"]
    assert sorted(rows(manifest.excluded)) == [
        ("2", "train", "2.webm", "truncated", "at 0.58 s"),
        ("3", "validation", "3.webm", "empty file", ""),
        ("5", "test", "", "no video file", ""),
        ("7", "train", "", "no video file", ""),
        ("broken stray", "", "broken stray.webm", "no label", ""),
        ("stray", "", "stray.webm", "no label", ""),
    ]
    for table in manifest.splits.values():
        assert table.dtypes.astype(str).to_dict() == {
            "id": "str", "path": "str", "frames": "int64", "class": "Int64",
        }  # fmt: skip


def test_summary_counts_by_hand():
    summary = build_manifest(CLASSES, LABELS, INDEX).summary
    assert summary == {
        "labelled": {"train": 5, "validation": 2, "test": 2},
        "videos": {"train": 3, "validation": 1, "test": 1},
        "excluded": {
            "train": {"truncated": 1, "no video file": 1},
            "validation": {"empty file": 1},
            "test": {"no video file": 1},
            "no label": {"no label": 2},
        },
        "classes": {
            "moving up": {"train": 1, "validation": 1, "test": 0},
            "moving down": {"train": 2, "validation": 0, "test": 0},
        },
        "frames": {"train": {"30": 1, "48": 2}, "validation": {"12": 1}, "test": {"16": 1}},
        "warnings": ["all videos of the split validation have the class 'moving up'"],
    }
    labelled, videos, excluded = summary["labelled"], summary["videos"], summary["excluded"]
    for split in labelled:
        assert labelled[split] == videos[split] + sum(excluded[split].values())


def test_numbers_in_ids_sort_by_value():
    names = ["clip10", "clip2", "b", "clip2b", "2", "10", "010"]
    table = labels([(name, "train", 0) for name in names] + [("v", "validation", 0)])
    manifest = build_manifest(
        ["moving up"], table, index([(f"{name}.webm", 4, "") for name in [*names, "v"]])
    )
    assert manifest.splits["train"]["id"].tolist() == ["2", "010", "10", "b", "clip2", "clip2b", "clip10"]


def test_saved_files_hold_the_manifest(tmp_path):
    manifest = build_manifest(CLASSES, LABELS, INDEX)
    manifest.save(tmp_path / "manifest")
    folder = tmp_path / "manifest"
    assert {path.name for path in folder.iterdir()} == {
        "train.parquet", "validation.parquet", "test.parquet",
        "excluded.csv", "summary.json", "manifest.sha256",
    }  # fmt: skip
    for split, table in manifest.splits.items():
        pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{split}.parquet"), table)
    read = pd.read_csv(folder / "excluded.csv", dtype="str", keep_default_na=False)
    assert rows(read) == rows(manifest.excluded)
    assert json.loads((folder / "summary.json").read_text()) == manifest.summary
    assert (folder / "manifest.sha256").read_text() == manifest.digest + "\n"
    assert len(manifest.digest) == 64


def test_the_same_content_gives_the_same_files(tmp_path):
    shuffled = LABELS.sample(frac=1, random_state=1), INDEX.sample(frac=1, random_state=2)
    build_manifest(CLASSES, LABELS, INDEX).save(tmp_path / "a")
    build_manifest(CLASSES, *shuffled).save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_digest_follows_the_content():
    digest = build_manifest(CLASSES, LABELS, INDEX).digest
    other_class, other_length, other_path = LABELS.copy(), INDEX.copy(), INDEX.copy()
    other_class.loc[0, "class"] = 0
    other_length.loc[0, "frames"] = 47
    other_path.loc[0, "path"] = "100.mp4"
    changed = [
        build_manifest(CLASSES, other_class, INDEX),
        build_manifest(CLASSES, LABELS, other_length),
        build_manifest(CLASSES, LABELS, other_path),
        build_manifest(CLASSES, LABELS, INDEX.drop(index=0)),
        build_manifest(CLASSES[::-1], LABELS, INDEX),
    ]
    assert len({digest, *(manifest.digest for manifest in changed)}) == 6
    # A stray file changes the list of excluded videos, but no result.
    without_stray = build_manifest(CLASSES, LABELS, INDEX[INDEX["id"] != "stray"])
    assert without_stray.digest == digest
    assert len(without_stray.excluded) == 5


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    manifest = build_manifest(CLASSES, LABELS, INDEX)
    manifest.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_table, path, **_options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(OSError, match="disk full"):
        manifest.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_that_match_no_id_are_shown():
    strangers = index([("clip a.webm", 4, ""), ("clip b.webm", 4, ""), ("clip c.webm", 4, "")])
    with pytest.raises(UserError) as caught:
        build_manifest(CLASSES, LABELS, strangers)
    message = str(caught.value)
    for word in [
        "5 of the 5 labelled videos of train",
        "no video file: 5",
        "3 files",
        "data.videos",
        "'clip a.webm'",
        "'2'",
    ]:
        assert word in message
    assert "\n" not in message


def test_a_split_of_damaged_files_is_named():
    damaged = INDEX.copy()
    damaged.loc[damaged["path"] == "20.webm", ["status", "reason"]] = ["excluded", "does not decode"]
    with pytest.raises(
        UserError, match=r"2 labelled videos of validation.*does not decode: 1.*damaged.*again"
    ):
        build_manifest(CLASSES, LABELS, damaged)


def test_a_split_without_labels_is_named():
    with pytest.raises(UserError, match=r"0 labelled videos of validation.*data\.labels"):
        build_manifest(CLASSES, LABELS[LABELS["split"] != "validation"], INDEX)


def test_labels_without_a_training_split(caplog):
    manifest = build_manifest(CLASSES, LABELS[LABELS["split"] != "train"], INDEX, max_excluded=0.5)
    assert [len(table) for table in manifest.splits.values()] == [0, 1, 1]
    assert "no training video" not in caplog.text


def test_two_files_of_one_id():
    both = index([*zip(INDEX["path"], INDEX["frames"], INDEX["reason"], strict=True), ("9.mp4", 30, "")])
    with pytest.raises(UserError, match=r"9\.mp4 and 9\.webm.*id 9"):
        build_manifest(CLASSES, LABELS, both)
    both.loc[both["path"] == "9.mp4", ["status", "reason"]] = ["excluded", "empty file"]
    manifest = build_manifest(CLASSES, LABELS, both)
    assert manifest.digest == build_manifest(CLASSES, LABELS, INDEX).digest
    assert ("9", "", "9.mp4", "several files of its id", "empty file") in rows(manifest.excluded)


def test_two_files_without_a_label_may_have_one_id():
    files = index([*zip(INDEX["path"], INDEX["frames"], INDEX["reason"], strict=True), ("stray.mp4", 30, "")])
    excluded = build_manifest(CLASSES, LABELS, files).excluded
    assert sorted(excluded.loc[excluded["id"] == "stray", "path"]) == ["stray.mp4", "stray.webm"]


def test_data_from_which_little_can_be_learnt_is_warned_about(caplog):
    strangers = [(f"{letter}.webm", 4, "") for letter in "rstuvwxyz"]
    files = index([*zip(INDEX["path"], INDEX["frames"], INDEX["reason"], strict=True), *strangers])
    manifest = build_manifest([*CLASSES, "juggling"], LABELS, files)
    assert manifest.summary["warnings"] == [
        "all videos of the split validation have the class 'moving up'",
        "no training video for 1 of 3 classes, such as 'juggling'",
        "11 of the 18 files have no label, such as 'r.webm', 's.webm', 'stray.webm'",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"manifest: {warning}" for warning in manifest.summary["warnings"]
    ]
    table, files = many("truncated", strangers=50)
    assert build_manifest(CLASSES, table, files).summary["warnings"] == []


def test_a_file_belongs_to_the_id_of_its_name_or_else_of_its_number(caplog):
    caplog.set_level("INFO")
    table = labels(
        [(name, "train", 0) for name in ["12", "0013", "14", "15", "16", "clip7"]] + [("17", "validation", 1)]
    )
    files = [
        "video_00012.webm",
        "13.webm",
        "014.webm",
        "14.webm",
        "v15.webm",
        "w_015.webm",
        "x.webm",
        "a2b017.webm",
    ]
    manifest = build_manifest(CLASSES, table, index([(name, 4, "") for name in [*files, "_7.webm"]]))
    assert manifest.splits["train"].set_index("id")["path"].to_dict() == {
        "12": "video_00012.webm", "0013": "13.webm", "14": "14.webm",
    }  # fmt: skip
    assert manifest.splits["validation"]["path"].tolist() == ["a2b017.webm"]
    assert sorted(rows(manifest.excluded[manifest.excluded["split"] == "train"])) == [
        ("15", "train", "", "several files of its id", "v15.webm, w_015.webm"),
        ("16", "train", "", "no video file", ""),
        ("clip7", "train", "", "no video file", ""),
    ]
    unlabelled = manifest.excluded.loc[manifest.excluded["reason"] == "no label", "path"]
    assert sorted(unlabelled) == ["_7.webm", "x.webm"]
    several = manifest.excluded[(manifest.excluded["reason"] == "several files of its id")]
    assert several.set_index("path")["detail"].to_dict() == {
        "": "v15.webm, w_015.webm", "014.webm": "of the id 14", "v15.webm": "of the id 15", "w_015.webm": "of the id 15",
    }  # fmt: skip
    assert "3 files belong to the id of the same number, such as video_00012 to 12" in caplog.text


def many(reason, count=30, strangers=0):
    """A hundred labelled videos, `count` of them not usable, and files without a label."""
    table = labels([(str(n), "train" if n < 80 else "validation", n % 2) for n in range(100)])
    kept = [(f"{n}.webm", 4, reason if n < count else "") for n in range(100)]
    if reason == "no video file":
        kept = kept[count:]
    return table, index([*kept, *((f"stray{chr(97 + n)}.webm", 4, "") for n in range(strangers))])


@pytest.mark.parametrize(
    ("reason", "strangers", "fix"),
    [
        ("no video file", 0, r"such as '0'\).*`data\.videos`.*names.*unzipped"),
        (
            "no video file",
            25,
            r"such as '0'; 'straya\.webm' has no label\).*names.*unzipped",
        ),
        (
            "truncated or damaged",
            0,
            r"such as '0\.webm', at 0\.58 s\): these files are incomplete or damaged: copy, download",
        ),
        ("frames missing", 0, r"`data\.layout: frames`, each folder in `data\.videos` must hold all frames"),
        ("no video stream", 0, r"such as '0\.webm'\): `ffnrepro inspect FILE` shows"),
        ("a web page, not a video", 0, r"some downloads failed"),
        ("decoder did not finish", 0, r"check the disk"),
    ],
)
def test_too_many_excluded_stop_with_the_likely_fix(reason, strangers, fix):
    table, files = many(reason, strangers=strangers)
    with pytest.raises(UserError, match=fix) as caught:
        build_manifest(CLASSES, table, files, max_excluded=0.29)
    message = str(caught.value)
    assert "30 of the 100 labelled videos" in message
    assert f"`data.max_excluded` is 0.29 ({reason}: 30;" in message
    assert "\n" not in message
    manifest = build_manifest(CLASSES, table, files, max_excluded=0.3)
    assert len(manifest.excluded) == 30 + strangers


def test_files_without_a_label_are_not_counted_as_excluded():
    table, files = many("truncated or damaged", count=0, strangers=26)
    assert len(build_manifest(CLASSES, table, files, max_excluded=0.0).excluded) == 26


def run_script(name, folder, **options):
    script = Path(__file__).parents[2] / "workflow" / "scripts" / f"{name}.py"
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    return subprocess.run(
        [sys.executable, script, *words], cwd=folder, stderr=subprocess.PIPE, text=True, check=False
    )


def test_class_names_that_look_like_nothing_or_like_numbers(tmp_path):
    names = ["007", "NA", "None", "null"]
    rows = [
        f"{number}{split}.webm,{name},{split}\n"
        for split in ("train", "val")
        for number, name in enumerate(names)
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.csv").write_text("path,label,split\n" + "".join(rows))
    index([(row.partition(",")[0], 4, "") for row in rows]).to_parquet(tmp_path / "index.parquet")
    tables = {"classes": "classes.csv", "table": "table.parquet"}
    run_script("parse_labels", tmp_path, labels="labels", dataset="mine", **tables)
    files = {**tables, "index": "index.parquet", "output": "manifest", "log": "log"}
    assert run_script("build_manifest", tmp_path, **files, max_excluded="0").returncode == 0
    summary = json.loads((tmp_path / "manifest" / "summary.json").read_text())
    assert summary["classes"] == {name: {"train": 1, "validation": 1, "test": 0} for name in names}


def test_excluded_videos_are_listed_beside_the_log_when_there_are_too_many(tmp_path):
    table, files = many("truncated or damaged")
    table.to_parquet(tmp_path / "table.parquet")
    files.to_parquet(tmp_path / "index.parquet")
    (tmp_path / "classes.csv").write_text("index,class\n0,moving up\n1,moving down\n")
    result = run_script(
        "build_manifest", tmp_path, classes="classes.csv", table="table.parquet", index="index.parquet",
        output="manifest", max_excluded="0.29", log="logs/build_manifest.log",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "all are listed in logs/excluded.csv" in result.stderr
    listed = pd.read_csv(tmp_path / "logs" / "excluded.csv", dtype="str")
    assert listed["path"].tolist() == [f"{number}.webm" for number in range(30)]
