"""Tables of accuracy by method and frame count, beside the figures that the paper publishes."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from pydantic import TypeAdapter
from tabulate import tabulate

from ffnrepro.ensembles import member_records
from ffnrepro.errors import UserError
from ffnrepro.files import network_digest, read_record

REFERENCE = "something-something-v2"
"""The data set whose published figures are shown for comparison if the evaluated data set has none."""

Published = Sequence[Mapping[str, str]]
"""The rows of `resources/published.csv`."""

Records = Mapping[Path, Mapping[str, Any]]
"""The records that `evaluate` writes, by path."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
        label: the name of the row; nothing else depends on it.
        published: method and setting (None: the plain one) of the published figures to compare with, or None.
        evaluations: frame count -> paths of the records of its evaluations, one per seed.
    """

    label: str
    published: tuple[str, str | None] | None
    evaluations: dict[int, list[Path]]


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


def evaluation_inputs(
    *, split: str, short_side: int, crop_size: int, manifest_digest: Path, code: str
) -> dict[str, Any]:
    """The inputs that all evaluations of a table share, with the keys of their records.

    Args:
        split: split that is evaluated.
        short_side: short side of the resized frames in pixels.
        crop_size: height and width of the clips in pixels.
        manifest_digest: the file `manifest.sha256`.
        code: digest of the scoring code.
    """
    data = manifest_digest.read_text(encoding="utf-8").strip()
    return {"split": split, "short_side": short_side, "crop_size": crop_size, "data": data, "code": code}


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
            f"{file}: {difference}; make all stale files again, with the --directory and --configfile of your call: "
            f"snakemake --cores 1 --force {' '.join(map(str, stale))}"
        )
    return records


def _expected_records(path: Path, frames: int, inputs: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """What the files behind an evaluation must hold: the records of its networks and of the evaluations of each, and its own."""
    expected: dict[Path, dict[str, Any]] = {}
    members = member_records(path)
    for run in (member.with_name("run.json") for member in members):
        expected[run] = {"model": network_digest(run.parent), "data": inputs["data"]}
        # Of the network that the training started from, where that is another run's.
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


def assemble_table(
    rows: Sequence[TableRow], records: Records, *, published: Published, dataset: str
) -> pd.DataFrame:
    """Make the table, one line per row.

    Args:
        rows: rows of the table.
        records: records of its evaluations.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.

    Returns:
        `method` (the row's label), `parameters` (sum over the networks of one seed), `top1_4f` ..., `videos`,
        `published` (method and setting that the row is compared with), `published_4f` ..., `difference_4f` ... in
        percent, and `checkpoint` (digests of the networks, in the order of the frame counts). With n seeds, `top1_4f` ...
        are means, `deviation_4f` ... are sample standard deviations (n - 1), and `seeds` is n.
    """
    return pd.DataFrame([_line(row, records, published=published, dataset=dataset) for row in rows])


def _line(row: TableRow, records: Records, *, published: Published, dataset: str) -> dict[str, Any]:
    figures = published_accuracy(published, dataset, *row.published) if row.published else {}
    cells = {frames: [records[path] for path in paths] for frames, paths in row.evaluations.items()}
    networks = {record["model"]: record["parameters"] for cell in cells.values() for record in cell}
    of_one_seed = {cell[0]["model"] for cell in cells.values()}
    top1 = {frames: [record["top1"] for record in cell] for frames, cell in cells.items()}
    mean = {frames: fmean(values) for frames, values in top1.items()}
    seeds = max(map(len, top1.values()))
    several = {f"deviation_{n}f": round(stdev(values), 2) for n, values in top1.items()} if seeds > 1 else {}
    return {
        "method": row.label,
        "parameters": sum(networks[model] for model in of_one_seed),
        **{f"top1_{n}f": round(value, 2) for n, value in mean.items()},
        **(several | {"seeds": seeds} if several else {}),
        "videos": next(iter(cells.values()))[0]["videos"],
        "published": ", ".join(filter(None, row.published)) if row.published else None,
        **{f"published_{n}f": figures.get(n) for n in cells},
        **{f"difference_{n}f": round(mean[n] - figures[n], 2) if n in figures else None for n in cells},
        "checkpoint": " ".join(networks),
    }


def published_elsewhere(
    published: Published, dataset: str, frames: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Published figures of the plain methods on the reference data set, if there are none for the evaluated data set.

    Args:
        published: `resources/published.csv`.
        dataset: data set that was evaluated.
        frames: frame counts of the table.

    Returns:
        Method -> frame count -> top-1 in percent, without methods that have no figure at the table's frame counts.
    """
    if any(figure["dataset"] == dataset for figure in published):
        return {}
    methods = dict.fromkeys(figure["method"] for figure in published)
    curves = {
        method: {
            count: top1
            for count, top1 in published_accuracy(published, REFERENCE, method).items()
            if count in frames
        }
        for method in methods
    }
    return {method: curve for method, curve in curves.items() if curve}


def table_markdown(table: pd.DataFrame, *, published: Published, dataset: str) -> str:
    """The table as Markdown: accuracy, with the published figure and the difference beside it."""
    frames = frame_counts(table)
    header = ["method", "parameters", *[f"{n} frames" for n in frames], "videos"]
    body = [
        [
            str(row["method"]),
            f"{row['parameters']:,}",
            *[_cell(row, n) for n in frames],
            f"{row['videos']:,}",
        ]
        for row in table.to_dict("records")
    ]
    text = f"Top-1 accuracy in percent on {dataset}, by frame count."
    if "seeds" in table:
        text += f" Mean ± sample standard deviation of {table['seeds'].max()} seeds."
    if table.filter(like="difference_").notna().to_numpy().any():
        text += " In brackets: the published figure, and the difference from it."
    text += f"\n\n{_markdown(header, body)}"
    if elsewhere := published_elsewhere(published, dataset, frames):
        lines = [
            [method, *[f"{curve[n]:.2f}" if n in curve else "" for n in frames]]
            for method, curve in elsewhere.items()
        ]
        text += (
            f"\nNothing is published on {dataset}. To compare the pattern, these are the published figures on {REFERENCE}:"
            f"\n\n{_markdown(['method', *[f'{n} frames' for n in frames]], lines)}"
        )
    return text


def _cell(row: Mapping[Any, Any], frames: int) -> str:
    cell = f"{row[f'top1_{frames}f']:.2f}"
    if "seeds" in row:
        cell += f" ± {row[f'deviation_{frames}f']:.2f}"
    if not pd.isna(row[f"published_{frames}f"]):
        cell += f" ({row[f'published_{frames}f']:.2f}, {row[f'difference_{frames}f']:+.2f})"
    return cell


def frame_counts(table: pd.DataFrame) -> list[int]:
    """Frame counts of a table's columns `top1_{n}f`."""
    return [int(name[5:-1]) for name in table.columns if name.startswith("top1_")]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(body, header, tablefmt="pipe", colalign=aligned, disable_numparse=True) + "\n"
