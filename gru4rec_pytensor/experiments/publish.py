"""All that a folder has for a data set, whichever command made it: tables.md, claims.md and report.html."""
from __future__ import annotations

from gru4rec_pytensor.experiments.cells import Cell, Options
from gru4rec_pytensor.experiments.claims import claims_section
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.report import format_report
from gru4rec_pytensor.experiments.results import Results, write_text
from gru4rec_pytensor.experiments.tables import (
    Section,
    as_markdown,
    rows_of_later,
    rows_of_tables,
    tables_1_and_3,
    tables_2,
)
from gru4rec_pytensor.files import FileLock


def publish(results: Results, data: Dataset, with_report: bool = False) -> dict[str, str]:
    """Write what the folder has by now, and return the texts by the names of their files; the report on demand.

    Commands that write at the same time take turns, so that none replaces a later state by an earlier one.
    """
    with FileLock(results.folder / '.publish.lock'):
        cells = results.load('cells', data.fingerprint)
        claims = [claims_section(cells, data, options_of_claims(asked), asked['is_quick'])
                  for asked in results.load('claims', data.fingerprint) if asked['protocol'] == data.protocol.title]
        later = rows_of_later(cells, results.load('parameters', data.fingerprint), data.protocol)
        sections = {'tables.md': table_sections(results, cells, later, data),
                    'claims.md': [section for section in claims if section.tables[0].rows]}
        texts = {name: '\n'.join(as_markdown(data, section) for section in of_file)
                 for name, of_file in sections.items() if of_file}
        if with_report:
            others = [section for section in sections['tables.md'] if section.tables[0].title.startswith('Table 2')]
            commands = sorted(results.load('commands', data.fingerprint), key=lambda command: command['began'])
            texts['report.html'] = format_report([*rows_of_tables(cells, data.protocol), *later], data,
                                                 [*others, *sections['claims.md']],
                                                 [command['command'] for command in commands])
        for name, text in texts.items():
            write_text(results.folder / name, text)
    return texts


def table_sections(results: Results, cells: list[dict], later: list[dict], data: Dataset) -> list[Section]:
    """Tables 1 and 3, those of later papers, and Table 2, as far as there is something for them."""
    tables = [tables_1_and_3(cells, data, later)] if rows_of_tables(cells, data.protocol) or later else []
    return tables + tables_2([found for found in results.load('searches', data.fingerprint)
                              if found['candidates'] == data.protocol.candidates], data)


def keep_claims(results: Results, data: Dataset, options: Options, is_quick: bool) -> None:
    """Note which claims were asked for, so that they are published from now on."""
    results.save('claims', {'data': data.fingerprint, 'revision': REVISION, 'protocol': data.protocol.title,
                            'units': options.units, 'epochs': options.epochs, 'seeds': options.seeds,
                            'tie_policy': options.tie_policy, 'backend': options.backend, 'is_quick': is_quick}, {})


def keep_parameters(results: Results, data: Dataset, cells: list[tuple[str, Cell]]) -> None:
    """Note which parameters were asked for, under the titles of their files, so that they are published from now on."""
    for title, cell in cells:
        if cell.parameters != data.protocol.parameters.get(cell.loss or ''):  # those are of Table 3
            results.save('parameters', {'data': data.fingerprint, 'revision': REVISION, 'loss': cell.loss,
                                        'parameters': cell.parameters}, {'title': title})


def options_of_claims(asked: dict) -> Options:
    """The options of claims that were asked for."""
    return Options((), (), (), tuple(asked['units']), asked['epochs'], tuple(asked['seeds']), asked['tie_policy'],
                   asked['backend'])


def keep_command(results: Results, data: Dataset, command: str, began: str) -> None:
    """Note a command that adds to the folder; `began` is when, and keeps them in order."""
    key = {'data': data.fingerprint, 'revision': REVISION, 'command': command}
    if not results.has('commands', key):
        results.save('commands', key, {'began': began})
