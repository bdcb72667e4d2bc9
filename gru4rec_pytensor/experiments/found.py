"""What a search of a space found: the file of parameters of its best trial, and its section of tables and report."""
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
from gru4rec_pytensor.experiments.search import Search
from gru4rec_pytensor.experiments.spaces import network_arguments
from gru4rec_pytensor.experiments.tables import Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATES = ('trained to the end', 'stopped early', 'unstable', 'the best')
N_BEST = 10


def keep(results: Results, search: Search, outcome: dict, validation: dict, fingerprint: str) -> Path | None:
    """Keep the outcome of a search, and write its best parameters into a file, which is returned; None without any.

    Parameters
    ----------
    outcome : of `search.run`
    validation : sizes of the training and validation events, in words
    fingerprint : of the data set
    """
    complete = [trial for trial in outcome['trials'] if trial['value'] is not None]
    if not complete:
        return None
    key = {'data': fingerprint, 'revision': REVISION, 'search': search.name}
    results.save('found', key, outcome | validation | {
        'space': search.space.parameters, 'fixed': search.space.fixed, 'name': search.space.name,
        'metric': metric_in_words(search.metric), 'sampler': search.sampler, 'tie_policy': search.tie_policy,
        'seed': search.seed, 'backend': search.backend})
    best = max(complete, key=lambda trial: (trial['value'], -trial['number']))
    model = GRU4Rec(**network_arguments(search.space.fixed | best['point']))
    loss = LOSS_NAMES.get(model.loss, model.loss.replace('bpr', 'BPR').replace('top1', 'TOP1'))
    units = '/'.join(map(str, model.layers))
    software = ', '.join(f'{name} {version}' for name, version in versions().items())
    words = {
        'title': f"{loss}, {units} units, searched ({len(outcome['trials'])} trials, {duration(outcome['trials'])})",
        'data': f"validation: train {validation['train']}; validation {validation['valid']}",
        'source': f"Trial {best['number']} of {len(outcome['trials'])} of a search of the space {search.space.name} by "
                  f"{search.sampler}, {datetime.now(UTC):%Y-%m-%d}: {metric_in_words(search.metric)} "
                  f"{best['value']:.4f} on the validation data; seed {search.seed}, backend {search.backend}, revision "
                  f'{REVISION}, {software}'}
    arguments = {'layers': [*model.layers]} | changed_arguments(model)
    path = results.folder / 'parameters' / f'{search.space.name}-{digits_of(search.name)[:8]}.toml'
    write_text(path, '\n'.join([*map(toml_line, words.items()), '', '[parameters]',
                                *map(toml_line, arguments.items()), '']))
    return path


def toml_line(item: tuple) -> str:
    """Return a name and its value as a line of TOML, whose texts, numbers and lists are written as those of JSON."""
    return f'{item[0]} = {json.dumps(item[1])}'


def metric_in_words(metric: str) -> str:
    """Return 'MRR@20' or 'Recall@20'."""
    return metric.replace('mrr', 'MRR').replace('recall', 'Recall')


def duration(trials: list[dict]) -> str:
    """Return the time of all trials, one after another, in words."""
    minutes = sum(trial['seconds'] for trial in trials) / 60
    return f'{minutes:.0f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def best_trials(found: dict) -> Section:
    """Return the table of a search's best trials, with notes on the conditions and on what was stopped early."""
    ordered = sorted((trial for trial in found['trials'] if trial['value'] is not None),
                     key=lambda trial: (-trial['value'], trial['number']))
    names = [*found['space']]
    rows = [(f"{trial['number']}", f"{trial['value']:.4f}", *[f"{trial[name]:.4f}" for name in ('recall', 'mrr')],
             *[str(trial['point'][name]) for name in names], f"{trial['seconds']:.0f} s") for trial in ordered[:N_BEST]]
    header = ('Trial', f"{found['metric']}, searched", 'Recall@20', 'MRR@20',
              *[name.replace('_', ' ') for name in names], 'time')
    stopped = Counter(trial['epochs'] for trial in found['trials'] if trial['reason'] == 'stopped early')
    unstable = sum(trial['reason'] == 'Unstable' for trial in found['trials'])
    fixed = ', '.join(f'{name} {value}' for name, value in changed_arguments(
        GRU4Rec(**{'layers': [1]} | network_arguments(found['fixed']))).items() if name not in names)
    by_epoch = ', '.join(f"{n} after {epochs} epoch{'s' * (epochs > 1)}" for epochs, n in sorted(stopped.items()))
    notes = [f"{len(found['trials'])} trials in {duration(found['trials'])} of one process: {len(ordered)} trained to "
             f"the end, {sum(stopped.values())} stopped early{f' ({by_epoch})' if by_epoch else ''}, {unstable} "
             'numerically unstable.',
             f"Metrics are those of the validation data (train {found['train']}; validation {found['valid']}), ties by "
             f"the policy {found['tie_policy']!r}; sampler {found['sampler']}, seed {found['seed']}, backend "
             f"{found['backend']}. All networks: {fixed}."]
    title = f"Search of {found['name']}: the best of {len(found['trials'])} trials"
    return Section([Table(title, header, rows)], notes)


def html_section(found: dict) -> str:
    """Return the section of the report: pictures of all trials, the best ones, and what was stopped early."""
    trials, metric, importance = found['trials'], found['metric'], found['importance']
    values = [trial['value'] for trial in trials if trial['value'] is not None]
    best = max(values)
    floor = best - 3 * (best - float(np.quantile(values, 0.75))) - 1e-3  # below are failures
    state = [('trained to the end', 'stopped early', 'unstable')[
        ('', 'stopped early', 'Unstable').index(trial['reason'])] for trial in trials]
    heights = [max(floor, trial['value'] if trial['value'] is not None else floor) for trial in trials]

    def scatter(ax: Axes, x: list, label: str) -> None:
        for k, kind in enumerate(STATES):
            of_kind = [i for i, one in enumerate(trials) if (one['value'] == best if k == 3 else state[i] == kind)]
            colour, marker = page.line_style(k)
            ax.scatter([x[i] for i in of_kind], [heights[i] for i in of_kind], color=colour, marker=marker,
                       s=70 if k == 3 else 22, alpha=1 if k == 3 else 0.65, linewidths=0)
        ax.set(xlabel=label, ylabel=metric)
        ax.grid(axis='y', color='#e5e5e5')

    def over_trials(ax: Axes) -> None:
        so_far = np.maximum.accumulate([floor if trial['value'] is None else trial['value'] for trial in trials])
        ax.step(range(1, len(trials) + 1), np.maximum(so_far, floor), where='post', color=page.COLOURS[-1])
        scatter(ax, [*range(1, len(trials) + 1)], 'trials, in the order of their ends')

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

    def bars(ax: Axes) -> None:
        names = [*importance][::-1]
        ax.barh(names, [importance[name] for name in names], color=page.COLOURS[0])
        ax.set_xlabel('importance')

    panels: dict[str, Callable[[Axes], None]] = {f'Best so far: {best:.4f} after {len(trials)} trials': over_trials}
    if importance:
        panels['Importance: ' + ', '.join(f'{name} {share:.2f}' for name, share in importance.items())] = bars
    panels |= {f'{metric} by {name}': of_parameter(name) for name in importance or found['space']}
    table, notes = best_trials(found).tables[0], best_trials(found).notes
    return page.section(f"Search of {found['name']}", page.figure(
        f'{metric} on the validation data: the best so far, which parameters matter for the best trials (PED-ANOVA), '
        'and each parameter. Trials at the lower edge are there or below.', panels, [*STATES]),
        page.table(table.header, table.rows, table.title), *map(page.paragraph, notes))
