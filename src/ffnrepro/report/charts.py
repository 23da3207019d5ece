"""The charts of the report, as Vega-Lite specifications.

Text reaches a chart only as data: a name of a row or of a class is never part of an expression. Colours are CSS variables, so
one drawing serves light, dark and paper.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pandas as pd

from ffnrepro.report.data import Table
from ffnrepro.tables import Published, published_elsewhere

Spec = dict[str, Any]

COLOURS = 10
"""Number of colours of `page.css`."""

SPLITS = ("train", "validation", "test")


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
    legend: Sequence[Series] = field(default_factory=tuple)


def colour(number: int) -> str:
    """The CSS variable of the colour of a series."""
    return f"var(--c{number % COLOURS})"


def _values(rows: Any) -> Spec:
    """Rows as the data of a chart: CSV, which is a fifth of the size of JSON objects."""
    table = pd.DataFrame(rows)
    parse = {name: "number" for name in table.columns if pd.api.types.is_numeric_dtype(table[name])}
    text = {name: "string" for name in table.columns if name not in parse}
    return {"values": table.to_csv(index=False, float_format="%.5g"), "format": {"type": "csv", "parse": parse | text}}


def _axis(name: str, title: str, *, scale: Mapping[str, Any] = MappingProxyType({}), **axis: Any) -> Spec:
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {"nice": False, **({} if scale.get("type") == "log" else {"zero": False}), **scale},
        "axis": axis,
    }


def _chart(description: str, data: Spec, layers: Sequence[Spec], **other: Any) -> Spec:
    return {
        "description": description,
        "width": "container",
        "height": 260,
        "data": data,
        "layer": list(layers),
        **other,
    }


# --- accuracy of a table


def accuracy_charts(table: Table, published: Published) -> list[Chart]:
    """Accuracy against frame count, and against GFLOPs where they are known.

    Published figures of the same data set are dashed; those of another data set have charts of their own.
    """
    labels = [row.label for row in table.rows]
    points = list(_own_points(table)) + list(_published_points(table, published))
    by_frames = [("frames", "frames of a video"), ("gflops", "GFLOPs of a video")]
    sources = list(dict.fromkeys(point["source"] for point in points))
    charts = []
    for source in sources:
        for name, title in by_frames:
            rows = [point for point in points if point["source"] == source and point[name] is not None]
            if rows:
                whose = table.dataset if source == table.dataset else f"published on {source}"
                kinds = {(row["row"], row["kind"]) for row in rows}
                legend = [
                    Series(label + (" (published)" if kind == "published" else ""), number, kind == "published")
                    for number, label in enumerate(labels)
                    for kind in ("ours", "published")
                    if (label, kind) in kinds
                ]
                title_ = f"Accuracy against {'frame count' if name == 'frames' else 'cost'}, {whose}"
                charts.append(Chart(title_, _accuracy_spec(rows, labels, name, title, table.frames), legend))
    return charts


def _own_points(table: Table) -> Any:
    for row in table.rows:
        for n in table.frames:
            numbers = row.numbers
            yield {
                "source": table.dataset, "row": row.label, "kind": "ours", "frames": n,
                "gflops": numbers.get(f"gflops_{n}f"), "top1": numbers[f"top1_{n}f"],
                "low": numbers[f"low_{n}f"], "high": numbers[f"high_{n}f"],
            }  # fmt: skip


def _published_points(table: Table, published: Published) -> Any:
    # GFLOPs depend on the network and the frame count, not on the data set; the paper's Table 1 has them.
    cost = {
        (row["method"], row["setting"], int(row["frames"])): float(row["gflops"])
        for row in published
        if row["gflops"]
    }
    names = {row.label: row.numbers.get("published") for row in table.rows}
    own = {
        row.label: {n: row.numbers[f"published_{n}f"] for n in table.frames if row.numbers[f"published_{n}f"]}
        for row in table.rows
    }
    elsewhere = published_elsewhere(table.frame, published=published, dataset=table.dataset)
    for source, curves in {table.dataset: own, **elsewhere}.items():
        for label, curve in curves.items():
            method, _, setting = str(names[label]).partition(", ")
            for n, top1 in curve.items():
                yield {
                    "source": source, "row": label, "kind": "published", "frames": n,
                    "gflops": cost.get((method, setting, n)), "top1": top1, "low": None, "high": None,
                }  # fmt: skip


def _accuracy_spec(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], name: str, title: str, frames: Sequence[int]
) -> Spec:
    x = _axis(name, title, scale={"type": "log", "base": 2, "padding": 24}, grid=False)
    if name == "frames":
        x["axis"]["values"] = list(frames)
    else:
        x["axis"] |= {"format": "~g", "labelOverlap": True, "tickCount": 5}
    values = [row[key] for row in rows for key in ("top1", "low", "high") if row[key] is not None]
    ends = [5 * math.floor((min(values) - 1) / 5), min(100, 5 * math.ceil((max(values) + 1) / 5))]
    y = _axis("top1", "top-1 accuracy (%)", scale={"domain": ends})
    tooltip = [
        {"field": "row", "type": "nominal", "title": "network"},
        {"field": "frames", "type": "quantitative", "title": "frames"},
        {"field": "gflops", "type": "quantitative", "title": "GFLOPs", "format": ".4~g"},
        {"field": "top1", "type": "quantitative", "title": "top-1 (%)", "format": ".2f"},
        {"field": "low", "type": "quantitative", "title": "95 % from", "format": ".2f"},
        {"field": "high", "type": "quantitative", "title": "to", "format": ".2f"},
    ]
    coloured = {
        "field": "row",
        "type": "nominal",
        "scale": {"domain": list(labels), "range": [colour(n) for n in range(len(labels))]},
        "legend": None,
    }
    layers: list[Spec] = []
    for kind, tips in (("published", tooltip[:4]), ("ours", tooltip)):
        if not any(row["kind"] == kind for row in rows):
            continue
        mark = {"strokeWidth": 2, "strokeDash": [5, 4], "opacity": 0.75} if kind == "published" else {"strokeWidth": 2.5}
        only = [{"filter": {"field": "kind", "equal": kind}}]
        encoding = {"x": x, "y": y, "color": coloured}
        layers.append({"transform": only, "mark": {"type": "line", **mark}, "encoding": encoding})
        if kind == "ours":
            bar = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
            mark = {"type": "rule", "strokeWidth": 1.5}
            layers.append({"transform": only, "mark": mark, "encoding": encoding | bar})
        point = {"type": "point", "filled": kind == "ours", "size": 60, "opacity": 1, "shape": "circle"}
        if kind == "published":
            point |= {"fill": "var(--card)", "shape": "square"}
        layers.append({"transform": only, "mark": point, "encoding": encoding | {"tooltip": tips}})
    return _chart(title, _values(rows), layers)


# --- training


def training_charts(history: pd.DataFrame) -> list[Chart]:
    """Loss by term, accuracy, and learning rate against the epoch; a line for each seed.

    Args:
        history: rows of the history of all seeds, with the column `seed`.
    """
    terms = {
        name: _term(name)
        for name in history
        if name.startswith("train_") and name not in ("train_loss", "train_top1", "train_top5")
    }
    if len(terms) > 1:
        terms = {"train_loss": "sum", **terms}
    validation = {
        name: f"validation, {_term(name.removeprefix('validation_top1_'))}"
        for name in history
        if name.startswith("validation_top1_")
    }
    groups = {
        "Loss by term": ("loss", terms, {"type": "log"}),
        "Accuracy": ("top-1 accuracy (%)", {"train_top1": "training", **validation}, {"domain": [0, 100]}),
        "Learning rate": ("learning rate", {"learning_rate": "learning rate"}, {"zero": True}),
    }
    return [
        Chart(
            title,
            _history_spec(history, names, axis, scale),
            [Series(label, number) for number, label in enumerate(names.values())] if len(names) > 1 else (),
        )
        for title, (axis, names, scale) in groups.items()
    ]


def _term(name: str) -> str:
    """What a column of the history is called, such as `KL, 4 frames`."""
    text = name.removeprefix("train_").replace("kl_", "KL, ").replace("_", " ")
    return re.sub(r"(\d+)f$", r"\1 frames", text)


def _history_spec(
    history: pd.DataFrame, names: Mapping[str, str], axis: str, scale: Mapping[str, Any]
) -> Spec:
    labels = list(names.values())
    wide = history[["epoch", "seed", *names]].rename(columns=dict(names))
    several = wide["seed"].nunique() > 1
    ticks: Spec = {"tickCount": 5}
    if scale.get("type") == "log":
        ticks = {"values": [base * 10**power for power in range(-9, 4) for base in (1, 2, 5)], "format": "~g", "labelOverlap": True}
    x = _axis("epoch", "epoch", grid=False, tickMinStep=1, format="d")
    tooltip = [
        {"field": "epoch", "type": "quantitative"},
        *([{"field": "seed", "type": "quantitative"}] if several else []),
        *({"field": label, "type": "quantitative", "format": ".4~g"} for label in labels),
    ]
    lines = {
        "transform": [
            {"fold": labels, "as": ["series", "value"]},
            # A logarithmic axis has no place for zero.
            *([{"filter": {"field": "value", "gt": 0}}] if scale.get("type") == "log" else []),
        ],
        "mark": {"type": "line", "strokeWidth": 1.8, "opacity": 0.7 if several else 1, "clip": True},
        "encoding": {
            "x": x,
            "y": _axis("value", axis, scale=scale, **ticks),
            "detail": {"field": "seed", "type": "nominal"},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": labels, "range": [colour(n) for n in range(len(labels))]},
                "legend": None,
            },
        },
    }
    hover = {
        "params": [
            {
                "name": "hover",
                "select": {"type": "point", "fields": ["epoch"], "nearest": True, "on": "pointerover", "clear": "pointerout"},
            }
        ],
        "mark": {"type": "rule", "color": "var(--muted)"},
        "encoding": {
            "x": x,
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.5}, "value": 0},
            "tooltip": tooltip,
        },
    }
    return _chart(axis, _values(wide), [lines, hover]) | {"height": 200}


# --- classes and data


def class_chart(classes: pd.DataFrame, first: str, second: str, frames: int, number: int) -> Chart:
    """Accuracy of each class with two networks, a point for each class.

    Args:
        classes: columns `name`, `first` and `second`, in percent.
        first: label of the first row.
        second: label of the other row.
        frames: frame count.
        number: number of the colour of the other row.
    """
    title = f"Each point is a class, at {frames} frames; above the line, {second} is better"
    tooltip = [
        {"field": "name", "type": "nominal", "title": "class"},
        {"field": "first", "type": "quantitative", "title": "first network (%)", "format": ".1f"},
        {"field": "second", "type": "quantitative", "title": "second network (%)", "format": ".1f"},
    ]
    scale = {"domain": [0, 100], "padding": 6}
    ends = {"data": {"values": [{"x": 0}, {"x": 100}]}, "mark": {"type": "line", "color": "var(--line)", "strokeWidth": 1.5}}
    ends["encoding"] = {name: {"field": "x", "type": "quantitative"} for name in ("x", "y")}
    points = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75, "color": colour(number)},
        "encoding": {
            "x": _axis("first", f"{first} (%)", scale=scale),
            "y": _axis("second", f"{second} (%)", scale=scale),
            "tooltip": tooltip,
        },
    }
    return Chart(title, _chart(title, _values(classes[["name", "first", "second"]]), [ends, points]) | {"height": 320})


def data_charts(summary: Mapping[str, Any]) -> list[Chart]:
    """Videos of each class, the largest class first, and frames of the videos.

    Args:
        summary: summary of the manifest (`summary.json`).
    """
    used = [split for split in SPLITS if summary["videos"][split]]
    legend = [Series(split, number) for number, split in enumerate(used)]
    ranked = sorted(summary["classes"].items(), key=lambda item: -item[1][used[0]])
    counts = [
        {"rank": rank, "class": name, "split": split, "videos": of_class[split]}
        for rank, (name, of_class) in enumerate(ranked, start=1)
        for split in used
    ]
    lengths = [
        {"frames": int(n), "split": split, "videos": count, "share": 100 * count / summary["videos"][split]}
        for split in used
        for n, count in summary["frames"][split].items()
    ]
    by_split = {
        "field": "split",
        "type": "nominal",
        "scale": {"domain": used, "range": [colour(n) for n in range(len(used))]},
        "legend": None,
    }
    rank = _axis("rank", "class, the largest first", grid=False, tickMinStep=1, format="d")
    videos = _axis("videos", "videos", scale={"zero": True, "nice": True}, format=",d", tickMinStep=1)
    tips = [{"field": "class", "type": "nominal"}, {"field": "split", "type": "nominal"}, {"field": "videos", "type": "quantitative", "format": ","}]
    by_class = [
        {"mark": {"type": "line", "interpolate": "step", "strokeWidth": 1.5}, "encoding": {"x": rank, "y": videos, "color": by_split}},
        {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 1}, "encoding": {"x": rank, "y": videos, "color": by_split, "tooltip": tips}},
    ]
    longest = max(row["frames"] for row in lengths)
    bins = {"bin": {"step": max(1, -(-longest // 40)), "extent": [0, longest + 1]}}
    share = {"aggregate": "sum", "field": "share", "type": "quantitative", "title": "videos (% of the split)"}
    by_length = [
        {
            "mark": {"type": "bar", "opacity": 0.6, "binSpacing": 0},
            "encoding": {
                "x": {"field": "frames", "type": "quantitative", "title": "frames of a video", "axis": {"grid": False}, **bins},
                "y": {**share, "stack": None},
                "color": by_split,
                "tooltip": [
                    {"field": "frames", "type": "quantitative", "title": "frames", **bins},
                    {"field": "split", "type": "nominal"},
                    {"aggregate": "sum", "field": "videos", "type": "quantitative", "title": "videos", "format": ","},
                ],
            },
        }
    ]
    return [
        Chart("Videos of each class", _chart("videos of each class", _values(counts), by_class) | {"height": 220}, legend),
        Chart("Length of the videos", _chart("frames of the videos", _values(lengths), by_length) | {"height": 220}, legend),
    ]
