"""Scores of all items after the first events of a session, its prefix, and how many of them beat the next item's.

The baselines build on this: each learns in `fit` and says in one small method how it scores prefixes, `_scores` or
`sparse_scores`.  The rest is shared: `predict_next` follows one session event by event as in the authors' release,
`score_block`, `tie_counts` and `blocks` serve whole test sets.  Items are numbered in the order of their first
appearance in the training frame: the item index.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from gru4rec_pytensor.checks import first_few
from gru4rec_pytensor.events import IdIndex, as_ids, check_events, column_of_item, index_by_appearance


class Prefixes(NamedTuple):
    """Prefixes of sessions, n of them, one for each item to predict: the events `codes[start:end]` of each.

    Those of one session follow one another, each with one event more.  What is computed for one can be kept for the
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

    @property
    def new(self) -> np.ndarray:
        """First event that the prefix before does not have, int64 (n,): `starts` where a session begins."""
        continued = np.diff(self.starts, prepend=-1) == 0
        return np.where(continued, np.append(0, self.ends[:-1]), self.starts)


class Block(NamedTuple):
    """Scores for some predictions, a row each, and what the next items score.

    prediction : int64 (b,), numbers of the predictions
    scores : float (b, M or more); the first M columns are the ranked items
    bias : float (M,), to be added to every row of the scores
    low, high : float (b,), the scores that count as equal to the next item's lie between them
    column : int64 (b,), the next item's column among the ranked items, -1 where it is none of them
    """
    prediction: np.ndarray
    scores: np.ndarray
    bias: np.ndarray
    low: np.ndarray
    high: np.ndarray
    column: np.ndarray

    @classmethod
    def of(cls, prediction: np.ndarray, scores: np.ndarray, n_ranked: int, place: np.ndarray) -> Block:
        """Make a block of scores without a bias; `place` (b,) is the next item's column among all of them."""
        own, column = scores[np.arange(len(scores)), place], np.where(place < n_ranked, place, -1)
        return cls(prediction, np.ascontiguousarray(scores), np.zeros(n_ranked, scores.dtype), own, own, column)

    def tie_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the ranked items that score higher than the next item, and the others that score the same, (b,)."""
        check_target_scores(self.low, self.prediction)
        greater, at_least = count_above(self.scores, self.bias, self.low, self.high)
        return greater, at_least - greater - (self.column >= 0)


class Baseline:
    """Base class of all baselines.  `items_`, an array of shape (n_items,), holds the item ids in item index order."""
    item_key: str  # an argument of each of them
    _session_id: Any  # that `predict_next` was called with last
    _block = 256  # predictions whose dense scores are held at once: 77 MB of float64 for RSC15's 37,483 items

    def predict_next(self, session_id: Any, input_item_id: Any, predict_for_item_ids: ArrayLike) -> pd.Series:
        """Feed one event of a session, then score candidates for the next one.

        Calls with the same `session_id` in a row continue that session; another `session_id` starts a new one.

        Returns a Series, indexed by `predict_for_item_ids`: the scores, higher is better.  A KeyError names the items
        that are not in the training data.
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
        """Score items for the predictions `first` to `last - 1` of a test set, with the numbers of `predict_next`.

        Predictions are numbered through the sessions: session s predicts its events `offsets[s] + 1` to
        `offsets[s + 1] - 1`, each from the events of the session before it.

        Parameters
        ----------
        item_ids : (n_events,), items of the test events, session after session
        offsets : integers (n_sessions + 1,), the places where sessions begin, and last the number of events
        first, last : 0 <= first <= last <= n_events - n_sessions
        candidates : items to score; when None, `items_`

        Returns floats (last - first, n), a column for each candidate.  KeyError as in `predict_next`; TypeError or
        ValueError if `offsets` or the range does not fit the events.
        """
        codes, offsets, n_predictions = self._test_events(item_ids, offsets)
        if not 0 <= first <= last <= n_predictions:
            raise ValueError(f'first={first!r}, last={last!r}: needs 0 <= first <= last <= {n_predictions}')
        items = slice(None) if candidates is None else self.item_indices(candidates, 'candidates')
        return self._scores(self._prefixes(codes, offsets, first, last)[0], items)

    def tie_counts(self, item_ids: ArrayLike, offsets: ArrayLike,
                   candidates: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Count the items that beat the next item, and those that tie with it, for every prediction of a test set.

        Under any policy for ties the rank lies between 1 + greater and 1 + greater + equal.

        Parameters
        ----------
        item_ids, offsets : the test events, see `score_block`
        candidates : items to rank, duplicates are ignored; the next item is always added; when None, `items_`

        Returns greater and equal, int64 (n_events - n_sessions,): other ranked items that score strictly higher, and
        the same.  Errors as in `score_block`; ValueError if the score of a next item is not a number.
        """
        codes, offsets, n_predictions = self._test_events(item_ids, offsets)
        ranked = self._ranked(candidates)
        counts = np.zeros((2, n_predictions), dtype=np.int64)

        def count_block(first: int) -> None:
            last = first + self._block
            counts[:, first:last] = self._count_ties(*self._prefixes(codes, offsets, first, last), ranked)

        in_threads(count_block, range(0, n_predictions, self._block))
        return counts[0], counts[1]

    def blocks(self, item_ids: ArrayLike, offsets: ArrayLike, candidates: ArrayLike | None = None) -> Iterator[Block]:
        """Score all candidates, and the next item, for every prediction; arguments and errors as in `tie_counts`."""
        codes, offsets, n_predictions = self._test_events(item_ids, offsets)
        ranked = self._ranked(candidates)
        for first in range(0, n_predictions, Baseline._block):
            yield self._dense_block(*self._prefixes(codes, offsets, first, first + Baseline._block), ranked)

    def _scores(self, prefixes: Prefixes, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Scores (n, len(items)) of n prefixes and the given item indices, all by default.

        No score may depend on which others are asked for, not in its last bit.
        """
        raise NotImplementedError

    def _count_ties(self, prefixes: Prefixes, targets: np.ndarray,
                    ranked: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return (greater, equal) for n prefixes and their `targets`; `ranked` are item indices, None for all."""
        return self._dense_block(prefixes, targets, ranked).tie_counts()

    def _dense_block(self, prefixes: Prefixes, targets: np.ndarray, ranked: np.ndarray | None) -> Block:
        """Scores of the ranked items, and in further columns those of the other targets."""
        n_ranked = len(self.items_ if ranked is None else ranked)
        place = column_of_item(ranked, len(self.items_))[targets]
        others, number = np.unique(targets[place < 0], return_inverse=True)
        place[place < 0] = n_ranked + number
        items = slice(None) if ranked is None else np.concatenate([ranked, others])
        prediction = np.arange(prefixes.number, prefixes.number + len(targets))
        return Block.of(prediction, self._scores(prefixes, items), n_ranked, place)

    def _ranked(self, candidates: ArrayLike | None) -> np.ndarray | None:
        """Indices of the candidates, each once; None for all items."""
        return None if candidates is None else pd.unique(self.item_indices(candidates, 'candidates'))

    def _prefixes(self, codes: np.ndarray, offsets: np.ndarray, first: int, last: int) -> tuple[Prefixes, np.ndarray]:
        """The prefixes of the predictions from `first` on, before `last` where there are so many, and their targets."""
        # No session predicts its first event, hence session s has offsets[s] - s predictions before it,
        # and prediction k of session s has s + 1 more events than predictions before it.
        predictions = np.arange(first, min(last, len(codes) - len(offsets) + 1))
        sessions = np.searchsorted(offsets - np.arange(len(offsets)), predictions, side='right') - 1
        targets = predictions + sessions + 1
        return Prefixes(codes, offsets[sessions], targets, first), codes[targets]

    def learn_items(self, data: pd.DataFrame) -> np.ndarray:
        """Number the items of a training frame, forget earlier sessions; returns (n_events,) int64 item indices."""
        codes, self.items_ = number_values(data, self.item_key)
        self._index = IdIndex(self.items_)
        self._session_id, self._session, self._n_predicted = None, codes[:0], 0
        return codes

    def item_indices(self, ids: ArrayLike, name: str = 'items') -> np.ndarray:
        """Item indices (int64) of an array-like of item ids; `name` is the argument that gave them."""
        if not hasattr(self, 'items_'):
            raise RuntimeError(f'this {type(self).__name__} is not trained yet: call fit first')
        wanted = as_ids(ids, name)
        codes = self._index.get_indexer(wanted)
        if (codes < 0).any():
            unknown = pd.unique(wanted[codes < 0])
            raise KeyError(f'{name}: {len(unknown)} item id(s) are not in the training data: {first_few(unknown)}')
        return codes.astype(np.int64)

    def _test_events(self, item_ids: ArrayLike, offsets: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
        """Item indices of the test events, session boundaries as int64, number of predictions."""
        codes, offsets = self.item_indices(item_ids, 'item_ids'), np.asarray(offsets)
        if offsets.ndim != 1 or offsets.dtype.kind not in 'iu':
            raise TypeError(f'offsets={offsets!r}: must be a vector of integers')
        offsets = offsets.astype(np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(codes) or (np.diff(offsets) < 1).any():
            raise ValueError(f'offsets={offsets!r}: must rise from 0 to the number of events, {len(codes)}')
        return codes, offsets, len(codes) - len(offsets) + 1


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
                    ranked: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        is_ranked = column_of_item(ranked, len(self.items_)) >= 0
        common, added = self.sparse_scores(prefixes)
        items, n_added = added.indices, np.diff(added.indptr)
        before = common[items]
        after = added.data + before
        target_scores = common[targets]
        of_targets = np.flatnonzero(items == np.repeat(targets.astype(items.dtype), n_added))
        target_scores[np.searchsorted(added.indptr, of_targets, side='right') - 1] = after[of_targets]
        check_target_scores(target_scores, prefixes.number + np.arange(len(targets)))

        ordered = np.sort(common[is_ranked & ~np.isnan(common)])  # NaN is not greater than a target's score
        greater = len(ordered) - np.searchsorted(ordered, target_scores, side='right')
        equal = len(ordered) - np.searchsorted(ordered, target_scores, side='left') - greater - is_ranked[targets]

        # Ranked items with an addition were counted at their common score: move them to where they belong.
        goal = np.repeat(target_scores, n_added)

        def moved(is_there: np.ndarray, was_there: np.ndarray) -> np.ndarray:
            changes = is_there.view(np.int8) - was_there.view(np.int8)
            return csr_array((changes, items, added.indptr), shape=added.shape) @ is_ranked.astype(np.int32)

        return greater + moved(after > goal, before > goal), equal + moved(after == goal, before == goal)


def check_target_scores(scores: np.ndarray, predictions: np.ndarray) -> None:
    """Raise ValueError if a target's score is NaN, which has no rank; `predictions` (n,) are their numbers."""
    missing = np.isnan(scores)
    if missing.any():
        raise ValueError(f'prediction {predictions[missing][0]}: the score of the next item is not a number')


@numba.njit(cache=True, nogil=True)
def count_above(scores: np.ndarray, bias: np.ndarray, low: np.ndarray,
                high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row, count the sums scores + bias that are > high, and those that are >= low."""
    greater = np.empty(len(scores), dtype=np.int64)
    at_least = np.empty(len(scores), dtype=np.int64)
    for i in range(len(scores)):
        row, highest, lowest = scores[i], high[i], low[i]
        above, not_below = np.int32(0), np.int32(0)
        for j in range(len(bias)):  # plain indices and 32-bit counters: this way LLVM makes vectors of it
            score = row[j] + bias[j]
            above += np.int32(score > highest)
            not_below += np.int32(score >= lowest)
        greater[i], at_least[i] = above, not_below
    return greater, at_least


def in_threads(function: Callable[[int], None], arguments: Iterable[int]) -> None:
    """Call `function` with each argument, in one thread for each core: compiled code and NumPy do not hold the GIL."""
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        list(pool.map(function, arguments))


def number_values(data: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Number the values of a column by first appearance: (n_events,) int64, and the values in that order."""
    check_events(data, column)
    return index_by_appearance(data[column])


def count_pairs(rows: np.ndarray, columns: np.ndarray) -> csr_array:
    """Count pairs: an int32 csr_array that holds at [r, c] the number of k with rows[k] == r and columns[k] == c."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    ones = np.ones(len(rows), dtype=np.int32)
    return csr_array((ones, (rows.astype(np.int32), columns.astype(np.int32))), shape=shape)  # sums duplicates


def count_items(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, n_items: int) -> csr_array:
    """Count how often each item is in `codes[start:end]`, for n pairs of `starts` and `ends`: (n, n_items) float64."""
    lengths = ends - starts
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    events = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    clicks = np.ones(len(events))
    counts = csr_array((clicks, codes[events].astype(np.int32), indptr.astype(np.int32)), shape=(len(lengths), n_items))
    counts.sum_duplicates()
    return counts
