"""The charts of the report, as Vega-Lite specifications.

Text enters a chart only as data: no name of a row or of a class is part of an expression. Colours are CSS variables, so the
same chart suits light mode, dark mode and paper.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ffnrepro.data.label_formats import SPLITS
from ffnrepro.report.data import Table
from ffnrepro.tables import Published, published_elsewhere

Spec = dict[str, Any]
Point = Mapping[str, Any]

COLOURS = 10
"""Number of colours of `page.css`."""


@dataclass(frozen=True)
class Series:
    """An entry of a legend: its label, the number of its colour, and whether its line is dashed."""

    label: str
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: its title, its specification and its legend."""

    title: str
    spec: Spec
    legend: Sequence[Series] = ()


# --- parts of specifications


def _chart(description: str, rows: Any, layers: Sequence[Spec], height: int) -> Spec:
    table = pd.DataFrame(rows)
    numbers = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    return {
        "description": description,
        "width": "container",
        "height": height,
        "data": {
            # CSV is a fifth of the size of JSON objects.
            "values": table.to_csv(index=False, float_format="%.5g"),
            "format": {
                "type": "csv",
                "parse": {str(name): "number" if name in numbers else "string" for name in table},
            },
        },
        "layer": list(layers),
    }


def _axis(name: str, title: str, scale: Mapping[str, Any] | None = None, **axis: Any) -> Spec:
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {"nice": False, **(scale or {"zero": False})},
        "axis": axis,
    }


def _colour(name: str, labels: Sequence[str]) -> Spec:
    """Colour by the values of a field. The page itself draws the legend, so that it wraps."""
    colours = [_css_colour(number) for number in range(len(labels))]
    return {
        "field": name,
        "type": "nominal",
        "scale": {"domain": list(labels), "range": colours},
        "legend": None,
    }


def _css_colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _tip(name: str, title: str = "", number: str | None = None) -> Spec:
    """A line of the tooltip: text, or a number with its format."""
    kind = {"type": "nominal"} if number is None else {"type": "quantitative", "format": number}
    return {"field": name, "title": title or name, **kind}


# --- accuracy of a table


def accuracy_charts(table: Table, published: Published) -> list[Chart]:
    """Accuracy against frame count, and against GFLOPs where they are known.

    Published figures of the same data set are dashed; those of another data set have charts of their own.
    """
    points = [*_own_points(table), *_published_points(table, published)]
    charts = []
    for source in dict.fromkeys(point["source"] for point in points):
        whose = table.dataset if source == table.dataset else f"published on {source}"
        for name, what in (("frames", "frame count"), ("gflops", "cost")):
            rows = [point for point in points if point["source"] == source and point[name] is not None]
            if not rows:
                continue
            title = f"Accuracy against {what}, {whose}"
            kinds = {(row["row"], row["kind"]) for row in rows}
            legend = [
                Series(label if kind == "ours" else f"{label} (published)", number, kind == "published")
                for label, number in table.colours.items()
                for kind in ("ours", "published")
                if (label, kind) in kinds
            ]
            layers = _accuracy_layers(rows, list(table.colours), name)
            charts.append(Chart(title, _chart(title, rows, layers, 260), legend))
    return charts


def _own_points(table: Table) -> Iterator[Point]:
    for row in table.rows:
        for n in table.frames:
            yield {
                "source": table.dataset, "row": row.label, "kind": "ours", "frames": n,
                **{key: row.numbers.get(f"{key}_{n}f") for key in ("gflops", "top1", "low", "high")},
            }  # fmt: skip


def _published_points(table: Table, published: Published) -> Iterator[Point]:
    # GFLOPs depend on the network and the frame count, not on the data set; the paper has them in Table 1.
    gflops = {
        (figure["method"], figure["setting"], int(figure["frames"])): float(figure["gflops"])
        for figure in published
        if figure["gflops"]
    }
    names = {row.label: str(row.numbers["published"]).partition(", ") for row in table.rows}
    elsewhere = published_elsewhere(table.numbers, published=published, dataset=table.dataset)
    own = {row.label: row.published(table.frames) for row in table.rows}
    for source, curves in {table.dataset: own, **elsewhere}.items():
        for label, curve in curves.items():
            method, _, setting = names[label]
            for n, top1 in curve.items():
                yield {
                    "source": source, "row": label, "kind": "published", "frames": n,
                    "gflops": gflops.get((method, setting, n)), "top1": top1, "low": None, "high": None,
                }  # fmt: skip


def _accuracy_layers(rows: Sequence[Point], labels: Sequence[str], name: str) -> list[Spec]:
    logarithm = {"type": "log", "base": 2, "padding": 24}
    title = "frames at inference" if name == "frames" else "GFLOPs per video"
    ticks = [row[name] for row in rows if row["row"] == rows[0]["row"] and row["kind"] == rows[0]["kind"]]
    x = _axis(name, title, logarithm, grid=False, format=".3~g", labelOverlap=True, values=ticks)
    values = [row[key] for row in rows for key in ("top1", "low", "high") if row[key] is not None]
    ends = [5 * math.floor((min(values) - 1) / 5), min(100, 5 * math.ceil((max(values) + 1) / 5))]
    y = _axis("top1", "top-1 accuracy (%)", {"domain": ends})
    tips = [
        _tip("row", "network"),
        _tip("frames", "frames", "d"),
        _tip("gflops", "GFLOPs", ".4~g"),
        _tip("top1", "top-1 (%)", ".2f"),
    ]
    interval = [_tip("low", "95 % from", ".2f"), _tip("high", "to", ".2f")]
    place = {"x": x, "y": y, "color": _colour("row", labels)}
    bar = {**place, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    point = {"type": "point", "size": 60, "opacity": 1}
    hollow = {**point, "shape": "square", "fill": "var(--card)"}
    parts = [
        ("published", {"type": "line", "strokeWidth": 2, "strokeDash": [5, 4], "opacity": 0.75}, place),
        ("published", hollow, place | {"tooltip": tips}),
        ("ours", {"type": "line", "strokeWidth": 2.5}, place),
        ("ours", {"type": "rule", "strokeWidth": 1.5}, bar),
        ("ours", {**point, "filled": True}, place | {"tooltip": tips + interval}),
    ]
    kinds = {row["kind"] for row in rows}
    return [
        {"transform": [{"filter": {"field": "kind", "equal": kind}}], "mark": mark, "encoding": encoding}
        for kind, mark, encoding in parts
        if kind in kinds
    ]


# --- training


def training_charts(history: pd.DataFrame) -> list[Chart]:
    """Loss by term, accuracy, and learning rate against the epoch; a line for each seed.

    Args:
        history: rows of the histories of all seeds, with the column `seed`.
    """
    columns = [str(name) for name in history]
    terms = [name for name in columns if re.fullmatch(r"train_(?!loss$|top[15]$).*", name)]
    loss = {name: _readable(name.removeprefix("train_")) for name in terms}
    if len(terms) > 1:
        loss = {"train_loss": "sum", **loss}
    accuracy = {"train_top1": "training"} | {
        name: f"validation, {_readable(name.removeprefix('validation_top1_'))}"
        for name in columns
        if name.startswith("validation_top1_")
    }
    rate = {"learning_rate": "learning rate"}
    steps = [step * 10**power for power in range(-9, 4) for step in (1, 2, 5)]
    return [
        _history_chart(
            "Loss by term",
            history,
            loss,
            _axis("value", "loss", {"type": "log"}, values=steps, format="~g", labelOverlap=True),
        ),
        _history_chart(
            "Accuracy",
            history,
            accuracy,
            _axis("value", "top-1 accuracy (%)", {"domain": [0, 100]}, tickCount=5),
        ),
        _history_chart(
            "Learning rate", history, rate, _axis("value", "learning rate", {"zero": True}, tickCount=5)
        ),
    ]


def _readable(name: str) -> str:
    """Readable name of a column of the history, such as `KL, 4 frames` for `kl_4f`."""
    return re.sub(r"(\d+)f$", r"\1 frames", name.replace("kl_", "KL, ").replace("_", " "))


def _history_chart(title: str, history: pd.DataFrame, names: Mapping[str, str], y: Spec) -> Chart:
    """A chart of columns of the history.

    Args:
        title: title of the chart.
        history: as for `training_charts`.
        names: column -> its readable name.
        y: axis of the values, as of `_axis`.
    """
    labels = list(names.values())
    rows = history[["epoch", "seed", *names]].rename(columns=dict(names))
    several = len(set(rows["seed"])) > 1
    x = _axis("epoch", "epoch", grid=False, tickMinStep=1, format="d")
    transform: list[Spec] = [{"fold": labels, "as": ["series", "value"]}]
    if y["scale"].get("type") == "log":
        transform.append({"filter": {"field": "value", "gt": 0}})
    lines = {
        "transform": transform,
        "mark": {"type": "line", "strokeWidth": 1.8, "opacity": 0.7 if several else 1},
        "encoding": {
            "x": x,
            "y": y,
            "detail": {"field": "seed", "type": "nominal"},
            "color": _colour("series", labels),
        },
    }
    # The tooltip shows all values of the nearest epoch.
    nearest = {"type": "point", "fields": ["epoch"], "nearest": True, "on": "pointerover"}
    shown = {"condition": {"param": "hover", "empty": False, "value": 0.5}, "value": 0}
    seed = [_tip("seed", "seed", "d")] if several else []
    tips = [_tip("epoch", "epoch", "d"), *seed, *(_tip(label, label, ".4~g") for label in labels)]
    hover = {
        "params": [{"name": "hover", "select": {**nearest, "clear": "pointerout"}}],
        "mark": {"type": "rule", "color": "var(--muted)"},
        "encoding": {"x": x, "opacity": shown, "tooltip": tips},
    }
    legend = [Series(label, number) for number, label in enumerate(labels)] if len(labels) > 1 else []
    return Chart(title, _chart(title, rows, [lines, hover], 200), legend)


# --- classes and data


def class_chart(classes: pd.DataFrame, first: str, second: str, frames: int) -> Chart:
    """Accuracy of each class with two networks, a point for each class.

    Args:
        classes: columns `name`, `first` and `second`, in percent.
        first: label of the first row.
        second: label of the other row.
        frames: frame count.
    """
    title = f"Each point is a class, at {frames} frames; above the line, {second} is better"
    scale = {"domain": [0, 100], "padding": 6}
    line = {
        "data": {"values": [{"x": 0}, {"x": 100}]},
        "mark": {"type": "line", "color": "var(--line)", "strokeWidth": 1.5},
        "encoding": {name: {"field": "x", "type": "quantitative"} for name in ("x", "y")},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75, "color": _css_colour(1)},
        "encoding": {
            "x": _axis("first", f"{first} (%)", scale),
            "y": _axis("second", f"{second} (%)", scale),
            "tooltip": [
                _tip("name", "class"),
                _tip("first", f"{first} (%)", ".1f"),
                _tip("second", f"{second} (%)", ".1f"),
            ],
        },
    }
    return Chart(title, _chart(title, classes[["name", "first", "second"]], [line, points], 320))


def data_charts(summary: Mapping[str, Any]) -> list[Chart]:
    """Number of videos of each class, the largest class first, and a histogram of the videos' frames.

    Args:
        summary: summary of the manifest (`summary.json`).
    """
    splits = [split for split in SPLITS if summary["videos"][split]]
    ranked = sorted(summary["classes"].items(), key=lambda item: -item[1][splits[0]])
    counts = [
        {"rank": rank, "class": name, "split": split, "videos": of_class[split]}
        for rank, (name, of_class) in enumerate(ranked, start=1)
        for split in splits
    ]
    lengths = [
        {"frames": int(n), "split": split, "videos": count, "share": 100 * count / summary["videos"][split]}
        for split in splits
        for n, count in summary["frames"][split].items()
    ]
    colour = _colour("split", splits)
    place = {
        "x": _axis("rank", "class, the largest first", grid=False, tickMinStep=1, format="d"),
        "y": _axis("videos", "videos", {"zero": True, "nice": True}, format=",d", tickMinStep=1),
        "color": colour,
    }
    tips = [_tip("class"), _tip("split"), _tip("videos", "videos", ",")]
    by_class = [
        {"mark": {"type": "line", "interpolate": "step", "strokeWidth": 1.5}, "encoding": place},
        {
            "mark": {"type": "point", "filled": True, "size": 30 if len(ranked) <= 40 else 8, "opacity": 1},
            "encoding": place | {"tooltip": tips},
        },
    ]
    longest = max(row["frames"] for row in lengths)
    bins = {"bin": {"step": math.ceil(longest / 40), "extent": [0, longest + 1]}}
    by_length = {
        "mark": {"type": "bar", "opacity": 0.6, "binSpacing": 0},
        "encoding": {
            "x": {**_axis("frames", "frames per video", grid=False), "scale": {}, **bins},
            "y": {
                **_axis("share", "videos (% of the split)", {"zero": True}),
                "aggregate": "sum",
                "stack": None,
            },
            "color": colour,
            "tooltip": [
                _tip("frames", "frames", "d") | bins,
                _tip("split"),
                _tip("videos", "videos", ",") | {"aggregate": "sum"},
            ],
        },
    }
    legend = [Series(split, number) for number, split in enumerate(splits)]
    return [
        Chart("Videos of each class", _chart("videos of each class", counts, by_class, 220), legend),
        Chart("Length of the videos", _chart("frames per video", lengths, [by_length], 220), legend),
    ]
