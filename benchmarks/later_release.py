"""Losses of mini-batches and epochs, Recall and MRR beside those of the authors' later release on the same clicks.

    python benchmarks/later_release.py DATA RUNS.json [--costs COSTS.npz] [--settings 1 3] [--epochs 1]
                                       [--neighbours 2] [--backend numba]

DATA is a folder with rsc15_train_full.txt and rsc15_test.txt (here: the clicks of RSC15 of 23 to 30 September 2014 that
the benchmark RecSys_Evaluation uses).  RUNS.json is a list of recorded runs, each with `config`, the arguments of the
later release's constructor, the printed `epoch_loss`, and `recall` and `mrr` of its `evaluate_gpu` by cut-off, with its
`mode`.  COSTS.npz holds, in arrays ``cost_NUMBER``, the loss of each mini-batch of the first epoch.

Initial weights, sessions, negatives and dropout masks are the release's, so that only rounding makes a difference.  How
far that goes is shown by neighbours: the same training from initial weights that are moved by at most their last bit.
"""
import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from release import minibatch_losses

import gru4rec
from gru4rec_pytensor import click_log
from gru4rec_pytensor.later import GRU4Rec, evaluate_gpu
from preprocess_rsc15 import FILES


def moved_by_a_bit(initial_weight: Callable, neighbour: int) -> Callable:
    """Return `gru4rec.initial_weight` with each number moved up or down by a bit, or not; neighbour 0 moves none."""
    rng = np.random.RandomState(neighbour)

    def moved(*arguments: Any, **options: Any) -> np.ndarray:
        weight = initial_weight(*arguments, **options)
        towards = rng.choice(np.array([-np.inf, np.inf], np.float32), weight.shape)
        return np.where(rng.rand(*weight.shape) < 2 / 3, np.nextafter(weight, towards), weight) if neighbour else weight
    return moved


def numbers(run: dict, train: pd.DataFrame, test: pd.DataFrame, backend: str,
            neighbour: int) -> tuple[np.ndarray, dict[str, float]]:
    """Return the losses of all mini-batches of a run of ours, and what it reaches by the names of `recorded`."""
    model = GRU4Rec(**run['config'], backend=backend)
    with mock.patch.object(gru4rec, 'initial_weight', moved_by_a_bit(gru4rec.initial_weight, neighbour)):
        losses = minibatch_losses(model, train)
    cut_offs = [int(number) for number in run['recall']]
    recall, mrr = evaluate_gpu(model, test, cut_off=cut_offs, mode=run['mode']) if cut_offs else ([], [])
    return losses, named(model.epoch_losses_, dict(zip(cut_offs, recall)), dict(zip(cut_offs, mrr)))


def agreed_until(losses: np.ndarray, expected: np.ndarray, allowed: float = 1e-5) -> int:
    """Return the number of mini-batches before the first whose losses differ by more than allowed."""
    n = min(len(losses), len(expected))
    differs = ~(np.abs(losses[:n] - expected[:n]) <= allowed)
    return int(np.argmax(differs)) if differs.any() else n


def recorded(run: dict) -> dict[str, float]:
    """Return what the release reached."""
    return named(run['epoch_loss'], run['recall'], run['mrr'])


def named(losses: Iterable[float], recall: dict, mrr: dict) -> dict[str, float]:
    """Return losses and metrics by the names that the table shows."""
    named_losses = {f'loss of epoch {epoch}': loss for epoch, loss in enumerate(losses, 1)}
    return named_losses | {f'{metric}@{cut_off}': value for metric, values in (('Recall', recall), ('MRR', mrr))
                           for cut_off, value in values.items()}


def shortened(run: dict, n_epochs: int) -> dict:
    """Return the first epochs of a recorded run, without what it reached after the last one."""
    if n_epochs >= len(run['epoch_loss']):
        return run
    return run | {'config': run['config'] | {'n_epochs': n_epochs}, 'epoch_loss': run['epoch_loss'][:n_epochs],
                  'recall': {}, 'mrr': {}}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--settings', type=int, nargs='+', help='numbers of runs in the file, from 0 on; default: all')
    parser.add_argument('--epochs', type=int, help='only so many of the first ones, whose losses are compared')
    parser.add_argument('--neighbours', type=int, default=2, help='default: 2')
    parser.add_argument('--backend', default='numba')
    parser.add_argument('--costs', type=Path, help='losses of the mini-batches of the first epoch')
    arguments = parser.parse_args(argv)
    runs = json.loads(arguments.runs.read_text())
    train, test = (click_log.read_events(arguments.data / FILES[part]) for part in ('train_full', 'test'))
    for number in range(len(runs)) if arguments.settings is None else arguments.settings:
        run = shortened(runs[number], arguments.epochs or len(runs[number]['epoch_loss']))
        losses, found = zip(*[numbers(run, train, test, arguments.backend, neighbour)
                              for neighbour in range(arguments.neighbours + 1)])
        ours = pd.DataFrame(found)
        print(f'{number}: ' + ', '.join(f'{name} {value}' for name, value in run['config'].items()))
        if arguments.costs:
            costs = np.load(arguments.costs)[f'cost_{number}']
            print(f'of the {len(costs):,} mini-batches of epoch 1, losses agree to 1e-5 with the recorded ones until '
                  f'number {agreed_until(losses[0], costs)}, and of a neighbour with ours until '
                  + ', '.join(str(agreed_until(other[:len(costs)], losses[0])) for other in losses[1:]))
        print(f'{"":18} recorded      ours  difference  neighbours of ours')
        for name, theirs in recorded(run).items():
            of_neighbours = ' '.join(f'{value:9.6f}' for value in ours[name][1:])
            print(f'{name:16} {theirs:10.6f} {ours[name][0]:9.6f} {ours[name][0] / theirs - 1:+11.1e}  {of_neighbours}')
        print(flush=True)


if __name__ == '__main__':
    main()
