"""The table against figures computed by hand, and the picture's existence."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ffnrepro.errors import UserError
from ffnrepro.figures import plot_accuracy
from ffnrepro.tables import assemble_table, published_accuracy, read_published, table_markdown

PUBLISHED = Path(__file__).parents[2] / "resources" / "published.csv"


def cell(top1: float, model: str, videos: int = 24777, parameters: int = 100) -> list[dict[str, Any]]:
    return [{"top1": top1, "model": model, "videos": videos, "parameters": parameters}]


ROWS = [
    ("TSM", {4: cell(30.52, "aa"), 8: cell(50.05, "aa"), 16: cell(61.5, "aa")}),
    ("TSM-ST", {4: cell(53.0, "bb"), 8: cell(59.0, "cc"), 16: cell(61.5, "aa")}),
    ("TSM-FFN", {4: cell(56.075, "dd"), 8: cell(61.0, "dd"), 16: cell(64.0, "dd")}),
]


@pytest.fixture
def published() -> pd.DataFrame:
    return read_published(PUBLISHED)


def test_published_figures_of_table_9(published: pd.DataFrame) -> None:
    assert published_accuracy(published, "something-something-v2") == {
        "TSM": {4: 31.52, 8: 51.55, 16: 61.02},
        "TSM-ST": {4: 53.38, 8: 59.29, 16: 61.02},
        "TSM-FFN": {4: 56.07, 8: 61.86, 16: 63.61},
    }
    assert published_accuracy(published, "something-something-v1")["TSM-FFN"][16] == 50.79
    assert published_accuracy(published, "demo") == {}


def test_columns_differences_and_checkpoints(published: pd.DataFrame) -> None:
    table = assemble_table(ROWS, published=published, dataset="something-something-v2")
    assert list(table.columns) == [
        "method", "parameters", "top1_4f", "top1_8f", "top1_16f", "videos", "published_4f", "published_8f",
        "published_16f", "difference_4f", "difference_8f", "difference_16f", "checkpoint",
    ]  # fmt: skip
    tsm, separate, flexible = table.to_dict("records")
    assert (tsm["difference_4f"], tsm["difference_8f"], tsm["difference_16f"]) == (-1.0, -1.5, 0.48)
    assert (separate["parameters"], separate["checkpoint"]) == (300, "bb cc aa")
    assert (flexible["parameters"], flexible["checkpoint"], flexible["videos"]) == (100, "dd", 24777)
    assert flexible["published_16f"] == 63.61


def test_where_nothing_is_published_the_columns_are_empty(published: pd.DataFrame, tmp_path: Path) -> None:
    table = assemble_table(ROWS, published=published, dataset="demo")
    table.to_csv(tmp_path / "table.csv", index=False)
    line = (tmp_path / "table.csv").read_text().splitlines()[1]
    assert line == "TSM,100,30.52,50.05,61.5,24777,,,,,,,aa"
    text = table_markdown(table, published=published, dataset="demo")
    assert "| TSM-FFN  |" in text
    assert "Nothing is published on demo" in text
    assert "| TSM-FFN  |      56.07 |      61.86 |       63.61 |" in text


def test_markdown_shows_the_published_figure_beside_ours(published: pd.DataFrame) -> None:
    table = assemble_table(ROWS, published=published, dataset="something-something-v2")
    text = table_markdown(table, published=published, dataset="something-something-v2")
    assert "30.52 (31.52, -1.00)" in text
    assert "64.00 (63.61, +0.39)" in text
    assert "Nothing is published" not in text


def test_a_frame_count_that_nobody_published(published: pd.DataFrame) -> None:
    rows = [("TSM", {6: cell(40.0, "aa"), 16: cell(61.5, "aa")})]
    table = assemble_table(rows, published=published, dataset="something-something-v2")
    assert pd.isna(table.loc[0, "difference_6f"])
    assert "40.00 |" in table_markdown(table, published=published, dataset="something-something-v2")


def test_evaluations_of_different_manifests_are_refused(published: pd.DataFrame) -> None:
    rows = [("TSM", {4: cell(30, "aa", videos=10), 16: cell(60, "aa", videos=11)})]
    with pytest.raises(UserError, match=r"row TSM: its evaluations counted \[10, 11\] videos"):
        assemble_table(rows, published=published, dataset="demo")


def test_several_seeds_give_mean_and_sample_deviation(published: pd.DataFrame, tmp_path: Path) -> None:
    """By hand: of 50, 53 and 56 the mean is 53 and the deviation sqrt((9 + 0 + 9) / 2) = 3."""
    seeds = [*cell(50.0, "aa"), *cell(53.0, "bb"), *cell(56.0, "cc")]
    rows = [("TSM", {4: seeds, 16: [*cell(60.0, "aa"), *cell(60.0, "bb"), *cell(61.5, "cc")]})]
    table = assemble_table(rows, published=published, dataset="something-something-v2")
    assert list(table.columns) == [
        "method", "parameters", "top1_4f", "top1_16f", "deviation_4f", "deviation_16f", "seeds", "videos",
        "published_4f", "published_16f", "difference_4f", "difference_16f", "checkpoint",
    ]  # fmt: skip
    (row,) = table.to_dict("records")
    assert (row["top1_4f"], row["deviation_4f"], row["seeds"]) == (53.0, 3.0, 3)
    assert (row["top1_16f"], row["deviation_16f"]) == (60.5, 0.87)
    assert row["difference_4f"] == 21.48
    assert (row["parameters"], row["checkpoint"]) == (100, "aa bb cc")
    text = table_markdown(table, published=published, dataset="something-something-v2")
    assert "53.00 ± 3.00 (31.52, +21.48)" in text
    assert "Mean ± sample standard deviation of 3 seeds." in text
    plot_accuracy(table, published=published, dataset="demo", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dataset", ["demo", "something-something-v2"])
def test_the_picture_is_drawn(published: pd.DataFrame, tmp_path: Path, dataset: str) -> None:
    table = assemble_table(ROWS, published=published, dataset=dataset)
    plot_accuracy(table, published=published, dataset=dataset, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
