"""The command line of the experiments: what it runs, writes and prints, and what it says about wrong input."""
import re
import shutil

import pandas as pd
import pytest

import run_experiments
from gru4rec_pytensor.experiments import protocols, results, work
from gru4rec_pytensor.experiments.cells import RESULT_KEYS, Cell
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import rows_of_tables

QUICK = ['--backend', 'python', '--epochs', '1', '--units', '4', '--jobs', '1']


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')
    assert run_experiments.main(['--data', str(data), '--out', str(out), *QUICK]) == 0
    return out


def results_in(out, protocol=protocols.RSC15):
    return rows_of_tables(Results(out).load('cells'), protocol)


def test_each_row_of_both_tables_becomes_one_result_with_all_its_keys(finished):
    found = results_in(finished)
    assert [(r['model'], r['loss']) for r in found] == [
        ('POP', None), ('S-POP', None), ('Item-KNN', None), ('BPR-MF', None),
        ('GRU4Rec', 'top1'), ('GRU4Rec', 'bpr'), ('GRU4Rec', 'cross-entropy')]
    for result in found:
        assert set(result) - {'other_tie_policies'} == {
            *RESULT_KEYS, *Cell._fields, 'data', 'revision', 'ranks', 'path'} - {'source'}
        assert ('other_tie_policies' in result) == (result['model'] == 'Item-KNN')
        assert result['train_events_per_second'] > 0
        assert 0 <= result['mrr@20'] <= result['recall@19'] <= result['recall@20'] <= 1
        assert result['tie_policy'] == 'conservative'
        assert (result['backend'] == 'python') == (result['model'] == 'GRU4Rec') == bool(result['epoch_losses'])
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


def test_a_finished_cell_is_not_run_again_under_another_name_of_the_data_either(
        data, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(data, tmp_path / 'renamed')
    before = {path: path.read_bytes() for path in (finished / 'cells').iterdir()}
    monkeypatch.setattr(work, 'run_cell', lambda *args: pytest.fail('a cell was run again'))
    read, read_result = [], results.read_result
    monkeypatch.setattr(results, 'read_result', lambda path: read.append(path) or read_result(path))
    for folder in (data, tmp_path / 'renamed'):
        assert run_experiments.main(['--data', str(folder), '--out', str(finished), *QUICK]) == 0
        assert len(read) == len(set(read)) >= 7  # which costs seconds where there are thousands
        read.clear()
        out, error = capsys.readouterr()
        assert 'Table 3' in out and f'7 of 7 cells are in {finished} already' in error
    assert {path: path.read_bytes() for path in (finished / 'cells').iterdir()} == before and len(before) == 2 * 7


@pytest.mark.promise
def test_tables_and_report_show_all_that_the_folder_has_whichever_command_made_it(data, tmp_path, capsys):
    command = ['--data', str(data), '--out', str(tmp_path), *QUICK]
    for more in (['--models', 'POP'], ['--models', 'GRU4Rec,Item-KNN', '--loss', 'bpr'], ['--models', 'S-POP']):
        assert run_experiments.main([*command, *more]) == 0
    rows = [line.split('|')[1].strip() for line in capsys.readouterr().out.rpartition('### Table 1')[2].splitlines()
            if line.startswith('| ')]
    assert rows == ['Baseline', 'POP', 'S-POP', 'Item-KNN', 'Loss', 'BPR']
    report = (tmp_path / 'report.html').read_text()
    assert all(f'<td>{row}</td>' in report for row in ('POP', 'S-POP', 'Item-KNN', 'BPR, 4 units'))
    assert report.count('python run_experiments.py') == 3


def test_an_interrupted_run_keeps_its_finished_cells_and_continues_from_there(data, tmp_path, monkeypatch):
    run_cell, trained = work.run_cell, []

    def interrupted(cell, *args):
        if cell.model == 'Item-KNN' and len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(cell.model)
        return run_cell(cell, *args)
    monkeypatch.setattr(work, 'run_cell', interrupted)
    command = ['--data', str(data), '--out', str(tmp_path), '--table', '1', '--jobs', '1']
    assert run_experiments.main(command) == 130
    assert [r['model'] for r in results_in(tmp_path)] == ['POP', 'S-POP']
    assert '| S-POP' in (tmp_path / 'tables.md').read_text()
    monkeypatch.setattr(work, 'run_cell', lambda cell, *args: trained.append(cell.model) or run_cell(cell, *args))
    assert run_experiments.main(command) == 0
    assert trained == ['POP', 'S-POP', 'Item-KNN', 'BPR-MF']


def test_the_tables_say_what_data_policy_and_seed_they_are_from(finished):
    text = (finished / 'tables.md').read_text()
    assert 'This is a synthetic click log' in text
    assert "policy 'conservative' in every row" in text
    assert 'epochs 1, seed 42, backend python' in text
    assert "'standard'" in text and "'median'" in text  # what Item-KNN would reach otherwise
    knn = next(r for r in results_in(finished) if r['model'] == 'Item-KNN')
    top1 = next(r for r in results_in(finished) if r['loss'] == 'top1')
    assert re.search(rf"{top1['recall@20']:.4f} \[0\.\d{{4}}, 0\.\d{{4}}] "
                     + re.escape(f"({top1['recall@20'] / knn['recall@20'] - 1:+.2%})"), text)


@pytest.mark.parametrize('arguments, complaint', [
    (['--train', 'x'], '--train and --test go together'),
    (['--data', 'x', '--train', 'x', '--test', 'x'], 'give either --data'),
    (['--data', 'x', '--sessions', '5'], '--sessions and --items are sizes of the synthetic log'),
    (['--items', '0'], "'0' is not a whole number of at least 1"),
    (['--table', '4'], '4 is none of 1, 2, 3'),
    (['--models', 'KNN'], "'KNN' is none of POP, S-POP, Item-KNN, BPR-MF, Markov, S-KNN, V-SKNN, V-SKNN-tuned, STAN, "
                          'VSTAN, GRU4Rec'),
    (['--loss', 'hinge'], "'hinge' is none of top1, bpr, cross-entropy"),
    (['--loss', 'mrr'], '--loss mrr goes with --table 2'),
    (['--quick'], '--quick goes with --claims'),
    (['--claims', '--trials', '5'], '--trials and --claims do not go together'),
    (['--claims', '--table', '1', '--models', 'POP'], '--table, --models and --claims do not go together'),
    (['--storage', 'sqlite:///x.db'], '--storage goes with --table 2'), (['--prune'], '--prune goes with --table 2'),
    (['--claims', '--units', '100'], '--units of the claims are two numbers'),
    (['--table', '2', '--units', '50,100'], '--table 2 searches for networks of one size and with one seed'),
    (['--seeds', '1,x'], "'x' is not a whole number"),
    (['--parameters', 'x.toml', '--loss', 'bpr'], '--loss goes with --table, without which --parameters runs nothing'),
    (['--parameters', 'x.toml', '--claims'], '--parameters and --claims do not go together'),
    (['--search', 'x.toml', '--loss', 'bpr'], '--loss goes with --table, without which --search runs nothing'),
    (['--search', 'x.toml', '--table', '2'], '--search does not go with --claims or --table 2'),
    (['--search', 'x.toml', '--valid', 'x'], '--valid goes with --train and --test'),
    (['--search', 'x.toml', '--metric', 'recall'], "'recall' is no metric such as recall@20 or mrr@5"),
    (['--fixed', 'n_epochs=1'], '--fixed goes with --search'), (['--trials', '5'], '--trials goes with --table 2'),
    (['--claims', '--figures'], '--figures and --claims do not go together'),
    (['--rerun'], '--rerun goes with --compare'), (['--name', 'A', 'B'], '--name gives 2 titles to 0 rows'),
    (['--compare', '--units', '5'], '--units goes with --table, without which --compare runs nothing'),
    (['--published', 'Coveo'], '--published goes with --data or --train'),
    (['--published', 'amazon'], 'diginetica'),
])
def test_wrong_arguments_are_named_before_any_work(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        run_experiments.main(arguments)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err


def test_lists_may_be_written_with_spaces_or_commas_and_titles_in_any_case():
    for words in (['--seeds', '1', '2', '--models', 'POP', 'GRU4Rec'], ['--seeds', '1,2', '--models', 'POP,GRU4Rec']):
        request, source, _place = run_experiments.parse([*words, '--data', 'x', '--published', 'RetailROCKET'])
        assert request.seeds == (1, 2) and request.models == ('POP', 'GRU4Rec') and request.tables == (1, 3)
        assert source.said.title == 'RetailRocket'


@pytest.mark.parametrize('name, content', [
    ('cells/mine.json', '[1]'), ('cells/mine.json', '{'),
    ('searches/mine.json', '{"format": 1, "key": {}, "result": {}}'), ('claims/mine.json', '{"format": 9}')])
def test_a_file_that_is_no_result_of_this_version_is_named_and_left(data, tmp_path, capsys, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert run_experiments.main(['--data', str(data), '--out', str(tmp_path)]) == 2
    assert f'{path}: not ' in capsys.readouterr().err.splitlines()[-1]
    assert path.read_text() == content


@pytest.mark.parametrize('url', ['postgresql://me:sec/ret?x@y@HOST/db', 'mysql://HOST/db?user=me&password=sec/ret'])
def test_no_password_stands_in_the_command_that_is_kept(monkeypatch, url):
    commands = []
    monkeypatch.setattr(run_experiments, 'run', lambda *arguments: commands.append(arguments[-1]) or 0)
    for words in (['--storage', url], [f'--storage={url}']):
        assert run_experiments.main(['--table', '2', *words]) == 0
    assert all('***' in command and 'sec' not in command and 'HOST/db' in command for command in commands)


@pytest.mark.parametrize('error, message', [
    (KeyError('ItemId'), 'ItemId'), (TypeError('no such type'), 'no such type'), (MemoryError(), 'MemoryError'),
    (ValueError('a\n  b'), 'a b')])
def test_an_error_of_any_kind_takes_one_line(monkeypatch, capsys, error, message):
    def failing(*arguments):
        raise error
    monkeypatch.setattr(run_experiments, 'run', failing)
    assert run_experiments.main([]) == 2
    assert capsys.readouterr().err == f'run_experiments.py: error: {message}\n'


# --- Parameters from files ------------------------------------------------------------------------------------------

TOML = """title = "Mine"
[parameters]
layers = [5]
loss = "bpr-max"
batch_size = 60
n_epochs = 2
dropout_p_hidden = 0.0
n_sample = 8
constrained_embedding = true
equal_times = "frame"
"""
AUTHORS = """gru4rec_params = OrderedDict([('layers', [5]), ('batch_size', 60), ('n_epochs', 2), ('n_sample', 8),
('bpreg', 1.0), ('momentum', 0.25), ('constrained_embedding', True)])"""


@pytest.fixture(scope='module')
def of_files(data, tmp_path_factory):
    """A folder of results of two files, of two seeds each, and the command that made it."""
    folder = tmp_path_factory.mktemp('parameters')
    (folder / 'a.toml').write_text(TOML)
    (folder / 'theirs.py').write_text(AUTHORS)
    command = ['--data', str(data), '--out', str(folder / 'out'), '--backend', 'python', '--jobs', '1', '--seeds',
               '1,2', '--parameters', str(folder / 'a.toml'), str(folder / 'theirs.py')]
    assert run_experiments.main(command) == 0
    return folder, command


@pytest.mark.promise
def test_networks_with_the_parameters_of_files_are_rows_of_a_table_and_of_the_report(of_files, data):
    from gru4rec import GRU4Rec
    folder, _command = of_files
    results = Results(folder / 'out').load('cells')
    assert sorted((r['loss'], r['units'], r['epochs'], r['seed']) for r in results) == 2 * [
        ('bpr-max', 5, 2, 1)] + 2 * [('bpr-max', 5, 2, 2)]
    train = pd.read_csv(data / 'rsc15_train_full.txt', sep='\t')
    for path in ('a.toml', 'theirs.py'):
        model = GRU4Rec.from_parameters(folder / path, backend='python', seed=2).fit(train)
        assert [r['epoch_losses'] for r in results].count(model.epoch_losses_) == 1
    table = (folder / 'out' / 'tables.md').read_text().partition('### Later papers')[2]
    report = (folder / 'out' / 'report.html').read_text()
    assert [line.split('|')[1].strip() for line in table.splitlines() if line[:2] == '| '] == [
        'Network', 'Mine', 'theirs']
    assert 'theirs: loss bpr-max, layers [5], batch_size 60, ' in table and 'momentum 0.25' in table
    for text in ('<h2>Later papers</h2>', '<td>Mine</td>', '<td>theirs, seed 2</td>'):
        assert text in report
    assert 'Published for this data' not in table + report  # it is a synthetic log


def test_a_network_is_not_trained_again_for_another_file_of_the_same_parameters(of_files, monkeypatch, capsys):
    folder, command = of_files
    other = folder / 'b.toml'
    other.write_text(TOML.replace('Mine', 'Renamed') + 'sample_alpha = 0.75\nmomentum = 0.0\n')
    monkeypatch.setattr(work, 'run_cell', lambda *args: pytest.fail('a cell was run again'))
    assert run_experiments.main([*command[:-2], str(other)]) == 0
    out = capsys.readouterr().out
    assert '| Renamed ' in out and '| theirs ' in out and 'Mine' not in out


def test_a_file_with_the_parameters_of_a_row_of_table_3_is_that_row_and_epochs_go_before_it(data, tmp_path, capsys):
    (tmp_path / 'a.toml').write_text('[parameters]\nlayers = [4]\nloss = "bpr"\nbatch_size = 50\n'
                                     'dropout_p_hidden = 0.2\nlearning_rate = 0.05\nmomentum = 0.2\n')
    assert run_experiments.main(['--data', str(data), '--out', str(tmp_path), '--backend', 'python', '--epochs', '1',
                                 '--parameters', str(tmp_path / 'a.toml')]) == 0
    out = capsys.readouterr().out
    assert '| BPR  | 4 ' in out and 'Later papers' not in out
    result, = results_in(tmp_path)
    assert result['epochs'] == 1 and result['parameters'] == protocols.RSC15.parameters['bpr']


@pytest.mark.parametrize('name, text, message', [
    ('a.toml', '[parameters]\nloss = "bpr"', 'layers are missing'), ('a.json', '{}', 'must end in .toml'),
    ('a.toml', '[parameters]\nlayers = [4]\nloss = "hinge"', "loss='hinge'")])
def test_a_wrong_file_of_parameters_is_named_before_any_work(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert run_experiments.main(['--data', 'no-such-folder', '--parameters', str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert name in error and message in error and error.count('\n') == 1


def test_the_video_protocol_drops_long_sessions_and_ranks_among_popular_items(data, tmp_path, monkeypatch, capsys):
    from baselines import Pop
    from evaluation import next_item_ranks, recall_mrr
    protocol = protocols.VIDEO._replace(candidates=30, max_session_length=9)
    monkeypatch.setitem(protocols.PROTOCOLS, 'video', protocol)
    files = [str(data / f'rsc15_{name}.txt') for name in ('train_full', 'test')]
    assert run_experiments.main(['--dataset', 'video', '--train', files[0], '--test', files[1], '--out', str(tmp_path),
                                 '--models', 'POP', '--table', '1', '--jobs', '1']) == 0
    train, test = (frame[frame.groupby('SessionId').ItemId.transform('size') <= 9]
                   for frame in (pd.read_csv(file, sep='\t') for file in files))
    test = test[test.ItemId.isin(train.ItemId)]
    test = test[test.groupby('SessionId').ItemId.transform('size') > 1]
    popular = train.ItemId.value_counts().index[:30]
    model = Pop(top_n=100).fit(train)
    result, = results_in(tmp_path, protocol)
    assert (result['recall@20'], result['mrr@20']) == recall_mrr(
        next_item_ranks(model, test, popular, tie_policy='conservative'), 20)
    assert result['candidates'] == 30
    out, error = capsys.readouterr()
    assert '| POP      | 0.0499 ' in out
    assert 'events of sessions of more than 9 events' in error
    assert 'ranked among the 30 most popular items of the training data and itself' in out
    assert 'Published: VIDEO' in out and 'synthetic click log' in out
