"""The sampled scores, and the losses with their gradients, against NumPy and values worked out by hand."""
import statistics

import numpy as np
import numpy_gru4rec as reference
import numpy_later
import pytensor
import pytensor.tensor as pt
import pytest
from common import FAST_BACKENDS, PROMISE, needs_jax
from numpy.testing import assert_allclose

import gru4rec
from gru4rec_pytensor import backends

EVERY_LOSS = ['top1', 'bpr', 'cross-entropy', 'mrr']


def evaluated(expression, **values):
    """Value of `expression`, called with a symbol for each of `values`, in their precision and without rewriting."""
    symbols = {name: pt.as_tensor(value).type(name) for name, value in values.items()}
    outputs = expression(*symbols.values())
    function = pytensor.function(list(symbols.values()), outputs, mode=pytensor.compile.mode.Mode('py', None),
                                 on_unused_input='ignore')
    return function(*values.values())


def loss_and_gradient(loss, scores):
    def expression(scores):
        value = gru4rec.LOSSES[loss](scores)
        return [value, pytensor.grad(value, scores)]
    return evaluated(expression, scores=scores)


# --- Scores and activations -----------------------------------------------------------------------------------------


def test_activated_scores_with_their_bias_have_lanes_in_rows_and_targets_in_columns():
    H, rows, bias = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.5, 2.0]]), np.array([-2.0, -5.0])
    scores = evaluated(lambda *symbols: gru4rec.sampled_scores(*symbols, pt.tanh), H=H, rows=rows, bias=bias)
    assert_allclose(scores, np.tanh([[1 - 2, 4.5 - 5], [3 - 2, 9.5 - 5]]), rtol=1e-15)


@pytest.mark.parametrize('name, expected', [('tanh', np.tanh([-2.0, 0.0, 0.5])), ('linear', [-2.0, 0.0, 0.5]),
                                            ('relu', [0.0, 0.0, 0.5])])
def test_symbolic_and_numpy_activations_are_the_same_function(name, expected):
    x = np.array([-2.0, 0.0, 0.5])
    assert_allclose(evaluated(lambda x: gru4rec.ACTIVATIONS[name](x), x=x), expected, rtol=1e-15)
    assert_allclose(gru4rec.NUMPY_ACTIVATIONS[name](x), expected, rtol=1e-15)


def test_relu_passes_the_gradient_on_at_zero():
    slope = evaluated(lambda x: pytensor.grad(gru4rec.relu(x).sum(), x), x=np.array([-1.0, 0.0, 1.0]))
    assert slope.tolist() == [0, 1, 1]


# --- Losses ---------------------------------------------------------------------------------------------------------


def random_scores(scale, n=6, seed=0):
    return scale * np.random.RandomState(seed).randn(n, n)


@pytest.mark.parametrize('scale', [0.3, 3])
@pytest.mark.parametrize('loss', EVERY_LOSS)
def test_a_loss_and_its_gradient_are_those_derived_by_hand(loss, scale):
    scores = random_scores(scale)
    value, gradient = loss_and_gradient(loss, scores)
    expected_value, expected_gradient = reference.losses[loss](scores)
    assert_allclose(value, expected_value, rtol=1e-12)
    assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-14)


Phi = statistics.NormalDist().cdf


def test_the_mrr_loss_of_two_lanes_is_that_worked_out_by_hand():
    """The releases have no such loss; their recorded runs check what the reference says of the others."""
    scores = np.array([[1.0, 0.0], [2.0, -1.0]])  # positives 1 and -1, one negative each: 0 and 2
    # the positives are half a unit above the mean 1/2 of scores with variance 1/4, and 3/2 below it with variance 9/4
    expected = 1 - (1 / (2 - Phi(0.5 / np.sqrt(0.25 + 1e-6))) + 1 / (2 - Phi(-1.5 / np.sqrt(2.25 + 1e-6)))) / 2
    assert_allclose(loss_and_gradient('mrr', scores)[0], expected, rtol=1e-14)


@pytest.mark.parametrize('loss', EVERY_LOSS)
def test_losses_compute_in_float32_during_training(loss):
    with pytensor.config.change_flags(floatX='float32'):
        value, gradient = loss_and_gradient(loss, random_scores(1).astype('float32'))
    assert value.dtype == gradient.dtype == 'float32'


LARGE = np.array([[-60, 50, 3], [40, 0, -80], [90, 20, 30]], dtype='float32')
# TOP1's gradient has 2 r times the slope of the sigmoid at r², whose error on Numba, 1e-7, shows where r is larger.
LARGEST = {('top1', 'numba'): 18}


@pytest.mark.parametrize('losses, backend', [
    (EVERY_LOSS, 'python'), pytest.param(['top1', 'cross-entropy'], 'numba', marks=PROMISE),
    pytest.param(['bpr', 'mrr'], 'numba', marks=pytest.mark.slow),
    pytest.param(EVERY_LOSS, 'jax', marks=needs_jax)], ids=str)
def test_losses_of_large_scores_stay_exact_in_float32_when_compiled(losses, backend):
    # In one program, since each takes its time to compile.
    symbols = [pt.fmatrix(loss) for loss in losses]
    values = [gru4rec.LOSSES[loss](symbol) for loss, symbol in zip(losses, symbols)]
    gradients = [pytensor.grad(value, symbol) for value, symbol in zip(values, symbols)]
    compiled = backends.compile_function(symbols, values + gradients, backend=backend)
    scores = [LARGE * np.float32(LARGEST.get((loss, backend), 90) / 90) for loss in losses]
    results = compiled(*scores)
    for loss, x, value, gradient in zip(losses, scores, results, results[len(losses):]):
        expected_value, expected_gradient = reference.losses[loss](x.astype('float64'))
        assert_allclose(value, expected_value, rtol=1e-6, err_msg=loss)
        assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-6, err_msg=loss)


HOPELESS = np.array([5, 12, 18, 25, 40, 54, 58, 70, 85], dtype='float32')  # by how much a target scores too low


@pytest.mark.parametrize('backend', ['python', *FAST_BACKENDS])
@pytest.mark.parametrize('loss', ['cross-entropy', 'bpr-max'])
def test_a_target_far_below_its_negatives_costs_and_teaches_what_it_does_in_the_later_release(loss, backend):
    scores = random_scores(0.5, n=len(HOPELESS)).astype('float32')
    scores[np.diag_indices_from(scores)] -= HOPELESS
    symbol = pt.matrix('scores', dtype='float32', shape=scores.shape)
    lanes = pt.vector('lanes', dtype='bool', shape=HOPELESS.shape)
    value = gru4rec.LOSSES[loss](symbol, lanes, **dict(bpreg=np.float32(0.5)) if loss == 'bpr-max' else {})
    compiled = backends.compile_function([symbol, lanes], [value, pytensor.grad(value, symbol)], backend=backend)
    expected = [numpy_later.losses[loss](row, own, bpreg=0.5) for own, row in enumerate(scores.astype('float64'))]
    actual_value, actual_gradient = compiled(scores, np.ones(len(scores), bool))
    assert_allclose(actual_value, np.mean([value for value, _gradient in expected]), rtol=1e-6)
    assert_allclose(actual_gradient * len(scores), [gradient for _value, gradient in expected], rtol=0, atol=1e-5)
