"""Solutions of the exercises at the end of docs/walkthrough.md, under their numbers."""
import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
import pytest
from common import click_log
from numpy.testing import assert_allclose

import evaluation
import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends
from gru4rec_pytensor.events import session_order

SESSIONS = ['tent mat lamp', 'tea mug', 'tent lamp mat stove', 'mug tea honey', 'tea honey', 'mat tent lamp',
            'stove mat', 'tea mug honey tea', 'tent mat stove lamp', 'mug honey']
CLICKS = click_log(*map(str.split, SESSIONS))

AS_WRITTEN = pytensor.compile.mode.Mode('py', None)  # neither rewritten nor compiled

def evaluated(output, **values):
    """The value of a symbolic expression of the inputs that have the names of `values`."""
    inputs = {variable.name: variable for variable in pytensor.graph.traversal.graph_inputs([output])
              if variable.name in values}
    return pytensor.function([*inputs.values()], output, mode=AS_WRITTEN)(*[values[name] for name in inputs])


@pytest.fixture
def scores():
    return np.random.RandomState(0).uniform(-1, 1, (4, 4))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize('lanes, trained', [(1, 19), (2, 18), (3, 18), (4, 16), (5, 15)])
def test_1_more_lanes_lose_more_of_the_tail(lanes, trained):
    _rows, offsets = session_order(CLICKS)
    batches = gru4rec.session_parallel_minibatches(offsets, lanes)
    assert sum(chunk.position.size for chunk in batches) == trained


def test_2_it_matters_whether_the_reset_gate_acts_before_the_product_unless_the_matrix_is_diagonal(float64):
    rng = np.random.RandomState(0)
    x, h, U, Ur, Uz = (rng.uniform(-1, 1, shape) for shape in ((3, 6), (3, 2), (2, 2), (2, 2), (2, 2)))

    def reset_after_the_product(U):
        z, r = sigmoid(x[:, 4:] + h @ Uz), sigmoid(x[:, 2:4] + h @ Ur)
        return (1 - z) * h + z * np.tanh(x[:, :2] + r * (h @ U))

    def reset_before_the_product(U):
        gates, H, *matrices = (pt.dmatrix(name) for name in ('gates', 'H', 'Wh', 'Whr', 'Whz'))
        return evaluated(gru4rec.gru_step(gates, H, *matrices, pt.tanh), gates=x, H=h, Wh=U, Whr=Ur, Whz=Uz)

    assert np.abs(reset_before_the_product(U) - reset_after_the_product(U)).max() > 0.01
    assert_allclose(reset_before_the_product(np.diag([2.0, -1.0])), reset_after_the_product(np.diag([2.0, -1.0])))


def test_3_top1_is_that_of_the_paper_but_for_the_share_and_the_constant_of_the_positive(float64, scores):
    def top1_of_the_paper(scores):
        positive = gru4rec.diagonal(scores)[:, None]
        others = 1 - pt.eye(scores.shape[0])
        pairs = (pt.sigmoid(scores - positive) + pt.sigmoid(scores ** 2)) * others
        return pt.sum(pairs) / pt.sum(others)

    S, B = pt.dmatrix('S'), len(scores)
    expected = (B - 1) / B * evaluated(top1_of_the_paper(S), S=scores) + 0.5 / B
    assert_allclose(evaluated(gru4rec.top1(S), S=scores), expected)


def test_4_the_gradient_of_cross_entropy_is_softmax_less_the_positives(float64, scores):
    S = pt.dmatrix('S')
    gradient = evaluated(pytensor.grad(gru4rec.cross_entropy(S), S), S=scores)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert_allclose(gradient, (softmax - np.eye(4)) / 4)


def test_5_no_gradient_reaches_what_was_clicked_before():
    log = click_log(['tent', 'mat', 'lamp'], ['tea', 'mug', 'honey'])
    model = GRU4Rec([4], n_epochs=1, batch_size=2, dropout_p_hidden=0, backend='python').fit(log)
    state = gru4rec.shared('H0', np.ones((2, 4), 'float32'))  # what is left of 'tent' and 'tea': numbers, and no graph
    with pytensor.config.change_flags(floatX='float32'):
        inputs, loss, updates = gru4rec.training_step(
            model.settings(), gru4rec.shared('events', np.arange(6)), model.variables_, {'H0': state})
    second = backends.compile_function([*inputs.values()], loss, updates, backend='python')

    variables = [*model.variables_.weights.values(), *model.variables_.acc.values()]
    before = [variable.get_value() for variable in variables]
    weights = model.variables_.weights['W0'].get_value()
    loss_after_ones = second(np.array([1, 4]), np.zeros(2, bool))  # the inputs are 'mat' and 'mug'
    moved = np.flatnonzero((model.variables_.weights['W0'].get_value() != weights).any(axis=1))
    assert model.items_[moved].tolist() == ['mat', 'mug']

    def loss_after(ones):
        for variable, value in zip([*variables, state], [*before, ones * np.ones((2, 4), 'float32')]):
            variable.set_value(value)
        return second(np.array([1, 4]), np.zeros(2, bool))
    assert loss_after(1) == loss_after_ones
    assert loss_after(-1) != pytest.approx(loss_after_ones, rel=1e-3)  # yet what was clicked before matters


@pytest.mark.parametrize('gradients, same', [((3, 4), False), ((3, 0), True), ((0, 0), True), ((3, -3), True)])
def test_6_both_ways_agree_where_one_occurrence_has_no_gradient_or_they_cancel(gradients, same):
    def moved(gradients):
        weight, acc = (gru4rec.shared(name, np.zeros((1, 1))) for name in ('weight', 'acc'))
        rows = pt.constant(np.zeros(len(gradients), int))
        parameter = gru4rec.Parameter(weight, weight[rows], rows)
        scaled, updates = gru4rec.adagrad(parameter, pt.constant(np.array(gradients, float)[:, None]), acc)
        pytensor.function([], [], updates=updates | gru4rec.sgd(parameter, scaled), mode=AS_WRITTEN)()
        return weight.get_value().item()
    assert (moved(gradients) == pytest.approx(moved([sum(gradients)]), abs=1e-6)) == same


@pytest.mark.parametrize('policy, recall, mrr', [('standard', 1, 1), ('median', 0, 0), ('conservative', 0, 0)])
def test_7_a_model_that_scores_all_items_the_same_is_perfect_or_useless(policy, recall, mrr):
    class Indifferent:
        items_ = CLICKS.ItemId.unique()

        def predict_next(self, session_id, input_item_id, predict_for_item_ids):
            return pd.Series(0.0, index=predict_for_item_ids)

    ranks = evaluation.next_item_ranks(Indifferent(), CLICKS, tie_policy=policy)
    assert set(ranks) == {{'standard': 1, 'median': 4, 'conservative': 7}[policy]}  # of seven items
    assert evaluation.recall_mrr(ranks, 3) == (recall, mrr)


def test_8_a_hinge_loss_brings_campers_camping_things(monkeypatch):
    def hinge(scores):
        margins = pt.maximum(0, 1 - gru4rec.diagonal(scores)[:, None] + scores)
        return gru4rec.mean(margins)

    monkeypatch.setitem(gru4rec.LOSSES, 'hinge', hinge)
    model = GRU4Rec([6], loss='hinge', n_epochs=50, batch_size=3, dropout_p_hidden=0, learning_rate=0.1,
                    backend='python').fit(CLICKS)
    assert set(model.recommend(['tent', 'mat'], k=3).ItemId) <= {'tent', 'mat', 'lamp', 'stove'}
    assert set(model.recommend(['tea', 'mug'], k=3).ItemId) <= {'tea', 'mug', 'honey'}
