"""The page: collects the content of the report and renders the template."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from ffnrepro import __version__
from ffnrepro.data.label_formats import SPLITS
from ffnrepro.estimate import duration
from ffnrepro.report.charts import (
    Chart,
    accuracy_charts,
    class_chart,
    data_charts,
    training_charts,
)
from ffnrepro.report.clips import choose_confusions, choose_gains, read_strips
from ffnrepro.report.data import (
    Table,
    Training,
    class_accuracy,
    confusions,
    read_evaluations,
    read_predictions,
    read_required,
    read_table,
    read_trainings,
)
from ffnrepro.tables import Published, published_elsewhere, read_published

MAX_EXCLUDED = 100
"""At most this many excluded videos are listed; `excluded.csv` has all."""


@dataclass(frozen=True)
class Sources:
    """The files that a report is made of.

    Attributes:
        tables: `results/{table}.json` of each table.
        published: `resources/published.csv`.
        diagnosis: `results/diagnosis.json`.
        manifest: folder of the manifest.
        classes: `results/labels/classes.csv`.
        videos: folder of the videos.
    """

    tables: Sequence[Path]
    published: Path
    diagnosis: Path
    manifest: Path
    classes: Path
    videos: Path


def make_page(sources: Sources) -> str:
    """Make the report.

    Returns:
        One HTML page, which loads nothing from elsewhere.

    Raises:
        UserError: a file cannot be read. An unreadable video is no error: the page says so in its place.
    """
    published = read_published(sources.published)
    tables = [read_table(path, published) for path in sources.tables]
    evaluations = read_evaluations(tables)
    trainings = read_trainings(evaluations)
    classes = pd.read_csv(sources.classes, keep_default_na=False)["class"].astype(str).tolist()
    excluded = pd.read_csv(sources.manifest / "excluded.csv", keep_default_na=False, dtype=str)
    summary = read_required(sources.manifest / "summary.json")
    page = {
        "version": __version__,
        "headline": headline(tables[0], published),
        "tables": [{"table": table, "charts": accuracy_charts(table, published)} for table in tables],
        "runs": _runs(trainings),
        "classes": _classes(tables[0], classes, sources),
        "data": {
            "summary": summary,
            "splits": [split for split in SPLITS if summary["labelled"][split]],
            "charts": data_charts(summary),
            "excluded": excluded.head(MAX_EXCLUDED).to_dict("records"),
            "excluded_count": len(excluded),
        },
        "diagnosis": read_required(sources.diagnosis),
        "evaluations": evaluations,
        "trainings": trainings,
    }
    return render(page)


def headline(table: Table, published: Published) -> dict[str, Any]:
    """The headline: the compared rows at the lowest and the highest frame count, and the published figures."""
    first, second = table.compared
    low, high = table.frames[0], table.frames[-1]
    elsewhere = published_elsewhere(table.numbers, published=published, dataset=table.dataset)
    own = {row.label: row.published(table.frames) for row in table.rows}
    figures = [
        {"source": source, "first": curves[first.label][low], "second": curves[second.label][low]}
        for source, curves in {table.dataset: own, **elsewhere}.items()
        if all(low in curves.get(row.label, {}) for row in (first, second))
    ]
    return {
        "dataset": table.dataset,
        "split": table.split,
        "videos": second.numbers["videos"],
        "seeds": second.numbers.get("seeds") or 1,
        "first": first,
        "second": second,
        "compared": first is not second,
        "low": low,
        "high": high,
        "published": figures[0] if first is not second and figures else None,
    }


def _runs(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """The trainings of each run, and the charts of their histories; an imported network has no history."""
    runs = []
    for name in dict.fromkeys(training.run for training in trainings):
        of_run = [training for training in trainings if training.run == name]
        history = pd.concat([training.history.assign(seed=training.seed) for training in of_run])
        charts = training_charts(history) if len(history) else []
        runs.append({"name": name, "trainings": of_run, "charts": charts})
    return runs


def _classes(table: Table, names: Sequence[str], sources: Sources) -> dict[str, Any]:
    """Accuracy by class, confused classes and example clips of the two compared rows at the lowest frame count."""
    first, second = table.compared
    low, high = table.frames[0], table.frames[-1]
    predictions = {
        (row.label, n): read_predictions(row.evaluations[n]) for row in (first, second) for n in (low, high)
    }
    accuracy = pd.DataFrame({"name": names})
    for key, row in (("first", first), ("second", second)):
        for at, n in (("", low), ("_high", high)):
            accuracy[f"{key}{at}"] = class_accuracy(predictions[row.label, n], len(names))
    accuracy["gain"] = accuracy["second"] - accuracy["first"]
    # Examples are those of the first seed; the videos of each seed are the same.
    of_first, both = (predictions[row.label, low].query("seed == 0") for row in (first, second))
    accuracy["videos"] = both["label"].value_counts().reindex(range(len(names)), fill_value=0)
    pairs = confusions(predictions[first.label, low], predictions[second.label, low])
    both = both.rename(columns={"class_1": "second"})
    both["first"] = both["id"].map(of_first.set_index("id")["class_1"])
    chosen = {
        "gains": choose_gains(both, accuracy["gain"]),
        "confusions": choose_confusions(both, pairs),
    }
    split = pd.read_parquet(sources.manifest / f"{table.split}.parquet", columns=["id", "path", "frames"])
    strips = read_strips(
        [choice.id for choices in chosen.values() for choice in choices],
        split,
        videos=sources.videos,
        frames=low,
    )
    present = accuracy[accuracy["videos"] > 0]
    compared = first is not second
    return {
        "names": names,
        "first": first,
        "second": second,
        "compared": compared,
        "low": low,
        "high": high,
        "rows": present.sort_values(
            "gain" if compared else "second", ascending=not compared, kind="stable"
        ).to_dict("records"),
        "gaining": present[present["gain"] > 0]
        .sort_values("gain", ascending=False, kind="stable")
        .head(8)
        .to_dict("records"),
        "chart": class_chart(present, first.label, second.label, low) if compared else None,
        "pairs": pairs,
        "chosen": chosen,
        "strips": strips,
    }


# --- rendering


def render(page: Mapping[str, Any]) -> str:
    """Fill the template. All text is escaped, and the browser runs only the two scripts of the page."""
    specs: dict[str, Any] = {}

    def place(chart: Chart) -> str:
        """Keep the specification of a chart for the script, and return the id of its element."""
        name = f"chart{len(specs)}"
        specs[name] = chart.spec
        return name

    installed: dict[str, int] = {}

    def software(record: Mapping[str, Any]) -> int:
        """Number of the software in a record; the same versions have the same number."""
        names = {"Python": record["python"], **record["packages"]}
        versions = ", ".join(f"{name} {version}" for name, version in names.items())
        return installed.setdefault(versions, len(installed) + 1)

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("ffnrepro.report", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "duration": duration,
        "short": lambda text: str(text)[:8],
    }
    files = Path(__file__).parent
    library, own = _library(), (files / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        page,
        place=place,
        software=software,
        installed=installed,
        specs=specs,
        style=(files / "page.css").read_text(encoding="utf-8"),
        library=library,
        own=own,
        hashes=[_hash(library), _hash(own)],
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, escaped so that it can be part of a page."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    """Hash of a script, as the content security policy of the page expects it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def percent(value: float | None) -> str:
    """A percentage with one decimal; empty if there is none."""
    return "" if value is None or pd.isna(value) else f"{value:.1f}"


def points(value: float | None) -> str:
    """A difference in points, with its sign; empty if there is none."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") if round(value, 1) else "0.0"
