"""One training step in float64, held to the authors' code and to version 1 of ours (tests/data/golden/README.md)."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ffnrepro.recipe.losses import classification_loss, frame_flexible_loss
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.optim import parameter_groups
from ffnrepro.recipe.transforms import normalise

from ..golden import formula_clips, formula_pixels, formula_weights, golden_figures

Clips = dict[int, Tensor]

# --- How the code is called -------------------------------------------------------------------------------------


def backward(network: nn.Module, clips: Clips, labels: Tensor) -> dict[str, float]:
    """Leave the gradients of a step in the network, and return the loss and its parts."""
    if isinstance(network, TSM):
        [clip] = clips.values()
        loss = classification_loss(network(clip), labels)
    else:
        logits = network(list(clips.values()))
        loss = frame_flexible_loss(logits, labels, frame_counts=tuple(clips), distillation_weight=1.0)
    loss.total.backward()
    return {"loss": loss.total.item()} | {name: part.item() for name, part in loss.parts.items()}


def update(network: nn.Module, clip_norm: float) -> float:
    """Clip the gradients and make the first step of the published optimiser; return their norm before clipping."""
    optimizer = torch.optim.SGD(
        parameter_groups(network, learning_rate=0.01, weight_decay=5e-4), momentum=0.9
    )
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm).item()
    optimizer.step()
    return norm


@pytest.fixture(autouse=True)
def losses_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are taken in float32 even of float64 logits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


# --- What is compared --------------------------------------------------------------------------------------------

SMALL = {"classes": 7, "depth": 10, "width": 8, "stem": 5, "dropout": 0.0}


def summary(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().double().flatten()
    return {"norm": values.norm().item(), "sum": values.sum().item(), "first": values[:4].tolist()}


def require_equal(tensor: Tensor, figures: dict[str, Any], name: str) -> None:
    tolerance = {"rel": 0, "abs": 1e-10 * max(figures["norm"], 1e-30)}
    ours = summary(tensor)
    assert ours["norm"] == pytest.approx(figures["norm"], **tolerance), name
    assert ours["sum"] == pytest.approx(figures["sum"], **tolerance), name
    assert ours["first"] == pytest.approx(figures["first"], **tolerance), name


def version_1_step(method: str) -> tuple[nn.Module, dict[str, float], dict[str, Tensor], float]:
    """The network after a step, the loss and its parts, the gradients and their norm before clipping."""
    network, frame_counts, clip_norm = {
        "tsm": (TSM(**SMALL), (16,), 0.5),
        "ffn": (FrameFlexibleNetwork(**SMALL, frame_counts=(4, 8, 16)), (4, 8, 16), 20.0),
    }[method]
    network.load_state_dict(formula_weights({k: list(v.shape) for k, v in network.state_dict().items()}))
    network.double().train()
    clips = {n: normalise(formula_pixels(n), torch.float64) for n in frame_counts}
    parts = backward(network, clips, torch.arange(4) * 3 % 7)
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    return network, parts, gradients, update(network, clip_norm)


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_a_step_is_that_of_version_1(method: str) -> None:
    figures = golden_figures("step_v1")[method]
    network, parts, gradients, norm = version_1_step(method)
    assert parts == pytest.approx(figures["loss"], rel=1e-10)
    assert norm == pytest.approx(figures["gradient_norm"], rel=1e-10)
    assert gradients.keys() == figures["gradients"].keys()
    for name, gradient in gradients.items():
        require_equal(gradient, figures["gradients"][name], name)
    state = network.state_dict()
    assert state.keys() == figures["after"].keys()
    for name, tensor in state.items():
        require_equal(tensor, figures["after"][name], name)


def test_a_step_of_ffn_with_their_shift_is_that_of_the_authors() -> None:
    figures = golden_figures("authors_step")
    network = FrameFlexibleNetwork(classes=174, dropout=0.0, training_shift="authors")
    theirs = {name: authors_name(name) for name in network.state_dict()}
    shapes = golden_figures("authors_figures")["keys"]["tsm_ffn"]
    weights = formula_weights({name: shapes[name] for name in theirs.values()})
    network.load_state_dict({
        name: weights[theirs[name]].reshape(tensor.shape) for name, tensor in network.state_dict().items()
    })  # fmt: skip
    # Channels last in memory halves the time.
    network.double().to(memory_format=torch.channels_last).train()
    clips = {n: formula_clips(n, clips=4) for n in (4, 8, 16)}
    parts = backward(network, clips, torch.arange(4) * 7)
    for name in ("cross_entropy", "kl_4f", "kl_8f"):
        assert parts[name] == pytest.approx(figures[name], rel=1e-10)
    ours = {their.removeprefix("module."): name for name, their in theirs.items()}
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for name, figure in figures["gradients"].items():
        require_equal(parameters[ours[name]].grad, figure, name)
    for name, first in figures["running_mean"].items():
        mean = buffers[ours[name]]
        assert mean[:4].tolist() == pytest.approx(first, rel=0, abs=1e-10 * mean.norm().item()), name


def authors_name(name: str) -> str:
    """The name in the authors' checkpoints of a tensor of our FFN."""
    if name.startswith("fc."):
        return f"module.new_{name}"
    for ours, theirs in (
        (r"conv1\.alteration\.(\d+)$", r"adaconv_\1.weight"),
        (r"downsample\.0", "downsample_conv"),
        (r"downsample\.1\.(\d+)", r"downsample_bn_\1"),
        (r"bn(\d)\.(\d+)", r"bn\1_\2"),
    ):
        name = re.sub(ours, theirs, name)
    return f"module.base_model.{name}"
