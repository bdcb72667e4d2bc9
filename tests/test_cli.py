"""The command `gru4rec` on files, from a raw log to recommendations; and the output of all commands."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from common import assert_same_bits, few_items_log, state_of

import preprocess_rsc15
import run_experiments
from evaluation import next_item_ranks, recall_mrr
from gru4rec import GRU4Rec
from gru4rec_pytensor import cli, click_log, terminal

ROOT = Path(cli.__file__).parents[1]
DAY = 86_400
LOG = few_items_log(n_sessions=300, n_items=12).rename(columns={'SessionId': 'visit', 'ItemId': 'product'})
LOG = LOG.assign(product='p' + LOG['product'].astype(str), when=pd.to_datetime(LOG.visit * DAY / 10, unit='s')).drop(
    columns='Time')  # thirty days
KEYS = '--session-key visit --item-key product --time-key when'
OPTIONS = '--layers 6 --batch-size 10 --epochs 2 --backend python --quiet'


def run(command, capsys):
    assert cli.main(command.split()) == 0
    return capsys.readouterr()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a log, its training and test data, and a model, all made by commands."""
    folder = tmp_path_factory.mktemp('cli')
    LOG.to_csv(folder / 'log.csv', index=False)
    assert cli.main(f'prepare {folder}/log.csv -o {folder}/data --test-days 3 {KEYS}'.split()) == 0
    assert cli.main(f'fit {folder}/data/train.tsv -o {folder}/model {OPTIONS}'.split()) == 0
    return folder


def test_prepare_writes_what_the_function_returns(folder):
    log = click_log.read_events(folder / 'log.csv', ('visit', 'product', 'when')).set_axis(click_log.COLUMNS, axis=1)
    for name, frame in zip(('train', 'test'), click_log.prepare(log, test_days=3)):
        pd.testing.assert_frame_equal(click_log.read_events(folder / 'data' / f'{name}.tsv'), frame)


def test_retailrockets_log_is_prepared_without_options_and_what_was_taken_is_said(tmp_path, capsys, caplog):
    log = few_items_log(n_sessions=200, n_items=8)
    visits = pd.DataFrame({'timestamp': 1_433_221_332_000 + log.SessionId * 4_000_000 + log.Time, 'visitorid': 7,
                           'event': 'view', 'itemid': log.ItemId})
    visits.to_csv(tmp_path / 'events.csv', index=False)
    found = json.loads(run(f'prepare {tmp_path}/events.csv -o {tmp_path}/data --json', capsys).out)
    prepared = pd.concat([click_log.read_events(tmp_path / 'data' / f'{name}.tsv') for name in ('train', 'test')])
    assert prepared.SessionId.nunique() == found['train']['sessions'] + found['test']['sessions'] > 100
    assert len(prepared) == len(log) - found['dropped_events']
    assert prepared.Time.diff().loc[prepared.SessionId.diff() == 0].max() <= 3600
    for said in ('read as the events of retailrocket', 'milliseconds', 'parted by more than 3600 seconds', 'dropping'):
        assert said in caplog.text


def test_kinds_of_event_are_a_list_with_commas(tmp_path, capsys):
    log = few_items_log(n_sessions=100).assign(kind=lambda log: np.resize(['see', 'buy', 'drop'], len(log)))
    log.to_csv(tmp_path / 'log.csv', index=False)
    found = json.loads(run(f'prepare {tmp_path}/log.csv -o {tmp_path}/data --event-key kind --event-types see,buy '
                           '--test-fraction 0.3 --min-session-length 1 --json', capsys).out)
    n_written = sum(found[name]['events'] for name in ('train', 'test'))
    assert 0 < n_written == (log.kind != 'drop').sum() - found['dropped_events']


def test_fit_saves_the_model_that_the_class_would_train(folder):
    train = click_log.read_events(folder / 'data' / 'train.tsv')
    expected = GRU4Rec([6], n_epochs=2, batch_size=10, backend='python').fit(train)
    assert_same_bits(state_of(GRU4Rec.load(folder / 'model')), state_of(expected))


def test_evaluate_prints_recall_and_mrr_at_every_cut_off(folder, capsys):
    test = click_log.read_events(folder / 'data' / 'test.tsv')
    ranks = next_item_ranks(GRU4Rec.load(folder / 'model'), test, tie_policy='conservative')
    command = f'evaluate {folder}/model {folder}/data/test.tsv --cut-off 1 5'
    found = json.loads(run(f'{command} --json', capsys).out)
    assert found['predictions'] == len(ranks) and found['tie_policy'] == 'conservative'
    for n in (1, 5):
        assert (found[f'recall@{n}'], found[f'mrr@{n}']) == recall_mrr(ranks, n)
    assert f'Recall@5 {found["recall@5"]:.4f}   MRR@5 {found["mrr@5"]:.4f}' in run(command, capsys).out


@pytest.mark.parametrize('unknown, n_misses, n_dropped', [('drop', 0, 3), ('miss', 2, 0)])
def test_evaluate_drops_unknown_items_or_counts_them_as_misses(folder, tmp_path, capsys, unknown, n_misses, n_dropped):
    test = click_log.read_events(folder / 'data' / 'test.tsv')
    new = pd.DataFrame({'SessionId': [-1, -1, -1, -2, -2], 'ItemId': ['new', 'p10', 'p20', 'p10', 'other'],
                        'Time': range(5)})
    pd.concat([test, new]).to_csv(tmp_path / 'more.csv', index=False)
    ranks = next_item_ranks(GRU4Rec.load(folder / 'model'), pd.concat([new[1:3], test]), tie_policy='conservative')
    out, error = run(f'evaluate {folder}/model {tmp_path}/more.csv --unknown {unknown} --json', capsys)
    found = json.loads(out)
    assert (found['predictions'], found['dropped_events']) == (len(ranks) + n_misses, n_dropped)
    for name, value in zip(('recall@20', 'mrr@20'), recall_mrr(ranks)):
        assert found[name] == pytest.approx(value * len(ranks) / (len(ranks) + n_misses))
    assert (f'dropped {n_dropped} of {len(test) + 5} events' in error) == (n_dropped > 0)


def test_recommend_prints_what_the_model_recommends(folder, capsys):
    frame = GRU4Rec.load(folder / 'model').recommend(['p10', 'p20'], k=3, exclude_seen=True)
    found = json.loads(run(f'recommend {folder}/model p10 p20 -k 3 --exclude-seen --json', capsys).out)
    assert [row['item'] for row in found['recommendations']] == frame.ItemId.tolist()
    assert [row['score'] for row in found['recommendations']] == pytest.approx(frame.Score)
    out, error = run(f'recommend {folder}/model p10 nonsense -k 3', capsys)
    assert len(out.splitlines()) == 3 and "skipped item id(s) that are not in the training data: 'nonsense'" in error


def test_info_says_what_a_model_is(folder, capsys):
    found = json.loads(run(f'info {folder}/model --json', capsys).out)
    model = GRU4Rec.load(folder / 'model')
    assert found['items'] == model.n_items and found['arguments']['layers'] == [6]
    assert found['parameters'] == sum(value.size for value in model.weights().values())
    text = run(f'info {folder}/model', capsys).out
    assert f'{model.n_items:,} items' in text and 'layers=[6]' in text and 'Wy 12x6' in text


def test_more_trains_a_model_further_on_new_data(folder, tmp_path, capsys):
    command = f'fit {folder}/data/test.tsv -o {tmp_path}/more --more {folder}/model --quiet'
    new = click_log.read_events(folder / 'data' / 'test.tsv')
    for words, n_epochs in (('', 2), (' --epochs 1', 1)):  # as many as before, unless told otherwise
        run(command + words, capsys)
        expected = GRU4Rec.load(folder / 'model').fit_more(new, n_epochs)
        assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'more')), state_of(expected))
    for words, name in (('--batch-size 3', '--batch-size'), ('--dropout 0.1', '--dropout')):
        assert cli.main(f'{command} {words}'.split()) == 2
        assert f'--more and {name} do not go together' in capsys.readouterr().err


def test_a_pipe_gets_a_line_for_each_epoch_and_quiet_gets_none(folder, tmp_path, capsys):
    command = f'fit {folder}/data/train.tsv -o {tmp_path}/model {OPTIONS}'
    assert run(command, capsys).err == ''
    error = run(command.replace('--quiet', ''), capsys).err
    assert 'epoch 1 of 2 done, loss ' in error and 'units: done, loss ' in error and '\r' not in error


@pytest.mark.parametrize('command', ['', 'fit', 'evaluate', 'recommend', 'info', 'prepare'])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), '--help'])
    assert stop.value.code == 0 and f'    gru4rec {command}' in capsys.readouterr().out


def test_an_interrupted_training_ends_with_130_and_resumes_from_its_checkpoint(folder, tmp_path, monkeypatch, capsys):
    command = f'fit {folder}/data/train.tsv -o {tmp_path}/model {OPTIONS} --checkpoint {tmp_path}/c --every 0'
    monkeypatch.setattr('gru4rec.chunk_length', lambda settings: 5)

    def interrupted(progress, *arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr('gru4rec_pytensor.terminal.TrainingProgress.__call__', interrupted)
        assert cli.main(command.split()) == 130
    assert f'the same command resumes from {tmp_path}/c' in capsys.readouterr().err
    assert not (tmp_path / 'model').exists()
    run(command, capsys)
    assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'model')), state_of(GRU4Rec.load(folder / 'model')))


def test_the_rate_of_training_leaves_out_the_time_until_the_first_report(monkeypatch):
    times = iter([10.0, 12.0, 16.0, 20.0])
    monkeypatch.setattr('gru4rec_pytensor.terminal.time.perf_counter', lambda: next(times))
    several, single = (terminal.TrainingProgress('training', quiet=True) for _ in range(2))
    for progress, n_events in ((several, 100), (several, 300), (several, 500), (single, 500)):
        progress(SimpleNamespace(epoch=0, n_epochs=1, total_events=500, events=n_events, minibatches=n_events // 10,
                                 loss=1.0, epoch_ends=False))
    assert several.close(99) == (500 - 100) / (16 - 10) and single.close(5) == 500 / 5


def test_a_text_that_comes_after_the_end_of_its_task_is_not_shown(capsys):
    display = terminal.Display(2)
    display.progress('a', 'epoch 1', is_milestone=True)
    display.finished('a', 'done')
    display.progress('a', 'epoch 2', is_milestone=True)
    assert capsys.readouterr().err.splitlines() == ['a: epoch 1', '[1/2] a: done']


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
@pytest.mark.parametrize('script', ['gru4rec', 'preprocess_rsc15.py', 'run_experiments.py'])
def test_a_ctrl_c_while_a_command_imports_ends_it_at_once_without_a_traceback(tmp_path, script):
    (tmp_path / 'pandas.py').write_text('import os, signal; os.kill(os.getpid(), signal.SIGINT)')
    (tmp_path / 'gru4rec').write_text('from gru4rec_pytensor.cli import main; main()')  # as an installation makes it
    path = ROOT / script if script.endswith('.py') else tmp_path / script
    done = subprocess.run([sys.executable, path, '--help'], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # which xdist ignores
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, '', '')


@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
@pytest.mark.parametrize('name', ['gru4rec', 'mine'])
def test_afterwards_a_ctrl_c_is_an_exception_and_in_other_programs_always(tmp_path, name):
    is_exception = 'print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n'
    (tmp_path / name).write_text(f'import signal, gru4rec_pytensor\n{is_exception}'
                                 f'from gru4rec_pytensor.terminal import Parser; Parser()\n{is_exception}')
    done = subprocess.run([sys.executable, tmp_path / name], capture_output=True, text=True, check=True,
                          env=os.environ | {'PYTHONPATH': str(ROOT)},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert done.stdout.split() == [str(name == 'mine'), 'True']


@pytest.mark.parametrize('program, work, words', [
    (preprocess_rsc15, 'preprocess_log', 'CLICKS OUT'), (preprocess_rsc15, 'make_synthetic', '--synthetic OUT'),
    (run_experiments, 'run', '')])
@pytest.mark.parametrize('error, code_of_error, line', [
    (KeyboardInterrupt, 130, 'interrupted'), (MemoryError, 2, '.py: error: MemoryError\n')])
def test_a_ctrl_c_or_an_error_without_words_ends_a_script_with_one_line(
        program, work, words, error, code_of_error, line, monkeypatch, capsys):
    def fails(*arguments, **options):
        raise error
    monkeypatch.setattr(program, work, fails)
    try:
        code = program.main(words.split())
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr().err
    assert code == code_of_error and line in shown and shown.count('\n') == 1


# --- Output that nothing takes --------------------------------------------------------------------------------------


# What every command does with its output, without the seconds that it takes to import all else.
WRITE = """
from gru4rec_pytensor.terminal import Parser, TrainingProgress, note, print_result
Parser().parse_args([])
note('working on caf\u00e9')
TrainingProgress('training')
print_result('caf\u00e9 ' * 20_000)
note('done')
"""


CAFE, NOTES = 'caf\u00e9 ' * 20_000 + '\n', ['working on caf\u00e9', 'done']
needs_full_device = pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full')


def shell(command, **environment):
    """Run a line of the shell in which "$@" is a Python that writes like a command."""
    return subprocess.run(['bash', '-c', command, 'bash', sys.executable, '-c', WRITE], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | environment)


@pytest.mark.parametrize('line, code, out, notes', [
    pytest.param('"$@" | head -c 6; exit ${PIPESTATUS[0]}', 0, 'caf\u00e9 ', NOTES, id='its reader has gone'),
    pytest.param('{ "$@" 2>&1 >&3 | true; exit ${PIPESTATUS[0]}; } 3>&1', 0, CAFE, [], id='that of the notes has gone'),
    pytest.param('"$@" >/dev/full', 2, '', [NOTES[0], '-c: error: standard output: No space left on device'],
                 id='its device is full', marks=needs_full_device),
    pytest.param('"$@" 2>/dev/full', 0, CAFE, [], id='that of the notes is full', marks=needs_full_device),
    pytest.param('"$@" >&-', 0, '', NOTES, id='it is closed'),
    pytest.param('"$@" 2>&-', 0, CAFE, [], id='standard error is closed')])
def test_output_that_nothing_takes_stops_no_work_and_only_a_full_device_is_an_error(line, code, out, notes):
    done = shell(line)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (code, out, notes)


@pytest.mark.parametrize('encoding, word', [
    ('ascii', r'caf\xe9'), ('ascii:strict', r'caf\xe9'), ('utf-8', 'caf\u00e9')])
def test_characters_that_the_console_lacks_are_printed_as_backslashes(encoding, word):
    done = shell('"$@"', PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (0, f'{word} ' * 20_000 + '\n')
    assert done.stderr.splitlines() == [f'working on {word}', 'done']


@needs_full_device
@pytest.mark.parametrize('script', [
    'preprocess_rsc15.py',
    *[pytest.param(script, marks=pytest.mark.slow) for script in ('-m gru4rec_pytensor.cli', 'run_experiments.py')]])
def test_every_command_names_a_full_device_in_one_line(script):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, *script.split(), '--help'], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert [line.partition(': ')[2] for line in done.stderr.splitlines()] == [
        'error: standard output: No space left on device']


def test_with_json_and_no_standard_error_the_output_is_one_object(folder):
    command = f'fit {folder}/data/train.tsv -o {folder}/again {OPTIONS.replace("--quiet", "--json")}'
    done = subprocess.run(['bash', '-c', '"$@" 2>&-', 'bash', sys.executable, '-m', 'gru4rec_pytensor.cli',
                           *command.split()], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)['epochs'] == 2
    assert_same_bits(state_of(GRU4Rec.load(folder / 'again')), state_of(GRU4Rec.load(folder / 'model')))
