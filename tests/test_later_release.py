"""The script that holds recorded runs of the authors' later release beside ours."""
import json
import sys
from pathlib import Path

import numpy as np
from common import TEST, TRAIN

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

import later_release
from release import minibatch_losses

from gru4rec_pytensor.later import GRU4Rec, evaluate_gpu

CONFIG = dict(loss='bpr-max', layers=[4], batch_size=10, n_epochs=2, n_sample=8)


def test_a_run_of_ours_is_beside_itself_and_its_neighbour(tmp_path, capsys):
    TRAIN.to_csv(tmp_path / 'rsc15_train_full.txt', sep='\t', index=False)
    TEST.to_csv(tmp_path / 'rsc15_test.txt', sep='\t', index=False)
    model = GRU4Rec(**CONFIG, backend='python').fit(TRAIN)
    recall, mrr = evaluate_gpu(model, TEST, cut_off=[5, 20], mode='conservative')
    run = dict(config=CONFIG, epoch_loss=model.epoch_losses_, mode='conservative',
               recall=dict(zip(('5', '20'), recall)), mrr=dict(zip(('5', '20'), mrr)))
    (tmp_path / 'runs.json').write_text(json.dumps([run]))
    later_release.main([str(tmp_path), str(tmp_path / 'runs.json'), '--backend', 'python', '--neighbours', '1'])
    first, _heads, *rows = capsys.readouterr().out.strip().split('\n')
    assert first.startswith("0: loss bpr-max, layers [4], ")
    assert [row[:16].rstrip() for row in rows] == ['loss of epoch 1', 'loss of epoch 2', 'Recall@5', 'Recall@20',
                                                   'MRR@5', 'MRR@20']
    assert rows[1].split()[-4:-1] == [f'{model.epoch_losses_[1]:.6f}'] * 2 + ['+0.0e+00']
    assert rows[3].split()[1:4] == [f'{recall[1]:.6f}'] * 2 + ['+0.0e+00']
    losses = minibatch_losses(GRU4Rec(**CONFIG | dict(n_epochs=1), backend='python'), TRAIN)
    losses[30] += 2e-5
    np.savez(tmp_path / 'costs.npz', cost_0=losses)
    later_release.main([str(tmp_path), str(tmp_path / 'runs.json'), '--backend', 'python', '--neighbours', '0',
                        '--epochs', '1', '--costs', str(tmp_path / 'costs.npz')])
    first, agreed, _heads, *rows = capsys.readouterr().out.strip().split('\n')
    assert first.endswith('n_epochs 1, n_sample 8')
    assert f'of the {len(losses)} mini-batches' in agreed and 'until number 30,' in agreed
    assert [row.split() for row in rows] == [['loss', 'of', 'epoch', '1', *[f'{model.epoch_losses_[0]:.6f}'] * 2,
                                              '+0.0e+00']]


def test_a_neighbours_weights_are_moved_by_at_most_a_bit():
    weight = np.random.RandomState(0).randn(50, 40).astype('float32')
    same, neighbour = (later_release.moved_by_a_bit(lambda: weight, k)() for k in (0, 1))
    steps = neighbour.view(np.int32).astype(int) - weight.view(np.int32)
    assert (same == weight).all() and neighbour.dtype == np.float32
    assert np.unique(steps).tolist() == [-1, 0, 1]
