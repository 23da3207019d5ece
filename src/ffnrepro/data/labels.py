"""Class names and labels from a folder of label files, whatever their format.

:mod:`ffnrepro.data.label_formats` reads the files as they are; one check, the same for every format, turns them
into the table or says what is wrong with them, where, and what to do about it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ffnrepro.data.label_formats import SOURCE, SPLITS, ClassList, LabelRows, read_label_file, says_classes
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest

__all__ = ["SPLITS", "check_counts", "label_digests", "list_label_files", "read_labels"]

log = logging.getLogger(__name__)

ENDINGS = (".json", ".csv", ".tsv", ".txt")

_COUNTS = {
    "something-something-v1": {"classes": 174, "train": 86_017, "validation": 11_522, "test": 10_960},
    "something-something-v2": {"classes": 174, "train": 168_913, "validation": 24_777, "test": 27_157},
}


def list_label_files(folder: Path) -> list[Path]:
    """List the label files of a folder by their endings, sorted; none where no such folder can be read."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    # Hidden files are what other systems leave behind (._train.json of a Mac's archive).
    others = (".", "readme", "licen", "copying")
    return sorted(
        path
        for path in paths
        if path.name.lower().endswith(ENDINGS) and not path.name.lower().startswith(others) and path.is_file()
    )


def label_digests(folder: Path) -> dict[str, str]:
    """Digest of each label file of a folder, by its name; `unreadable` for one that may not be read: `read_labels` says so."""
    digests = {}
    for path in list_label_files(folder):
        try:
            digests[path.name] = file_digest(path)
        except OSError:
            digests[path.name] = "unreadable"
    return digests


def read_labels(folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Read the label files of a folder: a list of classes, train, validation, and test where there is one.

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
    parts = _one_file_a_split(folder, parts, lists)
    classes = _the_list(lists) or _classes_of_rows(folder, parts)
    return classes.names, _checked_table(classes, [_without_placeholders(part, classes) for part in parts])


def check_counts(classes: Sequence[str], table: pd.DataFrame, *, dataset: str, partial: bool) -> None:
    """Compare the labels with the data set that they are said to be.

    Args:
        classes: Class names.
        table: Labels, of :func:`read_labels`.
        dataset: Name of the data set; one whose numbers are not known is not compared.
        partial: The labels are meant to be a part of it, and are not compared.

    Raises:
        UserError: A number differs, or (whatever the data set) there is nothing to train or to validate with.
    """
    counts = {split: int((table["split"] == split).sum()) for split in SPLITS} | {"classes": len(classes)}
    empty = [split for split in ("train", "validation") if not counts[split]]
    if empty:
        raise UserError(
            f"labels: the files of `data.labels` have no rows of {empty[0]}: add its file, or rows with this "
            "split"
        )
    if partial or dataset not in _COUNTS:
        return
    wrong = [
        f"{counts[name]:,} {name} where it has {number:,}"
        for name, number in _COUNTS[dataset].items()
        if counts[name] != number
    ]
    if wrong:
        raise UserError(
            f"labels: not those of `dataset: {dataset}`: the files of `data.labels` have {'; '.join(wrong)}: "
            "complete the files, name another `dataset`, or set `data.partial: true` for a part of it"
        )


def _missing(folder: Path, name: str, lists: Sequence[ClassList] = ()) -> UserError:
    taken = ", ".join(content.file.name for content in lists if not says_classes(content.file))
    return UserError(
        f"{folder}: {name} (or something-something-v2-{name}, or the like in another format of "
        f"config/README.md) is missing{f' ({taken} was taken for a list of class names)' if taken else ''}: download "
        f"the label files from {SOURCE} and name their folder in `data.labels`"
    )


def _two_files(one: Path, other: Path) -> UserError:
    return UserError(f"{one}: {other.name} stands beside it: keep the one of the release that you use")


def _the_list(lists: list[ClassList]) -> ClassList | None:
    """Choose the list of classes; of several the one whose name says so (any prose is a column of text)."""
    chosen = [content for content in lists if says_classes(content.file)] or lists
    if len(chosen) > 1:
        raise _two_files(chosen[0].file, chosen[1].file)
    for content in lists:
        if content is not chosen[0]:
            log.warning("%s: is passed over: the classes are those of %s", content.file, chosen[0].file.name)
        elif not says_classes(content.file):
            log.info("%s: is taken for the list of the %d classes", content.file, len(content.names))
    return chosen[0] if chosen else None


def _one_file_a_split(folder: Path, parts: list[LabelRows], lists: Sequence[ClassList]) -> list[LabelRows]:
    """Order the files by split and give test its answers; files whose rows name the split may be several."""
    kept = [part for part in parts if part.split_in_rows]
    for split in SPLITS:
        named = [part for part in parts if not part.split_in_rows and part.splits[0] == split]
        blank = [part for part in named if set(part.classes) == {None}]
        if len(named) == 2 and len(blank) == 1:
            (answers,) = (part for part in named if part is not blank[0])
            named = [_with_answers(blank[0], answers)]
        if len(named) > 1:
            raise _two_files(named[0].file, named[1].file)
        if not named and not kept and split != "test":
            raise _missing(folder, f"{split}.json", lists)
        for part in kept:
            if named and split in part.splits:
                raise _two_files(named[0].file, part.file)
        parts = [part for part in parts if part.split_in_rows or part.splits[0] != split] + named
    return parts


def _with_answers(test: LabelRows, answers: LabelRows) -> LabelRows:
    """Give each test row the class of its answer."""
    given: dict[str, tuple[int, str | int | None]] = {}
    for row, video, name in zip(answers.rows, answers.ids, answers.classes, strict=True):
        first, known = given.setdefault(video, (row, name))
        if known != name:
            raise _two_classes(answers.file, row, video, known, name, first)
    without = next((video for video in test.ids if video not in given), None)
    if without is not None:
        raise UserError(
            f"{answers.file}: has no answer for id {without} of {test.file.name}: take both from one release"
        )
    asked = set(test.ids)
    unknown = next((video for video in given if video not in asked), None)
    if unknown is not None:
        raise UserError(
            f"{answers.file}, row {given[unknown][0]} (id {unknown}): is not in {test.file.name}: "
            "take both from one release"
        )
    found = [given[video] for video in test.ids]
    return replace(
        test,
        file=answers.file,
        rows=[row for row, _ in found],
        classes=[name for _, name in found],
    )


def _classes_of_rows(folder: Path, parts: list[LabelRows]) -> ClassList:
    """Without a list of classes: names of train, sorted; or the numbers as text."""
    given = [name for part in parts for name in part.classes if name is not None]
    numbers = [name for name in given if isinstance(name, int)]
    if numbers and len(numbers) == len(given):
        if max(numbers) > max(999, len(numbers)):
            raise UserError(
                f"{parts[0].file}: classes are numbers up to {max(numbers)}, too many for {len(numbers)} "
                "videos: check the columns, or add a file of the class names"
            )
        log.info("no file of class names: they are the numbers 0 to %d as text", max(numbers))
        return ClassList(parts[0].file, [str(number) for number in range(max(numbers) + 1)])
    if not all(part.makes_classes for part in parts):
        raise _missing(folder, "labels.json")
    # A class that only validation has is a slip of the pen, and stands out as one.
    train = [part for part in parts if "train" in part.splits] or parts
    names = {
        name
        for part in train
        for name, split in zip(part.classes, part.splits, strict=True)
        if isinstance(name, str) and (split == "train" or train is parts)
    }
    log.info("no file of class names: they are the %d names of the rows, sorted", len(names))
    return ClassList(train[0].file, sorted(names))


def _without_placeholders(part: LabelRows, classes: ClassList) -> LabelRows:
    """Take the class 0 off a test list that has no other: such lists fill the column so."""
    test = [name for name, split in zip(part.classes, part.splits, strict=True) if split == "test"]
    if len(classes.names) < 2 or not test or any(name != 0 for name in test):
        return part
    log.warning("%s: every test row has class 0: they are taken as rows without a class", part.file)
    pairs = zip(part.classes, part.splits, strict=True)
    return replace(part, classes=[None if split == "test" else name for name, split in pairs])


def _two_classes(file: Path, row: int, video: str, known: object, name: object, first: int) -> UserError:
    return UserError(
        f"{file}, row {row} (id {video}): has the class {name!r}, but {known!r} in row {first}: "
        "remove the wrong row or download the file again"
    )


def _checked_table(classes: ClassList, parts: list[LabelRows]) -> pd.DataFrame:
    """Join the files and check them: known classes, one class an id, one split an id."""
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "id": pd.array(part.ids, dtype="str"),
                    "path": pd.array(part.paths, dtype="str"),
                    "split": pd.array(part.splits, dtype="str"),
                    "file": number,
                    "row": part.rows,
                    "name": pd.Series(part.classes, dtype="object"),
                }
            )
            for number, part in enumerate(parts)
        ],
        ignore_index=True,
    )
    # Stable, so that within a split the order of the files stays.
    table = table.sort_values("split", kind="stable", key=lambda split: split.map(SPLITS.index))
    index_of: dict[str | int, int] = {name: index for index, name in enumerate(classes.names)}
    index_of |= {index: index for index in range(len(classes.names))}
    table["class"] = table["name"].map(index_of).astype("Int64")

    unknown = table[table["name"].notna() & table["class"].isna()]
    if len(unknown):
        entry, file = unknown.iloc[0], classes.file.name
        more = f" ({len(unknown)} such rows)" if len(unknown) > 1 else ""
        mend = "take both files from one release, or add the class"
        where = f"is not in {file}"
        if isinstance(entry["name"], int):
            where += f", whose classes have the numbers 0 to {len(classes.names) - 1}"
        elif any(part.file == classes.file for part in parts):  # no file of classes: they are those of train
            where, mend = f"is in no row of train in {file}", "mend the row, or add a file of the class names"
        raise UserError(
            f"{parts[entry['file']].file}, row {entry['row']} (id {entry['id']}): the class {entry['name']!r} "
            f"{where}{more}: {mend}"
        )

    repeated = table[table.duplicated("id")]
    first = table.drop_duplicates("id").set_index("id")
    for again in repeated.to_dict("records"):
        file, known = parts[again["file"]].file, first.loc[again["id"]]
        if known["split"] != again["split"]:
            raise UserError(
                f"{file}, row {again['row']} (id {again['id']}, {again['split']}): is also in "
                f"{parts[known['file']].file.name}, row {known['row']} ({known['split']}): "
                "remove it from one of them, or scores count what was trained on"
            )
        if pd.notna(again["class"]) and known["class"] != again["class"]:
            raise _two_classes(file, again["row"], again["id"], known["name"], again["name"], known["row"])
        if (
            known["path"] != again["path"]
        ):  # of two folders, it may be: two videos, of which one would be dropped
            raise UserError(
                f"{file}, row {again['row']}: {again['path']} has the name of {known['path']} in row {known['row']}: "
                "give each video file a name of its own, or remove one row"
            )
    if len(repeated):
        entry = repeated.iloc[0]
        log.warning(
            "%s, row %d (id %s): is there twice with the same class; one is kept (%d such rows in all)",
            parts[entry["file"]].file, entry["row"], entry["id"], len(repeated),
        )  # fmt: skip
    return table.drop_duplicates("id")[["id", "split", "class"]].reset_index(drop=True)


def check_evaluable(table: pd.DataFrame, split: str) -> None:
    """Refuse a split that no score can be computed on.

    Args:
        table: of `read_labels`.
        split: that is to be evaluated.

    Raises:
        UserError: it has no rows, or rows without a class.
    """
    classes = table.loc[table["split"] == split, "class"]
    if classes.empty or classes.isna().any():
        lack = (
            "no rows"
            if classes.empty
            else f"no class for {int(classes.isna().sum()):,} of {len(classes):,} rows"
        )
        raise UserError(
            f"labels: the split {split} has {lack}, so nothing can be scored on it: set `evaluation.split: validation`"
        )
