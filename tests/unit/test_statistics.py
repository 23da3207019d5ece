"""Intervals against values by hand, against other implementations of the bootstrap, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from ffnrepro import statistics
from ffnrepro.statistics import Scores, bootstrap_interval


def scores(*rows: list[int]) -> Scores:
    return np.array(rows, dtype=np.int8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # By hand, from a table of the binomial distribution: n 100, p 0.5 and p 0.1.
        (scores([1] * 50 + [0] * 50), (40, 60)),
        (scores([1] * 10 + [0] * 90), (5, 16)),
        # As a difference: 10 videos that only the second network gets right, or only the first.
        (scores([0] * 60 + [1] * 40) - scores([0] * 50 + [1] * 50), (-16, -5)),
        (scores([1] * 100), (100, 100)),
        # Two seeds, of which one is always right: both drawn are right, or wrong, with a probability of 1/4.
        (scores([1] * 100, [0] * 100), (0, 100)),
        # Of two networks with the same answers the difference is 0, whatever the spread of videos and seeds.
        (scores([1] * 100, [0, 1] * 50) - scores([1] * 100, [0, 1] * 50), (0, 0)),
    ],
)
def test_intervals_by_hand(values: Scores, expected: tuple[float, float]) -> None:
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.1)
    assert bootstrap_interval(values) == bootstrap_interval(values[:, ::-1])


def test_a_paired_difference_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(400) < 0.5
    second = np.where(rng.random(400) < 0.2, rng.random(400) < 0.9, first)
    reference = stats.bootstrap(
        (second, first), lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        paired=True, method="percentile", n_resamples=4000, rng=rng,
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(second[None].astype(np.int8) - first[None].astype(np.int8))
    np.testing.assert_allclose(found, [100 * reference.low, 100 * reference.high], atol=0.3)


def test_seeds_and_videos_are_drawn_as_in_a_naive_loop() -> None:
    rng = np.random.default_rng(2)
    values = (rng.random((3, 200)) < [[0.4], [0.5], [0.7]]).astype(np.int8)
    means = [values[rng.integers(3, size=3)][:, rng.integers(200, size=200)].mean() for _ in range(20_000)]
    np.testing.assert_allclose(bootstrap_interval(values), 100 * np.percentile(means, [2.5, 97.5]), atol=0.8)


def draw(rng: np.random.Generator, accuracy: float, seeds: int, spread: float, difficulty: Scores) -> Scores:
    """Scores of a network: some videos are hard for all seeds, and seeds differ by `spread`."""
    levels = accuracy + spread * rng.standard_normal((seeds, 1))
    own = rng.random((seeds, len(difficulty)))
    return (np.where(rng.random(len(difficulty)) < 0.5, difficulty, own) < levels).astype(np.int8)


@pytest.mark.parametrize(("experiments", "seeds", "spread"), [(1000, 1, 0.0), (300, 3, 0.02)])
def test_an_interval_covers_the_truth_in_95_of_100_experiments(
    monkeypatch: pytest.MonkeyPatch, experiments: int, seeds: int, spread: float
) -> None:
    """Of 400 videos (standard error 2.5 points), the number itself and the difference of two rows."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(3)
    covered = np.zeros(2)
    for _ in range(experiments):
        difficulty = rng.random(400)
        first, second = (draw(rng, level, seeds, spread, difficulty) for level in (0.5, 0.56))
        for i, (values, truth) in enumerate([(first, 50), (second - first, 6)]):
            low, high = bootstrap_interval(values)
            covered[i] += low <= truth <= high
    # The coverage itself has a standard error of about one point.
    coverage = covered / experiments
    assert coverage.min() > 0.92, coverage
    assert coverage.max() < 0.99, coverage
