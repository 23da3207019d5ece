"""Class names and labels from a folder of label files.

The modules `label_json` and `label_text` read the files as they are. This module makes the same checks for every format,
and returns one table or raises an error that says what is wrong, where, and how to fix it.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ffnrepro.data.label_formats import (
    SPLITS,
    ClassList,
    LabelRow,
    LabelRows,
    as_index,
    is_named_as_classes,
)
from ffnrepro.data.label_json import read_json
from ffnrepro.data.label_text import read_text
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest

log = logging.getLogger(__name__)

REVISION = 2
"""Raised by hand when the table made from the same files changes, so that labels are read again."""

ENDINGS = (".json", ".csv", ".tsv", ".txt")

SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"

_OFFICIAL_COUNTS = {
    "something-something-v1": {"classes": 174, "train": 86_017, "validation": 11_522, "test": 10_960},
    "something-something-v2": {"classes": 174, "train": 168_913, "validation": 24_777, "test": 27_157},
}
# UCF101, HMDB51 and the lists of mmaction2 have several splits of the same videos: trainlist01.txt, brush_hair_test_split1.txt.
_NUMBER_OF_SPLIT = re.compile(r"(?:list|split)_?0*(\d+)(?!\d)", re.IGNORECASE)

Content = ClassList | LabelRows


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

    config/README.md shows the formats. Where a data set has no validation split, as UCF101, HMDB51 and Diving48, its test
    videos are the validation split.

    Args:
        folder: Folder with the label files of one data set.
        trained: Whether something is trained on them, so that there must be a training split.

    Returns:
        The class names in the order of their indices, and a table with the columns ``id`` (text; the name of
        the video file without its ending), ``split`` (``train``, ``validation`` or ``test``) and ``class``
        (Int64; missing for test rows without answers), sorted by split, then in the order of the files.

    Raises:
        UserError: A file is missing, damaged or contradicts another, or all rows have the same class.
    """
    try:
        files = _of_one_split(list_label_files(folder))
    except OSError as error:
        raise UserError(
            f"{folder}: no such folder of label files ({error.strerror}; relative paths start at {Path.cwd()}): set "
            "`data.labels` to the folder that holds them, or give snakemake another --directory or --configfile"
        ) from error
    contents = {file: read_label_file(file) for file in files}
    parts = [content for content in contents.values() if isinstance(content, LabelRows)]
    chosen = _chosen_list([content for content in contents.values() if isinstance(content, ClassList)])
    _check_templates(parts)
    if unused := sum(part.unused for part in parts):
        log.info("%s: %d videos are in no split, as the lists of HMDB51 say", folder, unused)
    rows_of = {split: _rows_of_split(parts, split) for split in SPLITS}
    if chosen:
        rows_of = {split: _with_classes_of_folders(rows, chosen.names) for split, rows in rows_of.items()}
    is_answered = all(row.label is not None for row in rows_of["test"])
    if (
        rows_of["test"]
        and is_answered
        and not rows_of["validation"]
        and not any(p.has_templates for p in parts)
    ):
        log.warning(
            "%s: there is no validation split: the %d test videos are the validation split, as is usual for UCF101, HMDB51 "
            "and Diving48",
            folder, len(rows_of["test"]),
        )  # fmt: skip
        rows_of = rows_of | {
            "validation": [row._replace(split="validation") for row in rows_of["test"]],
            "test": [],
        }
    rows = [row for split in SPLITS for row in rows_of[split]]
    for split in ("train", "validation") if trained else ("validation",):
        if not rows_of[split] and not any(part.is_table for part in parts):
            raise _missing(
                folder, contents, f"{split}.json", f"rows of the split {split}", "add a file of them"
            )
    for row in rows:
        if row.label is None and row.split != "test":
            raise UserError(
                f"{row.file}, row {row.row} (id {row.id}): has no class, which {row.split} needs: fix the row, or take a "
                "file that has the classes (in a column `label` or, in JSON, a key `template` or `label`)"
            )
    first = 0
    if chosen:
        names, source, first = chosen.names, chosen.file.name, chosen.first
    elif all(part.is_table for part in parts) or all(isinstance(row.label, int | None) for row in rows):
        names, source = _classes_of_rows(rows), "the rows of train"
    else:
        raise _missing(
            folder, contents, "labels.json", "names of the classes",
            "add a text file with a name on each line, in the order of the numbers, or give the rows a header such as path,label",
        )  # fmt: skip
    test = rows_of["test"]
    if test and len(names) > 1 and all(row.label == 0 for row in test):
        log.warning(
            "%s: every test row has class 0, so these rows count as rows without a class", test[0].file
        )
        rows = [row._replace(label=None) if row.split == "test" else row for row in rows]
    table = _checked_table(names, source, rows, first)
    if len(table["class"].dropna().unique()) == 1:
        raise UserError(
            f"{rows[0].file}: every row of all files has the class {names[table['class'].dropna().iloc[0]]!r}, so there is "
            "nothing to learn: check which column holds the classes, or add the rows of the other classes"
        )
    return names, table


def read_label_file(file: Path) -> Content | None:
    """Read a file of classes or of videos, whatever its format; the content determines it.

    Args:
        file: The file. If its rows do not name their split, its name must.

    Returns:
        Its classes or videos; None, with a warning, for a file that is neither.

    Raises:
        UserError: The file is damaged, empty or not understood, or nothing gives the split.
    """
    try:
        # Some editors begin a file with a byte order mark, which "utf-8-sig" removes.
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}): save it as UTF-8") from error
    lines = [(row, line.strip()) for row, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{file}: is empty: fill it, or move it away")
    if re.match(r"\s*(<!doctype html|<html|<\?xml)", text, re.IGNORECASE):
        raise UserError(f"{file}: is a web page, not a label file: its download failed, so download it again")
    if text.startswith("version https://git-lfs."):
        raise UserError(
            f"{file}: is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
        )
    is_json = file.suffix.lower() == ".json" or re.match(r'\s*[\[{]\s*["{\]}]', text)
    content = read_json(file, text) if is_json else read_text(file, lines)
    if isinstance(content, LabelRows):
        if not content.rows and not content.unused:
            raise UserError(f"{file}: holds no rows: add them, or move the file away")
        # Labels are read as numbers only if all of them are numbers.
        numbers = [as_index(row.label) for row in content.rows]
        if [number is None for number in numbers] == [row.label is None for row in content.rows]:
            content.rows = [
                row._replace(label=number) for row, number in zip(content.rows, numbers, strict=True)
            ]
    return content


def class_warnings(classes: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """Find splits and classes from which little can be learnt.

    Args:
        classes: Class names.
        rows: The columns ``split`` and ``class``, with a row for each video.

    Returns:
        A sentence for each split with one class, if another has several, and one for all classes without a training video,
        if there are training videos.
    """
    classes_of = {
        split: [int(number) for number in rows.loc[rows["split"] == split, "class"].dropna().unique()]
        for split in SPLITS
    }
    sentences = [
        f"all videos of the split {split} have the class {classes[found[0]]!r}"
        for split, found in classes_of.items()
        if len(found) == 1 and max(map(len, classes_of.values())) > 1
    ]
    missing = sorted(set(range(len(classes))) - set(classes_of["train"]))
    # Labels without a training split are enough for networks that are imported.
    if missing and (rows["split"] == "train").any():
        names = ", ".join(repr(classes[number]) for number in missing[:3])
        sentences.append(f"no training video for {len(missing)} of {len(classes)} classes, such as {names}")
    return sentences


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
        partial: Whether the labels are deliberately only a part of the data set; then nothing is compared.
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


def _check_templates(parts: list[LabelRows]) -> None:
    """Refuse rows of Something-Something V2 whose classes are missing: their `label` describes one video."""
    complete = [part for part in parts if part.has_templates]
    for part in parts if complete else []:
        row = next((row for row in part.rows if row.label is not None), None)
        if row and not part.has_templates and part.file.suffix.lower() == ".json":
            raise UserError(
                f"{part.file}, row {row.row} (id {row.id}): has no class: its rows have no key `template`, which those of "
                f"{complete[0].file.name} have: take all files from one release"
            )


def _of_one_split(files: list[Path]) -> list[Path]:
    """Keep the files of the first of several numbered splits, and those without a number."""
    numbers = {file: int(match[1]) for file in files if (match := _NUMBER_OF_SPLIT.search(file.stem))}
    first = min(numbers.values(), default=0)
    others = sorted(set(numbers.values()) - {first})
    if others:
        log.warning(
            "%s: only split %d is read, not %s: to use another, move the files of the other splits away",
            files[0].parent, first, " and ".join(map(str, others)),
        )  # fmt: skip
    return [file for file in files if numbers.get(file, first) == first]


def _missing(folder: Path, contents: dict[Path, Content | None], name: str, what: str, fix: str) -> UserError:
    """The error for a missing file, with what the files of the folder hold."""
    if any(isinstance(content, LabelRows) and content.has_templates for content in contents.values()):
        return UserError(
            f"{folder}: {name} (or something-something-v2-{name}) is missing: take it from the labels of "
            f"Something-Something V2, {SOURCE}, or set `data.labels` to the folder that has it"
        )
    found = [f"{file.name}: {_summary(content)}" for file, content in list(contents.items())[:5]]
    found += ["..."] * (len(contents) > 5)
    if not contents:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        inside = [path for path in entries if path.is_dir() and list_label_files(path)]
        if inside:
            return UserError(
                f"{folder}: holds no label files, but its folder {inside[0].name} does: set `data.labels` to {inside[0]}"
            )
        found = [
            f"no file that ends in {', '.join(ENDINGS)}",
            *(f"{path.name}: not read" for path in entries[:3]),
        ]
    return UserError(
        f"{folder}: there are no {what} (found: {'; '.join(found)}): {fix}; config/README.md shows the formats"
    )


def _summary(content: Content | None) -> str:
    if content is None:
        return "ignored"
    if isinstance(content, ClassList):
        return f"{len(content.names)} classes, such as {content.names[0][:40]!r}"
    counts = Counter(row.split for row in content.rows)
    return ", ".join(f"{count} {split} rows" for split, count in counts.items())


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


def _rows_of_split(parts: list[LabelRows], split: str) -> list[LabelRow]:
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
    return [row for rows in files.values() for row in rows]


def _with_classes_of_folders(rows: list[LabelRow], names: list[str]) -> list[LabelRow]:
    """Take the classes of rows without a class from their folders (``Archery/v_Archery_g01_c01.avi``), if all lie in such folders."""
    folders = [re.split(r"[/\\]", row.path)[-2:-1] for row in rows]
    is_known = all(
        folder and folder[0] in names for folder, row in zip(folders, rows, strict=True) if row.label is None
    )
    if not is_known or all(row.label is not None for row in rows):
        return rows
    log.info("%s: the folders of the videos are their classes", rows[0].file)
    return [
        row._replace(label=folder[0]) if row.label is None else row
        for folder, row in zip(folders, rows, strict=True)
    ]


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
    trained = sum(row.split == "train" for row in rows)
    others = [row.label in names for row in rows if row.split != "train" and row.label is not None]
    # A part of Kinetics has few videos of each class, too, but most of its classes appear again.
    if len(names) > 100 and 2 * len(names) > trained > 0 and 2 * sum(others) < len(others):
        raise UserError(
            f"{rows[0].file}: {len(names)} classes for {trained} training videos, such as {rows[0].label!r}: these are "
            "descriptions and not classes; give the classes in a column `label`, or add a file of the class names"
        )
    log.info("no file of class names: the names are the %d names in the rows, sorted", len(names))
    return sorted(names)


def _checked_table(names: list[str], source: str, rows: list[LabelRow], first_number: int) -> pd.DataFrame:
    """Check the rows of all files together: known classes, one video, class and split for each id."""
    index_of: dict[str | int | None, int] = {name: index for index, name in enumerate(names)}
    index_of |= {index + first_number: index for index in range(len(names))}
    first_of: dict[str, LabelRow] = {}
    repeated = []
    for row in rows:
        if row.label is not None and row.label not in index_of:
            raise _unknown_class(row, names, source, first_number)
        first = first_of.setdefault(row.id, row)
        where, other = f"{row.file}, row {row.row}", f"row {first.row} of {first.file.name}"
        if row.path != first.path:
            raise UserError(
                f"{where}: {row.path!r} ({row.split}, class {row.label!r}) and {first.path!r} ({first.split}, class "
                f"{first.label!r}; {other}) have the same name, but a video is found by its name alone: give each video file "
                "a name of its own, such as walk_clip1.mp4 and run_clip1.mp4, in `data.videos` and in the labels"
            )
        if (row.split, row.label) != (first.split, first.label):
            raise UserError(
                f"{where}: {row.path!r} is in {row.split} with the class {row.label!r}, but in {first.split} with the class "
                f"{first.label!r} in {other}: remove the wrong row"
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


def _unknown_class(row: LabelRow, names: list[str], source: str, first_number: int) -> UserError:
    hint = "fix the row, take all files from one release, or add the class (or a file of the class names)"
    if row.label == len(names) and first_number == 0:
        hint += (
            f"; if the rows count the classes from 1, {source} must, too, with lines such as `1 {names[0]}`"
        )
    elif row.row == 1 and row.file.suffix.lower() != ".json":
        hint += "; if the row is a header, call its columns path and label"
    return UserError(
        f"{row.file}, row {row.row} (id {row.id}): the class {row.label!r} is not one of the {len(names)} classes "
        f"({first_number} to {first_number + len(names) - 1}) of {source}: {hint}"
    )
