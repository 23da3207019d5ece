"""Label files as releases have them, and as people end up with them."""

import json
import logging

import pandas as pd
import pytest

from ffnrepro.data.labels import read_labels
from ffnrepro.errors import UserError

CLASSES = {
    "Moving part of something": "0",
    "Moving something up": "1",
    "Putting number of something onto something": "2",
    "Something falling like a feather or paper": "3",
    "Tipping something with something in it over, so something in it falls out": "4",
    "Putting something that can't roll onto a slanted surface, so it slides down": "5",
}
TRAIN = [
    ("62381", "Moving [something] up", 1),
    ("155358", "Putting [number of] [something] onto [something]", 2),
    ("142667", "[Something] falling like a feather or paper", 3),
    ("96982", "Moving [part] of [something]", 0),
    ("124271", "Tipping [something] with [something in it] over, so [something in it] falls out", 4),
    ("158315", "Putting [something that can't roll] onto a slanted surface, so it slides down", 5),
]
VALIDATION = [("61429", "Moving [something] up", 1), ("50265", "Moving [part] of [something]", 0)]
TEST = ["141814", "219274"]
ANSWERS = (
    "141814;Putting something that can't roll onto a slanted surface, so it slides down\n"
    "219274;Moving something up\n"
)


def rows(videos, **more):
    return [
        {
            "id": video,
            "label": 'a "soft" sponge, wet',
            "template": template,
            "placeholders": ["sponge"],
            **more,
        }
        for video, template, _ in videos
    ]


def write(folder, prefix="", **files):
    """Write the files of a release; a name may be replaced by other content, or left out with None."""
    contents = {
        "labels": CLASSES,
        "train": rows(TRAIN),
        "validation": rows(VALIDATION),
        "test": [{"id": video} for video in TEST],
        **files,
    }
    for name, content in contents.items():
        path = folder / f"{prefix}{name}.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(json.dumps(content))
    return folder


def check(table, test_classes):
    expected = [(video, "train", index) for video, _, index in TRAIN]
    expected += [(video, "validation", index) for video, _, index in VALIDATION]
    expected += [(video, "test", index) for video, index in zip(TEST, test_classes, strict=True)]
    found = [(row.id, row.split, None if pd.isna(row[3]) else row[3]) for row in table.itertuples()]
    assert found == expected
    assert list(table.columns) == ["id", "split", "class"]
    assert table["class"].dtype == "Int64"


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_both_namings(tmp_path, prefix):
    classes, table = read_labels(write(tmp_path, prefix))
    assert classes == list(CLASSES)
    check(table, [None, None])


def test_classes_stand_in_the_order_of_their_indices(tmp_path):
    write(tmp_path, labels=dict(reversed(CLASSES.items())))
    classes, table = read_labels(tmp_path)
    assert classes == list(CLASSES)
    check(table, [None, None])


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_answers_give_test_its_classes(tmp_path, prefix):
    write(tmp_path, prefix)
    (tmp_path / f"{prefix}test-answers.csv").write_text(ANSWERS)
    check(read_labels(tmp_path)[1], [5, 1])


def test_answers_alone_make_the_test_split(tmp_path):
    write(tmp_path, test=None)
    (tmp_path / "test-answers.csv").write_text(ANSWERS)
    check(read_labels(tmp_path)[1], [5, 1])


def test_test_is_optional(tmp_path):
    _, table = read_labels(write(tmp_path, test=None))
    assert set(table["split"]) == {"train", "validation"}


def test_what_a_mac_leaves_behind_is_ignored(tmp_path):
    write(tmp_path, "something-something-v2-")
    (tmp_path / "._something-something-v2-train.json").write_bytes(b"\0\5\26\7")
    check(read_labels(tmp_path)[1], [None, None])


@pytest.mark.parametrize(
    "files",
    [
        {"train": b"\xef\xbb\xbf" + json.dumps(rows(TRAIN), indent=1).replace("\n", "\r\n").encode()},
        {"train": [{**row, "id": int(row["id"])} for row in rows(TRAIN)]},
        {"labels": {name: int(index) for name, index in CLASSES.items()}},
        {"labels": {index: name for name, index in CLASSES.items()}},
        {"train": rows(TRAIN, something_new=[1, 2])},
    ],
    ids=["bom_crlf", "integer_ids", "integer_values", "index_to_name", "unknown_field"],
)
def test_variants_that_must_read(tmp_path, files):
    classes, table = read_labels(write(tmp_path, **files))
    assert classes == list(CLASSES)
    check(table, [None, None])


def test_the_same_row_twice_is_kept_once_and_told(tmp_path, caplog):
    write(tmp_path, train=[*rows(TRAIN), rows(TRAIN)[0]])
    with caplog.at_level(logging.WARNING):
        check(read_labels(tmp_path)[1], [None, None])
    (record,) = caplog.records
    assert "train.json, row 7 (id 62381)" in record.getMessage()


NO_TEMPLATE = [{"id": "62381", "label": "moving a red mug up"}]
WRONG = {
    "two classes": (
        {"train": [*rows(TRAIN), *rows([("62381", "Moving [part] of [something]", 0)])]},
        ["train.json, row 7", "62381", "Moving part of something", "Moving something up", "row 1", "remove"],
    ),
    "unknown template": (
        {"train": rows([("62381", "Juggling [something]", 0), *TRAIN[1:]])},
        ["train.json, row 1", "62381", "Juggling something", "labels.json", "one release"],
    ),
    "class missing": (
        {"labels": dict(list(CLASSES.items())[:5])},
        ["train.json, row 6", "158315", "slanted surface", "labels.json"],
    ),
    "no template": ({"train": NO_TEMPLATE}, ["train.json, row 1", "62381", "template", "https://"]),
    "truncated": (
        {"train": json.dumps(rows(TRAIN))[:300].encode()},
        ["train.json", "not complete JSON", "again"],
    ),
    "empty": ({"train": b""}, ["train.json", "is empty", "again"]),
    "empty list": ({"validation": []}, ["validation.json", "no rows", "again"]),
    "not a list": ({"train": {"62381": "Moving something up"}}, ["train.json", "not a list"]),
    "row without id": ({"train": [{"template": "Moving [something] up"}]}, ["train.json, row 1", '"id"']),
    "row is text": ({"train": ["62381"]}, ["train.json, row 1", '"id"']),
    "not text": ({"train": b"\xff\xfe\x00[]"}, ["train.json", "UTF-8"]),
    "same index twice": (
        {"labels": {**CLASSES, "Moving something up": "0"}},
        ["labels.json", "Moving part of something", "Moving something up", "index 0"],
    ),
    "index key twice": (
        {"labels": b'{"0": "Moving part of something", "0": "Moving something up"}'},
        ["labels.json", "Moving part of something", "Moving something up", "index 0"],
    ),
    "class twice": (
        {"labels": b'{"Moving something up": "0", "Moving something up": "1"}'},
        ["labels.json", "Moving something up", "two indices"],
    ),
    "gap": (
        {"labels": {**CLASSES, "Moving something up": "9"}},
        ["labels.json", "index 1", "Moving something up", "9"],
    ),
    "no index": (
        {"labels": {**CLASSES, "Moving something up": None}},
        ["labels.json", "Moving something up", "None"],
    ),
    "no classes": ({"labels": {}}, ["labels.json", "no classes"]),
    "labels a list": ({"labels": list(CLASSES)}, ["labels.json", "class"]),
    "overlap": (
        {"validation": rows([*VALIDATION, TRAIN[0]])},
        ["validation.json, row 3", "62381", "train.json, row 1", "remove"],
    ),
    "test overlaps": (
        {"test": [{"id": "61429"}]},
        ["test.json, row 1", "61429", "validation.json, row 1", "remove"],
    ),
    "no labels file": ({"labels": None}, ["labels.json", "missing", "data.labels", "https://"]),
    "no train file": ({"train": None}, ["train.json", "missing", "data.labels", "https://"]),
    "no validation file": ({"validation": None}, ["validation.json", "missing", "data.labels", "https://"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line_with_the_mend(tmp_path, case):
    files, words = WRONG[case]
    write(tmp_path, **files)
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("141814;Moving something up\n", ["test-answers.csv", "219274", "test.json"]),
        (ANSWERS + "5;Moving something up\n", ["test-answers.csv, row 3", "id 5", "test.json"]),
        (ANSWERS + "141814;Moving something up\n", ["test-answers.csv, row 3", "141814", "row 1"]),
        ("141814;Juggling\n219274;Moving something up\n", ["test-answers.csv, row 1", "141814", "Juggling"]),
        ("141814,Moving something up\n", ["test-answers.csv, row 1", "id;class"]),
    ],
)
def test_wrong_answers_are_named(tmp_path, answers, words):
    write(tmp_path)
    (tmp_path / "test-answers.csv").write_text(answers)
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path)
    assert [word for word in words if word not in str(caught.value)] == []


def test_two_releases_in_one_folder_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, "something-something-v2-")
    with pytest.raises(UserError, match="stands beside it"):
        read_labels(tmp_path)


def test_no_folder_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*data\.labels"):
        read_labels(tmp_path / "nowhere")
