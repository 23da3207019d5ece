"""Reads what the report shows about tables, networks and classes from the files of `results/`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ffnrepro.ensembles import member_records, network_folders
from ffnrepro.errors import UserError
from ffnrepro.files import read_record
from ffnrepro.runs import read_run, unpublished_settings
from ffnrepro.table_text import Block, table_blocks
from ffnrepro.tables import Published, frame_counts

MAX_PAIRS = 8
"""Number of confused pairs of each row that are listed."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its name.
        numbers: columns of `ffnrepro.tables.assemble_table`.
        evaluations: frame count -> the records of its evaluations, one for each seed.
        is_ffn: whether its networks are of the method `ffn`.
    """

    label: str
    numbers: Mapping[str, Any]
    evaluations: Mapping[int, Sequence[Path]]
    is_ffn: bool

    def published(self, frames: Iterable[int]) -> dict[int, float]:
        """Published top-1 in percent on the evaluated data set, by frame count, where there is one."""
        figures = {n: self.numbers[f"published_{n}f"] for n in frames}
        return {n: top1 for n, top1 in figures.items() if top1 is not None}


@dataclass(frozen=True)
class Table:
    """A table, read from `results/{table}.json`.

    Attributes:
        name: its name in the configuration.
        dataset: data set that was evaluated.
        split: split that was evaluated.
        frames: frame counts of its columns.
        rows: its rows.
        numbers: the rows as `ffnrepro.tables.assemble_table` returns them.
        blocks: the parts of its text.
    """

    name: str
    dataset: str
    split: str
    frames: Sequence[int]
    rows: Sequence[Row]
    numbers: pd.DataFrame
    blocks: Sequence[Block]

    @property
    def compared(self) -> tuple[Row, Row]:
        """The first row, and the row that is compared with it: the last of method `ffn`, else the last row."""
        others = [row for row in self.rows if row.is_ffn] or self.rows
        return self.rows[0], others[-1]

    @property
    def colours(self) -> dict[str, int]:
        """Number of the colour of each row, by label: 0 and 1 for the compared rows, in every table."""
        labels = dict.fromkeys(row.label for row in (*self.compared, *self.rows))
        return {label: number for number, label in enumerate(labels)}


@dataclass(frozen=True)
class Training:
    """A trained or imported network.

    Attributes:
        run: name of its run.
        seed: its seed.
        record: its `run.json`.
        history: a row for each epoch; no row if the network was imported.
        changes: its settings that differ from the published recipe.
    """

    run: str
    seed: int
    record: Mapping[str, Any]
    history: pd.DataFrame
    changes: Sequence[str]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of one seed. A number of a table is computed from one or several of them.

    Attributes:
        table: name of the table.
        label: name of the row.
        frames: frame count.
        path: its record.
        record: content of its record.
        networks: run and seed of each network that it evaluates; several for an ensemble.
    """

    table: str
    label: str
    frames: int
    path: Path
    record: Mapping[str, Any]
    networks: Sequence[str]


@dataclass(frozen=True)
class Confusion:
    """Two classes that are confused.

    Attributes:
        true: class of the videos.
        predicted: class that is predicted instead.
        first: percentage of the videos of the class `true` that the first row predicts as the class `predicted`.
        second: the same percentage for the other row.
    """

    true: int
    predicted: int
    first: float
    second: float


def read_required(path: Path) -> dict[str, Any]:
    """Read a JSON file that the workflow has written.

    Raises:
        UserError: it cannot be read.
    """
    record = read_record(path)
    if not record:
        raise UserError(f"{path}: cannot be read; delete it and run snakemake again")
    return record


def read_table(path: Path, published: Published) -> Table:
    """Read `results/{table}.json`.

    Raises:
        UserError: it, or a record behind it, cannot be read.
    """
    content = read_required(path)
    rows = []
    for row in content["rows"]:
        evaluations = {
            int(n): [Path(record) for record in records] for n, records in row["evaluations"].items()
        }
        (first, *_), *_ = evaluations.values()
        run = read_required(member_records(first)[0].with_name("run.json"))
        is_ffn = "+" not in first.parts[-3] and run["settings"]["method"]["method"] == "ffn"
        rows.append(Row(row["label"], row["numbers"], evaluations, is_ffn))
    numbers = pd.DataFrame([row.numbers for row in rows])
    return Table(
        name=path.stem,
        dataset=content["dataset"],
        split=content["split"],
        frames=frame_counts(numbers),
        rows=rows,
        numbers=numbers,
        blocks=table_blocks(numbers, published=published, dataset=content["dataset"]),
    )


def read_evaluations(tables: Iterable[Table]) -> list[Evaluation]:
    """Read the records of all evaluations of the tables.

    Raises:
        UserError: one of them cannot be read.
    """
    return [
        Evaluation(
            table=table.name,
            label=row.label,
            frames=n,
            path=path,
            record=read_required(path),
            networks=[f"{member.parts[-3]}, {member.parts[-2]}" for member in member_records(path)],
        )
        for table in tables
        for row in table.rows
        for n, paths in row.evaluations.items()
        for path in paths
    ]


def read_trainings(evaluations: Iterable[Evaluation]) -> list[Training]:
    """Read each network behind the evaluations once.

    Raises:
        UserError: a file of a run cannot be read.
    """
    return [
        Training(
            run=folder.parent.name,
            seed=int(folder.name.removeprefix("seed")),
            record=read_required(folder / "run.json"),
            history=pd.read_parquet(folder / "history.parquet"),
            changes=unpublished_settings(read_run(folder.parent)[0]),
        )
        for folder in network_folders(each.path for each in evaluations)
    ]


def read_predictions(records: Sequence[Path]) -> pd.DataFrame:
    """Read the predicted class of each video, of all seeds: `id`, `label`, `class_1` and `seed` (position, from 0)."""
    parts = [
        pd.read_parquet(path.with_suffix(".parquet"), columns=["id", "label", "class_1"]).assign(seed=seed)
        for seed, path in enumerate(records)
    ]
    return pd.concat(parts, ignore_index=True)


def class_accuracy(predictions: pd.DataFrame, classes: int) -> "pd.Series[float]":
    """Top-1 accuracy of each class in percent, over all seeds, by index; NaN for a class without videos.

    Args:
        predictions: from `read_predictions`.
        classes: number of classes.
    """
    right = predictions["class_1"] == predictions["label"]
    return 100 * right.groupby(predictions["label"]).mean().reindex(range(classes))


def confusions(first: pd.DataFrame, second: pd.DataFrame) -> list[Confusion]:
    """The most confused pairs of classes: those of the other row, then further ones of the first row.

    Args:
        first: `read_predictions` of the first row.
        second: `read_predictions` of the other row.
    """
    shares = []
    for predictions in (second, first):
        videos = predictions["label"].value_counts()
        wrong = predictions[predictions["class_1"] != predictions["label"]]
        counts = wrong.groupby(["label", "class_1"]).size()
        shares.append(100 * counts / videos.reindex(counts.index.get_level_values(0)).to_numpy())
    ranked = [share.sort_values(ascending=False, kind="stable").index[:MAX_PAIRS] for share in shares]
    pairs = dict.fromkeys([*ranked[0], *ranked[1]])
    return [
        Confusion(
            int(true), int(predicted), *(float(share.get((true, predicted), 0.0)) for share in shares[::-1])
        )
        for true, predicted in pairs
    ]
