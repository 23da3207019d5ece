"""Plots: accuracy against frame count, BatchNorm statistics, videos per class, lengths of the videos."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from ffnrepro.files import replacing
from ffnrepro.tables import Published, frame_counts, published_elsewhere

_SPLIT_COLOURS: dict[str, Any] = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}
_V1 = "something-something-v1"
_NAMED_CLASSES = 30
"""Up to this many classes are shown with their names."""


def accuracy_figure(table: pd.DataFrame, *, published: Published, dataset: str) -> Figure:
    """Plot top-1 accuracy against frame count, a line for each row of a table, with the published figures dashed.

    Bars show the 95 % intervals. If nothing is published on this data set, the published figures of other data
    sets are shown, each in a panel of its own, so that the pattern can be compared.

    Args:
        table: a table from `assemble_table`.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.
    """
    frames = frame_counts(table)
    elsewhere = published_elsewhere(table, published=published, dataset=dataset)
    panels = 1 + len(elsewhere)
    figure = Figure(figsize=(1 + 4.5 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    colours = {row: f"C{number}" for number, row in enumerate(table["method"])}
    for row in table.to_dict("records"):
        colour = colours[row["method"]]
        axes[0].errorbar(
            frames,
            [row[f"top1_{n}f"] for n in frames],
            [
                [row[f"top1_{n}f"] - row[f"low_{n}f"] for n in frames],
                [row[f"high_{n}f"] - row[f"top1_{n}f"] for n in frames],
            ],
            fmt="o-", capsize=3, elinewidth=1, color=colour, label=row["method"],
        )  # fmt: skip
        known = {n: row[f"published_{n}f"] for n in frames if not pd.isna(row[f"published_{n}f"])}
        if known:
            label = f"{row['method']} (published)"
            axes[0].plot(list(known), list(known.values()), "s--", color=colour, label=label)
    axes[0].set_title(f"{dataset} (ours)" if elsewhere else dataset)
    axes[0].set_ylabel("top-1 accuracy (%)")
    for panel, (source, curves) in zip(axes[1:], elsewhere.items(), strict=True):
        panel.set_title(f"{source} (published)")
        for method, curve in curves.items():
            label = f"{method} (published)"
            panel.plot(list(curve), list(curve.values()), "s--", color=colours[method], label=label)
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(frames, [str(n) for n in frames])
        panel.set_xlabel("frames at inference")
        panel.grid(alpha=0.3)
    _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """Put the legend below the panels, where it covers no line; the published figures share an entry."""
    entries: dict[str, Any] = {str(row.get_label()): row for row in figure.axes[0].containers}
    if any(line.get_linestyle() == "--" for axes in figure.axes for line in axes.lines):
        entries["published"] = Line2D([], [], linestyle="--", color="grey")
    # In points: a letter of this font is about 5 wide, and the sample of a line takes 40.
    columns = int(72 * figure.get_figwidth() / (40 + 5 * max(map(len, entries)))) or 1
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(entries) // columns))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, fontsize=8
    )


def curve_figure(curve: pd.DataFrame, *, dataset: str) -> Figure:
    """Plot top-1 accuracy at any frame count, with the published figures dashed.

    A row with one network is a line; a row with several (TSM-ST, an ensemble) is a set of points. Bars show the 95 %
    intervals. If another data set was evaluated, the figures published on Something-Something V1 have a panel of
    their own.

    Args:
        curve: curves from `assemble_curve`.
        dataset: data set that was evaluated.
    """
    apart = bool(curve["published_on_v1"].notna().any())
    panels = 2 if apart else 1
    rows = list(curve.groupby("method", sort=False))
    figure = Figure(figsize=(1 + 4.5 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    for number, (method, row) in enumerate(rows):
        colour = f"C{number}"
        # An ensemble has the names of all its runs.
        separate = len(set(row["run"])) > 1 or "+" in row["run"].iloc[0]
        axes[0].errorbar(
            row["frames"], row["top1"], [row["top1"] - row["low"], row["high"] - row["top1"]],
            fmt="D" if separate else "o-", markersize=6 if separate else 4, capsize=2, elinewidth=1, color=colour,
            label=method,
            # Points are above the lines, on which some of them are.
            zorder=3 if separate else 2,
        )  # fmt: skip
        for panel, column in zip(axes, ("published_top1", "published_on_v1"), strict=False):
            known = row.dropna(subset=column)
            if len(known):
                panel.plot(
                    known["frames"], known[column], "s--", markersize=4, markerfacecolor="none", color=colour,
                    label=f"{method} (published)",
                )  # fmt: skip
    axes[0].set_title(f"{dataset} (ours)" if apart else dataset)
    axes[0].set_ylabel("top-1 accuracy (%)")
    if apart:
        axes[1].set_title(f"{_V1} (published)")
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("frames at inference")
        panel.grid(alpha=0.3)
    _add_legend(figure)
    return figure


def batchnorm_figure(statistics: pd.DataFrame) -> Figure:
    """Plot the BatchNorm statistics of each layer by frame count: median and quartiles over the channels.

    Args:
        statistics: of `batchnorm_statistics`.
    """
    layers, counts = (list(statistics[key].unique()) for key in ("layer", "frames"))
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flat
    for panel, statistic in zip(panels, ("mean", "variance", "scale", "bias"), strict=True):
        for number, frames in enumerate(counts):
            of_count = statistics[statistics["frames"] == frames].groupby("layer", sort=False)[statistic]
            low, median, high = (of_count.quantile(share).reindex(layers) for share in (0.25, 0.5, 0.75))
            # The frame counts are side by side at each layer.
            places = [place + 0.15 * (number - (len(counts) - 1) / 2) for place in range(len(layers))]
            panel.errorbar(
                places, median, [median - low, high - median], fmt="o", markersize=4, capsize=2,
                color=f"C{number}", label=f"{frames} frames" if statistic == "mean" else None,
            )  # fmt: skip
        panel.set_title(statistic)
        panel.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
        panel.grid(alpha=0.3)
    figure.supylabel("median and quartiles of the channels")
    figure.legend(loc="outside lower center", ncols=len(counts))
    return figure


def class_count_figure(summary: Mapping[str, Any]) -> Figure:
    """Plot the number of videos of each class, the largest class first.

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
    """Plot a histogram of the numbers of frames of the videos, for each split.

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
    axes.set(xlabel="frames per video", ylabel="videos")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a plot; the extension of the path determines the format."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
