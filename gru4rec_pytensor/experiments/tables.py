"""Tables 1 to 3 from results: what stands in their rows, and how they look as Markdown."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import Options
from gru4rec_pytensor.experiments.datasets import Dataset, data_notice, size_in_words
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, Protocol

TITLES = {1: 'Table 1: baselines', 2: 'Table 2: best parameters', 3: 'Table 3: GRU4Rec, one layer'}


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

def tables_1_and_3(results: list[dict], data: Dataset, options: Options) -> Section:
    """As far as there are results, with what the numbers are and how ties were ranked."""
    tables = []
    if 1 in options.tables and any(result['model'] in BASELINES for result in results):
        tables.append(table_1(results, data.protocol))
    if of_model(results, NETWORK):
        tables.append(table_3(results, data.protocol))
    candidates = data.protocol.candidates
    ranked_among = 'all items of the training data'
    if candidates and candidates < data.n_items:
        ranked_among = f'the {candidates:,} most popular items of the training data and itself'
    note = (f'Published: {data.protocol.title}, arXiv 1511.06939 v4. {networks_note(results)}Items with equal scores '
            f'are ranked by the policy {results[0]["tie_policy"]!r} in every row. The next item is ranked among '
            f'{ranked_among}.')
    return Section(tables, [note, *tie_notes(results)])


def table_1(results: list[dict], protocol: Protocol) -> Table:
    """The baselines, published and ours."""
    rows = []
    for model in BASELINES:
        if ours := of_model(results, model):
            recall, mrr = (f'{number:.4f}' if number else '-' for number in protocol.published_for(model, None, None))
            rows.append((model, recall, metric_in_words(ours, 'recall@20'), mrr, metric_in_words(ours, 'mrr@20'),
                         *durations(ours)))
    return Table(TITLES[1], ('Baseline', 'Recall@20 published', 'Recall@20 ours', 'MRR@20 published', 'MRR@20 ours',
                             'fit', 'evaluation'), rows)


def table_2(outcomes: dict[str, search.Outcome], a_search: search.Search, n_trials: int, data: Dataset) -> Section:
    """For each loss, the parameters of the paper, of the best random point, and of the best after tuning.

    `outcomes` are by loss; `a_search` is that of any of them.
    """
    rows: list[tuple] = []
    for loss, found in outcomes.items():
        published, stable = data.protocol.parameters.get(loss, {}), data.protocol.stable.get(loss)
        rows.append((LOSS_NAMES[loss], 'published', *[published.get(name, '-') for name in search.SPACE], '-', '-',
                     f'{stable} of 100' if stable else '-'))
        counted = f'{found.n_stable} of {found.n_random}'
        counted += f' ({found.n_stopped} stopped early)' if found.n_stopped else ''
        for title, best, stable_networks in (('ours, best random point', found.best_random, counted),
                                             ('ours, tuned', found.tuned, '')):
            values = [best[name] for name in search.SPACE] if best else ['-'] * len(search.SPACE)
            metrics = [f'{best[name]:.4f}' for name in ('recall', 'mrr')] if best else ['-'] * 2
            rows.append((LOSS_NAMES[loss], title, *values, *metrics, stable_networks))
    header = ('Loss', 'Parameters', *[name.replace('_', ' ') for name in search.SPACE], 'Recall@20', 'MRR@20',
              'stable networks')
    space = '; '.join(f"{name.replace('_', ' ')} {', '.join(map(str, values))}"
                      for name, values in search.SPACE.items())
    note = (f'Recall@20 and MRR@20 are those of the validation data (train {size_in_words(a_search.train)}; validation '
            f'{size_in_words(a_search.valid)}). {n_trials} random points of this space, each value equally likely: '
            f'{space}. {a_search.units} units, {a_search.epochs} epochs, adagrad, seed {a_search.seed}, '
            f'backend {a_search.backend}. The paper gives neither its space nor these metrics.')
    return Section([Table(TITLES[2], header, rows)], [note])


def table_3(results: list[dict], protocol: Protocol) -> Table:
    """Networks of one layer, published and ours, with the gains over Item-KNN."""
    knn = of_model(results, 'Item-KNN')
    rows = []
    for loss, units in dict.fromkeys((result['loss'], result['units']) for result in of_model(results, NETWORK)):
        ours = [result for result in of_model(results, NETWORK) if (result['loss'], result['units']) == (loss, units)]
        row = [LOSS_NAMES[loss], units]
        for i, metric in enumerate(('recall@20', 'mrr@20')):
            published = protocol.published_for(NETWORK, loss, units)[i]
            row.append(f'{published:.4f} ({protocol.gains[loss, units][i]:+.2%})' if published else '-')
            mean, base = mean_metric(ours, metric), mean_metric(knn, metric)
            gain = f' ({mean / base - 1:+.2%})' if mean is not None and base else ''
            row.append(metric_in_words(ours, metric) + gain)
        rows.append((*row, *durations(ours)))
    return Table(TITLES[3], (
        'Loss', 'Units', 'Recall@20 published (gain over Item-KNN)', 'Recall@20 ours (gain)',
        'MRR@20 published (gain)', 'MRR@20 ours (gain)', 'fit', 'evaluation'), rows)


def networks_note(results: list[dict]) -> str:
    """In words: the epochs and seeds behind the rows of networks."""
    networks = of_model(results, NETWORK)
    if not networks:
        return ''
    seeds = sorted({result['seed'] for result in networks})
    return (f"GRU4Rec: epochs {networks[0]['epochs']}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
            f"backend {networks[0]['backend']}. ")


def tie_notes(results: list[dict]) -> list[str]:
    """What Item-KNN, which leaves most items at score 0, would reach under the other tie policies."""
    knn = of_model(results, 'Item-KNN')
    if not knn:
        return []
    others = '; '.join(f"'{policy}' {recall:.4f} and {mrr:.4f}"
                       for policy, (recall, mrr) in knn[0]['other_tie_policies'].items())
    return [f'Item-KNN gives most items the score 0. Its Recall@20 and MRR@20 under the other tie policies: {others}.']


# ---------------------------------------------------------------------------------------------------------------------
# Results of one row
# ---------------------------------------------------------------------------------------------------------------------

def of_model(results: list[dict], model: str) -> list[dict]:
    """The results of one model."""
    return [result for result in results if result['model'] == model]


def stable_values(results: list[dict], metric: str) -> list[float]:
    """A metric of each result, of the networks that were numerically stable."""
    return [result[metric] for result in results if result[metric] is not None]


def mean_metric(results: list[dict], metric: str) -> float | None:
    """Mean of a metric over seeds; None when no network was stable."""
    values = stable_values(results, metric)
    return float(np.mean(values)) if values else None


def metric_in_words(results: list[dict], metric: str) -> str:
    """Mean and standard deviation over seeds, and how many networks were numerically unstable."""
    values = stable_values(results, metric)
    unstable = len(results) - len(values)
    text = mean_and_deviation(values) if values else ''
    return text + (f' {unstable} of {len(results)} numerically unstable' if unstable else '')


def mean_and_deviation(values: list[float]) -> str:
    """Mean ± standard deviation; of a single value, itself.

    >>> mean_and_deviation([0.25, 0.35]), mean_and_deviation([0.25])
    ('0.3000 ± 0.0707', '0.2500')
    """
    return f'{np.mean(values):.4f}' + (f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else '')


def durations(results: list[dict]) -> tuple[str, ...]:
    """Mean seconds of training and evaluation."""
    return tuple(f'{np.mean(seconds):.1f} s' if (seconds := stable_values(results, key)) else '-'
                 for key in ('fit_seconds', 'eval_seconds'))


def title_of(result: dict, with_seed: bool = True) -> str:
    """'TOP1, 100 units, seed 42', or a baseline's name."""
    if result['model'] != NETWORK:
        return result['model']
    return f"{LOSS_NAMES[result['loss']]}, {result['units']} units" + (f", seed {result['seed']}" if with_seed else '')


# ---------------------------------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------------------------------

def as_markdown(data: Dataset, section: Section) -> str:
    """The tables under headings, and the notes, after what data they are of."""
    paragraphs = [data_notice(data)]
    for table in section.tables:
        paragraphs += [f'### {table.title}', '\n'.join(markdown_rows(table))]
    return '\n\n'.join([*paragraphs, *section.notes]) + '\n'


def markdown_rows(table: Table) -> list[str]:
    """Header and rows as Markdown, with columns of even width, so that they read well in a terminal too."""
    cells = [[str(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in cells]
    return [lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]]
