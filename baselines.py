"""The baselines of the paper (arXiv 1511.06939, section 4.1): POP, S-POP, Item-KNN and BPR-MF; and three simple ones
that later comparisons found hard to beat: a Markov chain and the session kNN methods S-KNN and V-SKNN.

A session is a sequence of clicked items. Given its first events, the prefix, a recommender scores every item, and the
item that is clicked next should rank high:

    model = ItemKNN(n_sims=100, lmbd=20)
    model.fit(train)                                               # a DataFrame with SessionId, ItemId, Time
    scores = model.predict_next(session_id, item_id, candidates)   # a Series: candidate -> score

Each class says in one small method how it scores prefixes, `_scores` or `sparse_scores`. The rest is shared:
`predict_next` follows one session event by event as in the authors' release, `score_block` and `tie_counts` serve whole
test sets. Items are numbered in the order of their first appearance in the training frame: the item index.

`fit` checks what it is given: an argument out of range, a missing column or id, or a frame without events is a
ValueError; an argument of the wrong type is a TypeError. A model that is not trained yet gives a RuntimeError.
"""
from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Self

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from gru4rec_pytensor.checks import check_choice, check_flag, check_number, check_whole_number, first_few
from gru4rec_pytensor.events import IdIndex, as_ids, check_events, check_times, index_by_appearance, session_order

# Sums may be reordered, so that they vectorise, but NaN and infinity keep their meaning: they show a diverged model.
FAST_SUMS = {'reassoc', 'contract', 'nsz'}


class Prefixes(NamedTuple):
    """What a baseline may know about n prefixes of sessions, one for each item to predict: `codes[start:end]` each.

    Those of one session follow one another, each with one event more. What is computed for one can be kept for the
    next, so that a long session takes time in proportion to its length.
    """
    codes: np.ndarray   # (n_events,) int64, item indices, session after session
    starts: np.ndarray  # (n,) int64, where the session begins
    ends: np.ndarray    # (n,) int64, the event after the last one
    number: int         # how many predictions came before the first of these

    @property
    def last(self) -> np.ndarray:
        """Index of the item clicked last, int64 (n,)."""
        return self.codes[self.ends - 1]


def _count_items(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, n_items: int) -> csr_array:
    """How often each item is in `codes[start:end]`, for n pairs of `starts` and `ends`: (n, n_items) float32."""
    lengths = ends - starts
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    events = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    clicks = np.ones(len(events), dtype=np.float32)
    counts = csr_array((clicks, codes[events], indptr), shape=(len(lengths), n_items))
    counts.sum_duplicates()
    return counts


class Baseline:
    """What all baselines share. `items_`, an array of shape (n_items,), holds the item ids in item index order."""
    item_key: str  # an argument of each of them
    _session_id: Any  # that `predict_next` was called with last
    _block = 256  # predictions whose dense scores are held at once: 77 MB of float64 for RSC15's 37,483 items

    def predict_next(self, session_id: Any, input_item_id: Any, predict_for_item_ids: ArrayLike) -> pd.Series:
        """Feed one event of a session, then score candidates for the next one.

        Calls with the same `session_id` in a row continue that session; another `session_id` starts a new one.

        Parameters
        ----------
        session_id, input_item_id : int or str
        predict_for_item_ids : array-like of shape (n,)

        Returns
        -------
        pandas.Series of shape (n,), indexed by `predict_for_item_ids`: the scores, higher is better.

        Raises
        ------
        KeyError that names the items which are not in the training data.
        """
        wanted = self.item_indices(predict_for_item_ids, 'predict_for_item_ids')
        clicked = self.item_indices([input_item_id], 'input_item_id')
        if session_id != self._session_id:
            self._session_id, self._session = session_id, clicked[:0]
        self._session = np.append(self._session, clicked)
        prefix = Prefixes(self._session, np.array([0]), np.array([len(self._session)]), self._n_predicted)
        self._n_predicted += 1
        return pd.Series(self._scores(prefix, wanted)[0], index=predict_for_item_ids)

    def score_block(self, item_ids: ArrayLike, offsets: ArrayLike, first: int, last: int,
                    candidates: ArrayLike | None = None) -> np.ndarray:
        """Scores of items for the predictions `first` to `last - 1` of a test set, the numbers of `predict_next`.

        Predictions are numbered through the sessions: session s predicts its events `offsets[s] + 1` to
        `offsets[s + 1] - 1`, each from the events of the session before it.

        Parameters
        ----------
        item_ids : array-like of shape (n_events,)
            Items of the test events, session after session.
        offsets : integer array of shape (n_sessions + 1,)
            Session s owns the events `offsets[s]` to `offsets[s + 1] - 1`, at least one.
        first, last : int
            0 <= first <= last <= n_events - n_sessions.
        candidates : array-like of shape (n,), optional
            Items to score. Default: `items_`.

        Returns
        -------
        floating array of shape (last - first, n), a column for each candidate.

        Raises
        ------
        KeyError as in `predict_next`; TypeError or ValueError if `offsets` or the range does not fit the events.
        """
        codes, offsets, n_predictions = self._read_test(item_ids, offsets)
        if not 0 <= first <= last <= n_predictions:
            raise ValueError(f'first={first!r}, last={last!r}: needs 0 <= first <= last <= {n_predictions}')
        items = slice(None) if candidates is None else self.item_indices(candidates, 'candidates')
        return self._scores(self._prefixes(codes, offsets, first, last)[0], items)

    def tie_counts(self, item_ids: ArrayLike, offsets: ArrayLike,
                   candidates: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """How many items beat the next item, and how many tie with it, for every prediction of a test set.

        Under any policy for ties the rank lies between 1 + greater and 1 + greater + equal.

        Parameters
        ----------
        item_ids, offsets
            The test events, see `score_block`.
        candidates : array-like, optional
            Items to rank, duplicates are ignored; the target is always added. Default: all training items.

        Returns
        -------
        greater, equal : int64 arrays of shape (n_events - n_sessions,)
            Ranked items other than the target that score strictly higher, and exactly the same.

        Raises
        ------
        KeyError, TypeError, ValueError as in `score_block`; ValueError if a target's score is not a number.
        """
        codes, offsets, n_predictions = self._read_test(item_ids, offsets)
        ranked = np.full(len(self.items_), candidates is None)
        if candidates is not None:
            ranked[self.item_indices(candidates, 'candidates')] = True
        counts = np.zeros((2, n_predictions), dtype=np.int64)

        def count_block(first: int) -> None:
            last = min(first + self._block, n_predictions)
            prefixes, targets = self._prefixes(codes, offsets, first, last)
            counts[:, first:last] = self._count_ties(prefixes, targets, ranked)

        _in_threads(count_block, range(0, n_predictions, self._block))
        return counts[0], counts[1]

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Scores (n, len(items)) of n prefixes and the given item indices, all by default.

        No score may depend on which others are asked for, not in its last bit.
        """
        raise NotImplementedError

    def _count_ties(self, prefixes: Prefixes, targets: np.ndarray,
                    ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pair (greater, equal) for n prefixes and their `targets`; `ranked` (n_items,) bool marks candidates."""
        needed = ranked.copy()
        needed[targets] = True
        items = np.flatnonzero(needed)
        scores = self._scores(prefixes, items if len(items) < len(needed) else slice(None))
        columns = np.searchsorted(items, targets)
        _check_target_scores(scores[np.arange(len(scores)), columns], prefixes.number)
        greater, equal = _count_dense_ties(scores, columns, ranked[items])
        return greater, equal

    def _prefixes(self, codes: np.ndarray, offsets: np.ndarray, first: int, last: int) -> tuple[Prefixes, np.ndarray]:
        """The prefixes of the predictions `first` to `last - 1`, and the item indices of their targets."""
        # No session predicts its first event, hence session s has offsets[s] - s predictions before it,
        # and prediction k of session s has s + 1 more events than predictions before it.
        predictions = np.arange(first, last)
        sessions = np.searchsorted(offsets - np.arange(len(offsets)), predictions, side='right') - 1
        targets = predictions + sessions + 1
        return Prefixes(codes, offsets[sessions], targets, first), codes[targets]

    def learn_items(self, data: pd.DataFrame) -> np.ndarray:
        """Number the items of a training frame, forget earlier sessions; returns (n_events,) int64 item indices."""
        codes, self.items_ = _numbers(data, self.item_key)
        self._index = IdIndex(self.items_)
        self._session_id, self._session, self._n_predicted = None, codes[:0], 0
        return codes

    def item_indices(self, ids: ArrayLike, name: str) -> np.ndarray:
        """Item indices (int64) of an array-like of item ids; `name` is the argument that gave them."""
        if not hasattr(self, 'items_'):
            raise RuntimeError(f'this {type(self).__name__} is not trained yet: call fit first')
        wanted = as_ids(ids, name)
        codes = self._index.get_indexer(wanted)
        if (codes < 0).any():
            unknown = pd.unique(wanted[codes < 0])
            raise KeyError(f'{name}: {len(unknown)} item id(s) are not in the training data: {first_few(unknown)}')
        return codes.astype(np.int64)

    def _read_test(self, item_ids: ArrayLike, offsets: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
        """Item indices of the test events, session boundaries as int64, number of predictions."""
        codes, offsets = self.item_indices(item_ids, 'item_ids'), np.asarray(offsets)
        if offsets.ndim != 1 or offsets.dtype.kind not in 'iu':
            raise TypeError(f'offsets={offsets!r}: must be a vector of integers')
        offsets = offsets.astype(np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(codes) or (np.diff(offsets) < 1).any():
            raise ValueError(f'offsets={offsets!r}: must rise from 0 to the number of events, {len(codes)}')
        return codes, offsets, len(codes) - len(offsets) + 1


def _check_target_scores(scores: np.ndarray, first: int) -> None:
    """ValueError if the score of a target is NaN, which is neither greater than others nor smaller: it has no rank."""
    if np.isnan(scores).any():
        raise ValueError(f'prediction {first + int(np.isnan(scores).argmax())}: '
                         'the score of the next item is not a number')


@numba.njit(cache=True, nogil=True)
def _count_dense_ties(scores: np.ndarray, targets: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Greater and equal scores among the `ranked`, from dense scores (n, n_items): int64 array of shape (2, n)."""
    n, n_items = scores.shape
    counts = np.zeros((2, n), dtype=np.int64)
    for k in range(n):
        target_score = scores[k, targets[k]]
        greater, equal = 0, 0
        for j in range(n_items):
            greater += ranked[j] & (scores[k, j] > target_score)
            equal += ranked[j] & (scores[k, j] == target_score)
        counts[0, k], counts[1, k] = greater, equal - ranked[targets[k]]
    return counts


class SparseBaseline(Baseline):
    """A baseline whose scores are common to all prefixes, but for a few items of each.

    Ranks then need one sorted array of the common scores, and a correction for the few items; no dense scores.
    """
    _block = 4096

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        """Common scores (n_items,) float64, and what each of n prefixes adds to them: csr_array (n, n_items)."""
        raise NotImplementedError

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        common, added = self.sparse_scores(prefixes)
        return (added.toarray() + common)[:, items]

    def _count_ties(self, prefixes: Prefixes, targets: np.ndarray,
                    ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        common, added = self.sparse_scores(prefixes)
        rows, items = np.repeat(np.arange(len(targets)), np.diff(added.indptr)), added.indices
        before, after = common[items], added.data + common[items]
        target_scores = common[targets]
        is_target = items == targets[rows]
        target_scores[rows[is_target]] = after[is_target]
        _check_target_scores(target_scores, prefixes.number)

        ordered = _sorted_numbers(common[ranked])
        not_greater = np.searchsorted(ordered, target_scores, side='right')
        greater = len(ordered) - not_greater
        equal = not_greater - np.searchsorted(ordered, target_scores, side='left') - ranked[targets]

        # Ranked items with an addition were counted at their common score: move them to where they belong.
        rows, before, after = (values[ranked[items]] for values in (rows, before, after))
        goal = target_scores[rows]
        np.add.at(greater, rows, (after > goal) * 1 - (before > goal))
        np.add.at(equal, rows, (after == goal) * 1 - (before == goal))
        return greater, equal


def _sorted_numbers(scores: np.ndarray) -> np.ndarray:
    """Scores in rising order, those left out that are not a number: none of them is greater than a target's."""
    return np.sort(scores[~np.isnan(scores)])


@dataclass(eq=False)
class RandomPred(Baseline):
    """Random scores, for the chance level.

    In prediction k, since `fit` or of a test set, item i scores the uniform number (k, i) of a stream that `seed` alone
    decides.

    Parameters
    ----------
    seed, item_key : int, default 42, and str, default 'ItemId'
    """
    seed: int = 42
    item_key: str = 'ItemId'

    def fit(self, data: pd.DataFrame) -> Self:
        """Take note of the items of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('seed', self.seed, 0)
        self.learn_items(data)
        return self

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        # Philox counts its states, each good for four numbers, so any row can be drawn without those before it.
        n_states = -(-len(self.items_) // 4)
        stream = np.random.Generator(np.random.Philox(self.seed).advance(prefixes.number * n_states))
        return stream.random((len(prefixes.last), 4 * n_states))[:, :len(self.items_)][:, items]


@dataclass(eq=False)
class _Popularity(Baseline):
    """What POP and S-POP share: the popularity of the `top_n` most popular items, see `Pop`."""
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
            values, _ = _numbers(data, self.support_by_key)
            support = np.diff(_count_pairs(items, values).indptr)
        by_id = np.argsort(pd.factorize(self.items_, sort=True)[0])
        # Of this type NumPy has but one quicksort, which old pandas used; those of float64 depend on the processor.
        by_support = np.argsort(support[by_id].astype(np.longdouble), kind='quicksort')
        top = by_id[by_support[::-1][:self.top_n]]
        self.popularity_ = np.zeros(len(support))
        self.popularity_[top] = support[top] / (support[top] + 1)
        return self


@dataclass(eq=False)
class Pop(_Popularity, SparseBaseline):
    """POP (section 4.1): the most popular items of the training set, whatever the session.

    score(i) = supp_i / (supp_i + 1) for the `top_n` items with the largest support, 0 for the others. Of items with
    equal support at the cut, those are kept that the authors' release keeps, which depends on all supports: it sorts
    the items by id, then by support with a sort that is not stable.

    Parameters
    ----------
    top_n : int, default 100
    item_key : str, default 'ItemId'
    support_by_key : str, optional
        supp_i is the number of distinct values of this column, 'SessionId' say, among the events of item i. Default:
        the number of those events.

    Attributes
    ----------
    popularity_ : float64 array of shape (n_items,)
        The scores.

    Examples
    --------
    >>> pop = Pop().fit(pd.DataFrame({'ItemId': ['a', 'b', 'a', 'a']}))
    >>> pop.predict_next(session_id=1, input_item_id='b', predict_for_item_ids=['a', 'b']).tolist()
    [0.75, 0.5]
    """

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return self.popularity_, csr_array((len(prefixes.ends), len(self.items_)))


@dataclass(eq=False)
class SessionPop(_Popularity):
    """S-POP (section 4.1): the most popular items of the current session.

    score(i) = (clicks on i in the session so far) + supp_i / (supp_i + 1), the second term for the `top_n` most popular
    items of the training set only. It is below 1: all it does is break ties by global popularity.

    Parameters
    ----------
    top_n : int, default 1000
    item_key, support_by_key
        See `Pop`.
    """
    top_n: int = 1000
    _block = 2**62  # all at once: a session that is cut has to be counted from its start again

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        clicks = _count_clicks(prefixes.codes, prefixes.starts, prefixes.ends, len(self.items_))
        return (clicks + self.popularity_)[:, items]

    def _count_ties(self, prefixes: Prefixes, targets: np.ndarray,
                    ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ordered = np.sort(self.popularity_[ranked])
        greater, equal = _count_ties_of_clicks(prefixes.codes, prefixes.starts, prefixes.ends, targets,
                                               self.popularity_, ranked, ordered)
        return greater, equal


PersonalPop = SessionPop  # its older name


@numba.njit(cache=True, nogil=True)
def _count_clicks(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, n_items: int) -> np.ndarray:
    """Clicks on each item in each of n prefixes, (n, n_items) float64; see `Prefixes`."""
    clicks = np.zeros((len(ends), n_items))
    for k in range(len(ends)):
        new = starts[k]
        if k and starts[k] == starts[k - 1]:
            new = ends[k - 1]
            for item in range(n_items):
                clicks[k, item] = clicks[k - 1, item]
        for item in codes[new:ends[k]]:
            clicks[k, item] += 1
    return clicks


@numba.njit(cache=True, nogil=True)
def _count_ties_of_clicks(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, targets: np.ndarray,
                          popularity: np.ndarray, ranked: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Greater and equal scores among the `ranked`, int64 (2, n), where a score is clicks + popularity.

    `ordered` has the popularity of the ranked items in rising order. Those without a click are counted in it, those
    with some in a tree that changes with each click, see `_add`: a prediction takes O(log n) however long the session.
    """
    counts = np.empty((2, len(ends)), dtype=np.int64)
    clicks = np.zeros(len(popularity), dtype=np.int64)
    k = 0
    while k < len(ends):
        last = k
        while last + 1 < len(ends) and starts[last + 1] == starts[k]:
            last += 1
        session = codes[starts[k]:ends[last]]
        levels = _scores_reached(session, popularity, clicks)
        tree, at_level = np.zeros(len(levels) + 1, dtype=np.int64), np.zeros(len(levels) + 1, dtype=np.int64)
        n_fed = 0
        for row in range(k, last + 1):
            for item in session[n_fed:ends[row] - starts[k]]:
                if ranked[item]:
                    _add(tree, at_level, np.searchsorted(levels, clicks[item] + popularity[item]), -1)
                    _add(tree, at_level, np.searchsorted(levels, clicks[item] + 1 + popularity[item]), 1)
                clicks[item] += 1
            n_fed = ends[row] - starts[k]
            goal = clicks[targets[row]] + popularity[targets[row]]
            level, above = np.searchsorted(levels, goal), np.searchsorted(ordered, goal, side='right')
            here = level < len(levels) and levels[level] == goal
            counts[0, row] = len(ordered) - above - _sum_to(tree, level + here)  # all that is added is 0 in the end
            counts[1, row] = above - np.searchsorted(ordered, goal) + here * at_level[level] - ranked[targets[row]]
        for item in session:
            clicks[item] = 0
        k = last + 1
    return counts


@numba.njit(cache=True, nogil=True)
def _scores_reached(session: np.ndarray, popularity: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """All scores clicks + popularity that the items of a session have at some time, in rising order, once each."""
    scores = np.empty(2 * len(session))
    for k, item in enumerate(session):
        scores[2 * k] = clicks[item] + popularity[item]
        clicks[item] += 1
        scores[2 * k + 1] = clicks[item] + popularity[item]
    for item in session:
        clicks[item] = 0
    scores.sort()
    n_levels = 0
    for score in scores:
        if n_levels == 0 or score != scores[n_levels - 1]:
            scores[n_levels] = score
            n_levels += 1
    return scores[:n_levels]


@numba.njit(cache=True, nogil=True)
def _add(tree: np.ndarray, at_level: np.ndarray, level: int, number: int) -> None:
    """Add to the number of items at a level, and to the sums over levels that contain it, in a Fenwick tree."""
    at_level[level] += number
    level += 1
    while level < len(tree):
        tree[level] += number
        level += level & -level


@numba.njit(cache=True, nogil=True)
def _sum_to(tree: np.ndarray, level: int) -> int:
    """How many items are at the levels before `level`."""
    total = 0
    while level:
        total += tree[level]
        level -= level & -level
    return total


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
    n_sims : int, default 100
    lmbd : float, default 20
    alpha : float from 0 to 1, default 0.5
    session_key, item_key : str
    time_key : str
        Accepted for the release's interface. Co-occurrence does not depend on the order of events; `CoOccurence` has
        variants that do.

    Attributes
    ----------
    similarities_ : float64 csr_array of shape (n_items, n_items)
        Row i holds sim(i, j).
    """
    n_sims: int = 100
    lmbd: float = 20
    alpha: float = 0.5
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'
    normalize = True  # no argument here, but of CoOccurence

    def fit(self, data: pd.DataFrame) -> Self:
        """Find the neighbours of the items of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('n_sims', self.n_sims)
        check_number('lmbd', self.lmbd)
        check_number('alpha', self.alpha, 0, 1)
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

        _in_threads(work, range(n_workers))
        found = similarities > 0
        indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        self.similarities_ = csr_array((similarities[found], neighbours[found], indptr), shape=(n_items, n_items))
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return np.zeros(len(self.items_)), self.similarities_[prefixes.last]

    def _groups(self, data: pd.DataFrame, items: np.ndarray) -> tuple[csr_array, csr_array]:
        """Two csr_arrays, a row for each group of events: clicks on each item, and which items those clicks count.

        Here a group is a session, and its clicks count all items of the session.
        """
        by_session = _count_pairs(_numbers(data, self.session_key)[0], items)
        return by_session, by_session


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
    n_sims, lmbd, alpha, session_key, item_key, time_key
        See `ItemKNN`.
    normalize : bool, default True
        False: sim(i, j) = cooc(i, j).
    seq_only : bool, default False
        An event counts only the item of the next event of its session, the first one with a later time.
    later_only : bool, default False
        An event counts only items of events of its session with a later time.
    assume_indexed : bool, default False
        The frame has the columns SessionIdx and ItemIdx, numbers of sessions and items: sessions are told apart by
        SessionIdx instead of `session_key`. Item ids are still those of `item_key`.
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

    def _groups(self, data: pd.DataFrame, items: np.ndarray) -> tuple[csr_array, csr_array]:
        """As for Item-KNN, or where the order counts, a group for each event, by session and time."""
        for name in ('normalize', 'seq_only', 'later_only', 'assume_indexed'):
            check_flag(name, getattr(self, name))
        if self.assume_indexed:
            _numbers(data, 'ItemIdx')
            sessions, _ = _numbers(data, 'SessionIdx')
        else:
            sessions, _ = _numbers(data, self.session_key)
        if not (self.seq_only or self.later_only):
            by_session = _count_pairs(sessions, items)
            return by_session, by_session
        check_events(data, self.time_key)
        check_times(data[self.time_key])
        times, _ = pd.factorize(data[self.time_key], sort=True)
        rows = np.lexsort((times, sessions))
        sessions, times, items = sessions[rows], times[rows], items[rows]
        later, ends = _ends_of_runs(sessions, times), _ends_of_runs(sessions)
        if self.seq_only:
            ends = np.minimum(later + 1, ends)
        return _count_pairs(np.arange(len(items)), items), _count_items(items, later, ends, len(self.items_))


class Cosine(CoOccurence):
    """`CoOccurence` with alpha = 0.5, the cosine similarity, under the name that it had in the authors' first release.

    Parameters
    ----------
    n_sims, lmbd, assume_indexed
        See `CoOccurence`. The columns of the frame are SessionId and ItemId.
    """

    def __init__(self, n_sims: int = 100, lmbd: float = 20, assume_indexed: bool = False) -> None:
        super().__init__(n_sims, lmbd, assume_indexed=assume_indexed)


def _ends_of_runs(*columns: np.ndarray) -> np.ndarray:
    """For each row the row after the last of those around it that equal it in all columns, int64 (n,)."""
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    bounds = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(columns[0])]])
    return np.repeat(bounds[1:], np.diff(bounds))


@dataclass(eq=False)
class Markov(SparseBaseline):
    """First-order Markov chain, MC of Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms",
    User Modeling and User-Adapted Interaction 2018 (arXiv 1803.09587).

    score(j) = the share of j among the items that came right after the current item in the training sessions:

        score(j) = count(i, j) / sum_k count(i, k),    i the last item of the session,

    where count(i, j) is the number of events of j whose previous event in their session is of i. Where i was never
    followed by anything all scores are 0. Events of a session with equal times keep the order of the frame.

    Parameters
    ----------
    session_key, item_key, time_key : str

    Attributes
    ----------
    transitions_ : float64 csr_array of shape (n_items, n_items)
        Row i holds the shares of what came after i.

    Examples
    --------
    >>> log = pd.DataFrame({'SessionId': [1, 1, 1, 2, 2], 'ItemId': list('abaab'), 'Time': range(5)})
    >>> Markov().fit(log).predict_next(session_id=1, input_item_id='a', predict_for_item_ids=['a', 'b']).tolist()
    [0.0, 1.0]
    """
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'

    def fit(self, data: pd.DataFrame) -> Self:
        """Count what follows what in `data`, a DataFrame with one row for each event; returns the model."""
        items = self.learn_items(data)
        rows, offsets = session_order(data, self.session_key, self.item_key, self.time_key)
        items, n_items = items[rows].astype(np.int32), len(self.items_)
        before, after = np.delete(items, offsets[1:] - 1), np.delete(items, offsets[:-1])
        counts = csr_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items))
        counts.sum_duplicates()
        total = np.repeat(counts.sum(axis=1), np.diff(counts.indptr))
        self.transitions_ = csr_array((counts.data / total, counts.indices, counts.indptr), shape=counts.shape)
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return np.zeros(len(self.items_)), self.transitions_[prefixes.last]


@dataclass(eq=False)
class SKNN(SparseBaseline):
    """S-KNN: what the most similar sessions contain (Jannach and Ludewig, "When Recurrent Neural Networks meet the
    Neighborhood for Session-Based Recommendation", RecSys 2017, and in the same form arXiv 1803.09587, see `Markov`).

        score(j) = sum over the neighbours n of the session s, those that contain j, of sim(s, n)
        sim(s, n) = |s and n| / sqrt(|s| |n|)

    Sessions count as sets of items, so that sim is the cosine of two vectors of zeros and ones. Neighbours are the `k`
    most similar of the `sample_size` most recent training sessions that have an item of s at all, as both papers
    sample them; a session is as recent as its last event. Of equally similar sessions at the cut the more recent are
    taken, of equally recent ones those that appear later in the frame.

    The authors' code (rn5l/session-rec) has another factor in the cosine, sqrt(|s|) times and not over, which is the
    same for all sessions of a prediction and so changes no rank; equally similar sessions are in no order there.

    Parameters
    ----------
    k : int, default 500
        Neighbours, as in the paper of 2017.
    sample_size : int, default 1000
        Sessions among which they are looked for; the papers' m.
    session_key, item_key, time_key : str

    Attributes
    ----------
    sessions_ : int32 csr_array of shape (n_sessions, n_items)
        1 where a training session contains an item; the rows in the order of the sessions' last events.
    """
    k: int = 500
    sample_size: int = 1000
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'
    _by_position = False  # whether later clicks weigh more
    _block = 1024

    def fit(self, data: pd.DataFrame) -> Self:
        """Make an index of the sessions of `data`, a DataFrame with one row for each event; returns the model."""
        check_whole_number('k', self.k)
        check_whole_number('sample_size', self.sample_size)
        items = self.learn_items(data)
        check_events(data, self.session_key, self.time_key)
        check_times(data[self.time_key])
        self.sessions_ = _count_pairs(_by_last_event(data[self.session_key], data[self.time_key]), items)
        self.sessions_.data[:] = 1
        by_item = self.sessions_.tocsc()
        self._first_recent, self._recent = _most_recent(by_item.indptr, by_item.indices, self.sample_size)
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        indptr, items, scores = _neighbours_scores(
            prefixes.codes, prefixes.starts, prefixes.ends, self._first_recent, self._recent, self.sessions_.indptr,
            self.sessions_.indices, self.k, self.sample_size, self._by_position)
        n_items = len(self.items_)
        return np.zeros(n_items), csr_array((scores, items, indptr), shape=(len(prefixes.ends), n_items))


class VSKNN(SKNN):
    """V-SKNN: S-KNN in which later clicks of the session count more ("Vector Multiplication Session-Based kNN" of
    Ludewig and Jannach 2018, arXiv 1803.09587, see `Markov`).

        sim(s, n) = sum over the items i that s and n share of  w(i),    w(i) = (position of i in s) / (length of s)

    the product of a vector of weights that rise linearly to 1 for the last click, and one of zeros and ones. An item
    that occurs several times has the position of its last click. All else, the arguments too, is as in `SKNN`.

    This is the method of the paper. The authors' code (rn5l/session-rec) divides by the number of distinct items of s,
    which changes no rank, and has options that later papers of theirs tune, and call V-SKNN, too: other decays of w
    (quadratic, logarithmic), a factor for each neighbour that falls with the distance of its last shared click from
    the end of s, a weight of rare items (idf), and leaving out the items of s. Their numbers with such options are not
    those of this class.
    """
    _by_position = True


def _by_last_event(ids: pd.Series, times: pd.Series) -> np.ndarray:
    """Number the sessions in the order of their last events, equal ones by appearance: (n_events,) int32."""
    sessions, session_ids = index_by_appearance(ids)
    times = pd.factorize(times, sort=True)[0]
    last = np.zeros(len(session_ids), dtype=np.int64)
    np.maximum.at(last, sessions, times)
    number = np.empty(len(last), dtype=np.int32)
    number[np.argsort(last, kind='stable')] = np.arange(len(last))
    return number[sessions]


@numba.njit(cache=True)
def _most_recent(item_ptr: np.ndarray, sessions: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """For each item the sessions that contain it, of the latest to the earliest, at most `most`: indptr, and they.

    Item i is in the sessions `sessions[item_ptr[i]:item_ptr[i + 1]]`, numbered by time and in that order.
    """
    first = np.zeros(len(item_ptr), dtype=np.int64)
    for i in range(len(item_ptr) - 1):
        first[i + 1] = first[i] + min(item_ptr[i + 1] - item_ptr[i], most)
    recent = np.empty(first[-1], dtype=np.int32)
    for i in range(len(item_ptr) - 1):
        for k in range(first[i], first[i + 1]):
            recent[k] = sessions[item_ptr[i + 1] - 1 - (k - first[i])]
    return first, recent


@numba.njit(cache=True, nogil=True)
def _neighbours_scores(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, first_recent: np.ndarray,
                       recent: np.ndarray, session_ptr: np.ndarray, session_items: np.ndarray, k: int,
                       sample_size: int, by_position: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of n prefixes by their neighbours, see `SKNN`, as indptr, indices and data of a csr matrix.

    With each click the sample of the click before is merged with the sessions of the item. No session comes back that
    an earlier click knew and that has fallen out of the sample, since the sample only becomes more recent. So what
    its sessions share with the prefix need not be counted again.
    """
    place = np.zeros(len(first_recent) - 1)  # of each item in the prefix; 0 where it is not
    total = np.zeros(len(first_recent) - 1)
    indptr, items, scores = np.zeros(len(ends) + 1, dtype=np.int64), np.empty(0, dtype=np.int32), np.empty(0)
    sample, shared = np.empty(0, dtype=np.int32), np.empty(0)
    for row in range(len(ends)):
        new = starts[row]
        if row and starts[row] == starts[row - 1]:
            new = ends[row - 1]
        elif row:
            for item in codes[starts[row - 1]:ends[row - 1]]:
                place[item] = 0
        if new == starts[row]:
            sample, shared, n_items = sample[:0], shared[:0], 0
        for event in range(new, ends[row]):
            item, now = codes[event], event - starts[row] + 1.0 if by_position else 1.0
            sample, shared = _merged(sample, shared, recent[first_recent[item]:first_recent[item + 1]],
                                     now - place[item], sample_size)
            n_items += place[item] == 0
            place[item] = now
        distance = np.empty(len(sample))  # minus the similarity
        for i, session in enumerate(sample):
            n_pairs = n_items * (session_ptr[session + 1] - session_ptr[session])
            distance[i] = -shared[i] / (ends[row] - starts[row] if by_position else np.sqrt(n_pairs))
        nearest = np.argsort(distance, kind='mergesort')[:k]  # stable: the more recent ones first
        found = _sum_by_item(nearest, sample, distance, session_ptr, session_items, total)
        indptr[row + 1] = indptr[row] + len(found)
        while len(items) < indptr[row + 1]:
            items, scores = _twice_as_long(items, indptr[row]), _twice_as_long(scores, indptr[row])
        for i, item in enumerate(found, indptr[row]):
            items[i], scores[i], total[item] = item, total[item], 0
    return indptr, items[:indptr[-1]], scores[:indptr[-1]]


@numba.njit(cache=True, nogil=True)
def _merged(sample: np.ndarray, shared: np.ndarray, sessions: np.ndarray, weight: float,
            most: int) -> tuple[np.ndarray, np.ndarray]:
    """The most recent of `sample` and `sessions`, both from the latest to the earliest; `weight` more for `sessions`.

    Returns their numbers, and for each the sum of the weights of the items that it shares with the prefix.
    """
    most = min(most, len(sample) + len(sessions))
    numbers, sums = np.empty(most, dtype=np.int32), np.zeros(most)
    a, b, n = 0, 0, 0
    while n < most and (a < len(sample) or b < len(sessions)):
        from_a = b == len(sessions) or (a < len(sample) and sample[a] >= sessions[b])
        from_b = a == len(sample) or (b < len(sessions) and sessions[b] >= sample[a])
        if from_a:
            numbers[n], sums[n] = sample[a], shared[a]
            a += 1
        if from_b:
            numbers[n] = sessions[b]
            sums[n] += weight
            b += 1
        n += 1
    return numbers[:n], sums[:n]


@numba.njit(cache=True, nogil=True)
def _sum_by_item(nearest: np.ndarray, sessions: np.ndarray, distance: np.ndarray, session_ptr: np.ndarray,
                 session_items: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Take the distance, minus the similarity, of each of the `nearest` sessions off `total` of its items, 0 before.

    Returns these items, once each.
    """
    n_found = 0
    for k in nearest:
        n_found += session_ptr[sessions[k] + 1] - session_ptr[sessions[k]]
    found, n_found = np.empty(n_found, dtype=np.int32), 0
    for k in nearest:
        for item in session_items[session_ptr[sessions[k]]:session_ptr[sessions[k] + 1]]:
            if total[item] == 0:
                found[n_found] = item
                n_found += 1
            total[item] -= distance[k]
    return found[:n_found]


@numba.njit(cache=True, nogil=True)
def _twice_as_long(values: np.ndarray, n_used: int) -> np.ndarray:
    """An array of twice the length, at least 4096, with the first `n_used` values."""
    longer = np.empty(max(2 * len(values), 4096), dtype=values.dtype)
    for i in range(n_used):
        longer[i] = values[i]
    return longer


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
    n_factors : int, default 100
    n_iterations : int, default 10
        Number of epochs.
    learning_rate : float, default 0.01
    lambda_session, lambda_item : float, default 0.0
        Regularisation of the vectors of sessions and of items.
    sigma, init_normal : float, default 0.05, and bool, default False
        Vectors start uniform in (-sigma, sigma), or normal with standard deviation sigma.
    session_key, item_key : str
    seed : int from 0 to 2**32 - 1, default 42
        Decides initial vectors, order of events and negative items, as `numpy.random.seed(seed)` before `fit` does in
        the release.
    dtype : 'float64' or 'float32', default 'float64'
        Type of vectors and scores. 'float32' takes half the memory and draws the same numbers.

    Attributes
    ----------
    session_factors_, item_factors_ : arrays of shape (n_sessions, n_factors) and (n_items, n_factors)
        Sessions and items in the order of their first appearance; U and I of the release.
    epoch_losses_ : list of float
        Mean loss of the steps of each epoch, each before its update and without regularisation.
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
        sessions, session_ids = _numbers(data, self.session_key)
        rows = _rows_by_item_then_session(items, sessions)
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
            if self.init_normal:
                block[:] = stream.randn(*block.shape) * self.sigma
            else:
                block[:] = stream.rand(*block.shape) * 2 * self.sigma - self.sigma
        return factors

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        session_vectors = _mean_vectors(prefixes.codes, prefixes.starts, prefixes.ends, self.item_factors_)
        return _dot_scores(session_vectors, self.item_factors_[items])


def _rows_by_item_then_session(items: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """The order in which the release has the events, (n,) int64, from codes by first appearance.

    By item; then by session, sessions in order of their first event in the order by item, both stable.
    """
    by_item = np.argsort(items, kind='stable')
    first_seen, _ = index_by_appearance(sessions[by_item])
    return by_item[np.argsort(first_seen, kind='stable')]


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
def _mean_vectors(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Mean vector of the items of each of n prefixes, see `Prefixes`: (n, n_factors), of the type of `factors`."""
    means, total = np.empty((len(ends), factors.shape[1]), dtype=factors.dtype), np.zeros(factors.shape[1])
    for k in range(len(ends)):
        new = ends[k - 1] if k and starts[k] == starts[k - 1] else starts[k]
        for f in range(len(total)):
            if new == starts[k]:
                total[f] = 0
            for item in codes[new:ends[k]]:
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


def _in_threads(function: Callable[[int], None], arguments: Iterable[int]) -> list[None]:
    """Call `function` with each argument, in one thread for each core: compiled code and NumPy do not hold the GIL."""
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        return list(pool.map(function, arguments))


def _numbers(data: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Number the values of a column by first appearance: (n_events,) int64, and the values in that order."""
    check_events(data, column)
    return index_by_appearance(data[column])


def _count_pairs(rows: np.ndarray, columns: np.ndarray) -> csr_array:
    """int32 csr_array that holds at [r, c] the number of k with rows[k] == r and columns[k] == c."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    ones = np.ones(len(rows), dtype=np.int32)
    pairs = csr_array((ones, (rows.astype(np.int32), columns.astype(np.int32))), shape=shape)
    pairs.sum_duplicates()
    return pairs
