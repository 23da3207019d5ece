"""The training loop (section 4.1), one function to be read from top to bottom. `recipe/` has the code that decides numbers."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffnrepro.config import TrainingSettings
from ffnrepro.errors import PermanentError, Unfinished
from ffnrepro.recipe.clips import Batch, training_batches
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.optim import learning_rate_factor, make_optimizer, set_learning_rate
from ffnrepro.recipe.scoring import best_classes, correct_within
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
from ffnrepro.training.live import LiveProgress
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes
from ffnrepro.training.progress import epoch_line, warnings, write_scalars
from ffnrepro.training.stopping import StopRequest

logger = logging.getLogger(__name__)

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
    scaler = make_scaler(device, precision)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    saved = _restore(checkpoints, state, processes, name, settings.epochs)
    history, best = saved["history"], saved["best"]
    # The saved sums are totals over all processes; the other processes start with zeros under the same names.
    sums = defaultdict(float, saved["sums"] if processes.first else dict.fromkeys(saved["sums"], 0.0))

    def save(epoch: int, step: int) -> None:
        totals = processes.total(sums)
        if processes.first:
            parts = {key: part.state_dict() for key, part in state.items()}
            place = {"epoch": epoch, "step": step}
            checkpoints.save({**parts, **place, "sums": totals, "history": history, "best": best})

    batches_of = partial(
        training_batches,
        len(loader.dataset),
        seed=seed,
        batch_size=settings.batch_size,
        rank=processes.rank,
        processes=processes.count,
    )
    live = LiveProgress(
        checkpoints.folder,
        epochs=settings.epochs,
        steps=len(batches_of(epoch=0)),
        processes=processes.count,
    )
    if processes.first:
        live.report(epoch=len(history), step=saved["step"], sums=sums, history=history)
    loading: Iterator[Batch] | None = None
    for epoch in range(len(history), settings.epochs):
        batches = batches_of(epoch=epoch)
        first_step = saved.pop("step", 0)
        bad_before = sums["bad_videos"]
        longest = 0.0
        model.train()
        bar = tqdm(
            loading or loader.batches(batches[first_step:]),
            desc=f"{name} {epoch + 1}/{settings.epochs}",
            initial=first_step,
            total=len(batches),
            leave=False,
            disable=None if processes.first else True,
            unit="step",
        )
        requested = time.perf_counter()
        for step, (clips, labels) in enumerate(bar, start=first_step):
            received = time.perf_counter()
            set_learning_rate(optimizer, factor_at(epoch + step / len(batches)))
            targets = move(labels, device)
            result = train_step(
                model,
                method,
                {frames: move(clip, device) for frames, clip in clips.items()},
                targets,
                optimizer=optimizer,
                scaler=scaler,
                seeds=(seed, epoch, step),
                rank=processes.rank,
                precision=precision,
                clip_norm=settings.clip_norm,
                micro_batch=settings.micro_batch,
            )
            _check_step(result, scaler, optimizer, checkpoints, f"{name}: epoch {epoch + 1}, step {step + 1}")
            _count_step(sums, result, targets, frames=sum(len(clip) * n for n, clip in clips.items()))
            sums["bad_videos"] = bad_before + loader.bad_videos
            bar.set_postfix(loss=f"{result.losses['loss']:.3f}", refresh=False)

            now = time.perf_counter()
            sums["seconds"] += now - requested
            sums["waited"] += received - requested
            longest = max(longest, now - requested)
            if processes.first:
                live.report(epoch=epoch, step=step + 1, sums=sums, history=history)
            reason = stop.reason(reserve=2 * (longest + checkpoints.save_seconds))
            stops, due = processes.any_of([reason is not None, processes.first and checkpoints.is_due()])
            if stops or due:
                save(epoch, step + 1)
            if stops:
                # The first process is saving, and would fail if another process ended now.
                processes.wait()
                raise Unfinished(
                    f"{name}: {reason or 'another process stops'}, saved at epoch {epoch + 1} of {settings.epochs}, "
                    f"step {step + 1}"
                )
            requested = time.perf_counter()

        # This save comes first, so that an interrupted validation costs no training step.
        save(epoch, len(batches))
        started = time.perf_counter()
        share_running_statistics(model)
        # The first batches of the next epoch are loaded during validation.
        loading = loader.batches(batches_of(epoch=epoch + 1)) if epoch + 1 < settings.epochs else None
        scores = validate(model)
        sums["seconds_validation"] = time.perf_counter() - started
        totals = defaultdict(float, processes.total(sums))
        row = {"epoch": epoch + 1, "learning_rate": optimizer.param_groups[0]["lr"]}
        history.append(row | _history_row(totals, scores, processes.count))
        score = selection_score(scores, method.frame_counts)
        if is_better(score, best.get("score")):
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            best = {"epoch": epoch + 1, "score": score, "model": weights}
        sums.clear()
        save(epoch + 1, 0)
        if processes.first:
            live.report(epoch=epoch + 1, step=0, sums=sums, history=history)
            write_scalars(checkpoints.folder / "tensorboard" / name, history[-1])
            logger.info("%s", epoch_line(name, settings.epochs, history[-1]))
            for warning in warnings(history, select_by=f"top1_{max(method.frame_counts)}f"):
                logger.warning("%s: %s", name, warning)

    return Trained(history, best["epoch"], best["model"])


def _restore(
    checkpoints: Checkpoints, state: Mapping[str, Any], processes: Processes, name: str, epochs: int
) -> dict[str, Any]:
    """Restore the newest save and return it; without a save, return the values that a training starts with."""
    saved = checkpoints.load() or {"history": [], "best": {}, "step": 0, "sums": {}}
    done, step = len(saved["history"]), saved["step"]
    if "model" in saved:
        state["model"].load_state_dict(saved["model"])
        state["optimizer"].load_state_dict(saved["optimizer"])
        # A run may continue on another kind of device, where there is no loss scale.
        if saved["scaler"] and state["scaler"].is_enabled():
            state["scaler"].load_state_dict(saved["scaler"])
        if done < epochs:
            logger.info("%s: continues at epoch %d, after %d steps", name, done + 1, step)
        else:
            logger.info("%s: is already trained; its log is in %s", name, checkpoints.folder)
    if not processes.same((done, step)):
        raise Unfinished(
            f"{name}: {checkpoints.folder}: one process cannot read the save that another continues from"
        )
    return saved


def _check_step(
    result: StepResult,
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    place: str,
) -> None:
    """Refuse a step that would fail again in another attempt.

    Raises:
        PermanentError: the loss is not finite, or the gradients overflow float16.
    """
    loss = result.losses["loss"]
    if not result.finite:
        terms = ", ".join(f"{name} {value:.3g}" for name, value in result.losses.items() if name != "loss")
        raise PermanentError(
            f"{place}: the loss is {loss:.3g} ({terms}) and the gradient's norm {result.gradient_norm:.3g}, learning rate "
            f"{optimizer.param_groups[0]['lr']:.3g}; look at gradient_norm and train_loss of earlier epochs (tensorboard "
            f"--logdir {checkpoints.folder}), lower training.learning_rate, or set training.precision: float32"
        )
    if result.skipped and scaler.get_scale() < SMALLEST_SCALE:
        raise PermanentError(
            f"{place}: the gradients overflow float16: steps are skipped, though the loss ({loss:.3g}) is scaled by only "
            f"{scaler.get_scale():.1g}; set training.precision to bfloat16 or float32, or lower "
            "training.learning_rate"
        )


def _count_step(sums: defaultdict[str, float], result: StepResult, labels: Tensor, *, frames: int) -> None:
    """Add a step to the sums of its epoch; losses and correct predictions are summed over samples."""
    sums["steps"] += 1
    sums["samples"] += len(labels)
    sums["frames"] += frames
    sums["skipped_steps"] += result.skipped
    sums["norm"] += 0.0 if result.skipped else result.gradient_norm
    for name, value in result.losses.items():
        sums[f"train_{name}"] += value * len(labels)
    classes = best_classes(result.logits)
    for k in (1, 5):
        sums[f"train_top{k}"] += 100 * correct_within(classes, labels, k)


def _history_row(
    totals: Mapping[str, float], scores: Mapping[str, float], processes: int
) -> dict[str, float]:
    """Columns of the history, from the sums of an epoch over all processes."""
    return {
        **{key: total / totals["samples"] for key, total in totals.items() if key.startswith("train_")},
        "gradient_norm": totals["norm"] / max(1, totals["steps"] - totals["skipped_steps"]),
        "skipped_steps": totals["skipped_steps"] / processes,
        "bad_videos": totals["bad_videos"],
        **{f"validation_{name}": score for name, score in scores.items()},
        "seconds": (totals["seconds"] + totals["seconds_validation"]) / processes,
        "frames_per_second": processes * totals["frames"] / totals["seconds"],
        "data_wait": 100 * totals["waited"] / totals["seconds"],
    }
