"""Simple recommenders that later comparisons found hard to beat: a Markov chain, S-KNN, V-SKNN, STAN and VSTAN.

The session kNN methods score the items of the most similar training sessions.  All are that of `SKNN` with weights.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from gru4rec_pytensor.checks import check_choice, check_number, check_whole_number
from gru4rec_pytensor.events import DAY, in_seconds, session_of_event, session_order
from gru4rec_pytensor.prefix_scores import Prefixes, SparseBaseline

DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of a distance, see `VSKNN`
    'same': np.ones_like,
    'div': lambda x: 1 / x,
    'linear': lambda x: 1 - 0.1 * x,
    'log': lambda x: 1 / np.log10(x + 1.7),
    'quadratic': lambda x: x ** -2.0,
}


@dataclass(eq=False)
class Markov(SparseBaseline):
    """First-order Markov chain, MC of Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms",
    User Modeling and User-Adapted Interaction 2018 (arXiv 1803.09587).

    score(j) = the share of j among the items that came right after the current item in the training sessions:

        score(j) = count(i, j) / sum_k count(i, k),    i the last item of the session,

    where count(i, j) is the number of events of j whose previous event in their session is of i. Where i was never
    followed by anything all scores are 0. Events of a session with equal times keep the order of the frame.

    Attributes
    ----------
    transitions_ : float64 csr_array (n_items, n_items), row i holds the shares of what came after i

    >>> log = pd.DataFrame({'SessionId': [1, 1, 1, 2, 2], 'ItemId': list('abaab'), 'Time': range(5)})
    >>> Markov().fit(log).predict_next(session_id=1, input_item_id='a', predict_for_item_ids=['a', 'b']).tolist()
    [0.0, 1.0]
    """
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'

    def fit(self, data: pd.DataFrame) -> Self:
        """Count the pairs of successive items in `data`, a DataFrame with one row for each event; returns the model."""
        items = self.learn_items(data)
        rows, offsets = session_order(data, self.session_key, self.item_key, self.time_key)
        items, n_items = items[rows].astype(np.int32), len(self.items_)
        before, after = np.delete(items, offsets[1:] - 1), np.delete(items, offsets[:-1])
        counts = csr_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items))  # sums duplicates
        total = np.repeat(counts.sum(axis=1), np.diff(counts.indptr))
        self.transitions_ = csr_array((counts.data / total, counts.indices, counts.indptr), shape=counts.shape)
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        return np.zeros(len(self.items_)), self.transitions_[prefixes.last]


@dataclass(eq=False)
class SKNN(SparseBaseline):
    """S-KNN: the items of the most similar sessions (Jannach and Ludewig, "When Recurrent Neural Networks meet the
    Neighborhood for Session-Based Recommendation", RecSys 2017, and in the same form arXiv 1803.09587, see `Markov`).

        score(j) = sum over the neighbours n of the session s, those that contain j, of  sim(s, n) c(n, j)
        sim(s, n) = a(n) (sum of w(i) over the items i that s and n share) / sqrt(|n| sum of w(i)^2 over the items of s)

    The methods below are this definition, too, with weights that depend on p(i) and q(i), the positions of the last
    event of i in s and n, and on l, the length of s.  In S-KNN w, a and c are 1, and sim is the cosine of two sets.
    Neighbours are the `k` most similar of the `sample_size` most recent training sessions that have an item of s; a
    session is as recent as its last event.  Of equally similar sessions at the cut the more recent are taken, of
    equally recent ones those that appear later in the frame; the authors' code (rn5l/session-rec) has no order there.

    Parameters
    ----------
    k : number of neighbours; 500 are those of the paper of 2017
    sample_size : number of sessions among which they are looked for, the papers' m

    Attributes
    ----------
    sessions_ : float64 csr_array (n_sessions, n_items), 1 where a training session contains an item; the rows in the
        order of the sessions' last events
    """
    k: int = 500
    sample_size: int = 1000
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'
    weighting, weighting_score, similarity = 'same', 'same', 'cosine'  # no arguments here, but of the methods below
    idf_weighting = lambda_idf = 0.0
    lambda_spw = lambda_snh = lambda_inh = lambda_ipw = np.inf
    _block = 1024

    def fit(self, data: pd.DataFrame) -> Self:
        """Make an index of the sessions of `data`, a DataFrame with one row for each event; returns the model."""
        for name in ('k', 'sample_size'):
            check_whole_number(name, getattr(self, name))
        for name, allowed in (('weighting', DECAYS), ('weighting_score', DECAYS), ('similarity', ('cosine', 'vec'))):
            check_choice(name, getattr(self, name), allowed)
        for name in ('idf_weighting', 'lambda_idf', 'lambda_spw', 'lambda_snh', 'lambda_inh', 'lambda_ipw'):
            if getattr(self, name) != np.inf:
                check_number(name, getattr(self, name), above='idf' not in name)
        items = self.learn_items(data)
        rows, offsets = session_order(data, self.session_key, self.item_key, self.time_key)
        shape = len(offsets) - 1, len(self.items_)
        self._item_weights = 1 + (self.idf_weighting + self.lambda_idf) * np.log(shape[0] / np.bincount(items))
        times = data[self.time_key] if self.lambda_snh == np.inf else in_seconds(data[self.time_key])
        session_ends = times.to_numpy()[rows[offsets[1:] - 1]]
        by_end = np.lexsort((np.minimum.reduceat(rows, offsets[:-1]), session_ends))
        sessions, items = session_of_event(offsets), items[rows]
        last = np.flatnonzero(~pd.Series(sessions * shape[1] + items).duplicated(keep='last')).astype(np.int32)
        offsets = np.searchsorted(last, offsets).astype(np.int32)
        events = csr_array((last, items[last].astype(np.int32), offsets), shape=shape)[by_end]  # the last of each item
        self.sessions_ = csr_array((np.ones(events.nnz), events.indices, events.indptr), shape=shape)
        self._end, days = session_ends[by_end[-1]], DAY * self.lambda_snh
        recency = np.exp((session_ends[by_end] - self._end) / days) if days < np.inf else np.ones(shape[0])
        by_item = events.tocsc()
        self._events = by_item.indptr, by_item.indices, events.indptr, events.indices, events.data, recency
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        n = np.arange((prefixes.ends - prefixes.starts).max(initial=0) + 1.0)
        power = {'div': 1, 'quadratic': 2}.get(self.weighting, 0)
        scale = n ** power  # divides sums of whole numbers, which are exact: so equal ones stay equal
        by_position = np.where(n <= 10, 1.0, 0.0) if self.weighting == 'linear' else scale
        by_distance = (np.ones_like if power else DECAYS[self.weighting])(n) * np.exp(-n / self.lambda_spw)
        by_step = DECAYS[self.weighting_score](n + 1) * np.exp(-n / self.lambda_ipw)
        found = _neighbour_scores(
            (prefixes.codes, prefixes.starts, prefixes.new, prefixes.ends), self._events,
            (by_position, by_distance, scale, by_step, self._item_weights), self.similarity == 'cosine',
            self.lambda_inh, self.k, self.sample_size)
        return np.zeros(len(self.items_)), csr_array(found, shape=(len(prefixes.ends), len(self.items_)))


@dataclass(eq=False)
class VSKNN(SKNN):
    """V-SKNN: S-KNN in which later clicks of the session count more ("Vector Multiplication Session-Based kNN" of
    Ludewig and Jannach 2018, arXiv 1803.09587, see `Markov`); as there by default, with options of their later papers.

        c(n, j) = d(step) (1 + idf_weighting log(number of training sessions / events of j)),

    where step is l - p(i) + 1 for the shared item i that stands last in s, and so 1 for the current item.

    Parameters
    ----------
    weighting : w(i), default 'div': p / l; 'same': 1; 'quadratic': (p / l)^2; 'linear': 1 - 0.1 (l - p), but 0 from the
        11th event on; 'log': 1 / log10(l - p + 1.7)
    weighting_score : d(step), default 'same': 1; 'div': 1 / step; 'quadratic': 1 / step^2; 'linear': 1 - 0.1 step;
        'log': 1 / log10(step + 1.7)
    idf_weighting : float, default 0
    similarity : 'vec' without the root in sim, the default, or 'cosine'.  rn5l/session-rec divides 'vec' by the number
        of distinct items of s, which changes no rank
    """
    weighting: str = 'div'
    weighting_score: str = 'same'
    idf_weighting: float = 0.0
    similarity: str = 'vec'


@dataclass(eq=False)
class STAN(SKNN):
    """STAN: S-KNN with decays in the session, in its age, and in the neighbour (Garg et al., "Sequence and Time Aware
    Neighborhood for Session-based Recommendations", SIGIR 2019).

        w(i) = exp((p(i) - l) / lambda_spw)
        a(n) = exp(-(days from the last event of n to the current event) / lambda_snh)
        c(n, j) = exp(-|q(j) - q(i)| / lambda_inh),    i the shared item that stands last in n

    The time of the current event is common to all neighbours, so that no rank depends on it: unless `predict_next` is
    handed one, it is the end of the training data.  A lambda of `np.inf` leaves its decay out.
    """
    sample_size: int = 5000
    lambda_spw: float = 1.02
    lambda_snh: float = 5.0
    lambda_inh: float = 2.05

    def predict_next(self, session_id: Any, input_item_id: Any, predict_for_item_ids: ArrayLike,
                     timestamp: Any = None) -> pd.Series:
        """Score as all baselines do; `timestamp`, a date or seconds since 1970, is the time of this event."""
        scores = super().predict_next(session_id, input_item_id, predict_for_item_ids)
        if timestamp is None or self.lambda_snh == np.inf:
            return scores
        age = in_seconds(pd.Series([timestamp], name='timestamp'))[0] - self._end
        return scores * np.exp(-age / (DAY * self.lambda_snh))


@dataclass(eq=False)
class VSTAN(STAN):
    """VSTAN: STAN with ideas of V-SKNN (Ludewig et al., "Empirical Analysis of Session-based Recommendation
    Algorithms", 2021, arXiv 1910.12781).  With step of `VSKNN`, the c(n, j) of `STAN` is multiplied by

        exp((1 - step) / lambda_ipw) (1 + lambda_idf log(number of training sessions / events of j)).
    """
    k: int = 2000
    sample_size: int = 10_000
    lambda_spw: float = 4.0
    lambda_snh: float = 20.0
    lambda_inh: float = 0.5
    lambda_ipw: float = 1.0
    lambda_idf: float = 2.0
    similarity: str = 'cosine'


@numba.njit(cache=True, nogil=True)
def _neighbour_scores(prefixes: tuple, events: tuple, weights: tuple, cosine: bool, lambda_inh: float, k: int,
                      sample_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of n prefixes, see `SKNN`: data, indices and indptr of a csr matrix (n, n_items).

    Item i is in the sessions `item_sessions[item_ptr[i]:item_ptr[i + 1]]`, numbered by time.  With each new item the
    sample of the click before only becomes more recent, so that a session which has left it never returns.
    """
    codes, starts, new, ends = prefixes
    item_ptr, item_sessions, session_ptr, session_items, last_events, recency = events
    by_position, by_distance, scale, by_step, item_weights = weights
    n_items, n_seen, sample = len(item_weights), 0, item_sessions[:0]
    position, weight, seen = np.zeros(n_items, np.int64), np.zeros(n_items), np.empty(n_items, np.int64)
    indptr, indices, scores = np.zeros(len(ends) + 1, np.int32), np.empty(0, np.int32), np.empty(0)
    entry = np.full(n_items, -1)  # of the item in `indices`, if it is in the row
    for row in range(len(ends)):
        if new[row] == starts[row]:
            position[:], weight[:], n_seen, sample = 0, 0, 0, sample[:0]
        for event in range(new[row], ends[row]):
            item = codes[event]
            if position[item] == 0:
                seen[n_seen], n_seen = item, n_seen + 1
                latest = item_sessions[item_ptr[item]:item_ptr[item + 1]][-sample_size:]
                sample = np.unique(np.append(sample, latest))[-sample_size:]
            position[item] = event - starts[row] + 1
        length, squares, recent = ends[row] - starts[row], 0.0, sample[::-1]
        for item in seen[:n_seen]:
            weight[item] = by_position[position[item]] * by_distance[length - position[item]]
            squares += weight[item] ** 2
        similarity = np.zeros(len(sample))
        for k_th, session in enumerate(recent):
            shared, size = 0.0, session_ptr[session + 1] - session_ptr[session]
            for item in session_items[session_ptr[session]:session_ptr[session + 1]]:
                shared += weight[item]
            if shared > 0:
                similarity[k_th] = shared / (np.sqrt(squares * size) if cosine else scale[length]) * recency[session]
        end = indptr[row]
        if len(scores) < end + n_items:
            indices = np.append(indices, np.empty(end + n_items, np.int32))
            scores = np.append(scores, np.empty(end + n_items))
        for k_th in np.argsort(-similarity, kind='mergesort')[:k]:  # stable: the more recent ones first
            neighbour = range(session_ptr[recent[k_th]], session_ptr[recent[k_th] + 1])  # its events, in their order
            last_shared, anchor = 0, 0
            for event in neighbour:
                if position[session_items[event]] > 0:
                    last_shared, anchor = max(last_shared, position[session_items[event]]), last_events[event]
            for event in neighbour:
                item, distance = session_items[event], abs(last_events[event] - anchor)
                if entry[item] < indptr[row]:
                    entry[item], indices[end], scores[end], end = end, item, 0, end + 1
                scores[entry[item]] += (similarity[k_th] * by_step[length - last_shared]
                                        * np.exp(-distance / lambda_inh) * item_weights[item])
        indptr[row + 1] = end
    return scores[:indptr[-1]], indices[:indptr[-1]], indptr
