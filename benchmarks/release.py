"""The loss of every mini-batch beside the one that the authors' release computed on the same real clicks.

    python benchmarks/release.py DATA COSTS.npz [--backend numba]

DATA is a folder with rsc15_train_full.txt (here: the clicks of RSC15 of 23 to 30 September 2014 that the benchmark
RecSys_Evaluation uses, 99,943 events); COSTS.npz holds what the release's training function returned for each
mini-batch on Theano 1.0.5, in arrays ``cost_NAME`` of the cases below.  100 units, the paper's parameters.
"""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends, click_log

BPR = dict(loss='bpr', batch_size=50, learning_rate=0.05, momentum=0.2, n_epochs=1)
TOP1 = dict(loss='top1', batch_size=50, learning_rate=0.01)
# By name: arguments, what may differ, and up to which mini-batch: BPR with momentum amplifies rounding.
CASES: dict[str, tuple[dict, float, int | None]] = {
    'top1_p05': (TOP1 | dict(dropout_p_hidden=0.5), 5e-6, None),
    'top1_p0': (TOP1 | dict(dropout_p_hidden=0), 5e-6, None),
    'ce': (dict(loss='cross-entropy', batch_size=500, learning_rate=0.01, dropout_p_hidden=0), 2e-5, None),
    'bpr_p02': (BPR | dict(dropout_p_hidden=0.2), 2e-6, 150),
    'bpr_p0': (BPR | dict(dropout_p_hidden=0), 2e-6, 150),
}


def minibatch_losses(model: GRU4Rec, data: pd.DataFrame) -> np.ndarray:
    """Return the loss of each mini-batch of all epochs, in order."""
    losses: list[np.ndarray] = []
    compile_loop = backends.compile_loop

    def recording_loop(*step: Any, **options: Any) -> Callable:
        run = compile_loop(*step, **options)

        def recorded(sequences: dict[str, np.ndarray]) -> np.ndarray:
            losses.append(run(sequences))
            return losses[-1]
        return recorded
    with mock.patch.object(backends, 'compile_loop', recording_loop):
        model.fit(data)
    return np.concatenate(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('costs', type=Path)
    parser.add_argument('--backend', default='numba')
    parser.add_argument('--equal-times', choices=('item', 'frame'), default='item')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=[*CASES])
    arguments = parser.parse_args()
    data = click_log.read_events(arguments.data / 'rsc15_train_full.txt')
    costs = np.load(arguments.costs)
    print('case       mini-batches  compared  largest difference  allowed  last epoch ours  release')
    for name in arguments.cases:
        options, allowed, n_compared = CASES[name]
        expected = costs[f'cost_{name}']
        ours = minibatch_losses(GRU4Rec(
            [100], backend=arguments.backend, equal_times=arguments.equal_times, **options), data)
        assert len(ours) == len(expected), (len(ours), len(expected))
        difference = np.abs(ours - expected)[:n_compared].max()
        per_epoch = len(ours) // options.get('n_epochs', 10)
        print(f'{name:10} {len(ours):12,} {n_compared or len(ours):9,} {difference:19.1e} {allowed:8.0e} '
              f'{ours[-per_epoch:].mean(dtype="float64"):16.6f} {expected[-per_epoch:].mean(dtype="float64"):8.6f}'
              + ('' if difference <= allowed else '   <-- more than allowed'), flush=True)


if __name__ == '__main__':
    main()
