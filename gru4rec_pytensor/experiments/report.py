"""The report: one HTML page with the tables, pictures of the results, and the data and commands behind them."""
from __future__ import annotations

import html
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gru4rec_pytensor.experiments import page
from gru4rec_pytensor.experiments.cells import CUT_OFFS, versions
from gru4rec_pytensor.experiments.datasets import Dataset, data_notice
from gru4rec_pytensor.experiments.found import html_section
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK
from gru4rec_pytensor.experiments.tables import (
    TITLES,
    Section,
    by_row,
    is_papers,
    mean_metric,
    metric_in_words,
    networks_note,
    other_tables,
    paper_note,
    published_for,
    row_settings,
    ties_note,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def format_report(paper: list[dict], later: list[dict], data: Dataset, sections: list[Section],
                  commands: list[str], outcomes: Sequence[dict] = ()) -> str:
    """Return the whole page.

    Parameters
    ----------
    paper, later : results as `tables.rows_of_tables` and `tables.rows_of_later` return them
    sections : Table 2 and the claims, if they were run
    commands : that make the page again
    outcomes : of searches of spaces
    """
    results = [*paper, *later]
    parts = [f'<div class="notice">{page.paragraph(data_notice(data))}</div>', comparison_section(paper, data)]
    tables = other_tables(paper, later, data)
    tables += [(table, section.notes) for section in sections for table in section.tables]
    parts += [page.section(table.title, page.table(table.header, table.rows), *map(page.paragraph, notes))
              for table, notes in tables]
    parts += [html_section(outcome) for outcome in outcomes] + picture_sections(results)
    counts = []
    for name, numbers in data.counts.items():
        for kind, found in numbers.items():
            published = data.protocol.counts[name].get(kind)
            counts.append([name, kind, f'{found:,}', f'{published:,}' if published else '-'])
    parts.append(page.section('Data', page.table(['data', '', 'here', f'{data.protocol.title}, published'], counts)))
    if results:
        digits_of = {'fit_seconds': 1, 'train_events_per_second': 0, 'eval_seconds': 1, 'eval_events_per_second': 0}
        rows = [[title_of(result, row_settings(results)), *[
            f'{result[key]:,.{digits}f}' if result[key] is not None else '-' for key, digits in digits_of.items()]]
            for result in results]
        parts.append(page.section('Speed', page.table(
            ['run', 'fit, s', 'training events/s', 'evaluation, s', 'predictions/s'], rows,
            'Compilation is part of the seconds of the run that needs it first, not of the events per second.')))
    software = ', '.join(f'{name} {version}' for name, version in versions().items())
    parts.append(page.section('How to make this report', f'<pre>{html.escape(chr(10).join(commands))}</pre>',
                              page.paragraph(f'{software}, on {platform.system()} {platform.machine()}.')))
    return page.page(f'GRU4Rec: the experiments of the paper on {data.name}', [*filter(None, parts)])


def comparison_section(results: list[dict], data: Dataset) -> str:
    """Return Tables 1 and 3 with the differences to the published numbers; empty when there is no result."""
    if not results:
        return ''
    tables = [comparison_table([result for result in results if result['model'] in models], data, title)
              for title, models in ((TITLES[1], [*BASELINES]), (TITLES[3], [NETWORK]))]
    words = ''
    if is_papers(data):
        colours = 'green is above, orange below the published number'
        if data.is_synthetic:
            colours = "neither better nor worse, since this is not the paper's data: a synthetic click log"
        words = f'{paper_note(data)}Difference: ours to published, relative; {colours}. '
    return page.section('Recall@20 and MRR@20, published and ours', *tables, page.paragraph(
        f'{words}{networks_note(results)}{ties_note(results)}'))


def comparison_table(results: list[dict], data: Dataset, caption: str) -> str:
    """Return a table of our numbers, with published ones and differences if there are any; empty without results."""
    if not results:
        return ''
    rows = []
    published = [published_for(ours[0], data) for ours in by_row(results).values()]
    is_published = any(map(any, published))
    for ours, numbers in zip(by_row(results).values(), published):
        cells: list = [title_of(ours[0], row_settings(results), with_seed=False)]
        for metric, number in zip(('recall@20', 'mrr@20'), numbers):
            cells += [f'{number:.4f}' if number else '-'] * is_published + [metric_in_words(ours, metric)]
            cells += [page.difference(mean_metric(ours, metric), number, bool(data.published))] * is_published
        rows.append(cells)
    kinds = ('published', 'ours', 'difference') if is_published else ('',)
    header = ['', *[f'{metric} {which}'.strip() for metric in ('Recall@20', 'MRR@20') for which in kinds]]
    return page.table(header, rows, caption)


def picture_sections(results: list[dict]) -> list[str]:
    """Return sections with pictures of the results that have details; means over seeds."""
    rows = by_row([result for result in results if result.get('details')])
    if not rows:
        return []
    settings = row_settings(results)
    details = {title_of(ours[0], settings, with_seed=False): [result['details'] for result in ours]
               for ours in rows.values()}

    def mean_of_bins(bins: str) -> dict[str, tuple]:  # whose names are the same for all seeds
        return {title: ([name for name, _n, _recall in of_seeds[0][bins]], np.mean([
            [recall for _name, _n, recall in one[bins]] for one in of_seeds], axis=0).tolist())
            for title, of_seeds in details.items()}

    def draw_loss(title: str, values: list[float]) -> Callable[[Axes], None]:
        return lambda ax: page.draw_losses(ax, title, values, *page.line_style([*details].index(title)))

    by_cut_off = {name: {title: (CUT_OFFS, np.mean([one[name.lower()] for one in of_seeds], axis=0).tolist())
                         for title, of_seeds in details.items()} for name in ('Recall', 'MRR')}
    panels = {f'{name} by cut-off N. {page.in_words(series, "at")}': page.draw_lines(series, 'cut-off N', f'{name}@N')
              for name, series in by_cut_off.items()}
    sections = [page.section('Cut-offs', page.figure(
        'Recall@N and MRR@N over the cut-off N, on a logarithmic axis. The paper reports N = 20.', panels, [*details]))]
    by_position, by_popularity = mean_of_bins('by_position'), mean_of_bins('by_popularity')
    panels = {
        f'Recall@20 by position in the session. {page.in_words(by_position, "at position")}': page.draw_lines(
            by_position, 'position of the predicted event in its session', 'Recall@20'),
        f'Recall@20 by popularity of the next item. {page.in_words(by_popularity, "for")}': page.draw_lines(
            by_popularity, 'items by number of training events', 'Recall@20')}
    sections.append(page.section('Where in the session, and which items', page.figure(
        'Recall@20 by position in the session, and by popularity of the next item: from the most popular 1% of the '
        'items to the less popular half.', panels, [*details])))
    if losses := mean_losses(results):
        panels = {'Training loss. ' + page.in_words({title: (range(1, len(values) + 1), values)}, 'in epoch'):
                  draw_loss(title, values) for title, values in losses.items()}
        sections.append(page.section('Training loss', page.figure(
            'Training loss of each epoch, mean over seeds. The losses are different functions: only the shapes can be '
            'compared.', panels, [])))
    return sections


def mean_losses(results: list[dict]) -> dict[str, list[float]]:
    """Return the loss of each epoch, mean over seeds, of each stable network, by title."""
    rows = by_row([result for result in results if result.get('details') and result.get('epoch_losses')])
    return {title_of(ours[0], row_settings(results), with_seed=False):
            np.mean([result['epoch_losses'] for result in ours], axis=0).tolist() for ours in rows.values()}
