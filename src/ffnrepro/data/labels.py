"""Class names and labels from a folder of label files.

:mod:`ffnrepro.data.label_formats` reads the files as they are. Here the same checks for every format turn them into one
table, or raise an error that says what is wrong, where, and how to fix it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ffnrepro.data.label_formats import (
    SOURCE,
    SPLITS,
    ClassList,
    LabelRow,
    LabelRows,
    is_named_as_classes,
    read_label_file,
)
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest

log = logging.getLogger(__name__)

REVISION = 1
"""Raised by hand when the table made from the same files changes, so that labels are read again."""

ENDINGS = (".json", ".csv", ".tsv", ".txt")

_OFFICIAL_COUNTS = {
    "something-something-v1": {"classes": 174, "train": 86_017, "validation": 11_522, "test": 10_960},
    "something-something-v2": {"classes": 174, "train": 168_913, "validation": 24_777, "test": 27_157},
}


def list_label_files(folder: Path) -> list[Path]:
    """List the label files of a folder by their endings, sorted; none if the folder cannot be read."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    # Other systems leave hidden files behind, such as ._train.json in an archive from a Mac.
    ignored = (".", "readme", "licen", "copying")
    return sorted(
        path
        for path in paths
        if path.name.lower().endswith(ENDINGS)
        and not path.name.lower().startswith(ignored)
        and path.is_file()
    )


def label_digests(folder: Path) -> dict[str, str]:
    """Digest each label file of a folder.

    Returns:
        SHA-256 by file name; ``unreadable`` for a file without permission, for which `read_labels` raises the error.
    """
    digests = {}
    for path in list_label_files(folder):
        try:
            digests[path.name] = file_digest(path)
        except OSError:
            digests[path.name] = "unreadable"
    return digests


def read_labels(folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Read the label files of a folder: classes, train, validation, and test if there is one.

    The formats are those of Something-Something V2 and V1, of Kinetics, the lists ``folder frames class`` and
    ``file class``, and a table ``path,label,split``; config/README.md shows each.

    Args:
        folder: Holds the label files of one data set.

    Returns:
        The class names in the order of their indices, and a table with the columns ``id`` (text; the name of
        the video file without its ending), ``split`` (``train``, ``validation`` or ``test``) and ``class``
        (Int64; missing for test rows without answers), sorted by split, then in the order of the files.

    Raises:
        UserError: A file is missing, damaged or contradicts another.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of label files ({error.strerror}): set `data.labels`, files from {SOURCE}"
        ) from error
    contents = [read_label_file(file) for file in list_label_files(folder)]
    lists = [content for content in contents if isinstance(content, ClassList)]
    parts = [content for content in contents if isinstance(content, LabelRows)]
    if not parts and not lists:
        raise _missing(folder, "labels.json")
    parts = _one_file_per_split(folder, parts, lists)
    classes = _chosen_list(lists) or _classes_of_rows(folder, parts)
    return classes.names, _checked_table(classes, [_without_placeholders(part, classes) for part in parts])


def check_counts(classes: Sequence[str], table: pd.DataFrame, *, dataset: str, partial: bool) -> None:
    """Compare the labels with the official numbers of the data set.

    Args:
        classes: Class names.
        table: Labels, from :func:`read_labels`.
        dataset: Name of the data set; one without known official numbers is not compared.
        partial: The labels are a part of the data set on purpose, and are not compared.

    Raises:
        UserError: A number differs, or (for any data set) train or validation has no rows.
    """
    counts = {split: int((table["split"] == split).sum()) for split in SPLITS} | {"classes": len(classes)}
    empty = [split for split in ("train", "validation") if not counts[split]]
    if empty:
        raise UserError(
            f"labels: the files of `data.labels` have no rows of {empty[0]}: add its file, or rows with this split"
        )
    if partial or dataset not in _OFFICIAL_COUNTS:
        return
    wrong = [
        f"{counts[name]:,} {name} instead of {number:,}"
        for name, number in _OFFICIAL_COUNTS[dataset].items()
        if counts[name] != number
    ]
    if wrong:
        raise UserError(
            f"labels: not those of `dataset: {dataset}`: the files of `data.labels` have {'; '.join(wrong)}: complete "
            "the files, name another `dataset`, or set `data.partial: true` for a part of it"
        )


def check_evaluable(table: pd.DataFrame, split: str) -> None:
    """Refuse a split on which no score can be computed.

    Args:
        table: Labels, from :func:`read_labels`.
        split: The split to evaluate on.

    Raises:
        UserError: It has no rows, or rows without a class.
    """
    classes = table.loc[table["split"] == split, "class"]
    if classes.empty:
        problem = "no rows"
    elif classes.isna().any():
        problem = f"no class for {int(classes.isna().sum()):,} of {len(classes):,} rows"
    else:
        return
    raise UserError(
        f"labels: the split {split} has {problem}, so nothing can be scored on it: set `evaluation.split: validation`"
    )


def _missing(folder: Path, name: str, lists: Sequence[ClassList] = ()) -> UserError:
    taken = ", ".join(content.file.name for content in lists if not is_named_as_classes(content.file))
    return UserError(
        f"{folder}: {name} (or something-something-v2-{name}, or the like in another format of "
        f"config/README.md) is missing{f' ({taken} was taken for a list of class names)' if taken else ''}: download "
        f"the label files from {SOURCE} and name their folder in `data.labels`"
    )


def _two_files(one: Path, other: Path) -> UserError:
    return UserError(f"{one}: {other.name} stands beside it: keep the one of the release that you use")


def _chosen_list(lists: list[ClassList]) -> ClassList | None:
    """Choose the list of classes: of several, the one that is named so, because any prose looks like a list."""
    chosen = [content for content in lists if is_named_as_classes(content.file)] or lists
    if len(chosen) > 1:
        raise _two_files(chosen[0].file, chosen[1].file)
    for content in lists:
        if content is not chosen[0]:
            log.warning("%s: ignored: the classes are those of %s", content.file, chosen[0].file.name)
        elif not is_named_as_classes(content.file):
            log.info("%s: taken for the list of the %d classes", content.file, len(content.names))
    return chosen[0] if chosen else None


def _one_file_per_split(folder: Path, parts: list[LabelRows], lists: Sequence[ClassList]) -> list[LabelRows]:
    """Order the files by split and add the answers to test; files whose rows tell the split may be several."""
    mixed = [part for part in parts if part.split_in_rows]
    ordered = list(mixed)
    for split in SPLITS:
        files = [part for part in parts if not part.split_in_rows and part.rows[0].split == split]
        without_classes = [part for part in files if all(row.label is None for row in part.rows)]
        if len(files) == 2 and len(without_classes) == 1:
            (answers,) = (part for part in files if part is not without_classes[0])
            files = [_with_answers(without_classes[0], answers)]
        if len(files) > 1:
            raise _two_files(files[0].file, files[1].file)
        if not files and not mixed and split != "test":
            raise _missing(folder, f"{split}.json", lists)
        for part in mixed:
            if files and any(row.split == split for row in part.rows):
                raise _two_files(files[0].file, part.file)
        ordered += files
    return ordered


def _with_answers(test: LabelRows, answers: LabelRows) -> LabelRows:
    """Replace each test row by its answer."""
    answer_of: dict[str, LabelRow] = {}
    for answer in answers.rows:
        first = answer_of.setdefault(answer.id, answer)
        if first.label != answer.label:
            raise _two_classes(answers.file, answer, first)
    test_ids = {row.id for row in test.rows}
    missing = next((row.id for row in test.rows if row.id not in answer_of), None)
    if missing is not None:
        raise UserError(
            f"{answers.file}: has no answer for id {missing} of {test.file.name}: take both from one release"
        )
    unknown = next((answer for answer in answers.rows if answer.id not in test_ids), None)
    if unknown is not None:
        raise UserError(
            f"{answers.file}, row {unknown.row} (id {unknown.id}): is not in {test.file.name}: take both from one release"
        )
    return replace(test, file=answers.file, rows=[answer_of[row.id] for row in test.rows])


def _classes_of_rows(folder: Path, parts: list[LabelRows]) -> ClassList:
    """Make a list of classes from the rows: the names of train, sorted, or the numbers as text."""
    labels = [row.label for part in parts for row in part.rows if row.label is not None]
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and len(numbers) == len(labels):
        if max(numbers) > max(999, len(numbers)):
            raise UserError(
                f"{parts[0].file}: classes are numbers up to {max(numbers)}, too many for {len(numbers)} videos: check "
                "the columns, or add a file of the class names"
            )
        log.info("no file of class names: they are the numbers 0 to %d as text", max(numbers))
        return ClassList(parts[0].file, [str(number) for number in range(max(numbers) + 1)])
    if not all(part.defines_classes for part in parts):
        raise _missing(folder, "labels.json")
    # A class that only validation has is probably a spelling mistake, and is refused later.
    train = [part for part in parts if any(row.split == "train" for row in part.rows)] or parts
    names = {
        row.label
        for part in train
        for row in part.rows
        if isinstance(row.label, str) and (row.split == "train" or train is parts)
    }
    log.info("no file of class names: they are the %d names of the rows, sorted", len(names))
    return ClassList(train[0].file, sorted(names))


def _without_placeholders(part: LabelRows, classes: ClassList) -> LabelRows:
    """Remove the classes of a test list if all are 0, which is how such lists fill the column."""
    test = [row for row in part.rows if row.split == "test"]
    if len(classes.names) < 2 or not test or any(row.label != 0 for row in test):
        return part
    log.warning("%s: every test row has class 0: they are taken as rows without a class", part.file)
    return replace(part, rows=[row._replace(label=None) if row.split == "test" else row for row in part.rows])


def _two_classes(file: Path, row: LabelRow, first: LabelRow) -> UserError:
    return UserError(
        f"{file}, row {row.row} (id {row.id}): has the class {row.label!r}, but {first.label!r} in row {first.row}: "
        "remove the wrong row or download the file again"
    )


def _checked_table(classes: ClassList, parts: list[LabelRows]) -> pd.DataFrame:
    """Join the files and check them: known classes, one class and one split for each id."""
    index_of: dict[str | int | None, int] = {name: index for index, name in enumerate(classes.names)}
    index_of |= {index: index for index in range(len(classes.names))}
    labelled = [(part, row) for split in SPLITS for part in parts for row in part.rows if row.split == split]
    unknown = [
        (part.file, row) for part, row in labelled if row.label is not None and row.label not in index_of
    ]
    if unknown:
        raise _unknown_class(unknown, classes, parts)

    first_of: dict[str, tuple[LabelRows, LabelRow]] = {}
    repeated = []
    for part, row in labelled:
        first_part, first = first_of.setdefault(row.id, (part, row))
        if row is first:
            continue
        repeated.append((part.file, row))
        if row.split != first.split:
            raise UserError(
                f"{part.file}, row {row.row} (id {row.id}, {row.split}): is also in {first_part.file.name}, row "
                f"{first.row} ({first.split}): remove it from one of them, or scores count videos of the training"
            )
        if row.label is not None and index_of[row.label] != index_of.get(first.label):
            raise _two_classes(part.file, row, first)
        # Files of one name in two folders may be two videos, of which one would be dropped.
        if row.path != first.path:
            raise UserError(
                f"{part.file}, row {row.row}: {row.path} has the name of {first.path} in row {first.row}: give each "
                "video file a name of its own, or remove one row"
            )
    if repeated:
        file, row = repeated[0]
        log.warning(
            "%s, row %d (id %s): is there twice with the same class; one is kept (%d such rows in all)",
            file, row.row, row.id, len(repeated),
        )  # fmt: skip
    rows = [row for _, row in first_of.values()]
    return pd.DataFrame(
        {
            "id": pd.array([row.id for row in rows], dtype="str"),
            "split": pd.array([row.split for row in rows], dtype="str"),
            "class": pd.array([index_of.get(row.label) for row in rows], dtype="Int64"),
        }
    )


def _unknown_class(
    unknown: list[tuple[Path, LabelRow]], classes: ClassList, parts: list[LabelRows]
) -> UserError:
    (file, row), count = unknown[0], len(unknown)
    where, fix = f"is not in {classes.file.name}", "take both files from one release, or add the class"
    if isinstance(row.label, int):
        where += f", whose classes have the numbers 0 to {len(classes.names) - 1}"
    elif any(part.file == classes.file for part in parts):
        # There is no file of class names, so the classes are those of train.
        where = f"is in no row of train in {classes.file.name}"
        fix = "fix the row, or add a file of the class names"
    return UserError(
        f"{file}, row {row.row} (id {row.id}): the class {row.label!r} {where}"
        f"{f' ({count} such rows)' if count > 1 else ''}: {fix}"
    )
