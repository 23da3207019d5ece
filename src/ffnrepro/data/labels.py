"""Class names and labels from a release's files: Something-Something V2's JSON, in both namings.

One reader function a format returns class names and rows as they stand in the files; one check, the same for
every format, turns them into the table or says what is wrong with them, where, and what to do about it.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"


@dataclass(frozen=True)
class _Rows:
    """The rows of one split as a file has them; ``numbers`` are their places in it, from 1."""

    split: str
    file: Path
    numbers: list[int]
    ids: list[str]
    names: list[str | None]


def read_labels(folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Read the label files of a folder: labels, train, validation, and test and its answers if there.

    Args:
        folder: Holds ``labels.json``, ``train.json``, ... or ``something-something-v2-labels.json``, ...

    Returns:
        The class names in the order of their indices, and a table with the columns ``id`` (text), ``split``
        (``train``, ``validation`` or ``test``) and ``class`` (Int64; missing for test rows without answers),
        in the order of the files.

    Raises:
        UserError: A file is missing, damaged or contradicts another.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of label files: set `data.labels`, files from {SOURCE}")
    classes, labels_file, parts = _read_something_something_v2(folder)
    return classes, _checked_table(classes, labels_file, parts)


def _read_something_something_v2(folder: Path) -> tuple[list[str], Path, list[_Rows]]:
    """Read labels, train, validation and test, and the ``id;class`` lines of ``test-answers.csv``."""
    labels_file = _required_file(folder, "labels.json")
    required = {split: _required_file(folder, f"{split}.json") for split in ("train", "validation")}
    classes = _read_class_indices(labels_file)
    parts = [_read_split(file, split, _class_of_template) for split, file in required.items()]
    test_file, answers_file = _find_file(folder, "test.json"), _find_file(folder, "test-answers.csv")
    test = _read_split(test_file, "test", _no_class) if test_file else None
    if answers_file:
        test = _with_answers(test, answers_file)
    return classes, labels_file, [*parts, test] if test else parts


def _find_file(folder: Path, name: str) -> Path | None:
    """Find ``name``, or a file whose name ends with ``-name`` (the original naming)."""
    found = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.name == name or path.name.endswith(f"-{name}"))
    )
    if len(found) > 1:
        raise UserError(
            f"{found[0]}: {found[1].name} stands beside it: keep the one of the release that you use"
        )
    return found[0] if found else None


def _required_file(folder: Path, name: str) -> Path:
    found = _find_file(folder, name)
    if found is None:
        raise UserError(
            f"{folder}: {name} (or something-something-v2-{name}) is missing: download the label files "
            f"from {SOURCE} and name their folder in `data.labels`"
        )
    return found


def _read_text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")  # some editors put a byte order mark before it
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}): download it again") from error
    if not text.strip():
        raise UserError(f"{file}: is empty: download it again")
    return text


def _read_json(file: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    text = _read_text(file)
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not complete JSON ({error}): download it again") from error


def _as_index(value: object) -> int | None:
    """Read a class index, which releases write as text or as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def _read_class_indices(file: Path) -> list[str]:
    """Read ``{class: index}``, or the reverse, to the class names in index order."""
    # As pairs, since a dictionary would lose without a word what stands in the file twice.
    pairs = _read_json(file, pairs=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise UserError(f'{file}: is not of the form {{"class": "index"}}: take labels.json from {SOURCE}')
    if not pairs:
        raise UserError(f"{file}: holds no classes: download it again")
    if all(_as_index(value) is None and _as_index(key) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
    names: dict[int, str] = {}
    for name, value in pairs:
        index = _as_index(value)
        if index is None or not isinstance(name, str):
            raise UserError(f"{file}: class {name!r} has no index but {value!r}: download it again")
        if index in names:
            raise UserError(
                f"{file}: classes {names[index]!r} and {name!r} have the same index {index}: "
                "download it again"
            )
        names[index] = name
    gap = next((index for index in range(len(names)) if index not in names), None)
    if gap is not None:
        raise UserError(
            f"{file}: no class has index {gap}, though {names[max(names)]!r} has {max(names)}: "
            f"indices must be 0 to {len(names) - 1} for {len(names)} classes: download it again"
        )
    classes = [names[index] for index in range(len(names))]
    twice = next((name for number, name in enumerate(classes) if name in classes[:number]), None)
    if twice is not None:
        raise UserError(f"{file}: class {twice!r} has two indices: download it again")
    return classes


def _read_split(file: Path, split: str, class_of: Callable[[Path, int, dict[str, Any]], str | None]) -> _Rows:
    rows = _read_json(file)
    if not isinstance(rows, list):
        raise UserError(f'{file}: is not a list of rows {{"id": ...}}: take {split}.json from {SOURCE}')
    if not rows:
        raise UserError(f"{file}: holds no rows: download it again")
    ids: list[str] = []
    names: list[str | None] = []
    for number, row in enumerate(rows, start=1):
        video = row.get("id") if isinstance(row, dict) else None
        if isinstance(video, bool) or not isinstance(video, str | int) or video == "":
            raise UserError(f'{file}, row {number}: has no "id": mend the row or download the file again')
        ids.append(str(video))
        names.append(class_of(file, number, row))
    return _Rows(split, file, list(range(1, len(rows) + 1)), ids, names)


def _class_of_template(file: Path, number: int, row: dict[str, Any]) -> str:
    """Take the brackets off a template: "Moving [something] up" is of the class "Moving something up"."""
    template = row.get("template")
    if not isinstance(template, str) or not template:
        raise UserError(
            f'{file}, row {number} (id {row["id"]}): has no "template", which gives the class: take the file '
            f"with templates from {SOURCE}"
        )
    return template.replace("[", "").replace("]", "")


def _no_class(file: Path, number: int, row: dict[str, Any]) -> None:
    """Test rows hold nothing but the id."""


def _with_answers(test: _Rows | None, file: Path) -> _Rows:
    """Give each test row the class of its ``id;class`` line; without a test file the lines are the rows."""
    numbers, ids, names = [], [], []
    answers: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        video, separator, name = (part.strip() for part in line.partition(";"))
        if not (video and separator and name):
            raise UserError(f"{file}, row {number}: is not of the form id;class: download it again")
        numbers.append(number)
        ids.append(video)
        names.append(name)
        first, known = answers.setdefault(video, (number, name))
        if known != name:
            raise _two_classes(file, number, video, known, name, first)
    if test is None:
        return _Rows("test", file, numbers, ids, [*names])
    without = next((video for video in test.ids if video not in answers), None)
    if without is not None:
        raise UserError(
            f"{file}: has no answer for id {without} of {test.file.name}: take both from one release"
        )
    asked = set(test.ids)
    unknown = next((video for video in answers if video not in asked), None)
    if unknown is not None:
        raise UserError(
            f"{file}, row {answers[unknown][0]} (id {unknown}): is not in {test.file.name}: "
            "take both from one release"
        )
    found = [answers[video] for video in test.ids]
    return _Rows("test", file, [number for number, _ in found], test.ids, [name for _, name in found])


def _two_classes(file: Path, number: int, video: str, known: str, name: str, first: int) -> UserError:
    return UserError(
        f"{file}, row {number} (id {video}): has the class {name!r}, but {known!r} in row {first}: "
        "remove the wrong row or download the file again"
    )


def _checked_table(classes: list[str], labels_file: Path, parts: list[_Rows]) -> pd.DataFrame:
    """Join the splits and check them: known classes, one class an id, one split an id."""
    files = {part.split: part.file for part in parts}
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "id": pd.array(part.ids, dtype="str"),
                    "split": part.split,
                    "number": part.numbers,
                    "name": pd.Series(part.names, dtype="object"),
                }
            )
            for part in parts
        ],
        ignore_index=True,
    )
    index_of = {name: index for index, name in enumerate(classes)}
    table["class"] = table["name"].map(index_of).astype("Int64")

    unknown = table[table["name"].notna() & table["class"].isna()]
    if len(unknown):
        row = unknown.iloc[0]
        more = f" ({len(unknown)} such rows)" if len(unknown) > 1 else ""
        raise UserError(
            f"{files[row['split']]}, row {row['number']} (id {row['id']}): the class {row['name']!r} "
            f"is not in {labels_file.name}{more}: take both files from one release, or add the class"
        )

    repeated = table[table.duplicated("id")]
    first = table.drop_duplicates("id").set_index("id")
    for again in repeated.to_dict("records"):
        file, known = files[again["split"]], first.loc[again["id"]]
        if known["split"] != again["split"]:
            raise UserError(
                f"{file}, row {again['number']} (id {again['id']}): is also in "
                f"{files[known['split']].name}, row {known['number']}: "
                "remove it from one of them, or scores count what was trained on"
            )
        if pd.notna(again["class"]) and known["class"] != again["class"]:
            raise _two_classes(
                file, again["number"], again["id"], known["name"], again["name"], known["number"]
            )
    if len(repeated):
        row = repeated.iloc[0]
        log.warning(
            "%s, row %d (id %s): is there twice with the same class; one is kept (%d such rows in all)",
            files[row["split"]], row["number"], row["id"], len(repeated),
        )  # fmt: skip
    return table.drop_duplicates("id")[["id", "split", "class"]].reset_index(drop=True)
