"""One training step: the terms of the loss one at a time, then one update of the weights (section 4.1)."""

import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.models.running_statistics import running_statistics_kept
from ffnrepro.recipe.transforms import normalise


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        losses: This process's loss as `loss`, and each term of the loss by its name, without its weight.
        gradient_norm: Norm of the gradient of all parameters, averaged over all processes, before clipping.
        finite: Whether loss and gradients were finite; if not, the weights are unchanged. A gradient that overflows
            float16 counts as finite: this is usual, and the scaler skips the step and lowers its scale.
        skipped: Whether the scaler skipped the step.
        logits: Detached logits (N, classes), from which training accuracy is computed.
    """

    losses: dict[str, float]
    gradient_norm: float
    finite: bool
    skipped: bool
    logits: Tensor


def train_step(
    model: nn.Module,
    method: Method,
    clips: Mapping[int, Tensor],
    labels: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    seeds: tuple[int, int, int],
    rank: int = 0,
    precision: str,
    clip_norm: float | None,
    micro_batch: int | None,
) -> StepResult:
    """Differentiate the terms of the loss one at a time and update the weights once.

    With `micro_batch`, the clips go through the network in groups, one at a time, so memory holds the activations of only
    one group. As if each group were on a GPU of its own, BatchNorm normalises each group by itself, the first group alone
    changes the running statistics, and losses and gradients are means over all clips.

    Args:
        model: The network, in training mode.
        method: The method, which gives the terms of the loss.
        clips: This process's clips by frame count T: uint8 (N, 3, T, S, S), on the network's device.
        labels: Class indices (N,), on the same device.
        optimizer: The optimiser, with the learning rates of this step.
        scaler: Loss scaler from `make_scaler`.
        seeds: Seed of the training, epoch, and step within the epoch.
        rank: Number of this process.
        precision: Precision of the forward pass, from `precision_on`.
        clip_norm: Largest norm of the gradient, which is clipped after unscaling; None: no clipping.
        micro_batch: Number of clips that go through the network at a time; None: all clips of the process.
    """
    parameters = list(model.parameters())
    device, dtype = labels.device, parameters[0].dtype
    autocast = torch.autocast(device.type, _DTYPES[precision], enabled=precision != "float32")
    optimizer.zero_grad(set_to_none=True)
    losses: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device, dtype=dtype))
    logits = []
    size = micro_batch or len(labels)
    for group, own_labels in enumerate(torch.split(labels, size)):
        own = slice(group * size, group * size + len(own_labels))
        inputs = {frames: normalise(clip[own], dtype) for frames, clip in clips.items()}
        terms = method.terms(model, inputs, own_labels, _method_generator(*seeds))
        share = len(own_labels) / len(labels)
        # The published run saved the running statistics of the first of two GPUs.
        with running_statistics_kept(model) if group else nullcontext():
            for number in count():
                # Dropout of a term depends on this seed alone, so a resumed or repeated run draws the same dropout.
                torch.manual_seed(_term_seed(*seeds, number, rank, group))
                with autocast:
                    term = next(terms, None)
                if term is None:
                    break
                loss = share * term.weight * term.loss
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                losses["loss"] += loss.detach()
                losses[term.name] += share * term.loss.detach()
                if term.logits is not None:
                    logits.append(term.logits)
    assert logits, "a term of the loss must give the logits of training accuracy"

    common_loss = average_gradients(parameters, losses["loss"])
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients) if clip_norm is None else clip_grad_norm_(parameters, clip_norm)
    *values, common, gradient_norm = torch.stack([*losses.values(), common_loss, norm]).tolist()
    finite = math.isfinite(common) and (math.isfinite(gradient_norm) or scaler.is_enabled())
    scale = scaler.get_scale()
    if finite:
        scaler.step(optimizer)
        scaler.update()
    skipped = scaler.get_scale() < scale
    recorded = dict(zip(losses, values, strict=True))
    return StepResult(recorded, gradient_norm, finite, skipped, torch.cat(logits))


def precision_on(device: torch.device, precision: str) -> str:
    """The precision of the forward pass: the configured one on CUDA, elsewhere float32."""
    return precision if device.type == "cuda" else "float32"


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """The loss scaler: float16 needs it, and with any other precision it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def average_gradients(parameters: list[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace the gradients by their means over all processes, in one exchange; a missing gradient counts as zero.

    Args:
        parameters: Parameters of the network, in the same order in all processes.
        loss: Loss of this process, a scalar.

    Returns:
        The mean of the losses; it is not finite if the loss of any process is not.
    """
    if not dist.is_initialized():
        return loss
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *means, mean_loss = torch.split(flat, [*(gradient.numel() for gradient in gradients), 1])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view(gradient.shape))
    return mean_loss[0]


def share_running_statistics(model: nn.Module) -> None:
    """Give every process the BatchNorm statistics of the first process, which are saved and evaluated."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _term_seed(seed: int, epoch: int, step: int, term: int, rank: int, group: int) -> int:
    # Without micro-batches, the seed is that of versions that had none.
    spawn_key = (1, group) if group else (1,)
    sequence = np.random.SeedSequence([seed, epoch, step, term, rank], spawn_key=spawn_key)
    return int(sequence.generate_state(1)[0])


def _method_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Generator for the random choices of a method; the same in all processes and for all groups of clips."""
    sequence = np.random.SeedSequence([seed, epoch, step], spawn_key=(2,))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
