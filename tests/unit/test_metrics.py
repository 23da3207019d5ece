"""Top-k against a sort."""

import torch

from ffnrepro.recipe.scoring import correct_within, top_k


def test_top_k_is_the_head_of_the_sorted_probabilities() -> None:
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    scores, classes = top_k(logits)
    for row in range(20):
        probabilities = (logits[row].exp() / logits[row].exp().sum()).tolist()
        order = sorted(range(9), key=lambda c: -probabilities[c])[:5]
        assert classes[row].tolist() == order
        assert torch.allclose(scores[row], torch.tensor([probabilities[c] for c in order]))


def test_fewer_classes_than_five() -> None:
    assert top_k(torch.randn(4, 3))[1].shape == (4, 3)


def test_correct_within_counts_by_hand() -> None:
    classes = torch.tensor([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
    labels = torch.tensor([2, 0, 1])
    assert [correct_within(classes, labels, k) for k in (1, 2, 3, 5)] == [1, 2, 3, 3]
