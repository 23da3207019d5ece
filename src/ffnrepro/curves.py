"""The curve of a table: accuracy of its networks at any frame count (paper, Table 7).

A row with one network is a curve over `evaluation.any_frame`, from one evaluation at all these frame counts.
Every other row, such as TSM-ST with a network for each frame count, has points at the table's frame counts,
from the evaluations of the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from ffnrepro.statistics import bootstrap_interval
from ffnrepro.tables import Published, Records, TableRow, published_accuracy, read_correct, read_records

CurveScores = Mapping[tuple[Path, int], "pd.Series[int]"]
"""By path of the record and frame count: which videos are predicted correctly, by id of the video."""

PUBLISHED_ON = "something-something-v1"
"""The data set on which the paper publishes accuracy at any frame count."""


def read_curve_records(
    rows: Sequence[TableRow], inputs: Mapping[str, Any], frame_counts: Sequence[int]
) -> Records:
    """Read the records of all evaluations of a curve, and refuse them if any is missing or stale.

    Args:
        rows: rows of the table; a row of `evaluate_any_frame` has the same records at all frame counts.
        inputs: `evaluation_inputs` of the table.
        frame_counts: frame counts of `evaluate_any_frame`.

    Raises:
        UserError: a record belongs to another network, data, settings, code or frame counts.
    """
    at_any = [row for row in rows if _is_at_any_frame(row)]
    points = [row for row in rows if not _is_at_any_frame(row)]
    return {**read_records(at_any, {**inputs, "frames": list(frame_counts)}), **read_records(points, inputs)}


def _is_at_any_frame(row: TableRow) -> bool:
    return all(path.stem.endswith("_any_frame") for paths in row.evaluations.values() for path in paths)


def read_curve_scores(rows: Sequence[TableRow], records: Records) -> CurveScores:
    """Read which videos each evaluation of a curve predicts correctly, from the predictions stored with its record.

    Raises:
        UserError: the predictions do not give the top-1 of their record.
    """
    return {
        (path, frames): read_correct(
            path, f"class_{frames}f" if _is_at_any_frame(row) else "class_1", _top1(records[path], frames)
        )
        for row in rows
        for frames, paths in row.evaluations.items()
        for path in paths
    }


def _top1(record: Mapping[str, Any], frames: int) -> float:
    """Top-1 accuracy at a frame count; the record of `evaluate_any_frame` has one for each of its frame counts."""
    top1 = record["top1"]
    return float(top1[str(frames)] if isinstance(top1, Mapping) else top1)


def assemble_curve(
    rows: Sequence[TableRow], records: Records, scores: CurveScores, *, published: Published, dataset: str
) -> pd.DataFrame:
    """Make the curves of a table, one line per row and frame count.

    Args:
        rows: rows of the table.
        records: records of its evaluations.
        scores: `read_curve_scores` of these rows.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.

    Returns:
        `method` (the row's label), `run`, `frames`, `top1` with its 95 % interval from `low` to `high`,
        `videos`, `published` (method and setting that the row is compared with), `published_top1` (None where
        the data set has no such figure), `difference`, `published_on_v1` (the figure on Something-Something
        V1, if another data set was evaluated) and `checkpoint` (digests of the networks, one per seed).
        Accuracy is in percent. With n seeds, `top1` is the mean, `deviation` the sample standard deviation
        (n - 1), and `seeds` is n.
    """
    return pd.DataFrame(
        [line for row in rows for line in _lines(row, records, scores, published=published, dataset=dataset)]
    )


def _lines(
    row: TableRow, records: Records, scores: CurveScores, *, published: Published, dataset: str
) -> Iterator[dict[str, Any]]:
    figures, on_v1 = (
        published_accuracy(published, name, *row.published) if row.published else {}
        for name in (dataset, PUBLISHED_ON)
    )
    if dataset == PUBLISHED_ON:
        on_v1 = {}
    for frames, paths in row.evaluations.items():
        cell = [records[path] for path in paths]
        top1 = [_top1(record, frames) for record in cell]
        low, high = bootstrap_interval(
            pd.concat([scores[path, frames] for path in paths], axis=1).to_numpy().T
        )
        mean, figure = fmean(top1), figures.get(frames)
        several = {"deviation": round(stdev(top1), 2), "seeds": len(top1)} if len(top1) > 1 else {}
        yield {
            "method": row.label,
            "run": cell[0]["run"],
            "frames": frames,
            "top1": round(mean, 2),
            "low": round(low, 2),
            "high": round(high, 2),
            **several,
            "videos": cell[0]["videos"],
            "published": ", ".join(filter(None, row.published)) if row.published else None,
            "published_top1": figure,
            "difference": None if figure is None else round(mean - figure, 2),
            "published_on_v1": on_v1.get(frames),
            "checkpoint": " ".join(record["model"] for record in cell),
        }
