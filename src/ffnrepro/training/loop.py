"""The training loop (section 4.1), one function to be read from top to bottom. `recipe/` has the code that decides numbers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ffnrepro.config import TrainingSettings
from ffnrepro.errors import PermanentError, Unfinished
from ffnrepro.recipe.clips import Batch, training_batches
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.optim import learning_rate_factor, make_optimizer, set_learning_rate
from ffnrepro.recipe.selection import is_better, selection_score
from ffnrepro.recipe.step import (
    StepResult,
    make_scaler,
    precision_on,
    share_running_statistics,
    train_step,
)
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.devices import move
from ffnrepro.training.epoch_sums import EpochSums
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes
from ffnrepro.training.progress import Progress
from ffnrepro.training.state import TrainingState
from ffnrepro.training.stopping import StopRequest

TIMES = ("seconds", "frames_per_second", "data_wait")
"""Columns of the history that differ when a run is repeated."""

SMALLEST_SCALE = 2.0**-10
"""Smallest loss scale with float16: the scale starts at 2^16, is halved at each skipped step, and is usually far above 1."""


@dataclass(frozen=True)
class Trained:
    """Result of a finished training.

    Attributes:
        history: one row for each epoch.
        best_epoch: counted from 1.
        best_model: state dict of that epoch's network, on the CPU.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_model: dict[str, Tensor]


def train(
    *,
    model: nn.Module,
    method: Method,
    settings: TrainingSettings,
    loader: VideoBatches,
    validate: Callable[[nn.Module], dict[str, float]],
    seed: int,
    device: torch.device,
    processes: Processes,
    checkpoints: Checkpoints,
    stop: StopRequest,
    name: str,
) -> Trained:
    """Train to the last epoch, from the saved state if there is one.

    A run that is interrupted at any moment and continued gives the same tensors and the same history (except for
    `TIMES`) as an uninterrupted run: a sample is a function of (seed, epoch, index), all randomness of a step is a
    function of (seed, epoch, step), and everything else is in the state.

    Args:
        model: the network, on the device.
        method: the method, which gives the terms of the loss.
        settings: the training recipe.
        loader: loader of the training split.
        validate: network -> scores by name, the same in all processes.
        seed: seed of order, samples and dropout.
        device: device of the network.
        processes: processes that share each batch.
        checkpoints: saves, which are due after some minutes, at the end of each epoch, and when the training is stopped.
        stop: request to stop, which is checked after each step.
        name: name of the run, for progress and log.

    Raises:
        PermanentError: the loss is not finite, or the gradients overflow float16.
        Unfinished: one of the processes was stopped; the state is saved.
    """
    precision = precision_on(device, settings.precision)
    optimizer = make_optimizer(
        model,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    factor_at = partial(
        learning_rate_factor,
        epochs=settings.epochs,
        schedule=settings.schedule,
        milestones=settings.milestones,
        warmup_epochs=settings.warmup_epochs,
    )
    batches_of = partial(
        training_batches,
        len(loader.dataset),
        seed=seed,
        batch_size=settings.batch_size,
        rank=processes.rank,
        processes=processes.count,
    )
    state = TrainingState(model, optimizer, make_scaler(device, precision))
    state.restore(checkpoints, processes, name=name, epochs=settings.epochs)
    progress = Progress(checkpoints.folder, name, settings.epochs, len(batches_of(epoch=0)), processes)
    progress.report_step(state)
    loading: Iterator[Batch] | None = None
    for epoch in range(len(state.history), settings.epochs):
        batches = batches_of(epoch=epoch)
        bar = progress.bar(loading or loader.batches(batches[state.step :]), state)
        longest = 0.0
        model.train()
        requested = time.perf_counter()
        for step, (clips, labels) in enumerate(bar, start=state.step):
            received = time.perf_counter()
            set_learning_rate(optimizer, factor_at(epoch + step / len(batches)))
            targets = move(labels, device)
            result = train_step(
                model,
                method,
                {frames: move(clip, device) for frames, clip in clips.items()},
                targets,
                optimizer=optimizer,
                scaler=state.scaler,
                seeds=(seed, epoch, step),
                rank=processes.rank,
                precision=precision,
                clip_norm=settings.clip_norm,
                micro_batch=settings.micro_batch,
            )
            _check_step(result, state, checkpoints, f"{name}: epoch {epoch + 1}, step {step + 1}")
            state.step = step + 1
            state.sums.count_step(result, clips, targets, requested=len(batches[step]))
            bar.set_postfix(loss=f"{result.losses['loss']:.3f}", refresh=False)

            seconds = time.perf_counter() - requested
            state.sums.seconds += seconds
            state.sums.waited += received - requested
            longest = max(longest, seconds)
            progress.report_step(state)
            # Time for the next step and its save, twice over.
            reason = stop.reason(reserve=2 * (longest + checkpoints.save_seconds))
            stops, due = processes.any_of([reason is not None, processes.first and checkpoints.is_due()])
            if stops or due:
                state.save(checkpoints, processes)
            if stops:
                # The first process is saving, and would fail if another process ended now.
                processes.wait()
                raise Unfinished(
                    f"{name}: {reason or 'another process stops'}, saved at epoch {epoch + 1} of {settings.epochs}, "
                    f"step {step + 1}"
                )
            requested = time.perf_counter()

        # This save comes first, so that an interrupted validation costs no training step.
        state.save(checkpoints, processes)
        started = time.perf_counter()
        share_running_statistics(model)
        # The first batches of the next epoch are loaded during validation.
        loading = loader.batches(batches_of(epoch=epoch + 1)) if epoch + 1 < settings.epochs else None
        scores = validate(model)
        state.sums.seconds_validation = time.perf_counter() - started
        row = {"epoch": epoch + 1, "learning_rate": optimizer.param_groups[0]["lr"]}
        state.history.append(row | state.sums.total(processes).history_row(scores, processes.count))
        score = selection_score(scores, method.frame_counts)
        if is_better(score, state.best.get("score")):
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            state.best = {"epoch": epoch + 1, "score": score, "model": weights}
        state.step, state.sums = 0, EpochSums()
        state.save(checkpoints, processes)
        progress.report_epoch(state, select_by=f"top1_{max(method.frame_counts)}f")

    return Trained(state.history, state.best["epoch"], state.best["model"])


def _check_step(result: StepResult, state: TrainingState, checkpoints: Checkpoints, place: str) -> None:
    """Refuse a step that would fail again in another attempt.

    Raises:
        PermanentError: the loss is not finite, or the gradients overflow float16.
    """
    loss = result.losses["loss"]
    if not result.finite:
        terms = ", ".join(f"{name} {value:.3g}" for name, value in result.losses.items() if name != "loss")
        raise PermanentError(
            f"{place}: the loss is {loss:.3g} ({terms}) and the gradient's norm {result.gradient_norm:.3g}, learning rate "
            f"{state.optimizer.param_groups[0]['lr']:.3g}; look at gradient_norm and train_loss of earlier epochs "
            f"(tensorboard --logdir {checkpoints.folder}), lower training.learning_rate, or set training.precision: float32"
        )
    if result.skipped and (scale := state.scaler.get_scale()) < SMALLEST_SCALE:
        raise PermanentError(
            f"{place}: the gradients overflow float16: steps are skipped, though the loss ({loss:.3g}) is scaled by only "
            f"{scale:.1g}; set training.precision to bfloat16 or float32, or lower training.learning_rate"
        )
