"""All results of a folder for a data set, whichever command made them: tables.md, claims.md and report.html."""
from __future__ import annotations

from gru4rec_pytensor import parameters
from gru4rec_pytensor.experiments.cells import Request, file_cells
from gru4rec_pytensor.experiments.claims import claims_section
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.found import best_trials
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.report import format_report
from gru4rec_pytensor.experiments.results import Results, write_text
from gru4rec_pytensor.experiments.tables import as_markdown, rows_of_later, rows_of_tables, tables_1_and_3, tables_2
from gru4rec_pytensor.files import locked


def publish(results: Results, data: Dataset, with_report: bool = False) -> dict[str, str]:
    """Write the results of a folder, and return the texts by the names of their files; the report on demand.

    Commands that write at the same time take turns, so that none replaces a later state by an earlier one.
    """
    with locked(results.folder / '.publish.lock'):
        cells = results.load('cells', data.fingerprint)
        paper = rows_of_tables(cells, data.protocol)
        later = rows_of_later(cells, results.load('parameters', data.fingerprint), data.protocol)
        searches = tables_2([found for found in results.load('searches', data.fingerprint)
                             if found['candidates'] == data.protocol.candidates], data)
        found = results.load('found', data.fingerprint)
        claims = [claims_section(cells, data, Request(
            (), (), (), tuple(asked['units']), asked['epochs'], tuple(asked['seeds']), asked['tie_policy'],
            asked['backend'], is_quick=asked['is_quick'])) for asked in results.load('claims', data.fingerprint)
            if asked['protocol'] == data.protocol.title]
        claims = [section for section in claims if section.tables[0].rows]
        tables = [tables_1_and_3(paper, later, data)] if paper or later else []
        tables += [*searches, *map(best_trials, found)]
        texts = {name: '\n'.join(as_markdown(data, section) for section in sections)
                 for name, sections in (('tables.md', tables), ('claims.md', claims)) if sections}
        if with_report:
            commands = sorted(results.load('commands', data.fingerprint), key=lambda command: command['began'])
            texts['report.html'] = format_report(paper, later, data, [*searches, *claims],
                                                 [command['command'] for command in commands], found)
        for name, text in texts.items():
            write_text(results.folder / name, text)
    return texts


def keep_request(results: Results, data: Dataset, request: Request) -> None:
    """Note which claims and files of parameters were asked for, so that they are published from now on."""
    base = {'data': data.fingerprint, 'revision': REVISION}
    if request.claims:
        results.save('claims', base | {
            'protocol': data.protocol.title, 'units': request.units, 'epochs': request.epochs, 'seeds': request.seeds,
            'tie_policy': request.tie_policy, 'backend': request.backend, 'is_quick': request.is_quick}, {})
    for path in request.files:
        cell = file_cells(path, data.protocol, request)[0]
        if cell.parameters != data.protocol.parameters.get(cell.loss or ''):  # otherwise it is a row of Table 3
            results.save('parameters', base | {'loss': cell.loss, 'parameters': cell.parameters},
                         {'title': parameters.read(path).title or path.stem})
