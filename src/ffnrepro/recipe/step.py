"""One step of training: the terms of the loss one after the other, then one update of the weights (section 4.1)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.models.grouped_forward import forward_in_groups
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
    batchnorm_clips: int | None,
) -> StepResult:
    """Differentiate the terms of the loss one after the other and update the weights once.

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
        clip_norm: Upper bound of the gradient's norm, applied after unscaling; None: no clipping.
        batchnorm_clips: Number of clips that are normalised together; None: all clips of the process.
    """
    parameters = list(model.parameters())
    device, dtype = labels.device, parameters[0].dtype
    inputs = {frames: normalise(clip, dtype) for frames, clip in clips.items()}
    network = partial(forward_in_groups, model, size=batchnorm_clips)
    terms = method.terms(network, inputs, labels, _method_generator(*seeds))
    autocast = torch.autocast(device.type, _DTYPES[precision], enabled=precision != "float32")
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device, dtype=dtype)
    parts: dict[str, Tensor] = {}
    logits = None
    for number in count():
        # Dropout of a term depends on this seed alone, so a resumed or repeated run draws the same dropout.
        torch.manual_seed(_term_seed(*seeds, number, rank))
        with autocast:
            term = next(terms, None)
        if term is None:
            break
        scaler.scale(term.weight * term.loss).backward()  # type: ignore[no-untyped-call]
        loss += term.weight * term.loss.detach()
        parts[term.name] = term.loss.detach()
        logits = term.logits if logits is None else logits
    assert logits is not None, "a term of the loss must give the logits of training accuracy"

    common_loss = average_gradients(parameters, loss)
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients) if clip_norm is None else clip_grad_norm_(parameters, clip_norm)
    names = ["loss", *parts]
    *losses, common, gradient_norm = torch.stack([loss, *parts.values(), common_loss, norm]).tolist()
    finite = math.isfinite(common) and (math.isfinite(gradient_norm) or scaler.is_enabled())
    scale = scaler.get_scale()
    if finite:
        scaler.step(optimizer)
        scaler.update()
    skipped = scaler.get_scale() < scale
    return StepResult(dict(zip(names, losses, strict=True)), gradient_norm, finite, skipped, logits)


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


def _term_seed(seed: int, epoch: int, step: int, term: int, rank: int) -> int:
    sequence = np.random.SeedSequence([seed, epoch, step, term, rank], spawn_key=(1,))
    return int(sequence.generate_state(1)[0])


def _method_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Generator for the random choices of a method; the same in all processes."""
    sequence = np.random.SeedSequence([seed, epoch, step], spawn_key=(2,))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
