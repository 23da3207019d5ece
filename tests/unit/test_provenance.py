"""The chain behind the numbers of a table, and its warnings of files that were made again."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ffnrepro.errors import UserError
from ffnrepro.provenance import chain_of_table, provenance

JOB = {"data": "da7a", "wall_seconds": 1.0, **provenance(torch.device("cpu"))}


def write(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path: Path, **content: Any) -> None:
    write(path, **{**json.loads(path.read_text()), **content})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A table of one row and one frame count, of two seeds."""
    run = tmp_path / "results/runs/tsm-0a1b2c3d"
    write(run / "settings.json", method={"train_frames": [16]})
    for seed, top1 in ((0, 62.0), (1, 63.0)):
        folder = run / f"seed{seed}"
        write(folder / "validation_16f.json", model=f"net{seed}", top1=top1, videos=9, code="c0de", **JOB)
        write(folder / "run.json", model=f"net{seed}", seed=seed, best_epoch=3, **JOB)
    paths = [f"results/runs/tsm-0a1b2c3d/seed{seed}/validation_16f.json" for seed in (0, 1)]
    numbers = {
        "top1_16f": 62.5, "deviation_16f": 0.71, "published_16f": 61.02, "difference_16f": None,
        "checkpoint": "net0 net1",
    }  # fmt: skip
    row = {"label": "any text", "evaluations": {"16": paths}, "numbers": numbers}
    write(tmp_path / "results/table1.json", rows=[row])
    return tmp_path / "results"


def test_the_chain_holds_each_number_and_the_records_behind_it(results: Path) -> None:
    text = chain_of_table(results / "table1.csv")
    chain = yaml.safe_load(text)["any text"]
    cell = chain["16 frames"]
    assert (cell["top1_16f"], cell["deviation_16f"], cell["published_16f"]) == (62.5, 0.71, 61.02)
    for seed in (0, 1):
        run = f"results/runs/tsm-0a1b2c3d/seed{seed}"
        record = json.loads((results.parent / run / "validation_16f.json").read_text())
        assert cell["evaluations"][f"{run}/validation_16f.json"] == record
        assert chain["networks"][f"{run}/run.json"] == json.loads(
            (results.parent / run / "run.json").read_text()
        )
    assert record["packages"]["torch"] == version("torch")
    assert record["device"] == "cpu"
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("validation_16f.json", {"top1": 65.0}),
        ("validation_16f.json", {"model": "other"}),
        ("run.json", {"model": "other"}),
    ],
)
def test_a_file_that_was_made_again_gives_a_warning(
    results: Path, file: str, content: dict[str, Any]
) -> None:
    change(results / "runs/tsm-0a1b2c3d/seed1" / file, **content)
    cell = yaml.safe_load(chain_of_table(results / "table1.csv"))["any text"]["16 frames"]
    assert cell["WARNING"] == "a network or its evaluation was remade after the table; run snakemake"


def test_an_unreadable_file_is_named(results: Path) -> None:
    network = results / "runs/tsm-0a1b2c3d/seed1/run.json"
    write(network, seed=1)
    with pytest.raises(
        UserError,
        match=r"table1\.csv or a file behind it was written by another version \(KeyError\('model'\)",
    ):
        chain_of_table(results / "table1.csv")
    network.unlink()
    with pytest.raises(UserError, match=r"seed1/run\.json: cannot be read"):
        chain_of_table(results / "table1.csv")
    with pytest.raises(UserError, match=r"figures/table1\.json: cannot be read; .*results/table1\.csv"):
        chain_of_table(results / "figures/table1.png")
