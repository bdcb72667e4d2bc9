"""Cells: the numbers of a table, each of one model that is trained and evaluated, apart from the data."""
from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import pytensor

from evaluation import CUT_OFF, TIE_POLICIES, next_item_ranks_with_misses, recall_mrr
from gru4rec import GRU4Rec, changed_arguments
from gru4rec_pytensor.events import most_frequent, n_trainable_sessions, session_of_event, session_order
from gru4rec_pytensor.experiments.datasets import Dataset, Events
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, REVISION, Protocol
from gru4rec_pytensor.experiments.published import arguments_of, distinct_arguments
from gru4rec_pytensor.parameters import read as read_parameters
from gru4rec_pytensor.terminal import TrainingProgress

# What is kept of each cell beside its key; what can be derived, such as its table and the published numbers, is not.
RESULT_KEYS = ('recall@20', 'recall@19', 'mrr@20', 'fit_seconds', 'eval_seconds', 'train_events_per_second',
               'eval_events_per_second', 'epoch_losses', 'details', 'versions')

# The details of a result.  The bins are named, with their last position, or their share of the items at their end.
CUT_OFFS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100)
POSITIONS = {'2': 2, '3': 3, '4': 4, '5': 5, '6-10': 10, '11-20': 20, 'later': np.inf}
POPULARITY = {'top 1%': 0.01, 'to 5%': 0.05, 'to 20%': 0.2, 'to 50%': 0.5, 'the rest': 1.0}


@dataclass(frozen=True)
class Options:
    """What to train, and how to rank.

    tables : of 1, 2 and 3
    models : rows of Tables 1 and 3, of `BASELINES` and `NETWORK`
    losses : rows of Tables 2 and 3, of `protocols.LOSS_NAMES`
    units : hidden units of the networks; for the claims two numbers, of small and of large ones
    epochs : training epochs of the networks
    seeds : one training for each
    tie_policy : of `evaluation.TIE_POLICIES`
    backend : as `backends.resolve` returns it
    """
    tables: tuple[int, ...]
    models: tuple[str, ...]
    losses: tuple[str, ...]
    units: tuple[int, ...]
    epochs: int
    seeds: tuple[int, ...]
    tie_policy: str
    backend: str


class Cell(NamedTuple):
    """One number of a table: what is trained and evaluated, apart from the data."""
    model: str
    loss: str | None
    units: int | None
    epochs: int | None
    seed: int | None
    parameters: dict
    tie_policy: str
    candidates: int | None = None  # see `Protocol`
    backend: str | None = None  # of a network

    @property
    def title(self) -> str:
        """Model, loss, units and seed, as far as it has them."""
        return ' '.join(str(part) for part in (self.model, self.loss, self.units, self.seed) if part is not None)

    def key(self, fingerprint: str) -> dict:
        """All that its number depends on; `fingerprint` is that of the data."""
        return {'data': fingerprint, 'revision': REVISION} | self._asdict()


def network_cell(loss: str, units: int | None, epochs: int, seed: int, parameters: dict, options: Options,
                 candidates: int | None) -> Cell:
    """The cell of a network, ranked by the policy and trained on the backend of the options."""
    return Cell(NETWORK, loss, units, epochs, seed, parameters, options.tie_policy, candidates, options.backend)


def plan(protocol: Protocol, options: Options) -> list[Cell]:
    """The cells of Tables 1 and 3, in the paper's order.  Table 3 needs Item-KNN, for the gain over it."""
    tables, models, candidates = options.tables, options.models, protocol.candidates
    if not {1, 3} & set(tables):
        return []
    cells = []
    for model, (_class, parameters) in BASELINES.items():
        if model in models and (1 in tables or model == 'Item-KNN'):
            n_epochs = parameters.get('n_iterations')
            for seed in options.seeds if model == 'BPR-MF' else [None]:
                cells.append(Cell(model, None, None, n_epochs, seed, parameters, options.tie_policy, candidates))
    if 3 in tables and NETWORK in models:
        cells += [network_cell(loss, n, options.epochs, seed, protocol.parameters[loss], options, candidates)
                  for n in options.units for loss in options.losses for seed in options.seeds]
    if not cells:
        raise ValueError(f'--table {" ".join(map(str, tables))} has no row for --models {" ".join(models)}')
    return cells


def memory_of(model: str, n_events: int) -> float:
    """Bytes that training and evaluation on so many events take, of which those of BPR-MF's vectors are as many again.
    """
    return (0.5e9 + 120 * n_events) * (2 if model == 'BPR-MF' else 1)


def plan_files(paths: Sequence[str | Path], protocol: Protocol, options: Options,
               epochs: int | None = None) -> list[tuple[str, Cell]]:
    """The cells of networks with the parameters of files, each with the title of its file: one for each seed.

    Cells are equal if their networks are, however files spell it; those of a row of Table 3 are that row's.  Names of
    columns, seed and backend of a file do not count; `epochs`, if given, goes before the file's.
    """
    cells = []
    for path in paths:
        model = GRU4Rec.from_parameters(path)
        title = read_parameters(path).title or Path(path).stem
        n_epochs, units = epochs or model.n_epochs, model.layers[0] if len(model.layers) == 1 else None
        parameters, preset = network_parameters(changed_arguments(model)), protocol.parameters.get(model.loss)
        if preset and parameters == network_parameters({'layers': [units], 'loss': model.loss} | preset):
            parameters = preset
        cells += [(title, network_cell(model.loss, units, n_epochs, seed, parameters, options, protocol.candidates))
                  for seed in options.seeds]
    return cells


def network_parameters(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of a network, in one spelling, that are no fields of a cell of their own."""
    return {name: value for name, value in distinct_arguments(arguments).items() if name not in (
        'loss', 'n_epochs', 'seed', 'backend', 'session_key', 'item_key', 'time_key')}


def check_batch_sizes(cells: list[Cell], train: pd.DataFrame) -> None:
    """ValueError, before any training, when a cell needs more parallel sessions than there are."""
    n_sessions = n_trainable_sessions(train)
    for cell in cells:
        batch_size = cell.parameters.get('batch_size', 0)
        if batch_size > n_sessions:
            raise ValueError(f'{cell.model} with {cell.loss} trains {batch_size} sessions in parallel, but the '
                             f'training data has {n_sessions} of two or more events; more data is needed, or other '
                             'rows (--loss)')


# ---------------------------------------------------------------------------------------------------------------------
# Training and evaluation
# ---------------------------------------------------------------------------------------------------------------------

def run_cell(cell: Cell, data: Dataset | Events, checkpoint: Path | None = None, every: float = 600.0,
             report: Callable[[str, bool], None] | None = None) -> dict:
    """Train and evaluate; the result as it is kept, with `RESULT_KEYS`.

    Parameters
    ----------
    checkpoint : file of a network's training, and where it goes on from if that is there
    every : seconds between two times that it is written
    report : is called with how far the training is, and whether an epoch has ended
    """
    goes_on = bool(checkpoint and checkpoint.exists())
    started = time.perf_counter()
    if cell.model == NETWORK:
        model, events_per_second = fit_network(cell, data.train, checkpoint, every, report)
    else:
        model, events_per_second = fit_baseline(cell, data.train)
    result = dict.fromkeys(RESULT_KEYS) | {
        'fit_seconds': None if goes_on else time.perf_counter() - started,  # the first part was not measured
        'train_events_per_second': None if goes_on else events_per_second, 'versions': versions(),
        'epoch_losses': model.epoch_losses_ if cell.model == NETWORK else None}  # BPR-MF has some, too
    if not getattr(model, 'error_during_train', False):
        result |= evaluate(model, cell, data)
    return result


def fit_network(cell: Cell, train: pd.DataFrame, checkpoint: Path | None, every: float,
                report: Callable[[str, bool], None] | None) -> tuple[GRU4Rec, float | None]:
    """The trained network of a cell, and how many events a second it was trained on, compilation left out."""
    started = time.perf_counter()
    progress = TrainingProgress(cell.title, quiet=True, report=report)
    arguments: dict[str, Any] = arguments_of(cell._asdict()) | dict(seed=cell.seed, backend=cell.backend)
    model = GRU4Rec(**arguments)
    model.fit(train, callback=progress, checkpoint=checkpoint, every=every)
    return model, progress.close(time.perf_counter() - started)


def fit_baseline(cell: Cell, train: pd.DataFrame) -> tuple[Any, float]:
    """The trained baseline of a cell, and how many events a second it was trained on."""
    started = time.perf_counter()
    seed = {} if cell.seed is None else {'seed': cell.seed}
    model = BASELINES[cell.model][0](**cell.parameters, **seed)
    model.fit(train)
    return model, len(train) * (cell.epochs or 1) / (time.perf_counter() - started)


def evaluate(model: Any, cell: Cell, data: Dataset | Events) -> dict:
    """Metrics of a trained model, and what evaluation took."""
    started = time.perf_counter()
    candidates = most_frequent(data.train.ItemId, cell.candidates)
    ranks = next_item_ranks_with_misses(model, data.test, candidates, tie_policy=cell.tie_policy)
    seconds = time.perf_counter() - started
    recall, mrr = recall_mrr(ranks, CUT_OFF)
    result = {'recall@20': recall, 'recall@19': recall_mrr(ranks, CUT_OFF - 1)[0], 'mrr@20': mrr,
              'eval_seconds': seconds, 'eval_events_per_second': len(ranks) / seconds,
              'details': rank_details(ranks, data)}
    if cell.model == 'Item-KNN':
        result['other_tie_policies'] = {
            policy: recall_mrr(next_item_ranks_with_misses(model, data.test, candidates, tie_policy=policy), CUT_OFF)
            for policy in TIE_POLICIES if policy != cell.tie_policy}
    return result


def rank_details(ranks: np.ndarray, data: Dataset | Events) -> dict:
    """Recall and MRR over cut-offs; Recall@20 by position in the session, and by popularity of the next item.

    An item that training does not have belongs to no part of the popular ones.
    """
    rows, offsets = session_order(data.test)
    position = np.delete(np.arange(len(rows)) - offsets[session_of_event(offsets)] + 1, offsets[:-1])
    target = np.delete(data.test.ItemId.to_numpy()[rows], offsets[:-1])
    by_popularity = data.train.ItemId.value_counts().index
    place = by_popularity.get_indexer(target)
    popularity = np.where(place < 0, len(by_popularity), place) / len(by_popularity)

    def recall_by_bin(values: np.ndarray, bins: dict[str, float], right: bool) -> list[list]:
        bin_of = np.searchsorted(list(bins.values()), values, side='left' if right else 'right')
        return [[name, int((bin_of == k).sum()), float((ranks[bin_of == k] <= CUT_OFF).mean())]
                for k, name in enumerate(bins) if (bin_of == k).any()]

    recall, mrr = zip(*[recall_mrr(ranks, n) for n in CUT_OFFS])
    return {'recall': list(recall), 'mrr': list(mrr), 'by_position': recall_by_bin(position, POSITIONS, True),
            'by_popularity': recall_by_bin(popularity, POPULARITY, False)}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {'python': platform.python_version(), 'pytensor': pytensor.__version__, 'numpy': np.__version__,
             'numba': numba.__version__, 'pandas': pd.__version__}
    return found | ({'jax': sys.modules['jax'].__version__} if sys.modules.get('jax') else {})
