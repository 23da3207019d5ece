"""What is recorded beside a number is what it was made with: the checkout may change while a job computes."""

import json
import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from ffnrepro import provenance
from ffnrepro.config import evaluation_settings, read_config, training_settings
from ffnrepro.training import job as experiment
from ffnrepro.training.job import build_network, training_parser
from ffnrepro.training.loop import Trained
from ffnrepro.weights import load_checkpoint, tensors_digest

ROOT = Path(__file__).parents[2]


class Checkout:
    """Its revision, as git would tell."""

    revision = "before"

    def change(self) -> None:
        self.revision = "after"


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Checkout:
    checkout = Checkout()
    monkeypatch.setattr(provenance, "_git_revision", lambda: checkout.revision)
    return checkout


@pytest.fixture
def arguments(tmp_path: Path) -> Namespace:
    (tmp_path / "manifest.sha256").write_text("ab" * 32)
    pd.DataFrame({"class": pd.array([0], dtype="Int64")}).to_parquet(tmp_path / "validation.parquet")
    config = read_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {
        "network": {"depth": 10, "width": 8, "stem": 5, "dropout": 0.0, "weights": None, "weights_sha256": None},
    })  # fmt: skip
    training = training_settings(config, "tsm", 0)
    training["training"]["precision"] = "float32"
    command = {
        "name": "tsm", "settings": json.dumps(training), "classes": tmp_path / "none.csv", "manifest": tmp_path,
        "videos": tmp_path, "state": tmp_path / "state", "output": tmp_path / "output", "device": "cpu",
    }  # fmt: skip
    parsed = training_parser("").parse_args([f"--{key}={value}" for key, value in command.items()])
    parsed.evaluation = evaluation_settings(config, "tsm", 4)
    return parsed


def test_the_revision_is_that_of_the_start(
    checkout: Checkout, arguments: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_experiment(arguments: Namespace, *_: Any) -> tuple[Any, Trained]:
        checkout.change()
        model = build_network(arguments.settings, 3)
        history = [{"epoch": 1.0, "validation_top1_16f": 10.0, "seconds": 1.0}]
        return model, Trained(history, 1, model.state_dict())

    monkeypatch.setattr(experiment, "train_experiment", train_experiment)
    experiment.run_experiment(arguments, ROOT / "workflow/scripts/train_tsm.py")
    record = json.loads((arguments.output / "run.json").read_text())
    assert record["git_revision"] == "before"
    digest = tensors_digest(load_checkpoint(arguments.output / "model.pt").state_dict())
    kept = json.loads((arguments.state / record["state"] / "made_with.json").read_text())
    assert kept["model"] == record["model"] == digest

    # Trained again to another network, since its saves are lost: what is told is told of this one.
    made_with = arguments.state / record["state"] / "made_with.json"
    made_with.write_text(json.dumps({**kept, "model": "another", "git_revision": "long ago"}))
    checkout.revision = "before"
    experiment.run_experiment(arguments, ROOT / "workflow/scripts/train_tsm.py")
    record = json.loads((arguments.output / "run.json").read_text())
    assert record["model"] == (arguments.output / "model.sha256").read_text().strip()
    assert record["git_revision"] == "before"

    script = runpy.run_path(str(ROOT / "workflow/scripts/evaluate.py"))

    def predict(*_: Any, **__: Any) -> pd.DataFrame:
        checkout.change()
        return pd.DataFrame({"label": [0], **{f"class_{rank}": [rank] for rank in range(1, 6)}})

    monkeypatch.setitem(script["work"].__globals__, "predict", predict)
    checkout.revision = "before"
    evaluation = Namespace(
        name="tsm", seed=0, settings=arguments.evaluation, model=arguments.output / "model.pt", manifest=arguments.manifest,
        videos=arguments.videos, state=arguments.state, batch_size=1, device="cpu", threads=1, workers=0,
        predictions=arguments.output / "4f.parquet", summary=arguments.output / "4f.json",
    )  # fmt: skip
    script["work"](evaluation)
    summary = json.loads(evaluation.summary.read_text())
    assert (summary["git_revision"], summary["top1"]) == ("before", 0)

    # What is kept is whole or it is made again.
    (arguments.state / summary["state"] / "predictions.parquet").unlink()
    evaluation.predictions.unlink()
    script["work"](evaluation)
    assert len(pd.read_parquet(evaluation.predictions)) == 1


def test_beside_a_number_stands_what_the_table_has_beside_it(tmp_path: Path) -> None:
    results = tmp_path / "results"
    made = {
        "data": "ab", "code": {}, "packages": {}, "python": "3.11", "host": "here", "platform": "any", "device": "cpu",
        "slurm_job": None, "git_revision": None, "wall_seconds": 1.0,
    }  # fmt: skip
    paths = []
    for seed, top1 in ((0, 62.0), (1, 63.0)):
        paths.append(f"results/evaluation/tsm/seed{seed}/16f.json")
        summary = {
            "experiment": "tsm",
            "seed": seed,
            "settings": {"frames": 16},
            "model": f"net{seed}",
            "top1": top1,
            "videos": 9,
        }
        run = {"settings": {"seed": seed}, "model": f"net{seed}", "weights": None, "best_epoch": 3}
        for path, record in ((paths[-1], summary), (f"results/experiments/tsm/seed{seed}/run.json", run)):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(json.dumps(record | made))
    (results / "table1.json").write_text(json.dumps({"settings": {"rows": [["TSM", [[16, paths]]]]}}))
    row = {
        "method": "TSM",
        "top1_16f": 62.5,
        "deviation_16f": 0.71,
        "published_16f": 61.02,
        "difference_16f": 1.48,
    }
    pd.DataFrame([row | {"checkpoint": "net0 net1"}]).to_csv(results / "table1.csv", index=False)
    said = provenance.chain_of_table(results / "table1.csv")
    assert "16 frames: top-1 62.50, deviation 0.71, published 61.02, difference 1.48\n" in said
    assert "NOT OF THIS" not in said

    pd.DataFrame([row | {"checkpoint": "net0 other"}]).to_csv(results / "table1.csv", index=False)
    said = provenance.chain_of_table(results / "table1.csv")
    assert said.count("THE NUMBER IS NOT OF THIS NETWORK") == 1
