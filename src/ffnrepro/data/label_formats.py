"""The formats of label files: one reader for each, chosen by what the file holds.

A reader returns None for a file of another format, and the first reader that recognises a file reads it. The name of a
file only tells the split of its rows, and only where the rows do not tell it.
"""

import csv
import json
import re
from collections.abc import Callable
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
_SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
_VIDEO_ENDING = re.compile(rf"({'|'.join(map(re.escape, VIDEO_ENDINGS))})$", re.IGNORECASE)

_FRAMES_LIST = re.compile(r"(.+?)[ \t]+(\d+)[ \t]+(\d+)")
_NUMBER_LIST = re.compile(r"(.+?)[ \t]+(\d+)")
_NUMBERED_CLASS = re.compile(r"(\d+)[ \t]*[ \t;,][ \t]*(\S.*)")
_ID_COLUMNS = ("path", "id", "file", "video")
_CLASS_COLUMNS = ("label", "class")
_HEADERS = {*_ID_COLUMNS, *_CLASS_COLUMNS, "name", "labels", "classes", "names", "category", "categories"}


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their indices."""

    file: Path
    names: list[str]


class LabelRow(NamedTuple):
    """A video of a label file.

    Attributes:
        row: Its place in the file, from 1.
        id: Its id.
        path: Its path as written in the file, from which the id is taken.
        split: ``train``, ``validation`` or ``test``.
        label: The name or the number of its class; None in a test split without answers.
    """

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
        split_in_rows: Whether the rows tell their split; otherwise the name of the file does.
        defines_classes: Whether, without a list of classes, the class names in the rows are the classes.
        rows: The videos, in the order of the file.
    """

    file: Path
    split_in_rows: bool = False
    defines_classes: bool = False
    rows: list[LabelRow] = field(default_factory=list)

    def add(self, row: int, path: str, split: str, label: str | int | None) -> None:
        """Add a video.

        Raises:
            UserError: It has no id, or no class although it is not of the test split.
        """
        video = id_of(path)
        if not video:
            raise UserError(f"{self.file}, row {row}: has no id: fix the row or download the file again")
        if label in (None, "") and split != "test":
            raise UserError(
                f"{self.file}, row {row} (id {video}): has no class, which {split} needs: fix the row or take the file "
                "that has classes"
            )
        self.rows.append(LabelRow(row, video, path.strip(), split, None if label == "" else label))


Content = ClassList | LabelRows
Line = tuple[int, str]


def read_label_file(file: Path) -> Content | None:
    """Read a file of classes or of videos, whatever its format.

    Args:
        file: A file in one of the formats below.

    Returns:
        Its classes or videos; None for a JSON object that is neither.

    Raises:
        UserError: The file is damaged, or neither its rows nor its name tell the split.
    """
    text = _read_text(file)
    if file.suffix.lower() == ".json" or re.match(r'\s*[\[{]\s*["{\]}]', text):
        return _read_json_file(file, text)
    lines = [(row, line.strip()) for row, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return next(content for reader in _READERS if (content := reader(file, lines)) is not None)


def is_named_as_classes(file: Path) -> bool:
    """Check whether the name of a file says that it lists classes."""
    return any(word in file.stem.lower() for word in ("label", "class", "categor"))


def split_in(words: str) -> str | None:
    """Find the one split that a file name or a text names; None where there is none or more than one."""
    found = {word.lower() for word in _SPLIT_WORD.findall(words)}
    return _SPLIT_OF[found.pop()] if len(found) == 1 else None


def id_of(path: str) -> str:
    """Return the id of a video: the last part of its path, without the ending of a video file."""
    return _VIDEO_ENDING.sub("", path.strip().replace("\\", "/").rstrip("/").rpartition("/")[2])


def _read_text(file: Path) -> str:
    try:
        # Some editors begin a file with a byte order mark, which "utf-8-sig" removes.
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as UTF-8 text ({error}): save it as UTF-8, or download it again"
        ) from error
    if not text.strip():
        raise UserError(f"{file}: is empty: fix it, or download it again")
    return text


def _may_list_classes(file: Path) -> bool:
    """Check whether the name of a file allows a list of classes, as train_classes.txt does, too."""
    return split_in(file.stem) is None or is_named_as_classes(file)


def _split_of_file(file: Path) -> str:
    split = split_in(file.stem)
    if split is None:
        raise UserError(
            f"{file}: has rows of videos, but neither the rows nor its name tell their split: put train, validation or "
            "test into its name"
        )
    return split


# Something-Something V2: {class: index}, and lists of {"id": ..., "template": ...}


def _read_json_file(file: Path, text: str) -> Content | None:
    is_object = text.lstrip().startswith("{")
    try:
        # An object is read as pairs, because a dictionary would silently drop a repeated key.
        content = json.loads(text, object_pairs_hook=list if is_object else None)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not complete JSON ({error}): fix it, or download it again") from error
    split = split_in(file.stem)
    if is_object and _may_list_classes(file):
        has_indices = all(
            _as_index(name) is not None or _as_index(value) is not None for name, value in content
        )
        if has_indices or (split is None and is_named_as_classes(file)):
            return ClassList(file, _class_names(file, content))
        if split is None:
            return None
    if split is None and isinstance(content, list):
        raise UserError(
            f'{file}: is not of the form {{"class": "index"}}, and its name tells no split of rows: take '
            f"labels.json from {SOURCE}, or put train, validation or test into the name"
        )
    if is_object or not isinstance(content, list):
        raise UserError(f'{file}: is not a list of rows {{"id": ...}}: take {split}.json from {SOURCE}')
    if not content:
        raise UserError(f"{file}: holds no rows: fix it, or download it again")
    return _template_rows(file, content, split or "")


def _template_rows(file: Path, content: list[Any], split: str) -> LabelRows:
    rows = LabelRows(file)
    for row, entry in enumerate(content, start=1):
        video = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(video, bool) or not isinstance(video, str | int) or video == "":
            raise UserError(f'{file}, row {row}: has no "id": fix the row or download the file again')
        template = entry.get("template")
        if (not isinstance(template, str) or not template) and split != "test":
            raise UserError(
                f'{file}, row {row} (id {video}): has no "template", which names the class: take the file with '
                f"templates from {SOURCE}"
            )
        # Only the brackets are removed: "Moving [something] up" has the class "Moving something up".
        label = template.replace("[", "").replace("]", "") if isinstance(template, str) else None
        rows.add(row, str(video), split, label)
    return rows


def _as_index(value: object) -> int | None:
    """Read a class index, which some releases write as text and others as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def _class_names(file: Path, pairs: list[tuple[Any, Any]]) -> list[str]:
    """Order the names of ``{class: index}``, or of ``{index: class}``, by index."""
    if not pairs:
        raise UserError(f"{file}: holds no classes: fix it, or download it again")
    if all(_as_index(value) is None and _as_index(key) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
    names: dict[int, str] = {}
    for name, value in pairs:
        index = _as_index(value)
        if index is None or not isinstance(name, str):
            raise UserError(
                f"{file}: class {name!r} has {value!r} in place of an index: fix it, or download it again"
            )
        if index in names:
            raise UserError(
                f"{file}: classes {names[index]!r} and {name!r} have the same index {index}: fix it, or download it again"
            )
        names[index] = name
    gap = next((index for index in range(len(names)) if index not in names), None)
    if gap is not None:
        raise UserError(
            f"{file}: no class has index {gap}, though {names[max(names)]!r} has {max(names)}: indices must be 0 to "
            f"{len(names) - 1} for {len(names)} classes: fix it, or download it again"
        )
    return _distinct(file, [names[index] for index in range(len(names))])


def _distinct(file: Path, names: list[str]) -> list[str]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            raise UserError(
                f"{file}: class {name!r} has two indices, {first[name]} and {index}: remove one or download it again"
            )
    return names


# Text files. Each reader gets the lines that are not empty, with their numbers.


def _read_numbered_classes(file: Path, lines: list[Line]) -> ClassList | None:
    """Read classes as ``0 name``, ``0;name`` or ``0,name``, with or without the header ``id,name``."""
    if not _may_list_classes(file):
        return None
    header = re.fullmatch(r"(id|index)[ \t]*[;,\t][ \t]*(name|class|label)", lines[0][1], re.IGNORECASE)
    matches = [_NUMBERED_CLASS.fullmatch(line) for _, line in lines[1 if header else 0 :]]
    pairs = [(_unquoted(match[2]), match[1]) for match in matches if match]
    # Ids of videos are numbers in front of something, too, but they leave out most numbers.
    if not pairs or len(pairs) < len(matches) or max(int(number) for _, number in pairs) >= 2 * len(pairs):
        return None
    # train_labels.csv may hold rows of videos. Then names repeat, or are numbers.
    names = {name for name, _ in pairs if re.search(r"[^\W\d]", name)}
    if split_in(file.stem) and len(names) < len(pairs):
        return None
    return ClassList(file, _class_names(file, pairs))


def _read_kinetics(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read Kinetics: the header ``label,youtube_id,time_start,time_end,split``.

    The id is the name of the video file: ``{youtube_id}_{time_start:06d}_{time_end:06d}``.
    """
    columns, delimiter = _header(lines)
    if not {"youtube_id", "time_start", "time_end"} <= set(columns):
        return None

    def video_of(row: int, cells: dict[str, str]) -> str:
        start, end = cells["time_start"], cells["time_end"]
        try:
            return f"{cells['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}"
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{file}, row {row} (id {cells['youtube_id']}): has the times {start!r} and {end!r}, which are not "
                "seconds: fix the row or download the file again"
            ) from error

    return _table_rows(file, lines, columns, delimiter, video_of)


def _read_table(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a table with a header, such as ``path,label,split`` (a user's own data) or ``id,label``."""
    columns, delimiter = _header(lines)
    column = next((name for name in _ID_COLUMNS if name in columns), None)
    if column is None and "split" in columns and {*_CLASS_COLUMNS} & set(columns):
        raise UserError(
            f"{file}, row 1: none of its columns {', '.join(columns)} is called path: rename the column of the videos"
        )
    if column is None or not {*_CLASS_COLUMNS, "split"} & set(columns):
        return None
    return _table_rows(file, lines, columns, delimiter, lambda _, cells: cells[column])


def _header(lines: list[Line]) -> tuple[list[str], str]:
    """Split the first line at the delimiter that is the most frequent in it."""
    delimiter = max(",;\t", key=lines[0][1].count)
    return [cell.lower() for cell in _cells(lines[0][1], delimiter)], delimiter


def _table_rows(
    file: Path,
    lines: list[Line],
    columns: list[str],
    delimiter: str,
    video_of: Callable[[int, dict[str, str]], str],
) -> LabelRows:
    rows = LabelRows(file, split_in_rows="split" in columns, defines_classes=True)
    file_split = None if rows.split_in_rows else _split_of_file(file)
    class_column = next((name for name in _CLASS_COLUMNS if name in columns), None)
    if len(lines) == 1:
        raise UserError(f"{file}: holds a header and no rows: fix it, or download it again")
    for row, line in lines[1:]:
        values = _cells(line, delimiter)
        if len(values) != len(columns):
            raise UserError(
                f"{file}, row {row}: has {len(values)} values for the {len(columns)} columns "
                f"{delimiter.join(columns)}: fix the row (quote a value that holds {delimiter!r})"
            )
        cells = dict(zip(columns, values, strict=True))
        video = video_of(row, cells)
        split = file_split or split_in(cells["split"])
        if split is None:
            raise UserError(
                f"{file}, row {row} (id {video}): has the split {cells['split']!r}: write train, validation or test"
            )
        if class_column is None and split != "test":
            raise UserError(
                f"{file}, row 1: none of its columns {', '.join(columns)} is called label, which {split} needs: rename "
                "the column of the classes, or take the file that has classes"
            )
        rows.add(row, video, split, cells[class_column] if class_column else None)
    return _with_numbers(rows)


def _read_frames_list(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read lists as in TSM's code: ``folder frames class``, where another file holds the order of classes.

    The frame counts are ignored, because they are those of an extraction at another rate.
    """
    return _read_list(file, lines, _FRAMES_LIST, "folder frames class")


def _read_number_list(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read lists ``file class``."""
    # Names of classes can end with a number, too.
    if split_in(file.stem) is None and not _VIDEO_ENDING.search(lines[0][1].split()[0]):
        return None
    return _read_list(file, lines, _NUMBER_LIST, "file class")


def _read_list(file: Path, lines: list[Line], pattern: re.Pattern[str], form: str) -> LabelRows | None:
    matches = [pattern.fullmatch(line) for _, line in lines]
    # Not all lines have to match, so that the error for a list with a bad row can name the row.
    if 2 * sum(match is not None for match in matches) <= len(matches):
        return None
    rows, split = LabelRows(file), _split_of_file(file)
    for (row, line), match in zip(lines, matches, strict=True):
        if match is None:
            raise UserError(f"{file}, row {row}: {line[:60]!r} is not of the form `{form}`: fix the row")
        rows.add(row, match[1], split, int(match[match.re.groups]))
    return rows


def _read_pairs(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read ``id;label`` without a header, as in Something-Something V1 and in V2's test answers."""
    split = split_in(file.stem)
    counts = {delimiter: sum(delimiter in line for _, line in lines) for delimiter in ";,\t"}
    delimiter = next((mark for mark, count in counts.items() if 2 * count > len(lines)), None)
    # Names of classes can hold commas, and the name of a list of classes tells no split.
    if delimiter is None or (split is None and delimiter != ";"):
        return None
    rows, split = LabelRows(file), _split_of_file(file)
    for row, line in lines:
        cells = _cells(line, delimiter)
        if len(cells) != 2 or not all(cells):
            raise UserError(
                f"{file}, row {row}: {line[:60]!r} is not of the form id{delimiter}class: fix the row (quote a class "
                f"that holds {delimiter!r}) or download the file again"
            )
        rows.add(row, cells[0], split, cells[1])
    return _with_numbers(rows)


def _read_column(file: Path, lines: list[Line]) -> Content:
    """Read one column, with or without a header: ids if the name of the file tells a split, otherwise class names."""
    if len(lines) > 1 and _unquoted(lines[0][1]).lower() in _HEADERS:
        lines = lines[1:]
    split = split_in(file.stem)
    # Ids alone are useful for the test split only.
    if split is None or (_may_list_classes(file) and split != "test"):
        return ClassList(file, _distinct(file, [_unquoted(line) for _, line in lines]))
    rows = LabelRows(file)
    for row, line in lines:
        rows.add(row, _unquoted(line), split, None)
    return rows


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _unquoted(text: str) -> str:
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def _with_numbers(rows: LabelRows) -> LabelRows:
    """Turn the classes into numbers if all of them are numbers."""
    numbered = [row._replace(label=_as_index(row.label)) for row in rows.rows]
    if all((new.label is None) == (old.label is None) for new, old in zip(numbered, rows.rows, strict=True)):
        rows.rows = numbered
    return rows


_READERS: tuple[Callable[[Path, list[Line]], Content | None], ...] = (
    _read_numbered_classes,
    _read_kinetics,
    _read_table,
    _read_frames_list,
    _read_number_list,
    _read_pairs,
    _read_column,
)
