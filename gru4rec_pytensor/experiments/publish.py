"""All results of a folder for a data set, whichever command made them: tables.md, claims.md and report.html."""
from __future__ import annotations

from gru4rec_pytensor import parameters
from gru4rec_pytensor.experiments import comparisons, tables
from gru4rec_pytensor.experiments.cells import Cell, Request, file_cells
from gru4rec_pytensor.experiments.claims import claims_section
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.found import best_trials
from gru4rec_pytensor.experiments.protocols import BASELINES, REVISION, ROW_TITLES
from gru4rec_pytensor.experiments.report import format_report
from gru4rec_pytensor.experiments.results import Results, write_text
from gru4rec_pytensor.files import locked

OF_CLAIMS = ('units', 'epochs', 'seeds', 'tie_policy', 'backend', 'is_quick')  # what a comparison of claims depends on


def publish(results: Results, data: Dataset, with_report: bool = False) -> dict[str, str]:
    """Write the results of a folder, and return the texts by the names of their files; the report on demand.

    Commands that write at the same time take turns, so that none replaces a later state by an earlier one.
    """
    with locked(results.folder / '.publish.lock'):
        cells = results.load('cells', data.fingerprint)
        rows = rows_of(cells, results, data)
        # Bootstraps take seconds: the last call of a command makes them.
        ranks = comparisons.ranks_of_rows(rows, results) if with_report else {}
        rows = comparisons.with_intervals(rows, ranks, data)
        searches, found = ([found for found in results.load(kind, data.fingerprint)
                            if found.get('candidates') == data.protocol.candidates] for kind in ('searches', 'found'))
        searched = tables.tables_2(searches, data)
        claims = []
        for asked in results.load('claims', data.fingerprint):
            if asked['protocol'] == data.protocol.title:
                request = Request((), (), (), **{name: asked[name] for name in OF_CLAIMS})
                claims.append(claims_section(cells, results, data, request, with_report))
        claims = [section for section in claims if section.tables[0].rows]
        sections = [tables.tables_1_and_3(rows, data)] if rows else []
        if any(result['intervals'] for result in rows):
            sections[0].notes.insert(1, comparisons.INTERVALS)
        titles, pairs = tables.titles_of_rows(rows), {}
        for asked in results.load('comparisons', data.fingerprint) if with_report and rows else []:
            names = tuple(titles[row] for row in map(tuple, asked['rows']) if row in titles)
            if names or not asked['rows']:
                pairs[names] = comparisons.compare_rows(rows, ranks, data, names)
        compared = [comparisons.section_of_pairs(pairs, comparisons.without_ranks(rows, ranks))] if pairs else []
        for section in compared:
            sections[0].tables.extend(section.tables)
            sections[0].notes.extend(section.notes)
        files = {'tables.md': [*sections, *searched, *map(best_trials, found)], 'claims.md': claims}
        texts = {name: '\n'.join(tables.as_markdown(data, section) for section in of_file)
                 for name, of_file in files.items() if of_file}
        if with_report:
            drawn = sorted((results.folder / 'figures' / data.fingerprint).glob('*.svg'))
            figures = [path.relative_to(results.folder).as_posix() for path in drawn]
            commands = sorted(results.load('commands', data.fingerprint), key=lambda command: command['began'])
            texts['report.html'] = format_report(rows, data, [*compared, *searched, *claims],
                                                 [command['command'] for command in commands],
                                                 [*pairs.values()], ranks, figures, found)
        for name, text in texts.items():
            write_text(results.folder / name, text)
    return texts


def rows_of(cells: list[dict], results: Results, data: Dataset) -> list[dict]:
    """Return the cells that are rows of tables, of those of one's own and of files the ones that were asked for."""
    own, files = (results.load(kind, data.fingerprint) for kind in ('rows', 'parameters'))
    return tables.rows_of_tables(cells, data.protocol, own, files)


def cells_without_ranks(results: Results, data: Dataset, planned: list[Cell]) -> list[Cell]:
    """Return the cells of the tables' rows, beside those planned, that an earlier version kept without ranks."""
    found = [Cell._make(result.get(name) for name in Cell._fields)
             for result in rows_of(results.load('cells', data.fingerprint), results, data)
             if result['recall@20'] is not None and not result.get('ranks')]
    return [cell for cell in found if cell not in planned]


def keep_request(results: Results, data: Dataset, request: Request, planned: list[Cell]) -> None:
    """Note which claims, files of parameters, rows of one's own and comparisons were asked for, to be published.

    ValueError if a row to compare is neither in the folder nor planned.
    """
    base, cells = {'data': data.fingerprint, 'revision': REVISION}, results.load('cells', data.fingerprint)
    kept = {row['title']: (row['model'], row['parameters']) for row in results.load('rows', data.fingerprint)}
    taken = {*BASELINES, *ROW_TITLES.values()}
    if request.own:
        others = [result for result in rows_of(cells, results, data) if not result.get('source')]
        taken |= {*tables.titles_of_rows(others).values()}
    for row in request.own:
        if row.title in taken or kept.setdefault(
                row.title, (row.model, row.parameters)) != (row.model, row.parameters):
            raise ValueError(f'--name: {row.title!r} is the title of another row; give {row.model} a title of its own')
        results.save('rows', base | {'model': row.model, 'parameters': row.parameters},
                     {'source': row.source, 'title': row.title})
    if request.claims:
        results.save('claims', base | {'protocol': data.protocol.title}
                     | {name: getattr(request, name) for name in OF_CLAIMS}, {})
    for path in request.files:
        cell = file_cells(path, data.protocol, request)[0]
        if cell.parameters != data.protocol.parameters.get(cell.loss or ''):  # otherwise it is a row of Table 3
            results.save('parameters', base | {'loss': cell.loss, 'parameters': cell.parameters},
                         {'title': parameters.read(path).title or path.stem})
    if request.compared is not None:
        unrun: list[dict] = [cell._asdict() | {'recall@20': None} for cell in planned]
        rows = rows_of([*cells, *unrun], results, data)
        known, compared = tables.titles_of_rows(rows), []
        shown = {row: tables.title_of(ours[0]) for row, ours in tables.by_row(rows).items()}
        if not known:
            raise ValueError(f'--compare: {results.folder} has no rows of tables for this data')
        for title in request.compared:
            named = [row for row in known if known[row] == title] or [row for row in shown if shown[row] == title]
            if len(named) != 1:
                problem = 'is the title of several rows' if named else 'no such row'
                raise ValueError(f"--compare {title!r}: {problem}; there are {'; '.join(known.values())}")
            compared += named
        results.save('comparisons', base | {'rows': compared}, {})
