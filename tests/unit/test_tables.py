"""Tables against figures computed by hand; and which evaluations a table refuses."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ffnrepro.errors import UserError
from ffnrepro.tables import (
    Published,
    Records,
    TableRow,
    assemble_table,
    check_published,
    published_accuracy,
    read_published,
    read_records,
    read_rows,
    table_markdown,
)

V1, V2 = "something-something-v1", "something-something-v2"
INPUTS = {"split": "validation", "short_side": 256, "crop_size": 224, "data": "da" * 32, "code": "c0" * 32}


@pytest.fixture(scope="module")
def published() -> Published:
    return read_published(Path(__file__).parents[2] / "resources/published.csv")


def make_row(
    label: str, cells: dict[int, list[tuple[str, float]]], published: tuple[str, str | None] | None = None
) -> tuple[TableRow, Records]:
    """Make a row whose evaluations are given as (network, top-1), one per seed; each network has 100 parameters."""
    records = {
        Path(f"{model}_{frames}f.json"): {"top1": top1, "model": model, "videos": 24777, "parameters": 100}
        for frames, cell in cells.items()
        for model, top1 in cell
    }
    paths = {frames: [Path(f"{model}_{frames}f.json") for model, _ in cell] for frames, cell in cells.items()}
    return TableRow(label, published, paths), records


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


def test_tables_of_the_paper_agree_where_they_publish_the_same_figure(published: Published) -> None:
    figures: dict[tuple[str, ...], set[str]] = {}
    for row in published:
        key = (row["dataset"], row["method"], row["setting"], row["frames"])
        figures.setdefault(key, set()).add(row["top1"])
    assert all(len(values) == 1 for values in figures.values())


def test_columns_differences_and_checkpoints(published: Published, tmp_path: Path) -> None:
    table = assemble_table(ROWS, RECORDS, published=published, dataset=V2)
    table.to_csv(tmp_path / "table.csv", index=False)
    header, *lines = (tmp_path / "table.csv").read_text().splitlines()
    assert header == (
        "method,parameters,top1_4f,top1_8f,top1_16f,videos,published,published_4f,published_8f,published_16f,"
        "difference_4f,difference_8f,difference_16f,checkpoint"
    )
    assert lines == [
        "A,100,30.52,50.05,61.5,24777,TSM,31.52,51.55,61.02,-1.0,-1.5,0.48,aa",
        "B,300,53.0,59.0,61.5,24777,,,,,,,,bb cc aa",
    ]
    text = table_markdown(table, published=published, dataset=V2)
    assert "30.52 (31.52, -1.00)" in text
    assert "61.50 (61.02, +0.48)" in text
    assert "| B        |          300 |                53.00 |" in text
    assert "In brackets: the published figure" in text
    assert "Nothing is published" not in text


def test_a_label_changes_nothing_else_and_a_setting_is_compared_with_its_own_figures(
    published: Published,
) -> None:
    def table_of(label: str, setting: str | None) -> pd.DataFrame:
        row, records = make_row(label, {6: [("aa", 40.0)], 16: [("aa", 50.0)]}, ("TSM-FFN", setting))
        return assemble_table([row], records, published=published, dataset=V1)

    plain = table_of("TSM", None)
    assert plain.loc[0, "difference_16f"] == round(50.0 - 50.79, 2)
    other = table_of("any text", None)
    pd.testing.assert_frame_equal(plain.drop(columns="method"), other.drop(columns="method"))

    ablation = table_of("TSM", "without weight alteration")
    assert ablation.loc[0, "published"] == "TSM-FFN, without weight alteration"
    assert ablation.loc[0, "difference_16f"] == round(50.0 - 49.84, 2)
    # The paper has no figure of this ablation at 6 frames.
    assert ablation["difference_6f"].isna().all()
    assert "| 40.00 |" in " ".join(table_markdown(ablation, published=published, dataset=V1).split())


def test_without_published_figures_those_of_the_reference_are_shown_apart(published: Published) -> None:
    table = assemble_table(ROWS, RECORDS, published=published, dataset="demo")
    assert table.filter(regex="(published|difference)_").isna().to_numpy().all()
    text = table_markdown(table, published=published, dataset="demo")
    assert "In brackets" not in text
    assert (
        "Nothing is published on demo. To compare the pattern, these are the published figures on something-something-v2:"
        in text
    )
    assert "| TSM-FFN  |      56.07 |      61.86 |       63.61 |" in text


def test_several_seeds_give_mean_and_sample_deviation(published: Published) -> None:
    """By hand: of 50, 53 and 56 the mean is 53 and the deviation sqrt((9 + 0 + 9) / 2) = 3."""
    cells = {4: [("aa", 50.0), ("bb", 53.0), ("cc", 56.0)], 16: [("aa", 60.0), ("bb", 60.0), ("cc", 61.5)]}
    row, records = make_row("TSM", cells, ("TSM", None))
    table = assemble_table([row], records, published=published, dataset=V2)
    (line,) = table.to_dict("records")
    assert (line["top1_4f"], line["deviation_4f"], line["seeds"]) == (53.0, 3.0, 3)
    assert (line["top1_16f"], line["deviation_16f"]) == (60.5, 0.87)
    assert line["difference_4f"] == 21.48
    assert (line["parameters"], line["checkpoint"]) == (100, "aa bb cc")
    text = table_markdown(table, published=published, dataset=V2)
    assert "53.00 ± 3.00 (31.52, +21.48)" in text
    assert "Mean ± sample standard deviation of 3 seeds." in text


@pytest.mark.parametrize(
    ("figures", "legal"),
    [
        (["TSM-FNN", None], r"it has TSM; TSM-Ensemble; .*TSM-FFN; .*TSM-ST$"),
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
    "model": "ab" * 32, "data": "da" * 32, "code": "c0" * 32, "top1": 50.0, "videos": 9, "parameters": 100,
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
        == f"{NAME}: {problem}; make all stale files again, with the --directory and --configfile of your call: snakemake --cores 1 --force {NAME}"
    )


def test_a_record_that_cannot_be_read_is_refused(rows: list[TableRow]) -> None:
    for text in ("{", "[]"):
        Path(NAME).write_text(text)
        with pytest.raises(
            UserError, match=f"^{NAME}: cannot be read; make all stale files again, .* {NAME}$"
        ):
            read_records(rows, INPUTS)
    Path(NAME).unlink()
    with pytest.raises(UserError, match=f"^{NAME}: cannot be read; make all stale files again, .* {NAME}$"):
        read_records(rows, INPUTS)


def test_another_network_than_that_of_the_run_is_refused(rows: list[TableRow]) -> None:
    """The digest beside the network is newer than both records: all that is stale is named in the command."""
    (RUN / "model.sha256").write_text("ef" * 32)
    with pytest.raises(UserError) as refused:
        read_records(rows, INPUTS)
    assert str(refused.value) == (
        f"{RUN}/run.json: model is abababab and should be efefefef; make all stale files again, with the --directory and --configfile of your call: "
        f"snakemake --cores 1 --force {RUN}/run.json {NAME}"
    )


def test_a_network_that_was_trained_on_other_data_is_refused(rows: list[TableRow]) -> None:
    (RUN / "run.json").write_text(json.dumps({"model": "ab" * 32, "data": "cd" * 32}))
    with pytest.raises(
        UserError,
        match=f"^{RUN}/run.json: data is cdcdcdcd and should be dadadada; make all stale files again",
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
    table = assemble_table(ensemble, read_records(ensemble, INPUTS), published=published, dataset=V1)
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
