"""Recommendations for a visitor: for a whole session, or click by click."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gru4rec_pytensor.checks import check_whole_number, first_few, warn
from gru4rec_pytensor.events import as_ids, check_listed
from gru4rec_pytensor.turns import ProcessLock


class Session:
    """One visitor's session: `click` takes an event and recommends, at a cost that does not grow with the session.

    `model` is a trained `GRU4Rec`, which any number of sessions share.  Threads that click in one session wait for one
    another.  A session ends with the next training of the model, which changes states and items: RuntimeError.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._items = model.items_
        self._top: np.ndarray | None = None
        self._states = model.initial_states(1)
        self._seen: set[int] = set()
        self._lock = ProcessLock()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Admit one thread at a time, while the model is as it was when the session began."""
        with self._lock.held(), self._model.in_use():
            if self._model.items_ is not self._items:
                raise RuntimeError('the model was trained since this session began: begin another one')
            yield

    def click(self, item: Any, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """Feed the visitor's next event; return what `GRU4Rec.recommend` returns for the session up to it."""
        check_whole_number('k', k)  # before the click counts
        with self._in_turn():
            self.take([item])
            return self.best(k, exclude_seen)

    def recommend(self, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """Return the k best next items of the session, or the most popular ones if it has no known item yet."""
        check_whole_number('k', k)
        with self._in_turn():
            return self.best(k, exclude_seen)

    def take(self, item_ids: Sequence) -> None:
        """Feed events one after the other.  A warning names unknown items."""
        ids = as_ids(item_ids, 'session_items')
        indices = self._model.known_indices(ids)
        if (indices < 0).any():
            unknown = first_few(ids[indices < 0])
            warn(f'skipped item id(s) that are not in the training data: {unknown}')
        for index in indices[indices >= 0]:
            self._top, self._states = self._model.next_states(np.array([index]), np.array([False]), self._states)
            self._seen = self._seen | {int(index)}  # a copy of the session keeps its own

    def best(self, k: int, exclude_seen: bool) -> pd.DataFrame:
        """Return the k best next items, without a check of `k`."""
        model = self._model
        if self._top is None:
            warn('the session has no item that the model knows: these are the most popular ones')
            scores = model.item_counts_ / model.item_counts_.sum()
        else:
            Wy, By = model.output_weights()
            scores = model.activate(np.asarray(self._top) @ Wy.T + By)[0]
        if not np.isfinite(scores).all():
            raise ValueError(f'{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not numbers, nor the weights '
                             'behind them: train the model again, with a smaller learning rate')
        excluded = np.array([*self._seen] if exclude_seen else [], dtype=np.int64)
        enough = min(k + len(excluded), len(scores))
        order = np.flatnonzero(scores >= np.partition(scores, -enough)[-enough])
        order = order[~np.isin(order, excluded)]
        order = order[np.argsort(-scores[order], kind='stable')][:k]  # equal scores in the order of item indices
        return pd.DataFrame({model.item_key: model.items_[order], 'Score': scores[order]})


def recommendations(model: Any, session_items: Sequence, k: int, exclude_seen: bool) -> pd.DataFrame:
    """Return the k best next items of one session, or of each of a list of sessions: see `GRU4Rec.recommend`."""
    check_whole_number('k', k)
    check_listed('session_items', session_items)
    several = len(session_items) > 0 and all(isinstance(item, (list, tuple, np.ndarray, pd.Series))
                                             for item in session_items)
    frames = []
    for number, items in enumerate(session_items if several else [session_items]):
        session = Session(model)
        session.take(items)
        frame = session.best(k, exclude_seen)
        frames.append(frame.assign(Session=number)[['Session', *frame.columns]] if several else frame)
    return pd.concat(frames, ignore_index=True)
