"""What is trained, by any number of processes: the cells that a folder lacks, and the trials of a search.

Processes find data, results and checkpoints in the folder, which all of them see, and take turns by its locks.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gru4rec_pytensor.events import count
from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import Cell, check_batch_sizes, run_cell
from gru4rec_pytensor.experiments.datasets import Dataset, open_events, size_in_words
from gru4rec_pytensor.experiments.engines import Engine, Task
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.terminal import Display, note

WAIT = 2.0  # seconds, before cells that other commands train are looked for again


class TasksFailed(Exception):
    """Some tasks came to no result; all others did."""


@dataclass
class Work:
    """The work of a command: what it needs, and what came of it.

    events : folder of the training and test events, see `datasets.open_events`
    every : seconds between two times that a checkpoint is written
    """
    data: Dataset
    events: Path
    results: Results
    engine: Engine
    every: float
    failures: dict[str, str] = field(default_factory=dict)  # by title

    def check(self) -> None:
        """`TasksFailed`, at the end, if there were failures."""
        if self.failures:
            reasons = '; '.join(f'{title}: {reason}' for title, reason in self.failures.items())
            raise TasksFailed(f'{len(self.failures)} failed, the others are kept: {reasons}')


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------

def run_cells(cells: list[Cell], work: Work) -> Iterator[None]:
    """Train and evaluate the cells that the folder lacks, by the engine; yields after each.

    Cells that another command is at are left to it; when all others are done, they are waited for.
    """
    results, missing = work.results, missing_cells(cells, work)
    check_batch_sizes([*missing.values()], work.data.train)
    if len(missing) < len(cells):
        note(f'{len(cells) - len(missing)} of {len(cells)} cells are in {results.folder} already')
    waits = False
    while missing:
        tasks = [Task(title, train_cell, (cell, results.folder, work.events, work.data.fingerprint, work.every))
                 for title, cell in missing.items() if not results.lock(cell.key(work.data.fingerprint)).is_held()]
        is_new = False
        with Display(len(tasks)) as display:
            for task, outcome in work.engine(tasks, display) if tasks else ():
                if outcome.failure:
                    work.failures[task.title] = outcome.failure
                if outcome.failure or outcome.value:
                    is_new = True
                    display.finished(task.title, outcome.failure or outcome.value)
                    yield
        missing = missing_cells(cells, work)
        if missing and not is_new:
            if not waits:
                note(f'waiting for other commands that are at {", ".join(missing)}')
            waits = True
            time.sleep(WAIT)


def missing_cells(cells: list[Cell], work: Work) -> dict[str, Cell]:
    """The cells that have no result and did not fail, each under a title of its own."""
    titles = Counter(cell.title for cell in cells)
    missing = {}
    for number, cell in enumerate(cells, 1):
        title = cell.title if titles[cell.title] == 1 else f'{cell.title} (cell {number})'
        if title not in work.failures and not work.results.has('cells', cell.key(work.data.fingerprint)):
            missing[title] = cell
    return missing


def train_cell(cell: Cell, folder: Path, events: Path, fingerprint: str, every: float,
               report: Callable[[str, bool], None]) -> str:
    """Train a cell and keep its result, unless another process is at it or was; what is to be said of it, if it was."""
    results, key = Results(folder), cell.key(fingerprint)
    lock = results.lock(key)
    if not lock.acquire(wait=False):
        return ''
    try:
        if results.has('cells', key):
            return 'was trained by another command'
        if lock.last_holder:
            report(f'taken over from {lock.last_holder}, which was killed', True)
        report('begins', False)
        checkpoint = results.checkpoint(key)
        result = run_cell(cell, open_events(events), checkpoint, every, report)
        results.save('cells', key, result)
        checkpoint.unlink(missing_ok=True)
    finally:
        lock.release()
    return 'numerically unstable' if result['recall@20'] is None else f"Recall@20 {result['recall@20']:.4f}"


# ---------------------------------------------------------------------------------------------------------------------
# Searches
# ---------------------------------------------------------------------------------------------------------------------

def run_search(settings: dict, n_trials: int, url: str, n_processes: int, work: Work) -> Iterator[None]:
    """The search of Table 2 for one loss, in processes that share its trials; yields when its outcome is kept.

    Parameters
    ----------
    settings : fields of `search.Search` but for the events
    url : of the database of trials
    """
    loss = settings['loss']
    settings = settings | {'checkpoints': work.results.folder / 'checkpoints', 'every': work.every}
    tasks = [Task(f'search, process {k + 1}' if n_processes > 1 else 'search', join_search,
                  (settings, work.events, n_trials, url)) for k in range(n_processes)]
    found = None
    with Display(len(tasks)) as display:
        for task, outcome in work.engine(tasks, display):
            if outcome.failure:
                work.failures[f'{task.title} of {loss}'] = outcome.failure
            found = outcome.value or found
            display.finished(task.title, outcome.failure or f'all trials of {loss} are done')
    if found:
        keep_search(settings, found, n_trials, work)
        yield


def join_search(settings: dict, events: Path, n_trials: int, url: str,
                report: Callable[[str, bool], None]) -> search.Outcome:
    """Take part in a search until it is done."""
    return search.run(search.Search(*open_events(events), **settings), n_trials, url, lambda text: report(text, True))


def keep_search(settings: dict, found: search.Outcome, n_trials: int, work: Work) -> None:
    """Write what a search found to the folder."""
    train, valid = open_events(work.events)
    names = ('loss', 'units', 'epochs', 'seed', 'backend', 'tie_policy', 'candidates', 'prune')
    key = {'data': work.data.fingerprint, 'revision': REVISION, 'validation': work.events.name,
           'space': search.SPACE, 'n_trials': n_trials} | {name: settings[name] for name in names}
    work.results.save('searches', key, found._asdict() | {
        'train': size_in_words(count(train)), 'valid': size_in_words(count(valid))})
