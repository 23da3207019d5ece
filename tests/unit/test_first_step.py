"""From the configuration to the first step of a training: the step's inputs, against a naive computation.

The real script runs until it calls the optimiser. Nothing but the network and the wiring is ours in what it is compared with.
"""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.runs import run_name, run_settings, write_run

from ..golden import formula_weights
from ..trainings import ROOT, configuration

# --- How a training is started -----------------------------------------------------------------------------------

METHODS = {"tsm": (16,), "ffn": (4, 8, 16)}
SEED, SHORT_SIDE, CROP, CLASSES = 5, 40, 32, 12  # of `arguments_of` and config/demo.yaml
RECIPE = {
    "batch_size": 4, "learning_rate": 0.02, "weight_decay": 1e-3, "momentum": 0.8, "clip_norm": 0.5, "warmup_epochs": 0,
}  # fmt: skip


def start_training(
    dataset: Path, method: str, weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Experiments of config.yaml have the names of their methods.
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    network = {"weights": str(weights), "weights_sha256": sha256, "dropout": 0.0}
    config = configuration(training=RECIPE, network=network)
    run = folder / "results/runs" / run_name(config, method)
    write_run(run, run_settings(config, method))
    script = ROOT / "workflow/scripts/train.py"
    options = {
        "run": run, "seed": SEED, "start": weights, "state": folder / "state", "videos": dataset / "data/videos",
        "classes": dataset / "results/labels/classes.csv", "manifest": dataset / "results/manifest", "device": "cpu",
        "threads": 1, "workers": 0,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")


def build(method: str) -> nn.Module:
    network = {"classes": CLASSES, "depth": 10, "width": 8, "stem": 5, "dropout": 0.0}
    return (
        TSM(**network) if method == "tsm" else FrameFlexibleNetwork(**network, frame_counts=METHODS[method])
    )


# --- What reaches the step ---------------------------------------------------------------------------------------


class StepReached(BaseException):
    """Ends the training."""


class Step:
    """What reached the first step of a training."""

    def __init__(self) -> None:
        self.initial: dict[str, Tensor] = {}  # the network, before anything went through it
        self.clips: dict[int, Tensor] = {}
        self.labels: list[Tensor] = []
        self.groups: dict[str, list[dict[str, Any]]] = {}  # the groups of each parameter
        self.gradients: dict[str, Tensor] = {}
        self._network: nn.Module

    def see_forward(self, module: nn.Module, inputs: Any) -> None:
        if hasattr(module, "fc") and not self.initial:
            self._network = module
            self.initial = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        if hasattr(module, "fc") and isinstance(inputs[0], Tensor):
            self.clips[inputs[0].shape[2]] = inputs[0].clone()

    def see_step(self, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in self._network.named_parameters():
            self.groups[name] = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
                for member in group["params"]
                if member is parameter
            ]
            self.gradients[name] = parameter.grad.clone()
        raise StepReached


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of weights as torchvision names them, of a ResNet-10 of width 8, and its content."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (8, 3, 5, 5),
        "fc.weight": (1000, 64),
        "fc.bias": (1000,),
    }
    norms = {"bn1": 8}
    for stage, channels in enumerate((8, 16, 32, 64), start=1):
        before, block = max(8, channels // 2), f"layer{stage}.0"
        shapes[f"{block}.conv1.weight"] = (channels, before, 3, 3)
        shapes[f"{block}.conv2.weight"] = (channels, channels, 3, 3)
        norms |= {f"{block}.bn1": channels, f"{block}.bn2": channels}
        if stage > 1:
            shapes[f"{block}.downsample.0.weight"] = (channels, before, 1, 1)
            norms[f"{block}.downsample.1"] = channels
    for norm, channels in norms.items():
        shapes |= {
            f"{norm}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")
        }
    weights = formula_weights(shapes)
    file = tmp_path_factory.mktemp("pretrained") / "resnet10.pth"
    torch.save(weights, file)
    return file, weights


@pytest.fixture(scope="module", params=METHODS)
def reached(
    request: pytest.FixtureRequest,
    data: Path,
    pretrained: tuple[Path, dict[str, Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Step]:
    method, step = request.param, Step()
    cross_entropy = nn.functional.cross_entropy

    def see_labels(logits: Tensor, labels: Tensor, *more: Any, **options: Any) -> Tensor:
        step.labels.append(labels.clone())
        return cross_entropy(logits, labels, *more, **options)

    hook = register_module_forward_pre_hook(step.see_forward)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.optim.SGD, "step", lambda optimizer, *_, **__: step.see_step(optimizer))
        monkeypatch.setattr(nn.functional, "cross_entropy", see_labels)
        folder = tmp_path_factory.mktemp(method)
        with pytest.raises(StepReached):
            start_training(data, method, pretrained[0], folder, monkeypatch)
    hook.remove()
    (log,) = folder.glob("state/**/log.txt")
    assert (
        "starts from the backbone of an image network in the format of torchvision: depth 10, 1000 classes; "
        in log.read_text()
    )
    return method, step


# --- The tests ---------------------------------------------------------------------------------------------------


def test_every_pretrained_tensor_is_in_the_network(
    reached: tuple[str, Step], pretrained: tuple[Path, dict[str, Tensor]]
) -> None:
    """In FFN, in the BatchNorm of each frame count."""
    method, step = reached
    copies = "" if method == "tsm" else r"\.(?:4|8|16)"
    filled = []
    for name, tensor in pretrained[1].items():
        if name.startswith("fc."):
            continue
        norm, part = name.rsplit(".", 1)
        pattern = f"{norm}{copies if tensor.dim() == 1 else ''}.{part}"
        names = [ours for ours in step.initial if re.fullmatch(pattern, ours)]
        assert len(names) == (len(METHODS[method]) if tensor.dim() == 1 else 1), name
        for ours in names:
            assert torch.equal(step.initial[ours], tensor), ours
        filled += names
    rest = {name for name in step.initial if not name.endswith("num_batches_tracked")} - set(filled)
    assert all(name.startswith("fc.") or ".alteration." in name for name in rest), rest
    assert step.initial["fc.weight"].shape == (CLASSES, 64)


def test_each_parameter_has_the_rate_and_decay_of_its_group(reached: tuple[str, Step]) -> None:
    method, step = reached
    assert step.groups.keys() == dict(build(method).named_parameters()).keys()
    for name, groups in step.groups.items():
        if name == "fc.weight":
            rate, decay = 5, 1
        elif name == "fc.bias":
            rate, decay = 10, 0
        elif re.search(r"bn\d|downsample\.1", name):
            rate, decay = 1, 0
        else:
            assert re.search(r"conv\d\.(weight|alteration)|downsample\.0\.weight", name)
            rate, decay = 1, 1
        (group,) = groups
        assert group["lr"] == pytest.approx(0.02 * rate), name
        assert group["weight_decay"] == pytest.approx(1e-3 * decay), name
        assert (group["momentum"], group["dampening"], group["nesterov"], group["maximize"]) == (
            0.8,
            0,
            False,
            False,
        )


def test_clips_and_labels_are_those_of_the_videos(reached: tuple[str, Step], data: Path) -> None:
    method, step = reached
    assert tuple(sorted(step.clips)) == METHODS[method]
    names = pd.read_parquet(data / "results/manifest/train.parquet")["id"].astype(str).tolist()
    labels = naive_labels(data)
    assert sorted(names) == sorted(labels)
    order = np.random.default_rng(np.random.SeedSequence([SEED, 0], spawn_key=(0,))).permutation(len(names))
    indices = order[: RECIPE["batch_size"]].tolist()
    for row, index in enumerate(indices):
        expected = naive_clips(data / f"data/videos/{names[index]}.webm", METHODS[method], [SEED, 0, index])
        for frames, clip in expected.items():
            # (3, T, S, S) as it reaches the network, back in grey levels.
            ours = step.clips[frames][row].double().permute(1, 2, 3, 0).numpy()
            ours = 255 * (ours * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406])
            assert np.abs(ours - clip).max() < 4, (frames, index)
            assert np.abs(ours - clip).mean() < 0.2, (frames, index)
    for targets in step.labels:
        assert targets.tolist() == [labels[names[index]] for index in indices]
    assert step.labels


def naive_labels(dataset: Path) -> dict[str, int]:
    classes, entries = (
        json.loads((dataset / f"data/labels/{name}.json").read_text()) for name in ("labels", "train")
    )
    return {
        entry["id"]: int(classes[entry["template"].replace("[", "").replace("]", "")]) for entry in entries
    }


def naive_clips(
    video: Path, frame_counts: tuple[int, ...], seed: list[int]
) -> dict[int, NDArray[np.float64]]:
    """(T, S, S, 3) in grey levels, for each frame count: a random frame of each segment, one random crop for all.

    The order of the draws is part of the recipe: a sample is a function of (seed, epoch, index).
    """
    with av.open(str(video)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    generator = np.random.default_rng(seed)
    chosen = {}
    for count in frame_counts:
        # A frame is in segment i when it is not before i * n / T, and before (i + 1) * n / T.
        segments = [
            [n for n in range(len(pictures)) if i * len(pictures) <= n * count < (i + 1) * len(pictures)]
            for i in range(count)
        ]
        chosen[count] = generator.integers([s[0] for s in segments], [s[-1] + 1 for s in segments])
    width, height = pictures[0].size
    edge = round(min(width, height) * CROP / SHORT_SIDE)
    top, left = (int(generator.integers(side - edge + 1)) for side in (height, width))
    box = (left, top, left + edge, top + edge)
    clips = {}
    for count, frames in chosen.items():
        cut = [pictures[n].crop(box).resize((CROP, CROP), Image.Resampling.BILINEAR) for n in frames]
        clips[count] = np.stack([np.asarray(picture, dtype=np.float64) for picture in cut])
    return clips


def test_the_gradients_are_those_of_the_loss_of_the_paper(reached: tuple[str, Step]) -> None:
    """And their norm is clipped."""
    method, step = reached
    network = build(method)
    network.load_state_dict(step.initial)
    network.double().train()
    logits = {frames: network(clip.double()) for frames, clip in step.clips.items()}
    log_probabilities = {frames: x - x.exp().sum(dim=1, keepdim=True).log() for frames, x in logits.items()}
    rows = range(len(step.labels[0]))
    loss = -sum(log_probabilities[16][row, step.labels[0][row]] for row in rows) / len(rows)
    teacher = log_probabilities.pop(16).detach()
    for student in log_probabilities.values():
        loss = loss + (teacher.exp() * (teacher - student)).sum() / len(rows)
    parameters = dict(network.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm > RECIPE["clip_norm"]
    for name, gradient in gradients.items():
        expected = gradient * RECIPE["clip_norm"] / norm
        # Float32 turns a ReLU here and there the other way.
        assert (step.gradients[name] - expected).norm() < 1e-2 * expected.norm(), name
