"""The baselines of the paper (arXiv 1511.06939, section 4.1): POP, S-POP, Item-KNN and BPR-MF.

A session is a sequence of clicked items. Given its first events, the prefix, a recommender scores every item, and the
item that is clicked next should rank high:

    model = ItemKNN(n_sims=100, lmbd=20)
    model.fit(train)                                               # a DataFrame with SessionId, ItemId, Time
    scores = model.predict_next(session_id, item_id, candidates)   # a Series: candidate -> score

Each class says in one small method how it scores prefixes; `gru4rec_pytensor.prefix_scores` has what they share.
Simple methods of later papers stand in `gru4rec_pytensor.session_knn` and can be imported from here, too.

`fit` checks what it is given: an argument out of range, a missing column or id, or a frame without events is a
ValueError; an argument of the wrong type is a TypeError. A model that is not trained yet gives a RuntimeError.
"""
from __future__ import annotations

import heapq
from dataclasses import KW_ONLY, dataclass
from typing import Self

import numba
import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from gru4rec_pytensor.checks import check_choice, check_flag, check_number, check_whole_number
from gru4rec_pytensor.events import check_events, check_times, index_by_appearance, sorted_codes
from gru4rec_pytensor.prefix_scores import (
    Baseline,
    Prefixes,
    SparseBaseline,
    count_items,
    count_pairs,
    in_threads,
    number_values,
)
from gru4rec_pytensor.session_knn import SKNN, STAN, VSKNN, VSTAN, Markov

__all__ = ['BPR', 'SKNN', 'STAN', 'VSKNN', 'VSTAN', 'Baseline', 'CoOccurence', 'Cosine', 'ItemKNN', 'Markov',
           'PersonalPop', 'Pop', 'Prefixes', 'RandomPred', 'SessionPop', 'SparseBaseline']

# Sums may be reordered, so that they vectorise, but NaN and infinity keep their meaning: they show a diverged model.
FAST_SUMS = {'reassoc', 'contract', 'nsz'}


@dataclass(eq=False)
class RandomPred(Baseline):
    """Random scores, for the chance level.

    In prediction k, since `fit` or of a test set, item i scores the uniform number (k, i) of a stream that `seed` alone
    decides.
    """
    seed: int = 42
    item_key: str = 'ItemId'

    def fit(self, data: pd.DataFrame) -> Self:
        """Number the items of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('seed', self.seed, 0)
        self.learn_items(data)
        return self

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        # Philox counts its states, each good for four numbers, so any row can be drawn without those before it.
        n_states = -(-len(self.items_) // 4)
        stream = np.random.Generator(np.random.Philox(self.seed).advance(prefixes.number * n_states))
        return stream.random((len(prefixes.last), 4 * n_states))[:, :len(self.items_)][:, items]


@dataclass(eq=False)
class Pop(SparseBaseline):
    """POP (section 4.1): the most popular items of the training set, whatever the session.

    score(i) = supp_i / (supp_i + 1) for the `top_n` items with the largest support, 0 for the others. Of items with
    equal support at the cut, those are kept that the authors' release keeps, which depends on all supports: it sorts
    the items by id, then by support with a sort that is not stable.

    Parameters
    ----------
    support_by_key : supp_i is the number of distinct values of this column, 'SessionId' say, among the events of item
        i; when None, the number of these events

    Attributes
    ----------
    popularity_ : float64 (n_items,), the scores

    >>> pop = Pop().fit(pd.DataFrame({'ItemId': ['a', 'b', 'a', 'a']}))
    >>> pop.predict_next(session_id=1, input_item_id='b', predict_for_item_ids=['a', 'b']).tolist()
    [0.75, 0.5]
    """
    top_n: int = 100
    item_key: str = 'ItemId'
    support_by_key: str | None = None

    def fit(self, data: pd.DataFrame) -> Self:
        """Count the support of the items of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('top_n', self.top_n)
        items = self.learn_items(data)
        if self.support_by_key is None:
            support = np.bincount(items)
        else:
            values, _ = number_values(data, self.support_by_key)
            support = np.diff(count_pairs(items, values).indptr)
        by_id = np.argsort(pd.factorize(self.items_, sort=True)[0])
        # Of this type NumPy has but one quicksort, which old pandas used; those of float64 depend on the processor.
        by_support = np.argsort(support[by_id].astype(np.longdouble), kind='quicksort')
        top = by_id[by_support[::-1][:self.top_n]]
        self.popularity_ = np.zeros(len(support))
        self.popularity_[top] = support[top] / (support[top] + 1)
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return self.popularity_, csr_array((len(prefixes.ends), len(self.items_)))


@dataclass(eq=False)
class SessionPop(Pop):
    """S-POP (section 4.1): the most popular items of the current session.

    score(i) = (clicks on i in the session so far) + supp_i / (supp_i + 1), the second term for the `top_n` most popular
    items of the training set only. It is below 1: all it does is break ties by global popularity.
    """
    top_n: int = 1000
    _block = 256  # a prefix may have thousands of items, and all of them are held at once

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        n = len(prefixes.ends)
        new_clicks = count_items(prefixes.codes, prefixes.new, prefixes.ends, len(self.items_))
        first_of_session = np.searchsorted(prefixes.starts, prefixes.starts)
        in_session_so_far = count_items(np.arange(n), first_of_session, np.arange(n) + 1, n)  # (n, n), 0 and 1
        return self.popularity_, in_session_so_far @ new_clicks


PersonalPop = SessionPop  # its older name


@dataclass(eq=False)
class ItemKNN(SparseBaseline):
    """Item-KNN (section 4.1): "others who viewed this item also viewed these ones".

    score(j) = sim(i, j), where i is the last item of the session and

        sim(i, j) = cooc(i, j) / ((supp_i + lmbd)^alpha (supp_j + lmbd)^(1 - alpha)),    i != j.

    alpha = 0.5 gives the paper's cosine; `lmbd` lowers the similarities of rarely visited items, which are high by
    coincidence. The paper counts sessions: cooc(i, j) are those with both items. We count events like the authors'
    release: supp_i are the events of i, cooc(i, j) the events of i in sessions that contain j, so repeated clicks on i
    count there and those on j do not. Only the `n_sims` largest similarities of each i are kept (of equal ones at the
    cut, those of the items that appeared first), the others are 0.

    Parameters
    ----------
    time_key : accepted for the release's interface. Co-occurrence does not depend on the order of events; `CoOccurence`
        has variants that do

    Attributes
    ----------
    similarities_ : float64 csr_array (n_items, n_items), row i holds sim(i, j)
    """
    n_sims: int = 100
    lmbd: float = 20
    alpha: float = 0.5
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'
    normalize = True  # this and the next are no arguments here, but of CoOccurence
    seq_only = later_only = assume_indexed = False

    def fit(self, data: pd.DataFrame) -> Self:
        """Find the neighbours of the items of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('n_sims', self.n_sims)
        check_number('lmbd', self.lmbd)
        check_number('alpha', self.alpha, 0, 1)
        for name in ('normalize', 'seq_only', 'later_only', 'assume_indexed'):
            check_flag(name, getattr(self, name))
        items = self.learn_items(data)
        support = np.bincount(items)
        left, right = ((support + float(self.lmbd)) ** power if self.normalize else np.ones(len(support))
                       for power in (self.alpha, 1 - self.alpha))
        clicks, others = self._groups(data, items)
        by_item = clicks.tocsc()
        n_items, n_workers = len(support), numba.get_num_threads()
        neighbours = np.zeros((n_items, min(self.n_sims, n_items)), dtype=np.int32)
        similarities = np.zeros(neighbours.shape)

        def work(worker: int) -> None:
            # Every n_workers-th item, since the popular ones, which take longest, often come first.
            _nearest_items(by_item.indptr, by_item.indices, by_item.data, others.indptr, others.indices,
                           left, right, worker, n_workers, neighbours, similarities)

        in_threads(work, range(n_workers))
        found = similarities > 0
        indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        self.similarities_ = csr_array((similarities[found], neighbours[found], indptr), shape=(n_items, n_items))
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return np.zeros(len(self.items_)), self.similarities_[prefixes.last]

    def _groups(self, data: pd.DataFrame, items: np.ndarray) -> tuple[csr_array, csr_array]:
        """Two csr_arrays, a row for each group of events: clicks on each item, and which items those clicks count.

        A group is a session, whose clicks count all items of the session; where the order counts, it is one event.
        """
        if self.assume_indexed:
            check_events(data, 'ItemIdx')
        sessions, _ = number_values(data, 'SessionIdx' if self.assume_indexed else self.session_key)
        if not (self.seq_only or self.later_only):
            by_session = count_pairs(sessions, items)
            return by_session, by_session
        check_events(data, self.time_key)
        check_times(data[self.time_key])
        times = sorted_codes(data[self.time_key])
        rows = np.lexsort((times, sessions))
        sessions, items = sessions[rows], items[rows]
        moments = sessions * len(rows) + times[rows]  # a number for each session and time, in their order
        later, ends = (np.searchsorted(numbers, numbers, side='right') for numbers in (moments, sessions))
        if self.seq_only:
            ends = np.minimum(later + 1, ends)
        return count_pairs(np.arange(len(items)), items), count_items(items, later, ends, len(self.items_))


@numba.njit(cache=True, nogil=True)
def _nearest_items(item_ptr: np.ndarray, item_groups: np.ndarray, item_clicks: np.ndarray, group_ptr: np.ndarray,
                   group_items: np.ndarray, left: np.ndarray, right: np.ndarray, first: int, step: int,
                   neighbours: np.ndarray, similarities: np.ndarray) -> None:
    """The largest sim(i, j) = cooc(i, j) / (left_i right_j) of the items i = first, first + step, ...

    Item i has item_clicks[k] clicks in group item_groups[k] for item_ptr[i] <= k < item_ptr[i + 1]; each counts the
    distinct items group_items[group_ptr[g]:group_ptr[g + 1]] of its group g, see `ItemKNN._groups`. The results are
    written to row i of `neighbours` and `similarities`, which stays 0 where there are not enough neighbours.
    """
    n_items, n_sims = neighbours.shape
    cooc = np.zeros(n_items, dtype=np.int32)
    met = np.empty(n_items, dtype=np.int32)
    for i in range(first, n_items, step):
        n_met = 0
        for k in range(item_ptr[i], item_ptr[i + 1]):
            group = item_groups[k]
            for j in group_items[group_ptr[group]:group_ptr[group + 1]]:
                if cooc[j] == 0:
                    met[n_met] = j
                    n_met += 1
                cooc[j] += item_clicks[k]
        nearest = [(0.0, 0) for _ in range(0)]  # a heap, its smallest entry is the first to go
        for j in met[:n_met]:
            entry = (cooc[j] / (left[i] * right[j]), -j)  # at equal similarities the larger index is smaller
            cooc[j] = 0
            if j != i and len(nearest) < n_sims:
                heapq.heappush(nearest, entry)
            elif j != i and entry > nearest[0]:
                heapq.heapreplace(nearest, entry)
        for k, (similarity, negative_index) in enumerate(nearest):
            similarities[i, k], neighbours[i, k] = similarity, -negative_index


@dataclass(eq=False, init=False)
class CoOccurence(ItemKNN):
    """Item-KNN under the name that it had in the authors' first release, with variants in the order of clicks.

    With the defaults it is `ItemKNN`. In general cooc(i, j) adds 1 for each event of i that counts j: for each distinct
    item j in the session of that event, or in a part of it.

    Parameters
    ----------
    normalize : False: sim(i, j) = cooc(i, j)
    seq_only : an event counts only the item of the next event of its session, the first one with a later time
    later_only : an event counts only items of events of its session with a later time
    assume_indexed : the frame has the columns SessionIdx and ItemIdx, numbers of sessions and items: sessions are told
        apart by SessionIdx instead of `session_key`. Item ids are still those of `item_key`
    """
    normalize: bool = True
    seq_only: bool = False
    later_only: bool = False
    assume_indexed: bool = False

    def __init__(self, n_sims: int = 100, lmbd: float = 20, alpha: float = 0.5, normalize: bool = True,
                 seq_only: bool = False, later_only: bool = False, session_key: str = 'SessionId',
                 item_key: str = 'ItemId', time_key: str = 'Time', assume_indexed: bool = False) -> None:
        super().__init__(n_sims, lmbd, alpha, session_key, item_key, time_key)
        self.normalize, self.seq_only, self.later_only = normalize, seq_only, later_only
        self.assume_indexed = assume_indexed


class Cosine(CoOccurence):
    """`CoOccurence` with alpha = 0.5, the cosine similarity, under the name that it had in the authors' first release.

    The columns of the frame are SessionId and ItemId.
    """

    def __init__(self, n_sims: int = 100, lmbd: float = 20, assume_indexed: bool = False) -> None:
        super().__init__(n_sims, lmbd, assume_indexed=assume_indexed)


@dataclass(eq=False)
class BPR(Baseline):
    """BPR-MF (section 4.1): matrix factorisation for the pairwise ranking loss of Rendle et al. (UAI 2009).

    Learns a vector u_s for every session and a vector v_i for every item. An iteration visits all events in random
    order; for item p in session s it draws an item n and takes one gradient step on

        -log sigmoid(x),    x = u_s . v_p - u_s . v_n,

    with L2 regularisation. New sessions have no vector, the mean vector of their items so far stands for it:
    score(i) = mean(v) . v_i.

    As in the authors' release, n is not uniform. The events are ordered by item, items by first appearance; then by
    session, sessions by first appearance in that order. n is the item of one of the first n_items of these events,
    which may be p itself. The release reads a bias of each item and never learns it: there is none here.

    Parameters
    ----------
    n_iterations : number of epochs
    lambda_session, lambda_item : regularisation of the vectors of sessions and of items
    sigma, init_normal : vectors start uniform in (-sigma, sigma), or normal with standard deviation sigma
    seed : 0 to 2**32 - 1, decides initial vectors, order of events and negative items, as `numpy.random.seed(seed)`
        before `fit` does in the release
    dtype : of vectors and scores, 'float64', or 'float32', which takes half the memory and draws the same numbers

    Attributes
    ----------
    session_factors_, item_factors_ : (n_sessions, n_factors) and (n_items, n_factors), sessions and items in the order
        of their first appearance; U and I of the release
    epoch_losses_ : mean loss of the steps of each epoch, each before its update and without regularisation
    """
    n_factors: int = 100
    n_iterations: int = 10
    learning_rate: float = 0.01
    lambda_session: float = 0.0
    lambda_item: float = 0.0
    sigma: float = 0.05
    init_normal: bool = False
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    _: KW_ONLY
    seed: int = 42
    dtype: str = 'float64'

    def fit(self, data: pd.DataFrame) -> Self:
        """Learn vectors from `data`, a DataFrame with one row for each event; returns the model.

        Raises ValueError if the loss becomes infinite or NaN.
        """
        for name in ('n_factors', 'n_iterations'):
            check_whole_number(name, getattr(self, name))
        for name in ('learning_rate', 'lambda_session', 'lambda_item', 'sigma'):
            check_number(name, getattr(self, name))
        check_flag('init_normal', self.init_normal)
        check_whole_number('seed', self.seed, 0, 2 ** 32 - 1)
        check_choice('dtype', self.dtype, ('float64', 'float32'))
        items = self.learn_items(data)
        sessions, session_ids = number_values(data, self.session_key)
        by_item = np.argsort(items, kind='stable')
        first_seen, _ = index_by_appearance(sessions[by_item])
        rows = by_item[np.argsort(first_seen, kind='stable')]
        items, sessions = items[rows].astype(np.int32), sessions[rows].astype(np.int32)
        stream = np.random.RandomState(self.seed)  # the release's, NumPy's legacy generator
        session_factors = self._initial_factors(stream, len(session_ids))
        item_factors = self._initial_factors(stream, len(self.items_))
        self.epoch_losses_ = []
        rates = np.array([self.learning_rate, self.lambda_session, self.lambda_item], dtype=self.dtype)
        for epoch in range(1, self.n_iterations + 1):
            order = stream.permutation(len(items))
            negatives = items[stream.randint(len(self.items_), size=len(items))]
            # Events are put in order here: looking them up in each step would stall it on one more cache miss.
            loss = _bpr_epoch(sessions[order], items[order], negatives, session_factors, item_factors, *rates)
            if not np.isfinite(loss):
                raise ValueError(f'learning_rate={self.learning_rate!r}: too large, loss {loss} in epoch {epoch}')
            self.epoch_losses_.append(loss)
        self.session_factors_, self.item_factors_ = session_factors, item_factors
        return self

    def _initial_factors(self, stream: np.random.RandomState, n_rows: int) -> np.ndarray:
        """Initial vectors, drawn in float64 and block by block: all at once, RSC15's sessions would take 6 GB more."""
        factors = np.empty((n_rows, self.n_factors), dtype=self.dtype)
        for start in range(0, n_rows, 2**16):
            block = factors[start:start + 2**16]
            block[:] = (stream.randn(*block.shape) * self.sigma if self.init_normal
                        else stream.rand(*block.shape) * 2 * self.sigma - self.sigma)
        return factors

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        session_vectors = _mean_vectors(prefixes.codes, prefixes.starts, prefixes.new, prefixes.ends,
                                        self.item_factors_)
        return _dot_scores(session_vectors, self.item_factors_[items])


@numba.njit(cache=True, fastmath=FAST_SUMS)
def _bpr_epoch(sessions: np.ndarray, positives: np.ndarray, negatives: np.ndarray, session_factors: np.ndarray,
               item_factors: np.ndarray, learning_rate: np.floating, lambda_session: np.floating,
               lambda_item: np.floating) -> float:
    """One gradient step for each event, in the order given and in place; returns the mean loss."""
    number = item_factors.dtype.type  # a plain number would make the arithmetic double
    total_loss = 0.0
    for k in range(len(positives)):
        u, v_p, v_n = session_factors[sessions[k]], item_factors[positives[k]], item_factors[negatives[k]]
        x = number(0)
        for f in range(len(u)):
            x += u[f] * (v_p[f] - v_n[f])
        total_loss += max(-x, 0) + np.log1p(np.exp(-abs(x)))
        slope = number(1 / (1 + np.exp(x)))  # sigmoid(-x), the derivative of log sigmoid(x)
        for f in range(len(u)):
            u_f, p_f, n_f = u[f], v_p[f], v_n[f]  # v_p and v_n may be the same vector, and both steps are from these
            u[f] += learning_rate * (slope * (p_f - n_f) - lambda_session * u_f)
            v_p[f] += learning_rate * (slope * u_f - lambda_item * p_f)
            v_n[f] += learning_rate * (-slope * u_f - lambda_item * n_f)
    return total_loss / len(positives)


@numba.njit(cache=True, nogil=True)
def _mean_vectors(codes: np.ndarray, starts: np.ndarray, new: np.ndarray, ends: np.ndarray,
                  factors: np.ndarray) -> np.ndarray:
    """Mean vector of the items of each of n prefixes, see `Prefixes`: (n, n_factors), of the type of `factors`."""
    means, total = np.empty((len(ends), factors.shape[1]), dtype=factors.dtype), np.zeros(factors.shape[1])
    for k in range(len(ends)):
        for f in range(len(total)):
            if new[k] == starts[k]:
                total[f] = 0
            for item in codes[new[k]:ends[k]]:
                total[f] += factors[item, f]
            means[k, f] = total[f] / (ends[k] - starts[k])
    return means


@numba.njit(cache=True, nogil=True, fastmath=FAST_SUMS)
def _dot_scores(vectors: np.ndarray, item_factors: np.ndarray) -> np.ndarray:
    """vectors . item_factors^T, of shape (n, n_items) and the type of the vectors.

    Not a BLAS product: the order of its sums, and so the last bits of a score, would change with the number of rows.
    """
    tile = 64  # items whose vectors stay in the L2 cache while all rows pass
    n, n_items = len(vectors), len(item_factors)
    scores = np.empty((n, n_items), dtype=vectors.dtype)
    for start in range(0, n_items, tile):
        for k in range(n):
            for j in range(start, min(start + tile, n_items)):
                score = vectors.dtype.type(0)
                for f in range(item_factors.shape[1]):
                    score += vectors[k, f] * item_factors[j, f]
                scores[k, j] = score
    return scores
