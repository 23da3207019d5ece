"""Class names and labels from a folder of label files.

:mod:`ffnrepro.data.label_formats` reads the files as they are. This module makes the same checks for every format, and
returns one table or raises an error that says what is wrong, where, and how to fix it.
"""

import logging
from collections.abc import Sequence
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
    """List the label files of a folder, recognised by their endings, sorted."""
    # Other systems leave hidden files behind, such as ._train.json in an archive from a Mac.
    ignored = (".", "readme", "licen", "copying")
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(ENDINGS)
        and not path.name.lower().startswith(ignored)
        and path.is_file()
    )


def label_digests(folder: Path) -> dict[str, str]:
    """Compute a digest of each label file of a folder.

    Returns:
        SHA-256 by file name; empty if there is no such folder, for which `read_labels` raises the error.
    """
    return {path.name: file_digest(path) for path in list_label_files(folder)} if folder.is_dir() else {}


def read_labels(folder: Path, *, trained: bool = True) -> tuple[list[str], pd.DataFrame]:
    """Read the label files of a folder: classes, train, validation, and test if there is one.

    The formats are those of Something-Something V2 and V1, of Kinetics, the lists ``folder frames class`` and
    ``file class``, and a table ``path,label,split``; config/README.md shows each.

    Args:
        folder: Folder with the label files of one data set.
        trained: Whether something is trained on them, so that there must be a training split.

    Returns:
        The class names in the order of their indices, and a table with the columns ``id`` (text; the name of
        the video file without its ending), ``split`` (``train``, ``validation`` or ``test``) and ``class``
        (Int64; missing for test rows without answers), sorted by split, then in the order of the files.

    Raises:
        UserError: A file is missing, damaged or contradicts another.
    """
    try:
        files = list_label_files(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of label files ({error.strerror}): set `data.labels`, files from {SOURCE}"
        ) from error
    contents = [read_label_file(file) for file in files]
    chosen = _chosen_list([content for content in contents if isinstance(content, ClassList)])
    parts = [content for content in contents if isinstance(content, LabelRows)]
    needed = ("train", "validation") if trained else ("validation",)
    rows = [
        row for split in SPLITS for row in _rows_of_split(folder, parts, split, is_needed=split in needed)
    ]
    if chosen:
        names, source = chosen.names, chosen.file.name
    elif all(part.is_table for part in parts) or all(isinstance(row.label, int | None) for row in rows):
        names, source = _classes_of_rows(rows), "the rows of train"
    else:
        raise _missing(folder, "labels.json")
    test = [row for row in rows if row.split == "test"]
    if test and len(names) > 1 and all(row.label == 0 for row in test):
        log.warning(
            "%s: every test row has class 0, so these rows count as rows without a class", test[0].file
        )
        rows = [row._replace(label=None) if row.split == "test" else row for row in rows]
    return names, _checked_table(names, source, rows)


def read_classes(path: Path) -> list[str]:
    """The class names of ``classes.csv``, in index order."""
    # Read as text, because a class may be called "None" or "007".
    return pd.read_csv(path, dtype="str", keep_default_na=False)["class"].tolist()


def check_counts(
    classes: Sequence[str], table: pd.DataFrame, *, dataset: str, partial: bool, trained: bool = True
) -> None:
    """Compare the labels with the official numbers of the data set.

    Args:
        classes: Class names.
        table: Labels, from :func:`read_labels`.
        dataset: Name of the data set; if it has no known official numbers, nothing is compared.
        partial: Whether the labels are a part of the data set on purpose; then nothing is compared.
        trained: Whether something is trained on them; else the training split may be left out.

    Raises:
        UserError: A number differs, or (for any data set) a split that is needed has no rows.
    """
    counts = {split: int((table["split"] == split).sum()) for split in SPLITS} | {"classes": len(classes)}
    empty = [
        split for split in ("train", "validation") if not counts[split] and (trained or split != "train")
    ]
    if empty:
        raise UserError(
            f"labels: the files of `data.labels` have no rows of the split {empty[0]}: add its file, or rows with this split"
        )
    if partial or dataset not in _OFFICIAL_COUNTS:
        return
    wrong = [
        f"{counts[name]:,} {name} instead of {number:,}"
        for name, number in _OFFICIAL_COUNTS[dataset].items()
        if counts[name] != number and (trained or name != "train" or counts[name])
    ]
    if wrong:
        raise UserError(
            f"labels: these are not the labels of `dataset: {dataset}`: the files of `data.labels` have {'; '.join(wrong)}: "
            "complete the files, set another `dataset`, or set `data.partial: true` for a part of it"
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
    if classes.empty or classes.isna().any():
        raise UserError(
            f"labels: the split {split} has {'no rows' if classes.empty else 'rows without a class'}, so nothing can be "
            "scored on it: set `evaluation.split: validation`"
        )


def _missing(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder}: {name} (or something-something-v2-{name}, or the like in another format of config/README.md) is "
        "missing (a text file without a header, and without train, validation or test in its name, counts as class "
        f"names): download the label files from {SOURCE} and name their folder in `data.labels`"
    )


def _two_files(one: Path, other: Path) -> UserError:
    return UserError(
        f"{one}: {other.name} in the same folder holds the same kind of labels: keep only the file of the release that you use"
    )


def _chosen_list(lists: list[ClassList]) -> ClassList | None:
    """Choose the list of classes: if there are several lists, the one whose name says so, because any text looks like a list."""
    chosen = [content for content in lists if is_named_as_classes(content.file)] or lists
    if len(chosen) > 1:
        raise _two_files(chosen[0].file, chosen[1].file)
    for content in lists:
        if content is not chosen[0]:
            log.warning(
                "%s: ignored, because the classes are taken from %s", content.file, chosen[0].file.name
            )
        elif not is_named_as_classes(content.file):
            log.info("%s: used as the list of the %d classes", content.file, len(content.names))
    return chosen[0] if chosen else None


def _rows_of_split(folder: Path, parts: list[LabelRows], split: str, *, is_needed: bool) -> list[LabelRow]:
    """Choose the rows of a split, from one file or from several tables. The test split may have a second file of answers."""
    files = {part.file: [row for row in part.rows if row.split == split] for part in parts}
    files = {file: rows for file, rows in files.items() if rows}
    without_classes = [file for file, rows in files.items() if all(row.label is None for row in rows)]
    if len(files) == 2 and len(without_classes) == 1:
        place = {row.id: number for number, row in enumerate(files.pop(without_classes[0]))}
        ((file, answers),) = files.items()
        different = sorted(place.keys() ^ {row.id for row in answers})
        if different:
            raise UserError(
                f"{file}: id {different[0]} is in only one of this file and {without_classes[0].name}: take both files "
                "from one release"
            )
        return sorted(answers, key=lambda row: place[row.id])
    if len(files) > 1 and not all(part.is_table for part in parts if part.file in files):
        raise _two_files(*list(files)[:2])
    if not files and is_needed and not any(part.is_table for part in parts):
        raise _missing(folder, f"{split}.json")
    return [row for rows in files.values() for row in rows]


def _classes_of_rows(rows: list[LabelRow]) -> list[str]:
    """Make a list of classes from the rows: the names of train, sorted, or the numbers as text."""
    labels = [row.label for row in rows if row.label is not None]
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and len(numbers) == len(labels):
        if max(numbers) > max(999, len(numbers)):
            raise UserError(
                f"{rows[0].file}: classes are numbers up to {max(numbers)}, too many for {len(numbers)} videos: check "
                "the columns, or add a file of the class names"
            )
        log.info("no file of class names: the names are the numbers 0 to %d as text", max(numbers))
        return [str(number) for number in range(max(numbers) + 1)]
    # A class that appears only in validation is probably a spelling mistake, and is refused later.
    names = {str(row.label) for row in rows if row.split == "train"} or set(map(str, labels))
    log.info("no file of class names: the names are the %d names in the rows, sorted", len(names))
    return sorted(names)


def _checked_table(names: list[str], source: str, rows: list[LabelRow]) -> pd.DataFrame:
    """Check the rows of all files together: known classes, one video, class and split for each id."""
    index_of: dict[str | int | None, int] = {name: index for index, name in enumerate(names)}
    index_of |= {index: index for index in range(len(names))}
    first_of: dict[str, LabelRow] = {}
    repeated = []
    for row in rows:
        if row.label is not None and row.label not in index_of:
            raise UserError(
                f"{row.file}, row {row.row} (id {row.id}): the class {row.label!r} is not one of the {len(names)} classes "
                f"(0 to {len(names) - 1}) of {source}: fix the row, take all files from one release, or add the class (or "
                "a file of the class names)"
            )
        first = first_of.setdefault(row.id, row)
        if (row.path, row.split, row.label) != (first.path, first.split, first.label):
            raise UserError(
                f"{row.file}, row {row.row}: {row.path!r} ({row.split}, class {row.label!r}) has the id of {first.path!r} "
                f"({first.split}, class {first.label!r}) in row {first.row} of {first.file.name}: remove the wrong row, or "
                "give each video file a name of its own"
            )
        if row is not first:
            repeated.append(row)
    if repeated:
        log.warning(
            "%s, row %d (id %s): appears twice with the same class; one row is kept (%d such rows in all)",
            repeated[0].file, repeated[0].row, repeated[0].id, len(repeated),
        )  # fmt: skip
    kept = first_of.values()
    return pd.DataFrame(
        {
            "id": pd.array([row.id for row in kept], dtype="str"),
            "split": pd.array([row.split for row in kept], dtype="str"),
            "class": pd.array([index_of.get(row.label) for row in kept], dtype="Int64"),
        }
    )
