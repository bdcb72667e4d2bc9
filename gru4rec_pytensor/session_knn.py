"""Simple recommenders that later comparisons found hard to beat: a Markov chain, S-KNN and V-SKNN.

The session kNN methods score the items of the training sessions that are most similar to the session so far.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from gru4rec_pytensor.checks import check_whole_number
from gru4rec_pytensor.events import check_events, check_times, index_by_appearance, session_order
from gru4rec_pytensor.prefix_scores import Prefixes, SparseBaseline, count_pairs


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
        """Count the pairs of successive items in `data`, a DataFrame with one row for each event; returns the model."""
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
    """S-KNN: the items of the most similar sessions (Jannach and Ludewig, "When Recurrent Neural Networks meet the
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
    sessions_ : float64 csr_array of shape (n_sessions, n_items)
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
        pairs = count_pairs(_by_last_event(data[self.session_key], data[self.time_key]), items)
        self.sessions_ = csr_array((np.ones(pairs.nnz), pairs.indices, pairs.indptr), shape=pairs.shape)
        by_item = self.sessions_.tocsc()
        self._sessions_of_items = by_item.indptr, by_item.indices
        return self

    def sparse_scores(self, prefixes: Prefixes) -> tuple[np.ndarray, csr_array]:
        found = _nearest_sessions(
            prefixes.codes, prefixes.starts, prefixes.new, prefixes.ends, *self._sessions_of_items,
            self.sessions_.indptr, self.k, self.sample_size, self._by_position)
        similarities = csr_array(found, shape=(len(prefixes.ends), self.sessions_.shape[0]))
        return np.zeros(len(self.items_)), similarities @ self.sessions_


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
    """Number the sessions by the time of their last events, equal ones by appearance: (n_events,) int32."""
    sessions, session_ids = index_by_appearance(ids)
    times = pd.factorize(times, sort=True)[0]
    last = np.zeros(len(session_ids), dtype=np.int64)
    np.maximum.at(last, sessions, times)
    number = np.empty(len(last), dtype=np.int32)
    number[np.argsort(last, kind='stable')] = np.arange(len(last))
    return number[sessions]


@numba.njit(cache=True, nogil=True)
def _nearest_sessions(codes: np.ndarray, starts: np.ndarray, new: np.ndarray, ends: np.ndarray, item_ptr: np.ndarray,
                      item_sessions: np.ndarray, session_ptr: np.ndarray, k: int, sample_size: int,
                      by_position: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the neighbours of n prefixes, see `SKNN`: similarities, sessions and indptr of a csr matrix.

    Item i is in the sessions `item_sessions[item_ptr[i]:item_ptr[i + 1]]`, numbered by time; session n has
    session_ptr[n + 1] - session_ptr[n] items. With each click the sample of the click before is merged with the
    sessions of the item. The sample only becomes more recent, so that a session which has fallen out of it never
    returns, and the items that its sessions share with the prefix need not be counted again.
    """
    place = np.zeros(len(item_ptr) - 1)  # of each item in the prefix; 0 where it is not
    indptr, neighbours, similarities = np.zeros(len(ends) + 1, np.int32), np.empty(4096, np.int32), np.empty(4096)
    sample, shared, n_items = np.empty(0, np.int32), np.empty(0), 0
    for row in range(len(ends)):
        if row and new[row] == starts[row]:
            for item in codes[starts[row - 1]:ends[row - 1]]:
                place[item] = 0
            sample, shared, n_items = sample[:0], shared[:0], 0
        for event in range(new[row], ends[row]):
            item, now = codes[event], event - starts[row] + 1.0 if by_position else 1.0
            sample, shared = _merged(sample, shared, item_sessions[item_ptr[item]:item_ptr[item + 1]][::-1],
                                     now - place[item], sample_size)
            n_items += place[item] == 0
            place[item] = now
        similarity = np.empty(len(sample))
        for i, session in enumerate(sample):
            n_pairs = n_items * (session_ptr[session + 1] - session_ptr[session])
            similarity[i] = shared[i] / (ends[row] - starts[row] if by_position else np.sqrt(n_pairs))
        nearest = np.argsort(-similarity, kind='mergesort')[:k]  # stable: the more recent ones first
        first, last = indptr[row], indptr[row] + len(nearest)
        if last > len(neighbours):
            neighbours = np.append(neighbours, np.empty(last, np.int32))
            similarities = np.append(similarities, np.empty(last))
        neighbours[first:last], similarities[first:last] = sample[nearest], similarity[nearest]
        indptr[row + 1] = last
    return similarities[:indptr[-1]], neighbours[:indptr[-1]], indptr


@numba.njit(cache=True, nogil=True)
def _merged(sample: np.ndarray, shared: np.ndarray, sessions: np.ndarray, weight: float,
            most: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge the most recent of `sample` and `sessions`, both from the latest to the earliest.

    Returns their numbers, and for each the sum of the weights of the items that it shares with the prefix: `shared`,
    and `weight` more for `sessions`.
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
