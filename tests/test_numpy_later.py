"""The plain-NumPy reference of the later release against its recorded runs and hand-drawn examples."""

import functools

import numpy as np
import pytest
from common import ARRAYS, LATER_ARRAYS, LATER_CASES, TEST, TRAIN, arguments_later, assert_same_bits, recorded
from numpy_gru4rec import activation, minibatches_to_the_end
from numpy_later import NumpyLater
from test_numpy_reference import assert_state_is_recorded

every_case = pytest.mark.parametrize("case", LATER_CASES)


def recorded_masks(case):
    """The masks (K, B, width) that a recorded run drew, if it drew any."""
    masks = recorded(case, "mask0", LATER_ARRAYS), recorded(case, "mask1", LATER_ARRAYS)
    return [np.unpackbits(mask["bits"]).reshape(180, 10, 10) for mask in masks if mask]


@functools.cache
def fitted(case, **changes):
    model = NumpyLater(**arguments_later(case) | changes)
    return model.fit(TRAIN, recorded_masks(case), LATER_ARRAYS.get(f"{case}/negatives"))


# --- Against the release ----------------------------------------------------------------------------------------------


@every_case
def test_sessions_are_taken_and_lanes_leave_as_recorded(case):
    model, suffix = fitted(case), "_of_8" * (case == "xe_2016args")
    assert list(model.item_index) == list(ARRAYS["item_ids"])
    for name in "MXY":
        np.testing.assert_array_equal(getattr(model, name), LATER_ARRAYS[name + suffix])
    assert 1 <= model.M.min() < model.M.max() == model.batch_size


@every_case
def test_initial_weights_are_those_recorded_to_the_bit(case):
    model = NumpyLater(**arguments_later(case))
    model.initialise(60, np.random.RandomState(42))
    expected = recorded(case, "init", LATER_ARRAYS)
    assert expected.keys() == {name for name, p in model.weights.items() if p.ndim == 2}
    assert_same_bits({name: model.weights[name][:4] for name in expected}, expected)


@every_case
def test_costs_and_epoch_losses_are_those_recorded(case):
    model = fitted(case)
    np.testing.assert_allclose(model.costs, LATER_ARRAYS[f"{case}/costs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.epoch_losses, LATER_CASES[case]["epoch_losses"], rtol=0, atol=1e-6)


@every_case
def test_weights_and_optimizer_state_after_training_are_those_recorded(case):
    assert_state_is_recorded(fitted(case), case, LATER_ARRAYS, 6e-6)


@pytest.mark.parametrize("change", [dict(bpreg=0.501), dict(momentum=0.101), dict(learning_rate=0.1001)],
                         ids=lambda change: next(iter(change)))
def test_an_argument_that_is_a_little_off_is_noticed(change):
    case = "bprmax_constrained_n8_m01"
    costs = fitted(case, **change).costs
    assert np.abs(costs - LATER_ARRAYS[f"{case}/costs"]).max() > 5e-6


@every_case
def test_scores_are_those_recorded(case):
    scores = fitted(case).scores(TEST)
    np.testing.assert_allclose(scores[LATER_ARRAYS["score_rows"]], LATER_ARRAYS[f"{case}/scores"], rtol=0, atol=2e-6)


# --- Mini-batches -----------------------------------------------------------------------------------------------------


def drawn(steps):
    return [[row.tolist() for row in column] for column in zip(*steps)]


def test_a_lane_without_a_session_leaves_and_the_others_close_ranks():
    # Events: session 0 = 0-1, 1 = 2-5, 2 = 6-8, 3 = 9-10.
    inputs, targets, starts, stays = drawn(minibatches_to_the_end([2, 4, 3, 2], batch_size=3))
    assert inputs == [[0, 2, 6], [9, 3, 7], [4]]
    assert targets == [[1, 3, 7], [10, 4, 8], [5]]
    assert starts == [[True] * 3, [True, False, False], [False]]
    assert stays == [[0, 1, 2], [0, 1, 2], [1]]  # lanes 0 and 2 have ended


def test_the_epoch_ends_with_fewer_than_the_fewest_lanes():
    steps = minibatches_to_the_end([2, 4, 3, 2], batch_size=3, fewest_lanes=2)
    assert [len(inputs) for inputs, *_ in steps] == [3, 3]


def test_sessions_start_in_the_order_of_time_or_of_ids_or_at_random():
    frame = TRAIN[TRAIN.SessionId.isin(TRAIN.SessionId.unique()[:30])]
    start = frame.groupby("SessionId").Time.min().to_numpy()  # by id
    rng = np.random.RandomState(0)

    def order(**arguments):
        return NumpyLater([2], **arguments).session_order(frame, rng)

    assert (np.diff(start[order(time_sort=True)]) > 0).all() and not (np.diff(start) > 0).all()
    assert list(order()) == list(range(30))
    assert list(order(train_random_order=True, time_sort=True)) == np.random.RandomState(0).permutation(30).tolist()


# --- Activations and logQ --------------------------------------------------------------------------------------------


def test_activations_are_known_in_closed_form():
    x = np.array([-np.log(2), 0.0, 3.0])
    for name, expected in (("leaky-0.1", [-0.1 * np.log(2), 0, 3]), ("elu-0.5", [-0.25, 0, 3]),
                           ("selu-2-0.5", [-0.5, 0, 6])):
        np.testing.assert_allclose(activation(name)[0](x), expected, rtol=1e-12)


def test_logq_changes_scores_of_training_only():
    case = "xe_n8_logq1"
    model = fitted(case)
    columns = np.array([4, 7, 4])
    expected = [np.log(model.counts[4]), 0.5 * np.log(model.counts[7]), 0.5 * np.log(model.counts[4])]
    np.testing.assert_allclose(model.correction(columns, 1), expected, rtol=1e-12)
    before = model.scores(TEST)
    model.logq = 0.0
    np.testing.assert_array_equal(model.scores(TEST), before)
    model.logq = 1.0
