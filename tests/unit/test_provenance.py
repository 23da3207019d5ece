"""The chain behind the numbers of a table, and its warnings of files that were made again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_the_chain_names_each_file_behind_a_number(results: Path) -> None:
    chain = chain_of_table(results / "table1.csv")
    for part in (
        "any text\n  16 frames: top-1 62.50, deviation 0.71, published 61.02\n",
        "evaluation results/runs/tsm-0a1b2c3d/seed1/validation_16f.json: top-1 63.0000 of 9 videos\n",
        "      network net1, scoring code c0de\n",
        "network results/runs/tsm-0a1b2c3d/seed0/run.json: net0\n",
        "settings: {method: {train_frames: [16]}}\n    seed 0, best epoch 3\n    data da7a\n",
        f"torch {torch.__version__.partition('+')[0]}", "device cpu",
    ):  # fmt: skip
        assert part in chain
    assert "run snakemake" not in chain


@pytest.mark.parametrize(
    ("file", "content", "warnings"),
    [
        ("validation_16f.json", {"top1": 65.0}, ["THE MEAN IS NOW 63.50"]),
        (
            "validation_16f.json",
            {"model": "other"},
            ["ANOTHER NETWORK WAS EVALUATED", "THE NETWORK WAS TRAINED AGAIN"],
        ),
        ("run.json", {"model": "other"}, ["THE NETWORK WAS TRAINED AGAIN"]),
    ],
)
def test_a_file_that_was_made_again_is_named(
    results: Path, file: str, content: dict[str, Any], warnings: list[str]
) -> None:
    change(results / "runs/tsm-0a1b2c3d/seed1" / file, **content)
    chain = chain_of_table(results / "table1.csv")
    found = [line.strip() for line in chain.splitlines() if line.endswith("run snakemake")]
    assert len(found) == len(warnings)
    for line, warning in zip(found, warnings, strict=True):
        assert line.startswith(warning)


def test_what_cannot_be_read_is_named(results: Path) -> None:
    network = results / "runs/tsm-0a1b2c3d/seed1/run.json"
    write(network, seed=1)
    with pytest.raises(UserError, match=r"table1\.csv or a file behind it is of another version \('model' "):
        chain_of_table(results / "table1.csv")
    network.unlink()
    with pytest.raises(UserError, match=r"seed1/run\.json: cannot be read"):
        chain_of_table(results / "table1.csv")
    with pytest.raises(UserError, match=r"figures/table1\.json: cannot be read .*results/table1\.csv"):
        chain_of_table(results / "figures/table1.png")
