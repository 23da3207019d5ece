"""What is said of a run: the epoch's line, and warnings of faults that are made on purpose."""

import logging
from pathlib import Path

import pytest
import torch

from ffnrepro.models.tsm import TSM
from ffnrepro.watching import epoch_line, warn_of_norms, warnings, write_scalars

ROW = {
    "epoch": 3, "learning_rate": 0.01, "train_loss": 2.5, "train_cross_entropy": 2.0, "train_kl_4f": 0.3,
    "train_kl_8f": 0.2, "train_top1": 41.26, "train_top5": 70.0, "gradient_norm": 1.5, "skipped_steps": 0,
    "validation_top1_4f": 30.0, "validation_top5_4f": 60.0, "validation_top1_16f": 45.55, "validation_top5_16f": 75.0,
    "seconds": 2400.0, "frames_per_second": 1234.5, "data_wait": 12.4,
}  # fmt: skip


def test_the_epochs_line() -> None:
    assert epoch_line("ffn", 50, ROW) == (
        "ffn: epoch 3/50, loss 2.500 (cross entropy 2.000, kl 4f 0.300, kl 8f 0.200), top-1/top-5 train 41.3/70.0, "
        "validation 4f 30.0/60.0, 16f 45.5/75.0, learning rate 0.01, 1234 frames/s, 12 % waiting for data, 2400 s, "
        "31 h 20 min left"
    )


def divergences(*values: float) -> list[dict[str, float]]:
    return [ROW | {"train_kl_4f": value, "train_kl_8f": 1 / (1 + n)} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5), True),  # rises
        ((0.3, 0.3, 0.3, 0.3, 0.3), True),  # stands
        ((0.1, 0.4, 0.3, 0.2, 0.2), False),  # rises while the teacher learns, then falls
        ((0.5, 0.4, 0.3, 0.2, 0.1), False),
        ((0.1, 0.2, 0.3, 0.4), False),  # too early
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), False),  # said before
    ],
)
def test_a_divergence_that_does_not_fall(values: tuple[float, ...], warned: bool) -> None:
    found = warnings(divergences(*values), select_by="top1_16f")
    assert [text.split(" has not")[0] for text in found] == (["kl_4f"] if warned else [])


def test_clips_that_are_learned_by_heart() -> None:
    scores = [(90.0, 56.0), (97.0, 56.7), (99.0, 56.2), (99.5, 55.6), (99.9, 54.4)]
    history = [ROW | {"train_top1": train, "validation_top1_16f": score} for train, score in scores]
    said = [len(warnings(history[: n + 1], select_by="top1_16f")) for n in range(4)]
    assert said == [0, 0, 0, 1]
    (text,) = warnings(history[:4], select_by="top1_16f")
    assert "99.5 % while top1_16f on validation fell from 56.7 to 55.6" in text
    assert not [text for text in warnings(history, select_by="top1_16f") if "heart" in text]  # said before


def test_a_norm_in_the_wrong_mode(caplog: pytest.LogCaptureFixture) -> None:
    model = TSM(classes=3, depth=10, width=8, stem=3).train()
    with caplog.at_level(logging.WARNING):
        warn_of_norms(model, training=True)
        warn_of_norms(model.eval(), training=False)
    assert not caplog.text
    assert isinstance(model.layer1[0].bn1, torch.nn.BatchNorm2d)
    model.layer1[0].bn1.train()
    warn_of_norms(model, training=False)
    assert "1 BatchNorms (layer1.0.bn1, ...) are in the mode of training during evaluation" in caplog.text
    model.train()
    model.layer1[0].bn1.eval()
    warn_of_norms(model, training=True)
    assert "are in the mode of evaluation during training" in caplog.text


def test_curves_are_written(tmp_path: Path) -> None:
    write_scalars(tmp_path / "curves", ROW)
    assert len(list((tmp_path / "curves").iterdir())) == 1
