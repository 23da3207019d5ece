"""The formats of label files: one reader for each, chosen by the content of the file.

A reader returns None for a file of another format, and the first reader that recognises a file reads it. The name of a
file only gives the split of its rows, and only if the rows do not name it.
"""

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ffnrepro.errors import UserError

SPLITS = ("train", "validation", "test")
SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
VIDEO_ENDINGS = (
    ".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp",
)  # fmt: skip

_SPLIT_WORD = re.compile(
    r"(?<![a-z])(train|val|test)(?:ing|id|idate|idation)?(?:list|set|split)?(?![a-z])", re.IGNORECASE
)
_VIDEO_ENDING = re.compile(rf"({'|'.join(map(re.escape, VIDEO_ENDINGS))})$", re.IGNORECASE)

_NUMBERED_CLASS = re.compile(r"(\d+)[ \t]*[ \t;,][ \t]*(\S.*)")
_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
_ID_COLUMNS = ("path", "id", "file", "video")
_CLASS_COLUMNS = ("label", "class")
_HEADERS = {*_ID_COLUMNS, *_CLASS_COLUMNS, "name", "labels", "classes", "names", "category", "categories"}
# Lists without a header: the pattern of their lines, and whether the pattern alone distinguishes them from a list of class
# names, which may hold commas and end with a number. Frame counts are ignored, because they belong to an extraction at
# another rate.
_LISTS = {
    "folder frames class": (r"(.+?)[ \t]*[ \t,][ \t]*\d+[ \t]*[ \t,][ \t]*(\d+)", True),
    "file class": (r"(.+?)[ \t]+(\d+)", False),
    "id;class": (r"([^;]+);(.+)", True),
    "id,class": (r"([^,]+),(.+)", False),
    "id<tab>class": (r"([^\t]+)\t(.+)", False),
}


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their indices."""

    file: Path
    names: list[str]


class LabelRow(NamedTuple):
    """A video of a label file.

    Attributes:
        file: The file.
        row: Number of its row in the file, from 1.
        id: Id of the video.
        path: Path of the video as written in the file, from which the id is taken.
        split: ``train``, ``validation`` or ``test``.
        label: The name or the number of its class; None in a test split without answers.
    """

    file: Path
    row: int
    id: str
    path: str
    split: str
    label: str | int | None


@dataclass
class LabelRows:
    """The videos of a label file.

    Attributes:
        file: The file.
        is_table: Whether the file has a header. Rows of one split may be in several tables. Without a list of classes, the
            class names in the rows of tables are the classes.
        rows: The videos, in the order of the file.
    """

    file: Path
    is_table: bool = False
    rows: list[LabelRow] = field(default_factory=list)

    def add(self, row: int, path: str, split: str, label: str | None) -> None:
        """Add a video.

        Raises:
            UserError: It has no id, or it has no class and is not in the test split.
        """
        video = id_of(path)
        if not video or (not label and split != "test"):
            raise UserError(
                f"{self.file}, row {row} (id {video}): has no {'class' if video else 'id'}, which {split} needs: fix the row, "
                "or take the file that has classes (in a column `label` or, in JSON, a field `template`)"
            )
        self.rows.append(LabelRow(self.file, row, video, path.strip(), split, label or None))


Content = ClassList | LabelRows
Line = tuple[int, str]


def read_label_file(file: Path) -> Content | None:
    """Read a file of classes or of videos, whatever its format.

    Args:
        file: A file in one of the formats below.

    Returns:
        Its classes or videos; None for a JSON object that is neither.

    Raises:
        UserError: The file is damaged or empty, or neither its rows nor its name give the split.
    """
    try:
        # Some editors begin a file with a byte order mark, which "utf-8-sig" removes.
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as UTF-8 text ({error}): save it as UTF-8, or download it again"
        ) from error
    lines = [(row, line.strip()) for row, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{file}: is empty: fix it, or download it again")
    if file.suffix.lower() == ".json" or re.match(r'\s*[\[{]\s*["{\]}]', text):
        content = _read_json(file, text)
    else:
        readers = (_read_numbered_classes, _read_table, _read_list, _read_column)
        content = next(content for reader in readers if (content := reader(file, lines)) is not None)
    if isinstance(content, LabelRows):
        if not content.rows:
            raise UserError(f"{file}: holds no rows: fix it, or download it again")
        # Labels are read as numbers only if all of them are numbers.
        numbers = [_as_index(row.label) for row in content.rows]
        if [number is None for number in numbers] == [row.label is None for row in content.rows]:
            content.rows = [
                row._replace(label=number) for row, number in zip(content.rows, numbers, strict=True)
            ]
    return content


def is_named_as_classes(file: Path) -> bool:
    """Check whether the name of a file says that it lists classes."""
    return any(word in file.stem.lower() for word in ("label", "class", "categor"))


def split_in(text: str) -> str | None:
    """Find the one split that a file name or a text names; None where there is none or more than one."""
    words = [word.lower() for word in _SPLIT_WORD.findall(text)]
    found = {split for split in SPLITS for word in words if split.startswith(word)}
    return found.pop() if len(found) == 1 else None


def id_of(path: str) -> str:
    """Return the id of a video: the last part of its path, without the ending of a video file."""
    return _VIDEO_ENDING.sub("", path.strip().replace("\\", "/").rstrip("/").rpartition("/")[2])


def _may_list_classes(file: Path) -> bool:
    """Check whether the name of a file allows a list of classes, as train_classes.txt does, too."""
    return split_in(file.stem) is None or is_named_as_classes(file)


def _split_of_file(file: Path) -> str:
    split = split_in(file.stem)
    if split is None:
        raise UserError(
            f"{file}: neither its rows nor its name give the split of its videos: put train, validation or test into its "
            'name (a JSON file of class names has the form {"class": "index"})'
        )
    return split


def _read_json(file: Path, text: str) -> Content | None:
    """Read JSON as in Something-Something V2: ``{class: index}``, or a list of ``{"id": ..., "template": ...}``."""
    is_object = text.lstrip().startswith("{")
    try:
        # An object is read as pairs, because a dictionary would silently drop a repeated key.
        content = json.loads(text, object_pairs_hook=list if is_object else None)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not complete JSON ({error}): fix it, or download it again") from error
    if is_object and _may_list_classes(file):
        is_indexed = all(_as_index(key) is not None or _as_index(value) is not None for key, value in content)
        return _indexed_classes(file, content) if is_indexed or is_named_as_classes(file) else None
    split, rows = _split_of_file(file), LabelRows(file)
    if is_object or not isinstance(content, list):
        raise UserError(f'{file}: is not a list of rows {{"id": ...}}: take {split}.json from {SOURCE}')
    for row, entry in enumerate(content, start=1):
        video, template = (entry.get(key) if isinstance(entry, dict) else None for key in ("id", "template"))
        # Only the brackets are removed: "Moving [something] up" has the class "Moving something up".
        label = template.replace("[", "").replace("]", "") if isinstance(template, str) else None
        rows.add(row, str(video) if isinstance(video, str | int) else "", split, label)
    return rows


def _as_index(value: object) -> int | None:
    """Read a class index, which some releases write as text and others as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+\s*", value) else None


def _indexed_classes(file: Path, pairs: list[tuple[Any, Any]]) -> ClassList:
    """Order the names of ``{class: index}``, or of ``{index: class}``, by index."""
    if all(_as_index(value) is None and _as_index(key) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
    count_of = Counter(_as_index(value) for _, value in pairs)
    for name, value in pairs:
        index = _as_index(value)
        if not isinstance(name, str) or index not in range(len(pairs)) or count_of[index] > 1:
            raise UserError(
                f"{file}: class {name!r} has the index {value!r}, but the indices of {len(pairs)} classes must be 0 to "
                f"{len(pairs) - 1}, each once: fix it, or download it again"
            )
    return _class_list(file, [name for name, _ in sorted(pairs, key=lambda pair: int(pair[1]))])


def _class_list(file: Path, names: list[str]) -> ClassList:
    if not names:
        raise UserError(f"{file}: holds no classes: fix it, or download it again")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{file}: class {name!r} appears {count} times: keep one, or download the file again")
    return ClassList(file, names)


# Text files. Each reader gets the lines that are not empty, with their numbers.


def _read_numbered_classes(file: Path, lines: list[Line]) -> ClassList | None:
    """Read classes as ``0 name``, ``0;name`` or ``0,name``, with or without the header ``id,name``."""
    header = re.fullmatch(r"(id|index)[ \t]*[;,\t][ \t]*(name|class|label)", lines[0][1], re.IGNORECASE)
    matches = [_NUMBERED_CLASS.fullmatch(line) for _, line in lines[1 if header else 0 :]]
    pairs = [(_unquoted(match[2]), match[1]) for match in matches if match]
    # Rows of videos may begin with numbers, too: their ids. But ids leave out most numbers.
    if not pairs or len(pairs) < len(matches) or max(int(number) for _, number in pairs) >= 2 * len(pairs):
        return None
    # train_labels.csv may hold rows of videos. Then the names repeat, or are numbers.
    names = {name for name, _ in pairs if re.search(r"[^\W\d]", name)}
    if not _may_list_classes(file) or (split_in(file.stem) and len(names) < len(pairs)):
        return None
    return _indexed_classes(file, pairs)


def _read_table(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a table with a header, such as ``path,label,split`` (a user's own data) or ``id,label``.

    In Kinetics (``label,youtube_id,time_start,time_end,split``) the id is the name of the video file:
    ``{youtube_id}_{time_start:06d}_{time_end:06d}``.
    """
    delimiter = max(",;\t", key=lines[0][1].count)
    columns = [cell.lower() for cell in _cells(lines[0][1], delimiter)]
    is_kinetics = set(_KINETICS_COLUMNS) <= set(columns)
    id_column = next((name for name in _ID_COLUMNS if name in columns), None)
    class_column = next((name for name in _CLASS_COLUMNS if name in columns), None)
    if not is_kinetics and (id_column is None or not (class_column or "split" in columns)):
        if class_column and "split" in columns:
            raise UserError(
                f"{file}, row 1: none of its columns {', '.join(columns)} is called path: rename the column of the videos"
            )
        return None
    rows = LabelRows(file, is_table=True)
    file_split = None if "split" in columns else _split_of_file(file)
    for row, line in lines[1:]:
        values = _cells(line, delimiter)
        if len(values) != len(columns):
            raise UserError(
                f"{file}, row {row}: has {len(values)} values for the {len(columns)} columns "
                f"{delimiter.join(columns)}: fix the row (quote a value that holds {delimiter!r})"
            )
        cells = dict(zip(columns, values, strict=True))
        split = file_split or split_in(cells["split"])
        if split is None:
            raise UserError(f"{file}, row {row}: {line!r} has no split: write train, validation or test")
        if is_kinetics:
            video, *times = (cells[name] for name in _KINETICS_COLUMNS)
            try:
                start, end = (int(float(time)) for time in times)
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{file}, row {row} (id {video}): has the times {times}, which are not seconds: fix the row or "
                    "download the file again"
                ) from error
        path = f"{video}_{start:06d}_{end:06d}" if is_kinetics else cells[id_column or ""]
        rows.add(row, path, split, cells[class_column] if class_column else None)
    return rows


def _read_list(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a list without a header.

    The forms come from TSM's code, other code, Something-Something V1, and the test answers of V2.
    """
    for form, (pattern, is_distinct) in _LISTS.items():
        matches = [re.fullmatch(pattern, line) for _, line in lines]
        # Not all lines have to match, so that the error for a list with a bad row can name the row.
        if 2 * sum(map(bool, matches)) < len(matches) or not (is_distinct or split_in(file.stem)):
            continue
        rows, split = LabelRows(file), _split_of_file(file)
        for (row, line), match in zip(lines, matches, strict=True):
            if match is None:
                raise UserError(f"{file}, row {row}: {line[:60]!r} is not of the form `{form}`: fix the row")
            rows.add(row, _unquoted(match[1]), split, _unquoted(match[2]))
        return rows
    return None


def _read_column(file: Path, lines: list[Line]) -> Content:
    """Read one column, with or without a header: ids if the name of the file gives a split, otherwise class names."""
    if len(lines) > 1 and _unquoted(lines[0][1]).lower() in _HEADERS:
        lines = lines[1:]
    split = split_in(file.stem)
    # Ids without classes are useful for the test split only.
    if split is None or (_may_list_classes(file) and split != "test"):
        return _class_list(file, [_unquoted(line) for _, line in lines])
    rows = LabelRows(file)
    for row, line in lines:
        rows.add(row, _unquoted(line), split, None)
    return rows


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
