"""Ranks of the next item in test sessions, and Recall@N and MRR@N from them (section 4).

Ranks come first, metrics second: `next_item_ranks` gives one rank for each prediction, `recall_mrr` any number of
cut-offs from them.  `interval` and `compare`, of `gru4rec_pytensor.intervals`, say how much of a number is due to the
choice of test sessions.  `evaluate_sessions_batch` and `evaluate_sessions` are the functions of the authors' release.
"""
from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gru4rec import session_parallel_minibatches
from gru4rec_pytensor.backends import blas_threads
from gru4rec_pytensor.checks import check_choice, check_whole_number, first_few
from gru4rec_pytensor.events import IdIndex, as_ids, column_of_item, session_of_event, session_order
from gru4rec_pytensor.floats import float_order
from gru4rec_pytensor.intervals import (  # noqa: F401 - importable from here, too
    Comparison,
    bootstrap,
    compare,
    gains,
    holm,
    interval,
    paired_tests,
    session_sums,
)
from gru4rec_pytensor.lists import Lists
from gru4rec_pytensor.prefix_scores import Baseline, Block, check_target_scores

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
# Models of your own
# ---------------------------------------------------------------------------------------------------------------------

class Recommender(Protocol):
    """Interface of a model that is ranked and compared: `fit`, and one of `predict_next` and `predict_next_batch`.

    `predict_next` is called with each event of a session in turn, session after session, but for the last one.  It
    returns a Series: the scores of the next item, higher is better, indexed by `predict_for_item_ids`, an array.  Where
    it has a parameter `timestamp`, it is also handed the time of that event.  See `BatchRecommender` for the other.

    An attribute `items_` with the ids of the items that the model knows is optional: without it `next_item_ranks` has
    to be told among which `items` to rank.

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

    Returns float64 (n_events - n_sessions,), ordered by session, then time.
    """
    check_choice('tie_policy', tie_policy, TIE_POLICIES)
    check_whole_number('batch_size', batch_size)
    rows, offsets = session_order(test_data, session_key, item_key, time_key)
    check_predictions(offsets)
    item_ids = test_data[item_key].to_numpy()[rows]
    is_network, is_baseline = hasattr(model, 'next_states'), isinstance(model, Baseline)
    if carry_states and not is_network:
        raise ValueError(f'carry_states=True: a {type(model).__name__} has no hidden states, only a GRU4Rec has')
    ranked = None if items is None else pd.unique(as_ids(items, 'items'))
    if ranked is not None and not len(ranked):
        raise ValueError('items=[]: there is nothing to rank the targets among; None ranks all training items')
    if ranked is not None and (is_network or is_baseline):
        distinct = pd.unique(model.item_indices(ranked))  # since an id may be written in several ways
        ranked = model.items_[distinct]
    if lists:
        lists.begin(len(rows) - len(offsets) + 1, getattr(model, 'items_', None) if ranked is None else ranked)
    counts_suffice = tie_policy != 'tiebreaking' and not lists
    if is_network:
        index, candidates = model.item_indices(item_ids), None if ranked is None else model.item_indices(ranked)
        if not carry_states and counts_suffice and model.backend_ == 'jax':
            greater, equal = device_counts(model, index, offsets, candidates, batch_size)
            return ranks_from_ties(greater, equal, tie_policy)
        if not carry_states:
            return network_ranks(model, index, offsets, candidates, batch_size, tie_policy, seed, lists)
        blocks = release_blocks(model, model.items_[index], offsets, ranked, batch_size)
    elif is_baseline:
        model.item_indices(item_ids, 'test_data')  # or else an error that says so
        if counts_suffice:
            greater, equal = model.tie_counts(item_ids, offsets, ranked)
            return ranks_from_ties(greater, equal, tie_policy)
        blocks = model.blocks(item_ids, offsets, ranked)
    else:
        session_ids, times = (test_data[name].to_numpy()[rows] for name in (session_key, time_key))
        blocks = stepwise_blocks(model, item_ids, offsets, session_ids, times, ranked, nan_as_zero)
    ranks = np.empty(len(rows) - len(offsets) + 1)
    for block in blocks:
        if nan_as_zero:
            for scores in (block.scores, block.low, block.high):
                scores[np.isnan(scores)] = 0
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


def block_ranks(block: Block, tie_policy: str, seed: int, lists: Lists | None = None) -> np.ndarray:
    """Ranks of the targets of a block, float64 (b,); the items of highest score go into `lists`."""
    if lists:
        lists.take(block.prediction, block.scores, block.bias)
    if tie_policy != 'tiebreaking':
        return ranks_from_ties(*block.tie_counts(), tie_policy)
    check_target_scores(block.low, block.prediction)
    n_ranked, ranks = len(block.bias), np.empty(len(block.prediction))
    for row, (number, column) in enumerate(zip(block.prediction, block.column)):
        noise = np.random.default_rng([seed, number])
        noisy = block.scores[row, :n_ranked] + NOISE * noise.random(n_ranked)
        own = noisy[column] if column >= 0 else float(block.low[row]) + NOISE * noise.random()
        ranks[row] = 1 + (noisy > own).sum()
    return ranks


def network_ranks(model: Any, index: np.ndarray, offsets: np.ndarray, candidates: np.ndarray | None, batch_size: int,
                  tie_policy: str, seed: int, lists: Lists | None) -> np.ndarray:
    """Ranks of a `GRU4Rec`, from session-parallel mini-batches over all events of the test sessions.

    The hidden states follow from one another; the scores of different mini-batches do not, and are computed in as many
    threads as BLAS may use: each does its products alone, which keeps all of them busy while scores are compared.
    Raw scores are compared, since the final activation is monotone: those whose activation equals the target's, as a
    float32, count as equal.  Noise is added to what `predict_next_batch` gives.
    """
    session, column_of = session_of_event(offsets), column_of_item(candidates, model.n_items)
    (all_Wy, all_By), (Wy, By) = model.output_weights(), model.output_weights(candidates)
    ranks = np.empty(len(index) - len(offsets) + 1)

    def rank(steps: list[tuple]) -> None:
        memory = np.empty((len(steps[0][1]), len(By)), dtype=By.dtype)  # for the first step, which has the most lanes
        for prediction, H, target in steps:
            scores, column, lane = np.matmul(H, Wy.T, out=memory[:len(H)]), column_of[target], np.arange(len(target))
            own = np.where(column >= 0, scores[lane, column] + By[column],
                           (H * all_Wy[target]).sum(axis=1) + all_By[target])
            if tie_policy == 'tiebreaking':
                included = np.column_stack([np.ones(scores.shape, dtype=bool), column < 0])
                scores = model.activate(np.column_stack([scores + By, own]), included)
                block = Block.of(prediction, scores, len(By), np.where(column < 0, len(By), column))
            else:
                block = Block(prediction, scores, By, *equally_activated(model.score_activation, own), column)
            ranks[prediction] = block_ranks(block, tie_policy, seed, lists)

    states, active = model.initial_states(batch_size), np.ones(batch_size, dtype=bool)
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
            list(pool.map(rank, [steps[k::n_threads] for k in range(min(n_threads, len(steps)))]))
    return ranks


def device_counts(model: Any, index: np.ndarray, offsets: np.ndarray, candidates: np.ndarray | None,
                  batch_size: int) -> np.ndarray:
    """Count the items above and beside each target on the device of a `GRU4Rec`: int64 (2, n_predictions)."""
    session, states = session_of_event(offsets), model.initial_states(batch_size)
    counts = np.empty((2, len(index) - len(offsets) + 1), dtype=np.int64)
    for batches in session_parallel_minibatches(offsets, batch_size, drop_tail=False):
        active = batches.position >= 0
        position = np.where(active, batches.position, 0)  # an idle lane ranks anything
        states, (greater, equal, bad) = model.next_item_counts(index[position], batches.starts, index[position + 1],
                                                               states, candidates)
        prediction = (position - session[position])[active]
        check_target_scores(np.where(bad[active], np.nan, 0), prediction)
        counts[:, prediction] = greater[active], equal[active]
    return counts


def release_blocks(model: Any, item_ids: np.ndarray, offsets: np.ndarray, items: np.ndarray | None,
                   batch_size: int) -> Iterator[Block]:
    """Blocks of a `GRU4Rec` whose hidden states are carried over from the call before, as in the release.

    Lanes are told apart by the number of their session; one that begins with the number that it ended with in the
    last call of the same batch size is taken for the same session, and its state is not zeroed.
    """
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
            yield Block.of(position[active] - numbers[active], frame.to_numpy().T[active], len(items),
                           scored.get_indexer(target))


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
        yield Block.of(np.array([prediction]), values[None], len(scored if ranked is None else ranked), column)


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
