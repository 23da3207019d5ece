"""Table 1: accuracy by method and frame count, beside the published figures."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from ffnrepro.errors import UserError

REFERENCE = "something-something-v2"
"""The data set whose published figures are shown for comparison where the evaluated one has none."""


def published_accuracy(published: pd.DataFrame, dataset: str) -> dict[str, dict[int, float]]:
    """Published top-1 accuracy in percent on a data set: method -> frame count -> figure.

    Args:
        published: `resources/published.csv`.
        dataset: as in the column `dataset`; one that is not there gives an empty mapping.
    """
    plain = published["dataset"].eq(dataset) & published["setting"].isna()  # no ablation, depth or ratio
    figures: dict[str, dict[int, float]] = {}
    for row in published[plain].to_dict("records"):
        figures.setdefault(str(row["method"]), {}).setdefault(int(row["frames"]), float(row["top1"]))
    return figures


def assemble_table(
    rows: Sequence[tuple[str, dict[int, list[dict[str, Any]]]]], *, published: pd.DataFrame, dataset: str
) -> pd.DataFrame:
    """One row a method.

    Args:
        rows: (method, frame count -> summaries of evaluations as `evaluate` writes them, one a seed).
        published: `resources/published.csv`.
        dataset: that was evaluated.

    Returns:
        `method`, `parameters` (of the networks of a seed together), `top1_4f` ..., `videos`, `published_4f` ...,
        `difference_4f` ... in percent, `checkpoint` (digests of the networks, in the order of the frame counts). With
        several seeds `top1` is their mean, and `deviation_4f` ... their sample standard deviation (n - 1); `seeds` is n.

    Raises:
        UserError: the evaluations of a row counted different numbers of videos.
    """
    reference = published_accuracy(published, dataset)
    lines = []
    for method, cells in rows:
        networks = {summary["model"]: summary["parameters"] for cell in cells.values() for summary in cell}
        first = {cell[0]["model"]: cell[0]["parameters"] for cell in cells.values()}
        counted = {summary["videos"] for cell in cells.values() for summary in cell}
        top1 = {n: [summary["top1"] for summary in cell] for n, cell in cells.items()}
        mean = {n: round(statistics.fmean(values), 2) for n, values in top1.items()}
        seeds = max(map(len, top1.values()))
        if len(counted) != 1:
            raise UserError(
                f"table row {method}: its evaluations counted {sorted(counted)} videos; they must be of one manifest: "
                "delete results/evaluation and run again"
            )
        figures = reference.get(method, {})
        lines.append(
            {
                "method": method,
                "parameters": sum(first.values()),
                **{f"top1_{n}f": value for n, value in mean.items()},
                **(
                    {f"deviation_{n}f": round(statistics.stdev(values), 2) for n, values in top1.items()}
                    if seeds > 1
                    else {}
                ),
                **({"seeds": seeds} if seeds > 1 else {}),
                "videos": counted.pop(),
                **{f"published_{n}f": figures.get(n) for n in cells},
                **{
                    f"difference_{n}f": round(statistics.fmean(values) - figures[n], 2)
                    if n in figures
                    else None
                    for n, values in top1.items()
                },
                "checkpoint": " ".join(networks),
            }
        )
    return pd.DataFrame(lines)


def table_markdown(table: pd.DataFrame, *, published: pd.DataFrame, dataset: str) -> str:
    """The table for people: accuracy with the published figure and the difference beside it."""
    frames = frame_counts(table)
    known = bool(published_accuracy(published, dataset))
    several = "seeds" in table
    header = ["method", "parameters", *[f"{n} frames" for n in frames], "videos"]
    body = []
    for _, row in table.iterrows():
        cells = []
        for n in frames:
            cell = f"{row[f'top1_{n}f']:.2f}"
            if several:
                cell += f" ± {row[f'deviation_{n}f']:.2f}"
            if not pd.isna(row[f"published_{n}f"]):
                cell += f" ({row[f'published_{n}f']:.2f}, {row[f'difference_{n}f']:+.2f})"
            cells.append(cell)
        body.append([str(row["method"]), f"{row['parameters']:,}", *cells, f"{row['videos']:,}"])
    legend = " In brackets: the published figure, and the difference to it." if known else ""
    if several:
        legend = f" Mean ± sample standard deviation of {table['seeds'].max()} seeds.{legend}"
    text = f"Top-1 accuracy in percent on {dataset}, by frame count.{legend}\n\n{_markdown(header, body)}"
    if not known:
        figures = published_accuracy(published, REFERENCE)
        lines = [
            [method, *[f"{curve[n]:.2f}" if n in curve else "" for n in frames]]
            for method, curve in figures.items()
        ]
        text += (
            f"\nNothing is published on {dataset}. The published figures on {REFERENCE}, to compare the shape with:"
            f"\n\n{_markdown(['method', *[f'{n} frames' for n in frames]], lines)}"
        )
    return text


def frame_counts(table: pd.DataFrame) -> list[int]:
    """Frame counts of a table's columns `top1_{n}f`."""
    return [int(name[5:-1]) for name in table.columns if name.startswith("top1_")]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(body, header, tablefmt="pipe", colalign=aligned, disable_numparse=True) + "\n"


def read_published(path: Path) -> pd.DataFrame:
    """Read `resources/published.csv`."""
    return pd.read_csv(
        path, dtype={"dataset": "string", "method": "string", "setting": "string", "frames": "int64"}
    )


def read_summary(path: Path) -> dict[str, Any]:
    """Read the summary of an evaluation."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary
