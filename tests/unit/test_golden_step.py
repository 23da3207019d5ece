"""One training step in float64, held to the authors' code and to version 1 of ours (tests/data/golden/README.md)."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.optim import make_optimizer
from ffnrepro.recipe.step import make_scaler, train_step

from ..golden import formula_clips, formula_pixels, formula_weights, golden_figures

# --- What is compared --------------------------------------------------------------------------------------------

SMALL = NetworkSettings(depth=10, width=8, stem=5, dropout=0.0)


def summary(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().double().flatten()
    return {"norm": values.norm().item(), "sum": values.sum().item(), "first": values[:4].tolist()}


def require_equal(tensor: Tensor, figures: dict[str, Any], name: str) -> None:
    tolerance = {"rel": 0, "abs": 1e-10 * max(figures["norm"], 1e-30)}
    ours = summary(tensor)
    assert ours["norm"] == pytest.approx(figures["norm"], **tolerance), name
    assert ours["sum"] == pytest.approx(figures["sum"], **tolerance), name
    assert ours["first"] == pytest.approx(figures["first"], **tolerance), name


@pytest.mark.parametrize(
    ("method", "clip_norm"),
    [
        (Tsm(method="tsm", train_frames=(16,)), 0.5),
        (Ffn(method="ffn", train_frames=(4, 8, 16)), 20.0),
    ],
    ids=["tsm", "ffn"],
)
def test_a_step_equals_that_of_version_1(
    method: Method, clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = golden_figures("step_v1")[method.method]
    network = method.build(7, SMALL)
    network.load_state_dict(formula_weights({k: list(v.shape) for k, v in network.state_dict().items()}))
    network.double().train()
    gradients: dict[str, Tensor] = {}

    def keep_gradients(parameters: Any, bound: float) -> Tensor:
        gradients.update({name: p.grad.clone() for name, p in network.named_parameters()})
        return nn.utils.clip_grad_norm_(parameters, bound)

    monkeypatch.setattr("ffnrepro.recipe.step.clip_grad_norm_", keep_gradients)
    result = train_step(
        network,
        method,
        {n: formula_pixels(n) for n in method.frame_counts},
        torch.arange(4) * 3 % 7,
        optimizer=make_optimizer(network, learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
        scaler=make_scaler(torch.device("cpu"), "float32"),
        seeds=(0, 0, 0),
        precision="float32",
        clip_norm=clip_norm,
        micro_batch=None,
    )
    assert result.losses == pytest.approx(figures["loss"], rel=1e-10)
    assert result.gradient_norm == pytest.approx(figures["gradient_norm"], rel=1e-10)
    assert result.finite
    assert not result.skipped
    assert gradients.keys() == figures["gradients"].keys()
    for name, gradient in gradients.items():
        require_equal(gradient, figures["gradients"][name], name)
    state = network.state_dict()
    assert state.keys() == figures["after"].keys()
    for name, tensor in state.items():
        require_equal(tensor, figures["after"][name], name)


def test_a_step_of_ffn_with_the_authors_shift_equals_theirs() -> None:
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
    method = Ffn(method="ffn", train_frames=(4, 8, 16))
    for term in method.terms(network, clips, torch.arange(4) * 7, torch.Generator()):
        term.loss.backward()
        assert term.loss.item() == pytest.approx(figures[term.name], rel=1e-10)
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
