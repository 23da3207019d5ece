"""What is recorded beside a number is what it was made with: the checkout may change while a job computes."""

import json
import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from ffnrepro import experiment, provenance
from ffnrepro.config import evaluation_settings, read_config, training_settings
from ffnrepro.experiment import build_network, training_parser
from ffnrepro.models.weights import load_checkpoint, tensors_digest
from ffnrepro.training import Trained

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
