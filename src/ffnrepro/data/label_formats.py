"""What all formats of label files share: classes, rows of videos, names of columns, and the words that name a split."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ffnrepro.errors import UserError

SPLITS = ("train", "validation", "test")
VIDEO_ENDINGS = (
    ".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp",
)  # fmt: skip

# Words of a header, or keys of JSON rows, in lower case without spaces and underscores. Where a file has several of
# them, the first of these counts: a path is more reliable than an id, which may be a mere row number, and the name of a class
# is more reliable than its number.
VIDEO_COLUMNS = (
    "path", "videopath", "clippath", "filepath", "framepath", "filename", "file", "videofile", "videoname", "vidname",
    "clipname", "video", "clip", "vid", "videoid", "clipid", "vidid", "fileid", "youtubeid", "ytid", "id", "name",
)  # fmt: skip
CLASS_COLUMNS = (
    "template", "label", "labels", "labelname", "class", "classname", "category", "categoryname", "action", "actionname",
    "activity", "gesture", "target", "labelid", "classid", "categoryid", "actionid", "labelindex", "classindex",
    "labelidx", "classidx", "actionlabel", "classlabel", "y",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "splitname")
_TIMES = ("timestart", "timeend")

_SPLIT_WORD = re.compile(
    r"(?<![a-z])(train|val|test)(?:ing|id|idate|idation)?(?:list|set|split)?(?![a-z])", re.IGNORECASE
)
_VIDEO_ENDING = re.compile(rf"({'|'.join(map(re.escape, VIDEO_ENDINGS))})$", re.IGNORECASE)


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their indices.

    Attributes:
        file: The file.
        names: The names.
        first: The number of the first class, which the rows of videos count from: 0, or 1 as in UCF101.
    """

    file: Path
    names: list[str]
    first: int = 0


class LabelRow(NamedTuple):
    """A video of a label file.

    Attributes:
        file: The file.
        row: Number of its row in the file, from 1.
        id: Id of the video.
        path: Path of the video as written in the file, from which the id is taken.
        split: ``train``, ``validation`` or ``test``.
        label: The name or the number of its class; None if the row does not say it.
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
        is_table: Whether the file names its columns. Rows of one split may be in several tables. Without a list of classes,
            the class names in the rows of tables are the classes.
        has_templates: Whether these are the JSON rows of Something-Something V2.
        rows: The videos, in the order of the file.
        unused: Number of rows that the file itself marks as belonging to no split.
    """

    file: Path
    is_table: bool = False
    has_templates: bool = False
    rows: list[LabelRow] = field(default_factory=list)
    unused: int = 0

    def add(self, row: int, path: str, split: str, label: str | None) -> None:
        """Add a video.

        Raises:
            UserError: It has no id, or an id that can only come from a misread row.
        """
        path = path.strip()
        video = id_of(path)
        if not video:
            raise UserError(f"{self.file}, row {row} (id {video}): has no id: fix the row")
        if video.endswith((",", ";")) or "\t" in video:
            raise UserError(
                f"{self.file}, row {row}: the id would be {video!r}, so its columns are misread: use a format of "
                "config/README.md, such as one with the header path,label"
            )
        # Some lists write -1 where a test video has no class.
        self.rows.append(LabelRow(self.file, row, video, path, split, None if label in ("", "-1") else label))

    def add_record(
        self, row: int, record: Mapping[str, Any], columns: "Columns", split: str | None = None
    ) -> None:
        """Add a video from a row of a table, or from a JSON object.

        Args:
            row: Number of the row.
            record: Values by column, named as in `Columns`.
            columns: The columns of the file.
            split: Split of the row, if it has no column for it.

        Raises:
            UserError: A value is missing, or not what its column is for.
        """
        where = f"{self.file}, row {row}"
        path, label = (_text_of(where, record.get(name or "")) for name in (columns.video, columns.label))
        if columns.split:
            named = record.get(columns.split)
            split = split_in(str(named))
            if split is None:
                raise UserError(
                    f"{where} (id {id_of(path)}): its split is {named!r}: write train, validation or test"
                )
        if columns.has_times and path:
            times = [record.get(name) for name in _TIMES]
            try:
                start, end = (int(float(time)) for time in times)  # type: ignore[arg-type]
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{where} (id {path}): has the times {times}, which are not seconds: fix the row"
                ) from error
            path = f"{path}_{start:06d}_{end:06d}"
        if columns.label == "template":
            # Only the brackets are removed: "Moving [something] up" has the class "Moving something up".
            label = label.replace("[", "").replace("]", "")
        self.add(row, path, split or split_of_file(self.file), label)


@dataclass(frozen=True)
class Columns:
    """The columns of a table, or the keys of JSON rows, that hold the video, its class and its split; None: there is none.

    In Kinetics the name of a video file has the times of the clip: ``{youtube_id}_{time_start:06d}_{time_end:06d}``.
    """

    video: str | None
    label: str | None
    split: str | None
    has_times: bool


def columns_of(names: Collection[str]) -> Columns:
    """Find the columns by their names, which are written as `column_word` returns them."""

    def first(words: tuple[str, ...]) -> str | None:
        return next((word for word in words if word in names), None)

    video = first(VIDEO_COLUMNS)
    has_times = video == "youtubeid" and set(_TIMES) <= set(names)
    return Columns(video, first(CLASS_COLUMNS), first(SPLIT_COLUMNS), has_times)


@cache
def column_word(name: str) -> str:
    """Return the name of a column in small letters, without spaces and underscores: ``Video_ID`` is ``videoid``."""
    return re.sub(r"[\W_]", "", name.lower())


def is_named_as_classes(file: Path) -> bool:
    """Check whether the name of a file says that it lists classes."""
    return any(word in file.stem.lower() for word in ("label", "class", "categor", "vocab"))


def may_list_classes(file: Path) -> bool:
    """Check whether the name of a file allows a list of classes, as train_classes.txt does, too."""
    return split_in(file.stem) is None or is_named_as_classes(file)


def split_in(text: str) -> str | None:
    """Find the one split that a file name or a text names; None where there is none or more than one."""
    words = [word.lower() for word in _SPLIT_WORD.findall(text)]
    found = {split for split in SPLITS for word in words if split.startswith(word)}
    return found.pop() if len(found) == 1 else None


def split_of_file(file: Path) -> str:
    """Return the split that the name of a file gives its rows.

    Raises:
        UserError: It gives none.
    """
    split = split_in(file.stem)
    if split is None:
        raise UserError(
            f"{file}: neither its rows nor its name give the split of its videos: put train, validation or test into its "
            'name, or add a header such as path,label,split (JSON classes have the form {"class": "index"})'
        )
    return split


def id_of(path: str) -> str:
    """Return the id of a video: the last part of its path, without the ending of a video file."""
    return _VIDEO_ENDING.sub("", path.strip().replace("\\", "/").rstrip("/").rpartition("/")[2])


def is_video_file(text: str) -> bool:
    """Check whether a text ends as the name of a video file does."""
    return _VIDEO_ENDING.search(text.strip()) is not None


def is_path(text: str) -> bool:
    """Check whether a text is a path or the name of a video file."""
    return "/" in text or "\\" in text or is_video_file(text)


def as_index(value: object) -> int | None:
    """Read a class index, which some files write as text, as a number, or as 3.0."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+)(\.0*)?\s*", value)
        return int(match[1]) if match else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def unquoted(text: str) -> str:
    """Remove the quotes of a CSV file around a text; some lists of Kinetics keep them, in JSON, too."""
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def class_list(file: Path, names: list[str], first: int = 0) -> ClassList:
    """Make a list of classes.

    Raises:
        UserError: It is empty, or a class appears twice.
    """
    if not names:
        raise UserError(f"{file}: holds no classes: fix it")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{file}: class {name!r} appears {count} times: keep one")
    return ClassList(file, names, first)


def indexed_classes(file: Path, pairs: list[tuple[Any, Any]]) -> ClassList:
    """Order the names of pairs (name, index), or of (index, name), by index.

    Raises:
        UserError: The indices do not count from 0, or from 1, to the last class.
    """
    if all(as_index(value) is None and as_index(key) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
    count_of = Counter(as_index(value) for _, value in pairs)
    # UCF101 counts its classes from 1.
    first = 1 if len(pairs) in count_of and 0 not in count_of else 0
    for name, value in pairs:
        index = as_index(value)
        if not isinstance(name, str) or index not in range(first, first + len(pairs)) or count_of[index] > 1:
            raise UserError(
                f"{file}: class {name!r} has the index {value!r}, but the indices of {len(pairs)} classes must be 0 to "
                f"{len(pairs) - 1} or 1 to {len(pairs)}, each once: fix it"
            )
    return class_list(file, [name for name, _ in sorted(pairs, key=lambda pair: int(pair[1]))], first)


def _text_of(where: str, value: object) -> str:
    """Return a value as text; the text of nothing is empty."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value).strip()
    if value in (None, []):
        return ""
    if isinstance(value, list) and len(value) == 1:
        return _text_of(where, value[0])
    raise UserError(
        f"{where}: {str(value)[:60]!r} is not one text or number: a video has one id and one class"
    )
