"""`resources/published.csv` against the tables of the paper, written out by hand."""

from pathlib import Path

import pytest

from ffnrepro.tables import Published, read_published

V1, V2, KINETICS, HMDB = "something-something-v1", "something-something-v2", "kinetics-400", "hmdb51"
THREE, SEVEN = (4, 8, 16), (4, 6, 8, 10, 12, 14, 16)
TABLES = {
    # Table: data set, frame counts, "method | setting | figures" of each row.
    9: [
        (V2, THREE, "TSM | | 31.52 51.55 61.02"),
        (V2, THREE, "TSM-ST | | 53.38 59.29 61.02"),
        (V2, THREE, "TSM-FFN | | 56.07 61.86 63.61"),
        (KINETICS, THREE, "TSM | | 64.10 69.77 73.16"),
        (KINETICS, THREE, "TSM-ST | | 66.25 70.38 73.16"),
        (KINETICS, THREE, "TSM-FFN | | 68.96 72.33 74.35"),
        (HMDB, THREE, "TSM | | 42.16 46.38 48.30"),
        (HMDB, THREE, "TSM-ST | | 44.74 46.77 48.30"),
        (HMDB, THREE, "TSM-FFN | | 45.67 47.67 48.80"),
    ],
    1: [
        (V1, THREE, "TSM | | 20.60 37.36 48.55"),
        (V1, THREE, "TSM-Mixed | rho 0.50 | 27.89 41.07 48.44"),
        (V1, THREE, "TSM-Mixed | rho 0.75 | 30.43 42.56 47.81"),
        (V1, THREE, "TSM-Proportional | varrho 0.50 | 37.56 44.82 45.37"),
        (V1, THREE, "TSM-Proportional | varrho 0.75 | 32.06 43.15 47.14"),
        (V1, THREE, "TSM-Fine-tuning | 16F -> 4F | 39.95 40.37 28.96"),
        (V1, THREE, "TSM-Ensemble | mean of the three ST models | 35.88 46.25 46.82"),
        (V1, THREE, "TSM-ST | | 39.71 45.63 48.55"),
        (V1, THREE, "TSM-FFN | | 42.85 48.20 50.79"),
    ],
    2: [
        (V1, (4, 8, 12, 16), "TSM-ST | | 39.71 45.63 47.71 48.55"),
        (V1, (4, 8, 12, 16), "TSM-FFN | trained at 4/16F | 41.69 37.93 48.10 49.79"),
        (V1, (4, 8, 12, 16), "TSM-FFN | | 42.85 48.20 48.90 50.79"),
        (V1, (4, 8, 12, 16), "TSM-FFN | trained at 4/8/12/16F | 43.40 48.66 49.77 50.63"),
    ],
    3: [
        (V1, (4, 8, 16, 24), "TSM-ST | | 39.71 45.63 48.55 47.90"),
        (V1, (4, 8, 16, 24), "TSM-FFN | with 24F | 41.28 46.72 49.79 49.95"),
    ],
    4: [
        (V1, THREE, "TSM-FFN | without specialized normalization | 35.79 46.80 44.62"),
        (V1, THREE, "TSM-FFN | without weight alteration | 41.91 47.92 49.84"),
        (V1, THREE, "TSM-FFN | without temporal distillation | 39.61 45.65 48.07"),
        (V1, THREE, "TSM-FFN | without weight sharing | 41.51 47.16 48.23"),
    ],
    5: [
        (V1, THREE, "TSM | ResNet-18 | 16.82 33.12 42.95"),
        (V1, THREE, "TSM-ST | ResNet-18 | 32.33 38.21 42.95"),
        (V1, THREE, "TSM-FFN | ResNet-18 | 36.83 41.61 43.57"),
        (V1, THREE, "TSM | ResNet-101 | 22.15 39.30 49.57"),
        (V1, THREE, "TSM-ST | ResNet-101 | 40.76 46.96 49.57"),
        (V1, THREE, "TSM-FFN | ResNet-101 | 45.15 50.24 51.79"),
    ],
    6: [
        (V1, SEVEN, "TSM-FFN | | 42.85 46.57 48.20 48.81 48.90 50.47 50.79"),
        (V1, SEVEN, "TSM-FFN | trained at 4/10/16F | 43.10 44.77 47.81 49.26 49.63 50.67 51.12"),
        (V1, SEVEN, "TSM-FFN | trained at 4/12/16F | 42.92 43.57 46.82 48.85 49.73 50.40 50.79"),
    ],
    7: [
        (V1, SEVEN, "TSM | | 20.60 30.23 37.36 42.72 45.97 47.49 48.55"),
        (V1, SEVEN, "TSM-ST | | 39.71 43.73 45.63 47.31 47.71 48.01 48.55"),
        (V1, SEVEN, "TSM-FFN | | 42.85 46.57 48.20 48.81 48.90 50.47 50.79"),
        (V1, SEVEN, "TSM-FFN | trained at 4/16F | 41.69 42.07 37.93 46.11 48.10 49.37 49.79"),
        (V1, SEVEN, "TSM-FFN | trained at 4/8/12/16F | 43.40 46.51 48.66 48.92 49.77 50.11 50.63"),
    ],
    8: [
        (V1, THREE, "TEA | | 21.78 41.49 51.23"),
        (V1, THREE, "TEA-ST | | 41.36 48.37 51.23"),
        (V1, THREE, "TEA-FFN | | 44.97 51.61 54.04"),
        (V1, THREE, "SlowFast | | 15.08 35.08 45.88"),
        (V1, THREE, "SlowFast-ST | | 39.91 44.12 45.88"),
        (V1, THREE, "SlowFast-FFN | | 43.90 47.11 47.27"),
        (V1, THREE, "Uniformer | | 22.38 47.98 56.71"),
        (V1, THREE, "Uniformer-ST | | 44.33 51.49 56.71"),
        (V1, THREE, "Uniformer-FFN | | 51.41 56.64 58.88"),
    ],
}  # fmt: skip
COST = {
    # Of Table 1: millions of parameters, and GFLOPs of a video at 4, 8 and 16 frames. TSM-ST takes one of its networks.
    "TSM": ("25.6", ["16.4", "32.7", "65.4"]),
    "TSM-Mixed": ("25.6", ["16.4", "32.7", "65.4"]),
    "TSM-Proportional": ("25.6", ["16.4", "32.7", "65.4"]),
    "TSM-Fine-tuning": ("25.6", ["16.4", "32.7", "65.4"]),
    "TSM-Ensemble": ("76.8", ["49.2", "98.1", "196.2"]),
    "TSM-ST": ("76.8", ["16.4", "32.7", "65.4"]),
    "TSM-FFN": ("25.7", ["16.4", "32.8", "65.5"]),
}


@pytest.fixture(scope="module")
def published() -> Published:
    return read_published(Path(__file__).parents[2] / "resources/published.csv")


@pytest.mark.parametrize("table", TABLES)
def test_every_figure_of_a_table_is_there_and_no_other(published: Published, table: int) -> None:
    expected = set()
    for dataset, frames, row in TABLES[table]:
        method, setting, figures = (part.strip() for part in row.split("|"))
        for count, figure in zip(frames, figures.split(), strict=True):
            expected.add((dataset, method, setting, str(count), figure))
    found = [row for row in published if row["source"] == f"Table {table}"]
    keys = ("dataset", "method", "setting", "frames", "top1")
    assert {tuple(row[key] for key in keys) for row in found} == expected
    assert len(found) == len(expected)


def test_parameters_and_gflops_stand_in_the_rows_of_table_1(published: Published) -> None:
    for row in published:
        parameters, figures = COST[row["method"]] if row["source"] == "Table 1" else ("", [""] * 3)
        gflops = figures[THREE.index(int(row["frames"]))] if row["source"] == "Table 1" else ""
        assert (row["million_parameters"], row["gflops"]) == (parameters, gflops), row
    assert len(published) == 191


def test_tables_agree_where_they_publish_the_same_figure(published: Published) -> None:
    figures: dict[tuple[str, ...], set[str]] = {}
    for row in published:
        key = (row["dataset"], row["method"], row["setting"], row["frames"])
        figures.setdefault(key, set()).add(row["top1"])
    assert all(len(values) == 1 for values in figures.values())
