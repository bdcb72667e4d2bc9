"""Is A better than B?  Intervals of a metric over test sessions, and comparisons of two models on the same sessions."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gru4rec_pytensor.checks import check_whole_number

N_DRAWS = 10_000  # of test sessions for an interval, of exchanges of two models for a p-value
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'recall': np.ones_like, 'mrr': np.reciprocal, 'ndcg': lambda ranks: 1 / np.log2(1 + ranks)}


class Comparison(NamedTuple):
    """Difference of a metric between two models, its 95% interval over test sessions, and the two-sided p-value."""
    difference: float
    low: float
    high: float
    p: float


def interval(ranks: np.ndarray, offsets: np.ndarray, metric: str = 'recall@20', seed: int = 42) -> tuple[float, float]:
    """95% interval of a metric over the choice of test sessions: a bootstrap of sessions, percentiles of 10,000 draws.

    The predictions of a session depend on one another, so that sessions are drawn and not predictions.

    Parameters
    ----------
    ranks : float (n_predictions,) as `next_item_ranks` returns them, or (n_seeds, n_predictions) of one model trained
        with several seeds, for the interval of the mean over these
    offsets : int64 (n_sessions + 1,), as `events.session_order` returns them of the test data
    metric : 'recall@N', 'mrr@N' or 'ndcg@N'
    seed : of the draws; two calls with the same one draw the same sessions

    >>> interval(np.array([1.0, 30.0, 2.0, 30.0]), np.array([0, 2, 4, 6, 8]))
    (0.0, 1.0)
    """
    low, high = bootstrap(*session_sums(gains(ranks, metric)[:, None], offsets), seed)[:, 0].tolist()
    return low, high


def compare(ranks_a: np.ndarray, ranks_b: np.ndarray, offsets: np.ndarray,
            metrics: Sequence[str] = ('recall@20', 'mrr@20'), seed: int = 42) -> dict[str, Comparison]:
    """Compare two models on the same test sessions, session by session: `Comparison` of A minus B, by metric.

    The interval is that of `interval`.  The p-value is from a permutation test, which swaps A and B in randomly chosen
    sessions: the share of 10,000 such swaps after which the difference is at least as large.

    >>> a, b = np.array([1.0, 2.0, 1.0, 1.0]), np.array([2.0, 2.0, 4.0, 1.0])
    >>> compare(a, b, np.array([0, 3, 6]), ['mrr@20'])['mrr@20'].difference
    0.3125
    """
    n_a, n_b = (np.shape(ranks)[-1] for ranks in (ranks_a, ranks_b))
    if n_a != n_b:
        raise ValueError(f'ranks_a and ranks_b: of {n_a} and {n_b} predictions, must be of the same')
    values = np.column_stack([gains(ranks_a, metric) - gains(ranks_b, metric) for metric in metrics])
    return dict(zip(metrics, paired_tests(*session_sums(values, offsets), seed)))


def paired_tests(sums: np.ndarray, counts: np.ndarray, seed: int) -> list[Comparison]:
    """Return a `Comparison` for each column of differences, which `session_sums` has summed by session."""
    rng, total = np.random.default_rng(seed), sums.sum(axis=0)
    n_as_large = np.zeros(len(total))
    for size in draws_at_once(len(sums)):
        signs = 2.0 * rng.integers(2, size=(size, len(sums)), dtype=np.int8) - 1
        n_as_large += (np.abs(signs @ sums) >= np.abs(total) * (1 - 1e-9)).sum(axis=0)  # but for rounding
    p_values = (1 + n_as_large) / (1 + N_DRAWS)
    low, high = bootstrap(sums, counts, seed)
    return [Comparison(*map(float, row)) for row in zip(total / counts.sum(axis=0), low, high, p_values)]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Correct the p-values of several comparisons, so that all are right at once, by Holm's step-down method.

    >>> holm(np.array([0.01, 0.5, 0.02])).tolist()
    [0.03, 0.5, 0.04]
    """
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(corrected, 1.0)[np.argsort(order)]


def gains(ranks: np.ndarray, metric: str) -> np.ndarray:
    """Return what each prediction adds to a metric such as 'mrr@20', mean over seeds, float64 (n_predictions,)."""
    kind, _, cut_off = metric.partition('@')
    if kind not in GAINS or not cut_off.isdecimal():
        raise ValueError(f"metric={metric!r}: must be {', '.join(f'{name}@N' for name in GAINS)}")
    check_whole_number('cut_off', int(cut_off))
    ranks = np.atleast_2d(ranks).astype(np.float64)
    return ((ranks <= int(cut_off)) * GAINS[kind](ranks)).mean(axis=0)


def session_sums(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum values (n_predictions, k) over each session; return (n_sessions, k), and the predictions of each as a column.
    """
    lengths = np.diff(offsets) - 1
    lengths = lengths[lengths > 0]
    if lengths.sum() != len(values):
        raise ValueError(f'offsets: the sessions have {lengths.sum()} predictions, and there are {len(values)} ranks')
    return np.add.reduceat(values, np.cumsum(lengths) - lengths, axis=0), lengths[:, None].astype(np.float64)


def bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw as many sessions as there are, with replacement, 10,000 times; return the 95% interval of the means.

    `sums` (n_sessions, k) are of the values of each session's predictions, `counts` (n_sessions, 1) or (n_sessions, k)
    the numbers of these.  Returns float64 (2, k), the 2.5% and the 97.5% percentile of sums over counts.
    """
    rng, n = np.random.default_rng(seed), len(sums)
    means = []
    for size in draws_at_once(n):
        drawn = rng.integers(n, size=(size, n), dtype=np.int32)
        times = np.stack([np.bincount(of_draw, minlength=n) for of_draw in drawn]).astype(np.float64)
        with np.errstate(invalid='ignore'):  # a draw without any prediction has no mean
            means.append((times @ sums) / (times @ counts))
    return np.nanpercentile(np.concatenate(means), [2.5, 97.5], axis=0)


def draws_at_once(n_sessions: int) -> list[int]:
    """Return sizes of blocks of draws that take about 20 MB each, `N_DRAWS` in all."""
    block = max(1, 1_000_000 // n_sessions)
    return [min(block, N_DRAWS - first) for first in range(0, N_DRAWS, block)]
