"""Cells: which of them make up the tables, what one of them gives, and what tells one from another."""
import numpy as np
import pandas as pd
import pytest
from common import few_items_log

from gru4rec_pytensor.experiments import cells
from gru4rec_pytensor.experiments.cells import RESULT_KEYS, Request, check_batch_sizes, metrics_of_ranks, plan, run_cell
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, REVISION, RSC15, VIDEO
from gru4rec_pytensor.experiments.results import Results, digits_of

REQUEST = Request((1, 3), (*BASELINES, NETWORK), ('top1', 'bpr'), (4, 8), 1, (42, 43), 'conservative', 'python')


@pytest.fixture(scope='module')
def data():
    log = few_items_log(60, 8)
    return Dataset('few-items', RSC15, False, log, log)


def a_cell(model, **changes):
    """A cell of Table 1 or 3 that runs on 60 sessions."""
    request = Request((1, 3), (model,), ('top1',), (4,), 1, (42,), 'conservative', 'python')
    cell, = plan(RSC15, request)
    return cell._replace(**{**({'parameters': {'batch_size': 10}} if model == NETWORK else {}), **changes})


def rows_of(cells):
    return [(cell.model, cell.loss, cell.units, cell.seed) for cell in cells]


def test_the_plan_has_the_rows_of_both_tables_in_the_papers_order_with_each_seed_and_the_papers_parameters():
    assert rows_of(plan(RSC15, REQUEST)) == [
        ('POP', None, None, None), ('S-POP', None, None, None), ('Item-KNN', None, None, None),
        ('BPR-MF', None, None, 42), ('BPR-MF', None, None, 43),
        *[(model, None, None, None) for model in ('Markov', 'S-KNN', 'V-SKNN', 'V-SKNN-tuned', 'STAN', 'VSTAN')],
        *[(NETWORK, loss, units, seed) for units in (4, 8) for loss in ('top1', 'bpr') for seed in (42, 43)]]
    for protocol, candidates in ((RSC15, None), (VIDEO, 30_000)):
        for cell in plan(protocol, REQUEST):
            assert cell.candidates == candidates
            assert cell.parameters == (protocol.parameters[cell.loss] if cell.loss else BASELINES[cell.model][1])
            assert cell.backend == ('python' if cell.loss else None)


def test_table_3_alone_needs_item_knn_and_table_2_no_cell():
    assert [cell.model for cell in plan(RSC15, REQUEST._replace(tables=(3,), seeds=(1,), units=(4,)))] == [
        'Item-KNN', NETWORK, NETWORK]
    assert plan(RSC15, REQUEST._replace(tables=(2,))) == []
    with pytest.raises(ValueError, match='--table 3 has no row for --models POP'):
        plan(RSC15, REQUEST._replace(tables=(3,), models=('POP',)))


def test_a_cell_that_needs_more_parallel_sessions_than_there_are_is_refused():
    train = pd.DataFrame({'SessionId': [1, 1, 2, 2, 3], 'ItemId': 1, 'Time': range(5)})
    check_batch_sizes([a_cell(NETWORK, parameters={'batch_size': 2})], train)
    with pytest.raises(ValueError, match='GRU4Rec with top1 trains 3 sessions in parallel, but .* has 2 of two or'):
        check_batch_sizes([a_cell(NETWORK, parameters={'batch_size': 3})], train)


def test_a_training_that_meets_nan_is_reported_as_unstable(data):
    cell = a_cell(NETWORK, parameters=dict(batch_size=10, dropout_p_hidden=0.0, learning_rate=1e38, adapt=None))
    with pytest.warns(RuntimeWarning, match='loss of epoch 0, mini-batch'):
        result, ranks = run_cell(cell._replace(loss='cross-entropy'), data)
    assert set(result) == set(RESULT_KEYS) and ranks is None
    assert result['recall@20'] is None and result['eval_seconds'] is None


def test_the_key_of_a_cell_differs_with_all_that_its_number_depends_on():
    network = a_cell(NETWORK)
    changes = ({'seed': 43}, {'epochs': 2}, {'units': 5}, {'tie_policy': 'median'}, {'candidates': 5},
               {'parameters': {'batch_size': 11}}, {'backend': 'numba'}, {'loss': 'bpr'}, {'model': 'POP'})
    keys = [network.key('data'), network.key('other data'), *[network._replace(**change).key('data')
                                                              for change in changes]]
    assert len({digits_of(key) for key in keys}) == len(keys)
    assert digits_of(network.key('data')) == digits_of(a_cell(NETWORK).key('data'))


def test_a_file_whose_numbers_were_changed_is_named(tmp_path):
    results, key = Results(tmp_path), a_cell(NETWORK).key('data')
    results.make_folders()
    results.save('cells', key, {'recall@20': 0.5, 'epoch_losses': [1.0, None]})
    path = results.path('cells', key)
    for changed in ('0.25', '"0.5"', 'null', '{}'):
        path.write_text(path.read_text().replace('0.5', changed))
        with pytest.raises(ValueError, match=f'{path.name}: not a result of this version of the program, or damaged'):
            Results(tmp_path).load('cells')
        results.save('cells', key, {'recall@20': 0.5, 'epoch_losses': [1.0, None]})


def test_a_result_of_another_revision_has_another_key_and_does_not_count(tmp_path, monkeypatch):
    results, now = Results(tmp_path), a_cell(NETWORK).key('data')
    results.make_folders()
    monkeypatch.setattr(cells, 'REVISION', REVISION - 1)
    before = a_cell(NETWORK).key('data')
    assert digits_of(before) != digits_of(now)
    results.save('cells', before, {'recall@20': 0.5})
    assert results.load('cells') == [] and not results.has_cell(now)
    for recall in (0.6, 0.75):  # a file that has changed is read again
        results.save('cells', now, {'recall@20': recall})
        assert [result['recall@20'] for result in results.load('cells')] == [recall]


def test_a_network_continues_from_its_checkpoint_and_says_nothing_of_the_time_that_was_not_measured(data, tmp_path):
    class Killed(Exception):
        pass

    def killed(text, epoch_ended):
        if epoch_ended:
            raise Killed
    cell = a_cell(NETWORK, epochs=3, parameters={'batch_size': 10, 'dropout_p_hidden': 0.5})
    whole, ranks = run_cell(cell, data)
    with pytest.raises(Killed):
        run_cell(cell, data, tmp_path / 'checkpoint', 0.0, killed)
    told = []
    resumed, ranks_again = run_cell(cell, data, tmp_path / 'checkpoint', 600.0, lambda text, ended: told.append(text))
    for name in ('recall@20', 'mrr@20', 'epoch_losses', 'details'):
        assert resumed[name] == whole[name]
    assert np.array_equal(ranks, ranks_again)
    assert resumed['fit_seconds'] is None and whole['fit_seconds'] > 0
    assert resumed['train_events_per_second'] is None
    assert told[0].startswith('epoch 2 of 3')


@pytest.mark.parametrize('damage', [b'', b'no checkpoint', None])
def test_a_checkpoint_that_cannot_be_continued_is_set_aside_and_the_training_begins_from_the_start(
        data, tmp_path, damage):
    cell, path, told = a_cell(NETWORK, epochs=2), tmp_path / 'checkpoint', []
    if damage is None:  # of another training
        run_cell(cell._replace(seed=43), data, path)
    else:
        path.write_bytes(damage)
    before = path.read_bytes()
    result, _ranks = run_cell(cell, data, path, 600.0, lambda text, is_milestone: told.append((text, is_milestone)))
    assert result['epoch_losses'] == run_cell(cell, data)[0]['epoch_losses'] and result['fit_seconds'] > 0
    assert path.with_name('checkpoint.damaged').read_bytes() == before
    assert told[0][1] and told[0][0].startswith(f'{path}: ') and 'is now checkpoint.damaged' in told[0][0]


def test_the_details_are_counted_by_position_and_popularity():
    train = pd.DataFrame({'SessionId': 1, 'ItemId': ['a'] * 5 + ['b'] * 3 + ['c'] * 2 + ['d'], 'Time': range(11)})
    test = pd.DataFrame({'SessionId': [2, 1, 1, 1, 2], 'ItemId': ['a', 'a', 'b', 'd', 'c'], 'Time': [4, 1, 2, 3, 5]})
    data = Dataset('x', RSC15, False, train, test)
    details = metrics_of_ranks(np.array([1, 30, 2]), data)['details']  # of b and d in session 1, and c in session 2
    assert details['by_position'] == [['2', 2, 1.0], ['3', 1, 0.0]]
    # of four items a is the first, from 0; b from 1/4, c from 1/2, d from 3/4
    assert details['by_popularity'] == [['to 50%', 1, 1.0], ['the rest', 2, 0.5]]
    assert details['recall'][:3] == pytest.approx([1 / 3, 2 / 3, 2 / 3]) and details['recall'][-1] == 1
    assert details['mrr'][0] == pytest.approx(1 / 3) and details['mrr'][-1] == pytest.approx((1 + 1 / 2 + 1 / 30) / 3)
