"""The plain-NumPy reference against numbers of the 2016 release and hand-drawn examples.

Its gradients, derived by hand, are held against PyTensor's by the tests that train both.
"""

import functools

import numpy as np
import pytest
from common import ARRAYS, CASES, TEST, TRAIN, assert_close, assert_same_bits, recorded, recorded_masks
from numpy_gru4rec import NumpyGRU4Rec, minibatches

every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def fitted(case):
    return NumpyGRU4Rec(**CASES[case]["arguments"]).fit(TRAIN, recorded_masks(case))


# --- Against the release --------------------------------------------------------------------------------------------


@every_case
def test_items_are_numbered_and_minibatches_formed_as_in_the_release(case):
    model = fitted(case)
    assert list(model.item_index) == list(ARRAYS["item_ids"])
    np.testing.assert_array_equal(model.X, ARRAYS["X"])
    np.testing.assert_array_equal(model.Y, ARRAYS["Y"])


def test_initial_weights_are_those_of_the_release_to_the_bit():
    case = "two_layer_top1_adagrad_m02"
    model = NumpyGRU4Rec(**CASES[case]["arguments"])
    model.initialise(len(ARRAYS["item_ids"]), np.random.RandomState(42))
    assert_same_bits(model.weights, recorded(case, "init"))


@every_case
def test_losses_are_those_of_the_release(case):
    model, expected = fitted(case), CASES[case]
    assert len(model.costs) == expected["n_minibatches"]
    np.testing.assert_allclose(model.costs[:5], expected["first_costs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.costs[-5:], expected["last_costs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.epoch_losses, expected["epoch_losses"], rtol=0, atol=1e-6)


# How far the release, in float32, may be off in an accumulator after n steps; u = eps / 2.
#
# An operation is off by at most u of its result. An accumulator is the sum of n squares, so that n additions put it off
# by up to n u of its size. A gradient is a product of numbers that are themselves off by up to n u, hence off by n u to
# first order, and its square by 2 n u. Together: 3 n u of the largest entry. With n = 207 it is 4e-5 of the largest
# entry: 5e-6 for the largest accumulator recorded, and 1e-7 for the smallest. Weights and velocities, of steps that the
# accumulator divides, keep closer.
def rounding(n_steps):
    """Bound on the error of the release's accumulators after n steps, as a share of the largest entry."""
    return 3 * n_steps * np.finfo("float32").eps / 2


def differences(actual, expected):
    """The largest difference in each array, as a share of the largest entry."""
    assert actual.keys() == expected.keys()
    return {name: np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max() for name in expected}


def assert_state_is_recorded(model, case, arrays, tolerance):
    """Weights up to `tolerance`, velocities and accumulators; of these some runs have kept the first rows alone."""
    vel, acc = recorded(case, "vel", arrays), recorded(case, "acc", arrays)
    assert_close(model.weights, recorded(case, "weight", arrays), tolerance)
    assert bool(vel) == (model.momentum > 0)
    assert_close({name: model.vel[name][:len(rows)] for name, rows in vel.items()}, vel, 2e-6)
    for name, difference in differences({name: model.acc[name][:len(rows)] for name, rows in acc.items()}, acc).items():
        assert difference <= rounding(len(model.costs)), name


@every_case
def test_weights_and_optimizer_state_after_training_are_those_of_the_release(case):
    assert_state_is_recorded(fitted(case), case, ARRAYS, 2e-6)


@pytest.mark.parametrize("case", ["cross-entropy_rmsprop_m00", "two_layer_top1_adagrad_m02"])
def test_a_learning_rate_that_is_a_thousandth_off_is_noticed_in_accumulators(case):
    """The bound is not so wide that a wrong rule fits in."""
    arguments = CASES[case]["arguments"]
    model = NumpyGRU4Rec(**arguments | {"learning_rate": 1.001 * arguments["learning_rate"]}).fit(TRAIN)
    found = differences(model.acc, recorded(case, "acc"))
    assert min(found.values()) > rounding(CASES[case]["n_minibatches"]), found


@every_case
def test_hidden_state_and_scores_are_those_of_the_release(case):
    model = fitted(case)
    for layer, states in enumerate(model.hidden):
        np.testing.assert_allclose(states[-1], ARRAYS[f"{case}/last_hidden{layer}"], rtol=2e-6, atol=2e-6)
    scores = model.scores(TEST)[ARRAYS["score_rows"]]
    np.testing.assert_allclose(scores, ARRAYS[f"{case}/scores"], rtol=0, atol=2e-6)


# --- L2 regularisation, worked out by hand --------------------------------------------------------------------------


def test_l2_pulls_at_the_old_row_once_per_occurrence_and_is_not_scaled_by_the_accumulator():
    model = NumpyGRU4Rec([1], adapt="adagrad", lmbd=0.5, learning_rate=0.1)
    model.weights, model.acc = {"By": np.array([0.0, 0.0, 2.0])}, {"By": np.array([0.0, 0.0, 5.0])}
    model.update_rows("By", np.array([2, 2]), np.array([3.0, 4.0]))
    gradients = 3 / np.sqrt(14 + 1e-6) + 4 / np.sqrt(21 + 1e-6)
    assert model.acc["By"][2] == 5 + 9 + 16
    assert model.weights["By"][2] == pytest.approx(2 - 0.1 * (gradients + 2 * 0.5 * 2), rel=1e-12)


def test_dense_weights_scale_the_gradient_then_add_l2_then_momentum():
    model = NumpyGRU4Rec([1], adapt="adagrad", momentum=0.2, lmbd=0.5, learning_rate=0.1)
    model.weights, model.acc, model.vel = ({"Bh0": np.array([value])} for value in (2.0, 5.0, 1.0))
    model.update_dense("Bh0", np.array([3.0]))
    vel = 0.2 * 1 - 0.1 * (3 / np.sqrt(14 + 1e-6) + 0.5 * 2)
    assert model.acc["Bh0"] == [14]
    assert model.vel["Bh0"] == pytest.approx([vel], rel=1e-12)
    assert model.weights["Bh0"] == pytest.approx([2 + vel], rel=1e-12)


# --- Options without a recorded case --------------------------------------------------------------------------------


def small_fit(**arguments):
    defaults = dict(layers=[4], n_epochs=2, batch_size=8, dropout_p_hidden=0.0)
    return NumpyGRU4Rec(**{**defaults, **arguments}).fit(TRAIN)


def test_normal_initialisation_has_the_standard_deviation_of_each_matrix_and_sigma_replaces_its_range():
    normal, uniform = NumpyGRU4Rec([200], init_as_normal=True), NumpyGRU4Rec([200], sigma=0.1)
    for model in (normal, uniform):
        model.initialise(400, np.random.RandomState(42))
    assert normal.weights["Wx0"].std() == pytest.approx(np.sqrt(6 / 600), rel=0.01)
    assert normal.weights["Wh0"].std() == pytest.approx(np.sqrt(6 / 400), rel=0.01)
    assert (normal.weights["Bh0"] == 0).all()
    for name in ("Wx0", "Wh0", "Wy"):
        assert 0.0999 < np.abs(uniform.weights[name]).max() <= np.float32(0.1)


def test_without_reset_a_session_starts_from_the_state_that_the_last_one_left_in_its_lane():
    with_reset, without = small_fit(), small_fit(reset_after_session=False)
    np.testing.assert_array_equal(with_reset.X, without.X)
    # Session 1 has two events, so that its lane takes a new session at the second mini-batch.
    assert without.costs[0] == with_reset.costs[0]
    changed = (without.hidden[0][1] != with_reset.hidden[0][1]).any(axis=1)
    starts = minibatches(TRAIN.groupby("SessionId").size().tolist(), 8)[1][2]
    assert starts.any() and not starts.all()
    np.testing.assert_array_equal(changed, starts)


def test_random_order_draws_a_permutation_of_the_sessions_for_each_epoch():
    model = small_fit(train_random_order=True)
    lengths = TRAIN.groupby("SessionId").size().tolist()
    rng = np.random.RandomState(42)
    model.initialise(60, rng)  # the permutations come after the weights in the stream
    items, _ = model.sorted_events(TRAIN)
    steps = [step for _ in range(2) for step in minibatches(lengths, 8, rng.permutation(200))]
    np.testing.assert_array_equal(model.X, [items[inputs] for inputs, _, _ in steps])


def test_cross_entropy_scores_are_a_softmax_over_the_items():
    plain, squashed = small_fit(loss="cross-entropy"), small_fit(loss="cross-entropy", final_act="tanh")
    np.testing.assert_allclose(plain.scores(TEST).sum(axis=1), 1, rtol=1e-12)
    scores = squashed.scores(TEST)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-12)
    assert (scores.max(axis=1) / scores.min(axis=1)).max() <= np.exp(2)  # tanh lies between -1 and 1
