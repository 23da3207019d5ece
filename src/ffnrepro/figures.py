"""Pictures: accuracy against frame count, videos per class, lengths of the videos."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ffnrepro.files import replacing
from ffnrepro.tables import REFERENCE, Published, frame_counts, published_elsewhere

_SPLIT_COLOURS = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}
_NAMED_CLASSES = 30
"""Up to so many classes are drawn with their names."""


def accuracy_figure(table: pd.DataFrame, *, published: Published, dataset: str) -> Figure:
    """Draw top-1 accuracy against frame count, a line for each row of a table, and the published figures dashed.

    With several seeds bars show the standard deviation. Where nothing is published on the data set, the published
    figures on Something-Something V2 stand in a panel of their own, for the pattern to be compared.

    Args:
        table: of `assemble_table`.
        published: `resources/published.csv`.
        dataset: that was evaluated.
    """
    frames = frame_counts(table)
    elsewhere = published_elsewhere(published, dataset, frames)
    panels = 2 if elsewhere else 1
    figure = _figure(width=1 + 4.5 * panels, height=4.2 + 0.1 * len(table))
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    colours: dict[Any, str] = {}
    for number, row in enumerate(table.to_dict("records")):
        colour = f"C{number}"
        colours.setdefault(row["published"], colour)
        axes[0].errorbar(
            frames,
            [row[f"top1_{n}f"] for n in frames],
            [row[f"deviation_{n}f"] for n in frames] if "seeds" in row else None,
            fmt="o-", capsize=3, color=colour, label=row["method"],
        )  # fmt: skip
        known = {n: row[f"published_{n}f"] for n in frames if not pd.isna(row[f"published_{n}f"])}
        if known:
            label = f"{row['method']} (published)"
            axes[0].plot(list(known), list(known.values()), "s--", color=colour, label=label)
    axes[0].set_title(f"{dataset} (ours)" if elsewhere else dataset)
    axes[0].set_ylabel("top-1 accuracy (%)")
    for number, (method, curve) in enumerate(elsewhere.items(), start=len(table)):
        # The colour of the row that is compared with this method, if there is one.
        colour = colours.get(method, f"C{number}")
        label = f"{method} (published)"
        axes[1].plot(list(curve), list(curve.values()), "s--", color=colour, label=label)
        axes[1].set_title(f"{REFERENCE} (published)")
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(frames, [str(n) for n in frames])
        panel.set_xlabel("frames at inference")
        panel.grid(alpha=0.3)
    # Outside of the panels, where it covers no line.
    figure.legend(loc="outside lower center", ncols=2 * panels, fontsize=8)
    return figure


def class_count_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw the number of videos of each class, the largest class first.

    A few classes are bars with their names, many classes one line per split.

    Args:
        summary: of the manifest (`summary.json`).
    """
    classes: dict[str, dict[str, int]] = summary["classes"]
    names = sorted(classes, key=lambda name: -classes[name]["train"])
    splits = [split for split in _SPLIT_COLOURS if any(counts[split] for counts in classes.values())]
    few = len(names) <= _NAMED_CLASSES
    figure = _figure(width=8, height=1.2 + 0.35 * len(names) if few else 4)
    axes = figure.subplots()
    for number, split in enumerate(splits):
        counts = [classes[name][split] for name in names]
        if few:
            _draw_bars(axes, counts, bar=number, bars=len(splits), split=split)
        else:
            axes.step(range(len(names)), counts, where="mid", color=_SPLIT_COLOURS[split], label=split)
    if few:
        shortened = [textwrap.shorten(name, 52, placeholder=" …") for name in names]
        axes.set_yticks(range(len(names)), shortened, fontsize=8)
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.set_xlabel("videos")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", alpha=0.3)
    else:
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{len(names)} classes, the largest first")
        axes.set_ylabel("videos")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(splits))
    return figure


def _draw_bars(axes: Axes, counts: Sequence[int], *, bar: int, bars: int, split: str) -> None:
    """Draw one of several horizontal bars of each class, 0.8 of a class's height together."""
    height = 0.8 / bars
    centres = [number - 0.4 + (bar + 0.5) * height for number in range(len(counts))]
    axes.barh(centres, counts, height, color=_SPLIT_COLOURS[split], label=split)


def clip_length_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw how many videos have how many frames, a histogram for each split.

    Args:
        summary: of the manifest (`summary.json`).
    """
    lengths = {
        split: {int(n): count for n, count in rows.items()} for split, rows in summary["frames"].items()
    }
    longest = max(n for rows in lengths.values() for n in rows)
    # Bins of whole frames: of other bins, some would hold more lengths than others.
    step = -(-longest // 60)
    edges = [0.5 + n for n in range(0, longest + step, step)]
    figure = _figure(width=6, height=4)
    axes = figure.subplots()
    for split, colour in _SPLIT_COLOURS.items():
        if rows := lengths[split]:
            axes.hist(
                list(rows), weights=list(rows.values()), bins=edges,
                histtype="step", color=colour, label=split,
            )  # fmt: skip
    axes.set_xlabel("frames of a video")
    axes.set_ylabel("videos")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _figure(*, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; the ending of the path gives the format."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
