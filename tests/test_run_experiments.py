"""The experiment runner: its cells, its files, its tables, and what it says about wrong input."""
import json

import pandas as pd
import pytest

import preprocess_rsc15
import run_experiments

QUICK = ['--backend', 'python', '--epochs', '1', '--units', '4']
KEYS = {'dataset', 'table', 'model', 'loss', 'units', 'epochs', 'seed', 'parameters', 'recall@20', 'recall@19',
        'mrr@20', 'published_recall@20', 'published_mrr@20', 'fit_seconds', 'eval_seconds', 'train_events_per_second',
        'eval_events_per_second', 'tie_policy', 'backend', 'versions', 'candidates', 'epoch_losses', 'details'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')
    preprocess_rsc15.make_synthetic(folder, n_sessions=4000, n_items=300, seed=1)
    return folder


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')
    assert run_experiments.main(['--data', str(data), '--out', str(out), *QUICK]) == 0
    return out


def results_in(out):
    return json.loads((out / 'results.json').read_text())


def test_each_row_of_both_tables_becomes_one_result_with_all_its_keys(finished):
    results = results_in(finished)
    assert [(r['table'], r['model'], r['loss']) for r in results] == [
        (1, 'POP', None), (1, 'S-POP', None), (1, 'Item-KNN', None), (1, 'BPR-MF', None),
        (3, 'GRU4Rec', 'top1'), (3, 'GRU4Rec', 'bpr'), (3, 'GRU4Rec', 'cross-entropy')]
    for result in results:
        assert set(result) - {'other_tie_policies'} == KEYS
        assert ('other_tie_policies' in result) == (result['model'] == 'Item-KNN')
        assert result['train_events_per_second'] > 0
        assert 0 <= result['mrr@20'] <= result['recall@19'] <= result['recall@20'] <= 1
        assert result['tie_policy'] == 'conservative'
        assert (result['backend'] == 'python') == (result['model'] == 'GRU4Rec')
        assert result['fit_seconds'] >= 0 and result['eval_events_per_second'] > 0


def test_results_are_those_of_the_models_trained_by_hand(data, finished):
    from baselines import ItemKNN
    from evaluation import next_item_ranks, recall_mrr
    train = pd.read_csv(data / 'rsc15_train_full.txt', sep='\t')
    test = pd.read_csv(data / 'rsc15_test.txt', sep='\t')
    ranks = next_item_ranks(ItemKNN(n_sims=100, lmbd=20).fit(train), test, tie_policy='conservative')
    result = next(r for r in results_in(finished) if r['model'] == 'Item-KNN')
    assert (result['recall@20'], result['mrr@20']) == recall_mrr(ranks, 20)
    assert result['recall@19'] == recall_mrr(ranks, 20, 'rank<cut_off')[0]


def test_published_numbers_are_those_of_the_papers_tables(finished):
    published = {(r['model'], r['loss']): (r['published_recall@20'], r['published_mrr@20'])
                 for r in results_in(finished)}
    assert published['POP', None] == (0.0050, 0.0012)
    assert published['S-POP', None] == (0.2672, 0.1775)
    assert published['Item-KNN', None] == (0.5065, 0.2048)
    assert published['BPR-MF', None] == (0.2574, 0.0618)
    assert published['GRU4Rec', 'top1'] == (None, None)  # the paper has no network of 4 units
    assert run_experiments.RSC15.published['top1', 100] == (0.5853, 0.2305)
    assert run_experiments.RSC15.published['bpr', 1000] == (0.6322, 0.2467)


@pytest.mark.parametrize('dataset, n_networks', [('rsc15', 6), ('video', 5)])  # no cross-entropy, 1000 on VIDEO
def test_the_published_gains_over_item_knn_follow_from_the_published_numbers(dataset, n_networks):
    protocol = run_experiments.PROTOCOLS[dataset]
    assert len(protocol.gains) == n_networks and len(protocol.published) == 4 + n_networks
    for cell, gains in protocol.gains.items():
        for published, baseline, gain in zip(protocol.published[cell], protocol.published['Item-KNN'], gains):
            assert published / baseline - 1 == pytest.approx(gain, abs=6e-4)  # both sides are rounded


def test_a_finished_cell_is_not_run_again(data, finished, monkeypatch, capsys):
    def fail(*args):
        raise AssertionError('a cell was run again')
    before = (finished / 'results.json').read_bytes()
    monkeypatch.setattr(run_experiments, 'run_cell', fail)
    assert run_experiments.main(['--data', str(data), '--out', str(finished), *QUICK]) == 0
    assert (finished / 'results.json').read_bytes() == before
    assert 'Table 3' in capsys.readouterr().out


def test_an_interrupted_run_keeps_its_finished_cells_and_goes_on_from_there(data, tmp_path, monkeypatch):
    run_cell, trained = run_experiments.run_cell, []

    def interrupted(cell, *args):
        if cell.model == 'Item-KNN' and len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(cell.model)
        return run_cell(cell, *args)
    monkeypatch.setattr(run_experiments, 'run_cell', interrupted)
    command = ['--data', str(data), '--out', str(tmp_path), '--table', '1']
    assert run_experiments.main(command) == 130
    assert [r['model'] for r in results_in(tmp_path)] == ['POP', 'S-POP']
    assert '| S-POP' in (tmp_path / 'tables.md').read_text()
    monkeypatch.setattr(run_experiments, 'run_cell',
                        lambda cell, *args: trained.append(cell.model) or run_cell(cell, *args))
    assert run_experiments.main(command) == 0
    assert trained == ['POP', 'S-POP', 'Item-KNN', 'BPR-MF']


def test_other_parameters_make_another_cell(data, finished):
    cell = run_experiments.plan(run_experiments.RSC15, [3], ['GRU4Rec'], list(run_experiments.RSC15.parameters), [4], 1,
                                [42], 'conservative')[0]
    results = results_in(finished)
    name = results[0]['dataset']
    assert run_experiments.find(results, name, cell, 'python')['loss'] == 'top1'
    for change in ({'seed': 43}, {'epochs': 2}, {'units': 5}, {'tie_policy': 'median'},
                   {'parameters': cell.parameters | {'batch_size': 51}}):
        assert run_experiments.find(results, name, cell._replace(**change), 'python') is None
    assert run_experiments.find(results, 'other-data', cell, 'python') is None
    assert run_experiments.find(results, name, cell, 'numba') is None


def test_the_tables_say_what_data_policy_and_seed_they_are_from(finished):
    text = (finished / 'tables.md').read_text()
    assert 'This is a synthetic click log' in text
    assert "policy 'conservative' in every row" in text
    assert 'epochs 1, seed 42, backend python' in text
    assert "'standard'" in text and "'median'" in text  # what Item-KNN would reach otherwise
    knn = next(r for r in results_in(finished) if r['model'] == 'Item-KNN')
    top1 = next(r for r in results_in(finished) if r['loss'] == 'top1')
    assert f"{top1['recall@20']:.4f} ({top1['recall@20'] / knn['recall@20'] - 1:+.2%})" in text


def test_several_seeds_are_shown_as_mean_and_standard_deviation():
    def result(recall):
        return {'recall@20': recall}
    assert run_experiments.average([result(0.25), result(0.35)], 'recall@20') == '0.3000 ± 0.0707'
    assert run_experiments.average([result(0.25), result(None)], 'recall@20') == (
        '0.2500 1 of 2 numerically unstable')


def test_a_training_that_meets_nan_is_reported_as_unstable(data, monkeypatch):
    monkeypatch.setitem(run_experiments.RSC15.parameters, 'cross-entropy',
                        dict(batch_size=50, dropout_p_hidden=0.0, learning_rate=1e38, adapt=None))
    arguments = run_experiments.parse(['--data', str(data)])
    cell = run_experiments.plan(run_experiments.RSC15, [3], ['GRU4Rec'], list(run_experiments.RSC15.parameters), [4], 1,
                                [42], 'conservative')[2]
    with pytest.warns(RuntimeWarning, match='loss of epoch 0, mini-batch'):
        result = run_experiments.run_cell(cell, run_experiments.load_dataset(arguments), 'python', {})
    assert result['recall@20'] is None and result['eval_seconds'] is None
    assert 'numerically unstable' in run_experiments.average([result], 'recall@20')


def test_test_events_that_the_protocol_would_have_dropped_are_dropped(tmp_path, capsys):
    train = pd.DataFrame({'SessionId': [1, 1, 2, 2], 'ItemId': ['a', 'b', 'b', 'c'], 'Time': [1, 2, 3, 4]})
    test = pd.DataFrame({'SessionId': [3, 3, 3, 4, 4], 'ItemId': ['a', 'new', 'b', 'a', 'new'], 'Time': range(5, 10)})
    kept = run_experiments.known_items_only(train, test)
    assert kept.ItemId.tolist() == ['a', 'b'] and kept.SessionId.tolist() == [3, 3]
    assert 'dropped 3 test events' in capsys.readouterr().err


def test_any_two_files_with_the_three_columns_will_do(tmp_path):
    train = pd.DataFrame({'x': 0, 'Time': range(8), 'ItemId': list('abcabcab'),
                          'SessionId': [f's{i // 2}' for i in range(8)]})
    for name in ('train', 'test'):
        train.to_csv(tmp_path / f'{name}.tsv', sep='\t', index=False)
    assert run_experiments.main(['--train', str(tmp_path / 'train.tsv'), '--test', str(tmp_path / 'test.tsv'),
                                 '--out', str(tmp_path / 'out'), '--models', 'POP', 'Item-KNN']) == 0
    assert {r['model'] for r in results_in(tmp_path / 'out')} == {'POP', 'Item-KNN'}
    assert results_in(tmp_path / 'out')[0]['dataset'].startswith('train-')


@pytest.mark.parametrize('arguments, complaint', [
    (['--train', 'x'], '--train and --test go together'),
    (['--data', 'x', '--train', 'x', '--test', 'x'], 'give either --data'),
    (['--data', 'x', '--sessions', '5'], '--sessions and --items are sizes of the synthetic log'),
    (['--items', '0'], "'0' is not a whole number of at least 1"),
    (['--table', '4'], '4 is none of 1, 2, 3'),
    (['--models', 'KNN'], "'KNN' is none of POP, S-POP, Item-KNN, BPR-MF, GRU4Rec"),
    (['--loss', 'hinge'], "'hinge' is none of top1, bpr, cross-entropy"),
    (['--loss', 'mrr'], '--loss mrr goes with --table 2'),
    (['--quick'], '--quick goes with --claims'),
    (['--claims', '--units', '100'], '--units of the claims are two numbers'),
    (['--table', '2', '--units', '50,100'], '--table 2 searches for networks of one size and with one seed'),
    (['--dataset', 'netflix'], "invalid choice: 'netflix'"),
    (['--seeds', '1,x'], "'x' is not a whole number"),
    (['--units', '0'], "'0' is not a whole number of at least 1"),
    (['--epochs', 'ten'], "'ten' is not a whole number of at least 1"),
])
def test_wrong_arguments_are_named_before_any_work(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        run_experiments.main(arguments)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err


def test_a_table_without_a_row_for_the_models_is_an_error(data, tmp_path, capsys):
    assert run_experiments.main(['--table', '3', '--models', 'POP', '--data', str(data), '--out', str(tmp_path)]) == 2
    assert '--table 3 has no row for --models POP' in capsys.readouterr().err


def test_ids_that_look_like_numbers_in_one_file_only_are_the_same_ids(tmp_path):
    (tmp_path / 'train.tsv').write_text('SessionId\tItemId\tTime\n1\t5\t1\n1\t7\t2\n2\ta\t3\n2\tNA\t4\n')
    (tmp_path / 'test.tsv').write_text('SessionId\tItemId\tTime\n3\t5\t5\n3\t7\t6\n')
    data = run_experiments.load_dataset(run_experiments.parse(
        ['--train', str(tmp_path / 'train.tsv'), '--test', str(tmp_path / 'test.tsv')]))
    assert data.train.ItemId.tolist() == ['5', '7', 'a', 'NA'] and data.test.ItemId.tolist() == ['5', '7']


def test_a_gain_over_a_baseline_that_hits_nothing_is_left_out(finished):
    results = [result | {'recall@20': 0.0, 'mrr@20': 0.0} if result['model'] == 'Item-KNN' else result
               for result in results_in(finished)]
    assert any('TOP1' in line and '%' not in line
               for line in run_experiments.table_3(results, run_experiments.VIDEO))


def test_too_few_sessions_for_a_row_are_noticed_before_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_experiments, 'run_cell', lambda *args: pytest.fail('a cell was run'))
    log = pd.DataFrame({'SessionId': [k // 2 for k in range(400)], 'ItemId': [k % 9 for k in range(400)], 'Time': 0})
    log.to_csv(tmp_path / 'log.tsv', sep='\t', index=False)
    assert run_experiments.main(['--train', str(tmp_path / 'log.tsv'), '--test', str(tmp_path / 'log.tsv'),
                                 '--out', str(tmp_path / 'out')]) == 2
    assert ('GRU4Rec with cross-entropy trains 500 sessions in parallel, but the training data has 200'
            in capsys.readouterr().err)


def test_lists_may_be_written_with_spaces_or_commas():
    for words in (['--seeds', '1', '2', '--models', 'POP', 'GRU4Rec'], ['--seeds', '1,2', '--models', 'POP,GRU4Rec']):
        arguments = run_experiments.parse(words)
        assert arguments.seeds == [1, 2] and arguments.models == ['POP', 'GRU4Rec'] and arguments.table == [1, 3]


def test_a_results_file_of_another_program_is_not_overwritten(data, tmp_path, capsys):
    (tmp_path / 'results.json').write_text('{"mine": 1}')
    assert run_experiments.main(['--data', str(data), '--out', str(tmp_path)]) == 2
    assert 'not a results file' in capsys.readouterr().err
    assert (tmp_path / 'results.json').read_text() == '{"mine": 1}'


def test_the_synthetic_log_is_made_once(tmp_path, monkeypatch):
    made = []
    make = preprocess_rsc15.make_synthetic
    monkeypatch.setattr(preprocess_rsc15, 'make_synthetic', lambda *size, **sizes: made.append(make(*size, **sizes)))
    command = ['--cache', str(tmp_path), '--sessions', '3000', '--items', '300']
    names = {run_experiments.load_dataset(run_experiments.parse(command)).name for _ in range(2)}
    assert len(made) == 1 and len(names) == 1 and names.pop().startswith('synthetic-')


# --- The protocol of VIDEO ------------------------------------------------------------------------------------------


def test_the_video_protocol_drops_long_sessions_and_ranks_among_popular_items(data, tmp_path, monkeypatch, capsys):
    from evaluation import next_item_ranks, recall_mrr
    protocol = run_experiments.VIDEO._replace(candidates=30, max_session_length=9)
    monkeypatch.setitem(run_experiments.PROTOCOLS, 'video', protocol)
    files = [str(data / f'rsc15_{name}.txt') for name in ('train_full', 'test')]
    assert run_experiments.main(['--dataset', 'video', '--train', files[0], '--test', files[1], '--out', str(tmp_path),
                                 '--models', 'POP', '--table', '1']) == 0
    train, test = (frame[frame.groupby('SessionId').ItemId.transform('size') <= 9]
                   for frame in (pd.read_csv(file, sep='\t') for file in files))
    test = test[test.ItemId.isin(train.ItemId)]
    test = test[test.groupby('SessionId').ItemId.transform('size') > 1]
    popular = train.ItemId.value_counts().index[:30]
    model = run_experiments.baselines.Pop(top_n=100).fit(train)
    result, = results_in(tmp_path)
    assert (result['recall@20'], result['mrr@20']) == recall_mrr(
        next_item_ranks(model, test, popular, tie_policy='conservative'), 20)
    assert (result['published_recall@20'], result['published_mrr@20'], result['candidates']) == (0.0499, 0.0117, 30)
    out, error = capsys.readouterr()
    assert 'events of sessions of more than 9 events' in error
    assert 'ranked among the 30 most popular items of the training data and itself' in out
    assert 'Published: VIDEO' in out and 'synthetic click log' in out


def test_the_published_numbers_of_video_are_not_mistaken_for_those_of_the_users_data(data):
    frame = pd.read_csv(data / 'rsc15_test.txt', sep='\t')
    mine = run_experiments.Dataset('mine', False, frame, frame)
    assert 'This is not the data of the published numbers' in run_experiments.about(mine, run_experiments.VIDEO)
    assert 'only if this is the RSC15 data' in run_experiments.about(mine, run_experiments.RSC15)


def test_of_equally_popular_items_the_first_ones_are_candidates():
    events = pd.DataFrame({'ItemId': list('abbccd')})
    assert run_experiments.most_popular(events, 3).tolist() == ['b', 'c', 'a']
    assert run_experiments.most_popular(events, 4) is None and run_experiments.most_popular(events, None) is None
