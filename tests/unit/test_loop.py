"""The training loop: resumed runs end as unbroken ones, and faults stop it with the right words."""

import math
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ffnrepro.config import TrainingSettings
from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.step import StepResult, train_step
from ffnrepro.training import loop
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.loop import Trained, train
from ffnrepro.training.processes import Processes
from ffnrepro.training.stopping import StopRequest

from ..trainings import assert_same

CPU = torch.device("cpu")
METHODS: dict[str, Method] = {
    "tsm": Tsm(method="tsm", train_frames=(4,)),
    "ffn": Ffn(method="ffn", train_frames=(2, 4)),
}
NETWORK = NetworkSettings(depth=10, width=8, stem=5)
RECIPE: dict[str, Any] = {
    "epochs": 4, "batch_size": 4, "learning_rate": 0.02, "schedule": "cosine", "warmup_epochs": 1,
}  # fmt: skip


class Noise(Dataset[Any]):
    """Ten clips that are a function of epoch and index, as in the real data sets."""

    def __init__(self, frame_counts: tuple[int, ...], bad: tuple[int, ...]) -> None:
        self.frame_counts = frame_counts
        self.bad = bad

    def __len__(self) -> int:
        return 10

    def path_of(self, index: int) -> str:
        return f"{index}.webm"

    def __getitem__(self, key: tuple[int, int]) -> tuple[dict[int, Tensor], int]:
        if key[1] in self.bad:
            raise DecodeError(f"{key[1]}.webm")
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        clips = {
            frames: torch.randint(0, 256, (3, frames, 16, 16), generator=generator, dtype=torch.uint8)
            for frames in self.frame_counts
        }
        return clips, key[1] % 3


class Watched:
    """A method that calls a function before each step, and may change the loss."""

    def __init__(
        self, method: Method, before_step: Callable[[], None], spoil: Callable[[Tensor], Tensor]
    ) -> None:
        self.frame_counts = method.frame_counts
        self._method, self._before_step, self._spoil = method, before_step, spoil

    def terms(
        self, network: Any, clips: Mapping[int, Tensor], labels: Tensor, generator: Any
    ) -> Iterator[Term]:
        self._before_step()
        for term in self._method.terms(network, clips, labels, generator):
            yield Term(term.name, self._spoil(term.loss), term.weight, term.logits)


class Killed(Exception):
    """Stands for a kill at a moment that the test chooses."""


def run(
    root: Path,
    name: str,
    *,
    kill_at: int | None = None,
    scores: list[float] | None = None,
    bad: tuple[int, ...] = (3, 5),
    watch: Callable[[nn.Module], None] = lambda _: None,
    before_step: Callable[[], None] = lambda: None,
    stop: StopRequest | None = None,
    save_minutes: float = 10.0,
    alter: Callable[[nn.Module], None] = lambda _: None,
    spoil: Callable[[Tensor], Tensor] = lambda loss: loss,
    processes: Processes = Processes(),  # noqa: B008
    **recipe: Any,
) -> tuple[Trained, dict[str, Tensor]]:
    """Train a tiny network on noise, of which two clips cannot be read; return what the loop returns, and the network's tensors after the last step."""
    method = METHODS[name]
    settings = TrainingSettings(**{**RECIPE, **recipe})
    torch.manual_seed(7)
    model = method.build(3, NETWORK)
    alter(model)
    calls = 0

    def validate(network: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        network.eval()
        watch(network)
        if calls == kill_at:
            raise Killed
        weight = network.state_dict()["fc.weight"]
        return {
            "top1_4f": float(weight.abs().sum()) if scores is None else scores[calls - 1],
            "top5_4f": 100.0,
        }

    trained = train(
        model=model,
        method=Watched(method, before_step, spoil),  # type: ignore[arg-type]
        settings=settings,
        loader=VideoBatches(Noise(method.frame_counts, bad), max_bad_fraction=0.2),  # type: ignore[arg-type]
        validate=validate,
        seed=1,
        device=CPU,
        processes=processes,
        checkpoints=Checkpoints(
            root, run=name, seed=1, epochs=settings.epochs, data="0" * 64, save_minutes=save_minutes
        ),
        stop=stop or StopRequest(),
        name=name,
    )
    return trained, model.state_dict()


Ended = tuple[Trained, dict[str, Tensor]]


@pytest.fixture(scope="module", params=["tsm", "ffn"])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ended]:
    return request.param, run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def unbroken_tsm(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run(tmp_path_factory.mktemp("tsm"), "tsm")


def assert_equal(one: Ended, other: Ended) -> None:
    assert_same(vars(one[0]), vars(other[0]))
    assert_same(dict(one[1]), dict(other[1]))


# --- What a training does


def test_each_step_has_the_settings_and_its_own_rate_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def see(*arguments: Any, **options: Any) -> StepResult:
        rates = {group["name"]: group["lr"] for group in options["optimizer"].param_groups}
        seen.append({**options, "rates": rates})
        return train_step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", see)
    run(tmp_path, "tsm", epochs=3, clip_norm=0.5, micro_batch=2)
    assert [step["seeds"] for step in seen] == [(1, epoch, step) for epoch in range(3) for step in range(2)]
    for step in seen:
        assert (step["clip_norm"], step["micro_batch"], step["precision"]) == (0.5, 2, "float32")
        assert step["rank"] == 0
    # One epoch of warm-up in two steps, then half a cosine over two epochs.
    factors = [0, 0.5, *(0.5 * (1 + math.cos(math.pi * done / 2)) for done in (0, 0.5, 1, 1.5))]
    for name, multiplier in {
        "conv_weight": 1, "normalisation": 1, "classifier_weight": 5, "classifier_bias": 10,
    }.items():  # fmt: skip
        rates = [0.02 * multiplier * factor for factor in factors]
        assert [step["rates"][name] for step in seen] == pytest.approx(rates)


def test_the_history_of_each_epoch(tmp_path: Path) -> None:
    trained, tensors = run(tmp_path, "ffn")
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    for row in trained.history:
        assert row["train_loss"] == pytest.approx(row["train_cross_entropy"] + row["train_kl_2f"], rel=1e-5)
        assert 0 <= row["train_top1"] <= row["train_top5"] == 100  # of three classes
        assert row["gradient_norm"] > 0
        assert row["skipped_steps"] == 0
    # The rate of an epoch's last step: step 2 of 2 in the first epoch of warm-up is half the way up.
    assert trained.history[0]["learning_rate"] == pytest.approx(0.02 * 0.5)
    # Four epochs of two whole batches of 4 of the 10 videos, for each frame count.
    assert tensors["bn1.2.num_batches_tracked"] == tensors["bn1.4.num_batches_tracked"] == 8


def test_the_best_epoch_is_kept_not_the_last(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    trained, _ = run(
        tmp_path,
        "tsm",
        scores=[10.0, 30.0, 30.0, 20.0],
        watch=lambda network: seen.append({k: v.clone() for k, v in network.state_dict().items()}),
    )
    assert trained.best_epoch == 2
    assert_same(trained.best_model, seen[1])
    assert not torch.equal(seen[1]["fc.weight"], seen[3]["fc.weight"])


def test_the_next_epoch_is_requested_before_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Noted(VideoBatches):
        def batches(self, keys: Any) -> Any:
            events.append(f"epoch {keys[0][0][0]}, {len(keys)} batches")
            return super().batches(keys)

    monkeypatch.setattr(f"{__name__}.VideoBatches", Noted)
    run(tmp_path, "tsm", epochs=3, watch=lambda _: events.append("validation"))
    assert events == [
        "epoch 0, 2 batches", "epoch 1, 2 batches", "validation", "epoch 2, 2 batches", "validation", "validation",
    ]  # fmt: skip


def test_bad_videos_are_counted_in_the_history(tmp_path: Path, unbroken_tsm: Ended) -> None:
    # The last, incomplete batch is dropped, and in some epochs a bad video with it.
    counts = [row["bad_videos"] for row in unbroken_tsm[0].history]
    assert max(counts) == 2
    assert sum(counts) >= 4
    with pytest.raises(
        UserError, match=r"3 of 10 videos could not be read in this epoch.*max_bad_fraction` 0\.2"
    ):
        run(tmp_path, "tsm", bad=(1, 2, 3, 4, 5))


def test_warnings_are_given_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warn(history: list[dict[str, float]], *, select_by: str) -> list[str]:
        return [f"look at {select_by} of epoch {history[-1]['epoch']}"]

    monkeypatch.setattr("ffnrepro.training.progress.warnings", warn)
    run(tmp_path, "tsm", epochs=3)
    messages = [message for message in caplog.messages if "look at" in message]
    assert messages == [f"tsm: look at top1_4f of epoch {epoch}" for epoch in (1, 2, 3)]


# --- Faults that end a training


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        PermanentError,
        match=r"epoch 2, step 1: the loss is nan \(cross_entropy nan\) .* lower training\.learning_rate",
    ):
        run(tmp_path, "tsm", learning_rate=1e30, clip_norm=None, save_minutes=0)


def overflowing(*steps: int) -> Callable[[Tensor], Tensor]:
    """Leave the loss as it is, but make its gradient infinite, at these steps; without any, at every step."""
    done = 0

    def spoil(loss: Tensor) -> Tensor:
        nonlocal done
        done += 1
        return loss if steps and done not in steps else loss + (0 * loss).sqrt()

    return spoil


def test_skipped_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "precision_on", lambda device, precision: precision)  # noqa: ARG005
    weights: list[Tensor] = []

    def keep_weights(model: nn.Module) -> None:
        def keep(network: Any, *_: Any) -> None:
            if network.training:
                weights.append(network.fc.weight.detach().clone())

        model.register_forward_hook(keep)

    trained, tensors = run(tmp_path, "tsm", spoil=overflowing(2, 3, 4, 7), alter=keep_weights)
    assert [row["skipped_steps"] for row in trained.history] == [1, 2, 0, 1]
    moved = [
        not torch.equal(a, b) for a, b in zip(weights, [*weights[1:], tensors["fc.weight"]], strict=True)
    ]
    # The first step has the rate 0.
    assert moved == [False, False, False, False, True, True, False, True]
    assert all(math.isfinite(row["gradient_norm"]) for row in trained.history)


def test_a_run_that_skips_every_step_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "precision_on", lambda device, precision: precision)  # noqa: ARG005
    steps = []
    # The scale falls from 2^16 to below 2^-10.
    with pytest.raises(
        PermanentError, match=r"epoch 14, step 1: the gradients overflow float16: .* bfloat16"
    ):
        run(tmp_path, "tsm", epochs=50, spoil=overflowing(), before_step=lambda: steps.append(1))
    assert len(steps) == 27


# --- Runs that are interrupted and continued


def test_a_run_killed_in_each_epoch_ends_like_an_unbroken_run(
    tmp_path: Path, unbroken: tuple[str, Ended]
) -> None:
    method, whole = unbroken
    # Each attempt saves one epoch and dies in the validation of the next.
    for _ in range(3):
        with pytest.raises(Killed):
            run(tmp_path, method, kill_at=2)
    assert_equal(run(tmp_path, method), whole)


def test_a_finished_run_does_not_train_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "tsm", epochs=2)
    again, _ = run(tmp_path, "tsm", epochs=2, kill_at=1)
    assert_same(vars(first), vars(again))


class Counter:
    """Counts steps, and calls a function at one of them."""

    def __init__(self, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.steps = 0
        self._at, self._act = at, act

    def __call__(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._act()


def die() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_save_that_is_cut_in_half_costs_the_steps_since_the_previous_save(
    tmp_path: Path, unbroken_tsm: Ended
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, "tsm", save_minutes=0, before_step=Counter(4, die))
    newest = max(tmp_path.glob("state-*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    steps = Counter()
    assert_equal(run(tmp_path, "tsm", before_step=steps), unbroken_tsm)
    # Of 8 steps 3 were done, and one of them is lost.
    assert steps.steps == 6


def test_a_validation_that_is_cut_short_costs_no_step(tmp_path: Path) -> None:
    steps = Counter()
    with pytest.raises(Killed):
        run(tmp_path, "tsm", epochs=2, kill_at=1, before_step=steps)
    assert steps.steps == 2
    run(tmp_path, "tsm", epochs=2, before_step=steps)
    assert steps.steps == 4


@pytest.mark.parametrize("step", [1, 3, 4])
def test_sigterm_stops_after_the_step_and_loses_nothing(
    tmp_path: Path, unbroken: tuple[str, Ended], step: int
) -> None:
    method, whole = unbroken
    steps = Counter(step, terminate)
    place = f"SIGTERM, saved at epoch {1 + (step - 1) // 2} of 4, step {1 + (step - 1) % 2}$"
    with StopRequest() as stop, pytest.raises(Unfinished, match=place):
        run(tmp_path, method, before_step=steps, stop=stop)
    assert steps.steps == step
    assert_equal(run(tmp_path, method, before_step=steps), whole)
    # Each of the 4 epochs' 2 steps was done once.
    assert steps.steps == 8


def test_a_sigterm_during_the_save_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(number: int, frame: object) -> None:  # noqa: ARG001
        raise Killed

    fsync = os.fsync

    def terminate_again(file: int) -> None:
        terminate()
        fsync(file)

    monkeypatch.setattr("ffnrepro.training.checkpoints.os.fsync", terminate_again)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with StopRequest() as stop, pytest.raises(Unfinished, match=r"saved at epoch 1 of 4, step 1$"):
            run(tmp_path, "tsm", before_step=terminate, stop=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(list(tmp_path.glob("state-*.pt"))) == 1


def test_a_deadline_stops_in_time_and_loses_nothing(
    tmp_path: Path, unbroken_tsm: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    for clock in ("time", "perf_counter"):
        monkeypatch.setattr(f"ffnrepro.training.loop.time.{clock}", lambda: now)
    # The margin is 50 s plus the time of two of the longest steps.
    stop = StopRequest(1000.0)

    def slow() -> None:
        nonlocal now
        now += 240

    with pytest.raises(Unfinished, match=r"the time limit is near, saved at epoch 1 of 4, step 2$"):
        run(tmp_path, "tsm", before_step=slow, stop=stop)
    assert now == 480
    monkeypatch.undo()
    assert_equal(run(tmp_path, "tsm", before_step=slow), unbroken_tsm)
    assert now == 8 * 240


def test_a_disk_that_fills_up_during_a_save_loses_nothing(tmp_path: Path, unbroken_tsm: Ended) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = Counter(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    try:
        with pytest.raises(UserError, match=r"state cannot be saved .*free some space and run again"):
            run(tmp_path, "tsm", before_step=steps, save_minutes=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_equal(run(tmp_path, "tsm", before_step=steps, save_minutes=0), unbroken_tsm)
    # The third step was done twice.
    assert steps.steps == 9
