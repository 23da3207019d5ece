"""Tables of accuracy by method and frame count, with intervals, and the figures that the paper publishes."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from ffnrepro.ensembles import member_records
from ffnrepro.errors import UserError
from ffnrepro.files import network_digest, read_record
from ffnrepro.statistics import Scores, bootstrap_interval

REFERENCES = ("something-something-v2", "something-something-v1")
"""Data sets whose published figures are shown separately if the evaluated data set has none. The second has the ablations."""

Published = Sequence[Mapping[str, str]]
"""The rows of `resources/published.csv`."""

Records = Mapping[Path, Mapping[str, Any]]
"""The records that `evaluate` writes, by path."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
        label: the name of the row in the table.
        published: method and setting (None: the plain method) of the published figures to compare with; None: no figures.
        evaluations: frame count -> paths of the records of its evaluations, one per seed.
        compare_with: label of the row that it is compared with; None: the first row of the table.
    """

    label: str
    published: tuple[str, str | None] | None
    evaluations: dict[int, list[Path]]
    compare_with: str | None = None


def read_rows(text: str) -> list[TableRow]:
    """Read the rows of a table from JSON: a list of objects with the attributes of `TableRow`."""
    return TypeAdapter(list[TableRow]).validate_json(text)


def read_published(path: Path) -> Published:
    """Read `resources/published.csv`."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_accuracy(
    published: Published, dataset: str, method: str, setting: str | None = None
) -> dict[int, float]:
    """Published top-1 accuracy in percent by frame count; empty if nothing is published.

    Args:
        published: `resources/published.csv`.
        dataset: as in the column `dataset`.
        method: as in the column `method`.
        setting: as in the column `setting`: an ablation, depth or ratio; None: the plain method.
    """
    key = (dataset, method, setting or "")
    return {
        int(figure["frames"]): float(figure["top1"])
        for figure in published
        if (figure["dataset"], figure["method"], figure["setting"]) == key
    }


def check_published(rows: Sequence[TableRow], published: Published) -> None:
    """Refuse a row that names a method or setting without published figures on any data set.

    Raises:
        UserError: there is such a row.
    """
    known = {(figure["method"], figure["setting"]) for figure in published}
    for row in rows:
        if row.published and (row.published[0], row.published[1] or "") not in known:
            method, setting = row.published
            legal = [
                f"{name}, {of_method}".rstrip(", ") for name, of_method in sorted(known) if name == method
            ]
            raise UserError(
                f"config: tables: row {row.label!r}: published.method {method!r} with setting {setting!r} is not in "
                f"resources/published.csv; it has {'; '.join(legal or sorted({name for name, _ in known}))}"
            )


def read_records(rows: Sequence[TableRow], inputs: Mapping[str, Any]) -> Records:
    """Read the records of all evaluations of a table, and refuse them if any is missing or stale.

    Args:
        rows: rows of the table.
        inputs: `evaluation_inputs` of the table.

    Raises:
        UserError: a record, or the `run.json` of a network, belongs to another network, data, settings or code.
    """
    records: dict[Path, Mapping[str, Any]] = {}
    stale: dict[Path, str] = {}
    cells = [(path, frames) for row in rows for frames, paths in row.evaluations.items() for path in paths]
    for path, frames in cells:
        for file, content in _expected_records(path, frames, inputs).items():
            record = records[file] = read_record(file)
            # The first eight digits of a digest are enough to see the difference.
            differences = [
                f"{key} is {_first_digits(record.get(key, 'missing'))} and should be {_first_digits(value)}"
                if key in ("model", "start_model", "data", "code")
                else f"{key} is {record.get(key, 'missing')} and should be {value}"
                for key, value in content.items()
                if record.get(key) != value
            ]
            if differences:
                stale[file] = ", ".join(differences) if record else "cannot be read"
    if stale:
        file, difference = next(iter(stale.items()))
        raise UserError(
            f"{file}: {difference}; remake all stale files, with your --directory and --configfile: "
            f"snakemake --cores 1 --force {' '.join(map(str, stale))}"
        )
    return records


def _expected_records(path: Path, frames: int, inputs: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """The expected content of the files behind an evaluation: its own record and, for each network, `run.json` and the evaluation."""
    expected: dict[Path, dict[str, Any]] = {}
    members = member_records(path)
    for run in (member.with_name("run.json") for member in members):
        expected[run] = {"model": network_digest(run.parent), "data": inputs["data"]}
        # If the training started from the network of another run, that network counts, too.
        start = read_record(run)
        if start.get("start_model") and Path(start["start"]).exists():
            expected[run]["start_model"] = network_digest(Path(start["start"]).parent)
    for file in (*members, path):
        name, seed = file.parts[-3], int(file.parts[-2].removeprefix("seed"))
        model = " ".join(network_digest(member.parent) for member in member_records(file))
        expected[file] = {"run": name, "seed": seed, "frames": frames, "model": model, **inputs}
    return expected


def _first_digits(digests: Any) -> str:
    return " ".join(digest[:8] for digest in str(digests).split())


def read_scores(rows: Sequence[TableRow], records: Records) -> pd.DataFrame:
    """Read which videos each evaluation of a table predicts correctly, from the predictions stored with its record.

    Args:
        rows: rows of the table.
        records: records of its evaluations.

    Returns:
        1 if the prediction is right, else 0; by id of the video (rows) and path of the record (columns).

    Raises:
        UserError: the predictions do not give the top-1 of their record.
    """
    paths = [path for row in rows for paths in row.evaluations.values() for path in paths]
    return pd.DataFrame({path: read_correct(path, "class_1", records[path]["top1"]) for path in paths})


def read_correct(record: Path, column: str, top1: float) -> "pd.Series[int]":
    """Read which videos an evaluation predicts correctly.

    Args:
        record: record of the evaluation; the predictions are in the same folder.
        column: column of the predictions.
        top1: top-1 accuracy in percent, as recorded.

    Returns:
        1 if the prediction is right, else 0; by id of the video.

    Raises:
        UserError: the predictions cannot be read, or have another top-1.
    """
    file = record.with_suffix(".parquet")
    again = f"remake both, with your --directory and --configfile: snakemake --cores 1 --force {record}"
    try:
        predictions = pd.read_parquet(file, columns=["id", "label", column]).set_index("id")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {again}") from error
    right = (predictions[column] == predictions["label"]).astype("int8")
    if (found := 100 * int(right.sum()) / len(right)) != top1:
        raise UserError(f"{file}: its top-1 is {found} and should be {top1}, as in {record.name}; {again}")
    return right


def assemble_table(
    rows: Sequence[TableRow], records: Records, scores: pd.DataFrame, *, published: Published, dataset: str
) -> pd.DataFrame:
    """Make the table, one line per row.

    Args:
        rows: rows of the table.
        records: records of its evaluations.
        scores: `read_scores` of these rows.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.

    Returns:
        These columns, where `4f` stands for each frame count:

        - `method` (the row's label), `parameters` (sum over the networks of one seed), `videos`, and `published` (method and
          setting that the row is compared with).
        - `top1_4f` in percent, with its 95 % interval from `low_4f` to `high_4f`. With n seeds it is the mean,
          `deviation_4f` is the sample standard deviation (n - 1), and `seeds` is n.
        - `compared_with` (label of another row), and `gain_4f`: difference from that row on the same videos, in points, with
          its 95 % interval from `gain_low_4f` to `gain_high_4f`; empty in the first row.
        - `published_4f`, and `difference_4f`: ours minus published, in points.
        - `gflops_4f` (10^9 multiply-adds of a video) and `clips_per_second_4f` (through the network alone, mean of the
          seeds).
        - `checkpoint`: digests of the networks, in the order of the frame counts.
    """
    correct = {
        row.label: {n: scores[paths].to_numpy().T for n, paths in row.evaluations.items()} for row in rows
    }
    lines = []
    for row in rows:
        own = correct[row.label]
        compare_with = row.compare_with or (None if row is rows[0] else rows[0].label)
        other = correct[compare_with] if compare_with else {}
        figures = published_accuracy(published, dataset, *row.published) if row.published else {}
        of_row = {n: [records[path] for path in paths] for n, paths in row.evaluations.items()}
        networks = {record["model"]: record["parameters"] for cell in of_row.values() for record in cell}
        of_one_seed = {cell[0]["model"] for cell in of_row.values()}
        seeds = max(map(len, of_row.values()))
        cells = {n: _cell(of_row[n], own[n], other=other.get(n), figure=figures.get(n)) for n in own}
        lines.append(
            {
                "method": row.label,
                "parameters": sum(networks[model] for model in of_one_seed),
                "videos": len(scores),
                **({"seeds": seeds} if seeds > 1 else {}),
                "published": ", ".join(filter(None, row.published)) if row.published else None,
                "compared_with": compare_with,
                **{f"{name}_{n}f": cells[n][name] for name in next(iter(cells.values())) for n in cells},
                "checkpoint": " ".join(networks),
            }
        )
    return pd.DataFrame(lines)


def _cell(
    records: Sequence[Mapping[str, Any]], own: Scores, *, other: Scores | None, figure: float | None
) -> dict[str, float | None]:
    """The numbers of a row at one frame count: see `assemble_table`.

    Args:
        records: record of each seed.
        own: (seeds, videos), 1 where the prediction is right, else 0.
        other: the same for the row that this row is compared with; None: there is no such row.
        figure: the published top-1.
    """
    top1 = [record["top1"] for record in records]
    low, high = bootstrap_interval(own)
    cell: dict[str, float | None] = {"top1": fmean(top1), "low": low, "high": high}
    if len(top1) > 1:
        cell["deviation"] = stdev(top1)
    cell |= dict.fromkeys(("gain", "gain_low", "gain_high"))
    if other is not None:
        low, high = bootstrap_interval(own - other)
        cell |= {"gain": 100 * float((own - other).mean()), "gain_low": low, "gain_high": high}
    cell |= {"published": figure, "difference": None if figure is None else fmean(top1) - figure}
    cell["clips_per_second"] = fmean(record["clips_per_second"] for record in records)
    rounded = {name: None if value is None else round(value, 2) for name, value in cell.items()}
    return rounded | {"gflops": records[0]["gflops"]}


def published_elsewhere(
    table: pd.DataFrame, *, published: Published, dataset: str
) -> dict[str, dict[str, dict[int, float]]]:
    """Published figures of other data sets, for comparison where there are none on the evaluated data set.

    Args:
        table: a table of `assemble_table`.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.

    Returns:
        Data set -> label of a row -> frame count -> top-1 in percent. A data set of `REFERENCES` is there if it has a figure
        for a row and a frame count that neither the evaluated data set nor an earlier data set has a figure for.
    """
    frames, found = frame_counts(table), {}
    seen: set[tuple[str, int]] = set()
    for source in (dataset, *REFERENCES):
        curves: dict[str, dict[int, float]] = {}
        for label, name in table.loc[table["published"].notna(), ["method", "published"]].itertuples(
            index=False
        ):
            method, _, setting = name.partition(", ")
            figures = published_accuracy(published, source, method, setting)
            curves[label] = {n: figures[n] for n in frames if n in figures}
        cells = {(label, n) for label, curve in curves.items() for n in curve}
        if source != dataset and cells - seen:
            found[source] = {label: curve for label, curve in curves.items() if curve}
        seen |= cells
    return found


def frame_counts(table: pd.DataFrame) -> list[int]:
    """Frame counts of a table's columns `top1_{n}f`."""
    return [int(name[5:-1]) for name in table.columns if name.startswith("top1_")]
