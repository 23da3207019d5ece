"""Segment sampling against a naive loop over real intervals in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from ffnrepro.recipe.sampling import segment_indices

SIZES = [(n, t) for t in (1, 3, 4, 8, 16) for n in (1, 2, 5, 8, 15, 16, 17, 46, 117)]


def segment(i, n, t):
    """Whole frames of segment i, by the definition."""
    low, high = Fraction(i * n, t), Fraction((i + 1) * n, t)
    return [j for j in range(n) if low <= j < high]


def test_evaluation_takes_the_centre_of_each_segment():
    for n, t in SIZES:
        naive = [int(Fraction(n, t) / 2 + Fraction(n, t) * i) for i in range(t)]
        chosen = segment_indices(n, t)
        assert chosen.dtype == np.int64
        assert chosen.tolist() == naive, (n, t)


@pytest.mark.parametrize(("n", "t"), [(n, t) for n, t in SIZES if n >= t])
def test_training_reaches_every_frame_of_every_segment_and_no_other(n, t):
    generator = np.random.default_rng(7)
    draws = np.stack([segment_indices(n, t, generator) for _ in range(60 * (n // t + 1))])
    assert draws.dtype == np.int64
    for i in range(t):
        assert sorted(set(draws[:, i].tolist())) == segment(i, n, t)
    assert set(draws.ravel().tolist()) == set(range(n))
    assert (np.diff(draws, axis=1) > 0).all()


def test_training_is_uniform_within_a_segment():
    generator = np.random.default_rng(3)
    draws = np.stack([segment_indices(46, 4, generator) for _ in range(6000)])
    for i in range(4):
        frames = segment(i, 46, 4)
        counts = np.array([(draws[:, i] == frame).sum() for frame in frames])
        expected = 6000 / len(frames)
        # 12 cells at most: chi-square of 11 degrees of freedom exceeds 31.3 once in a thousand.
        assert ((counts - expected) ** 2 / expected).sum() < 31.3


@pytest.mark.parametrize("generator", [None, np.random.default_rng(0)])
def test_too_few_frames_repeat_evenly_and_in_order(generator):
    assert segment_indices(1, 16, generator).tolist() == [0] * 16
    assert segment_indices(8, 16, generator).tolist() == [i // 2 for i in range(16)]
    chosen = segment_indices(15, 16, generator)
    assert (np.diff(chosen) >= 0).all()
    assert set(chosen.tolist()) == set(range(15))
    for n in (2, 3, 5, 7):
        counts = np.bincount(segment_indices(n, 16, generator), minlength=n)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("t", [1, 4, 8, 16])
@pytest.mark.parametrize("generator", [None, np.random.default_rng(0)])
def test_exactly_as_many_frames_give_each_once(t, generator):
    assert segment_indices(t, t, generator).tolist() == list(range(t))


def test_a_seed_gives_its_frames():
    first, again, other = (segment_indices(46, 8, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("n", "t"), [(0, 4), (-1, 4), (4, 0)])
def test_nothing_to_choose_is_refused(n, t):
    with pytest.raises(ValueError, match="at least 1"):
        segment_indices(n, t)
