"""The manifest: which videos each split has, and which are left out and why.

Labels and index are joined by id. What is left out is named with its reason (the published loader replaces a
missing video by another one without a word), so a score can say how many videos it counts.
"""

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ffnrepro.data.labels import SPLITS
from ffnrepro.errors import UserError

log = logging.getLogger(__name__)

NO_VIDEO_FILE = "no video file"
NO_LABEL = "no label"

_COLUMNS = {"id": "str", "path": "str", "frames": "int64", "class": "Int64"}


@dataclass(frozen=True)
class Manifest:
    """Videos of each split and those left out.

    Attributes:
        classes: Class names in index order.
        splits: For ``train``, ``validation`` and ``test`` a table with ``id``, ``path``, ``frames`` and
            ``class`` (Int64; missing in a test split without answers), sorted by id.
        excluded: ``id``, ``split`` (empty without a label), ``path`` (empty without a file) and ``reason``,
            sorted by id.
        summary: Counts by split, by reason, by class, and the histogram of lengths in frames.
    """

    classes: list[str]
    splits: dict[str, pd.DataFrame]
    excluded: pd.DataFrame
    summary: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the class names and the videos of the splits.

        Of the content, not of files: it is the same on every machine. What is left out is not part of it, as
        no result depends on it.
        """
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for split in SPLITS:
            table = self.splits[split]
            columns = [
                table[column].astype("object").tolist() for column in ("id", "path", "frames", "class")
            ]
            rows = [
                [*row[:-1], None if pd.isna(row[-1]) else int(row[-1])] for row in zip(*columns, strict=True)
            ]
            content.update(json.dumps([split, rows]).encode())
        return content.hexdigest()

    def save(self, folder: Path) -> None:
        """Write splits, ``excluded.csv``, ``summary.json`` and last ``manifest.sha256``, each atomically.

        The same manifest gives the same bytes (with the same version of pyarrow).

        Args:
            folder: Made when it does not exist.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for split, table in self.splits.items():
            _replace(folder / f"{split}.parquet", functools.partial(table.to_parquet, index=False))
        _replace(
            folder / "excluded.csv",
            lambda path: self.excluded.to_csv(path, index=False, lineterminator="\n"),
        )
        summary = json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n"
        _replace(folder / "summary.json", lambda path: path.write_text(summary, encoding="utf-8"))
        _replace(
            folder / "manifest.sha256", lambda path: path.write_text(self.digest + "\n", encoding="utf-8")
        )


def build_manifest(classes: list[str], labels: pd.DataFrame, index: pd.DataFrame) -> Manifest:
    """Join labels and index.

    Args:
        classes: Class names in index order.
        labels: ``id``, ``split``, ``class``, of :func:`ffnrepro.data.labels.read_labels`.
        index: One row a file, of :func:`ffnrepro.data.video_index.index_videos`.

    Returns:
        The manifest.

    Raises:
        UserError: Two usable files have one id, or train or validation has no usable video.
    """
    index = _one_file_an_id(index)
    joined = labels.merge(index[["id", "path", "frames", "status", "reason"]], on="id", how="left")
    joined["reason"] = joined["reason"].fillna(NO_VIDEO_FILE)
    joined["path"] = joined["path"].fillna("")
    usable = joined["status"].eq("ok").fillna(value=False)

    unlabelled = index[~index["id"].isin(labels["id"])]
    excluded = pd.concat(
        [
            joined.loc[~usable, ["id", "split", "path", "reason"]],
            unlabelled[["id", "path"]].assign(split="", reason=NO_LABEL)[["id", "split", "path", "reason"]],
        ],
        ignore_index=True,
    )
    excluded = _sorted_by_id(excluded)
    splits = {
        split: _sorted_by_id(joined.loc[usable & (joined["split"] == split), list(_COLUMNS)]).astype(_COLUMNS)
        for split in SPLITS
    }
    for split in ("train", "validation"):
        if splits[split].empty:
            raise _empty_split(split, labels, index, excluded)
    _warn_of_missing_classes(classes, splits["train"])
    return Manifest(classes, splits, excluded, _summary(classes, labels, splits, excluded))


def _one_file_an_id(index: pd.DataFrame) -> pd.DataFrame:
    """Keep the usable file where an id has a damaged one too; two usable ones are an error."""
    ordered = index.sort_values(
        ["status", "path"], ascending=[False, True], kind="stable"
    )  # ok before excluded
    twice = ordered[ordered["status"].eq("ok") & ordered.duplicated("id")]
    if len(twice):
        row = twice.iloc[0]
        other = ordered.loc[ordered["id"] == row["id"], "path"].iloc[0]
        raise UserError(
            f"{other} and {row['path']}: two videos with the id {row['id']} ({len(twice)} such pairs): keep "
            "one of them in the folder `data.videos`"
        )
    return ordered.drop_duplicates("id")


def _sorted_by_id(table: pd.DataFrame) -> pd.DataFrame:
    """Sort as people count: 2 before 10, clip2 before clip10."""
    keys = [
        ([int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", identifier)], identifier)
        for identifier in table["id"]
    ]
    return table.iloc[sorted(range(len(keys)), key=keys.__getitem__)].reset_index(drop=True)


def _empty_split(split: str, labels: pd.DataFrame, index: pd.DataFrame, excluded: pd.DataFrame) -> UserError:
    labelled = labels.loc[labels["split"] == split, "id"]
    if labelled.empty:
        return UserError(f"manifest: the labels have no rows for {split}: check the files of `data.labels`")
    reasons = excluded.loc[excluded["split"] == split, "reason"].value_counts()
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    if reasons.index[0] == NO_VIDEO_FILE:
        strangers = excluded.loc[excluded["reason"] == NO_LABEL, "path"]
        example = f" (a file is {strangers.iloc[0]!r}, an id {labelled.iloc[0]!r})" if len(strangers) else ""
        mend = f"check that `data.videos` is their folder, with all archive parts unpacked{example}"
    else:
        damaged = excluded.loc[(excluded["split"] == split) & (excluded["path"] != ""), "path"].iloc[0]
        mend = f"the files are damaged (such as {damaged!r}): download and unpack the archive again"
    return UserError(
        f"manifest: none of the {len(labelled)} videos of {split} can be used "
        f"({counts}; {len(index)} files found): {mend}"
    )


def _warn_of_missing_classes(classes: list[str], train: pd.DataFrame) -> None:
    present = set(train["class"])
    missing = [name for number, name in enumerate(classes) if number not in present]
    if missing:
        log.warning(
            "no training video for %d of %d classes, such as %r", len(missing), len(classes), missing[0]
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


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file and rename, so that a reader sees the old file or the new one, whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
