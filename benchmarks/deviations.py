"""The effect of each difference between paper, release and this code on the numbers, on a small synthetic log.

    python benchmarks/deviations.py

Prints the rows of the table in docs/deviations.md.  Everything is seeded; the differences of compiled code change in
their last digit from one machine to another.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

import preprocess_rsc15
from baselines import ItemKNN
from evaluation import evaluate_sessions_batch, next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, session_parallel_minibatches

PARAMETERS: dict = dict(layers=[50], n_epochs=3, loss='top1', batch_size=50, dropout_p_hidden=0.0, learning_rate=0.05)


def main():
    with tempfile.TemporaryDirectory() as folder:
        preprocess_rsc15.make_synthetic(folder, n_sessions=20_000, n_items=1_000, seed=42)
        train, test = (pd.read_csv(Path(folder) / preprocess_rsc15.FILES[name], sep='\t')
                       for name in ('train_full', 'test'))
    model = GRU4Rec(**PARAMETERS).fit(train)
    hit_rule(model, test)
    ties(model, ItemKNN().fit(train), test)
    carried_states(model, test)
    dropped_tail(train)
    approximations(model, train)
    equal_times(train, test)
    counted_sessions(train, test)


def row(what, text):
    print(f'{what:<44} {text}', flush=True)


def pair(metrics) -> str:
    return f'{metrics[0]:.4f} / {metrics[1]:.4f}'


def hit_rule(model, test):
    ranks = next_item_ranks(model, test)
    row('rank <= 20', pair(recall_mrr(ranks)))
    row('rank < 20', pair(recall_mrr(ranks, 20, 'rank<cut_off')))


def ties(model, knn, test):
    for name, pr in (('GRU4Rec', model), ('Item-KNN', knn)):
        for policy in ('standard', 'conservative', 'median', 'tiebreaking'):
            row(f'{name}, ties {policy}', pair(recall_mrr(next_item_ranks(pr, test, tie_policy=policy))))


def carried_states(model, test):
    """Evaluate a test set twice whose longest session comes first, so that it ends in the lane where it began."""
    length = test.groupby('SessionId').ItemId.transform('size')
    longest_first = test.assign(SessionId=test.SessionId.where(length < length.max(), -1))
    few = longest_first[longest_first.SessionId <= longest_first.SessionId.drop_duplicates().nsmallest(40).iloc[-1]]
    row('evaluated twice, clean', ', '.join(pair(evaluate_sessions_batch(model, few, batch_size=20)) for _ in range(2)))
    row('evaluated twice, carry_states=True', ', '.join(
        pair(evaluate_sessions_batch(model, few, batch_size=20, carry_states=True)) for _ in range(2)))


def dropped_tail(train):
    offsets = np.append(0, train.groupby('SessionId').size().cumsum())
    for batch_size in (50, 500):
        used = sum(len(batches.position) for batches in session_parallel_minibatches(offsets, batch_size)) * batch_size
        total = len(train) - len(offsets) + 1
        row(f'events of an epoch not used, batch_size={batch_size}', f'{total - used} of {total}')


def approximations(model, train):
    exact = GRU4Rec(**PARAMETERS, backend='python').fit(train).weights()
    difference = max(np.abs(weight - exact[name]).max() for name, weight in model.weights().items())
    row("backend 'numba' against 'python'", f'largest difference of a weight after 3 epochs {difference:.1e}')


def equal_times(train, test):
    """Compare the two orders of equal times: the synthetic log has such events, in the order of clicks."""
    repeated = train.duplicated(['SessionId', 'Time']).sum()
    for order in ('item', 'frame'):
        metrics = recall_mrr(next_item_ranks(GRU4Rec(**PARAMETERS, equal_times=order).fit(train), test))
        row(f"equal_times={order!r}, {repeated} of {len(train)} events", pair(metrics))


def counted_sessions(train, test):
    """Count sessions as the paper's Item-KNN: the same as ours on a log without repeated clicks in a session."""
    for name, frame in (('events', train), ('sessions', train.drop_duplicates(['SessionId', 'ItemId']))):
        row(f'Item-KNN counting {name}',
            pair(recall_mrr(next_item_ranks(ItemKNN().fit(frame), test, tie_policy='conservative'))))


if __name__ == '__main__':
    main()
