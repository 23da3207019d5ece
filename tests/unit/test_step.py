"""One step of training: random draws, losses that are not finite, and exchange between processes."""

import copy
import math
import multiprocessing
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.step import StepResult, make_scaler, share_running_statistics, train_step

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
            yield Term(name, logits.mean(), weight, logits.detach())


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
        network.fc.weight.mul_(300)
    return network


def step(network: nn.Module, method: Method, *, clips: slice = slice(None), **options: Any) -> StepResult:
    """A step of plain SGD with the learning rate 1, so that weights change by the negative gradient."""
    options = {
        "seeds": (0, 0, 0),
        "precision": "float32",
        "clip_norm": None,
        "batchnorm_clips": None,
        "optimizer": torch.optim.SGD(network.parameters(), lr=1.0),
        "scaler": make_scaler(CPU, "float32"),
        **options,
    }
    labels = torch.tensor([0, 3, 1, 4])[clips]
    return train_step(network, method, {n: pixels(n)[clips] for n in method.train_frames}, labels, **options)


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
    # Training accuracy is of the first term's logits.
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


def test_groups_of_clips_are_normalised_separately() -> None:
    """Two groups of two clips give the mean of the gradients of two steps, and the first one's statistics."""
    grouped, first, second, whole = (network_of(FFN) for _ in range(4))
    start = copy.deepcopy(grouped.state_dict())
    step(grouped, FFN, batchnorm_clips=2)
    step(first, FFN, clips=slice(2))
    step(second, FFN, clips=slice(2, 4))
    step(whole, FFN)
    others = [network.state_dict() for network in (first, second)]
    for name, tensor in grouped.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, others[0][name], msg=name)
        elif "num_batches" not in name:
            change = (others[0][name] + others[1][name]) / 2 - start[name]
            torch.testing.assert_close(tensor - start[name], change, msg=name, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(grouped.conv1.weight, whole.conv1.weight, rtol=1e-3)


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


def test_a_method_draws_the_same_numbers_in_all_processes() -> None:
    drawn.clear()
    for seeds, rank in [((5, 1, 2), 0), ((5, 1, 2), 1), ((6, 1, 2), 0), ((5, 2, 2), 0), ((5, 1, 3), 0)]:
        step(Probe(), STEPS, seeds=seeds, rank=rank)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


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
    step(grouped, FFN, batchnorm_clips=2)
    for name, tensor in grouped.state_dict().items():
        first, second = (found["ffn"][1][name] for found in pair)
        torch.testing.assert_close(first, tensor, msg=name)
        assert torch.equal(first, second) != ("running" in name)
        assert all(torch.equal(found["shared"][name], first) for found in pair)
