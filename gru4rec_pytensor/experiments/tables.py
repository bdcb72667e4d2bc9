"""Tables 1 to 3 from results: what stands in their rows, and how they look as Markdown."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gru4rec_pytensor.experiments.datasets import Dataset, data_notice
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, Protocol

TITLES = {1: 'Table 1: baselines', 2: 'Table 2: best parameters', 3: 'Table 3: GRU4Rec, one layer'}

# What rows of a table may differ in, beside model, loss and units; seeds are put together.
SETTINGS = {'epochs': 'Epochs', 'tie_policy': 'Ties', 'backend': 'Backend'}
# And what searches of one Table 2 have in common.
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
    """Of all results that belong there, with what the numbers are and how ties were ranked.

    Who adds a table of other rows (a baseline of a later paper, a network with other parameters) adds it here, and what
    belongs to it to `rows_of_tables`.
    """
    tables = []
    results = rows_of_tables(results, data.protocol)
    if any(result['model'] in BASELINES for result in results):
        tables.append(table_1(results, data))
    if of_model(results, NETWORK):
        tables.append(table_3(results, data))
    candidates = data.protocol.candidates
    ranked_among = 'all items of the training data'
    if candidates and candidates < data.n_items:
        ranked_among = f'the {candidates:,} most popular items of the training data and itself'
    note = (f'Published: {data.protocol.title}, arXiv 1511.06939 v4. {networks_note(results)}{ties_note(results)}The '
            f'next item is ranked among {ranked_among}.')
    return Section(tables, [note, *tie_notes(results)])


def rows_of_tables(results: list[dict], protocol: Protocol) -> list[dict]:
    """The results that belong to Tables 1 and 3, in the paper's order: those with its parameters and candidates."""
    def preset(result: dict) -> dict | None:
        model, loss = result['model'], result['loss']
        return protocol.parameters.get(loss) if model == NETWORK else BASELINES.get(model, (None, None))[1]

    def place(result: dict) -> tuple:
        losses = [*protocol.parameters]
        rank = losses.index(result['loss']) if result['loss'] in losses else -1
        return ([*BASELINES, NETWORK].index(result['model']), result['units'] or 0, rank,
                *[str(result[name]) for name in SETTINGS], result['seed'] or 0)

    return sorted((result for result in results if preset(result) is not None
                   and result['parameters'] == preset(result) and result['candidates'] == protocol.candidates),
                  key=place)


def row_settings(results: list[dict]) -> list[str]:
    """Which of `SETTINGS` are not the same for all results of a model, so that a row has to say its own."""
    models = {result['model'] for result in results}
    return [name for name in SETTINGS
            if len({(result['model'], result.get(name)) for result in results}) > len(models)]


def by_row(results: list[dict]) -> dict[tuple, list[dict]]:
    """The results of each row of Tables 1 and 3: one for each seed."""
    rows: dict[tuple, list[dict]] = {}
    for result in results:
        row = tuple(result.get(name) for name in ('model', 'loss', 'units', *SETTINGS))
        rows.setdefault(row, []).append(result)
    return rows


def table_1(results: list[dict], data: Dataset) -> Table:
    """The baselines, published and ours."""
    baselines = [result for result in results if result['model'] in BASELINES]
    settings = row_settings(baselines)
    rows = []
    for (model, *_), ours in by_row(baselines).items():
        recall, mrr = (f'{number:.4f}' if number else '-' for number in data.protocol.published_for(model, None, None))
        rows.append((model, *[ours[0][name] for name in settings], recall, metric_in_words(ours, 'recall@20'), mrr,
                     metric_in_words(ours, 'mrr@20'), *durations(ours)))
    return Table(TITLES[1], ('Baseline', *[SETTINGS[name] for name in settings], 'Recall@20 published',
                             'Recall@20 ours', 'MRR@20 published', 'MRR@20 ours', 'fit', 'evaluation'), rows)


def tables_2(searches: list[dict], data: Dataset) -> list[Section]:
    """Table 2 of each kind of search, which has a search for each loss."""
    kinds: dict[str, dict[str, dict]] = {}
    for found in searches:
        kinds.setdefault(str([found[name] for name in SEARCH_SETTINGS]), {})[found['loss']] = found
    return [table_2(sorted(of_kind.values(), key=lambda found: [*LOSS_NAMES].index(found['loss'])), data)
            for of_kind in kinds.values()]


def table_2(searches: list[dict], data: Dataset) -> Section:
    """For each loss, the parameters of the paper, of the best random point, and of the best after tuning."""
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
    return Section([Table(TITLES[2], header, rows)], [search_note(searches[0])])


def search_note(found: dict) -> str:
    """What the searches of a table have in common, in words."""
    space = '; '.join(f"{name.replace('_', ' ')} {', '.join(map(str, values))}"
                      for name, values in found['space'].items())
    candidates = f"the {found['candidates']:,} most popular items and itself" if found['candidates'] else 'all items'
    return (f"Recall@20 and MRR@20 are those of the validation data (train {found['train']}; validation "
            f"{found['valid']}), ranked among {candidates}, ties by the policy {found['tie_policy']!r}. "
            f"{found['n_trials']} random points of this space, each value equally likely: {space}. {found['units']} "
            f"units, {found['epochs']} epochs, adagrad, seed {found['seed']}, backend {found['backend']}"
            f"{', pruned' if found['prune'] else ''}. The paper gives neither its space nor these metrics.")


def table_3(results: list[dict], data: Dataset) -> Table:
    """Networks of one layer, published and ours, with the gains over Item-KNN."""
    networks, rows = of_model(results, NETWORK), []
    settings = row_settings(networks)
    for (_model, loss, units, *_), ours in by_row(networks).items():
        knn = [result for result in of_model(results, 'Item-KNN') if result['tie_policy'] == ours[0]['tie_policy']]
        row = [LOSS_NAMES[loss], units, *[ours[0][name] for name in settings]]
        for i, metric in enumerate(('recall@20', 'mrr@20')):
            published = data.protocol.published_for(NETWORK, loss, units)[i]
            row.append(f'{published:.4f} ({data.protocol.gains[loss, units][i]:+.2%})' if published else '-')
            mean, base = mean_metric(ours, metric), mean_metric(knn, metric)
            gain = f' ({mean / base - 1:+.2%})' if mean is not None and base else ''
            row.append(metric_in_words(ours, metric) + gain)
        rows.append((*row, *durations(ours)))
    return Table(TITLES[3], (
        'Loss', 'Units', *[SETTINGS[name] for name in settings], 'Recall@20 published (gain over Item-KNN)',
        'Recall@20 ours (gain)', 'MRR@20 published (gain)', 'MRR@20 ours (gain)', 'fit', 'evaluation'), rows)


def networks_note(results: list[dict]) -> str:
    """In words: the epochs and seeds behind the rows of networks, as far as they are the same for all."""
    networks = of_model(results, NETWORK)
    if not networks:
        return ''
    seeds = sorted({result['seed'] for result in networks})
    words = [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
    differing = row_settings(networks)
    words = [f"epochs {networks[0]['epochs']}"] * ('epochs' not in differing) + words
    words += [f"backend {networks[0]['backend']}"] * ('backend' not in differing)
    return f"GRU4Rec: {', '.join(words)}. "


def ties_note(results: list[dict]) -> str:
    """How items with equal scores are ranked, in words; empty where each row says it."""
    policies = {result['tie_policy'] for result in results}
    return f'Items with equal scores are ranked by the policy {policies.pop()!r} in every row. ' if len(
        policies) == 1 else ''


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


def title_of(result: dict, settings: Sequence[str] = (), with_seed: bool = True) -> str:
    """'TOP1, 100 units, seed 42', or a baseline's name; and those of `SETTINGS` that are asked for."""
    words = [result['model']]
    if result['model'] == NETWORK:
        words = [LOSS_NAMES[result['loss']], f"{result['units']} units"]
        words += [f"seed {result['seed']}"] * with_seed
    words += [f'{SETTINGS[name].lower()} {result[name]}' for name in settings if result[name] is not None]
    return ', '.join(words)


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
