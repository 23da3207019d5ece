"""The loop: resumed runs end as unbroken ones, frames and losses are right, faults stop it."""

import math
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ffnrepro.recipe.losses import Loss, classification_loss, frame_flexible_loss
from torch import Tensor, nn
from torch.utils.data import Dataset

from ffnrepro.data.decode import DecodeError
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.recipe.clips import EpochSampler
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.optim import learning_rate_factor, parameter_groups
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.loop import TIMES, Trained, step_seed, train
from ffnrepro.training.processes import Processes
from ffnrepro.training.stopping import StopRequest

CPU = torch.device("cpu")
NETWORK: dict[str, Any] = {"classes": 3, "depth": 10, "width": 8, "stem": 5}
COUNTS = (2, 4)
ALONE = Processes()


class Noise(Dataset[Any]):
    """Clips that are a function of epoch and index, as those of the real data sets are."""

    def __init__(self, several: bool, bad: tuple[int, ...] = ()) -> None:
        self.several = several
        self.bad = bad

    def __len__(self) -> int:
        return 10

    def path_of(self, index: int) -> str:
        return f"{index}.webm"

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        if key[1] in self.bad:
            raise DecodeError(f"{key[1]}.webm: does not decode")
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        clips = tuple(
            torch.randint(0, 256, (3, t, 16, 16), generator=generator, dtype=torch.uint8) for t in COUNTS
        )
        return clips if self.several else clips[-1], key[1] % 3


class Killed(Exception):
    """Stands for a kill at a moment that the test chooses."""


def run(
    root: Path,
    method: str,
    *,
    epochs: int = 4,
    kill_at: int | None = None,
    learning_rate: float = 0.02,
    clip_norm: float | None = 20.0,
    scores: list[float] | None = None,
    bad: tuple[int, ...] = (),
    watch: Callable[[nn.Module], None] = lambda _: None,
    before_step: Callable[[], None] = lambda: None,
    stop: StopRequest | None = None,
    save_minutes: float = 10.0,
    alter: Callable[[nn.Module], None] = lambda _: None,
    spoil: Callable[[Loss], Loss] = lambda loss: loss,
    batchnorm_clips: int | None = None,
    processes: Processes = ALONE,
) -> tuple[Trained, dict[str, Tensor]]:
    torch.manual_seed(7)
    model = TSM(**NETWORK) if method == "tsm" else FrameFlexibleNetwork(frame_counts=COUNTS, **NETWORK)
    alter(model)
    calls = 0

    def validate(network: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        watch(network)
        if calls == kill_at:
            raise Killed
        weight = network.state_dict()["fc.weight"]
        return {"top1_4f": float(weight.abs().sum()) if scores is None else scores[calls - 1]}

    loss_of = (
        classification_loss
        if method == "tsm"
        else partial(frame_flexible_loss, frame_counts=COUNTS, distillation_weight=1.0)
    )

    def compute_loss(output: Any, labels: Tensor) -> Loss:
        before_step()
        return spoil(loss_of(output, labels))

    trained = train(
        model=model,
        batches=VideoBatches(
            Noise(method == "ffn", bad),
            batch_size=4 // processes.count,
            sampler=EpochSampler(10, seed=1, batch_size=4, rank=processes.rank, processes=processes.count),
            drop_last=True,
            max_bad_fraction=0.2,
        ),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(
            parameter_groups(model, learning_rate=learning_rate, weight_decay=5e-4), momentum=0.9
        ),
        learning_rate_factor=partial(learning_rate_factor, epochs=epochs, schedule="cosine", warmup_epochs=1),
        validate=validate,
        select_by="top1_4f",
        epochs=epochs,
        clip_norm=clip_norm,
        batchnorm_clips=batchnorm_clips,
        precision="float16",
        seed=1,
        device=CPU,
        processes=processes,
        state=StateDirectory(root, {"method": method}, save_minutes=save_minutes),
        stop=stop or StopRequest(),
        name=method,
    )
    return trained, model.state_dict()


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_a_run_killed_at_each_epoch_ends_as_an_unbroken_one(tmp_path: Path, method: str) -> None:
    unbroken, tensors = run(tmp_path / "unbroken", method)
    for _ in range(3):  # each attempt saves one epoch and dies in the next
        with pytest.raises(Killed):
            run(tmp_path / "broken", method, kill_at=2)
    resumed, resumed_tensors = run(tmp_path / "broken", method)
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert resumed.best_epoch == unbroken.best_epoch
    assert all(torch.equal(tensors[name], resumed_tensors[name]) for name in tensors)
    assert all(torch.equal(unbroken.best_model[n], resumed.best_model[n]) for n in tensors)


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_a_state_that_is_cut_in_half_costs_the_steps_since_the_one_before(
    tmp_path: Path, method: str
) -> None:
    unbroken, tensors = run(tmp_path / "unbroken", method)
    steps = 0

    def die_at_the_fourth() -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "broken", method, save_minutes=0, before_step=die_at_the_fourth)
    newest = max((tmp_path / "broken").glob("*/state-*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    resumed, resumed_tensors = run(tmp_path / "broken", method, before_step=die_at_the_fourth)
    assert steps == 4 + 6  # 3 of 8 were done, and one of them is lost
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert all(torch.equal(tensors[name], resumed_tensors[name]) for name in tensors)
    assert all(torch.equal(unbroken.best_model[n], resumed.best_model[n]) for n in tensors)


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "tsm")
    again, _ = run(tmp_path, "tsm", kill_at=1)
    assert again.history == first.history
    assert all(torch.equal(first.best_model[n], again.best_model[n]) for n in first.best_model)


def test_the_best_epoch_is_kept_not_the_last(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    trained, _ = run(
        tmp_path,
        "tsm",
        scores=[10.0, 30.0, 30.0, 20.0],
        watch=lambda network: seen.append({k: v.clone() for k, v in network.state_dict().items()}),
    )
    assert trained.best_epoch == 2
    assert all(torch.equal(trained.best_model[name], seen[1][name]) for name in seen[1])
    assert not torch.equal(seen[1]["fc.weight"], seen[3]["fc.weight"])


def test_history_tells_of_each_epoch(tmp_path: Path) -> None:
    trained, _ = run(tmp_path, "ffn")
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    for row in trained.history:
        assert row["train_loss"] == pytest.approx(row["train_cross_entropy"] + row["train_kl_2f"], rel=1e-5)
        assert 0 <= row["train_top1"] <= 100
    # The rate of an epoch's last step: step 2 of 2 in the first epoch of warm-up is half the way up.
    assert trained.history[0]["learning_rate"] == pytest.approx(0.02 * 0.5)


def test_each_frame_count_trains_its_own_normalisation(tmp_path: Path) -> None:
    _, tensors = run(tmp_path, "ffn", epochs=2)
    for count in COUNTS:
        assert (
            tensors[f"bn1.{count}.num_batches_tracked"] == 4
        )  # 2 epochs of 2 whole batches of 4 of 10 videos
    assert not torch.equal(tensors["bn1.2.running_mean"], tensors["bn1.4.running_mean"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        PermanentError,
        match=r"the loss is nan \(cross_entropy nan\) .* at epoch 2, step 1, .* lower training\.learning_rate.* newest "
        r"save without nan or inf is .*state-00000004-.*\.pt, after epoch 1 and 0 steps",
    ):
        run(tmp_path, "tsm", learning_rate=1e30, clip_norm=None, save_minutes=0)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    """With a bound of almost nothing the first step moves the weights by almost nothing."""
    torch.manual_seed(7)
    start = TSM(**NETWORK).state_dict()["conv1.weight"]
    _, free = run(tmp_path / "free", "tsm", epochs=2, clip_norm=None)
    _, bound = run(tmp_path / "bound", "tsm", epochs=2, clip_norm=1e-9)
    assert (bound["conv1.weight"] - start).norm() < 0.05 * (free["conv1.weight"] - start).norm()


@pytest.mark.parametrize("method", ["tsm", "ffn"])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_sigterm_is_answered_after_the_step_and_loses_nothing(tmp_path: Path, method: str, step: int) -> None:
    unbroken, tensors = run(tmp_path / "unbroken", method)
    steps = 0

    def terminate() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGTERM)

    where = f"SIGTERM, saved at epoch {1 + (step - 1) // 2} of 4, step {1 + (step - 1) % 2}$"
    with StopRequest() as stop, pytest.raises(Unfinished, match=where):
        run(tmp_path / "broken", method, before_step=terminate, stop=stop)
    assert steps == step
    resumed, resumed_tensors = run(tmp_path / "broken", method, before_step=terminate)
    assert steps == 8  # each of the 4 epochs' 2 steps once
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert all(torch.equal(tensors[name], resumed_tensors[name]) for name in tensors)
    assert all(torch.equal(unbroken.best_model[n], resumed.best_model[n]) for n in tensors)


def test_a_sigterm_during_the_save_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(number: int, frame: object) -> None:  # noqa: ARG001
        raise Killed

    fsync = os.fsync

    def again(file: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        fsync(file)

    monkeypatch.setattr("ffnrepro.training.checkpoints.os.fsync", again)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with StopRequest() as stop, pytest.raises(Unfinished, match=r"saved at epoch 1 of 4, step 1$"):
            run(tmp_path, "tsm", before_step=lambda: os.kill(os.getpid(), signal.SIGTERM), stop=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(list(tmp_path.glob("*/state-*.pt"))) == 1


def overflowing(*steps: int) -> Callable[[Loss], Loss]:
    """At these steps the loss is as it was, and its gradient infinite."""
    done = 0

    def spoil(loss: Loss) -> Loss:
        nonlocal done
        done += 1
        if steps and done not in steps:
            return loss
        zero = 0 * loss.total
        return Loss(loss.total + zero.sqrt(), loss.parts, loss.logits)

    return spoil


def test_skipped_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffnrepro.training.loop.precision_on", lambda device, precision: precision)  # noqa: ARG005
    weights: list[Tensor] = []
    trained, tensors = run(
        tmp_path,
        "tsm",
        spoil=overflowing(2, 3, 4, 7),
        alter=lambda model: model.register_forward_hook(
            lambda network, *_: (
                weights.append(network.fc.weight.detach().clone()) if network.training else None
            )
        ),
    )
    assert [row["skipped_steps"] for row in trained.history] == [1, 2, 0, 1]
    moved = [
        not torch.equal(a, b) for a, b in zip(weights, [*weights[1:], tensors["fc.weight"]], strict=True)
    ]
    assert moved == [False, False, False, False, True, True, False, True]  # the first has the rate 0
    assert all(math.isfinite(row["gradient_norm"]) for row in trained.history)


def test_steps_that_are_skipped_for_ever_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffnrepro.training.loop.precision_on", lambda device, precision: precision)  # noqa: ARG005
    steps = []
    # From 2^16 to below 2^-10.
    with pytest.raises(
        PermanentError, match=r"float16 does not hold the gradients: .* epoch 14, step 1, .* bfloat16"
    ):
        run(tmp_path, "tsm", epochs=50, spoil=overflowing(), before_step=lambda: steps.append(1))
    assert len(steps) == 27


def test_a_norm_that_a_forward_pass_puts_into_the_wrong_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def freeze(model: nn.Module) -> None:
        def in_evaluation(norm: nn.Module, _: Any) -> None:
            norm.eval()

        model.get_submodule("layer1.0.bn1").register_forward_pre_hook(in_evaluation)

    run(tmp_path / "frozen", "tsm", epochs=1, alter=freeze)
    assert "1 BatchNorms (layer1.0.bn1, ...) are in the mode of evaluation during training" in caplog.text


def test_videos_that_go_bad_are_counted_in_the_history(tmp_path: Path) -> None:
    sound, _ = run(tmp_path / "sound", "tsm")
    assert [row["bad_videos"] for row in sound.history] == [0, 0, 0, 0]
    trained, _ = run(tmp_path / "bad", "tsm", bad=(3, 5))
    # The last, incomplete batch is dropped, and at times a bad video with it.
    counts = [row["bad_videos"] for row in trained.history]
    assert max(counts) == 2
    assert sum(counts) >= 4
    with pytest.raises(
        UserError, match=r"3 of 10 videos could not be read in this epoch.*max_bad_fraction` 0\.2"
    ):
        run(tmp_path / "worse", "tsm", bad=(1, 2, 3, 4, 5))


def test_a_deadline_stops_in_time_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken, tensors = run(tmp_path / "unbroken", "tsm")
    now = 0.0
    monkeypatch.setattr("ffnrepro.training.stopping.time.time", lambda: now)
    stop = StopRequest(1000.0)  # with a margin of 50 s

    def slow() -> None:
        nonlocal now
        now += 240

    with pytest.raises(Unfinished, match=r"the time is nearly used, saved at epoch 2 of 4, step 2$"):
        run(tmp_path / "broken", "tsm", before_step=slow, stop=stop)
    assert now == 960  # one more step would have come too late
    monkeypatch.undo()
    resumed, resumed_tensors = run(tmp_path / "broken", "tsm", before_step=slow)
    assert now == 8 * 240  # each step once
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert all(torch.equal(tensors[name], resumed_tensors[name]) for name in tensors)


def test_validation_that_is_cut_short_costs_no_step(tmp_path: Path) -> None:
    steps = []
    with pytest.raises(Killed):
        run(tmp_path, "tsm", kill_at=1, before_step=lambda: steps.append(1))
    assert len(steps) == 2
    run(tmp_path, "tsm", before_step=lambda: steps.append(1))
    assert len(steps) == 8


def test_dropout_is_drawn_anew_in_each_step() -> None:
    seeds = {step_seed(s, e, t, r) for s in range(3) for e in range(10) for t in range(50) for r in range(2)}
    assert len(seeds) == 3000


def test_clipping_comes_after_unscaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With float16 the loss is scaled by 65536; neither the bound nor the norm that is told may be of such gradients."""
    plain, single = run(tmp_path / "single", "tsm", epochs=1, clip_norm=0.01)
    monkeypatch.setattr("ffnrepro.training.loop.precision_on", lambda device, precision: precision)  # noqa: ARG005
    scaled, half = run(tmp_path / "half", "tsm", epochs=1, clip_norm=0.01)
    assert scaled.history[0]["skipped_steps"] == 0
    assert scaled.history[0]["gradient_norm"] == pytest.approx(plain.history[0]["gradient_norm"], rel=0.1)
    torch.manual_seed(7)
    start = TSM(**NETWORK).state_dict()["fc.weight"]
    moved = [(tensors["fc.weight"] - start).norm().item() for tensors in (single, half)]
    assert moved[1] == pytest.approx(moved[0], rel=0.1)


def test_each_group_has_its_own_rate_in_each_step(tmp_path: Path) -> None:
    run(tmp_path, "ffn")
    (_, newest) = sorted(tmp_path.glob("*/state-*.pt"))
    groups = torch.load(newest, weights_only=True)["optimizer"]["param_groups"]
    # The last step: half of the last of three epochs of half a cosine.
    rate = 0.02 * 0.5 * (1 + math.cos(math.pi * 2.5 / 3))
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {
            "conv_weight": rate,
            "normalisation": rate,
            "classifier_weight": 5 * rate,
            "classifier_bias": 10 * rate,
        }
    )


def test_clips_are_normalised_in_groups(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", "tsm", epochs=1)
    _, in_groups = run(tmp_path / "groups", "tsm", epochs=1, batchnorm_clips=2)
    # A step of 4 clips changes the running statistics once, by the first 2.
    assert whole["bn1.num_batches_tracked"] == in_groups["bn1.num_batches_tracked"] == 2
    assert not torch.allclose(whole["bn1.running_mean"], in_groups["bn1.running_mean"], rtol=1e-3)


def test_warnings_are_given_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warn(history: list[dict[str, float]], *, select_by: str) -> list[str]:
        return [f"look at {select_by} of epoch {history[-1]['epoch']}"]

    monkeypatch.setattr("ffnrepro.training.loop.warnings", warn)
    run(tmp_path, "ffn", epochs=3)
    said = [record.getMessage() for record in caplog.records if "look at" in record.getMessage()]
    assert said == [f"ffn: look at top1_4f of epoch {epoch}" for epoch in (1, 2, 3)]
    # This test's validation leaves the network as it is.
    assert caplog.text.count("are in the mode of training during evaluation") == 3


def test_gradient_norm_is_the_one_before_clipping(tmp_path: Path) -> None:
    free, _ = run(tmp_path / "free", "tsm", epochs=2, clip_norm=None)
    bound, _ = run(tmp_path / "bound", "tsm", epochs=2, clip_norm=1e-9)
    assert free.history[0]["gradient_norm"] > 0.1
    # The first step of both starts from the same weights; the second one differs.
    assert bound.history[0]["gradient_norm"] == pytest.approx(free.history[0]["gradient_norm"], rel=0.5)
    assert free.history[0]["skipped_steps"] == 0


def test_a_disk_that_fills_up_during_a_save_loses_nothing(tmp_path: Path) -> None:
    unbroken, tensors = run(tmp_path / "unbroken", "tsm")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = 0

    def fill() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(UserError, match=r"state cannot be saved .*make room and run again"):
            run(tmp_path / "broken", "tsm", before_step=fill, save_minutes=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed, resumed_tensors = run(tmp_path / "broken", "tsm", before_step=fill, save_minutes=0)
    assert steps == 9  # the third step was done twice
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert all(torch.equal(tensors[name], resumed_tensors[name]) for name in tensors)
