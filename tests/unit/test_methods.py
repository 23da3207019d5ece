"""Loss values against sums written out by hand, and where the gradient goes."""

import math

import pytest
import torch

from ffnrepro.recipe.losses import classification_loss, frame_flexible_loss

LOW = [[0.2, -0.4, 1.0], [0.5, 0.1, -0.7]]
MIDDLE = [[1.2, 0.3, -0.1], [0.0, 0.9, 0.4]]
HIGH = [[2.0, -1.0, 0.5], [-0.3, 0.8, 1.5]]
LABELS = [0, 2]


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def kl(teacher: list[list[float]], student: list[list[float]]) -> float:
    """KL(p_teacher || p_student), the mean over the rows."""
    total = 0.0
    for teacher_row, student_row in zip(teacher, student, strict=True):
        for p, q in zip(softmax(teacher_row), softmax(student_row), strict=True):
            total += p * math.log(p / q)
    return total / len(teacher)


def cross_entropy(rows: list[list[float]]) -> float:
    return -sum(math.log(softmax(row)[label]) for row, label in zip(rows, LABELS, strict=True)) / len(rows)


def leaf(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, requires_grad=True)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_eq_4_by_hand(weight: float) -> None:
    loss = frame_flexible_loss(
        [leaf(LOW), leaf(MIDDLE), leaf(HIGH)],
        torch.tensor(LABELS),
        frame_counts=(4, 8, 16),
        distillation_weight=weight,
    )
    expected = cross_entropy(HIGH) + weight * (kl(HIGH, LOW) + kl(HIGH, MIDDLE))
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["cross_entropy"].item() == pytest.approx(cross_entropy(HIGH), rel=1e-5)
    assert loss.parts["kl_4f"].item() == pytest.approx(kl(HIGH, LOW), rel=1e-5)
    assert loss.parts["kl_8f"].item() == pytest.approx(kl(HIGH, MIDDLE), rel=1e-5)
    assert torch.equal(loss.logits, torch.tensor(HIGH))


def test_the_teacher_learns_from_the_label_alone() -> None:
    low, middle, high = leaf(LOW), leaf(MIDDLE), leaf(HIGH)
    frame_flexible_loss(
        [low, middle, high], torch.tensor(LABELS), frame_counts=(4, 8, 16), distillation_weight=1.0
    ).total.backward()
    alone = leaf(HIGH)
    classification_loss(alone, torch.tensor(LABELS)).total.backward()
    assert torch.allclose(high.grad, alone.grad)
    # d KL(p_H || p_L) / d logits_L = (p_L - p_H) / rows
    for student, rows in ((low, LOW), (middle, MIDDLE)):
        by_hand = (torch.tensor([softmax(r) for r in rows]) - torch.tensor([softmax(r) for r in HIGH])) / 2
        assert torch.allclose(student.grad, by_hand, atol=1e-6)


def test_classification_loss_by_hand() -> None:
    loss = classification_loss(leaf(LOW), torch.tensor(LABELS))
    assert loss.total.item() == pytest.approx(cross_entropy(LOW), rel=1e-5)
    assert set(loss.parts) == {"cross_entropy"}


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    logits = [torch.tensor(rows, dtype=torch.float16) * 20 for rows in (LOW, HIGH)]
    loss = frame_flexible_loss(logits, torch.tensor(LABELS), frame_counts=(4, 16), distillation_weight=1.0)
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(loss.total)
