"""The wiring of an experiment: each setting reaches what it is for, and the state's key holds all that decides."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ffnrepro.errors import Unfinished
from ffnrepro.recipe.clips import EpochSampler
from ffnrepro.training import job as experiment
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.job import run_experiment, train_experiment, training_parser
from ffnrepro.training.lease import Lease
from ffnrepro.training.processes import Processes
from ffnrepro.training.stopping import StopRequest
from tests.unit.test_resumption import arguments_of, data  # noqa: F401 - data is a fixture


def parsed(data: Path, folder: Path, method: str = "ffn", **training: Any) -> argparse.Namespace:  # noqa: F811
    places = ["--state", str(folder / "state"), "--output", str(folder / "output")]
    return training_parser("").parse_args([*arguments_of(data, method, **training), *places])


class Wired(Exception):
    """Nothing is to be trained."""


def handed_on(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the training loop is given."""
    given: dict[str, Any] = {}

    def train(**wired: Any) -> None:
        given.update(wired)
        raise Wired

    monkeypatch.setattr(experiment, "train", train)
    state = StateDirectory(arguments.state, {})
    with pytest.raises(Wired):
        train_experiment(arguments, torch.device("cpu"), state, StopRequest(), Processes())
    return given


def test_the_recipe_reaches_the_loop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    recipe = {
        "epochs": 7, "batch_size": 6, "learning_rate": 0.03, "momentum": 0.8, "weight_decay": 1e-3, "clip_norm": 9.0,
        "batchnorm_clips": 2, "precision": "bfloat16", "schedule": "step", "milestones": [2, 5], "warmup_epochs": 0,
    }  # fmt: skip
    given = handed_on(parsed(data, tmp_path, **recipe), monkeypatch)
    for name in ("epochs", "clip_norm", "batchnorm_clips", "precision"):
        assert given[name] == recipe[name], name
    optimizer = given["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert {
        group["name"]: (pytest.approx(group["base_lr"]), group["weight_decay"], group["momentum"])
        for group in optimizer.param_groups
    } == {
        "conv_weight": (0.03, 1e-3, 0.8),
        "normalisation": (0.03, 0, 0.8),
        "classifier_weight": (0.15, 1e-3, 0.8),
        "classifier_bias": (0.3, 0, 0.8),
    }
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in given["model"].parameters()}
    factors = [given["learning_rate_factor"](progress) for progress in (0, 1.9, 2, 4.9, 5, 6.9)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert given["select_by"] == "top1_16f"
    assert given["seed"] == 5
    batches = given["batches"]
    assert isinstance(batches.sampler, EpochSampler)
    assert len(batches) == 4  # 24 videos
    clips, labels = next(iter(batches))
    assert [clip.shape[:3] for clip in clips] == [(6, 3, frames) for frames in (4, 8, 16)]
    assert len(labels) == 6


def test_the_distillation_weight_reaches_the_loss(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = parsed(data, tmp_path)
    logits = [torch.randn(4, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    labels = torch.tensor([0, 3, 7, 11])
    totals = []
    for weight in (0.0, 1.0, 2.5):
        arguments.settings["distillation_weight"] = weight
        loss = handed_on(arguments, monkeypatch)["compute_loss"](logits, labels)
        totals.append(loss.total.item())
    assert totals[2] - totals[0] == pytest.approx(2.5 * (totals[1] - totals[0]), rel=1e-4)
    assert totals[1] > totals[0] + 0.1


def key_of_run(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    def stop(*_: Any) -> None:
        raise Unfinished("enough")

    monkeypatch.setattr(experiment, "train_experiment", stop)
    monkeypatch.setattr("ffnrepro.decides.code_digests", lambda *_: {"training": code})
    with pytest.raises(Unfinished):
        run_experiment(arguments, Path("workflow/scripts/train_ffn.py"))
    (key,) = (path.name for path in arguments.state.iterdir())
    arguments.state = arguments.state.parent / (arguments.state.name + "x")
    return key


def test_the_state_is_kept_by_settings_data_weights_and_code(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = parsed(data, tmp_path)
    first = key_of_run(arguments, monkeypatch, "a")
    arguments.workers, arguments.save_minutes, arguments.threads = 3, 1.0, torch.get_num_threads()
    assert key_of_run(arguments, monkeypatch, "a") == first
    keys = [first, key_of_run(arguments, monkeypatch, "b")]
    other = json.loads(json.dumps(arguments.settings))
    other["training"]["clip_norm"] = None
    arguments.settings, settings = other, arguments.settings
    keys.append(key_of_run(arguments, monkeypatch, "a"))
    arguments.settings = settings
    arguments.manifest = tmp_path / "manifest"
    arguments.manifest.mkdir()
    (arguments.manifest / "manifest.sha256").write_text("another\n")
    keys.append(key_of_run(arguments, monkeypatch, "a"))
    arguments.weights = tmp_path / "resnet50.pth"
    for digest in ("1", "2"):
        (tmp_path / "resnet50.sha256").write_text(digest)
        keys.append(key_of_run(arguments, monkeypatch, "a"))
    assert len(set(keys)) == len(keys) == 6


def test_a_signal_while_the_lease_is_given_back_is_only_noted(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = parsed(data, tmp_path)
    is_mine = Lease.is_mine

    def asked_again(lease: Lease) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return is_mine(lease)

    def stop(*_: Any) -> None:
        monkeypatch.setattr(Lease, "is_mine", asked_again)
        raise Unfinished("SIGTERM")

    monkeypatch.setattr(experiment, "train_experiment", stop)
    with pytest.raises(Unfinished, match="SIGTERM"):
        run_experiment(arguments, Path("workflow/scripts/train_ffn.py"))
    (state,) = arguments.state.iterdir()
    assert not (state / "lease.json").exists()
