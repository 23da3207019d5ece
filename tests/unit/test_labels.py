"""Label files as releases have them, and as people end up with them."""

import json
import logging

import pandas as pd
import pytest

from ffnrepro.data import labels
from ffnrepro.data.labels import check_counts, class_warnings, label_digests, read_labels
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
def test_both_prefixes_of_file_names(tmp_path, prefix):
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


def test_hidden_files_of_a_mac_are_ignored(tmp_path):
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
        {"labels": list(CLASSES)},
        {"labels": {f'"{name}"': int(index) for name, index in CLASSES.items()}},
        {"train": "\n".join(map(json.dumps, rows(TRAIN))).encode()},
        {"train": rows(TRAIN, something_new=[1, 2])},
        {"train": [{**row, "id": f" {row['id']}.webm "} for row in rows(TRAIN)]},
    ],
    ids=[
        "bom_crlf",
        "integer_ids",
        "integer_values",
        "index_to_name",
        "list_of_names",
        "names_in_quotes",
        "json_lines",
        "unknown_field",
        "file_names",
    ],
)
def test_variants_that_must_be_readable(tmp_path, files):
    classes, table = read_labels(write(tmp_path, **files))
    assert classes == list(CLASSES)
    check(table, [None, None])


def test_a_repeated_row_is_kept_once_and_reported(tmp_path, caplog):
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
    "no template": (
        {"train": NO_TEMPLATE},
        ["train.json, row 1", "62381", "no class", "template", "validation.json", "one release"],
    ),
    "truncated": (
        {"train": json.dumps(rows(TRAIN))[:300].encode()},
        ["train.json", "not complete JSON", "again"],
    ),
    "empty": ({"train": b""}, ["train.json", "is empty"]),
    "empty list": ({"validation": []}, ["validation.json", "no rows"]),
    "neither rows nor classes": (
        {"train": {"version": "1.3", "database": {"62381": {}}}},
        ["train.json", "'version', 'database'", '{"id": "12", "label": "walk"}'],
    ),
    "a number": ({"train": b"62381"}, ["train.json", "62381", '{"id": "12", "label": "walk"}']),
    "row without id": ({"train": [{"template": "Moving [something] up"}]}, ["train.json, row 1", "no id"]),
    "row is text": ({"train": ["62381"]}, ["train.json", "none of its keys id holds the class", "label"]),
    "not text": ({"train": b"\xff\xfe\x00[]"}, ["train.json", "save it as UTF-8"]),
    "same index twice": (
        {"labels": {**CLASSES, "Moving something up": "0"}},
        ["labels.json", "Moving part of something", "index '0'", "each once"],
    ),
    "index key twice": (
        {"labels": b'{"0": "Moving part of something", "0": "Moving something up"}'},
        ["labels.json", "Moving part of something", "index '0'", "each once"],
    ),
    "class twice": (
        {"labels": b'{"Moving something up": "0", "Moving something up": "1"}'},
        ["labels.json", "Moving something up", "2 times"],
    ),
    "gap": (
        {"labels": {**CLASSES, "Moving something up": "9"}},
        ["labels.json", "Moving something up", "index '9'", "0 to 5"],
    ),
    "no index": (
        {"labels": {**CLASSES, "Moving something up": None}},
        ["labels.json", "Moving something up", "None"],
    ),
    "no classes": ({"labels": {}}, ["labels.json", "no classes"]),
    "overlap": (
        {"validation": rows([*VALIDATION, TRAIN[0]])},
        ["validation.json, row 3", "62381", "row 1 of train.json", "remove"],
    ),
    "test overlaps": (
        {"test": [{"id": "61429"}]},
        ["test.json, row 1", "61429", "row 1 of validation.json", "remove"],
    ),
    "no labels file": ({"labels": None}, ["labels.json", "missing", "data.labels", "https://"]),
    "no train file": ({"train": None}, ["train.json", "missing", "data.labels", "https://"]),
    "no validation file": ({"validation": None}, ["validation.json", "missing", "data.labels", "https://"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line_with_the_fix(tmp_path, case):
    files, words = WRONG[case]
    write(tmp_path, **files)
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_nothing_is_trained_so_there_need_be_no_training_split(tmp_path, monkeypatch):
    names, table = read_labels(write(tmp_path, train=None), trained=False)
    counts = {"classes": len(names), "train": 9, "validation": len(VALIDATION), "test": len(TEST)}
    monkeypatch.setitem(labels._OFFICIAL_COUNTS, "d", counts)
    check_counts(names, table, dataset="d", partial=False, trained=False)
    for dataset in ("d", "other"):
        with pytest.raises(UserError, match="have no rows of the split train"):
            check_counts(names, table, dataset=dataset, partial=False)
    names, table = read_labels(write(tmp_path), trained=False)
    with pytest.raises(UserError, match="6 train instead of 9"):
        check_counts(names, table, dataset="d", partial=False, trained=False)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("141814;Moving something up\n", ["test-answers.csv", "219274", "test.json"]),
        (ANSWERS + "5;Moving something up\n", ["test-answers.csv", "id 5", "test.json"]),
        (ANSWERS + "141814;Moving something up\n", ["test-answers.csv, row 3", "141814", "row 1"]),
        ("141814;Juggling\n219274;Moving something up\n", ["test-answers.csv, row 1", "141814", "Juggling"]),
        ("141814;\n219274;Moving something up\n", ["test-answers.csv, row 1", "id;class"]),
    ],
)
def test_wrong_answers_are_named(tmp_path, answers, words):
    write(tmp_path)
    (tmp_path / "test-answers.csv").write_text(answers)
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path)
    assert [word for word in words if word not in str(caught.value)] == []


def test_other_files_are_ignored(tmp_path):
    write(tmp_path)
    (tmp_path / "recipe.json").write_text('{"made_by": "us", "seed": 0}')
    (tmp_path / "README.txt").write_text("The labels\n\nof a release\nThe labels\n")
    (tmp_path / "how to cite.txt").write_text("Please cite\nus\n")
    check(read_labels(tmp_path)[1], [None, None])


def test_lists_of_frames_beside_the_official_files_are_ignored(tmp_path, caplog):
    """SlowFast brings them."""
    write(tmp_path, "something-something-v2-")
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text(
            'original_vido_id video_id frame_id path labels\n11 0 0 11/11_000001.jpg ""\n'
        )
    check(read_labels(tmp_path)[1], [None, None])
    for name in ("train.csv", "val.csv"):
        assert f"{name}: ignored, because it lists frames" in caplog.text


def test_two_releases_in_one_folder_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, "something-something-v2-")
    with pytest.raises(UserError, match="in the same folder"):
        read_labels(tmp_path)


def test_a_missing_folder_is_named_with_its_key(tmp_path):
    assert label_digests(tmp_path / "nowhere") == {}
    with pytest.raises(UserError, match=r"nowhere.*data\.labels"):
        read_labels(tmp_path / "nowhere")


def test_label_files_in_a_folder_inside_are_named(tmp_path):
    (tmp_path / "labels").mkdir()
    put(tmp_path / "labels", **TSM)
    with pytest.raises(UserError, match=r"its folder labels does: set `data\.labels` to .*/labels$"):
        read_labels(tmp_path)


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*data\.labels"):
        read_labels(tmp_path)


# Other formats, with the same videos and classes.

NAMES = list(CLASSES)
V1 = {
    "labels.csv": "\n".join(NAMES) + "\n",
    "train.csv": "".join(f"{video};{NAMES[index]}\n" for video, _, index in TRAIN),
    "validation.csv": "".join(f"{video};{NAMES[index]}\n" for video, _, index in VALIDATION),
    "test.csv": "".join(f"{video}\n" for video in TEST),
}
REVERSED = NAMES[::-1]
TSM = {
    "category.txt": "\n".join(REVERSED),
    "train_videofolder.txt": "".join(f"{v} {80 + i} {5 - i}\n" for v, _, i in TRAIN),
    "val_videofolder.txt": "".join(f"some folder/{v} 105 {5 - i}\n" for v, _, i in VALIDATION),
}
VIDEO_LIST = {
    "train_list.txt": "".join(f"{video}.webm {index}\n" for video, _, index in TRAIN),
    "val_list.txt": "".join(f"clips/{video}.webm {index}\n" for video, _, index in VALIDATION),
}
KINETICS = (
    "label,youtube_id,time_start,time_end,split\n"
    '"tying knot, bow",aB61429_-x,0,10,train\n'
    "riding mule,-Qz;9,3,13,train\n"
    '"riding mule",_k.2,1203,1213,val\n'
    ",__test,7,17,test\n"
)
OWN = (
    "path,label,split\n"
    "clips/one.mp4,wave,train\n"
    'clips/two v1.2.webm,"jump, high",train\n'
    "clips/three.avi,wave,val\n"
    "four,,test\n"
)


def put(folder, **files):
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def found_rows(table):
    return [(row.id, row.split, None if pd.isna(row[3]) else row[3]) for row in table.itertuples()]


TRAINED = [(video, "train", index) for video, _, index in TRAIN]
VALIDATED = [(video, "validation", index) for video, _, index in VALIDATION]


@pytest.mark.parametrize("prefix", ["", "something-something-v1-"])
def test_something_something_v1(tmp_path, prefix):
    put(tmp_path, **{f"{prefix}{name}": text for name, text in V1.items()})
    classes, table = read_labels(tmp_path)
    assert classes == NAMES
    check(table, [None, None])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_header_quotes_and_line_ends_of_windows(tmp_path, delimiter):
    quoted = "".join(f'{v}{delimiter}"{NAMES[i]}"\r\n' for v, _, i in TRAIN)
    put(tmp_path, **V1)
    (tmp_path / "train.csv").write_bytes(f"\ufeffid{delimiter}label\r\n{quoted}\r\n".encode())
    classes, table = read_labels(tmp_path)
    assert classes == NAMES
    check(table, [None, None])


def test_tsm_lists_have_the_order_of_their_own_file_and_no_frame_counts(tmp_path):
    classes, table = read_labels(put(tmp_path, **TSM))
    assert classes == REVERSED
    assert found_rows(table) == [(v, split, 5 - i) for v, split, i in TRAINED + VALIDATED]
    assert list(table.columns) == ["id", "split", "class"]


def test_a_name_that_says_labels_and_a_split_may_be_of_videos(tmp_path):
    names = {"train": "train_labels.csv", "validation": "val_labels.csv"}
    put(tmp_path, **{"category.txt": V1["labels.csv"]}, **{names[key]: V1[f"{key}.csv"] for key in names})
    assert found_rows(read_labels(tmp_path)[1]) == TRAINED + VALIDATED
    # Of few videos, which are numbered as classes are.
    put(tmp_path, **{names["train"]: "0;Moving something up\n1;Moving something up\n"})
    assert found_rows(read_labels(tmp_path)[1])[:2] == [("0", "train", 1), ("1", "train", 1)]
    for name in names.values():
        (tmp_path / name).unlink()
    put(tmp_path, **{"train_labels.txt": "0 48 5\n1 50 3\n", "val_labels.txt": "2 48 0\n"})
    assert [row[2] for row in found_rows(read_labels(tmp_path)[1])] == [5, 3, 0]


@pytest.mark.parametrize("test", ["141814 49 0\n219274 80 0\n", "141814\n219274\n", "id\n141814\n219274\n"])
def test_a_test_list_without_labels_has_no_classes(tmp_path, test):
    _, table = read_labels(put(tmp_path, **TSM, **{"test_videofolder.txt": test}))
    assert table[table["split"] == "test"]["class"].isna().tolist() == [True, True]


def test_a_test_list_with_labels_keeps_them(tmp_path):
    _, table = read_labels(put(tmp_path, **TSM, **{"test_videofolder.txt": "141814 49 0\n219274 80 2\n"}))
    assert table[table["split"] == "test"]["class"].tolist() == [0, 2]


def test_lists_without_class_names_call_them_by_number(tmp_path):
    classes, table = read_labels(put(tmp_path, **VIDEO_LIST))
    assert classes == ["0", "1", "2", "3", "4", "5"]
    assert found_rows(table) == TRAINED + VALIDATED


def test_lists_may_have_commas(tmp_path):
    files = {name: text.replace(" 8", ", 8").replace(" 105 ", ",105, ") for name, text in TSM.items()}
    assert ", 80 5\n" in files["train_videofolder.txt"]
    assert found_rows(read_labels(put(tmp_path, **files))[1]) == [
        (v, s, 5 - i) for v, s, i in TRAINED + VALIDATED
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("category.txt", "\n".join(NAMES)),
        ("labels.json", json.dumps(CLASSES)),
        ("classes.csv", "index,class\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(NAMES))),
        ("names.txt", "".join(f"{i} {name}\n" for i, name in reversed(list(enumerate(NAMES))))),
        ("category.txt", "category\r\n" + "\r\n".join(NAMES)),
        ("train_classes.txt", "\n".join(NAMES)),
        ("validation_categories.csv", "".join(f"{i};{name}\n" for i, name in enumerate(NAMES))),
        ("something-train-labels.json", json.dumps(CLASSES)),
    ],
)
def test_lists_take_class_names_in_any_form(tmp_path, name, text):
    classes, table = read_labels(put(tmp_path, **VIDEO_LIST, **{name: text}))
    assert classes == NAMES
    assert found_rows(table) == TRAINED + VALIDATED


@pytest.mark.parametrize(
    ("train", "names"),
    [
        ("1;turn, y\n2;walk\n", ["turn, y", "walk"]),
        ("1,y\n2,n\n", ["n", "y"]),
        ("1;action\n2;name\n", ["action", "name"]),
        ("1\tname\n2\taction\n", ["action", "name"]),
    ],
)
def test_a_class_may_be_called_as_a_column_is(tmp_path, train, names):
    put(tmp_path, **{"classes.txt": "\n".join(names), "train.csv": train, "val.csv": "3;0\n4;1\n"})
    classes, table = read_labels(tmp_path)
    assert classes == names
    assert [row[0] for row in found_rows(table)] == ["1", "2", "3", "4"]


def test_a_few_videos_of_many_classes(tmp_path):
    """Such as the first rows of Kinetics."""
    rows = [f"{number}.mp4,class {number % 120:03d},train\n" for number in range(150)]
    put(tmp_path, **{"mine.csv": "path,label,split\n" + "".join(rows) + "v.mp4,class 007,val\n"})
    classes, table = read_labels(tmp_path)
    assert len(classes) == 120
    assert table["class"].iloc[-1] == 7


def test_kinetics_ids_are_the_names_of_its_files(tmp_path):
    classes, table = read_labels(put(tmp_path, **{"kinetics.csv": KINETICS}))
    assert classes == ["riding mule", "tying knot, bow"]
    assert found_rows(table) == [
        ("aB61429_-x_000000_000010", "train", 1),
        ("-Qz;9_000003_000013", "train", 0),
        ("_k.2_001203_001213", "validation", 0),
        ("__test_000007_000017", "test", None),
    ]


def test_kinetics_with_one_file_per_split(tmp_path):
    header, *lines = KINETICS.splitlines(keepends=True)
    files = {"train": lines[:2], "validate": lines[2:3], "test": lines[3:]}
    whole = read_labels(put(tmp_path, **{"all.csv": KINETICS}))
    (tmp_path / "all.csv").unlink()
    parts = read_labels(
        put(tmp_path, **{f"{name}.csv": header + "".join(rows) for name, rows in files.items()})
    )
    assert parts[0] == whole[0]
    pd.testing.assert_frame_equal(parts[1], whole[1])


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv"])
def test_a_table_of_your_own(tmp_path, name):
    text = OWN if name.endswith("csv") else OWN.replace('"jump, high"', "jump; high").replace(",", "\t")
    text = text.replace("jump; high", "jump, high")
    classes, table = read_labels(put(tmp_path, **{name: text}))
    assert classes == ["jump, high", "wave"]
    assert found_rows(table) == [
        ("one", "train", 1),
        ("two v1.2", "train", 0),
        ("three", "validation", 1),
        ("four", "test", None),
    ]


def test_a_table_of_ones_own_with_numbers_or_a_list(tmp_path):
    rows = "path,label,split\n" + "".join(f"{i}.mp4,{i},train\n" for i in (10, 9, 2)) + "v.mp4,2,val\n"
    classes, table = read_labels(put(tmp_path, **{"mine.csv": rows}))
    assert classes == [str(i) for i in range(11)]
    assert table["class"].tolist() == [10, 9, 2, 2]
    put(
        tmp_path,
        **{"mine.csv": OWN, "labels.txt": "wave\nfall\njump, high\n", "how to cite.txt": "Please cite us."},
    )
    classes, table = read_labels(tmp_path)
    assert classes == ["wave", "fall", "jump, high"]
    assert table["class"].tolist()[:3] == [0, 2, 0]


TWO = [("a", "train", "walk"), ("b", "train", "run"), ("c", "validation", "run"), ("d", "validation", "walk")]


def table_of(header, row, splits=("train", "val")):
    """A table for each split: `row` formats a row of id, split and class."""
    parts = {"train": TWO[:2], "val": TWO[2:]}
    return {
        f"{split}.csv": "\n".join([*header, *(row.format(id=i, label=label, n=int(label == "walk")) for i, _, label in parts[split])])
        for split in splits
    }  # fmt: skip


READABLE = {
    "video_path": table_of(["video_path,label"], "/data/{id}.mp4,{label}"),
    "filename and target": table_of(["filename,target"], "{id}.avi,{label}"),
    "file name and class name": table_of(["File Name;Class Name"], "{id}.avi;{label}"),
    "name and category": table_of(["name\tcategory"], "{id}\t{label}"),
    "row number, path, label, label_id": table_of([",id,clip_path,label,label_id"], "7,0,/train/{id}.avi,{label},{n}"),
    "Jester": table_of(["video_id,label,frames,label_id,shape"], '{id},{label},37,{n},"(176, 100)"'),
    "spaces": table_of(["path label"], "{id}.mp4 {label}"),
    "youtube id": table_of(["youtube_id,action"], "{id},{label}"),
    "subset": {"all.csv": "video,class,subset\n" + "".join(f"{i}.mp4,{label},{split}\n" for i, split, label in TWO)},
    "class first": table_of([], "{label},x/{id}.mp4") | {"classes.txt": "run\nwalk\n"},
    "class name after a space": table_of([], "x/{id}.mp4 {label}") | {"classes.txt": "run\nwalk\n"},
    "numbers after semicolons": table_of([], "x/{id};48;{n}") | {"classes.txt": "0 run\n1 walk\n"},
    "numbers after commas": table_of([], "x/{id}, 48, {n}") | {"classes.txt": "run,0\nwalk,1\n"},
    "3.0 is 3": table_of(["path,label"], "{id},{n}.0") | {"classes.txt": "label_id,label\n0,run\n1,walk\n"},
    "classes from 1": {"classInd.txt": "1 run\n2 walk\n", "train.txt": "a.avi 2\nb.avi 1\n", "val.txt": "c.avi 1\nd.avi 2\n"},
    "folders of classes": table_of([], "{label}/{id}.avi") | {"classes.txt": "run\nwalk\n"},
    "UCF101": {
        "classInd.txt": "1 run\n2 walk\n",
        "trainlist01.txt": "walk/a.avi 2\nrun/b.avi 1\n",
        "testlist01.txt": "run/c.avi\nwalk/d.avi\n",
        "trainlist02.txt": "walk/c.avi 2\nrun/d.avi 1\n",
        "testlist02.txt": "run/a.avi\nwalk/b.avi\n",
    },
    "HMDB51": {
        "run_test_split1.txt": "b.avi 1 \nc.avi 2 \nunused.avi 0 \n",
        "walk_test_split1.txt": "a.avi 1 \nd.avi 2 \n",
        "walk_test_split2.txt": "a.avi 2 \nd.avi 1 \n",
    },
    "Diving48": {
        "Diving48_vocab.json": '[["run"], ["walk"]]',
        "Diving48_V2_train.json": '[{"vid_name": "a", "label": 1, "start_frame": 0}, {"vid_name": "b", "label": 0}]',
        "Diving48_V2_test.json": '[{"vid_name": "c", "label": 0, "end_frame": 9}, {"vid_name": "d", "label": 1}]',
    },
    "JSON of splits": {
        "all.json": json.dumps({
            "train": [{"video": "a.mp4", "label": "walk"}, {"video": "b.mp4", "label": "run"}],
            "val": [{"video": "c.mp4", "label": "run"}, {"video": "d.mp4", "label": "walk"}],
        }),
    },
    "JSON of ids": {"train_labels.json": '{"a.mp4": "walk", "b.mp4": "run"}', "val.json": '{"c.mp4": "run", "d": "walk"}'},
    "JSON of ids and numbers": {"train_labels.json": '{"a": 1, "b": 0, "e": 1}', "val.json": '{"c": 0, "d": 1}', "classes.txt": "run\nwalk\n"},
    "frames, too": table_of(["id,label"], "{id},{label}") | {"frames_train.csv": "original_vido_id video_id frame_id path labels\na 0 0 a/a_1.jpg \"\"\n"},
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
def test_formats_that_people_bring(tmp_path, case):
    classes, table = read_labels(put(tmp_path, **READABLE[case]))
    assert classes == ["run", "walk"]
    found = [(row.id, row.split, classes[row[3]]) for row in table.itertuples() if row.id != "e"]
    assert sorted(found) == TWO


def test_kinetics_as_json_has_the_ids_of_its_csv(tmp_path):
    def entry(label, start, subset):
        return {
            "annotations": {"label": label, "segment": [start, start + 10.0]},
            "subset": subset,
            "url": "https",
        }

    put(
        tmp_path,
        **{
            "train.json": json.dumps({"aB-_": entry("walk", 0.0, "train"), "cD": entry("run", 3.0, "train")}),
            "validate.json": json.dumps({"eF": entry("run", 1203.0, "validate")}),
        },
    )
    classes, table = read_labels(tmp_path)
    assert classes == ["run", "walk"]
    assert found_rows(table) == [
        ("aB-__000000_000010", "train", 1), ("cD_000003_000013", "train", 0), ("eF_001203_001213", "validation", 0),
    ]  # fmt: skip


def test_what_a_reader_decides_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    read_labels(put(tmp_path, **READABLE["HMDB51"], **{"recipe.json": '{"made_by": "us", "seed": 0}'}))
    for words in (
        "only split 1 is read, not 2",
        "1 videos are in no split",
        "no validation split: the 2 test videos are the validation split",
        "recipe.json: ignored, an object with the keys 'made_by', 'seed'",
    ):
        assert words in caplog.text


def test_warnings_of_splits_and_classes():
    def rows(*videos):
        return pd.DataFrame(videos, columns=["split", "class"]).astype({"class": "Int64"})

    both = [("train", 0), ("train", 1)]
    assert class_warnings(["a", "b"], rows(*both, ("validation", 0), ("validation", 1), ("test", None))) == []
    assert class_warnings(["a", "b", "c"], rows(*both, ("validation", 1), ("validation", 1))) == [
        "all videos of the split validation have the class 'b'",
        "no training video for 1 of 3 classes, such as 'c'",
    ]
    # For networks that are imported, labels without a training split are enough.
    assert class_warnings(["a", "b", "c"], rows(("validation", 0), ("validation", 1))) == []


WRONG_TEXT = {
    "class not in the list": (
        V1 | {"train.csv": V1["train.csv"] + "7;Juggling\n"},
        ["train.csv, row 7", "id 7", "Juggling", "labels.csv", "one release"],
    ),
    "row without a class": (
        V1 | {"train.csv": V1["train.csv"] + "3452\n"},
        ["train.csv, row 7", "'3452'", "id;class", "fix"],
    ),
    "no class names": (
        V1 | {"labels.csv": None},
        ["no names of the classes", "train.csv: 6 train rows", "a name on each line", "path,label"],
    ),
    "no training file": (
        V1 | {"train.csv": None},
        ["no rows of the split train", "labels.csv: 6 classes, such as 'Moving part", "config/README.md"],
    ),
    "ids alone for training": (
        V1 | {"train.csv": "62381\n155358\n"},
        ["train.csv, row 1", "62381", "no class"],
    ),
    "class listed twice": (
        V1 | {"labels.csv": V1["labels.csv"] + NAMES[1]},
        ["labels.csv", NAMES[1], "2 times"],
    ),
    "no split in the name": (
        {"labels.csv": V1["labels.csv"], "videos.csv": V1["train.csv"]},
        ["videos.csv", "split", "name"],
    ),
    "two splits in the name": (
        {"labels.csv": V1["labels.csv"], "train_and_validation.csv": V1["train.csv"]},
        ["train_and_validation.csv", "split", "name"],
    ),
    "unquoted comma": (
        V1 | {"train.csv": "id,label\n1,Moving something up\n2,Tipping it over, so it falls\n"},
        ["train.csv, row 3", "3 values for the 2 columns", "quote"],
    ),
    "list with a bad row": (
        TSM | {"train_videofolder.txt": TSM["train_videofolder.txt"] + "3452 115 one\n"},
        ["train_videofolder.txt, row 7", "3452 115 one", "folder frames class", "fix"],
    ),
    "list without a split": (
        TSM | {"folders.txt": TSM["train_videofolder.txt"]},
        ["folders.txt", "split", "name"],
    ),
    "number out of the list": (
        TSM | {"val_videofolder.txt": "61429 105 6\n"},
        ["val_videofolder.txt, row 1", "61429", "6", "category.txt", "0 to 5"],
    ),
    "number far out": (
        VIDEO_LIST | {"val_list.txt": "1.webm 20001203\n"},
        ["20001203", "columns", "class names"],
    ),
    "two lists of classes": (
        TSM | {"labels.csv": V1["labels.csv"]},
        ["category.txt", "labels.csv", "in the same folder", "keep"],
    ),
    "two formats": (
        TSM | {"train.csv": V1["train.csv"]},
        ["train.csv", "train_videofolder.txt", "in the same folder", "keep"],
    ),
    "kinetics without times": (
        {"train.csv": KINETICS.replace("3,13", ",13")},
        ["train.csv, row 3", "-Qz;9", "seconds", "fix"],
    ),
    "unknown split": (
        {"mine.csv": OWN.replace("wave,val", "wave,holdout")},
        ["mine.csv, row 4", "three", "holdout", "validation"],
    ),
    "no class": (
        {"mine.csv": OWN.replace("wave,train", ",train")},
        ["mine.csv, row 2", "one", "no class", "train"],
    ),
    "no id": ({"mine.csv": OWN.replace("clips/one.mp4", "")}, ["mine.csv, row 2", "no id"]),
    "class of validation only": (
        {"mine.csv": OWN.replace("wave,val", "weave,val")},
        ["mine.csv, row 4", "three", "weave", "the rows of train", "class names"],
    ),
    "in two splits": (
        {"mine.csv": OWN + "other/one.mp4,wave,test\n"},
        ["mine.csv, row 6", "other/one.mp4", "(test", "(train", "row 2", "name of its own"],
    ),
    "two classes": (
        {"mine.csv": OWN + 'other/one.mp4,"jump, high",train\n'},
        ["mine.csv, row 6", "other/one.mp4", "jump, high", "wave", "row 2"],
    ),
    "two videos of one name": (
        {"mine.csv": OWN + "other/one.mp4,wave,train\n"},
        ["mine.csv, row 6", "other/one.mp4", "clips/one.mp4", "row 2", "name of its own"],
    ),
    "misspelt column of classes": (
        {"mine.csv": OWN.replace("label", "lable")},
        ["mine.csv, row 2", "one", "no class", "column `label`"],
    ),
    "another header": (
        {"mine.csv": OWN.replace("path", "which")},
        ["mine.csv, row 1", "which, label, split", "path"],
    ),
    "no header": (
        {"mine.csv": OWN.partition("\n")[2]},
        ["mine.csv", "split", "add a header such as path,label,split"],
    ),
    "one class": (
        {"train_list.txt": "1.webm 0\n2.webm 0\n", "val_list.txt": "3.webm 0\n"},
        ["train_list.txt", "every row", "class '0'", "column"],
    ),
    "one name in two folders": (
        {"train_list.txt": "walk/clip1.mp4 0\nrun/clip1.mp4 1\n", "val_list.txt": "walk/clip2.mp4 0\n"},
        [
            "train_list.txt, row 2",
            "'run/clip1.mp4'",
            "'walk/clip1.mp4'",
            "row 1 of",
            "same name",
            "name of its own",
        ],
    ),
    "unknown header of a list": (
        {"train.csv": "clp,act\na.mp4,walk\nb.mp4,run\n"},
        ["train.csv, row 1", "'clp,act'", "header", "path and label"],
    ),
    "unknown header of numbers": (
        {"train.csv": "clp,act\na,0\nb,1\n"},
        ["train.csv, row 1", "'clp,act'", "`file class`", "path and label"],
    ),
    "unknown column of classes": (
        {"train.csv": "path,act\na.mp4,walk\n"},
        ["train.csv, row 1", "path, act", "called label"],
    ),
    "frames alone": (
        {"train.csv": 'original_vido_id video_id frame_id path labels\n11 0 0 11/11_000001.jpg ""\n'},
        ["no rows of the split train", "train.csv: ignored"],
    ),
    "several classes of a video": (
        {"train.txt": "a.mp4 1\nb.mp4 0 3 4\nc.mp4 1\n"},
        ["train.txt, row 2", "'b.mp4 0 3 4'", "`file class`", "one class for each video"],
    ),
    "parts of videos": (
        {"train.txt": "a 0 30 1\nb 2 50 0\n"},
        ["train.txt, row 1", "'a 0 30 1'", "3 numbers", "whole videos"],
    ),
    "three columns without a header": (
        {"train.csv": "a.mp4,walk,48\nb.mp4,run,30\n"},
        ["train.csv, row 1", "3 columns", "add a header such as path,label"],
    ),
    "rows from 1, classes from 0": (
        {"category.txt": "walk\nrun\n", "train.txt": "a.avi 1\nb.avi 2\n", "val.txt": "c.avi 1\n"},
        ["train.txt, row 2", "class 2", "(0 to 1) of category.txt", "from 1", "`1 walk`"],
    ),
    "rows from 0, classes from 1": (
        {"classInd.txt": "1 walk\n2 run\n", "train.txt": "a.avi 0\nb.avi 1\n", "val.txt": "c.avi 1\n"},
        ["train.txt, row 1", "class 0", "(1 to 2) of classInd.txt"],
    ),
    "several classes in JSON": (
        {"train.json": '[{"video": "a", "labels": ["walk", "run"]}]'},
        ["train.json, row 1", "['walk', 'run']", "one class"],
    ),
    "descriptions": (
        {
            "train.json": json.dumps([{"id": str(i), "label": f"text {i}"} for i in range(200)]),
            "val.json": '[{"id": "x", "label": "text x"}]',
        },
        ["train.json", "200 classes for 200 training videos", "'text 0'", "descriptions"],
    ),
    "ids with commas": (
        {"train_list.txt": "a,, 0\nb,, 1\n"},
        ["train_list.txt, row 1", "a,"],
    ),
    "web page": (
        {"train.csv": "<!DOCTYPE html>\n<html>403</html>"},
        ["train.csv", "a web page", "download it again"],
    ),
    "pointer": (
        {"train.csv": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"},
        ["train.csv", "Git LFS pointer", "git lfs pull"],
    ),
    "spreadsheet": (
        {"labels.xlsx": "PK"},
        ["no rows of the split train", ".json, .csv, .tsv, .txt", "labels.xlsx: not read"],
    ),
    "header alone": ({"mine.csv": "path,label,split\n"}, ["mine.csv", "no rows"]),
    "empty": (V1 | {"train.csv": "\n\n"}, ["train.csv", "is empty"]),
}


@pytest.mark.parametrize("case", WRONG_TEXT)
def test_wrong_text_files_are_one_line_with_the_fix(tmp_path, case):
    files, words = WRONG_TEXT[case]
    put(tmp_path, **{name: text for name, text in files.items() if text is not None})
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def official(train=168_913, validation=24_777, test=27_157):
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    return pd.DataFrame({"id": range(len(splits)), "split": splits})


def test_official_numbers_are_compared():
    classes = [str(i) for i in range(174)]
    check_counts(classes, official(), dataset="something-something-v2", partial=False)
    check_counts(classes, official(86_017, 11_522, 10_960), dataset="something-something-v1", partial=False)
    with pytest.raises(UserError) as caught:
        check_counts(classes[1:], official(test=0), dataset="something-something-v2", partial=False)
    assert "173 classes instead of 174; 0 test instead of 27,157" in str(caught.value)
    assert "data.partial: true" in str(caught.value)
    assert "\n" not in str(caught.value)
    check_counts(classes[1:], official(test=0), dataset="something-something-v2", partial=True)
    check_counts(classes[1:], official(test=0), dataset="kinetics-400", partial=False)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_and_validation_rows_are_always_required(split):
    with pytest.raises(UserError, match=f"no rows of the split {split}.*add"):
        check_counts(["a"], official(**{split: 0}), dataset="demo", partial=True)
