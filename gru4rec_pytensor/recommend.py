"""A visitor's session: what to recommend after each click."""
from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gru4rec_pytensor.checks import check_whole_number, first_few
from gru4rec_pytensor.events import as_ids

if TYPE_CHECKING:
    from gru4rec import GRU4Rec


class Session:
    """One visitor's session: `click` takes an event and recommends; its cost does not grow with the session."""

    def __init__(self, model: GRU4Rec) -> None:
        self._model = model
        self._top: np.ndarray | None = None
        self._states = model.initial_states(1)
        self._seen: set[int] = set()

    def click(self, item: Any, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """The visitor's next event, and what `GRU4Rec.recommend` gives for the session up to it."""
        for index in self.skip_unknown(as_ids([item])):
            self.step(index)
        return self.recommend(k, exclude_seen)

    def skip_unknown(self, item_ids: np.ndarray) -> np.ndarray:
        """Indices of the items that the model knows; a warning names the others."""
        indices = self._model._index_of.get_indexer(item_ids)
        if (indices < 0).any():
            warnings.warn(f'skipped item id(s) that are not in the training data: {first_few(item_ids[indices < 0])}',
                          stacklevel=3)
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
            warnings.warn('the session has no item that the model knows: these are the most popular ones', stacklevel=3)
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
