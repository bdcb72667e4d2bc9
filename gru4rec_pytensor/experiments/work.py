"""The work of a command, shared by any number of processes: the cells that a folder lacks, and the trials of a search.

Processes find data, results and checkpoints in the folder, which all of them see, and take turns by its locks.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation import CUT_OFF
from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import (
    CUT_OFFS,
    LISTS_KEYS,
    RESULT_KEYS,
    Cell,
    Request,
    check_batch_sizes,
    metrics_of_ranks,
    run_cell,
    versions,
)
from gru4rec_pytensor.experiments.datasets import Dataset, open_events
from gru4rec_pytensor.experiments.engines import Engine, Task
from gru4rec_pytensor.experiments.found import keep
from gru4rec_pytensor.experiments.own import OwnRow
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.lists import coverage_and_popularity, ranks_of_lists
from gru4rec_pytensor.terminal import Display, note

WAIT = 2.0  # seconds, before cells that other processes train are looked for again
PATIENCE = 60.0  # seconds, until a result that was reported has to be there: network disks may be late


class Place(NamedTuple):
    """The folder for results, and the processes that compute them."""
    folder: Path
    jobs: int | None  # cells that run at the same time; None for as many as fit
    scheduler: str | None  # address of a Dask cluster that runs them, if any
    storage: str  # URL of the database of trials
    every: float  # seconds between two times that a checkpoint is written


@dataclass
class Work:
    """The data, folder and engine of a command, and its failures."""
    data: Dataset  # shared, see `datasets.share`
    results: Results
    engine: Engine
    every: float  # seconds between two times that a checkpoint is written
    wanted: tuple[str, ...] = ()  # names without which a result does not count, and its cell is run again
    failures: dict[str, str] = field(default_factory=dict)  # reasons by title


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------

def run_cells(cells: list[Cell], work: Work) -> Iterator[None]:
    """Train and evaluate the cells that the folder lacks, by the engine; yields after each.

    Cells that another command trains are left to it, and awaited when all others are done.
    """
    results, missing = work.results, missing_cells(cells, work)
    check_batch_sizes([*missing.values()], work.data.train)
    if len(missing) < len(cells):
        note(f'{len(cells) - len(missing)} of {len(cells)} cells are in {results.folder} already')
    if again := sum(results.has_cell(cell.key(work.data.fingerprint)) for cell in missing.values()):
        note(f'{again} cells are there without {" and ".join(work.wanted)}, and are run again')
    waits, reported = False, dict[str, float]()
    while missing:
        tasks = [Task(title, train_cell, (cell, results.folder, work.data.folder, work.every, work.wanted))
                 for title, cell in missing.items()
                 if title not in reported and not results.is_held(cell.key(work.data.fingerprint))]
        is_new = False
        with Display(len(tasks)) as display:
            for task, outcome in work.engine(tasks, display) if tasks else ():
                if outcome.failure:
                    work.failures[task.title] = outcome.failure
                if outcome.failure or outcome.value:
                    is_new, reported[task.title] = True, time.monotonic()
                    display.finished(task.title, outcome.failure or outcome.value)
                    yield
        missing = missing_cells(cells, work)
        for title in [title for title in missing if title in reported]:
            if time.monotonic() - reported[title] > PATIENCE:
                work.failures[title] = (f'was reported as done, but {results.folder / "cells"} lacks its result: does '
                                        'its worker use another folder of this name?')
                del missing[title]
        if missing and not is_new:
            if not waits:
                note(f'waiting for {", ".join(missing)}, of other processes')
            waits = True
            time.sleep(WAIT)


def missing_cells(cells: list[Cell], work: Work) -> dict[str, Cell]:
    """Return the cells that have no result and did not fail, each under a title of its own."""
    titles = Counter(cell.title for cell in cells)
    missing = {}
    for number, cell in enumerate(cells, 1):
        title = cell.title if titles[cell.title] == 1 else f'{cell.title} (cell {number})'
        if title not in work.failures and not work.results.has_cell(
                cell.key(work.data.fingerprint), work.wanted):
            missing[title] = cell
    return missing


def train_cell(cell: Cell, folder: Path, events: Path, every: float, wanted: tuple[str, ...],
               report: Callable[[str, bool], None]) -> str:
    """Train a cell and keep its result; return a line about it, or '' if another process trains it."""
    results, key = Results(folder), cell.key(events.name)
    with results.hold(key) as is_mine:
        if not is_mine:
            return ''
        if results.has_cell(key, wanted):
            return 'was trained by another command'
        report('begins', False)
        checkpoint = folder / 'checkpoints' / results.path('cells', key).stem
        result, ranks = run_cell(cell, open_events(events), checkpoint, every, report, folder / 'sources',
                                 LISTS_KEYS[0] in wanted)
        results.save('cells', key, result, ranks)
        checkpoint.unlink(missing_ok=True)
    return 'numerically unstable' if result['recall@20'] is None else f"Recall@20 {result['recall@20']:.4f}"


def keep_lists(row: OwnRow, read: Dataset, results: Results, request: Request) -> None:
    """Keep the ranks and metrics of lists that were made elsewhere, unless the folder has them.

    read : the data with the ids of its files, not yet shared
    """
    candidates = read.protocol.candidates
    cell = Cell(row.model, None, None, None, None, row.parameters, request.tie_policy, candidates, source=row.source)
    if results.has_cell(cell.key(read.fingerprint), LISTS_KEYS if request.lists_metrics else ()):
        return
    if candidates:
        raise ValueError(f'{row.path}: lists are of all items; --dataset video ranks among the most popular ones alone')
    assert row.path
    ranks, lists = ranks_of_lists(row.path, read.test)
    result = dict.fromkeys(RESULT_KEYS) | metrics_of_ranks(ranks, read) | {'versions': versions()}
    for kind in ('recall', 'mrr', 'ndcg'):  # beyond the lists nothing is known
        result['details'][kind] = [value if n <= lists.str.len().min() else None
                                   for n, value in zip(CUT_OFFS, result['details'][kind])]
    if request.lists_metrics:
        listed = np.array([items[:CUT_OFF] for items in lists])
        result |= dict(zip(LISTS_KEYS, coverage_and_popularity(listed, read.train.ItemId.astype(str).value_counts())))
    results.save('cells', cell.key(read.fingerprint), result, ranks)


# ---------------------------------------------------------------------------------------------------------------------
# Searches
# ---------------------------------------------------------------------------------------------------------------------

def run_searches(request: Request, validation: Dataset, url: str, n_processes: int,
                 work: Work) -> Iterator[Path | None]:
    """Search the parameters of each loss, or of a space, in processes that share its trials.

    Yields when an outcome is kept: the file of the best parameters of a space.

    validation, url : shared training and validation events, and the database of trials
    """
    sizes = {'train': validation.sizes['train'], 'valid': validation.sizes['test']}
    spaces = [search.space_of_table_2(loss, request.units[0], request.epochs) for loss in request.losses]
    for space in spaces if 2 in request.tables else [request.search['space']]:
        one = search.Search(validation.folder, space, request.seeds[0], request.backend, request.tie_policy, url,
                            work.results.folder / 'checkpoints', request.n_trials, work.data.protocol.candidates,
                            request.prune, work.every)._replace(**request.search)
        title = space.name or space.fixed['loss']
        tasks = [Task(f'search, process {k + 1}' if n_processes > 1 else 'search', search.run, (one,))
                 for k in range(n_processes)]
        found: dict = {}
        with Display(len(tasks)) as display:
            for task, outcome in work.engine(tasks, display):
                if outcome.failure:
                    work.failures[f'{task.title} of {title}'] = outcome.failure
                found = outcome.value or found
                ended = f"{len(found['trials'])} of {one.n_trials}" if 'trials' in found else 'all'
                display.finished(task.title, outcome.failure or f'{ended} trials of {title} are done')
        if one.sampler and found:
            path = keep(work.results, one, found, sizes, work.data.fingerprint)
            note(f'{path}: the best parameters' if path else 'no network of the search was trained to its end')
            yield path
        elif found:
            names = ('seed', 'backend', 'tie_policy', 'candidates', 'prune')
            key = {'data': work.data.fingerprint, 'revision': REVISION, 'validation': validation.fingerprint,
                   'space': search.SPACE, 'n_trials': one.n_trials, 'loss': title, 'units': request.units[0],
                   'epochs': request.epochs} | {name: getattr(one, name) for name in names}
            work.results.save('searches', key, found | sizes)
            yield None
