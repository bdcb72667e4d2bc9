"""Update rules on dense weights and on rows that repeat, and whole training runs, against plain NumPy."""
import itertools
from types import SimpleNamespace

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import assert_close, few_items_log, fixed_masks, reference_of, small_model, state_of
from numpy.testing import assert_allclose, assert_array_equal
from numpy_gru4rec import NumpyGRU4Rec
from numpy_gru4rec import losses as reference_losses
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

import gru4rec
from gru4rec import Parameter
from gru4rec_pytensor import backends
from gru4rec_pytensor.backends import numba_rows
from gru4rec_pytensor.backends.common import RowUpdate

# --- Each rule alone ------------------------------------------------------------------------------------------------

ROWS = [3, 1, 3, 3, 0]  # row 3 occurs three times


@pytest.mark.parametrize('rows', [None, ROWS], ids=['dense', 'repeated rows'])
@pytest.mark.parametrize('adapt, momentum, lmbd', [
    ('adagrad', 0, 0), ('adagrad', 0.2, 0.5), ('rmsprop', 0, 0.5), ('rmsprop', 0.2, 0), (None, 0, 0.5), (None, 0.2, 0)])
def test_a_rule_updates_a_weight_or_each_occurrence_of_its_rows_as_the_reference_does(adapt, momentum, lmbd, rows):
    """Each occurrence is scaled by itself; adagrad accumulates all of them, rmsprop and momentum keep the last."""
    arguments = dict(adapt=adapt, momentum=momentum, lmbd=lmbd, learning_rate=0.1, decay=0.9)
    expected, rng = NumpyGRU4Rec([1], **arguments), np.random.RandomState(0)
    expected.weights, expected.vel, expected.acc = ({'w': np.abs(rng.randn(5, 2))} for _state in range(3))
    gradient = rng.randn(5, 2)
    weight, vel, acc = (pytensor.shared(state['w'].copy()) for state in (expected.weights, expected.vel, expected.acc))
    value = weight if rows is None else weight[np.array(rows)]
    rates = {name: pt.constant(rate) for name, rate in arguments.items() if name != 'adapt'}
    symbol = pt.dmatrix('gradient')
    with pytensor.config.change_flags(floatX='float64'):
        parameter = Parameter(weight, value, None if rows is None else pt.constant(np.array(rows)))
        updates = gru4rec.updates_of(small_model(**arguments).settings(5), rates, parameter, symbol, acc, vel)
        backends.compile_function([symbol], [], updates, backend='python')(gradient)
    if rows is None:
        expected.update_dense('w', gradient)
    else:
        expected.update_rows('w', rows, gradient)
    for variable, state in ((weight, expected.weights), (vel, expected.vel), (acc, expected.acc)):
        assert_allclose(variable.get_value(), state['w'], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize('grad_cap, scale', [(4, 4 / 5), (5, 1), (6, 1)])
def test_all_gradients_are_scaled_to_the_cap_when_their_joint_norm_reaches_it(grad_cap, scale, float64):
    gradients = [np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([4.0])]  # norm 5
    capped = [g.eval() for g in gru4rec.capped(list(map(pt.constant, gradients)), grad_cap)]
    for g, expected in zip(capped, gradients):
        assert_allclose(g, scale * expected, rtol=1e-15)


# --- Whole training runs --------------------------------------------------------------------------------------------

LOG = few_items_log()  # 5 items in 6 lanes: every mini-batch repeats at least one as input and one as target
TOLERANCE = 1e-5  # of weights, accumulators and velocities, after two epochs in float32; the reference is in float64


def assert_trained_like_the_reference(**arguments):
    """With fixed masks where there is dropout."""
    model = small_model(**arguments)
    p = model.dropout_p_hidden
    masks = fixed_masks(model.layers, model.batch_size, p) if p else None
    model.fit(LOG, dropout_masks=masks)
    expected = reference_of(model, LOG, masks)
    assert_allclose(model.epoch_losses_, expected.epoch_losses, rtol=0, atol=1e-6)
    assert_close(state_of(model), state_of(expected), TOLERANCE)


# Each loss, and each rule with and without momentum: they do not know of one another.
QUICK = [('top1', 'adagrad', 0.2), ('bpr', 'adagrad', 0), ('cross-entropy', 'rmsprop', 0), ('mrr', 'rmsprop', 0.2),
         ('top1', None, 0), ('bpr', None, 0.2)]


@pytest.mark.parametrize('loss, adapt, momentum', [
    pytest.param(*rule, marks=() if rule in QUICK else pytest.mark.slow)
    for rule in itertools.product(reference_losses, ['adagrad', 'rmsprop', None], [0, 0.2])])
def test_training_is_that_of_the_reference_for_every_loss_and_update_rule(loss, adapt, momentum):
    rate = {'adagrad': 0.05, 'rmsprop': 0.01, None: 0.1}[adapt]
    assert_trained_like_the_reference(loss=loss, adapt=adapt, momentum=momentum, learning_rate=rate)


@pytest.mark.parametrize('arguments', [
    dict(layers=[3, 4, 2], loss='cross-entropy', adapt='rmsprop', learning_rate=0.01),
    dict(lmbd=0.02, momentum=0.2, adapt='rmsprop', learning_rate=0.01),
    dict(grad_cap=0.05, loss='cross-entropy', adapt=None, momentum=0.2, layers=[4, 3]),
    dict(hidden_act='relu', momentum=0.2),
    dict(final_act='linear', loss='bpr'),
    dict(final_act='tanh', loss='cross-entropy'),
    pytest.param(dict(batch_size=1), marks=pytest.mark.filterwarnings('ignore:nothing can be learned')),
    dict(batch_size=13, layers=[1]),
    *[pytest.param(again, marks=pytest.mark.slow) for again in (
        dict(lmbd=0.02, momentum=0.2, adapt=None), dict(grad_cap=0.05, loss='bpr'), dict(final_act='relu'),
        dict(final_act='relu', loss='cross-entropy'), dict(decay=0.6, adapt='rmsprop', learning_rate=0.01))],
    dict(dropout_p_hidden=0.25, momentum=0.2),
    dict(dropout_p_hidden=0.25, layers=[4, 3], loss='bpr', adapt='rmsprop', learning_rate=0.01),
    dict(dropout_p_hidden=0.25, hidden_act='relu', loss='cross-entropy', reset_after_session=False),
    dict(dropout_p_hidden=0.25, layers=[4, 3], lmbd=0.01, grad_cap=0.1, momentum=0.2, init_as_normal=True,
         train_random_order=True),
], ids=lambda arguments: ' '.join(f'{name}={value}' for name, value in arguments.items()))
def test_training_is_that_of_the_reference_for_every_option(arguments):
    assert_trained_like_the_reference(**arguments)


# --- On the fast backend --------------------------------------------------------------------------------------------


def updated_by_loop(table, values, rows, changes, store):
    """`table` after one occurrence of a row after the other; those that change nothing are left out."""
    table = table.copy()
    for row, value in zip(rows[changes], values[changes]):
        table[row] = value if store else table[row] + value
    return table


RNG = np.random.RandomState(0)
OCCURRENCES = RNG.randint(5000, size=50)[RNG.randint(50, size=80)]  # far enough apart to meet in a hash table
SOME = RNG.rand(80) < 0.6


def test_numba_reads_rows_and_stores_the_last_occurrence_that_changes_something():
    table, values = RNG.rand(5000, 3).astype('float32'), RNG.rand(80, 3).astype('float32')
    nodes = [numba_rows.ReadRows().make_node(pt.fmatrix(), pt.lvector()),
             RowUpdate(store=True).make_node(pt.fmatrix(), pt.fmatrix(), pt.lvector(), pt.vector(dtype='bool'))]
    read, update = (numba_funcify_and_cache_key(node.op, node=node)[0] for node in nodes)
    compiled = numba.njit(lambda x, y, rows, changes: (read(x, rows), update(x, y, rows, changes)))
    found, updated = compiled(table, values, OCCURRENCES, SOME)
    assert_array_equal(found, table[OCCURRENCES])
    assert_array_equal(updated, updated_by_loop(table, values, OCCURRENCES, SOME, store=True))


@pytest.mark.parametrize('changes', [SOME, np.ones(80, bool)], ids=['some', 'all'])
def test_a_joint_update_of_tables_reads_rows_as_they_were_before_all_occurrences(changes):
    """The source that Numba compiles, run as Python."""
    def body(w, v, x):
        return x - w * v, v + x

    weight, velocity, x = RNG.rand(5000, 3), RNG.rand(5000, 3), RNG.rand(80, 3)
    op = numba_rows.JointRowUpdate(SimpleNamespace(nout=2), operands=(0, 1, None), outputs=(0, 1), stores=(False, True),
                                   conditional=not changes.all())
    names = {'np': np, 'body': body, 'repeated_rows': numba_rows.repeated_rows.py_func, 'fetch_row': lambda *row: None}
    exec(numba_rows.joint_row_update_source(op, [pt.dmatrix()]), names)
    actual = names['joint_row_update'](OCCURRENCES, *[changes] * op.conditional, weight, velocity, x)
    steps = body(weight[OCCURRENCES], velocity[OCCURRENCES], x)
    for new, table, step, store in zip(actual, (weight, velocity), steps, (False, True), strict=True):
        assert_allclose(new, updated_by_loop(table, step, OCCURRENCES, changes, store), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('momentum', [0, 0.2])
@pytest.mark.parametrize('adapt', ['adagrad', 'rmsprop', None])
@pytest.mark.parametrize('loss', list(reference_losses))
def test_numba_trains_like_the_reference_for_every_loss_and_update_rule(loss, adapt, momentum):
    rate = {'adagrad': 0.05, 'rmsprop': 0.01, None: 0.1}[adapt]
    # MRR divides by the spread of scores: from the usual initial weights, their last bits change its loss by 1.5e-5.
    sigma = 0.5 if loss == 'mrr' else 0
    assert_trained_like_the_reference(
        loss=loss, adapt=adapt, momentum=momentum, learning_rate=rate, layers=[4, 3], lmbd=0.01, dropout_p_hidden=0.25,
        sigma=sigma, backend='numba')
