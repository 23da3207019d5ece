"""Label files in text: tables with a header, lists without one, and lists of classes.

A reader returns None for a file of another format, and the first reader that recognises a file reads it. Each gets the
lines that are not empty, with their numbers.
"""

import csv
import logging
import re
from collections import Counter
from pathlib import Path

from ffnrepro.data.label_formats import (
    VIDEO_ENDINGS,
    ClassList,
    LabelRows,
    class_list,
    column_word,
    columns_of,
    indexed_classes,
    is_named_as_classes,
    is_path,
    is_video_file,
    may_list_classes,
    split_in,
    split_of_file,
    unquoted,
)
from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

Line = tuple[int, str]

# The header of a list of one column, and of a list of classes with their numbers. Few words, because a class may be called
# "target".
_COLUMN_HEADERS = {
    "id", "path", "file", "filename", "video", "videoid", "label", "labels", "class", "classes", "classname", "name", "names",
    "category", "categories", "index", "labelid", "classid",
}  # fmt: skip
_HMDB51_FILE = re.compile(r"(.+)_test_split\d+", re.IGNORECASE)
_HMDB51_LINE = re.compile(r"(.+\S)[ \t]+([012])")
_NUMBERED_CLASS = re.compile(r"(?P<index>\d+)[ \t]*[ \t;,][ \t]*(?P<name>\S.*)")
_CLASS_WITH_NUMBER = re.compile(r"(?P<name>\S.*?)[ \t]*[ \t;,][ \t]*(?P<index>\d+)")
_PATH_AND_NUMBERS = re.compile(r"([^;,\t]+?)((?:[ \t]*[ \t,;][ \t]*-?\d+)+)")
_PATH_AND_NAME = re.compile(
    rf"(\S.*?(?:{'|'.join(map(re.escape, VIDEO_ENDINGS))}))[ \t]+(\S.*)", re.IGNORECASE
)


def read_text(file: Path, lines: list[Line]) -> ClassList | LabelRows | None:
    """Read a text file.

    Args:
        file: The file, whose name may give the split of its rows.
        lines: Its lines that are not empty, with their numbers.

    Returns:
        Its classes or videos; None, with a warning, if it lists frames.

    Raises:
        UserError: A row is damaged or not understood, or nothing gives the split.
    """
    if _lists_frames(lines):
        log.warning("%s: ignored, because it lists frames (`%s`), not videos", file, lines[0][1])
        return None
    readers = (_read_hmdb51, _read_numbered_classes, _read_table, _read_numbers, _read_names, _read_column)
    return next(content for reader in readers if (content := reader(file, lines)) is not None)


def _lists_frames(lines: list[Line]) -> bool:
    """Check for a table with a row for each frame, as SlowFast has for Something-Something V2 and Charades."""
    words = {column_word(cell) for cell in _cells(lines[0][1], _delimiter(lines[0][1]))}
    return {"frameid", "path"} <= words


def _read_hmdb51(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read the list of one class of HMDB51, ``brush_hair_test_split1.txt``: 1 is for training, 2 for testing, 0 for neither."""
    name = _HMDB51_FILE.fullmatch(file.stem)
    matches = [_HMDB51_LINE.fullmatch(line) for _, line in lines]
    if name is None or not all(matches):
        return None
    rows = LabelRows(file, is_table=True)
    for (row, _), match in zip(lines, matches, strict=True):
        if match and match[2] != "0":
            rows.add(row, match[1], "train" if match[2] == "1" else "test", name[1])
    rows.unused = len(lines) - len(rows.rows)
    return rows


def _read_numbered_classes(file: Path, lines: list[Line]) -> ClassList | None:
    """Read classes as ``0 name``, ``0;name`` or ``0,name``; or as ``name 0``, if the name of the file says that it lists classes."""
    if not may_list_classes(file):
        return None
    lines = lines[1:] if _is_header(lines[0][1], columns=2) else lines
    patterns = [_NUMBERED_CLASS]
    if is_named_as_classes(file) and split_in(file.stem) is None:
        patterns.append(_CLASS_WITH_NUMBER)
    for pattern in patterns:
        matches = [pattern.fullmatch(line) for _, line in lines]
        pairs = [(unquoted(match["name"]), match["index"]) for match in matches if match]
        # Rows of videos may begin with numbers, too: their ids. But ids leave out most numbers.
        if (
            not pairs
            or len(pairs) < len(matches)
            or max(int(number) for _, number in pairs) >= 2 * len(pairs)
        ):
            continue
        # train_labels.csv may hold rows of videos. Then the names repeat, or are numbers.
        names = {name for name, _ in pairs if re.search(r"[^\W\d]", name)}
        if names and not (split_in(file.stem) and len(names) < len(pairs)):
            return indexed_classes(file, pairs)
    return None


def _read_table(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a table whose header names its columns, such as ``path,label,split`` or ``id,label``."""
    delimiter = _delimiter(lines[0][1])
    header = _cells(lines[0][1], delimiter)
    names = [column_word(cell) for cell in header]
    columns = columns_of(names)
    if any(map(is_path, header)) or len(header) < 2 or not (columns.video or columns.label):
        return None
    if not (columns.video and (columns.label or columns.split)):
        # Names of classes may be words of a header, too: `12,y`.
        is_row = delimiter == " " or re.search(r"\d", lines[0][1])
        if is_row or (split_in(file.stem) is None and not columns.split):
            return None
        if columns.video is None:
            raise UserError(
                f"{file}, row 1: none of its columns {', '.join(header)} is called path (or video, file, id): rename the "
                "column of the videos"
            )
        if split_in(file.stem) != "test":
            raise UserError(
                f"{file}, row 1: none of its columns {', '.join(header)} is called label (or class, category): rename the "
                "column of the classes"
            )
    rows = LabelRows(file, is_table=True)
    file_split = None if columns.split else split_of_file(file)
    for row, line in lines[1:]:
        values = _cells(line, delimiter)
        if len(values) != len(names):
            raise UserError(
                f"{file}, row {row}: has {len(values)} values for the {len(names)} columns {delimiter.join(header)}: fix "
                f"the row (quote a value that holds {delimiter!r})"
            )
        rows.add_record(row, dict(zip(names, values, strict=True)), columns, file_split)
    return rows


def _read_numbers(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a list ``file class`` or, from TSM's code, ``folder frames class``, separated by spaces, commas or semicolons.

    Frame counts are ignored, because they belong to an extraction at another rate.
    """
    matches = [_PATH_AND_NUMBERS.fullmatch(line) for _, line in lines]
    counts = [len(re.findall(r"\d+", match[2])) if match else 0 for match in matches]
    most = Counter(counts).most_common(1)[0][0]
    # Names of classes may end with a number, too.
    if most == 0 or (most != 2 and split_in(file.stem) is None):
        return None
    if most > 2:
        raise UserError(
            f"{file}, row {lines[0][0]}: {lines[0][1][:60]!r} has {counts[0]} numbers after the path, but a list has "
            "`file class` or `folder frames class`: keep one class per video, in rows for whole videos"
        )
    form = "file class" if most == 1 else "folder frames class"
    rows, split = LabelRows(file), split_of_file(file)
    for (row, line), match, count in zip(lines, matches, counts, strict=True):
        if match is None or count != most:
            raise _other_form(file, row, line, form)
        rows.add(row, unquoted(match[1]), split, match[2].replace(",", " ").replace(";", " ").split()[-1])
    return rows


def _read_names(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a list of videos and class names: ``id;class`` as in Something-Something V1 and Jester, or with another separator."""
    for delimiter in (";", "\t", ","):
        cells = [_cells(line, delimiter) for _, line in lines]
        width = Counter(map(len, cells)).most_common(1)[0][0]
        # Names of classes may hold commas, too.
        if width > 1 and (delimiter == ";" or split_in(file.stem)):
            break
    else:
        matches = [_PATH_AND_NAME.fullmatch(line) for _, line in lines]
        if 2 * sum(map(bool, matches)) <= len(matches):
            return None
        delimiter, width = " ", 2
        cells = [
            list(match.groups()) if match else [line] for (_, line), match in zip(lines, matches, strict=True)
        ]
    form = delimiter.join(("id", "class"))
    if width > 2:
        raise UserError(
            f"{file}, row {lines[0][0]}: {lines[0][1][:60]!r} has {len(cells[0])} columns, but a list without a header has "
            f"`{form}`: add a header such as {delimiter.join(('path', 'label'))}"
        )
    # Names of classes may hold a slash, but they do not end as video files do.
    paths = [sum(is_video_file(row[column]) for row in cells if len(row) == 2) for column in (0, 1)]
    rows, split = LabelRows(file), split_of_file(file)
    for (row, line), values in zip(lines, cells, strict=True):
        is_header = (
            row == lines[0][0] and max(paths) == len(lines) - 1 > 0 and not any(map(is_video_file, values))
        )
        if len(values) != 2 or not all(values) or is_header:
            raise _other_form(file, row, line, form)
        path, label = values if paths[0] >= paths[1] else reversed(values)
        rows.add(row, path, split, label)
    return rows


def _read_column(file: Path, lines: list[Line]) -> ClassList | LabelRows:
    """Read one column, with or without a header: ids if the name of the file gives a split, otherwise class names."""
    if len(lines) > 1 and _is_header(lines[0][1], columns=1):
        lines = lines[1:]
    split = split_in(file.stem)
    if split is None and 2 * sum(is_video_file(re.split(r"[,;\t]", line)[0]) for _, line in lines) > len(
        lines
    ):
        split_of_file(file)
    # Ids without classes are useful for the test split only.
    if split is None or (may_list_classes(file) and split != "test"):
        return class_list(file, [unquoted(line) for _, line in lines])
    rows = LabelRows(file)
    for row, line in lines:
        rows.add(row, unquoted(line), split, None)
    return rows


def _other_form(file: Path, row: int, line: str, form: str) -> UserError:
    is_header = row == 1 and not re.search(r"\d", line)
    header = " or, if it is a header, call its columns path and label" if is_header else ""
    return UserError(
        f"{file}, row {row}: {line[:60]!r} is not of the form `{form}` (one class for each video), as most rows are: fix the "
        f"row{header}"
    )


def _delimiter(line: str) -> str:
    # Names of classes may hold commas.
    return next((delimiter for delimiter in (";", "\t", ",") if delimiter in line), " ")


def _is_header(line: str, *, columns: int) -> bool:
    cells = _cells(line, _delimiter(line))
    return len(cells) == columns and all(column_word(cell) in _COLUMN_HEADERS for cell in cells)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
