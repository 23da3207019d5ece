"""Pictures: accuracy against frame count; what the splits hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ffnrepro.files import replacing
from ffnrepro.tables import REFERENCE, frame_counts, published_accuracy

_COLOURS = {"TSM": "#c44e52", "TSM-ST": "#8c8c8c", "TSM-FFN": "#4c72b0"}


def plot_accuracy(table: pd.DataFrame, *, published: pd.DataFrame, dataset: str, path: Path) -> None:
    """Draw top-1 accuracy against frame count, a line a method; published figures dashed; with several seeds bars of the deviation.

    Where nothing is published on the data set, the published figures of Something-Something V2 stand in a panel of
    their own, to compare the shape with.

    Args:
        table: of `assemble_table`.
        published: `resources/published.csv`.
        dataset: that was evaluated.
        path: of the picture; its ending gives the format.
    """
    frames = frame_counts(table)
    own = {str(row["method"]): {n: row[f"top1_{n}f"] for n in frames} for _, row in table.iterrows()}
    same = _curves(published_accuracy(published, dataset), list(own), frames)
    elsewhere = {} if same else _curves(published_accuracy(published, REFERENCE), list(_COLOURS), frames)

    figure = Figure(figsize=(9 if elsewhere else 5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if elsewhere else 1, sharey=True, squeeze=False)[0]
    _draw(panels[0], f"{dataset} (ours)" if elsewhere else dataset, own, frames, "o-", "")
    if "seeds" in table:  # bars of one sample standard deviation
        for _, row in table.iterrows():
            deviation = [row[f"deviation_{n}f"] for n in frames]
            panels[0].errorbar(
                frames, list(own[str(row["method"])].values()), deviation,
                fmt="none", capsize=3, color=_COLOURS.get(str(row["method"]), "black"),
            )  # fmt: skip
    _draw(panels[0], None, same, frames, "s--", " (published)")
    if elsewhere:
        _draw(panels[1], f"{REFERENCE} (published)", elsewhere, frames, "s--", "")
    panels[0].set_ylabel("top-1 accuracy (%)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


_SPLIT_COLOURS = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}


def plot_class_counts(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the videos of each class, the largest class first, a line a split.

    Args:
        summary: of the manifest (`summary.json`).
        path: of the picture.
    """
    classes: dict[str, dict[str, int]] = summary["classes"]
    names = sorted(classes, key=lambda name: -classes[name]["train"])
    figure, axes = _panel(len(names) / 4 if len(names) <= 30 else 8)
    for split, colour in _SPLIT_COLOURS.items():
        if any(counts[split] for counts in classes.values()):
            axes.step(
                range(len(names)), [classes[n][split] for n in names], where="mid", color=colour, label=split
            )
    axes.set_ylim(bottom=0)
    if len(names) <= 30:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    else:
        axes.set_xlabel(
            f"{len(names)} classes, most videos first (from {names[0]!r} to {names[-1]!r})", fontsize=7
        )
    axes.set_ylabel("videos")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_clip_lengths(summary: Mapping[str, Any], path: Path) -> None:
    """Draw how many videos have how many frames, a histogram a split.

    Args:
        summary: of the manifest (`summary.json`).
        path: of the picture.
    """
    lengths = {
        split: {int(n): count for n, count in rows.items()} for split, rows in summary["frames"].items()
    }
    longest = max(n for rows in lengths.values() for n in rows)
    step = -(-longest // 60)  # whole frames: other bins would hold now more lengths, now fewer
    edges = [0.5 + n for n in range(0, longest + step, step)]
    figure, axes = _panel(6)
    for split, colour in _SPLIT_COLOURS.items():
        if rows := lengths[split]:
            axes.hist(
                list(rows), weights=list(rows.values()), bins=edges,
                histtype="step", color=colour, label=split,
            )  # fmt: skip
    axes.set_xlabel("frames of a video")
    axes.set_ylabel("videos")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _panel(width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(max(width, 5), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _curves(
    figures: Mapping[str, Mapping[int, float]], methods: list[str], frames: list[int]
) -> dict[str, dict[int, float]]:
    """Published figures of these methods at the table's frame counts, where there are any."""
    curves = {
        method: {n: curve[n] for n in frames if n in curve}
        for method, curve in figures.items()
        if method in methods
    }
    return {method: curve for method, curve in curves.items() if curve}


def _draw(
    axes: Axes,
    title: str | None,
    curves: Mapping[str, Mapping[int, float]],
    frames: list[int],
    style: str,
    suffix: str,
) -> None:
    for method, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), style, color=_COLOURS.get(method), label=method + suffix)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(frames, [str(n) for n in frames])
    axes.set_xlabel("frames at inference")
    axes.grid(alpha=0.3)
    if title is not None:
        axes.set_title(title)
    if curves:
        axes.legend()
