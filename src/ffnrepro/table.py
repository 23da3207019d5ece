"""Table 1: accuracy by method and frame count, beside the published figures."""

import json
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
    rows: Sequence[tuple[str, dict[int, dict[str, Any]]]], *, published: pd.DataFrame, dataset: str
) -> pd.DataFrame:
    """One row a method.

    Args:
        rows: (method, frame count -> summary of an evaluation as `evaluate` writes it).
        published: `resources/published.csv`.
        dataset: that was evaluated.

    Returns:
        `method`, `parameters` (of all networks of the row together), `top1_4f` ..., `videos`, `published_4f` ...,
        `difference_4f` ... in percent, `checkpoint` (digests of the networks, in the order of the frame counts).

    Raises:
        UserError: the evaluations of a row counted different numbers of videos.
    """
    reference = published_accuracy(published, dataset)
    lines = []
    for method, cells in rows:
        networks = {cell["model"]: cell["parameters"] for cell in cells.values()}
        counted = {cell["videos"] for cell in cells.values()}
        if len(counted) != 1:
            raise UserError(
                f"table row {method}: its evaluations counted {sorted(counted)} videos; they must be of one manifest: "
                "delete results/evaluation and run again"
            )
        figures = reference.get(method, {})
        lines.append(
            {
                "method": method,
                "parameters": sum(networks.values()),
                **{f"top1_{n}f": round(cell["top1"], 2) for n, cell in cells.items()},
                "videos": counted.pop(),
                **{f"published_{n}f": figures.get(n) for n in cells},
                **{
                    f"difference_{n}f": round(cell["top1"] - figures[n], 2) if n in figures else None
                    for n, cell in cells.items()
                },
                "checkpoint": " ".join(networks),
            }
        )
    return pd.DataFrame(lines)


def table_markdown(table: pd.DataFrame, *, published: pd.DataFrame, dataset: str) -> str:
    """The table for people: accuracy with the published figure and the difference beside it."""
    frames = frame_counts(table)
    known = bool(published_accuracy(published, dataset))
    header = ["method", "parameters", *[f"{n} frames" for n in frames], "videos"]
    body = []
    for _, row in table.iterrows():
        cells = []
        for n in frames:
            cell = f"{row[f'top1_{n}f']:.2f}"
            if not pd.isna(row[f"published_{n}f"]):
                cell += f" ({row[f'published_{n}f']:.2f}, {row[f'difference_{n}f']:+.2f})"
            cells.append(cell)
        body.append([str(row["method"]), f"{row['parameters']:,}", *cells, f"{row['videos']:,}"])
    legend = " In brackets: the published figure, and the difference to it." if known else ""
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
