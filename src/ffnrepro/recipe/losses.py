"""The loss of the Frame Flexible Network (section 3.2, eq. 4), and plain cross entropy for TSM."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A step's loss, its parts, and the logits that training accuracy is read from.

    Attributes:
        total: scalar, what is differentiated.
        parts: name -> detached scalar, for the history.
        logits: (N, classes), detached, of the highest frame count.
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


def classification_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross entropy of one clip a sample: TSM.

    Args:
        logits: (N, classes).
        labels: (N,) class indices.
    """
    total = F.cross_entropy(logits.float(), labels)
    return Loss(total, {"cross_entropy": total.detach()}, logits.detach())


def frame_flexible_loss(
    logits: Sequence[Tensor], labels: Tensor, *, frame_counts: Sequence[int], distillation_weight: float
) -> Loss:
    """Temporal distillation: `CE(p_H, y) + weight * sum over the others of KL(p_H || p_n)` (eq. 4).

    Only the highest frame count learns from the label; the others learn from its prediction, which is detached:
    no gradient of the distillation reaches the teacher.

    Args:
        logits: one (N, classes) for each frame count, in rising order of the frame count.
        labels: (N,) class indices.
        frame_counts: the frame counts, in the same order; they name the parts.
        distillation_weight: lambda of eq. 4.
    """
    *students, teacher = [item.float() for item in logits]
    cross_entropy = F.cross_entropy(teacher, labels)
    log_teacher = F.log_softmax(teacher.detach(), dim=1)
    divergences = [
        F.kl_div(F.log_softmax(student, dim=1), log_teacher, reduction="batchmean", log_target=True)
        for student in students
    ]
    total = cross_entropy + distillation_weight * torch.stack(divergences).sum()
    parts = {"cross_entropy": cross_entropy.detach()}
    parts |= {f"kl_{n}f": kl.detach() for n, kl in zip(frame_counts, divergences, strict=False)}
    return Loss(total, parts, teacher.detach())
