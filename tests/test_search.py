"""The parameter search of Table 2: its points, what it finds, and how it goes on."""
import functools
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import PATH

import preprocess_rsc15
import run_experiments
from evaluation import next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, Progress
from gru4rec_pytensor import click_log
from gru4rec_pytensor.experiments import search, spaces, storage
from gru4rec_pytensor.experiments.datasets import Dataset, open_events, share
from gru4rec_pytensor.experiments.found import best_trials
from gru4rec_pytensor.experiments.protocols import RSC15

optuna = pytest.importorskip('optuna', reason='Optuna, an extra, is not installed')
sqlalchemy = pytest.importorskip('sqlalchemy')

SMALL_SPACE = {'batch_size': (20, 50), 'dropout_p_hidden': (0.0,), 'learning_rate': (0.02, 0.1), 'momentum': (0.0,)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')
    preprocess_rsc15.make_synthetic(folder, n_sessions=400, n_items=200, seed=1)
    return folder


@pytest.fixture(autouse=True)
def small_space(monkeypatch):
    monkeypatch.setattr(search, 'SPACE', SMALL_SPACE)


@pytest.fixture
def the_search(folder):
    train, valid = (click_log.read_events(folder / f'rsc15_train_{part}.txt') for part in ('tr', 'valid'))
    data = share(Dataset('', RSC15, True, train, valid, fingerprint='data'), folder)
    return search.Search(data.folder, search.space_of_table_2('top1', 4, 2), 42, 'python', 'conservative', '', folder)


class Untrained:
    """Stands for a network in tests of the book-keeping; its recall follows from its parameters."""
    error_during_train = False

    def __init__(self, layers, n_epochs, batch_size, learning_rate, **arguments):
        self.recall = learning_rate + (batch_size if learning_rate < 0.05 else -batch_size) / 1000
        self.n_epochs = n_epochs

    def fit(self, data, callback=None, checkpoint=None, every=None):
        for epoch in range(self.n_epochs if callback else 0):
            for epoch_ends in (False, True):
                callback(Progress(epoch, self.n_epochs, 1, 1, 1, 0.5, epoch_ends))
        return self


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(search, 'GRU4Rec', Untrained)
    monkeypatch.setattr(search, 'validate', lambda model, the_search: (model.recall, model.recall, model.recall / 2))


def run(the_search, path, n_trials=3, prune=False, note=lambda text: None):
    the_search = the_search._replace(prune=prune, n_trials=n_trials, url=f'sqlite:///{path}')
    return search.run(the_search, lambda text, _is_milestone: note(text))


def trials_in(path, the_search):
    return optuna.load_study(study_name=the_search.name, storage=f'sqlite:///{path}').get_trials()


def described(trials):
    """What the trials are about and what came of them, without numbers and times."""
    return sorted((trial.user_attrs['phase'], trial.user_attrs['number'], str(trial.params), trial.value)
                  for trial in trials if trial.state.name == 'COMPLETE')


def test_the_points_of_a_seed_are_the_same_for_any_number_of_them_and_lie_in_the_space():
    points = search.random_points(SMALL_SPACE, 20, seed=1)
    assert points[:5] == search.random_points(SMALL_SPACE, 5, seed=1)
    assert points != search.random_points(SMALL_SPACE, 20, seed=2)
    for name, values in SMALL_SPACE.items():
        assert {point[name] for point in points} == set(values)  # with 20 points, each value of two occurs


def test_the_best_point_is_found_and_each_parameter_is_tuned_on_its_own(the_search, untrained, tmp_path):
    found = run(the_search, tmp_path / 'db')
    trials = trials_in(tmp_path / 'db', the_search)
    random = [trial for trial in trials if trial.user_attrs['phase'] == 'random']
    assert [trial.params for trial in random] == search.random_points(SMALL_SPACE, 3, 42)
    assert (found['n_random'], found['n_stable'], found['n_stopped']) == (3, 3, 0)
    best = max(random, key=lambda trial: trial.value)
    assert found['best_random'] == best.params | {'recall': best.value, 'mrr': best.user_attrs['mrr']}
    for name in ('batch_size', 'learning_rate'):  # of two values, the one that the best point does not have
        trial, = [trial for trial in trials if trial.user_attrs['phase'].startswith(name)]
        differing = [key for key in SMALL_SPACE if trial.params[key] != best.params[key]]
        assert differing == [name]
        best = max(best, trial, key=lambda trial: trial.value)
    assert {trial.user_attrs['phase'].split(',')[0] for trial in trials} == {'random', 'batch_size', 'learning_rate'}
    assert found['tuned']['recall'] == max(trial.value for trial in trials)


@pytest.mark.promise
def test_the_value_of_a_trial_is_the_recall_of_a_network_trained_by_hand(the_search, tmp_path):
    found = run(the_search, tmp_path / 'db', n_trials=1)['best_random']
    model = GRU4Rec([4], n_epochs=2, loss='top1', seed=42, backend='python', **{key: found[key] for key in SMALL_SPACE})
    train, valid = open_events(the_search.events)
    ranks = next_item_ranks(model.fit(train), valid, tie_policy='conservative')
    assert (found['recall'], found['mrr']) == recall_mrr(ranks, 20)


def test_the_name_of_a_search_in_the_storage_says_what_its_trials_have_in_common(the_search, monkeypatch):
    assert the_search.name == (
        'data, top1, 4 units, 2 epochs, seed 42, python, conservative, all items, space '
        f'{search.digits_of(SMALL_SPACE)}, revision 2')
    assert the_search._replace(prune=True).name.endswith(', revision 2, pruned')
    names = {the_search.name, the_search._replace(candidates=30).name}
    monkeypatch.setattr(search, 'SPACE', SMALL_SPACE | {'momentum': (0.5,)})
    assert len({*names, the_search._replace(space=search.space_of_table_2('top1', 4, 2)).name}) == 3


def interrupt_validations(monkeypatch, *numbers):
    """Have the validations of trials with these numbers, from 1, end as by Ctrl-C; return a list of all calls."""
    validate, calls = search.validate, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in numbers:
            raise KeyboardInterrupt
        return validate(*arguments)
    monkeypatch.setattr(search, 'validate', interrupted)
    return calls


@pytest.mark.promise
def test_an_interrupted_search_goes_on_and_ends_like_one_that_was_not(the_search, untrained, tmp_path, monkeypatch):
    whole = run(the_search, tmp_path / 'whole')
    calls = interrupt_validations(monkeypatch, 2, 3, 5)
    for _attempt in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(the_search, tmp_path / 'db')
    assert run(the_search, tmp_path / 'db') == whole
    assert described(trials_in(tmp_path / 'db', the_search)) == described(trials_in(tmp_path / 'whole', the_search))
    n_calls = len(calls)
    assert run(the_search, tmp_path / 'db') == whole and len(calls) == n_calls  # nothing is done again


@pytest.mark.promise
def test_more_points_prolong_a_search_which_ends_as_if_they_had_been_asked_for_at_once(the_search, untrained, tmp_path):
    found = {n: run(the_search, tmp_path / 'db', n_trials=n) for n in (1, 4)}
    assert [found[n]['n_random'] for n in (1, 4)] == [1, 4]
    assert found[4] == run(the_search, tmp_path / 'once', n_trials=4)
    assert run(the_search, tmp_path / 'db', n_trials=1) == found[1]


def test_unstable_networks_are_counted_and_recorded_with_the_reason(the_search, own_search, tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'SPACE', SMALL_SPACE | {'learning_rate': (1e38,)})
    lines = []
    the_search = the_search._replace(space=search.space_of_table_2('cross-entropy', 4, 2))
    found = run(the_search, tmp_path / 'db', n_trials=2, note=lines.append)
    assert found == {'n_random': 2, 'n_stable': 0, 'n_stopped': 0, 'best_random': None, 'tuned': None}
    trials = trials_in(tmp_path / 'db', the_search)
    assert [trial.state.name for trial in trials] == ['PRUNED', 'PRUNED']
    assert all(trial.user_attrs['reason'].startswith('Unstable: not finite') for trial in trials)
    assert len(lines) == 2 and 'Unstable: not finite after 0 epochs' in lines[0]
    fixed = own_search.space.fixed | {'n_epochs': 1}
    space = own_search.space._replace(fixed=fixed, parameters={'layers': (2, 4), 'learning_rate': (0.1, 1e38)})
    found = run(own_search._replace(space=space), tmp_path / 'db', n_trials=6)
    assert {trial['reason']: trial['point']['learning_rate'] for trial in found['trials']} == {
        '': 0.1, 'Unstable': 1e38}


def test_an_error_that_says_nothing_about_the_network_ends_the_search_and_its_point_is_run_again(
        the_search, untrained, tmp_path, monkeypatch):
    def broken(self, *arguments, **more):
        raise OSError('no room')
    with monkeypatch.context() as patched:
        patched.setattr(Untrained, 'fit', broken)
        with pytest.raises(OSError):
            run(the_search, tmp_path / 'db', n_trials=1)
    found = run(the_search, tmp_path / 'db', n_trials=1)
    assert found['n_random'] == found['n_stable'] == 1
    assert trials_in(tmp_path / 'db', the_search)[0].user_attrs['reason'] == 'OSError: no room'


def test_a_network_that_cannot_be_trained_is_a_result_and_the_search_continues(
        own_search, untrained, tmp_path, monkeypatch):
    fit = Untrained.fit

    def broken(self, *arguments, **more):
        if self.recall < 0.3:
            raise MemoryError('no room')
        return fit(self, *arguments, **more)

    monkeypatch.setattr(Untrained, 'fit', broken)
    found = run(own_search, tmp_path / 'db', n_trials=8)
    reasons = {trial['number']: trial['reason'] for trial in found['trials']}
    assert [*sorted(reasons)] == [*range(1, 9)] and {*reasons.values()} == {'', 'Cannot be trained'}
    assert all((trial['value'] is None) == (trial['reason'] != '') for trial in found['trials'])


@pytest.mark.promise
def test_a_trial_that_was_lost_with_its_process_is_run_again(the_search, untrained, tmp_path, monkeypatch):
    study = optuna.create_study(study_name=the_search.name, storage=f'sqlite:///{tmp_path}/db', direction='maximize')
    point, = search.random_points(SMALL_SPACE, 1, 42)
    study.enqueue_trial(point, user_attrs={'phase': 'random', 'number': 0})
    study.ask()  # and the process dies
    monkeypatch.setattr(storage, 'HEARTBEAT', 1)
    assert run(the_search, tmp_path / 'db', n_trials=1)['n_random'] == 1
    assert [trial.state.name for trial in trials_in(tmp_path / 'db', the_search)][:2] == ['FAIL', 'COMPLETE']


@pytest.mark.promise
def test_trials_are_stopped_early_only_when_asked_for(the_search, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners, 'MedianPruner', lambda **options: optuna.pruners.ThresholdPruner(lower=1.1))
    assert run(the_search, tmp_path / 'whole', n_trials=2)['n_stopped'] == 0
    found = run(the_search, tmp_path / 'db', n_trials=2, prune=True)
    assert found['n_stopped'] == found['n_stable'] == 2 and found['best_random'] is None
    for trial in trials_in(tmp_path / 'db', the_search._replace(prune=True)):
        assert trial.user_attrs['reason'] == 'stopped early'
        assert list(trial.intermediate_values) == [0] and 0 < trial.intermediate_values[0] < 1


def test_a_storage_that_cannot_be_opened_is_named_once_before_any_data_is_read(capsys, tmp_path, monkeypatch):
    monkeypatch.delattr(run_experiments, 'load_dataset')
    for url, shown, reason in (
            ('nonsense', 'nonsense', 'Could not parse'),
            ('postgresql://me:se@cret:x/y@HOST', 'postgresql://me:***@HOST', '@ is written as %40'),
            (f'sqlite:///{tmp_path}/no/where.db', f'sqlite:///{tmp_path}/no/where.db', 'unable to open')):
        assert run_experiments.main(['--data', 'DATA', '--out', str(tmp_path), '--table', '2', '--backend', 'python',
                                     '--storage', url, '--jobs', '2']) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and f"the storage '{shown}' cannot be used" in error[0] and reason in error[0]
        assert 'cret' not in error[0]


@pytest.mark.promise
def test_the_command_prints_table_2_with_the_published_parameters_next_to_ours(folder, tmp_path, capsys):
    command = ['--data', str(folder), '--out', str(tmp_path), '--table', '2', '--trials', '1', '--loss', 'bpr', 'mrr',
               '--units', '4', '--epochs', '1', '--backend', 'python', '--jobs', '1']
    assert run_experiments.main(command) == 0
    text = capsys.readouterr().out
    assert (tmp_path / 'tables.md').read_text() == text[:-1] and (tmp_path / 'search.db').exists()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')][2:]
    assert [row[:2] for row in rows] == [[loss, which] for loss in ('BPR', 'MRR') for which in (
        'published', 'ours, best random point', 'ours, tuned')]
    assert rows[0] == ['BPR', 'published', '50', '0.2', '0.05', '0.2', '-', '-', '-']
    assert rows[1][-1] == '1 of 1' and float(rows[2][6]) >= float(rows[1][6]) > 0
    assert 'This is a synthetic click log' in text
    more = ['2' if word == '1' else word for word in command[:8]]  # --trials 2, which goes on from there
    assert run_experiments.main([*more, *command[8:]]) == run_experiments.main(command) == 0
    text = (tmp_path / 'tables.md').read_text()
    assert sorted(re.findall('([12]) random points of this space', text)) == ['1', '2']  # each is kept
    assert run_experiments.main([*command[:4], '--models', 'POP', '--jobs', '1']) == 0  # another command, same folder
    for name in ('tables.md', 'report.html'):
        assert all(title in (tmp_path / name).read_text() for title in ('Table 1: baselines', 'Table 2: best'))


PROGRAM = """
import sys, time
from pathlib import Path
import pandas as pd
from gru4rec_pytensor.experiments import search, spaces, storage
from gru4rec_pytensor.experiments.datasets import Events

def objective(trial, a_search, note, n_points):
    trial.set_user_attr('began', True)
    parameters = spaces.suggested(trial, a_search.space.parameters)
    trial.set_user_attr('mrr', 0.5)
    print('begins', flush=True)
    time.sleep({seconds})
    print(trial.user_attrs, flush=True)
    return parameters['learning_rate']

search.SPACE, search.objective, storage.HEARTBEAT, storage.PATIENCE = {space}, objective, 1, {patience}
frame = pd.DataFrame({{'SessionId': [k // 2 for k in range(100)]}})
search.open_events = lambda folder: Events(frame, frame)
space = search.space_of_table_2('top1', 4, 1)
print(search.run(search.Search(Path('data'), space, 42, 'python', 'standard', sys.argv[1], Path('data'), 12), print))
"""
OUTCOME = "{'n_random': 12, 'n_stable': 12"


def start_search(url, seconds, patience=60):
    """A process that takes part in a search whose trials sleep."""
    program = PROGRAM.format(space=SMALL_SPACE, seconds=seconds, patience=patience)
    return subprocess.Popen([sys.executable, '-c', program, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=os.environ | {'PYTHONPATH': PATH})


def assert_shared(processes):
    """The processes end with the same outcome, and each point was trained to its end once."""
    lines = []
    for process in processes:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        lines.append([line for line in out.splitlines() if line != 'begins'])
    assert len({text[-1] for text in lines}) == 1 and lines[0][-1].startswith(OUTCOME)
    trained = [line for text in lines for line in text[:-1]]
    assert len(trained) == len(set(trained))
    return len(trained)


@pytest.mark.promise
def test_processes_that_start_at_once_share_the_points_of_a_search(tmp_path):
    processes = [start_search(f'sqlite:///{tmp_path}/shared.db', 0.05) for _process in range(2)]
    assert assert_shared(processes) == 12 + 2  # and one other value of two parameters


# --- Spaces of files -----------------------------------------------------------------------------------------------


AUTHORS = """\
{"name":"layers","dtype":"int","values":[64,512],"step":32,"log":false}
{"name":"learning_rate","dtype":"float","values":[0.01,0.25],"step":0.005}
{"name":"dropout_p_embed","dtype":"float","values":[0.0,0.5],"step":0.05}
{"name":"elu_param","dtype":"categorical","values":[0.0,0.5]}
"""
SMALL_FILE = """
[parameters]
loss = "cross-entropy"
n_epochs = 2
n_sample = 4

[space]
layers = {dtype = "int", values = [2, 4]}
learning_rate = {dtype = "float", values = [0.01, 0.5], log = true}
batch_size = {dtype = "categorical", values = [10, 20]}
"""


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / 'small.toml'
    path.write_text(SMALL_FILE)
    return path


@pytest.fixture
def own_search(the_search, small_file):
    space = spaces.read(small_file)
    return the_search._replace(space=space, sampler='tpe', metric='MRR@5')


def test_a_file_of_the_authors_is_read_as_it_is_with_their_defaults(tmp_path):
    path = tmp_path / 'authors.json'
    path.write_text(AUTHORS)
    space = spaces.read(path, ['n_sample=512,constrained_embedding=True'])
    assert [*space.parameters] == ['layers', 'learning_rate', 'dropout_p_embed', 'elu_param']
    point = {'layers': 96, 'learning_rate': 0.105, 'dropout_p_embed': 0.45, 'elu_param': 0.5}
    model = GRU4Rec(**spaces.network_arguments(space.fixed | point))
    assert (model.layers, model.final_act, model.n_sample, model.batch_size) == ([96], 'elu-0.5', 512, 32)
    assert not model.drop_tail and model.time_sort and model.loss == 'bpr-max'
    points = spaces.random_points(space.parameters, 200, 1)
    assert {point['layers'] % 32 for point in points} == {0} and {point['layers'] for point in points} >= {64, 512}
    assert all(point['learning_rate'] == round(point['learning_rate'], 3) for point in points)
    path.write_text(AUTHORS + '{"dtype":"float"}\n')
    with pytest.raises(ValueError, match=f'^{path}: line 5 is not like'):
        spaces.read(path)


def test_all_spaces_of_the_project_can_be_trained_and_their_names_say_what_they_are():
    paths = sorted((Path(search.__file__).parents[2] / 'spaces').glob('*.toml'))
    assert len(paths) == 8
    for space in map(spaces.read, paths):
        assert space.fixed['loss'] in space.name
        assert space.fixed.get('constrained_embedding', False) == ('shared' in space.name)
        assert space.parameters['layers']['values'][1] == (256 if '2-cores' in space.name else 512)


@pytest.mark.parametrize('old, new, fixed, message', [
    ('"int"', '"whole"', [], 'layers has .* it needs dtype'),
    ('[2, 4]', '[2, 4, 6]', [], 'layers has .* the lowest and the highest'),
    ('[2, 4]', '[2.5, 4]', [], 'layers has 2.5 among its values, which is not int'),
    ('log = true', 'step = 0.1, log = true', [], 'step'),
    ('log = true', 'steps = 0.1', [], 'learning_rate has'),
    ('[0.01, 0.5]', '[0.5, 0.01]', [], 'low'),
    ('learning_rate', 'rate', [], "'rate' is no argument of GRU4Rec that can be searched"),
    ('learning_rate', 'seed', [], "'seed' is no argument of GRU4Rec that can be searched"),
    ('layers', 'sigma', [], 'sigma|layers are missing'),
    ('[10, 20]', '[[10], [20]]', [], r'\[10\] among its values'),
    ('[10, 20]', '[0, 20]', [], 'batch_size=0'),
    ('loss = "cross-entropy"', 'loss = "unknown"', [], "loss='unknown'"),
    ('n_epochs = 2', 'epochs = 2', [], "'epochs' is no argument of GRU4Rec"),
    ('', '', ['learning_rate=0.1'], 'learning_rate is searched, and fixed at 0.1: leave one of them out'),
    ('', '', ['dropout_p_embed=0.1'], 'dropout_p_embed=0.1 needs embedding'),
    ('', '', ['n_samples=0.1'], "'n_samples' is no argument"),
    ('[parameters]', '[fixed]', [], "has the unknown name 'fixed'"),
])
def test_a_wrong_space_is_one_line_with_its_name(small_file, old, new, fixed, message):
    small_file.write_text(SMALL_FILE.replace(old, new) if old else SMALL_FILE)
    with pytest.raises(ValueError, match=f'^{small_file}: .*{message}') as error:
        spaces.read(small_file, fixed)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('n_refused', [storage.ATTEMPTS - 1, storage.ATTEMPTS])
def test_a_storage_whose_tables_others_make_at_the_moment_is_opened_at_a_later_attempt(monkeypatch, n_refused):
    refusals = iter([sqlalchemy.exc.IntegrityError('CREATE TABLE', {}, Exception('exists'))] * n_refused)

    def opened(*_address, **_options):
        if refusal := next(refusals, None):
            raise refusal
        return 'the storage'
    monkeypatch.setattr(optuna.storages, 'RDBStorage', opened)
    monkeypatch.setattr(storage.time, 'sleep', lambda seconds: None)
    if n_refused < storage.ATTEMPTS:
        assert storage.open_storage('sqlite:///x.db') == 'the storage'
    else:
        with pytest.raises(ValueError, match='x.db'):
            storage.open_storage('sqlite:///x.db')


@pytest.mark.parametrize('sampler', search.SAMPLERS)
def test_random_points_are_those_of_the_seed_and_a_model_gives_those_after_them(
        own_search, untrained, tmp_path, sampler):
    found = run(own_search._replace(sampler=sampler), tmp_path / 'db', n_trials=14)
    points = {trial['number'] - 1: trial['point'] for trial in found['trials']}
    assert sorted(points) == [*range(14)]
    expected = spaces.random_points(own_search.space.parameters, 14, 42)
    same = [points[k] == expected[k] for k in range(14)]
    assert all(same[:search.STARTUP]) and all(same) == (sampler == 'random')
    again = run(own_search._replace(sampler=sampler), tmp_path / 'again', n_trials=14)
    assert [trial['point'] for trial in again['trials']] == [trial['point'] for trial in found['trials']]


@pytest.mark.promise
def test_trials_of_an_interrupted_search_of_a_file_go_on_with_their_points(
        own_search, untrained, tmp_path, monkeypatch):
    interrupt_validations(monkeypatch, 2, 12, 13)
    for _attempt in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(own_search, tmp_path / 'db', n_trials=12)
    found = run(own_search, tmp_path / 'db', n_trials=12)
    assert sorted(trial['number'] for trial in found['trials']) == [*range(1, 13)]
    by_number = {}
    for trial in trials_in(tmp_path / 'db', own_search):
        by_number.setdefault(trial.user_attrs['number'], set()).add(str(trial.params))
    assert {len(points) for points in by_number.values()} == {1}  # also of those that were run twice


def test_what_a_lost_trial_reported_counts_when_it_goes_on(own_search, untrained, tmp_path):
    mine = own_search._replace(prune=True)
    study = optuna.create_study(study_name=mine.name, storage=f'sqlite:///{tmp_path}/db', direction='maximize')
    study.enqueue_trial({}, user_attrs={'phase': 'tpe', 'number': 0})
    trial = study.ask()
    point = spaces.suggested(trial, mine.space.parameters)
    trial.report(0.125, 0)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert [one['point'] for one in run(mine, tmp_path / 'db', 1, prune=True)['trials']] == [point]
    assert trials_in(tmp_path / 'db', mine)[-1].intermediate_values == {0: 0.125}


def test_a_trial_that_was_stopped_early_is_no_candidate_for_the_best(own_search, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners, 'MedianPruner', lambda **options: optuna.pruners.ThresholdPruner(upper=0.1))
    found = run(own_search, tmp_path / 'db', n_trials=8, prune=True)
    values = {trial['reason']: [one['value'] for one in found['trials'] if one['reason'] == trial['reason']]
              for trial in found['trials']}
    assert values.keys() == {'', 'stopped early'} and {*values['stopped early']} == {None}
    described = {'metric': 'MRR@5', 'space': own_search.space.parameters, 'fixed': {}, 'name': 'small', 'train': '',
                 'valid': '', 'conditions': ''}
    table, = best_trials(found | described).tables
    assert len(table.rows) == len(values[''])


def test_a_search_begins_no_trial_after_its_time(own_search, untrained, tmp_path):
    assert run(own_search._replace(timeout=1e-9), tmp_path / 'db')['trials'] == []


@pytest.mark.promise
def test_a_search_of_a_file_ends_in_a_file_of_parameters_a_row_and_a_section(folder, small_file, tmp_path, capsys):
    out = tmp_path / 'out'
    command = ['--data', str(folder), '--out', str(out), '--search', str(small_file), '--trials', '22', '--metric',
               'mrr@5', '--sampler', 'random', '--epochs', '1', '--backend', 'python', '--jobs', '1']
    (tmp_path / 'small.toml').write_text(SMALL_FILE.replace('n_epochs = 2\n', ''))
    assert run_experiments.main(command) == 0
    shown = capsys.readouterr()
    assert '22 of 22 done' in shown.err and 'best 0.' in shown.err
    path, = (out / 'parameters').glob('*.toml')
    model = GRU4Rec.from_parameters(path, backend='python')
    train, valid = (click_log.read_events(folder / f'rsc15_train_{part}.txt') for part in ('tr', 'valid'))
    value = recall_mrr(next_item_ranks(model.fit(train), valid, tie_policy='conservative'), 5)[1]
    assert f'MRR@5 {value:.4f} on the validation data' in path.read_text()
    assert len([*(out / 'cells').glob('*.json')]) == 3  # one for each seed
    row, = [line for line in shown.out.splitlines() if line.startswith('| Cross-entropy')]
    assert 'searched (22 trials' in row and '±' in row
    page = (out / 'report.html').read_text()
    assert 'Search of small' in page and 'aria-label="Importance' in page and page.count('aria-label="MRR@5 by') == 3
    before = sorted((out / 'cells').glob('*.json'))
    assert run_experiments.main(command) == 0 and sorted((out / 'cells').glob('*.json')) == before
    assert '22 of 22 done' not in capsys.readouterr().err  # no trial is run again


@pytest.mark.promise
def test_validation_files_of_ones_own_join_the_training_data_of_the_best_network(folder, small_file, tmp_path):
    parts = {name: folder / f'rsc15_{name}.txt' for name in ('train_tr', 'train_valid', 'test')}
    command = ['--train', str(parts['train_tr']), '--valid', str(parts['train_valid']), '--test', str(parts['test']),
               '--search', str(small_file), '--trials', '1', '--epochs', '1', '--backend', 'python', '--jobs', '1']
    small_file.write_text(SMALL_FILE.replace('n_epochs = 2\n', ''))
    assert run_experiments.main([*command, '--out', str(tmp_path / 'out')]) == 0
    train, valid = (click_log.read_events(parts[name]) for name in ('train_tr', 'train_valid'))
    n_sessions = train.SessionId.nunique()
    assert f'train {n_sessions:,} sessions, {len(train):,} events' in (tmp_path / 'out' / 'tables.md').read_text()
    n_events = [len(open_events(path).train) for path in (tmp_path / 'out' / 'data').iterdir()]
    assert sorted(n_events) == [len(train), len(train) + len(valid)]
    command[3] = command[1]  # its sessions are those of the training file
    assert run_experiments.main([*command, '--out', str(tmp_path / 'wrong')]) == 2


def test_a_damaged_checkpoint_of_a_trial_is_set_aside(the_search, tmp_path):
    mine, lines = the_search._replace(checkpoints=tmp_path), []
    point, = search.random_points(SMALL_SPACE, 1, 42)
    mine.checkpoint(point).write_bytes(b'damaged')
    assert run(mine, tmp_path / 'db', 1, note=lines.append) == run(the_search, tmp_path / 'other', 1)
    assert 'begins from the start' in lines[0] and [path.read_bytes() for path in tmp_path.glob('*.damaged')] == [
        b'damaged']


def postgresql():
    """The newest PostgreSQL's folder of programs (Debian: apt-get install postgresql), or None."""
    found = sorted(Path('/usr/lib/postgresql').glob('*/bin'), key=lambda path: float(path.parent.name))
    on_path = shutil.which('initdb')
    return found[-1] if found else Path(on_path).parent if on_path else None


@pytest.fixture
def server(request):
    """URL of an empty database on a PostgreSQL server of its own, and what stops and starts it.

    It listens on the loopback interface alone; the fixture's parameter is the encoding of the database.
    """
    folder = Path(tempfile.mkdtemp(prefix='postgresql'))  # a path of sockets has to be short
    user = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        shutil.chown(folder, 'postgres', 'postgres')
        user = dict(user='postgres', group='postgres')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    run = functools.partial(subprocess.run, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)
    run([postgresql() / 'initdb', '-D', folder / 'data', '-U', 'trials', '--auth=trust', '--locale=C', '--encoding',
         getattr(request, 'param', 'UTF8')])
    control = [postgresql() / 'pg_ctl', '-D', folder / 'data', '-w', '-l', folder / 'log']
    stop = functools.partial(run, [*control, '-m', 'immediate', 'stop'])
    start = functools.partial(run, [*control, '-o', f'-p {port} -h 127.0.0.1 -k {folder}', 'start'])
    start()
    run([postgresql() / 'createdb', '-h', '127.0.0.1', '-p', str(port), '-U', 'trials', 'trials'])
    yield SimpleNamespace(url=f'postgresql://trials@127.0.0.1:{port}/trials', stop=stop, start=start)
    stop()
    shutil.rmtree(folder)


needs_postgresql = pytest.mark.skipif(not (postgresql() and importlib.util.find_spec('psycopg')),
                                      reason='PostgreSQL, or its driver psycopg, an extra, is not installed')


@pytest.mark.slow
@needs_postgresql
def test_three_processes_share_a_search_on_postgresql_and_do_the_work_of_one_that_is_killed(server):
    processes = [start_search(server.url, 1.0) for _process in range(3)]  # on an empty database
    killed = processes.pop()
    assert killed.stdout.readline() == 'begins\n', killed.stderr.read()
    killed.kill()
    done_before = killed.communicate()[0].count('phase')
    assert assert_shared(processes) + done_before == 12 + 2


@pytest.mark.slow
@needs_postgresql
@pytest.mark.parametrize('server', ['SQL_ASCII'], indirect=True)
def test_a_search_goes_on_when_its_server_restarts_whatever_the_encoding_of_the_database(server):
    process = start_search(server.url, 0.5)
    assert process.stdout.readline() == 'begins\n', process.stderr.read()
    server.stop()
    time.sleep(3)
    server.start()
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0 and error == '' and OUTCOME in out


@pytest.mark.slow
@needs_postgresql
def test_a_server_that_stays_away_ends_a_search_with_one_line(server):
    process = start_search(server.url, 0.5, patience=2)
    assert process.stdout.readline() == 'begins\n', process.stderr.read()
    server.stop()
    _out, error = process.communicate(timeout=240)
    server.start()
    lines = error.splitlines()
    assert lines[-1].startswith(f"ValueError: the storage '{server.url}' cannot be used: ")
    assert sum(line.startswith('Traceback') for line in lines) == 1  # that of the test's own program


def test_afterwards_optuna_and_warnings_are_as_they_were(the_search, untrained, tmp_path):
    before = optuna.logging.get_verbosity(), warnings.filters[:]
    with warnings.catch_warnings(record=True) as shown:
        filters = warnings.filters[:]
        run(the_search, tmp_path / 'db', n_trials=1)
        search.random_points(SMALL_SPACE, 1, 1)
        assert warnings.filters == filters
    assert (optuna.logging.get_verbosity(), warnings.filters[:]) == before
    assert not [warning for warning in shown if issubclass(warning.category, optuna.exceptions.ExperimentalWarning)]


def test_passwords_are_not_shown():
    for url, shown in (
            ('x postgresql://me:secret@host/db y', 'x postgresql://me:***@host/db y'),
            ('postgresql://me:se@cret:x/y?@host/db?sslmode=require', 'postgresql://me:***@host/db?sslmode=require'),
            ('mysql://h/d?user=me&Password=a%40b&charset=utf8', 'mysql://h/d?user=me&Password=***&charset=utf8'),
            ('mysql://h/d?passwd=a', 'mysql://h/d?passwd=***'), ('mssql:///?odbc_connect=PWD%3Da', 'mssql:///?odbc_connect=***'),
            ('sqlite:////tmp/a@b.db', 'sqlite:////tmp/a@b.db'), ('postgresql://me@host:5432/db',) * 2):
        assert storage.without_password(url) == shown
