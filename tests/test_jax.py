"""Properties of the JAX backend: no copies, the same bits twice, ranks on the device, weights that move."""
import re
import sys

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import (
    CASES,
    FAST_CASE,
    PROMISE,
    TEST,
    TRAIN,
    assert_close,
    assert_same_bits,
    few_items_log,
    fixed_masks,
    needs_jax,
    reference_of,
    scores_by_hand,
    small_model,
    state_of,
    trained_as_recorded,
)
from numpy.testing import assert_allclose, assert_array_equal
from numpy_gru4rec import losses as reference_losses

import gru4rec
from evaluation import next_item_ranks
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends

pytestmark = needs_jax
LOG = few_items_log()
EVERY_RULE = [(loss, adapt, momentum) for loss in reference_losses for adapt in ('adagrad', 'rmsprop', None)
              for momentum in (0, 0.2)]
QUICK = ('top1', 'adagrad', 0.2)


# --- Training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_float64(monkeypatch):
    """The whole of a training in float64, from the same initial weights."""
    in_float32 = gru4rec.initial_weight
    monkeypatch.setattr(gru4rec, 'initial_weight', lambda *a, **k: in_float32(*a, **k).astype('f4').astype('f8'))
    rooms = ('', '.common', '.jax_loops', '.variables')
    for module in ('gru4rec', *(f'gru4rec_pytensor.backends{room}' for room in rooms)):
        monkeypatch.setattr(f'{module}.FLOAT', 'float64')


def with_rule(loss, adapt, momentum):
    """An untrained model with this loss and update rule, and its fixed dropout masks."""
    rate = {'adagrad': 0.05, 'rmsprop': 0.01, None: 0.1}[adapt]
    return small_model(loss=loss, adapt=adapt, momentum=momentum, learning_rate=rate, layers=[4, 3], lmbd=0.01,
                       dropout_p_hidden=0.3, n_epochs=3, backend='jax'), fixed_masks([4, 3], 6, 0.3)


@pytest.mark.parametrize('loss, adapt, momentum', [
    pytest.param(*rule, marks=() if rule == QUICK else pytest.mark.slow) for rule in EVERY_RULE])
def test_jax_trains_like_the_reference(loss, adapt, momentum, in_float64):
    model, masks = with_rule(loss, adapt, momentum)
    reference = reference_of(model, LOG, masks)
    assert_close(state_of(model.fit(LOG, dropout_masks=masks)), state_of(reference), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize('loss, adapt, momentum', EVERY_RULE)
def test_jax_rounds_to_float32_no_worse_than_the_reference_does(loss, adapt, momentum):
    """1e-5, or more where a rule makes rounding grow: MRR divides by the spread of scores, and adagrad by small g."""
    model, masks = with_rule(loss, adapt, momentum)
    exact, rounded = (state_of(reference_of(model, LOG, masks, dtype=dtype)) for dtype in ('float64', 'float32'))
    limit = max(np.max(np.abs(rounded[name] - exact[name]) / np.maximum(1, np.abs(exact[name]))) for name in exact)
    assert_close(state_of(model.fit(LOG, dropout_masks=masks)), exact, max(1e-5, limit))


@pytest.mark.parametrize('momentum', [pytest.param(0, marks=pytest.mark.slow), pytest.param(0.5, marks=PROMISE)])
def test_two_trainings_give_the_same_bits_though_items_repeat(momentum):
    arguments = dict(layers=[20], batch_size=25, dropout_p_hidden=0.5, momentum=momentum, backend='jax')
    first, again = (state_of(small_model(**arguments).fit(few_items_log(n_sessions=200))) for _run in range(2))
    assert_same_bits(first, again)


def lowered_loop(settings, variables, n_minibatches, *drawn):
    """The compiled loop of a training, and its program before XLA compiles it."""
    shape, (width,) = (n_minibatches, settings.batch_size), settings.layers
    states = {'H0': gru4rec.shared('H0', np.zeros((settings.batch_size, width), 'float32'))}
    with backends.symbols_of_float32():
        step = gru4rec.training_step(settings, gru4rec.shared('events', np.arange(settings.n_items)), variables, states)
    loop = backends.compile_loop(*step, backend='jax')
    sequences = [np.zeros(shape, 'int64'), np.zeros(shape, bool), *drawn]
    return loop, loop.program.lower(n_minibatches, sequences, loop.step.values())


@pytest.mark.parametrize('arguments', [
    pytest.param(dict(momentum=0.3), marks=PROMISE),
    *[pytest.param(arguments, marks=pytest.mark.slow) for arguments in (
        dict(), dict(adapt='rmsprop', loss='cross-entropy'), dict(adapt=None, lmbd=0.1))]], ids=str)
def test_the_compiled_program_overwrites_the_weights_and_copies_no_matrix(arguments):
    """Read in the program of XLA: its results lie where its arguments lay, and nothing of their size is copied."""
    n_items, units, K = 1013, 17, 5  # sizes that nothing else has
    model = small_model(layers=[units], n_epochs=1, dropout_p_hidden=0.5, **arguments)
    model.fit(few_items_log(n_sessions=400, n_items=n_items * 3).assign(
        ItemId=lambda log: np.arange(len(log)) % n_items))
    loop, lowered = lowered_loop(model.settings(), model.variables_, K, np.zeros((K, 6, units), bool))
    program = lowered.compile().as_text()
    n_states = len(loop.step.storage)
    assert len(re.findall(r'may-alias|must-alias', program.splitlines()[0])) == n_states
    large = rf'f32\[{n_items},\d+\]'
    assert re.search(large, program)
    copies = [line for line in program.splitlines() if re.search(rf'= {large}\S* copy(-start)?\(', line)]
    assert not copies, copies


@pytest.mark.parametrize('shape', [pytest.param((), marks=pytest.mark.slow), (3,)], ids=['vector', 'matrix'])
@pytest.mark.parametrize('store', [False, True], ids=['added', 'stored'])
@pytest.mark.parametrize('some', [pytest.param(False, marks=pytest.mark.slow), True], ids=['all', 'some'])
def test_final_rows_are_those_of_a_loop_over_the_occurrences(store, shape, some):
    import jax

    from gru4rec_pytensor.backends.jax_loops import final_rows, sorted_rows
    compiled = jax.jit(lambda x, y, *ordered: final_rows(x, y, *sorted_rows(*ordered), store))
    rng = np.random.RandomState(0)
    for rows in (rng.randint(0, 5, 77), np.zeros(64, int), np.arange(9)[::-1], np.array([4]), np.repeat([7, 2], 20)):
        x, y = rng.rand(9, *shape).astype('float32'), rng.rand(len(rows), *shape).astype('float32')
        changes = rng.rand(len(rows)) < 0.6 if some else np.ones(len(rows), bool)
        expected = x.astype('float64')
        for row, value in zip(rows[changes], y[changes]):
            expected[row] = value if store else expected[row] + value
        assert_allclose(compiled(x, y, rows, *[changes] * some), expected, rtol=1e-6)


def test_the_tables_of_many_rows_share_one_sort():
    rows, values = pt.vector('rows', dtype='int64', shape=(600,)), pt.matrix('values', dtype='float32', shape=(600, 3))
    tables = [pytensor.shared(np.zeros((5, 3), 'float32'), shape=(5, 3)) for _table in range(2)]
    updates = {table: backends.row_update(table, rows, values * k, store=bool(k)) for k, table in enumerate(tables)}
    function = backends.compile_function([rows, values], [], updates, backend='jax')
    names = [type(node.op).__name__ for node in function.maker.fgraph.apply_nodes]
    assert names.count('SortedRows') == 1 and names.count('FinalRows') == 2


def test_no_table_of_all_pairs_of_rows_is_made_with_many_additional_negatives():
    """Read in the program of XLA: two occurrences of 1,031 negatives meet only by being sorted."""
    n_sample, n_lanes = 1031, 4
    model = small_model(layers=[5], batch_size=n_lanes, n_epochs=1, dropout_p_hidden=0, n_sample=n_sample,
                        sample_store=10 * n_sample, loss='bpr-max', momentum=0.1, constrained_embedding=True)
    settings = model.settings(n_items=2000)
    variables = gru4rec.Variables.of(settings, gru4rec.initial_weights(settings, np.random.RandomState(0)))
    _loop, lowered = lowered_loop(settings, variables, 2, np.zeros((2, n_sample), 'int64'))
    program = lowered.as_text()
    n = n_sample + n_lanes
    assert f'tensor<{n}x5x' in program
    assert not any(f'tensor<{k}x{k}x' in program for k in (n_sample, n, n + n_lanes))


# --- Ranks ----------------------------------------------------------------------------------------------------------


SOME = TRAIN.ItemId.unique()[::3]


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=() if case == FAST_CASE else pytest.mark.slow) for case in CASES])
@pytest.mark.parametrize('tie_policy, items', [
    ('standard', SOME), ('conservative', None), ('median', SOME), ('tiebreaking', None)],
    ids=['standard, some', 'conservative, all', 'median, some', 'tiebreaking, all'])
def test_ranks_on_the_device_are_those_of_the_interpreter(case, tie_policy, items):
    jax, python = (next_item_ranks(trained_as_recorded(case, backend), TEST, items, 10, tie_policy)
                   for backend in ('jax', 'python'))
    assert_array_equal(jax, python)


@pytest.mark.parametrize('n_items', [1, 7, 8, 20])
def test_blocks_of_items_that_do_not_divide_their_number_count_each_item_once(n_items):
    rng = np.random.RandomState(0)
    item, starts = pt.lvector('item'), pt.vector('starts', dtype='bool')
    state, x = pt.fmatrix('H'), pt.fmatrix('x')
    program = backends.compile_ranks({'item': item, 'starts': starts, 'H0': state},
                                     {'top': state + 1, 'H0': state + 1}, x, pt.maximum(x, 0), block=7)
    H, Wy, By = rng.randn(4, 3).astype('f4'), rng.randn(n_items, 3).astype('f4'), rng.randn(n_items).astype('f4')
    target = rng.randint(n_items, size=(2, 4))
    states, (greater, equal, bad) = program(target, np.zeros((2, 4), bool), target, {'H0': H}, np.arange(n_items),
                                            (Wy, By), (Wy, By))
    for k in range(2):
        scores = np.maximum((H + k + 1) @ Wy.T + By, 0)
        own = scores[np.arange(4), target[k]]
        assert_array_equal(greater[k], (scores > own[:, None]).sum(axis=1))
        assert_array_equal(equal[k], (scores == own[:, None]).sum(axis=1) - 1)
    assert_allclose(states['H0'], H + 2)
    assert not bad.any()


def test_a_score_that_is_not_a_number_is_an_error_on_the_device_too():
    model = small_model(n_epochs=1).fit(LOG).move_to('jax')
    model.variables_.weights['By'].set_value(np.full(model.n_items, np.nan, 'float32'))
    with pytest.raises(ValueError, match='the score of the next item is not a number'):
        next_item_ranks(model, LOG)


# --- Weights that move ----------------------------------------------------------------------------------------------


@pytest.mark.promise
def test_a_model_trained_on_jax_predicts_the_same_on_another_backend():
    model = small_model(backend='jax').fit(LOG)
    state, ranks, (scores, _targets) = state_of(model), next_item_ranks(model, LOG), scores_by_hand(model, LOG)
    assert model.move_to('python').backend_ == 'python'
    assert_same_bits(state_of(model), state)
    assert_array_equal(next_item_ranks(model, LOG), ranks)
    assert_allclose(scores_by_hand(model, LOG)[0], scores, rtol=0, atol=1e-6)
    model.move_to('jax')
    assert_array_equal(next_item_ranks(model, LOG), ranks)


# --- Which backend --------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_jax(monkeypatch):
    monkeypatch.setitem(sys.modules, 'jax', None)  # makes `import jax` fail


def test_jax_that_does_not_work_is_explained_before_any_work(broken_jax):
    with pytest.raises(ValueError, match=r"backend='jax' needs JAX, which does not work here .*'\.\[gpu\]'") as error:
        GRU4Rec([4], backend='jax').fit(LOG)
    assert '\n' not in str(error.value)


@pytest.fixture
def gpu_hardware(monkeypatch, tmp_path):
    """A plugin of JAX for GPUs, and a driver that shows one."""
    monkeypatch.setattr(backends, 'find_spec', lambda name: True)
    monkeypatch.setattr(backends, 'GPU_FILES', [str(tmp_path)])


def test_auto_continues_without_a_jax_that_does_not_work_and_says_so(broken_jax, gpu_hardware, caplog):
    assert backends.resolve('auto') == 'numba'
    assert 'JAX is installed but does not work' in caplog.text


@pytest.mark.parametrize('what, is_there', [
    ('jax', False), ('jax_plugins', False), ('driver', False), ('device', False), ('all', True)])
def test_auto_takes_jax_only_where_it_has_all_that_a_gpu_needs(gpu_hardware, monkeypatch, what, is_there):
    monkeypatch.setattr('jax.default_backend', lambda: 'cpu' if what == 'device' else 'gpu')
    monkeypatch.setattr(backends, 'find_spec', lambda name: name != what)
    if what == 'driver':
        monkeypatch.setattr(backends, 'GPU_FILES', ['/nowhere/gpu*'])
    assert (backends.resolve('auto') == 'jax') == is_there
