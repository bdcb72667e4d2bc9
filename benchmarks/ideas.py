"""The gain of each idea of the later papers: networks with one idea more each, on one data set.

    python benchmarks/ideas.py DATA --out FILE.svg     # trains what is missing, draws FILE.svg, writes FILE.json
    python benchmarks/ideas.py --out FILE.svg          # draws FILE.svg from FILE.json

DATA is a folder with the files of preprocess_rsc15.py.  There are three ladders, for the losses BPR, TOP1 and
cross-entropy.  Each begins with the network of 2016, and each step adds one of `IDEAS`.  Everything else is the same in
all steps and as published for the last one of BPR, in parameters/rsc15_recent64_bpr-max.toml: units, batch size,
momentum, dropout of the hidden state, epochs, order of sessions.  Only the learning rate is a step's own: the published
one, halved or doubled as long as Recall@20 on the last day of the training data gets better.  Then each step is trained
with three seeds and evaluated on the test data, equal scores conservative.

Finished trainings lie in the folder of --results and are not repeated: the same command continues from there.  Nor are
networks that FILE.json has, for the same data and parameters; remove it to train all of them.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gru4rec import GRU4Rec, changed_arguments
from gru4rec_pytensor import backends, parameters
from gru4rec_pytensor.experiments.cells import Cell, network_parameters
from gru4rec_pytensor.experiments.datasets import (
    Dataset,
    Source,
    load_dataset,
    share,
    size_in_words,
    validation_data,
)
from gru4rec_pytensor.experiments.engines import in_processes
from gru4rec_pytensor.experiments.figures import Picture
from gru4rec_pytensor.experiments.page import line_style
from gru4rec_pytensor.experiments.protocols import LOSS_NAMES, NETWORK
from gru4rec_pytensor.experiments.results import Results, write_text
from gru4rec_pytensor.experiments.tables import Table, markdown_rows, mean_and_deviation
from gru4rec_pytensor.experiments.work import Work, run_cells
from gru4rec_pytensor.terminal import Parser, positive_number

PUBLISHED = ROOT / 'parameters' / 'rsc15_recent64_bpr-max.toml'
START = 'the network of 2016'
# What a step takes from the published parameters; TOP1's loss is top1-max, and what they leave out is in `LEFT_OUT`.
IDEAS = {
    'the -max loss, linear scores': ('loss', 'final_act', 'bpreg'),
    'and 2,048 more negatives': ('n_sample', 'sample_alpha'),
    'and one item matrix': ('constrained_embedding',),
    'and dropout of the input': ('dropout_p_embed',),
    'and logq': ('logq',),
    'as the PyTorch code computes': ('repeats', 'unit'),
}
LEFT_OUT = {'logq': 1.0, 'repeats': 'sum', 'unit': 'gru-after'}
LADDERS = {'bpr': [*[*IDEAS][:4], [*IDEAS][-1]], 'top1': [*IDEAS][:4], 'cross-entropy': [*IDEAS][1:5]}
SEEDS = (42, 43, 44)
METRICS = ('Recall@20', 'MRR@20')


# ---------------------------------------------------------------------------------------------------------------------
# The networks
# ---------------------------------------------------------------------------------------------------------------------

def ladder(loss: str) -> dict[str, dict[str, Any]]:
    """Return the arguments of `GRU4Rec` of each step, by the idea that it adds."""
    last = parameters.read(PUBLISHED).arguments | {'loss': f'{loss}-max'} | LEFT_OUT
    of_ideas = {name for names in IDEAS.values() for name in names}
    steps = {START: {name: value for name, value in last.items() if name not in of_ideas} | {'loss': loss}}
    for idea in LADDERS[loss]:
        steps[idea] = [*steps.values()][-1] | {name: last[name] for name in IDEAS[idea]}
    return steps


def results_of(arguments: dict[str, Any], seeds: Sequence[int], data: Dataset, results: Results, backend: str,
               jobs: int) -> list[dict]:
    """Return the results of a network with each of the seeds; missing ones are trained."""
    model = GRU4Rec(**arguments)
    cells = [Cell(NETWORK, model.loss, model.layers[0], model.n_epochs, seed,
                  network_parameters(changed_arguments(model)), 'conservative', None, backend) for seed in seeds]
    work = Work(share(data, results.folder / 'data'), results, in_processes(jobs), every=60.0)
    for _cell in run_cells(cells, work):
        pass
    if work.failures:
        sys.exit('failed: ' + '; '.join(f'{title}: {reason}' for title, reason in work.failures.items()))
    return [results.load_file(results.path('cells', cell.key(data.fingerprint))) for cell in cells]


def best_rate(quality: Callable[[float], float], rate: float) -> float:
    """Return `rate`, halved or doubled as long as `quality` gets better."""
    for factor in (0.5, 2):
        while quality(factor * rate) > quality(rate):
            rate *= factor
    return rate


def measure(folder: Path, results: Results, changes: dict[str, Any], backend: str, jobs: int, before: dict) -> dict:
    """Train all networks that were not before; return the learning rate of each, Recall@20 and MRR@20 of the seeds."""
    source = Source(folder=folder)
    data = load_dataset(source)
    validation = validation_data(source, data)
    results.make_folders()
    run = partial(results_of, results=results, backend=backend, jobs=jobs)
    found = {'data': data.published.title if data.published else data.name, 'synthetic': data.is_synthetic,
             'counts': data.counts, 'parameters': PUBLISHED.relative_to(ROOT).as_posix()}
    known = {}
    if not changes and all(before.get(name) == value for name, value in found.items()):
        known = {(network['loss'], network['idea']): network for network in before['networks']}
    networks = []
    for loss in LADDERS:
        for idea, step in ladder(loss).items():
            if (loss, idea) in known:
                networks.append(known[loss, idea])
                continue
            arguments = step | changes

            def recall(rate: float, arguments: dict = arguments) -> float:
                return run(arguments | {'learning_rate': rate}, SEEDS[:1], validation)[0]['recall@20'] or 0

            rate = best_rate(recall, arguments['learning_rate'])
            of_seeds = run(arguments | {'learning_rate': rate}, SEEDS, data)
            networks.append({'loss': loss, 'idea': idea, 'learning_rate': rate} | {
                metric: [result[metric.lower()] for result in of_seeds] for metric in METRICS})
    return found | {'networks': networks}


# ---------------------------------------------------------------------------------------------------------------------
# What is shown of them
# ---------------------------------------------------------------------------------------------------------------------

def table(found: dict) -> list[str]:
    """Return a row for each network, as Markdown: mean ± standard deviation over the seeds."""
    rows = [(LOSS_NAMES[network['loss']], network['idea'],
             *[mean_and_deviation(network[metric]) for metric in METRICS], f"{network['learning_rate']:g}")
            for network in found['networks']]
    return markdown_rows(Table('', ('Loss', 'Network', *METRICS, 'Learning rate'), rows))


def picture(found: dict) -> Picture:
    """Draw a panel for each metric, a row for each idea, a line for each ladder; bars are standard deviations."""
    ideas = [START, *IDEAS]
    drawn = Picture(9.6, 3.9)
    panels = drawn.subplots(1, 2, sharey=True)
    for ax, metric in zip(panels, METRICS):
        for k, loss in enumerate(LADDERS):
            networks = [network for network in found['networks'] if network['loss'] == loss]
            colour, marker = line_style(k)
            ax.errorbar([np.mean(network[metric]) for network in networks],
                        [ideas.index(network['idea']) for network in networks],
                        xerr=[np.std(network[metric], ddof=1) for network in networks], label=LOSS_NAMES[loss],
                        color=colour, marker=marker, markersize=6, linewidth=1.4, capsize=2)
        ax.set_title(metric, fontsize=11)
        ax.grid(color='#e5e5e5')
        ax.set_axisbelow(True)
    panels[0].set_yticks(range(len(ideas)), ideas)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=9, loc='lower left')
    kind = 'a synthetic log' if found['synthetic'] else 'real clicks'
    drawn.suptitle(f"{found['data']} ({kind}): {size_in_words(found['counts']['train'])} for training", fontsize=10)
    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> None:
    """Train, draw, write, print the table."""
    parser = Parser(prog='ideas.py', description=__doc__)
    parser.add_argument('data', nargs='?', type=Path, metavar='DATA', help='folder of training and test events')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.svg', help='the picture')
    parser.add_argument('--results', type=Path, default=Path('results'), metavar='DIR', help='of finished trainings')
    parser.add_argument('--epochs', type=positive_number, metavar='N', help='of each training (10)')
    parser.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    parser.add_argument('--jobs', type=positive_number, default=1, metavar='N', help='trainings at the same time')
    arguments = parser.parse_args(argv)
    numbers = arguments.out.with_suffix('.json')
    if arguments.data:
        changes = {'n_epochs': arguments.epochs} if arguments.epochs else {}
        before = json.loads(numbers.read_text()) if numbers.exists() else {}
        found = measure(arguments.data, Results(arguments.results), changes, backends.resolve(arguments.backend),
                        arguments.jobs, before)
        write_text(numbers, json.dumps(found, indent=1) + '\n')
    found = json.loads(numbers.read_text())
    write_text(arguments.out, picture(found)._repr_svg_())
    print('\n'.join(table(found)))


if __name__ == '__main__':
    main()
