"""A tiny data set, and trainings on it as the workflow would start them."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from ffnrepro.config import Config, read_config, read_files
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.labels import read_labels
from ffnrepro.data.manifest import build_manifest
from ffnrepro.data.video_index import index_videos, list_videos
from ffnrepro.files import write_json
from ffnrepro.recipe.models.weight_alteration import AlteredConv2d
from ffnrepro.runs import RUNS, run_name, run_settings, write_run
from ffnrepro.training.loop import TIMES
from ffnrepro.weights import save_checkpoint

ROOT = Path(__file__).parents[1]

CONFIG = [ROOT / f"config/{name}.yaml" for name in ("config", "paper", "demo")]


def make_data(folder: Path) -> Path:
    """Lay out a working directory of the workflow up to the manifest: 24 training and 12 validation videos."""
    make_demo_data(folder / "data", seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=1)
    classes, labels = read_labels(folder / "data/labels")
    (folder / "results/labels").mkdir(parents=True)
    pd.DataFrame({"class": classes}).to_csv(folder / "results/labels/classes.csv", index=False)
    videos = folder / "data/videos"
    index = index_videos(videos, list_videos(videos), entries=folder / "data/index/0-of-1.jsonl")
    build_manifest(classes, labels, index).save(folder / "results/manifest")
    return folder


def configuration(**changes: Any) -> Config:
    """The demo's configuration with other values: sections change key by key."""
    mapping = read_files(CONFIG)
    for section, values in changes.items():
        mapping[section] = {**mapping[section], **values} if isinstance(values, dict) else values
    return read_config(mapping)


def arguments_of(data: Path, folder: Path, experiment: str, **training: Any) -> list[str]:
    """Write the settings of a run of three epochs below a folder; return the options that train it there, with seed 5.

    Args:
        data: Of `make_data`.
        folder: Where `results/runs` and `state` are.
        experiment: Of config.yaml or paper.yaml.
        training: Other settings of the training.
    """
    training = {"epochs": 3, "batch_size": 4, "warmup_epochs": 1, **training}
    # Dropout is drawn in each step.
    config = configuration(training=training, network={"dropout": 0.5})
    run = folder / RUNS / run_name(config, experiment)
    write_run(run, run_settings(config, experiment))
    return [
        "--run", str(run), "--seed", "5", "--videos", str(data / "data/videos"), "--state", str(folder / "state"),
        "--classes", str(data / "results/labels/classes.csv"), "--manifest", str(data / "results/manifest"),
        "--device", "cpu", "--threads", "1", "--workers", "0", "--cache-decoded",
    ]  # fmt: skip


@torch.no_grad()
def trained(network: nn.Module) -> nn.Module:
    """Give a new network weights such that all sub-networks differ, and logits of about 1."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.3, 1.0)
            module.bias.normal_(0, 0.1)
        elif isinstance(module, AlteredConv2d):
            for alteration in module.alteration.values():
                alteration.normal_(0, 0.3)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, 0.2)
            module.bias.normal_(0, 0.2)
    return network.eval()


def write_network(folder: Path, data: Path, experiment: str) -> Path:
    """Write the run of an experiment as if it were trained, and the class list; return the folder of its seed 0.

    Args:
        folder: Where `results` is.
        data: Of `make_data`.
        experiment: Of config.yaml or paper.yaml.
    """
    shutil.copytree(data / "results/labels", folder / "results/labels")
    config = configuration()
    run, settings = folder / RUNS / run_name(config, experiment), run_settings(config, experiment)
    write_run(run, settings)
    network = trained(settings.method.build(12, settings.network))
    save_checkpoint(run / "seed0/model.pt", network, train_frames=settings.method.train_frames)
    write_json(run / "seed0/run.json", {"data": "5e1f", "seed": 0, "videos": 24, "best_epoch": 3})
    return run / "seed0"


def newest_state(folder: Path) -> dict[str, Any]:
    """The newest save of the only training below a folder."""
    state: dict[str, Any] = torch.load(max(folder.glob("state/*/*/state-*.pt")), weights_only=True)
    return state


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Compare nested values and tensors to the last bit; measured times may differ."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in TIMES:
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where
