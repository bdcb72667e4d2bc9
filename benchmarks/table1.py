"""The baselines next to the authors' release on real clicks, with times and the updates a second of BPR-MF.

    python benchmarks/table1.py DATA

DATA holds rsc15_train_full.txt and rsc15_test.txt.  The release's numbers are shown where they are of this data: the
RSC15 clicks of 23 to 30 September 2014 as the public repository RecSysEvaluation/RecSys_Evaluation cuts them, on which
the release was run (NumPy seed 42; equal scores conservative).  Times are the best of three, without compilation; the
rate is by processor time, which other work on the machine disturbs less.
"""
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines import BPR, ItemKNN, Pop, SessionPop
from evaluation import next_item_ranks, recall_mrr
from gru4rec_pytensor.events import keep_known_items
from preprocess_rsc15 import FILES

MODELS: dict[str, Any] = {
    'POP': Pop(),
    'S-POP': SessionPop(),
    'S-POP, top_n=100000': SessionPop(top_n=100_000),
    'Item-KNN': ItemKNN(),
    'BPR-MF': BPR(),
    'BPR-MF, float32': BPR(dtype='float32'),
}
EVENTS = 99_943, 7_299  # of training and test, of the data that these numbers are of
RELEASE = {
    'POP': (0.046640, 0.012683),
    'S-POP': (0.343638, 0.235409),
    'S-POP, top_n=100000': (0.345068, 0.244422),
    'Item-KNN': (0.401001, 0.181930),
    'BPR-MF': (0.322552, 0.186086),
}


def read_known(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training events, and the test events that can be predicted (section 4)."""
    train, test = (pd.read_csv(folder / FILES[name], sep='\t') for name in ('train_full', 'test'))
    return train, keep_known_items(test, train.ItemId.unique())


def best_of_three(function: Callable) -> tuple[float, float, Any]:
    """Return its shortest time, its shortest processor time in this thread, in seconds, and its result."""
    times = []
    for _ in range(3):
        started, started_here = time.perf_counter(), time.thread_time()
        result = function()
        times.append((time.perf_counter() - started, time.thread_time() - started_here))
    return *map(min, zip(*times, strict=True)), result


def main(folder: str) -> None:
    train, test = read_known(Path(folder))
    release = RELEASE if (len(train), len(test)) == EVENTS else {}
    print(f'{"":<20} {"Recall@20":>10} {"release":>9} {"MRR@20":>10} {"release":>9} {"fit":>8} {"ranks":>8}')
    for name, model in MODELS.items():
        next_item_ranks(model.fit(train), test[:100])  # compiles
        fit_time, busy, _ = best_of_three(lambda model=model: model.fit(train))
        rank_time, _, ranks = best_of_three(lambda model=model: next_item_ranks(model, test, tie_policy='conservative'))
        metrics = recall_mrr(ranks)
        theirs = [f'{value:.6f}' for value in release.get(name, ())] or ['-', '-']
        rate = (f'  {model.n_iterations * len(train) / busy / 1e6:.2f} million updates a second'
                if isinstance(model, BPR) else '')
        print(f'{name:<20} {metrics[0]:>10.6f} {theirs[0]:>9} {metrics[1]:>10.6f} {theirs[1]:>9} '
              f'{fit_time:>6.2f} s {rank_time:>6.2f} s{rate}', flush=True)


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
