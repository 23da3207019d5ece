"""Label files in JSON: lists of rows as in Something-Something V2 or Diving48, and classes with their indices."""

import json
import logging
from pathlib import Path
from typing import Any

from ffnrepro.data.label_formats import (
    ClassList,
    LabelRows,
    as_index,
    class_list,
    column_word,
    columns_of,
    indexed_classes,
    is_named_as_classes,
    may_list_classes,
    split_in,
    split_of_file,
    unquoted,
)
from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

Rows = list[tuple[int, Any]]

_EXPECTED = 'expected rows such as {"id": "12", "label": "walk"}, or classes such as {"walk": 0}'


def read_json(file: Path, text: str) -> ClassList | LabelRows | None:
    """Read JSON.

    The forms are: a list of objects, or one object on each line; an object of videos, ``{id: {"label": ...}}`` or ``{id:
    label}``; an object of splits, ``{"train": [...]}``; an object of classes, ``{class: index}`` or ``{index: class}``; a
    list of class names.

    Args:
        file: The file, which messages name.
        text: Its content.

    Returns:
        Its classes or videos; None, with a warning, for an object that is neither.

    Raises:
        UserError: It is no JSON, or what it holds is not understood.
    """
    content = _parsed(file, text)
    if isinstance(content, list):
        if all(isinstance(entry, str | list) for entry in content) and content and may_list_classes(file):
            # A class of Diving48 is a list of the parts of a dive.
            names = [entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in content]
            return class_list(file, names)
        return _rows(file, {None: list(enumerate(content, start=1))})
    if content and all(isinstance(value, list) and split_in(key) for key, value in content.items()):
        return _rows(file, {split_in(key): list(enumerate(rows, 1)) for key, rows in content.items()})
    if content and all(isinstance(value, dict) for value in content.values()):
        entries = [{"id": key} | value for key, value in content.items()]
        return _rows(file, {None: list(enumerate(entries, start=1))})
    # Read as pairs, because a dictionary silently drops a repeated key.
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    indices = [as_index(value) for _, value in pairs]
    is_indexed = all(
        index is not None or as_index(key) is not None for index, (key, _) in zip(indices, pairs, strict=True)
    )
    is_flat = all(isinstance(value, str | int) for _, value in pairs)
    # train_labels.json may hold the classes, each once, or the videos with their classes.
    if split_in(file.stem) and is_flat and (not is_named_as_classes(file) or _repeats(indices)):
        entries = [{"id": key, "label": value} for key, value in pairs]
        return _rows(file, {None: list(enumerate(entries, start=1))})
    if may_list_classes(file) and (is_indexed or is_named_as_classes(file)):
        return indexed_classes(file, [(unquoted(key), value) for key, value in pairs])
    keys = ", ".join(map(repr, list(content)[:3]))
    if split_in(file.stem):
        raise UserError(f"{file}: is an object with the keys {keys}, not a list of rows: {_EXPECTED}")
    log.warning("%s: ignored, an object with the keys %s: %s", file, keys, _EXPECTED)
    return None


def _parsed(file: Path, text: str) -> Any:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (json.JSONDecodeError, RecursionError):
            content = None
        # A list that is cut off has lines that are JSON by themselves, such as "[".
        if not content or not all(isinstance(entry, dict) for entry in content):
            raise UserError(
                f"{file}: is not complete JSON ({error}): fix it, or take it from the release again"
            ) from error
    if not isinstance(content, list | dict):
        raise UserError(f"{file}: holds {str(content)[:40]!r}: {_EXPECTED}")
    return content


def _rows(file: Path, entries_of: dict[str | None, Rows]) -> LabelRows:
    """Read rows by split; None stands for the split that the rows, or the name of the file, give."""
    flat = {split: [(row, _flat(entry)) for row, entry in entries] for split, entries in entries_of.items()}
    names = {name for entries in flat.values() for _, entry in entries for name in entry}
    columns = columns_of(names)
    has_templates = columns.label == "template"
    rows = LabelRows(
        file, is_table=not has_templates and columns.label is not None, has_templates=has_templates
    )
    for split, entries in flat.items():
        of_split = split or (None if columns.split else split_of_file(file))
        if columns.label is None and names and of_split not in (None, "test"):
            raise UserError(
                f"{file}: none of its keys {', '.join(sorted(names))} holds the class: call it label"
            )
        for row, entry in entries:
            rows.add_record(row, entry, columns, of_split)
    return rows


def _flat(entry: object) -> dict[str, Any]:
    """Return the values of a row by column. Text or a number alone is an id; Kinetics nests what it says about the clip."""
    if not isinstance(entry, dict):
        return {"id": entry} if isinstance(entry, str | int) else {}
    values = {column_word(key): value for key, value in entry.items()}
    if isinstance(values.get("annotations"), dict):
        values |= {column_word(key): value for key, value in values.pop("annotations").items()}
        segment = values.get("segment")
        if isinstance(segment, list) and len(segment) == 2:
            values |= {"youtubeid": values.pop("id", None), "timestart": segment[0], "timeend": segment[1]}
    return values


def _repeats(indices: list[int | None]) -> bool:
    return len(set(indices)) < len(indices)
