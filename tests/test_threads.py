"""A model in a process that does other things: threads that share it, fits beside others, children, copies."""
import _thread
import contextlib
import copy
import multiprocessing
import operator
import os
import pickle
import signal
import sys
import textwrap
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from common import (
    CASES,
    FAST_BACKENDS,
    FAST_CASE,
    PATH,
    TRAIN,
    assert_same_bits,
    few_items_log,
    needs_jax,
    run_python,
    small_model,
    state_of,
)
from common import trained_as_recorded as trained
from threadpoolctl import threadpool_info, threadpool_limits

import gru4rec
from evaluation import next_item_ranks
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends
from gru4rec_pytensor.backends import threads
from gru4rec_pytensor.backends.threads import BlasThreads
from gru4rec_pytensor.events import IdIndex

LOG = few_items_log(n_sessions=60, n_items=30)
every_backend = pytest.mark.parametrize('backend', [
    'python', 'numba', pytest.param('jax', marks=[needs_jax, pytest.mark.slow])])


@pytest.fixture
def hurried():
    """Threads that take turns far more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(function, arguments):
    """Results of a function of each of the arguments, computed in as many threads that begin at one moment."""
    start = threading.Barrier(len(arguments))

    def run(argument):
        start.wait()
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(run, arguments))


def some_sessions(n=200):
    """Sessions of one to five items of the recorded training data."""
    rng, items = np.random.RandomState(0), TRAIN.ItemId.unique()
    return [rng.choice(items, rng.randint(1, 6)).tolist() for _session in range(n)]


# --- Threads that share a model -------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize('n', [160, pytest.param(100_000, marks=pytest.mark.slow)])
def test_recommendations_from_eight_threads_are_those_of_one(hurried, backend, n):
    sessions = some_sessions()
    model = copy.copy(trained(FAST_CASE, backend))  # has nothing compiled yet: the threads come to that together
    by_one_thread = [trained(FAST_CASE, backend).recommend(session, k=5) for session in sessions]

    def recommend(seed):
        numbers = np.random.RandomState(seed).randint(len(sessions), size=n // 8)
        return sum(model.recommend(sessions[k], k=5).equals(by_one_thread[k]) for k in numbers)

    assert in_threads(recommend, range(8)) == [n // 8] * 8


def test_a_session_that_several_threads_click_in_has_all_of_their_clicks(monkeypatch):
    model = copy.copy(trained(FAST_CASE, 'python'))
    items, visit, step = model.items_[:32].tolist(), model.session(), model.next_states

    def slow_step(item, starts, states):
        found = step(item, starts, states)
        time.sleep(0.001)  # others could click meanwhile
        assert states is visit._states
        return found

    monkeypatch.setattr(model, 'next_states', slow_step)
    in_threads(lambda part: [visit.click(item, k=1) for item in part], [items[k::8] for k in range(8)])
    left = visit.recommend(k=model.n_items, exclude_seen=True)
    assert set(left.ItemId) == set(model.items_) - set(items)


def test_a_copy_of_a_session_continues_apart():
    visit = trained(FAST_CASE, 'python').session()
    visit.click(TRAIN.ItemId[0])
    for twin in (copy.deepcopy(visit), pickle.loads(pickle.dumps(visit))):
        assert twin.recommend(k=5).equals(visit.recommend(k=5))
        assert not twin.click(TRAIN.ItemId[1], k=5).equals(visit.recommend(k=5))


@every_backend
def test_evaluations_in_several_threads_give_the_ranks_of_one_and_leave_the_threads_of_blas_as_they_were(hurried,
                                                                                                        backend):
    model = trained(FAST_CASE, backend)
    with threadpool_limits(2, user_api='blas'):
        before = threadpool_info()
        expected = next_item_ranks(model, TRAIN, batch_size=10)
        for ranks in in_threads(lambda _number: next_item_ranks(model, TRAIN, batch_size=10), range(4)):
            np.testing.assert_array_equal(ranks, expected)
        assert threadpool_info() == before


# --- Threads of BLAS ------------------------------------------------------------------------------------------------


def threads_of_blas():
    return {library['num_threads'] for library in threadpool_info() if library['user_api'] == 'blas'}


def test_the_smallest_number_of_blas_threads_holds_and_the_last_to_leave_restores_all_of_them(monkeypatch):
    monkeypatch.setattr(threads, 'available_cores', lambda: 8)
    blas = BlasThreads()
    with threadpool_limits(3, user_api='blas'):
        assert blas.allowed() == 3
        with contextlib.ExitStack() as first:
            first.enter_context(blas.limited(2))
            assert threads_of_blas() == {2}
            with blas.limited(4):
                assert threads_of_blas() == {2} and blas.allowed() == 3
                first.close()
                assert threads_of_blas() == {4}
        assert threads_of_blas() == {3}
        monkeypatch.setattr(threads, 'available_cores', lambda: 2)
        assert blas.allowed() == 2


@pytest.mark.parametrize('files, cores', [
    ({}, 8), ({'cpu.max': 'max 100000'}, 8), ({'cpu.max': '350000 100000'}, 3), ({'cpu.max': '50000 100000'}, 1),
    ({'cpu.max': '900000 100000'}, 8), ({'cpu/cpu.cfs_quota_us': '200000', 'cpu/cpu.cfs_period_us': '100000'}, 2),
    ({'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 8)])
def test_the_cores_of_a_container_are_those_that_it_gets_time_for(tmp_path, monkeypatch, files, cores):
    (tmp_path / 'cpu').mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content + '\n')
    monkeypatch.setattr(threads, 'CONTROL_GROUP', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(8)), raising=False)
    assert backends.available_cores() == cores


@pytest.mark.parametrize('wrong, error', [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_number_of_threads_that_is_none_is_named(wrong, error):
    for train in (small_model().fit, trained(FAST_CASE, 'python').fit_more):
        with pytest.raises(error, match=f'^threads={wrong!r}: must be a whole number of at least 1'):
            train(LOG, threads=wrong)


@pytest.mark.parametrize('backend', ['python', pytest.param('numba', marks=pytest.mark.slow)])
def test_a_training_has_the_threads_that_it_is_given_and_those_before_afterwards(monkeypatch, backend):
    seen, set_threads = [], BlasThreads._set
    monkeypatch.setattr(BlasThreads, '_set', lambda blas: [set_threads(blas), seen.append(threads_of_blas())])
    with threadpool_limits(2, user_api='blas'):
        for options, number in ((dict(threads=3), 3), ({}, 1)):
            model = GRU4Rec(**CASES[FAST_CASE]['arguments'] | dict(n_epochs=1), backend=backend)
            model.fit(TRAIN, **options)
            assert len(seen) >= 2 and seen == [{number}, {2}] * (len(seen) // 2)
            seen.clear()


@pytest.mark.promise
def test_the_bits_of_wide_layers_are_the_same_with_the_same_number_of_threads():
    fits = [small_model(layers=[600], batch_size=20).fit(LOG, threads=n) for n in (2, 1, 2, 1)]
    assert_same_bits(state_of(fits[0]), state_of(fits[2]))
    assert_same_bits(state_of(fits[1]), state_of(fits[3]))
    for name, weight in fits[0].weights().items():
        np.testing.assert_allclose(weight, fits[1].weights()[name], rtol=1e-3, atol=1e-5)


def test_a_checkpoint_keeps_its_number_of_threads_and_says_where_another_is_asked_for(tmp_path, monkeypatch):
    numbers, limited = [], BlasThreads.limited
    monkeypatch.setattr(BlasThreads, 'limited', lambda blas, n: [numbers.append(n), limited(blas, n)][1])
    small = dict(layers=[10], batch_size=4)
    small_model(**small, n_epochs=1).fit(LOG, checkpoint=tmp_path / 'checkpoint', threads=2)
    small_model(**small, n_epochs=2).fit(LOG, checkpoint=tmp_path / 'checkpoint')
    assert set(numbers) == {2}
    with pytest.warns(UserWarning, match=r'had 2 thread\(s\) of BLAS so far, and continues with threads=3') as caught:
        small_model(**small, n_epochs=3).fit(LOG, checkpoint=tmp_path / 'checkpoint', threads=3)
    assert set(numbers) == {2, 3} and caught[0].filename == __file__


@pytest.fixture
def slow_steps(monkeypatch):
    """A model whose next step waits for `go_on`, having told `inside`, and its twin that does not wait."""
    model = small_model(n_epochs=1).fit(LOG)
    twin, inside, go_on, step = copy.deepcopy(model), threading.Event(), threading.Event(), model.next_states

    def slow_step(*arguments):
        inside.set()
        assert go_on.wait(60)
        return step(*arguments)

    monkeypatch.setattr(model, 'next_states', slow_step)
    return model, twin, inside, go_on


def test_a_thread_that_comes_into_anothers_predict_next_batch_is_refused(slow_steps):
    model, twin, inside, go_on = slow_steps
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(model.predict_next_batch, [1], [10], None, 1)
        assert inside.wait(60)
        with pytest.raises(RuntimeError, match='another thread is in predict_next_batch.*call recommend or session'):
            model.predict_next_batch([2], [20], None, 1)
        go_on.set()
        assert first.result().equals(twin.predict_next_batch([1], [10], None, 1))
    assert model.predict_next_batch([1], [20], None, 1).equals(twin.predict_next_batch([1], [20], None, 1))


def test_ids_are_looked_up_in_tables_that_were_finished_before():
    """pandas would make one at the first look, and show it to other threads while it does."""
    index = IdIndex(np.arange(2_000))
    for copied in (index, pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        for table in (copied._index, copied._by_spelling[0]):
            assert table._engine.is_mapping_populated


# --- Trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', ['python', *FAST_BACKENDS])
def test_trainings_in_several_threads_give_the_bits_of_one_after_the_other(hurried, backend, monkeypatch):
    inside, training_step = [], gru4rec.training_step

    def only_one(*arguments):
        inside.append(1)
        step = training_step(*arguments)
        assert len(inside) == 1
        inside.clear()
        return step

    monkeypatch.setattr(gru4rec, 'training_step', only_one)
    floatX = gru4rec.pytensor.config.floatX
    arguments = gru4rec.plain_arguments(trained(FAST_CASE, backend)) | {'n_epochs': 1}
    models = in_threads(lambda seed: GRU4Rec(**arguments | {'seed': seed}).fit(TRAIN), range(2))
    for seed, model in enumerate(models):
        assert_same_bits(state_of(model), state_of(GRU4Rec(**arguments | {'seed': seed}).fit(TRAIN)))
    assert gru4rec.pytensor.config.floatX == floatX


def test_a_model_in_training_is_refused_to_other_threads_and_predicts_in_its_own(tmp_path):
    model, answers = small_model(n_epochs=1), []
    calls = [lambda: model.recommend([10]), lambda: model.fit(LOG), lambda: model.fit_more(LOG), model.weights,
             lambda: model.save(tmp_path / 'model'), lambda: copy.deepcopy(model), lambda: model.move_to('python'),
             lambda: next_item_ranks(model, LOG)]

    def callback(_progress):
        assert len(model.recommend([10], k=3)) == len(next_item_ranks(model, LOG)[:3]) == 3
        with pytest.raises(RuntimeError, match='is being trained already'):
            model.fit(LOG)
        with ThreadPoolExecutor(1) as pool:
            answers.extend(pool.map(refused, calls))

    model.fit(LOG, callback=callback)
    assert answers == [True] * len(calls)
    assert_same_bits(state_of(model), state_of(small_model(n_epochs=1).fit(LOG)))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model.recommend, [10], 3).result().equals(model.recommend([10], 3))


OTHER_LOG = few_items_log(n_sessions=60, n_items=40, seed=5)  # has ten items more
TRAINERS = {'fit': lambda model: model.fit(OTHER_LOG), 'fit_more': lambda model: model.fit_more(OTHER_LOG),
            'move_to': lambda model: model.move_to('python')}
READERS = {'recommend': lambda model: model.recommend([10, 20], k=5),
           'click': lambda model: model.session().click(10, k=5),
           'predict_next_batch': lambda model: model.predict_next_batch([1], [10], None, 1),
           'next_item_ranks': lambda model: pd.Series(next_item_ranks(model, LOG, batch_size=10))}


@pytest.mark.parametrize('reader, trainer', [
    ('recommend', 'fit'), ('click', 'fit_more'), ('predict_next_batch', 'move_to'), ('next_item_ranks', 'fit')])
def test_a_training_waits_for_predictions_under_way_and_later_ones_are_refused(slow_steps, reader, trainer):
    model, twin, inside, go_on = slow_steps
    expected = READERS[reader](twin)
    with ThreadPoolExecutor(2) as pool:
        predicting = pool.submit(READERS[reader], model)
        assert inside.wait(60)
        training = pool.submit(TRAINERS[trainer], model)
        while not refused(model.weights):  # it has not come yet
            assert not training.done()
        assert refused(lambda: model.recommend([10])) and not predicting.done() and not training.done()
        go_on.set()
        assert predicting.result().equals(expected)
        training.result()
    assert_same_bits(state_of(model), state_of(TRAINERS[trainer](twin)))
    assert len(model.recommend([10], k=3)) == 3


def refused(call):
    """Return whether a call gets the error of a model in training."""
    try:
        call()
    except RuntimeError as error:
        assert 'train a copy (copy.deepcopy)' in str(error)
        return True
    return False


@pytest.mark.parametrize('train', [TRAINERS['fit'], TRAINERS['fit_more']], ids=['fit', 'fit_more'])
def test_a_session_ends_with_the_next_training_of_its_model(train):
    model = small_model(n_epochs=1).fit(LOG)
    visit = model.session()
    visit.click(10, k=3)
    train(model)
    for call in (lambda: visit.click(20), visit.recommend):
        with pytest.raises(RuntimeError, match='the model was trained since this session began: begin another one'):
            call()
    assert len(model.session().click(20, k=3)) == 3


def test_a_second_training_is_refused_while_the_first_one_tells_new_items_from_old_ones(monkeypatch):
    """It would take them for new, too."""
    model, n_calls = small_model(n_epochs=1).fit(LOG), []
    inside, go_on = threading.Event(), threading.Event()

    def slow_at_first(model, n_items):
        n_calls.append(1)
        if len(n_calls) == 1:
            inside.set()
            assert go_on.wait(60)

    monkeypatch.setattr('gru4rec.arguments.warn_of_constant_loss', slow_at_first)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(model.fit_more, OTHER_LOG)
        assert inside.wait(60)
        assert refused(lambda: model.fit_more(OTHER_LOG))
        go_on.set()
        first.result()
    assert len(set(model.items_)) == model.n_items == OTHER_LOG.ItemId.nunique()


def test_a_training_that_an_error_ends_leaves_the_model_to_others():
    model = small_model(n_epochs=1)
    with pytest.raises(ZeroDivisionError):
        model.fit(LOG, callback=lambda _progress: 1 / 0)
    assert len(model.recommend([10], k=3)) == 3
    assert_same_bits(state_of(model.fit(LOG)), state_of(small_model(n_epochs=1).fit(LOG)))


# --- Whatever the process does --------------------------------------------------------------------------------------


TRAINING = textwrap.dedent("""
    import numpy as np, pandas as pd
    import gru4rec
    rng = np.random.RandomState(0)
    log = pd.DataFrame({'SessionId': np.arange(8000) // 4, 'ItemId': rng.randint(50, size=8000), 'Time': 0})
    model = gru4rec.GRU4Rec([8], n_epochs=2, batch_size=10, dropout_p_hidden=0.5, backend='numba').fit(log)
    H, states = model.next_states(np.arange(50), np.ones(50, bool), model.initial_states(50))
    np.savez(sys.argv[1], H=H, **model.weights(), **model.optimizer_state())
""")
BUSY_COMPILING = textwrap.dedent("""
    import threading
    import numba

    def compile_all_the_time(number):
        for k in range(10 ** 6):
            names = {}
            exec(f'def f(x):\\n    for i in range({k}):\\n        x += i * {number}\\n    return x', names)
            numba.njit(names['f'])(1.0)

    for number in range(4):
        threading.Thread(target=compile_all_the_time, args=[number], daemon=True).start()
""")


@pytest.mark.slow
@pytest.mark.parametrize('host', ['', BUSY_COMPILING, pytest.param('import jax; jax.devices()', marks=needs_jax)],
                         ids=['nothing', 'compiles', 'jax'])
def test_a_first_training_ends_with_the_bits_of_later_ones_whatever_the_process_does(tmp_path, host):
    """Nothing is compiled yet, in the first run; the second finds all on disk."""
    cache = {'NUMBA_CACHE_DIR': f'{tmp_path}/numba', 'PYTENSOR_FLAGS': f'base_compiledir={tmp_path}/compiled'}
    run_python('import sys\n' + host + TRAINING, tmp_path / 'first.npz', **cache)
    run_python('import sys\n' + TRAINING, tmp_path / 'second.npz', **cache)
    with np.load(tmp_path / 'first.npz') as first, np.load(tmp_path / 'second.npz') as second:
        assert_same_bits(dict(first), dict(second))


forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
FORKED = textwrap.dedent("""
    import os, sys, threading
    from common import few_items_log, small_model
    log = few_items_log()
    model = small_model(n_epochs=1, backend=sys.argv[1]).fit(log)
    visit = model.session()
    visit.click(10)

    def in_child(*calls):
        child = os.fork()
        if not child:
            for call in calls:
                try:
                    print(call(), flush=True)
                except RuntimeError as error:
                    print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)

    def beside(held, *calls):
        inside, done = threading.Event(), threading.Event()

        def waiting(*_arguments):
            inside.set()
            done.wait()

        thread = threading.Thread(target=held, args=[waiting])
        thread.start()
        inside.wait()
        in_child(*[lambda call=call: len(call()) for call in calls])
        done.set()
        thread.join()
""")


@pytest.mark.promise
@forks
def test_a_child_that_was_forked_while_another_thread_compiled_says_so_and_does_not_hang():
    done = run_python(FORKED + textwrap.dedent("""
        from gru4rec_pytensor.backends import common

        def hold(waiting):
            with lock:
                waiting()

        for lock in (common.COMPILER_LOCK, common.global_compiler_lock):
            beside(hold, lambda: small_model().fit(log))
            small_model(n_epochs=1).fit(log)  # the parent's locks are as they were
            # and so are those of a child of a quiet moment
            in_child(lambda: small_model(n_epochs=1).fit(log) and 'trained')
    """), 'python', PYTHONWARNINGS='ignore')
    assert done.stdout.splitlines() == 2 * [
        "this process was forked while another thread compiled, and so cannot compile: start it with multiprocessing's "
        "method 'spawn' or 'forkserver'", 'trained']


@pytest.mark.promise
@forks
def test_a_child_that_was_forked_while_other_threads_predict_does_not_wait_for_them():
    """They hold the locks of the compiled step, of a session, of BLAS's threads and of `predict_next_batch`."""
    done = run_python(FORKED + textwrap.dedent("""
        import contextlib
        from gru4rec_pytensor.backends import blas_threads

        def hold(waiting):
            with contextlib.ExitStack() as held:
                for lock in (model._state_function._lock.held(), visit._lock.held(), model._turns.predicting(),
                             blas_threads._lock.held()):
                    held.enter_context(lock)
                waiting()

        beside(hold, lambda: model.recommend([10], k=3), lambda: visit.click(20, k=3),
               lambda: model.predict_next_batch([1], [10], None, 1), lambda: model.fit(log).recommend([10], k=3))
        print(len(model.recommend([10], k=3)))
    """), 'python', PYTHONWARNINGS='ignore')
    assert done.stdout.split() == ['3', '3', '5', '3', '3']


@pytest.mark.promise
@forks
def test_a_child_that_was_forked_while_the_model_trained_does_not_take_it_for_trained():
    done = run_python(FORKED + textwrap.dedent("""
        beside(lambda waiting: model.fit(log, callback=waiting),
               lambda: model.recommend([10]), visit.recommend, lambda: model.fit_more(log),
               lambda: model.predict_next_batch([1], [10], None, 1), model.weights,
               lambda: small_model(n_epochs=1).fit(log).recommend([10], k=3))
        print(len(model.recommend([10], k=3)))
    """), 'python', PYTHONWARNINGS='ignore')
    message = ('this process was forked while another thread trained this GRU4Rec, which is half trained here: load or '
               'make another one')
    assert done.stdout.splitlines() == 5 * [message] + ['3', '3']


@pytest.mark.promise
@forks
@needs_jax
def test_a_forked_child_is_told_that_jax_does_not_work_in_it():
    done = run_python(FORKED + textwrap.dedent("""
        from evaluation import next_item_ranks
        beside(lambda waiting: waiting(),
               lambda: model.recommend([10]), lambda: visit.click(20), lambda: next_item_ranks(model, log),
               lambda: small_model(backend='jax').fit(log), lambda: model.fit_more(log),
               lambda: small_model(n_epochs=1).fit(log).recommend([10], k=3))
    """), 'jax', PYTHONWARNINGS='ignore')
    message = ("this process was forked from one that had JAX's threads, and so cannot use JAX: start it with "
               "multiprocessing's method 'spawn' or 'forkserver'")
    assert done.stdout.splitlines() == 5 * [message] + ['3']


@pytest.mark.promise
def test_without_a_compiler_the_backend_that_needs_it_says_so_and_the_interpreter_trains():
    done = run_python(textwrap.dedent("""
        from common import few_items_log, small_model
        for backend in ('numba', 'auto', 'python'):
            try:
                print(len(small_model(n_epochs=1, backend=backend).fit(few_items_log()).recommend([10], k=3)))
            except ValueError as error:
                print(error)
    """), NUMBA_DISABLE_JIT='1', PYTHONWARNINGS='ignore')
    assert done.stdout.splitlines() == 2 * ["backend='numba' compiles, which NUMBA_DISABLE_JIT=1 forbids: unset that "
                                       "variable, or take backend='python'"] + ['3']


def test_a_ctrl_c_while_arrays_are_freed_is_not_lost():
    """All of it runs in C, so that nothing looks for the signal before the callback is called."""
    model = small_model(n_epochs=1).fit(LOG)
    cell = model.variables_.weights['Wy'].container.storage
    owners = [model.__dict__.pop('variables_')]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes of xdist ignore
    try:
        with pytest.raises(KeyboardInterrupt):
            deque(map(operator.call, [_thread.interrupt_main, owners.clear]))
            sum(range(1000))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not owners and not isinstance(cell[0], np.ndarray)


@pytest.mark.promise
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows does not remove a folder that is in use')
def test_a_working_directory_that_is_gone_is_one_clear_error():
    done = run_python(textwrap.dedent("""
        import os, tempfile
        from common import few_items_log, small_model
        model = small_model(n_epochs=1).fit(few_items_log())
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        for fit in (model.fit, model.fit_more):
            try:
                fit(few_items_log())
            except OSError as error:
                print(error)
    """))
    assert done.stdout.splitlines() == 2 * [
        'the working directory of this process is gone, and Numba does not compile without one: go to another with '
        'os.chdir']


# --- Copies ---------------------------------------------------------------------------------------------------------


def predicted(model):
    """Predictions of a model; a function of a module, so that another process can import it."""
    return model.recommend(TRAIN.ItemId[:2].tolist(), k=5), next_item_ranks(model, TRAIN, batch_size=10)


@pytest.mark.parametrize('backend', ['python', *FAST_BACKENDS])
def test_models_go_to_processes_of_a_pool_before_and_after_they_predicted(backend, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', PATH)
    fresh, used = (copy.copy(trained(FAST_CASE, backend)) for _model in range(2))
    frame, ranks = predicted(used)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        for other_frame, other_ranks in pool.map(predicted, [fresh, used]):
            assert other_frame.equals(frame)
            np.testing.assert_array_equal(other_ranks, ranks)


# --- Backends that are none -----------------------------------------------------------------------------------------


def test_a_backend_that_is_none_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    model = small_model().fit(LOG)
    for call in (lambda: small_model(backend='cuda').fit(LOG), lambda: model.move_to('cuda'),
                 lambda: backends.compile_function([], [], backend='cuda'),
                 lambda: backends.compile_loop({}, None, {}, backend='cuda'),
                 lambda: backends.compile_step({}, {}, backend='cuda')):
        with pytest.raises(ValueError, match="^backend='cuda': must be one of .*'numba', 'jax', 'python'$"):
            call()
    model.save(tmp_path / 'model')
    with pytest.raises(ValueError, match="^backend='cuda': must be one of"):
        GRU4Rec.load(tmp_path / 'model', backend='cuda')
    assert model.backend == model.backend_ == 'python' and len(model.recommend([10], k=3)) == 3
