"""The manifest: the videos of each split, and the excluded ones with their reasons.

Labels and index are joined by id; `ffnrepro.data.names` says which file belongs to which id. The published
loader silently replaces a missing video by another one; here each missing video is listed with its reason,
and a score says how many videos it counts.
"""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ffnrepro.data.decode import (
    DOES_NOT_DECODE,
    DOES_NOT_OPEN,
    EMPTY,
    FRAMES_CHANGE_SIZE,
    FRAMES_MISSING,
    FRAMES_UNCLEAR,
    NO_FRAMES,
    NO_PERMISSION,
    PICTURE,
    TEXT,
    TRUNCATED,
    WEB_PAGE,
)
from ffnrepro.data.isolation import CRASHED, NOT_FINISHED
from ffnrepro.data.label_formats import SPLITS
from ffnrepro.data.labels import class_warnings
from ffnrepro.data.names import ids_by_number
from ffnrepro.errors import UserError
from ffnrepro.files import replacing, write_json, write_text

log = logging.getLogger(__name__)

REVISION = 2
"""Raised by hand when the manifest of the same labels and index changes, so that it is built again."""

NO_VIDEO_FILE = "no video file"
NO_LABEL = "no label"
SEVERAL_FILES = "several files of its id"

_COLUMNS = {"id": "str", "path": "str", "frames": "int64", "class": "Int64"}
# Cause and fix for each reason, found by how the reason starts.
_FAILED_DOWNLOAD = "some downloads failed: download these files again"
_DAMAGED = "these files are incomplete or damaged: copy, download or unpack them again"
_FRAMES = "with `data.layout: frames`, each folder in `data.videos` must hold all frames of one video: 00001.jpg, 00002.jpg, ..."
_DISK = "check the disk of `data.videos`, then run again"
_FIXES = {
    NO_LABEL: "check the files of `data.labels`",
    NO_VIDEO_FILE: "check that `data.videos` is the folder of this data set, that the names of its files are the ids of "
    "the labels, and that the whole archive is unpacked: each part unzipped first, then all joined in order",
    SEVERAL_FILES: "keep one file of each id in `data.videos`",
    WEB_PAGE: _FAILED_DOWNLOAD,
    TEXT: _FAILED_DOWNLOAD,
    PICTURE: _FAILED_DOWNLOAD,
    NO_PERMISSION: _DISK,
    NOT_FINISHED: _DISK,
    CRASHED: _DISK,
    **dict.fromkeys((EMPTY, DOES_NOT_OPEN, DOES_NOT_DECODE, TRUNCATED), _DAMAGED),
    **dict.fromkeys((NO_FRAMES, FRAMES_MISSING, FRAMES_UNCLEAR, FRAMES_CHANGE_SIZE), _FRAMES),
    "": "`ffnrepro inspect FILE` shows what is seen in such a file",
}


class TooManyExcluded(UserError):
    """More videos are unusable than allowed; ``excluded`` is the table of them."""

    def __init__(self, message: str, excluded: pd.DataFrame) -> None:
        super().__init__(message)
        self.excluded = excluded


@dataclass(frozen=True)
class Manifest:
    """The videos of each split, and the excluded ones.

    Attributes:
        classes: Class names in index order.
        splits: For each of ``train``, ``validation`` and ``test`` a table with ``id``, ``path``, ``frames``
            and ``class`` (Int64; missing in a test split without answers), sorted by id.
        excluded: Table with ``id``, ``split`` (empty for a file without a label, and for a second file of an
            id), ``path`` (empty if there is no file), ``reason`` and ``detail`` (may be empty), sorted by id.
        summary: Counts by split, by reason and by class, the histogram of lengths in frames, and warnings.
    """

    classes: list[str]
    splits: dict[str, pd.DataFrame]
    excluded: pd.DataFrame
    summary: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the class names and the videos of the splits.

        It is computed from the content, not from files, so it is the same on every machine. The excluded
        videos are not part of it, because no result depends on them.
        """
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for split in SPLITS:
            table = self.splits[split].astype("object")
            rows = table.where(table.notna(), None).to_numpy().tolist()
            content.update(json.dumps([split, rows]).encode())
        return content.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the splits, ``excluded.csv``, ``summary.json``, and last ``manifest.sha256``, each atomically.

        The same manifest gives the same bytes (with the same version of pyarrow).

        Args:
            folder: Created if it does not exist.
        """
        for split, table in self.splits.items():
            with replacing(folder / f"{split}.parquet") as temporary:
                table.to_parquet(temporary, index=False)
        with replacing(folder / "excluded.csv") as temporary:
            self.excluded.to_csv(temporary, index=False, lineterminator="\n")
        write_json(folder / "summary.json", self.summary)
        write_text(folder / "manifest.sha256", self.digest + "\n")


def build_manifest(
    classes: list[str], labels: pd.DataFrame, index: pd.DataFrame, *, max_excluded: float = 1.0
) -> Manifest:
    """Join labels and index.

    Args:
        classes: Class names in index order.
        labels: ``id``, ``split``, ``class``, from :func:`ffnrepro.data.labels.read_labels`.
        index: One row for each file, from :func:`ffnrepro.data.video_index.index_videos`.
        max_excluded: Fraction of the labelled videos that may be unusable. Files without a label do not
            count.

    Returns:
        The manifest.

    Raises:
        TooManyExcluded: Train (if it has labels) or validation has no usable video, or more are unusable than
            ``max_excluded`` allows.
        UserError: Two usable files have the same id.
    """
    index = index.reset_index(drop=True)
    found, claims = ids_by_number(labels["id"], index["id"].tolist())
    index["id"] = [found.get(place, name) for place, name in enumerate(index["id"])]
    claimants: dict[str, list[str]] = {}
    for path, place in sorted((str(index.loc[place, "path"]), place) for place in claims):
        claimants.setdefault(claims[place], []).append(path)
    index, duplicates = _one_file_per_id(labels, index)
    joined = labels.merge(index[["id", "path", "frames", "status", "reason", "detail"]], on="id", how="left")
    without_file = joined["status"].isna()
    files = [claimants.get(name, []) for name in joined.loc[without_file, "id"]]
    joined.loc[without_file, "reason"] = [SEVERAL_FILES if several else NO_VIDEO_FILE for several in files]
    joined.loc[without_file, "detail"] = [", ".join(several) for several in files]
    joined["path"] = joined["path"].fillna("")
    usable = joined["status"].eq("ok").fillna(value=False)

    unlabelled = index.loc[~index["id"].isin(labels["id"]), ["id", "path"]]
    excluded = pd.concat(
        [
            joined.loc[~usable, ["id", "split", "path", "reason", "detail"]],
            unlabelled.assign(
                split="",
                reason=[SEVERAL_FILES if place in claims else NO_LABEL for place in unlabelled.index],
                detail=[
                    f"of the id {claims[place]}" if place in claims else "" for place in unlabelled.index
                ],
            ),
            duplicates[["id", "path"]].assign(split="", reason=SEVERAL_FILES, detail=duplicates["reason"]),
        ],
        ignore_index=True,
    )
    excluded = _sorted_by_id(excluded)
    splits = {
        split: _sorted_by_id(joined.loc[usable & (joined["split"] == split), list(_COLUMNS)]).astype(_COLUMNS)
        for split in SPLITS
    }
    _check_excluded(labels, splits, index, excluded, max_excluded)
    warnings = class_warnings(classes, joined[usable])
    if 2 * len(unlabelled) > len(index):
        examples = ", ".join(map(repr, unlabelled["path"].head(3)))
        warnings.append(f"{len(unlabelled):,} of the {len(index):,} files have no label, such as {examples}")
    for warning in warnings:
        log.warning("manifest: %s", warning)
    summary = _summary(classes, labels, splits, excluded) | {"warnings": warnings}
    return Manifest(classes, splits, excluded, summary)


def _one_file_per_id(labels: pd.DataFrame, index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one file for each id, preferring a usable file to a damaged one.

    Returns:
        The files that are kept, and the others.

    Raises:
        UserError: An id has two usable files.
    """
    # Sorted in descending order, "ok" comes before "excluded".
    ordered = index.sort_values(["status", "path"], ascending=[False, True], kind="stable")
    again = ordered["id"].isin(labels["id"]) & ordered.duplicated("id")
    twice = ordered[again & ordered["status"].eq("ok")]
    if len(twice):
        row = twice.iloc[0]
        other = ordered.loc[ordered["id"] == row["id"], "path"].iloc[0]
        raise UserError(
            f"{other} and {row['path']}: two videos with the id {row['id']} ({len(twice)} such pairs): keep one of them "
            "in the folder `data.videos`"
        )
    return ordered[~again], ordered[again]


def _sorted_by_id(table: pd.DataFrame) -> pd.DataFrame:
    """Sort numbers inside ids by value: 2 before 10, clip2 before clip10."""
    keys = [
        ([int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", identifier)], identifier)
        for identifier in table["id"]
    ]
    return table.iloc[sorted(range(len(keys)), key=keys.__getitem__)].reset_index(drop=True)


def _check_excluded(
    labels: pd.DataFrame,
    splits: dict[str, pd.DataFrame],
    index: pd.DataFrame,
    excluded: pd.DataFrame,
    max_excluded: float,
) -> None:
    # Labels without a training split are enough for networks that are imported.
    needed = ("train", "validation") if labels["split"].eq("train").any() else ("validation",)
    empty = [split for split in needed if splits[split].empty]
    concerned = empty[:1] or list(SPLITS)
    labelled = int(labels["split"].isin(concerned).sum())
    lost = excluded[excluded["split"].isin(concerned)]
    if not empty and len(lost) <= max_excluded * labelled:
        return
    count_of = lost["reason"].value_counts()
    reason = str(count_of.index[0]) if len(lost) else NO_LABEL
    details = [f"{reason}: {count:,}" for reason, count in count_of.items()] + [f"{len(index):,} files found"]
    for _, row in lost[lost["reason"] == reason].head(1).iterrows():
        details.append(
            f"such as {row['path'] or row['id']!r}" + (f", {row['detail']}" if row["detail"] else "")
        )
    details += [
        f"{path!r} has no label" for path in excluded.loc[excluded["reason"] == NO_LABEL, "path"].head(1)
    ]
    fix = next(fix for start, fix in _FIXES.items() if reason.startswith(start))
    raise TooManyExcluded(
        f"manifest: {len(lost):,} of the {labelled:,} labelled videos of {', '.join(concerned)} cannot be used, and "
        f"`data.max_excluded` is {max_excluded:g} ({'; '.join(details)}): {fix}",
        excluded,
    )


def _summary(
    classes: list[str], labels: pd.DataFrame, splits: dict[str, pd.DataFrame], excluded: pd.DataFrame
) -> dict[str, Any]:
    counts = {split: table["class"].value_counts() for split, table in splits.items()}
    lengths = {split: table["frames"].value_counts().sort_index() for split, table in splits.items()}
    reasons = excluded.groupby(["split", "reason"]).size()
    return {
        "labelled": {split: int((labels["split"] == split).sum()) for split in SPLITS},
        "videos": {split: len(splits[split]) for split in SPLITS},
        "excluded": {
            split or NO_LABEL: {
                reason: int(reasons[split, reason]) for other, reason in reasons.index if other == split
            }
            for split in (*SPLITS, "")
        },
        "classes": {
            name: {split: int(counts[split].get(number, 0)) for split in SPLITS}
            for number, name in enumerate(classes)
        },
        "frames": {
            split: {str(frames): int(count) for frames, count in lengths[split].items()} for split in SPLITS
        },
    }
