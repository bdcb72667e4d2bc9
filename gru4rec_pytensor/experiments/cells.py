"""Cells: the models of a request, to be trained and evaluated, each for one number of a table."""
from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import pytensor

from evaluation import CUT_OFF, TIE_POLICIES, ndcg, next_item_ranks_with_misses, recall_mrr
from gru4rec import GRU4Rec, changed_arguments, final_activation
from gru4rec_pytensor.events import most_frequent, n_trainable_sessions, session_of_event, session_order
from gru4rec_pytensor.experiments.datasets import Dataset, Events
from gru4rec_pytensor.experiments.own import OwnRow, own_class
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, REVISION, Protocol
from gru4rec_pytensor.lists import Lists, coverage_and_popularity
from gru4rec_pytensor.terminal import TrainingProgress

# What is kept of each cell beside its key and its ranks; its table and the published numbers are looked up.
RESULT_KEYS = ('recall@20', 'recall@19', 'mrr@20', 'ndcg@20', 'fit_seconds', 'eval_seconds', 'train_events_per_second',
               'eval_events_per_second', 'epoch_losses', 'details', 'versions')

LISTS_KEYS = ('coverage@20', 'popularity@20')  # of cells whose lists were measured

# The details of a result.  Bins by name: the last position of each, and the share of the items up to its end.
CUT_OFFS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100)
POSITIONS = {'2': 2, '3': 3, '4': 4, '5': 5, '6-10': 10, '11-20': 20, 'later': np.inf}
POPULARITY = {'top 1%': 0.01, 'to 5%': 0.05, 'to 20%': 0.2, 'to 50%': 0.5, 'the rest': 1.0}


class Request(NamedTuple):
    """The models to train and evaluate, and their options."""
    tables: tuple[int, ...]  # of 1, 2 and 3
    models: tuple[str, ...]  # rows of Tables 1 and 3, of `BASELINES` and `NETWORK`
    losses: tuple[str, ...]  # rows of Tables 2 and 3, of `protocols.LOSS_NAMES`
    units: tuple[int, ...]  # hidden units of the networks; for the claims two numbers, of small and of large ones
    epochs: int  # training epochs of the networks
    seeds: tuple[int, ...]  # one training for each
    tie_policy: str  # of `evaluation.TIE_POLICIES`
    backend: str  # of `backends.BACKENDS`
    files: tuple[Path, ...] = ()  # with the parameters of networks
    own_epochs: int | None = None  # epochs of these networks, if not those of the files
    claims: bool = False  # whether to compare the variants of the claims
    is_quick: bool = False  # with fewer random points
    n_trials: int = 100  # random points of the search
    prune: bool = False  # whether it stops trials early
    figures: bool = False  # whether to draw figures
    own: tuple[OwnRow, ...] = ()  # rows of one's own
    compared: tuple[str, ...] | None = None  # titles of rows to compare, none for all; None without a comparison
    again: bool = False  # whether cells that kept no ranks are run again
    lists_metrics: bool = False  # whether lists of items are measured, too
    search: dict[str, Any] = {}  # space, sampler, metric and timeout of a `search.Search`, if a space is searched

    @property
    def is_search(self) -> bool:
        """Whether parameters are searched, those of Table 2 or of a space."""
        return 2 in self.tables or bool(self.search)


class Cell(NamedTuple):
    """One number of a table: a model to train and evaluate, and how, apart from the data."""
    model: str
    loss: str | None
    units: int | None
    epochs: int | None
    seed: int | None
    parameters: dict
    tie_policy: str
    candidates: int | None = None  # see `Protocol`
    backend: str | None = None  # of a network
    source: str | None = None  # of a model of one's own, see `own`: changes with the text of its module

    @property
    def title(self) -> str:
        """Model, loss, units and seed, without those that it lacks."""
        return ' '.join(str(part) for part in (self.model, self.loss, self.units, self.seed) if part is not None)

    def key(self, fingerprint: str) -> dict:
        """Return all that its number depends on; `fingerprint` is that of the data."""
        fields = self._asdict()
        if self.source is None:  # so that cells from before there were models of one's own keep their keys
            del fields['source']
        return {'data': fingerprint, 'revision': REVISION} | fields


def network_cell(loss: str, units: int | None, epochs: int, seed: int, parameters: dict, request: Request,
                 candidates: int | None) -> Cell:
    """Return the cell of a network, ranked by the policy and trained on the backend of a request."""
    return Cell(NETWORK, loss, units, epochs, seed, parameters, request.tie_policy, candidates, request.backend)


def plan(protocol: Protocol, request: Request) -> list[Cell]:
    """Return the cells of Tables 1 and 3, in the paper's order, then those of files.

    Table 3 needs Item-KNN, for the gain over it.
    """
    tables, models, candidates = request.tables, request.models, protocol.candidates
    cells = []
    for model, (_class, parameters) in BASELINES.items():
        if model in models and (1 in tables or 3 in tables and model == 'Item-KNN'):
            n_epochs = parameters.get('n_iterations')
            for seed in request.seeds if model == 'BPR-MF' else [None]:
                cells.append(Cell(model, None, None, n_epochs, seed, parameters, request.tie_policy, candidates))
    for row in [row for row in request.own if not row.path]:  # lists are ranked already
        for seed in request.seeds if row.is_seeded else [None]:
            cells.append(Cell(row.model, None, None, None, seed, row.parameters, request.tie_policy, candidates,
                              source=row.source))
    if 3 in tables and NETWORK in models:
        cells += [network_cell(loss, n, request.epochs, seed, protocol.parameters[loss], request, candidates)
                  for n in request.units for loss in request.losses for seed in request.seeds]
    if not cells and {1, 3} & set(tables):
        raise ValueError(f'--table {" ".join(map(str, tables))} has no row for --models {" ".join(models)}')
    for path in request.files:
        cells += [cell for cell in file_cells(path, protocol, request) if cell not in cells]
    return cells


def file_cells(path: Path, protocol: Protocol, request: Request) -> list[Cell]:
    """Return the cells of a network with the parameters of a file, one for each seed.

    Cells are equal if their networks are, however files spell it; those of a row of Table 3 are that row's.  Names of
    columns, seed and backend in a file do not count.
    """
    model = GRU4Rec.from_parameters(path)
    units = model.layers[0] if len(model.layers) == 1 else None
    parameters, preset = network_parameters(changed_arguments(model)), protocol.parameters.get(model.loss)
    if preset and parameters == network_parameters({'layers': [units], 'loss': model.loss} | preset):
        parameters = preset
    return [network_cell(model.loss, units, request.own_epochs or model.n_epochs, seed, parameters, request,
                         protocol.candidates) for seed in request.seeds]


def network_parameters(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network, in one spelling, for which a cell has no field of its own."""
    return {name: value for name, value in distinct_arguments(arguments).items() if name not in (
        'loss', 'n_epochs', 'seed', 'backend', 'session_key', 'item_key', 'time_key')}


def distinct_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network in one spelling: two networks are the same if these are.

    Defaults are left out, and so are arguments that nothing is computed from.
    """
    model = GRU4Rec(**arguments)
    idle = {'bpreg'} if model.loss != 'bpr-max' else set()
    idle |= set() if model.n_sample else {'sample_alpha', 'sample_store'}
    found = changed_arguments(model) | {'final_act': final_activation(model.loss, model.final_act)}
    return {name: value for name, value in found.items() if name not in idle}


def arguments_of(result: dict) -> dict[str, Any]:
    """Return the arguments of `GRU4Rec` for a cell or result of a network, apart from seed and backend."""
    arguments = {'layers': [result['units']]} | result['parameters']
    return arguments | {'loss': result['loss'], 'n_epochs': result['epochs']}


def check_batch_sizes(cells: list[Cell], train: pd.DataFrame) -> None:
    """Raise ValueError, before any training, when a cell needs more parallel sessions than there are."""
    n_sessions = n_trainable_sessions(train)
    for cell in cells:
        batch_size = cell.parameters.get('batch_size', 0)
        if cell.model == NETWORK and batch_size > n_sessions:
            raise ValueError(f'{cell.model} with {cell.loss} trains {batch_size} sessions in parallel, but the '
                             f'training data has {n_sessions} of two or more events; more data is needed, or other '
                             'rows (--loss)')


# ---------------------------------------------------------------------------------------------------------------------
# Training and evaluation
# ---------------------------------------------------------------------------------------------------------------------

def run_cell(cell: Cell, data: Dataset | Events, checkpoint: Path | None = None, every: float = 600.0,
             report: Callable[[str, bool], None] | None = None,
             sources: Path | None = None, with_lists: bool = False) -> tuple[dict, np.ndarray | None]:
    """Train and evaluate; return the result as it is kept, with `RESULT_KEYS`, and the ranks of a stable network.

    checkpoint : file of a network's training, which continues from it if it is there
    every : seconds between two times that it is written
    report : is called with the progress of the training, and whether an epoch has ended
    sources : folder of copies of the user's modules, see `own.keep_source`
    with_lists : whether to measure lists of items, too, see `LISTS_KEYS`
    """
    is_resumed = bool(checkpoint and checkpoint.exists())
    started = time.perf_counter()
    if cell.model == NETWORK:
        progress = TrainingProgress(cell.title, quiet=True, report=report)
        arguments: dict[str, Any] = arguments_of(cell._asdict()) | dict(seed=cell.seed, backend=cell.backend)
        model: Any = GRU4Rec(**arguments)
        is_resumed &= fit_from_checkpoint(model, data.train, checkpoint, every, progress, report)
        events_per_second = progress.close(time.perf_counter() - started)  # compilation left out
    else:
        kind = own_class(cell.model, cell.source, sources) if cell.source else BASELINES[cell.model][0]
        model = kind(**cell.parameters, **({} if cell.seed is None else {'seed': cell.seed}))
        model.fit(data.train.copy() if cell.source else data.train)  # theirs may change it
        events_per_second = len(data.train) * (cell.epochs or 1) / (time.perf_counter() - started)
    result = dict.fromkeys(RESULT_KEYS) | {
        'fit_seconds': None if is_resumed else time.perf_counter() - started,  # the first part was not measured
        'train_events_per_second': None if is_resumed else events_per_second, 'versions': versions(),
        'epoch_losses': model.epoch_losses_ if cell.model == NETWORK else None}  # BPR-MF has some, too
    if getattr(model, 'error_during_train', False):
        return result, None
    started, lists = time.perf_counter(), Lists(CUT_OFF) if with_lists else None
    candidates = most_frequent(data.train.ItemId, cell.candidates)
    if cell.source and not hasattr(model, 'items_'):  # optional in a model of one's own
        model.items_ = data.train.ItemId.unique()
    ranks = next_item_ranks_with_misses(model, data.test, candidates, tie_policy=cell.tie_policy, lists=lists)
    seconds = time.perf_counter() - started
    result |= metrics_of_ranks(ranks, data) | {'eval_seconds': seconds, 'eval_events_per_second': len(ranks) / seconds}
    if lists:
        result |= dict(zip(LISTS_KEYS, coverage_and_popularity(lists.items, data.train.ItemId.value_counts())))
    if cell.model == 'Item-KNN':
        result['other_tie_policies'] = {
            policy: recall_mrr(next_item_ranks_with_misses(model, data.test, candidates, tie_policy=policy), CUT_OFF)
            for policy in TIE_POLICIES if policy != cell.tie_policy}
    return result, ranks


def fit_from_checkpoint(model: GRU4Rec, train: pd.DataFrame, checkpoint: Path | None, every: float,
                        callback: Callable | None, report: Callable[[str, bool], None] | None) -> bool:
    """Train a network; return False if its checkpoint was damaged, or of another training, and so was set aside."""
    try:
        model.fit(train, callback=callback, checkpoint=checkpoint, every=every)
    except ValueError as error:
        if not checkpoint or not checkpoint.exists() or not str(error).startswith(f'{checkpoint}: '):
            raise
        aside = checkpoint.replace(checkpoint.with_name(f'{checkpoint.name}.damaged'))
        if report:
            report(f'{error}; it is now {aside.name}, and the training begins from the start', True)
        model.fit(train, callback=callback, checkpoint=checkpoint, every=every)
        return False
    return True


def metrics_of_ranks(ranks: np.ndarray, data: Dataset | Events) -> dict:
    """Return the metrics of ranks, and as details those by cut-off, and Recall@20 in each bin that is not empty."""
    recall, mrr = recall_mrr(ranks, CUT_OFF)
    recalls, mrrs = recall_mrr(ranks, CUT_OFFS)
    details: dict = {'recall': recalls.tolist(), 'mrr': mrrs.tolist(), 'ndcg': ndcg(ranks, CUT_OFFS).tolist()}
    for kind, (names, bin_of) in bins_of_predictions(data).items():
        details[kind] = [[name, int((bin_of == k).sum()), float((ranks[bin_of == k] <= CUT_OFF).mean())]
                         for k, name in enumerate(names) if (bin_of == k).any()]
    return {'recall@20': recall, 'recall@19': recall_mrr(ranks, CUT_OFF - 1)[0], 'mrr@20': mrr,
            'ndcg@20': ndcg(ranks, CUT_OFF), 'details': details}


def bins_of_predictions(data: Dataset | Events) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return names of bins, and the bin of each prediction, by position in the session and by popularity of its item.

    An item that training lacks is in no bin of popularity.
    """
    rows, offsets = session_order(data.test)
    position = np.delete(np.arange(len(rows)) - offsets[session_of_event(offsets)] + 1, offsets[:-1])
    target = np.delete(data.test.ItemId.to_numpy()[rows], offsets[:-1])
    by_popularity = data.train.ItemId.value_counts().index
    place = by_popularity.get_indexer(target)
    popularity = np.where(place < 0, len(by_popularity), place) / len(by_popularity)

    return {'by_position': ([*POSITIONS], np.searchsorted([*POSITIONS.values()], position, side='left')),
            'by_popularity': ([*POPULARITY], np.searchsorted([*POPULARITY.values()], popularity, side='right'))}


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {'python': platform.python_version(), 'pytensor': pytensor.__version__, 'numpy': np.__version__,
             'numba': numba.__version__, 'pandas': pd.__version__}
    return found | ({'jax': sys.modules['jax'].__version__} if sys.modules.get('jax') else {})
