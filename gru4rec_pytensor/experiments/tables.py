"""Tables 1 to 3, and those of later papers: their rows, from results and published numbers, and their Markdown."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gru4rec_pytensor.experiments.cells import CUT_OFFS, LISTS_KEYS
from gru4rec_pytensor.experiments.datasets import Dataset, data_notice
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, ROW_TITLES, Protocol
from gru4rec_pytensor.experiments.published import RECORDED, ROWS, Row, by_yardstick, rows_for
from gru4rec_pytensor.experiments.results import digits_of

TITLES = {1: 'Table 1: baselines', 2: 'Table 2: best parameters', 3: 'Table 3: GRU4Rec, one layer',
          'later': 'Later papers', 'published': 'Published for this data, and ours'}
YARDSTICK = ("A verdict is about the relative difference, by the authors' own yardstick. Below 1% is the same: two "
             'seeds differ by as much. Below 5% is the same level. Within the interval: the published number lies in '
             'our 95% interval over test sessions; it has such an interval, too.')

# Rows of a table may differ in these, beside model, loss and units; seeds are put together.
SETTINGS = {'epochs': 'Epochs', 'tie_policy': 'Ties', 'backend': 'Backend'}
# Searches of one Table 2 have these in common.
SEARCH_SETTINGS = ('units', 'epochs', 'seed', 'backend', 'tie_policy', 'candidates', 'prune', 'space', 'validation',
                   'n_trials')


class Table(NamedTuple):
    """A table, to be shown as Markdown or as HTML."""
    title: str
    header: tuple[str, ...]
    rows: list[tuple]


class Section(NamedTuple):
    """Tables, and the paragraphs below them."""
    tables: list[Table]
    notes: list[str]


# ---------------------------------------------------------------------------------------------------------------------
# The paper's tables
# ---------------------------------------------------------------------------------------------------------------------

def tables_1_and_3(results: list[dict], data: Dataset) -> Section:
    """Return Tables 1 and 3 and `other_tables`, with notes on where the numbers are from and how ties were ranked.

    results : as `rows_of_tables` returns them
    """
    tables, later = [], [result for result in results if is_later(result)]
    paper = [result for result in results if not is_later(result)]
    if baselines := [result for result in paper if result['model'] != NETWORK]:
        tables.append(table_of_models(TITLES[1], 'Baseline', baselines, data))
    if networks_among(paper):
        tables.append(table_3(paper, data))
    candidates = data.protocol.candidates
    ranked_among = 'all items of the training data'
    if candidates and candidates < data.n_items:
        ranked_among = f'the {candidates:,} most popular items of the training data and itself'
    notes = [conditions(rows) for rows in (paper, later)]
    of_later = f'Later papers: {notes[1]}' if notes[1] not in ('', notes[0]) else ''
    notes = [f'{paper_note(data)}{notes[0]}{of_later}The next item is ranked among {ranked_among}.']
    if knn := next((result for result in paper if result['model'] == 'Item-KNN'), None):
        policies = '; '.join(f"'{policy}' {recall:.4f} and {mrr:.4f}"
                             for policy, (recall, mrr) in knn['other_tie_policies'].items())
        notes.append('Item-KNN gives most items the score 0. Its Recall@20 and MRR@20 under the other tie policies: '
                     f'{policies}.')
    for section in other_tables(results, data):
        tables += section.tables
        notes += section.notes
    return Section(tables, notes)


def other_tables(results: list[dict], data: Dataset) -> list[Section]:
    """Return the table of later papers, and that of all that is published for the data, each with its notes."""
    sections = []
    if later := [result for result in results if is_later(result)]:
        notes = [f'{ours[0]["title"]}: ' + ', '.join(f'{name} {value}' for name, value in (
            {'loss': ours[0]['loss']} | ours[0]['parameters']).items()) + '.' for ours in by_row(later).values()]
        sections.append(Section([table_of_models(TITLES['later'], 'Network', later, data)], notes))
    if data.published and results:
        sections.append(Section([table_published(results, data.published.title)], [YARDSTICK]))
    return sections


def rows_of_tables(results: list[dict], protocol: Protocol, own: Sequence[dict] = (),
                   files: Sequence[dict] = ()) -> list[dict]:
    """Return the results that are rows of tables: those of Tables 1 and 3 in the paper's order, then later papers.

    own : model, parameters, source and title of each row of one's own; they follow the baselines
    files : loss, parameters and title of each file of parameters; they come last
    """
    n, titles = len(BASELINES), Counter[str]()
    rows: list[tuple] = []  # place and title; model, loss, parameters and source
    for file in sorted(files, key=lambda file: (file['title'], str(file['parameters']))):
        titles[file['title']] += 1
        title = file['title'] + f" [{titles[file['title']]}]" * (titles[file['title']] > 1)
        rows.append((n + 2, title, NETWORK, file['loss'], file['parameters'], None))
    rows += [(k, '', model, None, BASELINES[model][1], None) for k, model in enumerate(BASELINES)]
    rows += [(n, row['title'], row['model'], None, row['parameters'], row['source']) for row in own]
    rows += [(n + 1, '', NETWORK, loss, parameters, None) for loss, parameters in protocol.parameters.items()]
    known = {digits_of(row[2:]): (k, *row[:2]) for k, row in enumerate(rows)}
    found = []
    for result in results:
        row = known.get(digits_of([result.get(name) for name in ('model', 'loss', 'parameters', 'source')]))
        if row and result['candidates'] == protocol.candidates:
            k, place, title = row
            order = (place, title, result['units'] or 0, k, *[str(result[name]) for name in SETTINGS],
                     result['seed'] or 0)
            found.append((order, result | ({'title': title} if title else {})))
    return [result for _order, result in sorted(found, key=lambda pair: pair[0])]


def is_later(result: dict) -> bool:
    """Return whether a result is of a network of a later paper, with the parameters of a file."""
    return result['model'] == NETWORK and bool(result.get('title'))


def row_settings(results: list[dict]) -> list[str]:
    """Return those of `SETTINGS` that differ between the results of a model, so that each row has to say its own."""
    models = {result['model'] for result in results}
    return [name for name in SETTINGS
            if len({(result['model'], result.get(name)) for result in results}) > len(models)]


def by_row(results: list[dict]) -> dict[tuple, list[dict]]:
    """Return the results of each row, one for each seed."""
    rows: dict[tuple, list[dict]] = {}
    for result in results:
        row = tuple(result.get(name) for name in ('model', 'loss', 'units', 'title', *SETTINGS))
        rows.setdefault(row, []).append(result)
    return rows


def table_of_models(title: str, kind: str, results: list[dict], data: Dataset) -> Table:
    """Return a table with a row for each model, and columns for published numbers if there are any."""
    settings, models, others = row_settings(results), by_row(results).values(), names_of_others(results)
    published = [published_for(ours[0], data) for ours in models]
    metrics = ('Recall@20', 'MRR@20')
    rows = []
    for ours, numbers in zip(models, published):
        row = [title_of(ours[0]), *[ours[0][name] for name in settings]]
        for metric, number in zip(metrics, numbers):
            row += [f'{number:.4f}' if number else '-'] * any(map(any, published))
            row.append(metric_in_words(ours, metric.lower()))
        rows.append((*row, *[metric_in_words(ours, name) for name in others], *durations(ours)))
    columns = [f'{metric} {whose}' for metric in metrics for whose in ('published', 'ours')
               if any(map(any, published)) or whose == 'ours'] + others
    return Table(title, (kind, *[SETTINGS[name] for name in settings], *columns, 'fit', 'evaluation'), rows)


def published_for(result: dict, data: Dataset) -> tuple[float | None, float | None]:
    """Return the published Recall@20 and MRR@20 of a result's model: for its data or, on a synthetic log, the paper's.
    """
    if not result.get('title') and is_papers(data):
        row = (result['loss'], result['units']) if result['model'] == NETWORK else result['model']
        return data.protocol.published.get(row, (None, None))
    rows = rows_for(data.published.title, result) if data.published else []
    return next(((row.recall[20], row.mrr[20]) for row in rows if row.source not in RECORDED), (None, None))


def is_papers(data: Dataset) -> bool:
    """Return whether the paper's numbers stand beside ours: for its data, or a synthetic log, which a notice explains.
    """
    return data.is_synthetic or bool(data.published and data.published.title == data.protocol.title)


def table_published(results: list[dict], title: str) -> Table:
    """Return all published rows of a data set, with ours, the relative difference, and the verdict of the yardstick.

    Rows of models that were not run show Recall@20 and MRR@20 alone.
    """
    titles, others = titles_of_rows(results), [row for row in ROWS if row.data == title]
    rows: list[tuple] = []
    for key, ours in by_row(results).items():
        for row in rows_for(title, ours[0]):
            others = [other for other in others if other is not row]
            for metric, published in metrics_of(row).items():
                mean = mean_metric(ours, metric)
                judged = ('-', '-')
                if mean is not None:
                    low, high = ours[0].get('intervals', {}).get(metric.lower(), (np.inf, -np.inf))
                    judged = (f'{mean / published - 1:+.1%}',
                              by_yardstick(mean, published) + ', within the interval' * (low <= published <= high))
                rows.append((titles[key], metric, f'{published:.4f}',
                             metric_in_words(ours, metric), *judged, row.source))
    rows += [(row.model, metric, f'{published:.4f}', *['-'] * 3, row.source)
             for row in others for metric, published in metrics_of(row).items() if metric.endswith('@20')]
    header = ('Model', 'Metric', 'Published', 'Ours', 'Difference', 'Verdict', 'Source')
    return Table(TITLES['published'], header, rows)


def metrics_of(row: Row) -> dict[str, float]:
    """Return the numbers of a row, by names such as 'Recall@20'."""
    return {f'{name}@{n}': value for name, values in (('Recall', row.recall), ('MRR', row.mrr))
            for n, value in values.items()}


def tables_2(searches: list[dict], data: Dataset) -> list[Section]:
    """Return Table 2 of each kind of search, which has a search for each loss."""
    kinds: dict[str, list[dict]] = {}
    for found in sorted(searches, key=lambda found: [*LOSS_NAMES].index(found['loss'])):
        kinds.setdefault(str([found[name] for name in SEARCH_SETTINGS]), []).append(found)
    return [table_2(of_kind, data) for of_kind in kinds.values()]


def table_2(searches: list[dict], data: Dataset) -> Section:
    """Return, for each loss, the parameters of the paper, of the best random point, and of the best after tuning."""
    rows: list[tuple] = []
    names = [*searches[0]['space']]
    for found in searches:
        loss = found['loss']
        published, stable = data.protocol.parameters.get(loss, {}), data.protocol.stable.get(loss)
        rows.append((LOSS_NAMES[loss], 'published', *[published.get(name, '-') for name in names], '-', '-',
                     f'{stable} of 100' if stable else '-'))
        counted = f"{found['n_stable']} of {found['n_random']}"
        counted += f" ({found['n_stopped']} stopped early)" if found['n_stopped'] else ''
        for title, best, stable_networks in (('ours, best random point', found['best_random'], counted),
                                             ('ours, tuned', found['tuned'], '')):
            values = [best[name] for name in names] if best else ['-'] * len(names)
            metrics = [f'{best[name]:.4f}' for name in ('recall', 'mrr')] if best else ['-'] * 2
            rows.append((LOSS_NAMES[loss], title, *values, *metrics, stable_networks))
    header = ('Loss', 'Parameters', *[name.replace('_', ' ') for name in names], 'Recall@20', 'MRR@20',
              'stable networks')
    first = searches[0]
    space = '; '.join(f"{name.replace('_', ' ')} {', '.join(map(str, values))}"
                      for name, values in first['space'].items())
    candidates = f"the {first['candidates']:,} most popular items and itself" if first['candidates'] else 'all items'
    note = (f"Recall@20 and MRR@20 are those of the validation data (train {first['train']}; validation "
            f"{first['valid']}), ranked among {candidates}, ties by the policy {first['tie_policy']!r}. "
            f"{first['n_trials']} random points of this space, each value equally likely: {space}. {first['units']} "
            f"units, {first['epochs']} epochs, adagrad, seed {first['seed']}, backend {first['backend']}"
            f"{', pruned' if first['prune'] else ''}. The paper gives neither its space nor these metrics.")
    return Section([Table(TITLES[2], header, rows)], [note])


def table_3(results: list[dict], data: Dataset) -> Table:
    """Return networks of one layer, published and ours, with the gains over Item-KNN."""
    networks, rows = networks_among(results), []
    settings, with_published, others = row_settings(networks), is_papers(data), names_of_others(results)
    for (_model, loss, units, *_), ours in by_row(networks).items():
        row = [LOSS_NAMES[loss], units, *[ours[0][name] for name in settings]]
        for i, metric in enumerate(('recall@20', 'mrr@20')):
            if with_published:
                published = published_for(ours[0], data)[i]
                row.append(f'{published:.4f} ({data.protocol.gains[loss, units][i]:+.2%})' if published else '-')
            mean, base = mean_metric(ours, metric), knn_metric(results, ours, metric)
            gain = f' ({mean / base - 1:+.2%})' if mean is not None and base else ''
            row.append(metric_in_words(ours, metric) + gain)
        rows.append((*row, *[metric_in_words(ours, name) for name in others], *durations(ours)))
    columns = ('Recall@20 published (gain over Item-KNN)', 'Recall@20 ours (gain)', 'MRR@20 published (gain)',
               'MRR@20 ours (gain)') if with_published else ('Recall@20 (gain over Item-KNN)', 'MRR@20 (gain)')
    header = ('Loss', 'Units', *[SETTINGS[name] for name in settings], *columns, *others, 'fit')
    return Table(TITLES[3], (*header, 'evaluation'), rows)


def paper_note(data: Dataset) -> str:
    """Return the source of the published numbers in Tables 1 and 3; empty where these have none."""
    return f'Published: {data.protocol.title}, arXiv 1511.06939 v4. ' if is_papers(data) else ''


def conditions(results: list[dict]) -> str:
    """Return the seeds of networks, and their epochs and backend and the tie policy where no row says them, as text."""
    text = ''
    if networks := networks_among(results):
        seeds = sorted({result['seed'] for result in networks})
        words = [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
        differing = row_settings(networks)
        words = [f"epochs {networks[0]['epochs']}"] * ('epochs' not in differing) + words
        words += [f"backend {networks[0]['backend']}"] * ('backend' not in differing)
        text = f"GRU4Rec: {', '.join(words)}. "
    policies = {result['tie_policy'] for result in results}
    if len(policies) == 1:
        text += f'Items with equal scores are ranked by the policy {policies.pop()!r} in every row. '
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Results of one row
# ---------------------------------------------------------------------------------------------------------------------

def networks_among(results: list[dict]) -> list[dict]:
    """Return the results of networks."""
    return [result for result in results if result['model'] == NETWORK]


def stable_values(results: list[dict], metric: str) -> list[float]:
    """Return a metric of each result, without networks that were numerically unstable."""
    return [value for result in results if (value := metric_of(result, metric)) is not None]


def names_of_others(results: list[dict]) -> list[str]:
    """Return the metrics of a table beside Recall and MRR: NDCG, and what is known of the lists of any result."""
    return ['NDCG@20', *[name for name in LISTS_KEYS if any(name in one for one in results)]]


def metric_of(result: dict, metric: str) -> float | None:
    """Return a number of a result, or Recall, MRR or NDCG at one of `CUT_OFFS`, by a name such as 'MRR@5'."""
    name = metric.lower()
    kind, _, cut_off = name.partition('@')
    if name in result:
        return result[name]
    values = (result.get('details') or {}).get(kind)  # earlier versions kept no NDCG
    return values and values[CUT_OFFS.index(int(cut_off))]


def mean_metric(results: list[dict], metric: str) -> float | None:
    """Return the mean of a metric over seeds; None when no network was stable."""
    values = stable_values(results, metric)
    return float(np.mean(values)) if values else None


def knn_metric(results: list[dict], ours: list[dict], metric: str) -> float | None:
    """Return a metric of Item-KNN, ranked by the tie policy of a row; None without it."""
    return mean_metric([result for result in results if result['model'] == 'Item-KNN'
                        and result['tie_policy'] == ours[0]['tie_policy']], metric)


def metric_in_words(results: list[dict], metric: str) -> str:
    """Return mean and standard deviation over seeds, the interval, and the number of numerically unstable networks."""
    values = stable_values(results, metric)
    unstable = len(results) - len(stable_values(results, 'recall@20'))
    text = mean_and_deviation(values) if values else '-' * (not unstable)
    if interval := results[0].get('intervals', {}).get(metric.lower()):
        text += f' [{interval[0]:.4f}, {interval[1]:.4f}]'
    return text + (f' {unstable} of {len(results)} numerically unstable' if unstable else '')


def mean_and_deviation(values: list[float]) -> str:
    """Return mean ± standard deviation, or a single value.

    >>> mean_and_deviation([0.25, 0.35]), mean_and_deviation([0.25])
    ('0.3000 ± 0.0707', '0.2500')
    """
    return f'{np.mean(values):.4f}' + (f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else '')


def durations(results: list[dict]) -> tuple[str, ...]:
    """Return mean seconds of training and evaluation."""
    return tuple(f'{np.mean(seconds):.1f} s' if (seconds := stable_values(results, key)) else '-'
                 for key in ('fit_seconds', 'eval_seconds'))


def title_of(result: dict, settings: Sequence[str] = ()) -> str:
    """Return 'TOP1, 100 units', or the title of a row of one's own or of a file, then the wanted `SETTINGS`."""
    title = ROW_TITLES.get(result['model'], result['model'])
    if result['model'] == NETWORK and result['loss'] in LOSS_NAMES:
        title = f"{LOSS_NAMES[result['loss']]}, {result['units']} units"
    of_settings = [f'{SETTINGS[name].lower()} {result[name]}' for name in settings if result[name] is not None]
    return ', '.join([result.get('title') or title, *of_settings])


def titles_of_rows(results: list[dict]) -> dict[tuple, str]:
    """Return the title of each row, with those of `SETTINGS` that differ between rows."""
    settings = row_settings(results)
    return {row: title_of(ours[0], settings) for row, ours in by_row(results).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------------------------------

def as_markdown(data: Dataset, section: Section) -> str:
    """Return the notice about the data, the tables under headings, and the notes."""
    paragraphs = [data_notice(data)]
    for table in section.tables:
        paragraphs += ['### ' + table.title.replace('<', '&lt;'), '\n'.join(markdown_rows(table))]
    return '\n\n'.join([*paragraphs, *[note.replace('<', '&lt;') for note in section.notes]]) + '\n'


def markdown_rows(table: Table) -> list[str]:
    """Return header and rows as Markdown, with columns of even width, so that they read well in a terminal too."""
    cells = [[' '.join(str(cell).replace('|', '&#124;').replace('<', '&lt;').split('\n')) for cell in row]
             for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in cells]
    return [lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]]
