"""95 % intervals of top-1 accuracy, and of the difference between two rows of a table, by the bootstrap."""

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.integer[Any]]
"""(seeds, videos): 1 where the network of a seed predicts the video's class correctly, else 0; or a difference of two of these."""

RESAMPLES = 5000
"""Number of resamples. With other random numbers, the bounds of an interval change by about 2 % of its width."""


def bootstrap_interval(scores: Scores) -> tuple[float, float]:
    """95 % percentile interval of the mean of scores.

    Videos are drawn with replacement, as many as there are; a drawn video brings the scores of all seeds. With several
    seeds, the seeds are also drawn with replacement, as many as there are. For a difference, the scores of two networks are
    subtracted beforehand, so that a drawn video (and a drawn seed) counts for both: the comparison is paired.

    scipy's bootstrap draws either videos or seeds, not both; for one seed its intervals are the same (a test compares).

    The same scores give the same interval. For one seed it is the interval of a binomial proportion. With few
    seeds, their spread is underestimated (docs/method.md).

    Args:
        scores: scores of one network for each seed, or differences between the scores of two networks.

    Returns:
        Lower and upper bound in percent.
    """
    seeds, videos = scores.shape
    generator = np.random.default_rng(0)
    # Videos with equal scores are interchangeable, so it is enough to draw how many of each kind there are.
    kinds, counts = np.unique(scores, axis=1, return_counts=True)
    drawn = generator.multinomial(videos, counts / videos, size=RESAMPLES)
    means = drawn @ kinds.T / videos
    if seeds > 1:
        chosen = generator.integers(seeds, size=(RESAMPLES, seeds))
        means = np.take_along_axis(means, chosen, axis=1)
    low, high = np.percentile(100 * means.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
