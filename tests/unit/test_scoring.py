"""Logits, the classes of a prediction and accuracy against sums by hand; which epoch is kept."""

import pytest
import torch

from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.scoring import best_classes, clip_logits, correct_within
from ffnrepro.recipe.selection import is_better, selection_score


def test_logits_are_the_networks_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    network = TSM(classes=4, depth=10, width=8, stem=3).train()
    torch.nn.init.normal_(network.fc.weight)
    pixels = {frames: torch.randint(0, 256, (2, 3, frames, 16, 16), dtype=torch.uint8) for frames in (2, 4)}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logits = clip_logits(network, pixels)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    for frames, pixel in pixels.items():
        with torch.no_grad():
            expected = network.eval()((pixel / 255 - mean) / deviation)
        torch.testing.assert_close(logits[frames], expected, rtol=1e-4, atol=1e-5)
        assert not logits[frames].requires_grad
    assert list(logits) == [2, 4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_best_classes_are_the_head_of_a_sort() -> None:
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    classes = best_classes(logits)
    for row in range(20):
        assert classes[row].tolist() == sorted(range(9), key=lambda c: -logits[row, c].item())[:5]
    assert best_classes(logits[:, :3]).shape == (20, 3)


def test_correct_within_counts_by_hand() -> None:
    classes = torch.tensor([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
    labels = torch.tensor([2, 0, 1])
    assert [correct_within(classes, labels, k) for k in (1, 2, 3, 5)] == [1, 2, 3, 3]


def test_the_first_best_epoch_at_the_highest_frame_count_is_kept() -> None:
    scores = {"top1_4f": 90.0, "top1_16f": 41.0, "top5_16f": 99.0, "top1_8f": 80.0}
    assert selection_score(scores, (16, 4, 8)) == 41.0
    kept = None
    for epoch, score in enumerate([0.0, 40.0, 41.0, 41.0, 30.0]):
        if is_better(score, kept and kept[0]):
            kept = (score, epoch)
    assert kept == (41.0, 2)
    assert is_better(0.0, None)
    assert not is_better(0.0, 0.0)
    with pytest.raises(KeyError):
        selection_score({"top1_4f": 90.0}, (4, 16))
