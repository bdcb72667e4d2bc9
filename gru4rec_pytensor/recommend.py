"""What to recommend to a visitor: for a whole session, or click by click."""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gru4rec_pytensor.checks import check_whole_number, first_few
from gru4rec_pytensor.events import as_ids


class Session:
    """One visitor's session: `click` takes an event and recommends; its cost does not grow with the session.

    `model` is a trained `GRU4Rec`.  Warnings are those of the line `stacklevel` calls above the one that gives them.
    """

    def __init__(self, model: Any, stacklevel: int = 3) -> None:
        self._model, self._stacklevel = model, stacklevel
        self._top: np.ndarray | None = None
        self._states = model.initial_states(1)
        self._seen: set[int] = set()

    def click(self, item: Any, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """The visitor's next event, and what `GRU4Rec.recommend` gives for the session up to it."""
        for index in self.skip_unknown([item]):
            self.step(index)
        return self.recommend(k, exclude_seen)

    def skip_unknown(self, item_ids: Sequence) -> np.ndarray:
        """Indices of the items that the model knows; a warning names the others."""
        indices = self._model.known_indices(item_ids)
        if (indices < 0).any():
            unknown = first_few(as_ids(item_ids)[indices < 0])
            warnings.warn(f'skipped item id(s) that are not in the training data: {unknown}',
                          stacklevel=self._stacklevel)
        return indices[indices >= 0]

    def step(self, index: int) -> None:
        """One event further, by item index."""
        self._top, self._states = self._model.next_states(np.array([index]), np.array([False]), self._states)
        self._seen.add(int(index))

    def recommend(self, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """The k best next items of the session as it is; of the most popular ones where nothing is known of it."""
        model = self._model
        check_whole_number('k', k)
        if self._top is None:
            warnings.warn('the session has no item that the model knows: these are the most popular ones',
                          stacklevel=self._stacklevel)
            scores = model.item_counts_ / model.item_counts_.sum()
        else:
            Wy, By = model.output_weights()
            scores = model.activate(np.asarray(self._top) @ Wy.T + By)[0]
        excluded = np.array([*self._seen] if exclude_seen else [], dtype=np.int64)
        enough = min(k + len(excluded), len(scores))
        order = np.flatnonzero(scores >= np.partition(scores, -enough)[-enough])
        order = order[~np.isin(order, excluded)]
        order = order[np.argsort(-scores[order], kind='stable')][:k]  # equal scores in the order of item indices
        return pd.DataFrame({model.item_key: model.items_[order], 'Score': scores[order]})


def recommendations(model: Any, session_items: Sequence, k: int, exclude_seen: bool) -> pd.DataFrame:
    """The k best next items of one session, or of each of a list of sessions: see `GRU4Rec.recommend`."""
    several = len(session_items) > 0 and all(isinstance(item, (list, tuple, np.ndarray, pd.Series))
                                             for item in session_items)
    frames = []
    for number, items in enumerate(session_items if several else [session_items]):
        session = Session(model, stacklevel=4)
        for index in session.skip_unknown(items):
            session.step(index)
        frame = session.recommend(k, exclude_seen)
        frames.append(frame.assign(Session=number)[['Session', *frame.columns]] if several else frame)
    return pd.concat(frames, ignore_index=True)
