"""Synthetic click log: small, with sessions whose order a recurrent network can use."""
from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit

from gru4rec_pytensor.checks import check_whole_number
from gru4rec_pytensor.events import DAY

SYNTHETIC_SESSIONS = 150_000
SYNTHETIC_ITEMS = 2_000
WEEK = 7 * DAY * 1000  # milliseconds, as all times in this module
FIRST_DAY = 1_396_310_400_000  # 2014-04-01, when the real log begins
FIRST_ITEM = 214_500_000
SHARE_SHELVED = 0.4  # the other items are met by chance only
SHELVINGS = 3  # shelves on which an item stands
SHELF_SIZE = 50
REACH = 6  # how far along the shelf the next click can be
P_ONE_CLICK = 0.14  # share of one-click sessions
LONGEST_SESSION = 300
P_AGAIN = 0.15  # the next click returns to an item of the session
P_ELSEWHERE = 0.05  # ... goes anywhere in the catalogue
P_JUMP = 0.04  # ... goes anywhere on the shelf, and on from there
P_FORWARD = 0.75  # walks that begin in the shelf's order, not against it
P_SAME_TIME = 0.005  # ... has the time of the click before it
MEAN_GAP = 120_000  # between two clicks
DRIFT = 0.15  # standard deviation of a shelf's log-popularity from week to week


def synthetic_clicks(n_sessions: int = SYNTHETIC_SESSIONS, n_items: int = SYNTHETIC_ITEMS,
                     seed: int = 42) -> pd.DataFrame:
    """Make up a click log whose sessions a recurrent network can follow better than an item-to-item method can.

    Each popular item stands on three shelves (think of kind, brand and offer), and a session walks along one shelf in
    one direction, mostly forward. The last click alone leaves three shelves and two directions open; the clicks
    before it tell which. Popularity follows Zipf's law and drifts from week to week. Sessions return to their items
    now and then, or look at something else. In the last day, some items are replaced by new ones.

    Parameters
    ----------
    n_sessions : int, one-click sessions included. The span grows slowly with it, from two weeks to half a year.
    n_items : int, at least 200. Rare ones may never be clicked.
    seed : int. The same seed gives the same log.

    Returns a DataFrame with SessionId, ItemId, Category (int64) and Time (float64), sorted by session and time.
    """
    check_whole_number('n_sessions', n_sessions)
    check_whole_number('n_items', n_items, 200)
    check_whole_number('seed', seed, 0)
    rng = np.random.default_rng(seed)
    weeks = int(np.clip(4 * (n_sessions / 100_000) ** 0.4, 2, 26))
    start = rng.integers(weeks * WEEK, size=n_sessions)
    # Mostly short sessions, some very long: a log-normal tail behind the second click, mean near 4.
    length = np.minimum(1 + np.ceil(rng.lognormal(0.5, 1.0, n_sessions)), LONGEST_SESSION).astype(np.int64)
    length[rng.random(n_sessions) < P_ONE_CLICK] = 1
    first = length.cumsum() - length
    gap = np.ceil(rng.exponential(MEAN_GAP, length.sum())).astype(np.int64)
    gap[rng.random(len(gap)) < P_SAME_TIME] = 0
    gaps = gap.cumsum()
    millis = FIRST_DAY + gaps + np.repeat(start - gaps[first], length)

    n_new = n_items // 100
    rank = np.arange(1, n_items - n_new + 1)
    shelves = _fill_shelves(n_items, rng)
    shelf_popularity = (1 / (50 + rank[shelves])).sum(axis=1)  # Zipf's law, flattened at the top
    shelf = _choose_shelves(shelf_popularity, start // WEEK, rng)
    chance = (1 / (5 + rank)).cumsum()
    item = np.empty(len(millis), np.int64)
    _browse(rng, first, length, shelves, shelf, chance / chance[-1], item)
    first_shelving = shelves[: len(shelves) // SHELVINGS]
    category = np.zeros(n_items, np.int64)  # of items off the shelves
    category[first_shelving] = np.arange(1, len(first_shelving) + 1)[:, None]
    category = category[item]
    sold_now = np.arange(n_items)  # in the last day, in whose clicks new items take the place of some on the shelves
    sold_now[rng.choice(np.unique(shelves), size=n_new, replace=False)] = np.arange(n_items - n_new, n_items)
    late = millis >= millis.max() - 1000 * DAY
    item[late] = sold_now[item[late]]
    session = np.repeat(np.arange(1, n_sessions + 1), length)
    item = FIRST_ITEM + rng.permutation(n_items)[item]
    return pd.DataFrame({'SessionId': session, 'ItemId': item, 'Time': millis / 1000, 'Category': category})


def _fill_shelves(n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the item numbers on each shelf, (shelves, SHELF_SIZE); neighbours are about equally popular.

    Item numbers are ranks of popularity. Adding noise before sorting gives an item other neighbours on each shelf.
    """
    n_shelved = int(SHARE_SHELVED * n_items) // SHELF_SIZE * SHELF_SIZE
    log_rank = np.log(np.arange(1, n_shelved + 1))
    orders = [np.argsort(log_rank + rng.normal(0, 0.7, n_shelved)) for _ in range(SHELVINGS)]
    return np.concatenate(orders).reshape(-1, SHELF_SIZE)


def _choose_shelves(popularity: np.ndarray, week: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the shelf of each session by popularity, which takes a random step in each week."""
    shelf = np.empty(len(week), np.int64)
    log_popularity = np.log(popularity)
    for w in range(week.max() + 1):
        log_popularity += rng.normal(0, DRIFT, len(popularity))
        share = np.exp(log_popularity).cumsum()
        in_week = week == w
        shelf[in_week] = np.searchsorted(share, share[-1] * rng.random(in_week.sum()), side='right')
    return shelf


@njit(cache=True)
def _browse(rng: np.random.Generator, first: np.ndarray, length: np.ndarray, shelves: np.ndarray, shelf: np.ndarray,
            chance: np.ndarray, item: np.ndarray) -> None:
    """Fill `item` with each session's walk; `chance` holds cumulated chances of all items off the shelf."""
    for s in range(first.size):
        position, direction = 0, 1
        for k in range(length[s]):
            event, u = first[s] + k, rng.random()
            if k > 0 and u < P_AGAIN:
                item[event] = item[first[s] + int(k * rng.random())]
            elif k > 0 and u < P_AGAIN + P_ELSEWHERE:
                item[event] = np.searchsorted(chance, rng.random(), side='right')
            else:
                if k == 0 or u < P_AGAIN + P_ELSEWHERE + P_JUMP:
                    position = int(SHELF_SIZE * rng.random())
                    direction = 1 if rng.random() < P_FORWARD else -1
                else:  # near places are likelier than far ones
                    position = (position + direction * (1 + int(REACH * rng.random() ** 2))) % SHELF_SIZE
                item[event] = shelves[shelf[s], position]
