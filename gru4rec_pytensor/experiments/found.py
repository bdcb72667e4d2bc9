"""Outcome of a search of a space: the file of parameters of its best trial, and its section of tables and report."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gru4rec import GRU4Rec, changed_arguments
from gru4rec_pytensor.experiments import page
from gru4rec_pytensor.experiments.cells import versions
from gru4rec_pytensor.experiments.protocols import LOSS_NAMES, REVISION
from gru4rec_pytensor.experiments.results import Results, digits_of, write_text
from gru4rec_pytensor.experiments.search import FAILED, Search
from gru4rec_pytensor.experiments.spaces import network_arguments
from gru4rec_pytensor.experiments.tables import Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Reasons why a trial ended, and what the pictures call it.
ENDS = {'': 'trained to the end', 'stopped early': 'stopped early', 'Unstable': 'numerically unstable',
        FAILED: 'could not be trained'}
N_BEST = 10


def keep(results: Results, search: Search, outcome: dict, sizes: dict, fingerprint: str) -> Path | None:
    """Keep the outcome of a search, and write its best parameters into a file, which is returned; None without any.

    sizes : of the training and validation events, in words
    """
    best, trials = best_of(outcome['trials'])[:1], outcome['trials']
    if not best:
        return None
    space = search.space
    results.save('found', {'data': fingerprint, 'revision': REVISION, 'search': search.name}, outcome | sizes | {
        'candidates': search.candidates, 'space': space.parameters, 'fixed': space.fixed, 'name': space.name,
        'metric': search.metric,
        'conditions': f'ties by the policy {search.tie_policy!r}, sampler {search.sampler}, seed {search.seed}, '
                      f'backend {search.backend}'})
    model = GRU4Rec(**network_arguments(space.fixed | best[0]['point']))
    loss = LOSS_NAMES.get(model.loss, model.loss.replace('bpr', 'BPR').replace('top1', 'TOP1'))
    software = ', '.join(f'{name} {version}' for name, version in versions().items())
    texts = {
        'title': f"{loss}, {'/'.join(map(str, model.layers))} units, searched ({len(trials)} trials, "
                 f'{duration(trials)})',
        'data': f"train {sizes['train']}; validation {sizes['valid']}",
        'source': f"Trial {best[0]['number']} of a search of {space.name} by {len(trials)} trials ({search.sampler}), "
                  f"{datetime.now(UTC):%Y-%m-%d}; {search.metric} {best[0]['value']:.4f} on the validation data; seed "
                  f'{search.seed}, backend {search.backend}, revision {REVISION}, {software}'}
    arguments = {'layers': [*model.layers]} | changed_arguments(model)
    path = results.folder / 'parameters' / f'{space.name}-{digits_of(search.name)[:8]}.toml'
    write_text(path, '\n'.join([*toml_lines(texts), '', '[parameters]', *toml_lines(arguments), '']))
    return path


def toml_lines(values: dict) -> list[str]:
    """Return names and values as lines of TOML, which writes texts, numbers and lists as JSON does."""
    return [f"{name} = {json.dumps('none' if value is None else value)}" for name, value in values.items()]


def best_of(trials: list[dict]) -> list[dict]:
    """Return the trials that have a value, the highest first; of equal ones, the first point."""
    return sorted((trial for trial in trials if trial['value'] is not None),
                  key=lambda trial: (-trial['value'], trial['number']))


def duration(trials: list[dict]) -> str:
    """Return the time of all trials, one after another, in words."""
    minutes = sum(trial['seconds'] or 0 for trial in trials) / 60
    return f'{minutes:.0f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def best_trials(found: dict) -> Section:
    """Return the table of a search's best trials, with notes on the conditions and on what was stopped early."""
    trials, names = found['trials'], [*found['space']]
    metrics = {found['metric']: 'value'} | {'Recall@20': 'recall', 'MRR@20': 'mrr'}
    rows: list[tuple] = [(trial['number'], *[f'{trial[name]:.4f}' for name in metrics.values()],
                          *[trial['point'][name] for name in names], f"{trial['seconds']:.0f} s")
                         for trial in best_of(trials)[:N_BEST]]
    header = ('Trial', *metrics, *[name.replace('_', ' ') for name in names], 'Time')
    ends = Counter(ENDS[trial['reason']] for trial in trials)
    epochs = Counter(trial['epochs'] for trial in trials if trial['reason'] == 'stopped early')
    stopped = ', '.join(f'{n} after epoch {epoch}' for epoch, n in sorted(epochs.items()))
    fixed = ', '.join(f'{name} {value}' for name, value in found['fixed'].items())
    notes = [f"{len(trials)} trials in {duration(trials)}, one after another: "
             + ', '.join(f'{n} {end}' for end, n in ends.items()) + f'; stopped {stopped}.' * bool(stopped),
             f"The search was for {found['metric']}. Metrics are those of the validation data (train {found['train']}; "
             f"validation {found['valid']}), {found['conditions']}. All networks: {fixed}."]
    return Section([Table(f"Search of {found['name']}: the best of {len(trials)} trials", header, rows)], notes)


def html_section(found: dict) -> str:
    """Return the section of the report: pictures of all trials, and what `best_trials` returns."""
    trials, importance = found['trials'], found['importance']
    values = [trial['value'] for trial in best_of(trials)]
    floor = values[0] - 3 * (values[0] - float(np.quantile(values, 0.75))) - 1e-3  # failures would press the rest
    heights = [max(floor, trial['value'] or floor) for trial in trials]
    kinds = [[k for k, trial in enumerate(trials) if trial['reason'] == reason] for reason in ENDS]
    kinds.append([[trial['value'] for trial in trials].index(values[0])])  # the best

    def scatter(ax: Axes, x: list, label: str) -> None:
        for k, kind in enumerate(kinds):
            colour, marker = page.line_style(k)
            ax.scatter([x[i] for i in kind], [heights[i] for i in kind], s=70 if k == len(ENDS) else 22, color=colour,
                       marker=marker, alpha=0.8, linewidths=0)
        ax.set(xlabel=label, ylabel=found['metric'])
        ax.grid(axis='y', color='#e5e5e5')

    def over_trials(ax: Axes) -> None:
        order = [*range(1, len(trials) + 1)]
        ax.set_title(f'the best so far: {values[0]:.4f} in the end', fontsize=10)
        ax.step(order, np.maximum.accumulate(heights), where='post', color=page.COLOURS[-1])
        scatter(ax, order, 'trials, in the order of their ends')

    def bars(ax: Axes) -> None:
        ax.barh([*importance][::-1], [*importance.values()][::-1], color=page.COLOURS[0])
        ax.set_title('importance', fontsize=10)

    def of_parameter(name: str) -> Callable[[Axes], None]:
        def draw(ax: Axes) -> None:
            given, x = found['space'][name], [trial['point'][name] for trial in trials]
            if isinstance(given, list):
                x = [given.index(value) for value in x]
                ax.set_xticks(range(len(given)), [*map(str, given)])
            elif given['log']:
                ax.set_xscale('log')
            scatter(ax, x, name)
        return draw

    panels: dict[str, Callable[[Axes], None]] = {f'Best so far: {values[0]:.4f} in the end': over_trials}
    if importance:
        panels['Importance: ' + page.in_words({'': ([*importance], [*importance.values()])}, 'for')] = bars
    panels |= {f"{found['metric']} by {name}": of_parameter(name) for name in importance or found['space']}
    section = best_trials(found)
    return page.section(f"Search of {found['name']}", page.figure(
        f"{found['metric']} on the validation data: the best so far; how much each parameter matters for a place among "
        'the best trials (PED-ANOVA); each parameter. Trials at the lower edge are there or below.', panels,
        [*ENDS.values(), 'the best']), *[page.table(table.header, table.rows, table.title) for table in section.tables],
        *map(page.paragraph, section.notes))
