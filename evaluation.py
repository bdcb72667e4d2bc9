"""Ranks of the next item in test sessions, and Recall@N and MRR@N from them (section 4).

Ranks come first, metrics second: `next_item_ranks` gives one rank for each prediction, `recall_mrr` any number of
cut-offs from them.  `interval` and `compare` say how much of a number is due to the choice of test sessions.
`evaluate_sessions_batch` and `evaluate_sessions` are the functions of the authors' release.
"""
from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gru4rec import column_of_item, session_parallel_minibatches
from gru4rec_pytensor.backends import blas_threads
from gru4rec_pytensor.checks import check_choice, check_whole_number, first_few
from gru4rec_pytensor.events import IdIndex, as_ids, session_of_event, session_order
from gru4rec_pytensor.floats import float_order
from gru4rec_pytensor.lists import Lists
from gru4rec_pytensor.prefix_scores import check_target_scores, count_above

CUT_OFF = 20  # the paper's
TIE_POLICIES = ('standard', 'conservative', 'median', 'tiebreaking')
HIT_RULES = ('rank<=cut_off', 'rank<cut_off')
NOISE = 1e-8  # the release's, added to scores by the policy 'tiebreaking'


# ---------------------------------------------------------------------------------------------------------------------
# Metrics from ranks
# ---------------------------------------------------------------------------------------------------------------------

def recall_mrr(ranks: np.ndarray, cut_off: int | Sequence[int] = CUT_OFF, hit_rule: str = 'rank<=cut_off') -> tuple:
    """Recall@N and MRR@N of ranks (section 4): the share of hits, and the mean of 1/rank with 0 for a miss.

    Parameters
    ----------
    ranks : float64 (n_predictions,), from 1
    cut_off : N, or a sequence of several
    hit_rule : 'rank<=cut_off', or 'rank<cut_off' as in the authors' releases of 2016 and 2017, whose @20 is an @19

    Examples
    --------
    >>> recall_mrr(np.array([1.0, 4.0, 20.0, 21.0]))
    (0.75, 0.325)
    """
    hits = hits_of(ranks, cut_off, hit_rule)
    recall, mrr = hits.mean(axis=1), (hits / ranks).mean(axis=1)
    return (recall, mrr) if np.ndim(cut_off) else (float(recall[0]), float(mrr[0]))


def ndcg(ranks: np.ndarray, cut_off: int | Sequence[int] = CUT_OFF, hit_rule: str = 'rank<=cut_off') -> Any:
    """NDCG@N of ranks: the mean of 1 / log2(1 + rank) with 0 for a miss, since each prediction has one relevant item.

    The arguments are those of `recall_mrr`.

    >>> ndcg(np.array([1.0, 3.0, 21.0, 21.0]))
    0.375
    """
    found = (hits_of(ranks, cut_off, hit_rule) / np.log2(1 + ranks)).mean(axis=1)
    return found if np.ndim(cut_off) else float(found[0])


def hits_of(ranks: np.ndarray, cut_off: int | Sequence[int], hit_rule: str = 'rank<=cut_off') -> np.ndarray:
    """Return which ranks are hits, bool (number of cut-offs, n_predictions)."""
    check_choice('hit_rule', hit_rule, HIT_RULES)
    for n in np.ravel(cut_off).tolist():
        check_whole_number('cut_off', n)
    limits = np.reshape(cut_off, (-1, 1))
    return ranks < limits if hit_rule == 'rank<cut_off' else ranks <= limits


def ranks_from_ties(greater: np.ndarray, equal: np.ndarray, tie_policy: str = 'standard') -> np.ndarray:
    """Ranks of targets, from the numbers of other items that score higher and that score the same.

    standard : 1 + greater;  conservative : 1 + greater + equal;  median : 1 + greater + equal / 2

    >>> [float(ranks_from_ties(np.array(2), np.array(3), policy)) for policy in ('standard', 'conservative', 'median')]
    [3.0, 6.0, 4.5]
    """
    share = {'standard': 0.0, 'conservative': 1.0, 'median': 0.5}[tie_policy]
    return 1.0 + greater + share * equal


# ---------------------------------------------------------------------------------------------------------------------
# Is A better than B?
# ---------------------------------------------------------------------------------------------------------------------

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

    >>> low, high = interval(np.array([1.0, 30.0, 2.0, 30.0]), np.array([0, 2, 4, 6, 8]))
    >>> low, high
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
    shapes = [np.shape(ranks)[-1:] for ranks in (ranks_a, ranks_b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'ranks_a and ranks_b: of {shapes[0][0]} and {shapes[1][0]} predictions, must be of the same')
    values = np.column_stack([gains(ranks_a, metric) - gains(ranks_b, metric) for metric in metrics])
    return dict(zip(metrics, paired_tests(*session_sums(values, offsets), seed)))


def paired_tests(sums: np.ndarray, counts: np.ndarray, seed: int) -> list[Comparison]:
    """Return a `Comparison` for each column of differences, which `session_sums` has summed by session."""
    rng, found = np.random.default_rng(seed), np.abs(sums.sum(axis=0))
    n_draws, n_as_large = 0, np.zeros(sums.shape[1])
    for size in draws_at_once(len(sums)):
        signs = 2.0 * rng.integers(2, size=(size, len(sums)), dtype=np.int8) - 1
        n_as_large += (np.abs(signs @ sums) >= found * (1 - 1e-9)).sum(axis=0)  # but for rounding
        n_draws += size
    p_values = (1 + n_as_large) / (1 + n_draws)
    low, high = bootstrap(sums, counts, seed)
    return [Comparison(*map(float, row)) for row in zip(sums.sum(axis=0) / counts.sum(axis=0), low, high, p_values)]


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
    ranks = np.atleast_2d(ranks).astype(np.float64)
    return np.mean([hits_of(of_seed, int(cut_off))[0] * GAINS[kind](of_seed) for of_seed in ranks], axis=0)


GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'recall': np.ones_like, 'mrr': np.reciprocal, 'ndcg': lambda ranks: 1 / np.log2(1 + ranks)}


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

    Parameters
    ----------
    sums : float64 (n_sessions, k), of the values of each session's predictions
    counts : float64 (n_sessions, 1) or (n_sessions, k), of the predictions

    Returns
    -------
    float64 (2, k), the 2.5% and the 97.5% percentile of sums over counts
    """
    rng, n = np.random.default_rng(seed), len(sums)
    means = []
    for size in draws_at_once(n):
        drawn = rng.integers(n, size=(size, n), dtype=np.int32)
        times = np.stack([np.bincount(of_draw, minlength=n) for of_draw in drawn]).astype(np.float64)
        with np.errstate(invalid='ignore'):  # a draw without any prediction has no mean
            means.append((times @ sums) / (times @ counts))
    return np.nanpercentile(np.concatenate(means), [2.5, 97.5], axis=0)


def draws_at_once(n_sessions: int, n_draws: int = 10_000) -> list[int]:
    """Return sizes of blocks of draws that take about 20 MB each, 10,000 draws in all."""
    block = max(1, 1_000_000 // n_sessions)
    return [min(block, n_draws - first) for first in range(0, n_draws, block)]


# ---------------------------------------------------------------------------------------------------------------------
# Models of your own
# ---------------------------------------------------------------------------------------------------------------------

class Recommender(Protocol):
    """Interface of a model that is ranked and compared: `fit`, and one of `predict_next` and `predict_next_batch`.

    `predict_next` is called with each event of a session in turn, session after session, but for the last one.  It
    returns a Series: the scores of the next item, higher is better, indexed by `predict_for_item_ids`, an array.  Where
    it has a parameter `timestamp`, it is also handed the time of that event.  See `BatchRecommender` for the other.

    An attribute `items_` with the ids of the items that the model knows is optional: without it `next_item_ranks` has
    to be told among which `items` to rank.

    Examples
    --------
    >>> class Again:
    ...     def fit(self, train):
    ...         self.items_, self.session_id = train.ItemId.unique(), None
    ...     def predict_next(self, session_id, input_item_id, predict_for_item_ids):
    ...         if session_id != self.session_id:
    ...             self.session_id, self.clicked = session_id, []
    ...         self.clicked.append(input_item_id)
    ...         return pd.Series([self.clicked.count(item) for item in predict_for_item_ids], predict_for_item_ids)
    >>> log, model = pd.DataFrame({'SessionId': [1, 1, 1, 1], 'ItemId': list('abaa'), 'Time': range(4)}), Again()
    >>> model.fit(log)
    >>> next_item_ranks(model, log).tolist()
    [2.0, 1.0, 1.0]
    """
    def fit(self, data: pd.DataFrame, /) -> Any: ...

    def predict_next(self, session_id: Any, input_item_id: Any, predict_for_item_ids: np.ndarray, /) -> pd.Series: ...


class BatchRecommender(Protocol):
    """A model with the method of the release's networks: `session_ids` and `input_item_ids` have `batch` entries each.

    `predict_next_batch` returns a DataFrame, a column for each session, indexed by `predict_for_item_ids`; if that is
    None, by all items that the model knows.
    """
    def fit(self, data: pd.DataFrame, /) -> Any: ...

    def predict_next_batch(self, session_ids: np.ndarray, input_item_ids: np.ndarray,
                           predict_for_item_ids: np.ndarray | None, batch: int, /) -> pd.DataFrame: ...


# ---------------------------------------------------------------------------------------------------------------------
# Ranks
# ---------------------------------------------------------------------------------------------------------------------

def one_model(function: Callable) -> Callable:
    """Keep threads from training the model, the first argument of `function`, until it returns: `GRU4Rec.in_use`."""
    @functools.wraps(function)
    def with_model(model: Any, *args: Any, **options: Any) -> Any:
        with model.in_use() if hasattr(model, 'in_use') else contextlib.nullcontext():
            return function(model, *args, **options)
    return with_model


@one_model
def next_item_ranks(model: Any, test_data: pd.DataFrame, items: ArrayLike | None = None, batch_size: int = 100,
                    tie_policy: str = 'standard', seed: int = 42, session_key: str = 'SessionId',
                    item_key: str = 'ItemId', time_key: str = 'Time', carry_states: bool = False,
                    nan_as_zero: bool = False, lists: Lists | None = None) -> np.ndarray:
    """Rank of each next item in the test sessions, after the model has seen the events before it.

    The rank is 1 + the number of other ranked items with a strictly higher score.  By `tie_policy` equal scores do not
    count ('standard'), count as higher ('conservative'), count half ('median'), or are parted by uniform noise of 1e-8
    that is added to every score ('tiebreaking', seeded; slower, since it needs all scores).

    Parameters
    ----------
    model : a trained `GRU4Rec`, a baseline, or any `Recommender` or `BatchRecommender`
    test_data : frame of events, not modified; every item must be known to the model
    items : ids of the items among which the target is ranked, the target itself added; when None, all of `items_`, or
        those that `predict_next_batch` returns if the model has no `items_`
    batch_size : parallel sessions of a `GRU4Rec`; another one changes last digits of scores, since BLAS rounds by the
        size of matrices, and so at most the order of items whose scores are that close
    carry_states : start from the hidden states of the last evaluation, as the release did; off by default
    nan_as_zero : take scores of NaN for 0; otherwise a ValueError names that of a next item, or any of a model of yours
    lists : to be filled with the items of highest score

    Returns
    -------
    float64 (n_events - n_sessions,), ordered by session, then time
    """
    check_choice('tie_policy', tie_policy, TIE_POLICIES)
    check_whole_number('batch_size', batch_size)
    rows, offsets = session_order(test_data, session_key, item_key, time_key)
    check_predictions(offsets)
    item_ids = test_data[item_key].to_numpy()[rows]
    if carry_states and not hasattr(model, 'next_states'):
        raise ValueError(f'carry_states=True: a {type(model).__name__} has no hidden states, only a GRU4Rec has')
    ranked = None if items is None else pd.unique(as_ids(items, 'items'))
    if ranked is not None and not len(ranked):
        raise ValueError('items=[]: there is nothing to rank the targets among; None ranks all training items')
    if lists:
        lists.begin(len(rows) - len(offsets) + 1, getattr(model, 'items_', None) if ranked is None else ranked)
    if hasattr(model, 'tie_counts') and tie_policy != 'tiebreaking' and not lists:
        greater, equal = model.tie_counts(item_ids, offsets, ranked)
        return ranks_from_ties(greater, equal, tie_policy)
    if carry_states:
        blocks = release_blocks(model, item_ids, offsets, ranked, batch_size)
    elif getattr(model, 'backend_', None) == 'jax' and tie_policy != 'tiebreaking' and not lists:
        return device_ranks(model, item_ids, offsets, ranked, batch_size, tie_policy)
    elif hasattr(model, 'next_states'):
        return network_ranks(model, item_ids, offsets, ranked, batch_size, tie_policy, seed, lists)
    elif hasattr(model, 'score_block'):
        blocks = baseline_blocks(model, item_ids, offsets, ranked)
    else:
        session_ids, times = (test_data[name].to_numpy()[rows] for name in (session_key, time_key))
        blocks = stepwise_blocks(model, item_ids, offsets, session_ids, times, ranked, nan_as_zero)
    ranks = np.empty(len(rows) - len(offsets) + 1)
    for block in blocks:
        if nan_as_zero:
            block = block._replace(**{name: np.nan_to_num(getattr(block, name), posinf=np.inf, neginf=-np.inf)
                                      for name in ('scores', 'low', 'high')})
        ranks[block.prediction] = block_ranks(block, tie_policy, seed, lists)
    return ranks


def check_predictions(offsets: np.ndarray) -> None:
    """ValueError unless one of the sessions that begin at `offsets` has an event after its first."""
    if offsets[-1] == len(offsets) - 1:
        raise ValueError('every test session has a single event: there is no next item to predict')


@one_model
def next_item_ranks_with_misses(model: Any, test_data: pd.DataFrame, items: ArrayLike | None = None,
                                batch_size: int = 100, tie_policy: str = 'standard', seed: int = 42,
                                session_key: str = 'SessionId', item_key: str = 'ItemId',
                                time_key: str = 'Time', lists: Lists | None = None) -> np.ndarray:
    """`next_item_ranks` of test sessions with items that training does not have: these are never recommended.

    The rank of such an item is infinite, and so is that of an item before which the session has no known one; the other
    ranks are those of the sessions without unknown items.  Papers that train on a part of the data, such as the most
    recent 1/64, count so.

    Returns
    -------
    float64 (n_events - n_sessions,), ordered by session, then time
    """
    rows, offsets = session_order(test_data, session_key, item_key, time_key)
    check_predictions(offsets)
    events, session = test_data.iloc[rows], session_of_event(offsets)
    if not hasattr(model, 'items_'):
        raise ValueError(f'a {type(model).__name__} has no items_: set them to the ids of its training '
                         'items, so that unknown ones can be told')
    known = np.flatnonzero(IdIndex(model.items_).get_indexer(events[item_key]) >= 0)
    has_rank = known[1:][session[known[1:]] == session[known[:-1]]]
    ranks = np.full(len(rows), np.inf)
    if len(has_rank):
        ranks[has_rank] = next_item_ranks(model, events.iloc[known], items, batch_size, tie_policy, seed, session_key,
                                          item_key, time_key, lists=lists)
    return np.delete(ranks, offsets[:-1])


class Block(NamedTuple):
    """Scores for some predictions, a row each, as the functions below hand them to `block_ranks`.

    prediction : int64 (b,), where the ranks belong
    scores : float (b, M or more); the first `n_ranked` columns are the ranked items
    low, high : float (b,), the scores that count as equal to the target's lie between them
    column : int64 (b,), the target's column among the ranked items, -1 where it is none of them
    bias : float (M,), to be added to every row of the scores; None for zero
    """
    prediction: np.ndarray
    scores: np.ndarray
    n_ranked: int
    low: np.ndarray
    high: np.ndarray
    column: np.ndarray
    bias: np.ndarray | None = None


def block_ranks(block: Block, tie_policy: str, seed: int, lists: Lists | None = None) -> np.ndarray:
    """Ranks of the targets of a block, float64 (b,); the items of highest score go into `lists`."""
    prediction, scores, n_ranked, low, high, column, bias = block
    check_target_scores(low, prediction)
    bias = np.zeros(n_ranked, scores.dtype) if bias is None else bias
    if lists:
        lists.take(prediction, scores, bias)
    if tie_policy != 'tiebreaking':
        greater, at_least = count_above(scores, bias, low, high)
        return ranks_from_ties(greater, at_least - greater - (column >= 0), tie_policy)
    ranks = np.empty(len(prediction))
    for row, number in enumerate(prediction):
        noise = np.random.default_rng([seed, number])
        noisy = scores[row, :n_ranked] + NOISE * noise.random(n_ranked)
        own = noisy[column[row]] if column[row] >= 0 else float(low[row]) + NOISE * noise.random()
        ranks[row] = 1 + (noisy > own).sum()
    return ranks


def network_ranks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, items: np.ndarray | None, batch_size: int,
                  tie_policy: str, seed: int, lists: Lists | None = None) -> np.ndarray:
    """Ranks of a `GRU4Rec`, from session-parallel mini-batches over all events of the test sessions.

    The hidden states follow from one another; the scores of different mini-batches do not, and are computed in as many
    threads as BLAS may use: each does its products alone, which keeps all of them busy while scores are compared.
    """
    index = model.item_indices(item_ids)
    candidates = None if items is None else model.item_indices(items)
    session = session_of_event(offsets)
    states, active = model.initial_states(batch_size), np.ones(batch_size, dtype=bool)
    ranks, output = np.empty(len(index) - len(offsets) + 1), (model.output_weights(), model.output_weights(candidates))

    def rank(steps: list[tuple]) -> None:
        for block in network_blocks(model, steps, candidates, output, tie_policy == 'tiebreaking'):
            ranks[block.prediction] = block_ranks(block, tie_policy, seed, lists)

    n_threads = blas_threads.allowed()
    with blas_threads.limited(1), ThreadPoolExecutor(n_threads) as pool:
        for batches in session_parallel_minibatches(offsets, batch_size, drop_tail=False):
            steps = []
            for position, starts in zip(*batches):
                stays = position[active] >= 0  # a lane that falls idle stays idle
                states = {name: H[stays] for name, H in states.items()}
                active = position >= 0
                position, starts = position[active], starts[active]
                H, states = model.next_states(index[position], starts, states)
                steps.append((position - session[position], H, index[position + 1]))
            list(pool.map(rank, [steps[k::n_threads] for k in range(n_threads)]))
    return ranks


def device_ranks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, items: np.ndarray | None, batch_size: int,
                 tie_policy: str) -> np.ndarray:
    """Ranks of a `GRU4Rec` whose weights are on a device, where everything is computed: only counts come back."""
    index = model.item_indices(item_ids)
    candidates = None if items is None else model.item_indices(items)
    session = session_of_event(offsets)
    states, ranks = model.initial_states(batch_size), np.empty(len(index) - len(offsets) + 1)
    for batches in session_parallel_minibatches(offsets, batch_size, drop_tail=False):
        active = batches.position >= 0
        position = np.where(active, batches.position, 0)  # an idle lane ranks anything
        states, (greater, equal, bad) = model.next_item_counts(index[position], batches.starts, index[position + 1],
                                                               states, candidates)
        prediction = (position - session[position])[active]
        check_target_scores(np.where(bad[active], np.nan, 0), prediction)
        ranks[prediction] = ranks_from_ties(greater[active], equal[active], tie_policy)
    return ranks


def network_blocks(model: Any, steps: list[tuple], candidates: np.ndarray | None, output: tuple,
                   activated: bool) -> Iterator[Block]:
    """Blocks of a `GRU4Rec` from (predictions, states of the top layer, item indices of the targets).

    `output` are the model's output weights of all items, and those of the candidates.
    Raw scores are compared, since the final activation is monotone: those whose activation equals the target's, as a
    float32, count as equal.  With `activated` the scores are what `predict_next_batch` gives.
    """
    (all_Wy, all_By), (Wy, By) = output
    column_of = column_of_item(candidates, model.n_items)
    memory = np.empty((max((len(H) for _prediction, H, _target in steps), default=0), len(By)), dtype=By.dtype)
    for prediction, H, target in steps:
        scores, column, lane = np.matmul(H, Wy.T, out=memory[:len(H)]), column_of[target], np.arange(len(target))
        own = np.where(column >= 0, scores[lane, column] + By[column],
                       (H * all_Wy[target]).sum(axis=1) + all_By[target])
        if activated:
            included = np.column_stack([np.ones(scores.shape, dtype=bool), column < 0])
            scores = model.activate(np.column_stack([scores + By, own]), included)
            own = scores[lane, np.where(column < 0, len(By), column)]
            yield Block(prediction, scores, len(By), own, own, column)
        else:
            yield Block(prediction, scores, len(By), *equally_activated(model.score_activation, own), column, By)


def release_blocks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, items: np.ndarray | None,
                   batch_size: int) -> Iterator[Block]:
    """Blocks of a `GRU4Rec` whose hidden states are carried over from the call before, as in the release.

    Lanes are told apart by the number of their session; one that begins with the number that it ended with in the
    last call of the same batch size is taken for the same session, and its state is not zeroed.
    """
    model.item_indices(item_ids)  # all known, or an error
    items = model.items_ if items is None else items
    session = session_of_event(offsets)
    current = item_ids[np.zeros(batch_size, dtype=np.int64)]
    for batches in session_parallel_minibatches(offsets, batch_size, drop_tail=False):
        for position in batches.position:
            active = position >= 0
            current[active] = item_ids[position[active]]
            target = item_ids[position[active] + 1]
            numbers = np.where(active, session[position], -1)
            scored = pd.Index(items).union(pd.unique(target), sort=False)
            frame = model.predict_next_batch(numbers, current, scored, batch_size)
            scores = frame.to_numpy().T[active]
            column = scored.get_indexer(target)
            low = scores[np.arange(len(scores)), column]
            yield Block(position[active] - numbers[active], np.ascontiguousarray(scores), len(items), low, low,
                        np.where(column < len(items), column, -1))


def baseline_blocks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, items: np.ndarray | None,
                    n_rows: int = 256) -> Iterator[Block]:
    """Blocks of a baseline: dense scores of the ranked items and the targets for consecutive predictions."""
    targets = model.item_indices(np.delete(item_ids, offsets[:-1]), 'test_data')
    candidates = None if items is None else model.item_indices(items, 'items')
    column_of = column_of_item(candidates, len(model.items_))
    n_ranked = len(model.items_ if candidates is None else candidates)
    for first in range(0, len(targets), n_rows):
        target = targets[first:first + n_rows]
        column, prediction = column_of[target], np.arange(first, first + len(target))
        others, column_of_other = np.unique(target[column < 0], return_inverse=True)  # are scored, but not ranked
        scored = None if candidates is None else model.items_[np.concatenate([candidates, others])]
        scores = model.score_block(item_ids, offsets, first, first + len(target), scored)
        own = column.copy()
        own[column < 0] = n_ranked + column_of_other
        low = scores[np.arange(len(target)), own]
        yield Block(prediction, scores, n_ranked, low, low, column)


def stepwise_blocks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, session_ids: np.ndarray, times: np.ndarray,
                    items: np.ndarray | None, with_nan: bool) -> Iterator[Block]:
    """Blocks of a `Recommender` or `BatchRecommender`, an event at a time; NaN among scores only if `with_nan`."""
    name, in_batches = type(model).__name__, hasattr(model, 'predict_next_batch')
    if not in_batches and not hasattr(model, 'predict_next'):
        raise TypeError(f'a {name} has neither predict_next nor predict_next_batch, so it cannot be evaluated')
    ranked = getattr(model, 'items_', None) if items is None else items
    if ranked is None and not in_batches:
        raise ValueError(f'items=None: a {name} has neither items_ nor predict_next_batch; pass the ids to rank among')
    method, kind = ('predict_next_batch', pd.DataFrame) if in_batches else ('predict_next', pd.Series)
    predict = getattr(model, method)
    takes_time = not in_batches and 'timestamp' in inspect.signature(predict).parameters
    for prediction, position in enumerate(np.delete(np.arange(len(item_ids)), offsets[1:] - 1)):
        event, target = slice(position, position + 1), item_ids[position + 1:position + 2]
        wanted = None if ranked is None else pd.unique(np.append(ranked, target))
        if in_batches:
            scores = predict(session_ids[event], item_ids[event], wanted, 1)
        else:
            now = {'timestamp': times[position]} if takes_time else {}
            scores = predict(session_ids[position], item_ids[position], wanted, **now)
        if not isinstance(scores, kind) or not scores.index.is_unique or in_batches and not len(scores.columns):
            raise ValueError(f'{name}.{method} returned a {type(scores).__name__}: it must be a {kind.__name__} of '
                             'pandas, indexed by item ids, each once')
        scores = scores.iloc[:, 0] if in_batches else scores
        scored = scores.index if wanted is None else pd.Index(wanted)
        column, places = scored.get_indexer(target), scores.index.get_indexer(scored)
        if (places < 0).any() or column[0] < 0:
            lacking = f'the next item, {first_few(target)}' if column[0] < 0 else first_few(scored[places < 0])
            raise ValueError(f'prediction {prediction}: the scores of {name} lack {lacking}')
        values = scores.to_numpy(np.float64)[places]
        if not with_nan and np.isnan(values).any():
            raise ValueError(f'prediction {prediction}: {name} scores {first_few(scored[np.isnan(values)])} with NaN')
        n_ranked = len(scored if ranked is None else ranked)
        yield Block(np.array([prediction]), values[None], n_ranked, values[column], values[column],
                    np.where(column < n_ranked, column, -1))


# ---------------------------------------------------------------------------------------------------------------------
# The release's functions
# ---------------------------------------------------------------------------------------------------------------------

def evaluate_sessions_batch(pr: Any, test_data: pd.DataFrame, items: ArrayLike | None = None,
                            cut_off: int | Sequence[int] = CUT_OFF, batch_size: int = 100, break_ties: bool = False,
                            session_key: str = 'SessionId', item_key: str = 'ItemId', time_key: str = 'Time', *,
                            tie_policy: str | None = None, hit_rule: str = 'rank<=cut_off', seed: int = 42,
                            carry_states: bool = False) -> tuple:
    """Recall@N and MRR@N of a network on test sessions, as the release's function of this name returns them.

    `break_ties` is short for the tie policy 'tiebreaking'; without either, 'standard'.  `carry_states` True keeps what
    the release did when it was called again: see `release_blocks`.  See `next_item_ranks` and `recall_mrr` for the
    other arguments.

    Returns
    -------
    (Recall@N, MRR@N)
    """
    if break_ties and tie_policy not in (None, 'tiebreaking'):
        raise ValueError(f'break_ties=True contradicts tie_policy={tie_policy!r}')
    policy = tie_policy or ('tiebreaking' if break_ties else 'standard')
    ranks = next_item_ranks(pr, test_data, items, batch_size, policy, seed, session_key, item_key, time_key,
                            carry_states)
    return recall_mrr(ranks, cut_off, hit_rule)


def evaluate_sessions(pr: Any, test_data: pd.DataFrame, train_data: pd.DataFrame, items: ArrayLike | None = None,
                      cut_off: int | Sequence[int] = CUT_OFF, session_key: str = 'SessionId', item_key: str = 'ItemId',
                      time_key: str = 'Time', *, tie_policy: str = 'tiebreaking', hit_rule: str = 'rank<=cut_off',
                      seed: int = 42) -> tuple:
    """Recall@N and MRR@N of a baseline on test sessions, as the release's function of this name returns them.

    The next item is ranked among the items of `train_data`, or `items`; ties are decided by noise, as in the release,
    unless `tie_policy` says otherwise, and scores of NaN count as 0, as there.

    Returns
    -------
    (Recall@N, MRR@N)
    """
    if items is None:
        items = train_data[item_key].unique()
    ranks = next_item_ranks(pr, test_data, items, 100, tie_policy, seed, session_key, item_key, time_key,
                            nan_as_zero=True)
    return recall_mrr(ranks, cut_off, hit_rule)


# ---------------------------------------------------------------------------------------------------------------------
# Fast ranks: raw scores that tie once activated
# ---------------------------------------------------------------------------------------------------------------------

def equally_activated(activation: Callable[[np.ndarray], np.ndarray],
                      scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest float32 whose activation is not below, or not above, that of each score.

    For a monotone activation these bound the scores that tie with it once activated: tanh maps many raw scores to one
    float32, and all of those above 9 to 1.  They are found by bisection over the float32 numbers, which whole numbers
    without gaps stand for in their order.
    """
    def place_of(x: np.ndarray) -> np.ndarray:
        return float_order(np.asarray(x, dtype=np.float32).view(np.int32)).astype(np.int64)

    def float_at(place: np.ndarray) -> np.ndarray:
        return float_order(place.astype(np.int32)).view(np.float32)

    sign = np.repeat([-1, 1], len(scores))  # both bounds at once: the smallest first, then the largest
    scores = np.tile(scores, 2)
    activated = sign * activation(scores)
    inside, outside = place_of(scores), place_of(sign * np.float32(np.inf))
    while (inside != outside).any():
        step = np.sign(outside - inside)
        middle = inside + (outside - inside + step) // 2  # rounded away from the inside, or else it would stay there
        reached = sign * activation(float_at(middle)) <= activated
        inside, outside = np.where(reached, middle, inside), np.where(reached, outside, middle - step)
    low, high = np.split(float_at(inside), 2)
    return low, high
