"""Training that is interrupted and continued from its checkpoint."""
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from common import (
    CASES,
    FAST_CASE,
    PROMISE,
    assert_same_bits,
    few_items_log,
    fixed_masks,
    needs_jax,
    small_model,
    state_of,
)
from numpy_gru4rec import minibatches

import preprocess_rsc15
from gru4rec import GRU4Rec
from gru4rec_pytensor import model_file

LOG = few_items_log(n_sessions=120, n_items=40)
EVERYTHING = dict(n_epochs=3, layers=[4, 3], dropout_p_hidden=0.3, momentum=0.2, train_random_order=True, n_sample=3,
                  sample_store=48)  # of 16 mini-batches, so that trainings stop within one


class Stop(Exception):
    """Ends a training from its callback."""


def stopping_after(n_calls):
    calls = iter(range(n_calls))

    def callback(progress):
        if next(calls, None) is None:
            raise Stop
    return callback


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr('gru4rec.chunk_length', lambda settings: 5)


@pytest.mark.parametrize('arguments', [
    EVERYTHING,
    pytest.param(CASES[FAST_CASE]['arguments'] | dict(train_random_order=True, backend='numba'), marks=PROMISE),
    pytest.param(EVERYTHING | dict(backend='jax'), marks=[needs_jax, PROMISE]),
    pytest.param(EVERYTHING | dict(reset_after_session=False), marks=pytest.mark.slow),
    pytest.param(EVERYTHING | dict(adapt=None, momentum=0), marks=pytest.mark.slow)], ids=str)
def test_a_training_that_is_stopped_again_and_again_ends_with_the_same_bits(tmp_path, short_chunks, arguments):
    whole = small_model(**arguments).fit(LOG)
    interruptions = 0
    while True:
        model = small_model(**arguments)
        try:
            model.fit(LOG, checkpoint=tmp_path / 'checkpoint', every=0, callback=stopping_after(6))
            break
        except Stop:
            interruptions += 1
    assert interruptions >= 3
    assert_same_bits(state_of(model), state_of(whole))
    assert model.epoch_losses_ == whole.epoch_losses_


def test_a_stopped_training_with_given_negatives_takes_those_that_are_left(tmp_path, short_chunks):
    n_minibatches = 2 * len(minibatches(LOG.groupby('SessionId').size().tolist(), 6))
    negatives = np.random.RandomState(0).randint(LOG.ItemId.nunique(), size=(n_minibatches, 3))
    whole, stopped, again = (small_model(n_sample=3) for _model in range(3))
    options = dict(sampled_negatives=negatives, checkpoint=tmp_path / 'checkpoint')
    with pytest.raises(Stop):
        stopped.fit(LOG, **options, every=0, callback=stopping_after(6))
    assert_same_bits(state_of(again.fit(LOG, **options)), state_of(whole.fit(LOG, sampled_negatives=negatives)))


def test_a_finished_training_is_not_done_again_and_can_be_prolonged(tmp_path):
    path, arguments = tmp_path / 'checkpoint', EVERYTHING | dict(n_epochs=2)
    finished = small_model(**arguments).fit(LOG, checkpoint=path)
    again = small_model(**arguments).fit(LOG, checkpoint=path, callback=stopping_after(0))
    assert_same_bits(state_of(again), state_of(finished))
    longer = small_model(**arguments | dict(n_epochs=4)).fit(LOG, checkpoint=path)
    assert_same_bits(state_of(longer), state_of(small_model(**arguments | dict(n_epochs=4)).fit(LOG)))


def test_a_checkpoint_that_is_further_than_the_training_is_refused(tmp_path, short_chunks):
    path = tmp_path / 'checkpoint'
    with pytest.raises(Stop):
        small_model(n_epochs=4).fit(LOG, checkpoint=path, every=0, callback=stopping_after(40))
    epoch = model_file.read(path)[0]['position'][0]
    assert 0 < epoch < 4
    model = small_model(n_epochs=epoch)
    with pytest.raises(ValueError, match=f'further than n_epochs={epoch}, after {epoch} epochs and [1-9]'):
        model.fit(LOG, checkpoint=path)
    assert not hasattr(model, 'items_')


def test_a_checkpoint_changes_nothing_and_is_written_no_more_often_than_asked(tmp_path, short_chunks, monkeypatch):
    written = []
    monkeypatch.setattr('gru4rec_pytensor.model_file.Checkpoint.write',
                        lambda self, state, variables, streams: written.append(state['position']))
    model = small_model(**EVERYTHING).fit(LOG, checkpoint=tmp_path / 'checkpoint', every=1e9)
    assert_same_bits(state_of(model), state_of(small_model(**EVERYTHING).fit(LOG)))
    assert [position.epoch for position in written] == [3]


def test_a_checkpoint_is_written_when_the_time_has_passed_since_the_one_before(tmp_path, short_chunks, monkeypatch):
    clock, written, chunks = itertools.count(), [], []  # each look at the clock takes a second
    monkeypatch.setattr(model_file, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(model_file, 'write', lambda path, header, arrays: written.append(len(chunks)))
    small_model().fit(LOG, checkpoint=tmp_path / 'checkpoint', every=3, callback=chunks.append)
    assert len(chunks) > 6 and written == [*range(2, len(chunks), 3), len(chunks)]


@pytest.mark.parametrize('change, complaint', [
    (dict(learning_rate=0.01), 'learning_rate was 0.05, and is 0.01'), (dict(seed=7), 'seed was 42, and is 7'),
    (dict(backend='numba'), "backend was 'python', and is 'numba'")])
def test_a_checkpoint_of_other_arguments_is_not_used(tmp_path, change, complaint):
    small_model().fit(LOG, checkpoint=tmp_path / 'checkpoint')
    with pytest.raises(ValueError, match=f'checkpoint: the checkpoint of another training: {complaint}'):
        small_model(**change).fit(LOG, checkpoint=tmp_path / 'checkpoint')


def test_a_checkpoint_of_other_data_or_masks_is_not_used(tmp_path):
    path, masks = tmp_path / 'checkpoint', [fixed_masks([4], 6, 0.5, seed) for seed in (1, 2)]
    small_model(dropout_p_hidden=0.5).fit(LOG, checkpoint=path, dropout_masks=masks[0])
    for data, mask in ((LOG[:-1], masks[0]), (LOG, masks[1]), (LOG, None)):
        with pytest.raises(ValueError, match='its data were others'):
            small_model(dropout_p_hidden=0.5).fit(data, checkpoint=path, dropout_masks=mask)


def test_a_checkpoint_in_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        small_model().fit(LOG, checkpoint=tmp_path / 'nowhere' / 'checkpoint', callback=stopping_after(0))


PROGRAM = textwrap.dedent("""
    import sys
    import numpy as np, pandas as pd
    import gru4rec
    gru4rec.chunk_length = lambda settings: 16
    rng = np.random.RandomState(0)
    log = pd.DataFrame({'SessionId': np.arange(8000) // 4, 'ItemId': rng.randint(50, size=8000), 'Time': 0})
    model = gru4rec.GRU4Rec([8], n_epochs=2, batch_size=10, dropout_p_hidden=0.5, backend='python')
    model.fit(log, checkpoint=sys.argv[1] + '.checkpoint', every=0)
    model.save(sys.argv[1])
""")


def killed_until_finished(program, arguments, n_kills, longest, finished):
    """Run a program and kill it, at random moments, `n_kills` times; `finished` is called when it came to an end."""
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])}
    rng, kills = np.random.RandomState(0), 0
    while True:
        process = subprocess.Popen([sys.executable, '-c', program, *map(str, arguments)], env=environment,
                                   stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=None if kills == n_kills else rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        code = process.wait()
        if code == 0:
            finished()
            if kills == n_kills:
                return
        assert code in (0, -signal.SIGKILL)


kills = pytest.mark.parametrize('n_kills', [pytest.param(5, marks=PROMISE), pytest.param(50, marks=pytest.mark.slow)])


@kills
def test_kills_at_random_moments_lose_nothing_of_a_training(tmp_path, n_kills):
    killed_until_finished(PROGRAM, [tmp_path / 'whole'], 0, 0, lambda: None)

    def finished():
        assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'killed')), state_of(GRU4Rec.load(tmp_path / 'whole')))
        for path in tmp_path.glob('killed*'):  # once more from the start
            path.unlink()
    killed_until_finished(PROGRAM, [tmp_path / 'killed'], n_kills, 5, finished)


SEARCH_PROGRAM = textwrap.dedent("""
    import sys
    import run_experiments
    from gru4rec_pytensor.experiments import search, storage
    search.SPACE = {'batch_size': (20, 50), 'dropout_p_hidden': (0.0,), 'learning_rate': (0.02, 0.1),
                    'momentum': (0.0,)}
    storage.HEARTBEAT = 1
    sys.exit(run_experiments.main(['--data', sys.argv[1], '--out', sys.argv[2], '--table', '2', '--trials', '8',
                                   '--loss', 'top1', '--units', '4', '--epochs', '1', '--backend', 'python',
                                   '--jobs', '1']))
""")


@kills
def test_kills_at_random_moments_lose_nothing_of_a_search(tmp_path, n_kills):
    pytest.importorskip('optuna', reason='Optuna, an extra, is not installed')
    preprocess_rsc15.make_synthetic(tmp_path / 'data', n_sessions=1500, n_items=200, seed=1)
    tables = []

    def finished(name):
        tables.append((tmp_path / name / 'tables.md').read_bytes())
        shutil.rmtree(tmp_path / name)
    started = time.monotonic()
    killed_until_finished(SEARCH_PROGRAM, [tmp_path / 'data', tmp_path / 'whole'], 0, 0, lambda: finished('whole'))
    longest = 0.6 * (time.monotonic() - started)  # so that most kills come between the start and the last trial
    killed_until_finished(SEARCH_PROGRAM, [tmp_path / 'data', tmp_path / 'killed'], n_kills, longest,
                          lambda: finished('killed'))
    assert len(tables) >= 2 and len(set(tables)) == 1
