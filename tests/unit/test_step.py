"""One step of training: random draws, losses that are not finite, and exchange between processes."""

import copy
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.models.tsm import ShiftedResNet
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.step import StepResult, make_scaler, share_running_statistics, train_step
from ffnrepro.recipe.transforms import normalise

SMALL = NetworkSettings(depth=10, width=8, stem=3, dropout=0.0)
TSM = Tsm(method="tsm", train_frames=(4,))
FFN = Ffn(method="ffn", train_frames=(2, 4))
CPU = torch.device("cpu")


class Probe(nn.Module):
    """Logits (N, 2) from the mean of each clip, by a weight of each frame count, after dropout.

    Those of the frame count `broken` are multiplied by `factor`.
    """

    def __init__(self, *, dropout: float = 0.0, broken: int = 0, factor: float = 1.0) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({str(frames): torch.ones(2) for frames in (2, 4)})
        self.dropout, self.broken, self.factor = dropout, broken, factor
        self.drawn: list[list[float]] = []

    def forward(self, clip: Tensor) -> Tensor:
        kept = F.dropout(torch.ones(64), self.dropout)
        self.drawn.append(kept.tolist())
        frames = clip.shape[2]
        logits = clip.mean((1, 2, 3, 4))[:, None] * kept.mean() * self.weights[str(frames)]
        return logits * self.factor if frames == self.broken else logits

    def is_at_its_start(self) -> bool:
        return all(bool((weight == 1).all()) for weight in self.weights.values())


class Steps(Method):
    """Terms that are the mean logit at 2 frames, and that at 4 frames with the weight 3."""

    family: ClassVar[Any] = "tsm"

    def terms(
        self, network: Callable[[Tensor], Tensor], clips: Any, labels: Tensor, generator: torch.Generator
    ) -> Iterator[Term]:
        del labels
        drawn.append(torch.rand(1, generator=generator).item())
        for name, frames, weight in (("a", 2, 1.0), ("b", 4, 3.0)):
            logits = network(clips[frames])
            yield Term(name, logits.mean(), weight, logits.detach() if name == "a" else None)


drawn: list[float] = []
"""What `Steps` drew from the generator of methods."""

STEPS = Steps(method="steps", train_frames=(2, 4))


def pixels(frames: int, clips: int = 4, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (clips, 3, frames, size, size), dtype=torch.uint8, generator=generator)


def network_of(method: Method, settings: NetworkSettings = SMALL) -> nn.Module:
    torch.manual_seed(0)
    network = method.build(5, settings).double().train()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, ShiftedResNet):
                part.fc.weight.mul_(300)
    return network


def step(
    network: nn.Module, method: Method, *, clips: slice = slice(None), size: int = 16, **options: Any
) -> StepResult:
    """A step of plain SGD with the learning rate 1, so that weights change by the negative gradient."""
    options = {
        "seeds": (0, 0, 0),
        "precision": "float32",
        "clip_norm": None,
        "micro_batch": None,
        "optimizer": torch.optim.SGD(network.parameters(), lr=1.0),
        "scaler": make_scaler(CPU, "float32"),
        **options,
    }
    labels = torch.tensor([0, 3, 1, 4])[clips]
    inputs = {n: pixels(n, size=size)[clips] for n in method.train_frames}
    return train_step(network, method, inputs, labels, **options)


def mean_of(frames: int, clips: slice = slice(None)) -> float:
    """Mean of normalised pixels, over clips, channels, frames and places."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    return ((pixels(frames)[clips] / 255 - mean) / deviation).mean().item()


# --- Terms and their update ------------------------------------------------------------------------------------


def test_a_step_by_hand() -> None:
    network = Probe()
    result = step(network, STEPS)
    a, b = mean_of(2), mean_of(4)
    assert result.losses == pytest.approx({"loss": a + 3 * b, "a": a, "b": b}, rel=1e-4)
    # d loss / d weight: half of it to each of the two logits.
    assert result.gradient_norm == pytest.approx(math.sqrt(2 * (a / 2) ** 2 + 2 * (3 * b / 2) ** 2), rel=1e-4)
    for frames, gradient in (("2", a / 2), ("4", 3 * b / 2)):
        torch.testing.assert_close(network.weights[frames], torch.full((2,), 1 - gradient))
    assert result.finite
    assert not result.skipped
    # Training accuracy is of the first term's logits, the only ones that `Steps` gives.
    torch.testing.assert_close(result.logits.mean().item(), a, rtol=1e-4, atol=0)


def test_each_term_is_differentiated_before_the_next_is_computed() -> None:
    events = []
    network = Probe()
    network.register_forward_hook(
        lambda _module, inputs, _out: events.append(f"forward {inputs[0].shape[2]}")
    )
    for frames, weight in network.weights.items():
        weight.register_hook(lambda _, frames=frames: events.append(f"backward {frames}"))
    step(network, STEPS)
    assert events == ["forward 2", "backward 2", "forward 4", "backward 4"]


@pytest.mark.parametrize(("bound", "factor"), [(0.1, None), (1e6, 1.0)])
def test_the_gradient_is_clipped_to_its_bound(bound: float, factor: float | None) -> None:
    unclipped, clipped = Probe(), Probe()
    norm = step(unclipped, STEPS).gradient_norm
    assert step(clipped, STEPS, clip_norm=bound).gradient_norm == pytest.approx(norm)
    factor = factor or bound / norm
    for frames in ("2", "4"):
        expected = (1 - unclipped.weights[frames]) * factor
        torch.testing.assert_close(1 - clipped.weights[frames], expected, rtol=1e-3, atol=1e-6)


# --- Micro-batches and recomputation ---------------------------------------------------------------------------

METHODS = {
    "tsm": TSM,
    "ffn": FFN,
    "ffn, one BatchNorm": Ffn(method="ffn", train_frames=(2, 4), specialized_normalization=False),
    "ffn, separate networks": Ffn(method="ffn", train_frames=(2, 4), weight_sharing=False),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("clips", "micro_batch"), [(4, 2), (4, 3), (3, 2), (3, 1)])
def test_micro_batches_give_the_gradients_of_the_weighted_sum_in_one_graph(
    method: Method, clips: int, micro_batch: int
) -> None:
    """The groups may be uneven, and a video of four may be left out."""
    found, naive, first = (network_of(method) for _ in range(3))
    result = step(found, method, clips=slice(clips), micro_batch=micro_batch)
    labels = torch.tensor([0, 3, 1, 4])[:clips]
    inputs = {n: normalise(pixels(n)[:clips], torch.float64) for n in method.train_frames}
    losses: dict[str, Tensor] = {"loss": torch.zeros(())}
    logits = []
    for start in range(0, clips, micro_batch):
        group = slice(start, min(start + micro_batch, clips))
        share = (group.stop - group.start) / clips
        for term in method.terms(
            naive, {n: x[group] for n, x in inputs.items()}, labels[group], torch.Generator()
        ):
            losses["loss"] = losses["loss"] + share * term.weight * term.loss
            losses[term.name] = losses.get(term.name, torch.zeros(())) + share * term.loss
            logits += [] if term.logits is None else [term.logits]
    names = [name for name, _ in naive.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(losses["loss"], list(naive.parameters())), strict=True))

    exact: dict[str, Any] = {"rel": 0, "abs": 1e-10}
    assert result.losses == pytest.approx({name: loss.item() for name, loss in losses.items()}, **exact)
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-10)
    torch.testing.assert_close(result.logits, torch.cat(logits), rtol=0, atol=1e-10)
    # The statistics are those of a step of the first group alone.
    step(first, method, clips=slice(micro_batch))
    statistics, before = first.state_dict(), network_of(method).state_dict()
    for name, tensor in found.state_dict().items():
        if name in gradients:
            expected = before[name] - gradients[name]
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-10 * max(scale, 1), msg=name)
        else:
            torch.testing.assert_close(tensor, statistics[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_without_batchnorm_micro_batches_change_nothing(micro_batch: int) -> None:
    """Not even with loss scaling and clipping."""
    whole, grouped = Probe(), Probe()
    expected = step(whole, STEPS, clip_norm=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    result = step(grouped, STEPS, clip_norm=0.1, scaler=scaler, micro_batch=micro_batch)
    assert result.losses == pytest.approx(expected.losses)
    assert result.gradient_norm == pytest.approx(expected.gradient_norm)
    torch.testing.assert_close(result.logits, expected.logits)
    torch.testing.assert_close(grouped.state_dict(), whole.state_dict())


def recompute(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, ShiftedResNet):
            part.recompute = True
    return network


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_recomputation_changes_no_number(method: Method, micro_batch: int | None, precision: str) -> None:
    """Not the gradients, the loss or the running statistics, with dropout, to the last bit."""
    settings = SMALL.model_copy(update={"dropout": 0.5})
    plain, recomputed = network_of(method, settings), recompute(network_of(method, settings))
    if precision != "float32":
        plain, recomputed = plain.float(), recomputed.float()
    options: dict[str, Any] = {"micro_batch": micro_batch, "precision": precision, "clip_norm": 20.0}
    expected, result = step(plain, method, **options), step(recomputed, method, **options)
    assert result.losses == expected.losses
    assert result.gradient_norm == expected.gradient_norm
    assert torch.equal(result.logits, expected.logits)
    state = recomputed.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_recomputation_runs_each_block_twice_and_the_classifier_once() -> None:
    calls: Counter[str] = Counter()
    network = recompute(network_of(TSM))
    for name in ("conv1", "layer1", "layer4", "fc"):
        layer = network.get_submodule(name)
        (layer[0] if isinstance(layer, nn.ModuleList) else layer).register_forward_pre_hook(
            lambda *_, name=name: calls.update([name])
        )
    step(network, TSM)
    assert calls == {"conv1": 2, "layer1": 2, "layer4": 2, "fc": 1}
    # Evaluation computes everything once.
    network.eval()(torch.zeros(1, 3, 4, 16, 16, dtype=torch.float64))
    assert calls == {"conv1": 3, "layer1": 3, "layer4": 3, "fc": 2}


def peak_memory(network: nn.Module, **options: Any) -> int:
    """The most bytes that a step's tensors take at one time, without those that lived before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(network, TSM, size=64, **options)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_micro_batches_and_recomputation_take_less_memory() -> None:
    settings = SMALL.model_copy(update={"depth": 50})
    whole, grouped, recomputed = (
        peak_memory(network, micro_batch=micro_batch)
        for network, micro_batch in (
            (network_of(TSM, settings), None),
            (network_of(TSM, settings), 1),
            (recompute(network_of(TSM, settings)), None),
        )
    )
    assert grouped < 0.4 * whole
    assert recomputed < 0.5 * whole


# --- Seeds -----------------------------------------------------------------------------------------------------


def dropout_of(**options: Any) -> list[list[float]]:
    """What the two terms of a step dropped."""
    network = Probe(dropout=0.5)
    # What was drawn before must not matter.
    torch.rand(3)
    step(network, STEPS, **options)
    return network.drawn


def test_dropout_depends_on_seed_epoch_step_term_and_rank_alone() -> None:
    usual = {"seeds": (5, 1, 2), "rank": 0}
    first = dropout_of(**usual)
    assert first[0] != first[1]
    assert dropout_of(**usual, clip_norm=1.0) == first
    changed = [
        dropout_of(**{**usual, **change})
        for change in ({"seeds": (6, 1, 2)}, {"seeds": (5, 2, 2)}, {"seeds": (5, 1, 3)}, {"rank": 1})
    ]
    terms = [tuple(term) for result in (first, *changed) for term in result]
    assert len(set(terms)) == 10
    # The first group of a step in micro-batches drops what a step without them drops.
    grouped = dropout_of(**usual, micro_batch=2)
    assert grouped[:2] == first
    assert len({tuple(term) for term in grouped}) == 4


def test_a_method_draws_the_same_numbers_in_all_processes_and_groups() -> None:
    drawn.clear()
    for seeds, rank in [((5, 1, 2), 0), ((5, 1, 2), 1), ((6, 1, 2), 0), ((5, 2, 2), 0), ((5, 1, 3), 0)]:
        step(Probe(), STEPS, seeds=seeds, rank=rank)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4
    step(Probe(), STEPS, seeds=(5, 1, 2), micro_batch=2)
    assert drawn[5:] == [drawn[0]] * 2


# --- Losses and gradients that are not finite, and float16 -----------------------------------------------------


@pytest.mark.parametrize(("broken", "factor"), [(2, math.inf), (4, math.nan)])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_loss_that_is_not_finite_leaves_the_weights(broken: int, factor: float, enabled: bool) -> None:
    network = Probe(broken=broken, factor=factor)
    result = step(network, STEPS, scaler=torch.amp.GradScaler("cpu", enabled=enabled))
    assert not result.finite
    assert not result.skipped
    assert not math.isfinite(result.losses["loss"])
    assert network.is_at_its_start()


class Overflow(torch.autograd.Function):
    """A finite value with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient * math.inf


class OverflowingProbe(Probe):
    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = Overflow.apply(super().forward(clip))
        return logits


def test_a_gradient_that_is_not_finite_leaves_the_weights() -> None:
    network = OverflowingProbe()
    result = step(network, STEPS)
    assert not result.finite
    assert math.isfinite(result.losses["loss"])
    assert network.is_at_its_start()


def test_a_gradient_that_overflows_is_skipped_by_the_scaler() -> None:
    network = OverflowingProbe()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    result = step(network, STEPS, scaler=scaler, clip_norm=1.0)
    assert (result.finite, result.skipped) == (True, True)
    assert not math.isfinite(result.gradient_norm)
    assert scaler.get_scale() == 2.0**15
    assert network.is_at_its_start()
    # The scaler is ready for the next step.
    network.__class__ = Probe
    result = step(network, STEPS, scaler=scaler)
    assert (result.finite, result.skipped) == (True, False)
    assert not network.is_at_its_start()


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_scaling_changes_nothing_but_the_range(clip_norm: float | None) -> None:
    """A scale that grows after this very step is no skipped step."""
    scaled, plain = Probe(), Probe()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    result = step(scaled, STEPS, scaler=scaler, clip_norm=clip_norm)
    expected = step(plain, STEPS, clip_norm=clip_norm)
    assert result.losses == pytest.approx(expected.losses)
    assert result.gradient_norm == pytest.approx(expected.gradient_norm)
    assert (result.finite, result.skipped, scaler.get_scale()) == (True, False, 2.0**11)
    for frames, weight in scaled.weights.items():
        torch.testing.assert_close(weight, plain.weights[frames])


def test_only_float16_is_scaled() -> None:
    assert [make_scaler(CPU, p).is_enabled() for p in ("float16", "bfloat16", "float32")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)],
)
def test_precision_is_that_of_the_forward_pass(precision: str, dtype: torch.dtype) -> None:
    seen = []
    network = network_of(TSM).float()
    network.conv1.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    network.conv1.weight.register_hook(lambda gradient: seen.append(gradient.dtype))
    step(network, TSM, precision=precision)
    assert seen == [dtype, torch.float32]


# --- Several processes -----------------------------------------------------------------------------------------


class OwnParameter(Probe):
    """Each process differentiates with respect to another parameter."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.own = nn.ParameterList([torch.zeros(2), torch.zeros(2)])
        self.rank = rank

    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip) + self.own[self.rank]


HALVES = [slice(2), slice(2, 4)]


def _work(rank: int, folder: Path) -> None:
    """Take steps as one of two processes, and save the results."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, Any] = {}

    def record(name: str, network: nn.Module, method: Method = STEPS, **options: Any) -> None:
        result = step(network, method, clips=HALVES[rank], rank=rank, **options)
        found[name] = result, copy.deepcopy(network.state_dict())

    record("plain", Probe())
    record("clipped", Probe(), clip_norm=0.1)
    record("missing", OwnParameter(rank))
    record("nan", Probe(broken=4, factor=math.nan if rank else 1.0))
    scaler = torch.amp.GradScaler("cpu")
    record("scaled nan", Probe(broken=2, factor=math.inf if rank else 1.0), scaler=scaler)
    record("overflow", OverflowingProbe() if rank else Probe(), scaler=torch.amp.GradScaler("cpu"))
    record("micro-batches", network_of(FFN), FFN, micro_batch=1, clip_norm=0.1)
    network = network_of(FFN)
    record("ffn", network, FFN)
    share_running_statistics(network)
    found["shared"] = network.state_dict()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `_work` found in each of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    other = multiprocessing.get_context("spawn").Process(target=_work, args=(1, folder))
    other.start()
    try:
        _work(0, folder)
    finally:
        other.join(60)
        other.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize(("name", "clip_norm"), [("plain", None), ("clipped", 0.1)])
def test_two_processes_take_the_step_of_one(pair: Any, name: str, clip_norm: float | None) -> None:
    alone = Probe()
    expected = step(alone, STEPS, clip_norm=clip_norm)
    for found in pair:
        result, state = found[name]
        assert result.gradient_norm == pytest.approx(expected.gradient_norm)
        for key, tensor in alone.state_dict().items():
            torch.testing.assert_close(state[key], tensor)
    # Each process has the losses of its own clips.
    losses = [found[name][0].losses for found in pair]
    assert losses[0] != losses[1]
    for key, loss in expected.losses.items():
        assert (losses[0][key] + losses[1][key]) / 2 == pytest.approx(loss)


def test_each_process_divides_its_own_clips_into_micro_batches(pair: Any) -> None:
    alone = network_of(FFN)
    expected = step(alone, FFN, micro_batch=1, clip_norm=0.1)
    for found, statistics in zip(pair, (True, False), strict=True):
        result, state = found["micro-batches"]
        assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-10)
        for name, tensor in alone.state_dict().items():
            if statistics or "running" not in name:
                torch.testing.assert_close(state[name], tensor, msg=name, rtol=0, atol=1e-10)


def test_a_missing_gradient_counts_as_zero(pair: Any) -> None:
    for found in pair:
        _, state = found["missing"]
        for rank in (0, 1):
            # The weights of both terms are 4, over two logits and two processes.
            torch.testing.assert_close(state[f"own.{rank}"], torch.full((2,), -1.0))


def test_a_loss_that_is_not_finite_in_one_process_stops_the_step_of_both(pair: Any) -> None:
    for found in pair:
        results = {name: (found[name][0].finite, found[name][0].skipped) for name in STOPPED}
        assert results == STOPPED
        for name in STOPPED:
            assert all(bool((weight == 1).all()) for weight in found[name][1].values())
    assert math.isfinite(pair[0]["nan"][0].losses["loss"])


STOPPED = {"nan": (False, False), "scaled nan": (False, False), "overflow": (True, True)}
"""`finite` and `skipped` of each step that changes no weight."""


def test_each_process_normalises_its_own_clips_and_the_first_ones_statistics_are_kept(pair: Any) -> None:
    grouped = network_of(FFN)
    step(grouped, FFN, micro_batch=2)
    for name, tensor in grouped.state_dict().items():
        first, second = (found["ffn"][1][name] for found in pair)
        torch.testing.assert_close(first, tensor, msg=name)
        assert torch.equal(first, second) != ("running" in name)
        assert all(torch.equal(found["shared"][name], first) for found in pair)
