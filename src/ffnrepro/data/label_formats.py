"""The formats of label files: one reader function each, told apart by what stands in the file.

A reader returns None for a file of another format; the first that knows the file reads it. The name of a file
says no more than the split of its rows, and that only where the rows do not.
"""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffnrepro.errors import UserError

SPLITS = ("train", "validation", "test")
SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"

_SPLIT_WORD = re.compile(
    r"(?<![a-z])(train|val|test)(?:ing|id|idate|idation)?(?:list|set|split)?(?![a-z])", re.IGNORECASE
)
_SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
_VIDEO_ENDING = re.compile(r"\.(webm|mp4|avi|mkv|mov|m4v|mpg|mpeg|wmv|flv|ogv|3gp)$", re.IGNORECASE)

_FRAMES_LIST = re.compile(r"(.+?)[ \t]+(\d+)[ \t]+(\d+)")
_NUMBER_LIST = re.compile(r"(.+?)[ \t]+(\d+)")
_NUMBERED_CLASS = re.compile(r"(\d+)[ \t]*[ \t;,][ \t]*(\S.*)")
_COLUMNS_OF_IDS = ("path", "id", "file", "video")
_COLUMNS_OF_CLASSES = ("label", "class")
_HEADERS = {
    *_COLUMNS_OF_IDS,
    *_COLUMNS_OF_CLASSES,
    "name",
    "labels",
    "classes",
    "names",
    "category",
    "categories",
}


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their indices."""

    file: Path
    names: list[str]


@dataclass
class LabelRows:
    """The videos of a file, as it has them.

    Attributes:
        file: Where they are from.
        rows: Of each video the place in the file, from 1.
        ids: Of each video.
        paths: Of each video the path that its id is of, as it stands there.
        splits: Of each video.
        classes: Of each video the name of its class, or its number, or None.
        split_in_rows: Whether the rows name their split; else the file's name does.
        makes_classes: Whether without a list of classes the names in the rows are the classes.
    """

    file: Path
    split_in_rows: bool = False
    makes_classes: bool = False
    rows: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: list[str | int | None] = field(default_factory=list)

    def add(self, row: int, path: str, split: str, class_: str | int | None) -> None:
        """Add a video; only test may lack a class."""
        video = id_of(path)
        if not video:
            raise UserError(f"{self.file}, row {row}: has no id: mend the row or download the file again")
        if class_ in (None, "") and split != "test":
            raise UserError(
                f"{self.file}, row {row} (id {video}): has no class, which {split} needs: mend the row or "
                "take the file that has classes"
            )
        self.rows.append(row)
        self.ids.append(video)
        self.paths.append(path.strip())
        self.splits.append(split)
        self.classes.append(class_ if class_ != "" else None)


Content = ClassList | LabelRows
Line = tuple[int, str]


def read_label_file(file: Path) -> Content | None:
    """Read a file of classes or of videos, whatever its format.

    Args:
        file: Of one of the formats below.

    Returns:
        What stands in it; None for a JSON object about something else.

    Raises:
        UserError: The file is damaged, or its split is told neither by its rows nor by its name.
    """
    text = _read_text(file)
    if file.suffix.lower() == ".json" or re.match(r'\s*[\[{]\s*["{\]}]', text):
        return _read_json_file(file, text)
    lines = [(row, line.strip()) for row, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return next(content for reader in _READERS if (content := reader(file, lines)) is not None)


def says_classes(file: Path) -> bool:
    """Tell whether a file's name says that it lists classes."""
    return any(word in file.stem.lower() for word in ("label", "class", "categor"))


def split_in(words: str) -> str | None:
    """Find the split that a file's name or a row's text says: train, validation or test, or None."""
    found = {word.lower() for word in _SPLIT_WORD.findall(words)}
    return _SPLIT_OF[found.pop()] if len(found) == 1 else None


def id_of(path: str) -> str:
    """Name a video as the index does: the last part of its path, without the ending of a video file."""
    return _VIDEO_ENDING.sub("", path.strip().replace("\\", "/").rstrip("/").rpartition("/")[2])


def _read_text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")  # some editors put a byte order mark before it
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as UTF-8 text ({error}): save it as UTF-8, or download it again"
        ) from error
    if not text.strip():
        raise UserError(f"{file}: is empty: mend it, or download it again")
    return text


def _may_list_classes(file: Path) -> bool:
    """Tell whether a file's name allows a list of classes: also train_classes.txt, which lists them for all splits."""
    return split_in(file.stem) is None or says_classes(file)


def _split_of_file(file: Path) -> str:
    split = split_in(file.stem)
    if split is None:
        raise UserError(
            f"{file}: has rows of videos, but neither they nor its name say of which split: put train, "
            "validation or test into its name"
        )
    return split


# Something-Something V2: {class: index}, and lists of {"id": ..., "template": ...}


def _read_json_file(file: Path, text: str) -> Content | None:
    is_object = text.lstrip().startswith("{")
    try:
        # An object as pairs, since a dictionary would lose without a word what stands in the file twice.
        content = json.loads(text, object_pairs_hook=list if is_object else None)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not complete JSON ({error}): mend it, or download it again") from error
    split = split_in(file.stem)
    if is_object and _may_list_classes(file):
        known = all(_as_index(name) is not None or _as_index(value) is not None for name, value in content)
        if known or (split is None and says_classes(file)):
            return ClassList(file, _class_names(file, content))
        if split is None:
            return None
    if split is None and isinstance(content, list):
        raise UserError(
            f'{file}: is not of the form {{"class": "index"}}, and its name says no split of rows: take '
            f"labels.json from {SOURCE}, or put train, validation or test into the name"
        )
    if is_object or not isinstance(content, list):
        raise UserError(f'{file}: is not a list of rows {{"id": ...}}: take {split}.json from {SOURCE}')
    if not content:
        raise UserError(f"{file}: holds no rows: mend it, or download it again")
    return _template_rows(file, content, split or "")


def _template_rows(file: Path, content: list[Any], split: str) -> LabelRows:
    found = LabelRows(file)
    for row, entry in enumerate(content, start=1):
        video = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(video, bool) or not isinstance(video, str | int) or video == "":
            raise UserError(f'{file}, row {row}: has no "id": mend the row or download the file again')
        template = entry.get("template")
        if (not isinstance(template, str) or not template) and split != "test":
            raise UserError(
                f'{file}, row {row} (id {video}): has no "template", which gives the class: take the file '
                f"with templates from {SOURCE}"
            )
        # Only the brackets go: "Moving [something] up" is of the class "Moving something up".
        name = template.replace("[", "").replace("]", "") if isinstance(template, str) else None
        found.add(row, str(video), split, name)
    return found


def _as_index(value: object) -> int | None:
    """Read a class index, which releases write as text or as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def _class_names(file: Path, pairs: list[tuple[Any, Any]]) -> list[str]:
    """Order the names of ``{class: index}``, or of the reverse, by index."""
    if not pairs:
        raise UserError(f"{file}: holds no classes: mend it, or download it again")
    if all(_as_index(value) is None and _as_index(key) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
    names: dict[int, str] = {}
    for name, value in pairs:
        index = _as_index(value)
        if index is None or not isinstance(name, str):
            raise UserError(
                f"{file}: class {name!r} has no index but {value!r}: mend it, or download it again"
            )
        if index in names:
            raise UserError(
                f"{file}: classes {names[index]!r} and {name!r} have the same index {index}: "
                "mend it, or download it again"
            )
        names[index] = name
    gap = next((index for index in range(len(names)) if index not in names), None)
    if gap is not None:
        raise UserError(
            f"{file}: no class has index {gap}, though {names[max(names)]!r} has {max(names)}: "
            f"indices must be 0 to {len(names) - 1} for {len(names)} classes: mend it, or download it again"
        )
    return _distinct(file, [names[index] for index in range(len(names))])


def _distinct(file: Path, names: list[str]) -> list[str]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            raise UserError(
                f"{file}: class {name!r} has two indices, {first[name]} and {index}: remove one or "
                "download it again"
            )
    return names


# Text files. Each reader is given the lines that are not empty, with their numbers.


def _read_numbered_classes(file: Path, lines: list[Line]) -> ClassList | None:
    """Read classes as ``0 name``, ``0;name`` or ``0,name``, with or without the header ``id,name``."""
    if not _may_list_classes(file):
        return None
    header = re.fullmatch(r"(id|index)[ \t]*[;,\t][ \t]*(name|class|label)", lines[0][1], re.IGNORECASE)
    found = [_NUMBERED_CLASS.fullmatch(line) for _, line in lines[1 if header else 0 :]]
    pairs = [(_unquoted(match[2]), match[1]) for match in found if match]
    # Ids of videos, too, are numbers before something else; but they leave most numbers out.
    if not pairs or len(pairs) < len(found) or max(int(number) for _, number in pairs) >= 2 * len(pairs):
        return None
    names = {name for name, _ in pairs if re.search(r"[^\W\d]", name)}
    if split_in(file.stem) and len(names) < len(pairs):
        return None  # train_labels.csv may have rows of videos
    return ClassList(file, _class_names(file, pairs))


def _read_kinetics(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read Kinetics: the header ``label,youtube_id,time_start,time_end,split``.

    The id is the name that its video files have: ``{youtube_id}_{time_start:06d}_{time_end:06d}``.
    """
    columns, delimiter = _header(lines)
    if not {"youtube_id", "time_start", "time_end"} <= set(columns):
        return None

    def clip(row: int, cells: dict[str, str]) -> str:
        start, end = cells["time_start"], cells["time_end"]
        try:
            return f"{cells['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}"
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{file}, row {row} (id {cells['youtube_id']}): has the times {start!r} and {end!r}, which "
                "are no seconds: mend the row or download the file again"
            ) from error

    return _table_rows(file, lines, columns, delimiter, clip)


def _read_table(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read a table with a header, such as ``path,label,split`` (a user's own data) or ``id,label``."""
    columns, delimiter = _header(lines)
    column = next((name for name in _COLUMNS_OF_IDS if name in columns), None)
    if column is None and "split" in columns and {*_COLUMNS_OF_CLASSES} & set(columns):
        raise UserError(
            f"{file}, row 1: none of its columns {', '.join(columns)} is called path: call the videos' so"
        )
    if column is None or not {*_COLUMNS_OF_CLASSES, "split"} & set(columns):
        return None
    return _table_rows(file, lines, columns, delimiter, lambda _, cells: cells[column])


def _header(lines: list[Line]) -> tuple[list[str], str]:
    """Split the first line at the delimiter that it has most of."""
    delimiter = max(",;\t", key=lines[0][1].count)
    return [cell.lower() for cell in _cells(lines[0][1], delimiter)], delimiter


def _table_rows(
    file: Path,
    lines: list[Line],
    columns: list[str],
    delimiter: str,
    video_of: Callable[[int, dict[str, str]], str],
) -> LabelRows:
    found = LabelRows(file, split_in_rows="split" in columns, makes_classes=True)
    file_split = None if found.split_in_rows else _split_of_file(file)
    class_column = next((name for name in _COLUMNS_OF_CLASSES if name in columns), None)
    if len(lines) == 1:
        raise UserError(f"{file}: holds a header and no rows: mend it, or download it again")
    for row, line in lines[1:]:
        values = _cells(line, delimiter)
        if len(values) != len(columns):
            raise UserError(
                f"{file}, row {row}: has {len(values)} values for the {len(columns)} columns "
                f"{delimiter.join(columns)}: mend the row (quote a value that holds {delimiter!r})"
            )
        cells = dict(zip(columns, values, strict=True))
        video = video_of(row, cells)
        split = file_split or split_in(cells["split"])
        if split is None:
            raise UserError(
                f"{file}, row {row} (id {video}): has the split {cells['split']!r}: write train, validation "
                "or test"
            )
        if class_column is None and split != "test":
            raise UserError(
                f"{file}, row 1: none of its columns {', '.join(columns)} is called label, which {split} needs: call the "
                "classes' so, or take the file that has classes"
            )
        found.add(row, video, split, cells[class_column] if class_column else None)
    return _with_numbers(found)


def _read_frames_list(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read lists as TSM's code has them: ``folder frames class``, of another file's order of classes.

    The frames are passed over: they count an extraction at some other rate.
    """
    return _read_list(file, lines, _FRAMES_LIST, "folder frames class")


def _read_number_list(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read lists ``file class``."""
    return _read_list(file, lines, _NUMBER_LIST, "file class")


def _read_list(file: Path, lines: list[Line], pattern: re.Pattern[str], form: str) -> LabelRows | None:
    matches = [pattern.fullmatch(line) for _, line in lines]
    # Not all: of a list with a bad row, the row is to be named.
    if 2 * sum(match is not None for match in matches) <= len(matches):
        return None
    if (
        split_in(file.stem) is None
        and pattern is _NUMBER_LIST
        and not _VIDEO_ENDING.search(lines[0][1].split()[0])
    ):
        return None  # names of classes can end with a number
    found, split = LabelRows(file), _split_of_file(file)
    for (row, line), match in zip(lines, matches, strict=True):
        if match is None:
            raise UserError(f"{file}, row {row}: {line[:60]!r} is not of the form `{form}`: mend the row")
        found.add(row, match[1], split, int(match[match.re.groups]))
    return found


def _read_pairs(file: Path, lines: list[Line]) -> LabelRows | None:
    """Read ``id;label`` without a header, as Something-Something V1 and V2's test answers have it."""
    split = split_in(file.stem)
    counts = {delimiter: sum(delimiter in line for _, line in lines) for delimiter in ";,\t"}
    delimiter = next((mark for mark, count in counts.items() if 2 * count > len(lines)), None)
    # Names of classes hold commas; a list of them has no split in its name.
    if delimiter is None or (split is None and delimiter != ";"):
        return None
    found, split = LabelRows(file), split or _split_of_file(file)
    for row, line in lines:
        cells = _cells(line, delimiter)
        if len(cells) != 2 or not all(cells):
            raise UserError(
                f"{file}, row {row}: {line[:60]!r} is not of the form id{delimiter}class: mend the row (quote "
                f"a class that holds {delimiter!r}) or download the file again"
            )
        found.add(row, cells[0], split, cells[1])
    return _with_numbers(found)


def _read_column(file: Path, lines: list[Line]) -> Content:
    """Read one column, with or without a header: ids where the name of the file says a split, else names of classes."""
    if len(lines) > 1 and _unquoted(lines[0][1]).lower() in _HEADERS:
        lines = lines[1:]
    split = split_in(file.stem)
    if split is None or (_may_list_classes(file) and split != "test"):  # ids alone are of use for test only
        return ClassList(file, _distinct(file, [_unquoted(line) for _, line in lines]))
    found = LabelRows(file)
    for row, line in lines:
        found.add(row, _unquoted(line), split, None)
    return found


def _cells(line: str, delimiter: str) -> Sequence[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _unquoted(text: str) -> str:
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def _with_numbers(found: LabelRows) -> LabelRows:
    """Take classes for numbers where all are."""
    numbers = [_as_index(name) for name in found.classes]
    if all(number is not None or name is None for number, name in zip(numbers, found.classes, strict=True)):
        found.classes = [*numbers]
    return found


_READERS: tuple[Callable[[Path, list[Line]], Content | None], ...] = (
    _read_numbered_classes,
    _read_kinetics,
    _read_table,
    _read_frames_list,
    _read_number_list,
    _read_pairs,
    _read_column,
)
