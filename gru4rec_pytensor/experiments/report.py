"""The report: one HTML page with the tables, pictures of the results, and the data and commands behind them."""
from __future__ import annotations

import html
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gru4rec_pytensor.events import MIN_ITEM_EVENTS
from gru4rec_pytensor.experiments import page, tables
from gru4rec_pytensor.experiments.cells import CUT_OFFS, versions
from gru4rec_pytensor.experiments.comparisons import COMPARED, INTERVALS, Pair, intervals_of_bins
from gru4rec_pytensor.experiments.datasets import Dataset, data_notice
from gru4rec_pytensor.experiments.found import html_section
from gru4rec_pytensor.experiments.protocols import DESCRIPTIONS, NETWORK, ROW_TITLES
from gru4rec_pytensor.experiments.tables import Section, by_row, mean_metric, metric_in_words, titles_of_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def format_report(results: list[dict], data: Dataset, sections: list[Section], commands: list[str],
                  comparisons: Sequence[list[Pair]] = (), ranks: dict[tuple, np.ndarray] | None = None,
                  figures: Sequence[str] = (), outcomes: Sequence[dict] = ()) -> str:
    """Return the whole page.

    results, ranks : of rows, as `tables.rows_of_tables` and `comparisons.ranks_of_rows` return them
    sections : Table 2 and the claims, if they were run
    commands : that make the page again
    comparisons : pairs of rows that were asked for, see `comparisons.compare_rows`
    figures : addresses of the figures that were drawn, relative to the page
    outcomes : of searches of spaces
    """
    paper = [result for result in results if not tables.is_later(result)]
    parts = [f'<div class="notice">{page.paragraph(data_notice(data))}</div>', comparison_section(paper, data)]
    parts += [comparison_picture(pairs) for pairs in comparisons if pairs]
    parts += [page.section(table.title, page.table(table.header, table.rows), *map(page.paragraph, section.notes))
              for section in (*tables.other_tables(results, data), *sections) for table in section.tables]
    parts += [html_section(outcome) for outcome in outcomes]
    parts += picture_sections(results, intervals_of_bins(ranks, data) if ranks else {})
    counts = []
    for name, numbers in data.counts.items():
        for kind, found in numbers.items():
            published = data.protocol.counts[name].get(kind)
            counts.append([name, kind, f'{found:,}', f'{published:,}' if published else '-'])
    parts.append(page.section('Data', page.table(
        ['data', '', 'here', f'{data.protocol.title}, published'], counts), page.paragraph(
            'The protocol (section 4) leaves out sessions of one event and, of the whole log, items of fewer than '
            f'{MIN_ITEM_EVENTS} events; files of --train and --test lose only test items that training lacks.')))
    if figures:
        parts.append(page.section('Figures', '<p>' + ', '.join(
            f'<a href="{html.escape(name, quote=True)}">{html.escape(name)}</a>' for name in figures) + '</p>'))
    if results:
        digits_of = {'fit_seconds': 1, 'train_events_per_second': 0, 'eval_seconds': 1, 'eval_events_per_second': 0}
        titles = titles_of_rows(results)
        rows = [[titles[row] + f", seed {result['seed']}" * (result['seed'] is not None), *[
            f'{result[key]:,.{digits}f}' if result[key] is not None else '-' for key, digits in digits_of.items()]]
            for row, ours in by_row(results).items() for result in ours]
        parts.append(page.section('Speed', page.table(
            ['run', 'fit, s', 'training events/s', 'evaluation, s', 'predictions/s'], rows,
            'Compilation is part of the seconds of the run that needs it first, and of all its rates but the training '
            'events/s of a network.')))
    software = ', '.join(f'{name} {version}' for name, version in versions().items())
    parts.append(page.section('How to make this report', f'<pre>{html.escape(chr(10).join(commands))}</pre>',
                              page.paragraph(f'{software}, on {platform.system()} {platform.machine()}.')))
    return page.page(f'GRU4Rec: the experiments of the paper on {data.name}', [*filter(None, parts)])


def comparison_section(results: list[dict], data: Dataset) -> str:
    """Return Tables 1 and 3 with the differences to the published numbers; empty when there is no result.

    The gain over Item-KNN, the paper's yardstick, is that in Recall@20.  On a synthetic log nothing is published.
    """
    if not results:
        return ''
    parts, knn = [], [result for result in results if result['model'] == 'Item-KNN']
    for caption, shown in ((tables.TITLES[1], [result for result in results if result['model'] != NETWORK]),
                           (tables.TITLES[3], tables.networks_among(results))):
        titles, rows = titles_of_rows(shown), []
        published = {row: (None, None) if data.is_synthetic else tables.published_for(ours[0], data)
                     for row, ours in by_row(shown).items()}
        is_published = any(map(any, published.values()))
        for row, ours in by_row(shown).items():
            cells: list = [titles[row]]
            for metric, number in zip(('recall@20', 'mrr@20'), published[row]):
                cells.append(metric_in_words(ours, metric))
                if is_published:
                    cells += [f'{number:.4f}' if number else '-',
                              page.difference(mean_metric(ours, metric), number, True)]
            cells.append(metric_in_words(ours, 'ndcg@20'))
            if knn:
                base = tables.knn_metric(results, ours, 'recall@20')
                cells.append(page.difference(mean_metric(ours, 'recall@20'), base, False))
            rows.append(cells)
        kinds = ('ours', 'published', 'difference') if is_published else ('',)
        columns = [f'{metric} {which}'.strip() for metric in ('Recall@20', 'MRR@20') for which in kinds]
        if rows:
            parts.append(page.table(['', *columns, 'NDCG@20', *['gain over Item-KNN'] * bool(knn)], rows, caption))
    words = ''
    if tables.is_papers(data) and not data.is_synthetic:
        words = (f'{tables.paper_note(data)}Difference: ours to published, relative; green is above, orange below the '
                 'published number. ')
    notes = INTERVALS * any(result['intervals'] for result in results)
    models = [model for model in DESCRIPTIONS if any(result['model'] == model for result in results)]
    described = '; '.join(f'{ROW_TITLES.get(model, model)}: {DESCRIPTIONS[model]}' for model in models)
    return page.section('Recall@20, MRR@20 and NDCG@20', *parts, page.paragraph(
        f'{words}{tables.conditions(results)}{notes}'),
        page.paragraph(f'{described}.' * bool(models)))


def comparison_picture(pairs: list[Pair]) -> str:
    """Return a section with a picture of the differences between pairs of rows."""
    seconds = {pair.second for pair in pairs}
    against = f' to {pairs[0].second}' if len(seconds) == 1 else ', first − second'
    panels = {}
    for metric, name in COMPARED.items():
        rows = [(pair.first + f' − {pair.second}' * (len(seconds) > 1), *pair.tests[metric][:3]) for pair in pairs]
        words = '; '.join(f'{title}: {found:+.4f}, {low:+.4f} to {high:+.4f}' for title, found, low, high in rows)
        panels[f'Difference in {name}{against}. {words}'] = page.draw_differences(rows, f'difference in {name}')
    return page.section(f'Differences{against}', page.figure(
        'Difference in the mean over seeds, and its 95% interval over the choice of test sessions. The dashed line is '
        'at 0: no difference. The table has p-values, which are corrected.', panels, [],
        height=0.9 + 0.4 * len(pairs)))


def picture_sections(results: list[dict], intervals: dict[str, dict[tuple, np.ndarray]]) -> list[str]:
    """Return sections with pictures of the results that have details; means over seeds.

    intervals : of the bins, see `comparisons.intervals_of_bins`
    """
    rows = by_row([result for result in results if result.get('details')])
    if not rows:
        return []
    titles = titles_of_rows(results)
    details = {titles[row]: [result['details'] for result in ours] for row, ours in rows.items()}

    def mean_of_bins(bins: str) -> dict[str, tuple]:  # whose names are the same for all seeds
        return {title: ([f'{name}\nn {n:,}' for name, n, _recall in of_seeds[0][bins]], np.mean([
            [recall for _name, _n, recall in one[bins]] for one in of_seeds], axis=0).tolist())
            for title, of_seeds in details.items()}

    def draw_loss(title: str, values: list[float]) -> Callable[[Axes], None]:
        return lambda ax: page.draw_losses(ax, title, values, *page.line_style([*details].index(title)))

    def mean_by_cut_off(name: str, of_seeds: list[dict]) -> list[float]:  # NaN beyond lists that were made elsewhere
        return np.mean(np.array([one[name.lower()] for one in of_seeds], dtype=np.float64), axis=0).tolist()

    by_cut_off = {name: {title: (CUT_OFFS, mean_by_cut_off(name, of_seeds)) for title, of_seeds in details.items()}
                  for name in ('Recall', 'MRR')}
    panels = {f'{name} by cut-off N. {page.in_words(series, "at")}': page.draw_lines(series, 'cut-off N', f'{name}@N')
              for name, series in by_cut_off.items()}
    sections = [page.section('Cut-offs', page.figure(
        'Recall@N and MRR@N over the cut-off N, on a logarithmic axis. The paper reports N = 20.', panels, [*details]))]
    by_position, by_popularity = mean_of_bins('by_position'), mean_of_bins('by_popularity')
    bars = {bins: {titles[row]: bounds for row, bounds in of_rows.items()} for bins, of_rows in intervals.items()}
    panels = {
        f'Recall@20 by position in the session. {page.in_words(by_position, "at position")}': page.draw_lines(
            by_position, 'position of the predicted event in its session', 'Recall@20', bars.get('by_position')),
        f'Recall@20 by popularity of the next item. {page.in_words(by_popularity, "for")}': page.draw_lines(
            by_popularity, 'items by number of training events', 'Recall@20', bars.get('by_popularity'))}
    sections.append(page.section('Where in the session, and which items', page.figure(
        'Recall@20 by position in the session, and by popularity of the next item: from the most popular 1% of the '
        'items to the less popular half; n predictions in each. Bars: 95% intervals over the choice of test sessions.',
        panels, [*details])))
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
    titles = titles_of_rows(results)
    return {titles[row]: np.mean([result['epoch_losses'] for result in ours], axis=0).tolist()
            for row, ours in rows.items()}
