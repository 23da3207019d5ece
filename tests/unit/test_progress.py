"""Progress of a training: the log line of an epoch, and warnings of faults made on purpose."""

from pathlib import Path

import pytest

from ffnrepro.training.progress import epoch_line, warnings, write_scalars

ROW = {
    "epoch": 3, "learning_rate": 0.01, "train_loss": 2.5, "train_cross_entropy": 2.0, "train_kl_4f": 0.3,
    "train_kl_8f": 0.2, "train_top1": 41.26, "train_top5": 70.0, "gradient_norm": 1.5, "skipped_steps": 0,
    "validation_top1_4f": 30.0, "validation_top5_4f": 60.0, "validation_top1_16f": 45.55, "validation_top5_16f": 75.0,
    "seconds": 2400.0, "frames_per_second": 1234.5, "data_wait": 12.4,
}  # fmt: skip


def test_the_log_line_of_an_epoch() -> None:
    assert epoch_line("ffn", 50, ROW) == (
        "ffn: epoch 3/50, loss 2.500 (cross entropy 2.000, kl 4f 0.300, kl 8f 0.200), top-1/top-5 train 41.3/70.0, "
        "validation 4f 30.0/60.0, 16f 45.5/75.0, learning rate 0.01, 1234 frames/s, 12 % waiting for data, 2400 s, "
        "31 hours left"
    )
    assert epoch_line("ffn", 3, ROW).endswith("data, 2400 s")


def epochs(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [ROW | {"train_cross_entropy": loss, "train_kl_4f": kl, "train_kl_8f": 0.0} for loss, kl in pairs]


@pytest.mark.parametrize(
    ("pairs", "warned"),
    [
        # A student that stays at chance: its divergence is log(12) less the teacher's cross entropy.
        ([(2.48, 0.01), (2.3, 0.18)], True),
        ([(2.48, 0.01), (2.47, 0.02)], False),  # the teacher has learned nothing yet
        (
            [(2.48, 0.009), (2.3, 0.028), (2.2, 0.02), (2.1, 0.034), (1.3, 0.1)],
            False,
        ),  # a good run on the built-in data
        ([(4.0, 0.9), (2.5, 0.3)], False),
        ([(2.48, 0.01), (2.3, 0.18), (2.1, 0.38)], False),  # warned before
    ],
)
def test_a_student_that_does_not_learn(pairs: list[tuple[float, float]], warned: bool) -> None:
    found = warnings(epochs(*pairs), select_by="top1_16f")
    assert [text.split(" went")[0] for text in found] == (["kl_4f"] if warned else [])


def test_a_network_that_overfits() -> None:
    scores = [(90.0, 56.0), (97.0, 56.7), (99.0, 56.2), (99.5, 55.6), (99.9, 54.4)]
    history = [ROW | {"train_top1": train, "validation_top1_16f": score} for train, score in scores]
    counts = [len(warnings(history[: n + 1], select_by="top1_16f")) for n in range(4)]
    assert counts == [0, 0, 0, 1]
    (text,) = warnings(history[:4], select_by="top1_16f")
    assert "99.5 %, but top1_16f on validation fell from 56.7 in epoch 2 to 55.6 in epoch 4" in text
    assert not [
        text for text in warnings(history, select_by="top1_16f") if "overfits" in text
    ]  # warned before


def test_curves_are_written(tmp_path: Path) -> None:
    write_scalars(tmp_path / "curves", ROW)
    assert len(list((tmp_path / "curves").iterdir())) == 1
