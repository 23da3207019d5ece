"""What the pictures show, read back from their lines and bars."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ffnrepro.figures import (
    accuracy_figure,
    batchnorm_figure,
    class_count_figure,
    clip_length_figure,
    curve_figure,
    save_figure,
)
from ffnrepro.tables import read_published

PUBLISHED = read_published(Path(__file__).parents[2] / "resources/published.csv")


def lines(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], str]]:
    """Label -> heights and colour, of the lines with a label."""
    handles, labels = figure.axes[panel].get_legend_handles_labels()
    drawn: list[Any] = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {
        label: (list(line.get_ydata()), line.get_color()) for label, line in zip(labels, drawn, strict=True)
    }


def bars(figure: Figure) -> list[list[tuple[float, float]]]:
    """Lower and upper end of each error bar, of each row."""
    containers: list[Any] = list(figure.axes[0].containers)
    return [[(low[1], high[1]) for low, high in row[2][0].get_segments()] for row in containers]


def legend_covers_a_panel(figure: Figure) -> bool:
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    return any(axes.get_window_extent().overlaps(box) for axes in figure.axes)


def legend_of(figure: Figure) -> list[str]:
    """Texts of the legend, which lies in the picture and covers no panel."""
    assert not legend_covers_a_panel(figure)
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
    assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    return [text.get_text() for text in legend.get_texts()]


def table(*labels: str) -> pd.DataFrame:
    rows = [
        {
            "method": label, "published": name, "top1_4f": 30.0 + row, "top1_16f": 60.0 + row,
            "low_4f": 29.0, "high_4f": 33.0, "low_16f": 58.0, "high_16f": 62.0,
            "published_4f": published, "published_16f": None,
        }
        for row, (label, name, published) in enumerate(zip(labels, ["TSM-FFN", None], [56.07, None], strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_accuracy_is_drawn_beside_published_figures() -> None:
    figure = accuracy_figure(table("TSM", "B"), published=PUBLISHED, dataset="something-something-v2")
    assert len(figure.axes) == 1
    assert {label: heights for label, (heights, _) in lines(figure).items()} == {
        "TSM": [30, 60], "B": [31, 61], "TSM (published)": [56.07],
    }  # fmt: skip
    assert bars(figure)[0] == [(29, 33), (58, 62)]
    assert legend_of(figure) == ["TSM", "B", "published"]


@pytest.mark.parametrize("dataset", ["something-something-v2", "demo"])
def test_a_legend_of_many_long_labels_lies_in_the_picture(dataset: str) -> None:
    labels = [f"{row} without specialised normalisation" for row in range(12)]
    long = pd.concat([table(label, "").iloc[:1] for label in labels])
    figure = accuracy_figure(long, published=PUBLISHED, dataset=dataset)
    assert legend_of(figure) == [*labels, "published"]
    # The panels keep their size.
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 2.8 * figure.dpi


def test_another_label_changes_no_colour() -> None:
    figures = [
        accuracy_figure(table(*labels), published=PUBLISHED, dataset="something-something-v2")
        for labels in (("TSM", "B"), ("X", "TSM-FFN"))
    ]
    first, second = ([colour for _, colour in lines(figure).values()] for figure in figures)
    assert first == second


def test_without_published_figures_there_is_a_panel_of_the_reference(tmp_path: Path) -> None:
    figure = accuracy_figure(table("A", "B"), published=PUBLISHED, dataset="demo")
    other = lines(figure, panel=1)
    # The colour of the row that is compared with these figures.
    assert other == {"A (published)": ([56.07, 63.61], lines(figure)["A"][1])}
    assert len({colour for _, colour in lines(figure).values()}) == 2
    assert legend_of(figure) == ["A", "B", "published"]
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def curve(published_on_v1: float | None) -> pd.DataFrame:
    """One network at 2 and 3 frames; another at each of 4 and 8; and both together."""
    return pd.DataFrame(
        {
            "method": ["FFN", "FFN", "ST", "ST", "Both", "Both"],
            "run": ["ffn", "ffn", "tsm_4f", "tsm_8f", *["tsm_4f+tsm_8f"] * 2], "frames": [2, 3, 4, 8, 4, 8],
            "top1": [50.0, 60.0, 55.0, 65.0, 52.0, 53.0], "low": 49.0, "high": 66.0, "published_top1": [None, None, 56.0, 66.0, None, None],
            "published_on_v1": [None, published_on_v1, None, None, None, None],
        }
    )  # fmt: skip


def test_networks_at_any_frame_are_lines_and_several_networks_are_points() -> None:
    figure = curve_figure(curve(None), dataset="something-something-v1")
    (axes,) = figure.axes
    assert {label: heights for label, (heights, _) in lines(figure).items()} == {
        "FFN": [50, 60], "ST": [55, 65], "Both": [52, 53], "ST (published)": [56, 66]
    }  # fmt: skip
    containers: list[Any] = list(axes.containers)
    assert [container[0].get_linestyle() for container in containers] == ["-", "None", "None"]
    assert bars(figure) == [[(49, 66)] * 2] * 3
    (dashed,) = [line for line in axes.lines if line.get_label() == "ST (published)"]
    assert dashed.get_linestyle() == "--"
    assert dashed.get_color() == containers[1][0].get_color()
    assert legend_of(figure) == ["FFN", "ST", "Both", "published"]


def test_figures_published_on_v1_have_a_panel_of_their_own() -> None:
    figure = curve_figure(curve(45.0), dataset="something-something-v2")
    published = lines(figure, panel=1)
    assert published["FFN (published)"][0] == [45]
    assert figure.axes[1].get_title() == "something-something-v1 (published)"
    assert not legend_covers_a_panel(figure)


def test_batchnorm_statistics_are_drawn_by_layer_and_frame_count() -> None:
    """By hand: the median of 1, 2, 3, 4, 10 is 3."""
    statistics = pd.DataFrame(
        [
            {"layer": layer, "frames": frames, "mean": shift + value, "variance": 1, "scale": 1, "bias": 0}
            for layer, shift in (("b", 0), ("a", 5))
            for frames in (4, 16)
            for value in (1, 2, 3, 4, frames)
        ]
    )
    figure = batchnorm_figure(statistics)
    assert [axes.get_title() for axes in figure.axes] == ["mean", "variance", "scale", "bias"]
    assert {label: heights for label, (heights, _) in lines(figure).items()} == {
        "4 frames": [3, 8], "16 frames": [3, 8]
    }  # fmt: skip
    assert [text.get_text() for text in figure.axes[2].get_xticklabels()] == ["b", "a"]


def class_counts(classes: int, name: str) -> dict[str, Any]:
    return {"classes": {f"{i} {name}": {"train": i, "validation": 2 * i, "test": 0} for i in range(classes)}}


@pytest.mark.parametrize("name", ["Moving", "Pretending to put something " * 4])
@pytest.mark.parametrize("classes", [2, 12, 30])
def test_few_classes_are_bars_with_names_beside_them(classes: int, name: str) -> None:
    figure = class_count_figure(class_counts(classes, name))
    (axes,) = figure.axes
    train, validation = axes.containers
    assert [bar.get_width() for bar in train] == list(range(classes))[::-1]
    assert [bar.get_width() for bar in validation] == [2 * i for i in range(classes)][::-1]
    assert [text.get_text().split()[0] for text in axes.get_yticklabels()] == [
        str(i) for i in reversed(range(classes))
    ]
    # The largest class is at the top.
    assert axes.yaxis_inverted()
    assert not legend_covers_a_panel(figure)
    assert axes.get_position().width > 0.5
    assert axes.get_position().height > 0.5


def test_many_classes_are_lines() -> None:
    figure = class_count_figure(class_counts(174, "Moving something"))
    assert {label: heights for label, (heights, _) in lines(figure).items()} == {
        "train": list(range(174))[::-1], "validation": [2 * i for i in range(174)][::-1],
    }  # fmt: skip
    assert not legend_covers_a_panel(figure)


def test_lengths_are_counted_in_bins_of_whole_frames() -> None:
    lengths = {"train": {"1": 3, "2": 4, "90": 5}, "validation": {"3": 6}, "test": {}}
    figure = clip_length_figure({"frames": lengths})
    # Bins of two frames, up to the longest: 1 and 2 share the first, 3 is in the second, 90 in the last.
    outlines: list[Any] = list(figure.axes[0].patches)
    assert sorted(max(outline.get_xy()[:, 1]) for outline in outlines) == [6, 7]
    assert not legend_covers_a_panel(figure)
