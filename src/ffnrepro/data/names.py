"""Which video file belongs to which labelled id; and, if most ids have no file, the most likely reason.

A file belongs to the id that is its name. A file whose name is not an id belongs to the id of the same number
if this is unambiguous (``video_00012.webm`` to ``12``). Both follow from the names alone, so wrong folders
and wrong labels are found before any video is decoded.
"""

import itertools
import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ffnrepro.data.video_index import Layout, link_advice, list_videos, printable, subfolders
from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

_MOST_FOLDERS = 200
"""If there are more folders next to or inside `data.videos` than this, they are not searched for videos."""

_SAMPLE = 2000
"""Number of names that are compared in search of a prefix or a suffix."""

_ONLY_DIGITS = re.compile(r"[0-9]+")
_NUMBER_AT_END = re.compile(r"(?:^|[^0-9])0*([0-9]+)$")
_MISREAD = re.compile(r"[,;\t].*|\s+-?\d+$")


def ids_by_number(ids: Iterable[str], names: Sequence[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Find the ids of files whose name is not an id, but ends in the number of one.

    Args:
        ids: Labelled ids.
        names: Names of the files, without their endings.

    Returns:
        The id of each such file, by its position in `names`. Then, in the same way, the id that a file would
        have if no other file had the same number.
    """
    known, named = dict.fromkeys(ids), set(names)
    taken: dict[str, str] = {}
    free: dict[str, str | None] = {}
    for name in filter(_ONLY_DIGITS.fullmatch, known):
        number = name.lstrip("0") or "0"
        if name in named:
            taken[number] = name
        else:
            free[number] = None if number in free else name
    claims: dict[int, str] = {}
    for position, name in enumerate(names):
        if name not in known and (match := _NUMBER_AT_END.search(name)):
            owner = free.get(match[1]) or taken.get(match[1])
            if owner is not None:
                claims[position] = owner
    count_of = Counter(claims.values())
    found = {place: name for place, name in claims.items() if count_of[name] == 1 and name not in named}
    if found:
        place, name = next(iter(found.items()))
        log.info(
            "%d files belong to the id of the same number, such as %s to %s", len(found), names[place], name
        )
    return found, {place: name for place, name in claims.items() if place not in found}


def compare_names(
    labels: pd.DataFrame, names: Sequence[str], folder: Path, layout: Layout, *, max_excluded: float
) -> None:
    """Compare the labelled ids with the names of the videos, and log what does not fit.

    Args:
        labels: The columns ``id`` and ``split``.
        names: Names of the videos, from `ffnrepro.data.video_index.list_videos`.
        folder: The folder that they are in.
        layout: Whether the names are of files or of folders of frames.
        max_excluded: Fraction of the labelled videos that may be unusable.

    Raises:
        UserError: More ids than `max_excluded` allows have no file, or no id of train (if it has labels) or
            of validation has one. The message has examples and the most likely reason.
    """
    stems = _stems(names, layout)
    known = labels["id"].tolist()
    found, _ = ids_by_number(known, stems)
    names_and_ids = set(stems).union(found.values())
    has_file = np.array([name in names_and_ids for name in known])
    missing = labels[~has_file]
    labelled = set(known)
    strangers = [place for place, stem in enumerate(stems) if stem not in labelled and place not in found]
    counts = (
        f"{len(missing):,} of the {len(labels):,} labelled ids have no file in {folder}{_examples(missing['id'])}, and "
        f"{len(strangers):,} of its {len(names):,} files have no label{_examples(printable(names[place]) for place in strangers)}"
    )
    # Labels without a training split are enough for networks that are imported.
    needed = {"train", "validation"} & set(labels["split"])
    if not needed <= set(labels.loc[has_file, "split"]) or len(missing) > max_excluded * len(labels):
        reason = _most_likely_reason(labels, missing, {stems[place] for place in strangers}, folder, layout)
        raise UserError(f"labels and videos do not match: {counts}: {reason}")
    if len(missing) or 2 * len(strangers) > len(names):
        log.warning("labels and videos: %s", counts)
    elif strangers:
        log.info("labels and videos: %s", counts)


def _examples(values: Iterable[str]) -> str:
    some = ", ".join(map(repr, itertools.islice(values, 3)))
    return f" (such as {some})" if some else ""


def _most_likely_reason(
    labels: pd.DataFrame, missing: pd.DataFrame, stems: set[str], folder: Path, layout: Layout
) -> str:
    """The most likely reason why most ids have no file, and the fix; a reason is named only if it is found to hold."""
    ids = set(missing["id"])
    if sum(_MISREAD.sub("", name) in stems for name in ids if _MISREAD.search(name)) > len(ids) / 2:
        return (
            "the ids are misread rows: compare the rows of `data.labels` with the formats in config/README.md"
        )
    if elsewhere := _found_elsewhere(ids, folder, layout):
        return elsewhere
    if layout == "frames" and (elsewhere := _found_elsewhere(ids, folder, "videos")):
        return f"as video files, {elsewhere}, and `data.layout: videos`"
    if renamed := _renamed(ids, stems):
        return renamed
    found = set(labels.loc[~labels["id"].isin(ids), "split"])
    if found and not found & set(missing["split"]):
        gone = missing["split"].unique().tolist()
        advice = "unpack them"
        if "validation" in found:
            advice += f", or move the labels of {' and '.join(gone)} out of `data.labels`"
            advice += " if nothing is to be trained" if "train" in gone else ""
        return f"all videos of {' and '.join(gone)} are missing, and no others: {advice}"
    if len(stems) <= len(ids) / 10:
        return (
            "the folder holds a part of the videos: unpack all of them, or leave only their rows in the labels, or raise "
            "`data.max_excluded`"
        )
    if len(missing) > 0.9 * len(labels):
        return "these are probably the labels of one data set and the videos of another: check `data.labels` and `data.videos`"
    return "check whether all videos are unpacked, and whether labels and videos are of one release of the data set"


def _found_elsewhere(ids: set[str], folder: Path, layout: Layout) -> str | None:
    """Search for the missing videos in the subfolders, in the parent folder, and in its other subfolders."""
    above = folder.absolute().parent
    for places in (subfolders(folder), [above], subfolders(above)):
        if len(places) > _MOST_FOLDERS:
            continue
        found = {place: ids & _stems_in(place, layout) for place in places}
        found = {place: there for place, there in found.items() if there}
        best = max(found, key=lambda place: len(found[place]), default=folder)
        if 2 * len(found.get(best, ())) > len(ids):
            return f"they are in {best}: set `data.videos` to it"
        if 2 * len(set().union(*found.values())) > len(ids):
            return f"they are in {len(found)} folders, such as {best}: {link_advice(best, layout)}"
    return None


def _stems(names: Sequence[str], layout: Layout) -> list[str]:
    """The names of videos without the endings of files."""
    shown = [printable(name) for name in names]
    return shown if layout == "frames" else [name.rpartition(".")[0] for name in shown]


def _stems_in(folder: Path, layout: Layout) -> set[str]:
    try:
        return set(_stems(list_videos(folder, layout), layout))
    except UserError:
        return set()


def _renamed(ids: set[str], stems: set[str]) -> str | None:
    """Compare samples of ids without a file and of files without a label: is one part of the other?"""
    generator = random.Random(0)
    some_ids = generator.sample(sorted(ids), min(_SAMPLE, len(ids)))
    some_stems = generator.sample(sorted(stems), min(_SAMPLE, len(stems)))
    plain = {_plain(name): name for name in stems}
    matches: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "in capital letters or in the encoding of accents",
            [(name, plain[_plain(name)]) for name in some_ids if _plain(name) in plain],
        )
    ]
    parts_of: dict[str, Callable[[str], Iterator[str]]] = {"after": _beginnings, "before": _ends}
    for where, parts in parts_of.items():
        pairs = _contained(some_stems, ids, parts)
        matches.append((f"in what the files have {where} the id", [(name, stem) for stem, name in pairs]))
        pairs = _contained(some_ids, stems, parts)
        matches.append((f"in what the ids have {where} the name of the file", pairs))
    what, pairs = max(matches, key=lambda match: len(match[1]))
    if 2 * len(pairs) <= min(len(some_ids), len(some_stems)):
        return None
    name, stem = pairs[0]
    return f"the names differ {what} (id {name!r}, file {stem!r}): rename the files, or correct the ids in the labels"


def _contained(
    names: Sequence[str], others: Collection[str], parts: Callable[[str], Iterator[str]]
) -> list[tuple[str, str]]:
    """Pairs of a name and the longest of its parts that is one of the others."""
    found = ((name, next((part for part in parts(name) if part in others), None)) for name in names)
    return [(name, part) for name, part in found if part is not None]


def _boundaries(name: str) -> list[int]:
    """Positions at which a name may be cut: where letters, digits and other characters meet."""
    return [match.end() for match in re.finditer(r"[^\W\d_]+|\d+|[\W_]", name)][:-1]


def _beginnings(name: str) -> Iterator[str]:
    return (name[:end] for end in reversed(_boundaries(name)))


def _ends(name: str) -> Iterator[str]:
    return (name[start:] for start in _boundaries(name))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
