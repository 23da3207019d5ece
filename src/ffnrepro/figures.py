"""Pictures: accuracy against frame count, videos per class, lengths of the videos."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ffnrepro.files import replacing
from ffnrepro.tables import REFERENCE, Published, frame_counts, published_elsewhere

_SPLIT_COLOURS: dict[str, Any] = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}
_NAMED_CLASSES = 30
"""Up to this many classes are drawn with their names."""


def accuracy_figure(table: pd.DataFrame, *, published: Published, dataset: str) -> Figure:
    """Draw top-1 accuracy against frame count, a line for each row of a table, and the published figures dashed.

    With several seeds, bars show the standard deviation. If nothing is published on the data set, a second panel
    shows the published figures on Something-Something V2, so that the pattern can be compared.

    Args:
        table: a table from `assemble_table`.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.
    """
    frames = frame_counts(table)
    elsewhere = published_elsewhere(published, dataset, frames)
    panels = 2 if elsewhere else 1
    figure = Figure(figsize=(1 + 4.5 * panels, 4.2 + 0.1 * len(table)), layout="constrained")
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
        axes[1].plot(list(curve), list(curve.values()), "s--", color=colour, label=f"{method} (published)")
        axes[1].set_title(f"{REFERENCE} (published)")
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(frames, [str(n) for n in frames])
        panel.set_xlabel("frames at inference")
        panel.grid(alpha=0.3)
    # The legend lies outside the panels, where it covers no line.
    figure.legend(loc="outside lower center", ncols=2 * panels, fontsize=8)
    return figure


def class_count_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw the number of videos of each class, the largest class first.

    A few classes are bars with their names, many classes one line per split.

    Args:
        summary: summary of the manifest (`summary.json`).
    """
    counts = pd.DataFrame.from_dict(summary["classes"], orient="index")[list(_SPLIT_COLOURS)]
    # Without a training split, by the validation videos.
    counts = counts.loc[:, counts.any()]
    counts = counts.sort_values(counts.columns[0], ascending=False, kind="stable")
    few = len(counts) <= _NAMED_CLASSES
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(counts) if few else 4), layout="constrained")
    axes = figure.subplots()
    if few:
        counts.index = [textwrap.shorten(name, 52, placeholder=" …") for name in counts.index]
        counts.plot.barh(ax=axes, width=0.8, color=_SPLIT_COLOURS, legend=False, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("videos")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        counts.plot(ax=axes, drawstyle="steps-mid", color=_SPLIT_COLOURS, legend=False, use_index=False)
        axes.set(ylim=(0, None), xlabel=f"{len(counts)} classes, the largest first", ylabel="videos")
    axes.grid(axis="x" if few else "both", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(counts.columns))
    return figure


def clip_length_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw how many videos have how many frames, a histogram for each split.

    Args:
        summary: summary of the manifest (`summary.json`).
    """
    longest = max(int(n) for counts in summary["frames"].values() for n in counts)
    # The bins have whole widths, because otherwise some bins would hold more lengths than others.
    step = -(-longest // 60)
    edges = [0.5 + n for n in range(0, longest + step, step)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for split, colour in _SPLIT_COLOURS.items():
        if counts := summary["frames"][split]:
            axes.hist(
                [int(n) for n in counts], weights=list(counts.values()), bins=edges,
                histtype="step", color=colour, label=split,
            )  # fmt: skip
    axes.set(xlabel="frames of a video", ylabel="videos")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; the ending of the path gives the format."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
