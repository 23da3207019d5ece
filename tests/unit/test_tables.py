"""Tables against figures computed by hand; and which evaluations a table refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ffnrepro.errors import UserError
from ffnrepro.table_text import Block, latex, markdown, table_blocks
from ffnrepro.tables import (
    Published,
    Records,
    TableRow,
    assemble_table,
    check_published,
    published_accuracy,
    published_elsewhere,
    read_published,
    read_records,
    read_rows,
    read_scores,
)

V1, V2 = "something-something-v1", "something-something-v2"
INPUTS = {"split": "validation", "short_side": 256, "crop_size": 224, "data": "da" * 32, "code": "c0" * 32}


@pytest.fixture(scope="module")
def published() -> Published:
    return read_published(Path(__file__).parents[2] / "resources/published.csv")


VIDEOS = 10_000
COST = {"gflops": 16.35, "clips_per_second": 2000.0}


def make_row(
    label: str, cells: dict[int, list[tuple[str, float]]], published: tuple[str, str | None] | None = None
) -> tuple[TableRow, Records]:
    """Make a row whose evaluations are given as (network, top-1), one per seed; each network has 100 parameters."""
    records = {
        Path(f"{model}_{frames}f.json"): {"top1": top1, "model": model, "parameters": 100, **COST}
        for frames, cell in cells.items()
        for model, top1 in cell
    }
    paths = {frames: [Path(f"{model}_{frames}f.json") for model, _ in cell] for frames, cell in cells.items()}
    return TableRow(label, published, paths), records


def make_table(rows: list[TableRow], records: Records, *, published: Published, dataset: str) -> pd.DataFrame:
    """Assemble a table of networks that get the first videos right, as many as their top-1 says."""
    scores = {
        path: [int(100 * video < record["top1"] * VIDEOS) for video in range(VIDEOS)]
        for path, record in records.items()
    }
    frame = pd.DataFrame(scores).astype("int8")
    return assemble_table(rows, records, frame, published=published, dataset=dataset)


def text_of(table: pd.DataFrame, published: Published, dataset: str) -> str:
    return markdown(table_blocks(table, published=published, dataset=dataset))


TSM, OF_TSM = make_row("A", {4: [("aa", 30.52)], 8: [("aa", 50.05)], 16: [("aa", 61.5)]}, ("TSM", None))
ST, OF_ST = make_row("B", {4: [("bb", 53.0)], 8: [("cc", 59.0)], 16: [("aa", 61.5)]})
ROWS, RECORDS = [TSM, ST], {**OF_TSM, **OF_ST}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((V2, "TSM"), {4: 31.52, 8: 51.55, 16: 61.02}),
        ((V2, "TSM-FFN"), {4: 56.07, 8: 61.86, 16: 63.61}),
        ((V1, "TSM-FFN", "without weight alteration"), {4: 41.91, 8: 47.92, 16: 49.84}),
        ((V2, "TSM-FFN", "without weight alteration"), {}),
        (("demo", "TSM"), {}),
    ],
)
def test_published_figures(
    published: Published, figures: tuple[str, str], expected: dict[int, float]
) -> None:
    assert published_accuracy(published, *figures) == expected


def test_columns_intervals_differences_and_checkpoints(published: Published) -> None:
    table = make_table(ROWS, RECORDS, published=published, dataset=V2)
    kinds = (
        "top1 low high gain gain_low gain_high published difference clips_per_second gflops".split()  # noqa: SIM905
    )
    assert table.columns.tolist() == [
        "method", "parameters", "videos", "published", "compared_with",
        *(f"{kind}_{n}f" for kind in kinds for n in (4, 8, 16)), "checkpoint",
    ]  # fmt: skip
    first, second = (dict(row) for row in table.to_dict("records"))
    assert (first["method"], first["parameters"], first["videos"], first["checkpoint"]) == (
        "A",
        100,
        VIDEOS,
        "aa",
    )
    assert (second["parameters"], second["checkpoint"]) == (300, "bb cc aa")
    assert [first[f"top1_{n}f"] for n in (4, 8, 16)] == [30.52, 50.05, 61.5]
    assert [first[f"published_{n}f"] for n in (4, 8, 16)] == [31.52, 51.55, 61.02]
    assert [first[f"difference_{n}f"] for n in (4, 8, 16)] == [-1.0, -1.5, 0.48]
    assert table.loc[1].filter(regex="published|difference").isna().all()
    # By hand: 1.96 sqrt(0.53 * 0.47 / 10,000) = 0.98 points, and 0.2248 of the videos right in the second row alone.
    assert [second["low_4f"], second["high_4f"]] == pytest.approx([53 - 0.98, 53 + 0.98], abs=0.05)
    assert second["gain_4f"] == 22.48
    assert [second["gain_low_4f"], second["gain_high_4f"]] == pytest.approx([21.66, 23.30], abs=0.05)
    # At 16 frames both rows have the same network.
    assert [second[f"{kind}_16f"] for kind in ("gain", "gain_low", "gain_high")] == [0, 0, 0]
    assert table.loc[0].filter(like="gain").isna().all()


def test_a_row_may_be_compared_with_another_row_than_the_first(published: Published) -> None:
    """By hand: 66 - 60 and 50 - 60 points; the first row is compared with none."""
    rows, records = [], {}
    for label, top1, other in (("A", 40.0, None), ("B", 60.0, None), ("C", 66.0, "B"), ("D", 50.0, "B")):
        row, record = make_row(label, {4: [(label, top1)]})
        rows.append(replace(row, compare_with=other))
        records |= record
    table = make_table(rows, records, published=published, dataset=V2)
    assert table["compared_with"].fillna("").tolist() == ["", "A", "B", "B"]
    assert table["gain_4f"].fillna(0).tolist() == [0, 20, 6, -10]
    first, second = table_blocks(table, published=published, dataset=V2)[1:3]
    assert first.caption.startswith("Difference from A on the same videos")
    assert second.caption.startswith("Difference from B on the same videos")
    assert [[line[0], line[1].split()[0]] for line in [*first.lines, *second.lines]] == [
        ["B", "+20.0"], ["C", "+6.0"], ["D", "-10.0"]
    ]  # fmt: skip


def test_the_text_shows_intervals_published_figures_and_the_difference_from_the_first_row(
    published: Published,
) -> None:
    table = make_table(ROWS, RECORDS, published=published, dataset=V2)
    table[["low_8f", "high_8f", "gain_low_8f", "gain_high_8f"]] = [
        [49.11, 51.0, None, None],
        [58.0, 60.0, 8.4, 9.5],
    ]
    blocks = table_blocks(table, published=published, dataset=V2)
    assert [[line[0], line[2]] for line in blocks[0].lines] == [
        ["A", "50.0 [49.1, 51.0]"],
        ["B", "59.0 [58.0, 60.0]"],
    ]
    assert [[line[0], line[2]] for line in blocks[1].lines] == [["B", "+8.9 [+8.4, +9.5]"]]
    assert blocks[1].caption.startswith("Difference from A on the same videos")
    assert blocks[2].lines == [["A", "31.52 (-1.00)", "51.55 (-1.50)", "61.02 (+0.48)"]]
    assert [block.caption.split()[0] for block in blocks] == [
        "Top-1",
        "Difference",
        "Published",
        "Parameters,",
    ]
    text = markdown(blocks)
    assert f"Top-1 accuracy in percent on {V2} (10,000 videos), with 95 % intervals.\n\n| method" in text
    assert "| B        |          300 |" in text


def test_latex_is_booktabs_with_escaped_labels(published: Published) -> None:
    row, records = make_row("a_b & 50%", {4: [("aa", 50.0)]}, ("TSM", None))
    table = make_table([row], records, published=published, dataset="my_data")
    text = latex(table_blocks(table, published=published, dataset="my_data"))
    assert text.count(r"\begin{table}") == text.count(r"\end{tabular}") == 3
    assert r"\caption{Top-1 accuracy in percent on my\_data (10,000 videos), with 95 \% intervals.}" in text
    assert re.search(
        r"\\toprule\n method +& +4 frames \\\\\n\\midrule\n a\\_b \\& 50\\% & 50\.0 \[49\.0, 51\.0\] \\\\",
        text,
    ), text
    assert text.startswith("% \\usepackage{booktabs, graphicx}\n")


def test_negative_numbers_in_latex_have_a_minus_sign() -> None:
    block = Block("Since 1-2", ["method", "4 frames"], [["x-3", "-1.0 [-2.0, +1.0]"], ["y", "31.0 (-1.0)"]])
    lines = latex([block]).splitlines()
    assert r" x-3 & $-$1.0 [$-$2.0, +1.0] \\" in [re.sub(" +", " ", line) for line in lines]
    assert any("31.0 ($-$1.0)" in line for line in lines)
    assert r"\caption{Since 1-2}" in lines


def test_the_text_shows_the_cost_with_the_mean_speed_of_the_seeds(published: Published) -> None:
    row, records = make_row("A", {4: [("aa", 30.0), ("bb", 31.0)]})
    records[Path("bb_4f.json")]["clips_per_second"] = 2100
    table = make_table([row], records, published=published, dataset="demo")
    assert (table.loc[0, "gflops_4f"], table.loc[0, "clips_per_second_4f"]) == (16.35, 2050)
    assert table_blocks(table, published=published, dataset="demo")[-1].lines == [
        ["A", "100", "16.35 (2050)"]
    ]


def test_a_label_changes_nothing_else_and_a_setting_is_compared_with_its_own_figures(
    published: Published,
) -> None:
    def table_of(label: str, setting: str | None) -> pd.DataFrame:
        row, records = make_row(label, {6: [("aa", 40.0)], 16: [("aa", 50.0)]}, ("TSM-FFN", setting))
        return make_table([row], records, published=published, dataset=V1)

    plain = table_of("TSM", None)
    assert plain.loc[0, "difference_16f"] == round(50.0 - 50.79, 2)
    other = table_of("any text", None)
    pd.testing.assert_frame_equal(plain.drop(columns="method"), other.drop(columns="method"))

    ablation = table_of("TSM", "without weight alteration")
    assert ablation.loc[0, "published"] == "TSM-FFN, without weight alteration"
    assert ablation.loc[0, "difference_16f"] == round(50.0 - 49.84, 2)
    # The paper has no figure of this ablation at 6 frames.
    assert ablation["difference_6f"].isna().all()
    lines = table_blocks(ablation, published=published, dataset=V1)[1].lines
    assert lines == [["TSM", "", "49.84 (+0.16)"]]


@pytest.mark.parametrize(
    ("dataset", "settings", "frames", "expected"),
    [
        # The evaluated data set has all figures; of another data set there is none where a setting exists on V1 only.
        (V2, [None], [4, 16], {}),
        (V1, [None, "without weight alteration"], [4, 6], {}),
        ("demo", [None], [4, 16], {V2: {"0": {4: 56.07, 16: 63.61}}}),
        # The ablation stands beside the full method.
        (V2, [None, "without weight alteration"], [4], {V1: {"0": {4: 42.85}, "1": {4: 41.91}}}),
        (
            "demo",
            [None, "without weight alteration"],
            [4],
            {V2: {"0": {4: 56.07}}, V1: {"0": {4: 42.85}, "1": {4: 41.91}}},
        ),
        # At 6 frames nothing is published on V2.
        (V2, [None], [4, 6], {V1: {"0": {4: 42.85, 6: 46.57}}}),
        ("kinetics-400", ["without weight alteration"], [4, 6], {V1: {"0": {4: 41.91}}}),
    ],
)
def test_published_figures_of_other_data_sets_stand_apart(
    published: Published, dataset: str, settings: list[str | None], frames: list[int], expected: Any
) -> None:
    rows, records = [], {}
    for i, setting in enumerate(settings):
        row, of_row = make_row(str(i), {n: [(f"net{i}", 50.0)] for n in frames}, ("TSM-FFN", setting))
        rows.append(row)
        records |= of_row
    table = make_table(rows, records, published=published, dataset=dataset)
    assert published_elsewhere(table, published=published, dataset=dataset) == expected
    text = text_of(table, published, dataset)
    for source in (V1, V2):
        assert (f"Published on {source}, for comparison" in text) == (source in expected)
    for curves in expected.values():
        for label, curve in curves.items():
            cells = " *\\| +".join(f"{curve[n]:.2f}" if n in curve else "" for n in frames)
            assert re.search(rf"\| {label} +\| +{cells} *\|", text), text


def test_several_seeds_give_mean_and_sample_deviation(published: Published) -> None:
    """By hand: of 50, 53 and 56 the mean is 53 and the deviation sqrt((9 + 0 + 9) / 2) = 3."""
    cells = {4: [("aa", 50.0), ("bb", 53.0), ("cc", 56.0)], 16: [("aa", 60.0), ("bb", 60.0), ("cc", 61.5)]}
    row, records = make_row("TSM", cells, ("TSM", None))
    table = make_table([row], records, published=published, dataset=V2)
    (line,) = table.to_dict("records")
    assert (line["top1_4f"], line["deviation_4f"], line["seeds"]) == (53.0, 3.0, 3)
    assert (line["top1_16f"], line["deviation_16f"]) == (60.5, 0.87)
    assert line["difference_4f"] == 21.48
    assert (line["parameters"], line["checkpoint"]) == (100, "aa bb cc")
    # These seeds vary more than the videos: the lowest bound is that of drawing the lowest seed three times.
    assert line["low_4f"] == pytest.approx(50, abs=1)
    text = text_of(table, published, V2)
    assert re.search(r"\| 53\.0 ± 3\.0 \[(49|50)\.\d, 5[67]\.\d\] \|", text), text
    assert "Mean ± sample standard deviation of 3 seeds." in text


@pytest.mark.parametrize(
    ("figures", "legal"),
    [
        (["TSM-FNN", None], r"it has SlowFast; .*TEA; .*TSM; TSM-Ensemble; .*Uniformer-ST$"),
        (["TSM-Mixed", "rho 0.5"], r"it has TSM-Mixed, rho 0.50; TSM-Mixed, rho 0.75$"),
    ],
)
def test_figures_that_nobody_published_are_refused(
    published: Published, figures: list[str], legal: str
) -> None:
    rows = read_rows(json.dumps([{"label": "x", "published": figures, "evaluations": {}}]))
    with pytest.raises(UserError, match=rf"^config: tables: row 'x': .*{legal}"):
        check_published(rows, published)
    check_published(ROWS, published)


RUN = Path("results/runs/tsm-0a1b2c3d/seed1")
NAME = f"{RUN}/validation_8f.json"
RECORD: dict[str, Any] = {
    "run": "tsm-0a1b2c3d", "seed": 1, "split": "validation", "frames": 8, "short_side": 256, "crop_size": 224,
    "model": "ab" * 32, "data": "da" * 32, "code": "c0" * 32, "top1": 50.0, "videos": 9, "parameters": 100, **COST,
}  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TableRow]:
    """A table of one evaluation, which is up to date."""
    monkeypatch.chdir(tmp_path)
    RUN.mkdir(parents=True)
    Path(NAME).write_text(json.dumps(RECORD))
    (RUN / "run.json").write_text(json.dumps({"model": "ab" * 32, "data": "da" * 32}))
    (RUN / "model.sha256").write_text("ab" * 32 + "\n")
    return read_rows(json.dumps([{"label": "x", "published": None, "evaluations": {"8": [NAME]}}]))


def test_current_evaluations_are_read(rows: list[TableRow]) -> None:
    assert read_records(rows, INPUTS)[Path(NAME)] == RECORD


@pytest.mark.usefixtures("rows")
def test_scores_are_joined_by_id_and_must_give_the_top_1_of_the_record() -> None:
    """By hand: of videos a, b, c the two networks get (a, c) and (c) right; the second file has another order."""
    other = f"{RUN}/validation_16f.json"
    both = read_rows(
        json.dumps([{"label": "x", "published": None, "evaluations": {"8": [NAME], "16": [other]}}])
    )
    for path, ids, classes in ((NAME, "abc", [5, 0, 7]), (other, "cba", [7, 0, 0])):
        labels = [{"a": 5, "b": 6, "c": 7}[name] for name in ids]
        frame = pd.DataFrame({"id": list(ids), "label": labels, "class_1": classes, "class_2": 6})
        frame.to_parquet(Path(path).with_suffix(".parquet"))
    records = {Path(NAME): {"top1": 100 * 2 / 3}, Path(other): {"top1": 100 / 3}}
    scores = read_scores(both, records)
    assert scores.loc[["a", "b", "c"]].to_dict("list") == {Path(NAME): [1, 0, 1], Path(other): [0, 0, 1]}
    records[Path(NAME)] = {"top1": 50.0}
    with pytest.raises(
        UserError,
        match=r"validation_8f\.parquet: its top-1 is 66\.6.* and should be 50\.0, .* --force .*8f\.json$",
    ):
        read_scores(both, records)
    file = Path(NAME).with_suffix(".parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"^{file}: cannot be read \(.*\); remake both, .* --force {NAME}$"):
        read_scores(both, records)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"run": "tsm-00000000"}, "run is tsm-00000000 and should be tsm-0a1b2c3d"),
        ({"seed": 0}, "seed is 0 and should be 1"),
        ({"split": "test"}, "split is test and should be validation"),
        ({"frames": 16}, "frames is 16 and should be 8"),
        ({"short_side": 240}, "short_side is 240 and should be 256"),
        ({"crop_size": None}, "crop_size is None and should be 224"),
        ({"model": "cd" * 32}, "model is cdcdcdcd and should be abababab"),
        ({"data": "cd" * 32}, "data is cdcdcdcd and should be dadadada"),
        (
            {"code": "cd" * 32, "seed": 2},
            "seed is 2 and should be 1, code is cdcdcdcd and should be c0c0c0c0",
        ),
    ],
    ids=str,
)
def test_a_stale_evaluation_is_refused(rows: list[TableRow], change: dict[str, Any], problem: str) -> None:
    Path(NAME).write_text(json.dumps(RECORD | change))
    with pytest.raises(UserError) as refused:
        read_records(rows, INPUTS)
    assert (
        str(refused.value)
        == f"{NAME}: {problem}; remake all stale files, with your --directory and --configfile: snakemake --cores 1 --force {NAME}"
    )


def test_a_record_that_cannot_be_read_is_refused(rows: list[TableRow]) -> None:
    for text in ("{", "[]"):
        Path(NAME).write_text(text)
        with pytest.raises(UserError, match=f"^{NAME}: cannot be read; remake all stale files, .* {NAME}$"):
            read_records(rows, INPUTS)
    Path(NAME).unlink()
    with pytest.raises(UserError, match=f"^{NAME}: cannot be read; remake all stale files, .* {NAME}$"):
        read_records(rows, INPUTS)


def test_another_network_than_that_of_the_run_is_refused(rows: list[TableRow]) -> None:
    """The digest beside the network is newer than both records: all that is stale is named in the command."""
    (RUN / "model.sha256").write_text("ef" * 32)
    with pytest.raises(UserError) as refused:
        read_records(rows, INPUTS)
    assert str(refused.value) == (
        f"{RUN}/run.json: model is abababab and should be efefefef; remake all stale files, with your --directory and --configfile: "
        f"snakemake --cores 1 --force {RUN}/run.json {NAME}"
    )


def test_a_network_that_was_trained_on_other_data_is_refused(rows: list[TableRow]) -> None:
    (RUN / "run.json").write_text(json.dumps({"model": "ab" * 32, "data": "cd" * 32}))
    with pytest.raises(
        UserError,
        match=f"^{RUN}/run.json: data is cdcdcdcd and should be dadadada; remake all stale files",
    ):
        read_records(rows, INPUTS)


def test_a_network_that_started_from_another_network_than_there_is_now_is_refused(
    rows: list[TableRow],
) -> None:
    first = Path("results/runs/tsm-99999999/seed1")
    first.mkdir(parents=True)
    (first / "model.pt").touch()
    (first / "model.sha256").write_text("ee" * 32 + "\n")
    record = {
        "model": "ab" * 32,
        "data": "da" * 32,
        "start": f"{first}/model.pt",
        "start_model": "ee" * 32,
    }
    (RUN / "run.json").write_text(json.dumps(record))
    read_records(rows, INPUTS)
    (first / "model.sha256").write_text("ff" * 32 + "\n")
    with pytest.raises(UserError, match=f"^{RUN}/run.json: start_model is eeeeeeee and should be ffffffff; "):
        read_records(rows, INPUTS)


# --- Ensembles -------------------------------------------------------------------------------------------------

MEMBERS = ("tsm_4f-00000001", "tsm-00000002")
ENSEMBLE = Path(f"results/ensembles/{'+'.join(MEMBERS)}/seed0/validation_8f.json")
ITS_RECORD = RECORD | {
    "run": "+".join(MEMBERS),
    "seed": 0,
    "model": f"{'a1' * 32} {'a2' * 32}",
    "parameters": 200,
}


@pytest.fixture
def ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TableRow]:
    """A table of one ensemble of two networks, which is up to date."""
    monkeypatch.chdir(tmp_path)
    for name, digest in zip(MEMBERS, ("a1" * 32, "a2" * 32), strict=True):
        folder = Path(f"results/runs/{name}/seed0")
        folder.mkdir(parents=True)
        record = RECORD | {"run": name, "seed": 0, "model": digest}
        (folder / "validation_8f.json").write_text(json.dumps(record))
        (folder / "run.json").write_text(json.dumps({"model": digest, "data": "da" * 32}))
        (folder / "model.sha256").write_text(digest)
    ENSEMBLE.parent.mkdir(parents=True)
    ENSEMBLE.write_text(json.dumps(ITS_RECORD))
    return read_rows(json.dumps([{"label": "x", "published": None, "evaluations": {"8": [str(ENSEMBLE)]}}]))


def test_an_ensemble_has_the_parameters_and_checkpoints_of_all_its_networks(
    ensemble: list[TableRow], published: Published
) -> None:
    scores = pd.DataFrame({ENSEMBLE: [1, 0]})
    table = assemble_table(ensemble, read_records(ensemble, INPUTS), scores, published=published, dataset=V1)
    assert table.loc[0, ["parameters", "top1_8f", "checkpoint"]].tolist() == [200, 50.0, ITS_RECORD["model"]]


@pytest.mark.parametrize("member", [0, 1])
def test_an_ensemble_of_a_stale_network_is_refused(ensemble: list[TableRow], member: int) -> None:
    """A network was trained and evaluated again, and the ensemble was not."""
    folder = Path(f"results/runs/{MEMBERS[member]}/seed0")
    new = "ef" * 32
    (folder / "model.sha256").write_text(new)
    for file in (folder / "run.json", folder / "validation_8f.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model": new}))
    with pytest.raises(UserError) as refused:
        read_records(ensemble, INPUTS)
    digests = ["a1a1a1a1", "a2a2a2a2"]
    digests[member] = "efefefef"
    assert f"{ENSEMBLE}: model is a1a1a1a1 a2a2a2a2 and should be {' '.join(digests)}; " in str(refused.value)
    assert str(refused.value).endswith(f"--force {ENSEMBLE}")


def test_a_stale_evaluation_behind_an_ensemble_is_refused(ensemble: list[TableRow]) -> None:
    file = Path(f"results/runs/{MEMBERS[1]}/seed0/validation_8f.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "cd" * 32}))
    with pytest.raises(
        UserError, match=f"^{file}: code is cdcdcdcd and should be c0c0c0c0; .* --force {file}$"
    ):
        read_records(ensemble, INPUTS)
