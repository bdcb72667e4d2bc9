"""Lists of the n items that a model ranks highest: kept while it is evaluated, measured, written, and read.

Files are in the form of session-rec: columns SessionId, Position, Recommendations and Scores, separated by semicolons,
with a line for each prediction.  Position counts the events of the session before the predicted one, from 0 or from 1;
Recommendations are item ids and Scores their scores, from the highest on, separated by commas.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd

from gru4rec_pytensor.checks import check_whole_number
from gru4rec_pytensor.events import COLUMNS, session_of_event, session_order
from gru4rec_pytensor.files import atomic_file

LISTS_COLUMNS = ('SessionId', 'Position', 'Recommendations', 'Scores')
SHORTEST = 20  # the paper's cut-off: shorter lists say too little


class Lists:
    """The n items of highest score for each prediction, which `evaluation.next_item_ranks(..., lists=)` fills.

    Attributes
    ----------
    items : (n_predictions, n) ids of items; equal scores in the order of the ranked items
    scores : float64 (n_predictions, n), -inf beyond the ranked items
    """

    def __init__(self, n: int = SHORTEST) -> None:
        check_whole_number('n', n)
        self.n = n

    def begin(self, n_predictions: int, ranked: np.ndarray | None) -> None:
        """Make room for predictions among the ids `ranked`; ValueError if these are unknown."""
        if ranked is None:
            raise ValueError('items=None: the model has no items_; pass the ids to rank among to have lists of them')
        self._ranked = np.asarray(ranked)
        self._columns = np.zeros((n_predictions, self.n), dtype=np.int32)
        self.scores = np.full((n_predictions, self.n), -np.inf)

    def take(self, prediction: np.ndarray, scores: np.ndarray, bias: np.ndarray) -> None:
        """Keep the lists of some predictions, from their scores (b, M or more) and what is added to all, (M,)."""
        self._columns[prediction], self.scores[prediction] = top_columns(scores, bias, self.n)

    @property
    def items(self) -> np.ndarray:
        """Ids of the listed items, (n_predictions, n)."""
        return self._ranked[self._columns]


def coverage_and_popularity(items: np.ndarray, counts: pd.Series) -> tuple[float, float]:
    """Coverage@n and mean popularity@n of lists, ids of items (n_predictions, n), as session-rec defines them.

    coverage : share of the training items that occur in any list
    popularity : events of an item over those of the most frequent one, mean over lists and items

    `counts` are the training events of each item, by its id.

    >>> coverage_and_popularity(np.array([[1, 2], [1, 1]]), pd.Series([1, 1, 2, 3]).value_counts())
    (0.6666666666666666, 0.875)
    """
    listed, times = np.unique(items, return_counts=True)
    places = counts.index.get_indexer(listed)
    share = np.where(places < 0, 0, counts.to_numpy()[places]) / counts.max()
    return int((places >= 0).sum()) / len(counts), float((share * times).sum() / times.sum())


@numba.njit(cache=True, nogil=True)
def top_columns(scores: np.ndarray, bias: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the n highest sums scores + bias of each row, int32 (b, n), and these sums, in order."""
    columns = np.zeros((len(scores), n), dtype=np.int32)
    best = np.full((len(scores), n), -np.inf)
    for i in range(len(scores)):
        row, top, at, lowest = scores[i], best[i], columns[i], -np.inf
        for j in range(len(bias)):
            score = row[j] + bias[j]
            if score > lowest:  # rarely: it goes to its place among the best so far
                k = n - 1
                while k > 0 and top[k - 1] < score:
                    top[k], at[k] = top[k - 1], at[k - 1]
                    k -= 1
                top[k], at[k] = score, j
                lowest = top[n - 1]
    return columns, best


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------

def write_lists(path: Path, lists: Lists, n: int, test_data: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> None:
    """Write the first n items of lists; ValueError for ids that such a file cannot hold."""
    predicting, position, session_ids, _item_ids = predictions_of(test_data, columns)
    for item in (*np.unique(lists.items[:, :n]).tolist(), *np.unique(session_ids).tolist()):
        if set(',;\n"') & set(str(item)):
            raise ValueError(f'{path}: the id {item!r} has a comma, semicolon, quote or line end, which such a file '
                             'cannot hold')
    lines = [';'.join(LISTS_COLUMNS)]
    for event, place, items, scores in zip(predicting, position, lists.items[:, :n], lists.scores[:, :n]):
        is_listed = np.isfinite(scores)
        ids, numbers = (','.join(map(str, values[is_listed].tolist())) for values in (items, scores))
        lines.append(f'{session_ids[event]};{place};{ids};{numbers}')
    with atomic_file(path) as file:
        file.write(('\n'.join(lines) + '\n').encode())


def ranks_of_lists(path: Path, test_data: pd.DataFrame,
                   columns: Sequence[str] = COLUMNS) -> tuple[np.ndarray, pd.Series]:
    """Read the lists of a file; return the rank of each next item, infinite if it is not listed, and the lists.

    ValueError for a file that is not of this form, lacks a prediction of the test data, has others, or has other ids.
    """
    predicting, position, session_ids, item_ids = predictions_of(test_data, columns)
    if not len(predicting):
        raise ValueError('every test session has a single event: there is no next item to predict')
    frame = read_frame(path)
    numbers = pd.to_numeric(frame.Position, errors='coerce')
    if (wrong := numbers.isna() | (numbers < 0) | (numbers % 1 != 0)).any():
        raise ValueError(f'{path}: Position {frame.Position[wrong].iloc[0]!r} is not a whole number')
    first = int(numbers.min()) if len(numbers) else 0
    if first not in (0, 1):
        raise ValueError(f'{path}: Position begins with {first}; it counts the events of a session from 0 or from 1')
    wanted = pd.MultiIndex.from_arrays([session_ids[predicting].astype(str), position])
    found = pd.MultiIndex.from_arrays([frame.SessionId, (numbers - first).astype(np.int64)])
    if found.has_duplicates:
        raise ValueError(f'{path}: has two lists for {in_words(found[found.duplicated()][0], first)}')
    if len(lacking := wanted.difference(found, sort=False)):
        raise ValueError(f'{path}: has no list for {in_words(lacking[0], first)}, one of {len(lacking)} that it lacks')
    if len(others := found.difference(wanted, sort=False)):
        raise ValueError(f'{path}: has a list for {in_words(others[0], first)}, which the test data does not predict')
    lists = frame.Recommendations.iloc[found.get_indexer(wanted)].str.strip().str.split(r'\s*,\s*', regex=True)
    targets = item_ids[predicting + 1].astype(str)
    ranks = np.array([1 + items.index(target) if target in items else np.inf for target, items in zip(targets, lists)])
    if np.isinf(ranks).all():
        raise ValueError(f'{path}: no list has its next item; its ids are such as {lists.iloc[0][0]!r}, and those of '
                         f'the test data such as {targets[0]!r}')
    return ranks, lists


def predictions_of(test_data: pd.DataFrame,
                   columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the events that something is predicted from, their positions from 0, and the ordered ids of all events.

    `columns` are those of session, item and time.
    """
    session, item, time = columns
    rows, offsets = session_order(test_data, session, item, time)
    predicting = np.delete(np.arange(len(rows)), offsets[1:] - 1)
    position = predicting - offsets[session_of_event(offsets)[predicting]]
    return predicting, position, *(test_data[name].to_numpy()[rows] for name in (session, item))


def read_frame(path: Path) -> pd.DataFrame:
    """Return the columns of a file of lists as text; OSError or ValueError, in one line, if it is none."""
    try:
        frame = pd.read_csv(path, sep=';', dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}; a file of lists has the columns "
                         f"{';'.join(LISTS_COLUMNS)}") from None
    if lacking := [name for name in LISTS_COLUMNS[:3] if name not in frame]:
        raise ValueError(f"{path}: has no column {lacking[0]}; a file of lists has {';'.join(LISTS_COLUMNS)}")
    lengths = frame.Recommendations.str.count(',') + 1
    if (short := lengths < SHORTEST).any():
        row = frame[short].iloc[0]
        raise ValueError(f'{path}: the list for session {row.SessionId}, position {row.Position} has '
                         f'{lengths[short].iloc[0]} items; {SHORTEST} or more are needed')
    return frame


def in_words(prediction: Any, first: int) -> str:
    """Return session and position of a prediction as text, as the file numbers them."""
    session, position = prediction
    return f'session {session}, position {position + first}'
