"""Results on disk: finished cells are kept in results.json, and only those that it lacks are run."""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from gru4rec_pytensor.experiments.cells import LATER_KEYS, RESULT_KEYS, Cell, check_batch_sizes, run_cell
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.files import atomic_file
from gru4rec_pytensor.terminal import note


def run_cells(cells: list[Cell], data: Dataset, path: Path) -> Iterator[list[dict]]:
    """Run the cells that the file of results lacks; after each cell, yields the results of those up to it."""
    results = load_results(path)
    check_batch_sizes([cell for cell in cells if not result_of(cell, results, data.name)], data.train)
    for number, cell in enumerate(cells, 1):
        done = result_of(cell, results, data.name)
        note(f'[{number}/{len(cells)}] {cell.title}' + (f': already in {path}' if done else ''))
        if not done:
            result = json.loads(json.dumps(run_cell(cell, data)))  # as it will be read
            others = [other for other in load_results(path) if other not in results]  # of another run, meanwhile
            results = [*results, *others, result]
            write_text(path, json.dumps(results, indent=1) + '\n')
        yield [found for cell in cells[:number] if (found := result_of(cell, results, data.name))]


def load_results(path: Path) -> list[dict]:
    """Results of earlier runs; an empty list when there are none.  ValueError if the file is of something else."""
    if not path.exists():
        return []
    with contextlib.suppress(ValueError):
        results = json.loads(path.read_text())
        if isinstance(results, list) and all(
                set(RESULT_KEYS) - set(LATER_KEYS) <= set(result) for result in results):
            return results
    raise ValueError(f'{path}: not a results file of this program; move it away, or choose another --out')


def result_of(cell: Cell, results: list[dict], dataset: str) -> dict | None:
    """The result of a cell on a data set, if it is among `results`; those of other revisions do not count."""
    wanted = cell._asdict() | {'dataset': dataset, 'revision': REVISION}
    wanted.pop('table')  # the claims compare cells of the tables, too
    return next((result for result in results if all(result.get(key) == value for key, value in wanted.items())), None)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    with atomic_file(path) as file:
        file.write(text.encode())
