"""The plain-NumPy reference against numbers of the 2016 release, finite differences, and hand-drawn examples."""

import functools

import numpy as np
import pytest
from common import ARRAYS, CASES, TEST, TRAIN, assert_close, assert_same_bits, recorded, recorded_masks
from numpy_gru4rec import NumpyGRU4Rec, losses, minibatches

every_case = pytest.mark.parametrize("case", CASES)
both_precisions = pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])


@functools.cache
def fitted(case, dtype="float64"):
    return NumpyGRU4Rec(**CASES[case]["arguments"], dtype=dtype).fit(TRAIN, recorded_masks(case))


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


@both_precisions
@every_case
def test_losses_are_those_of_the_release(case, dtype):
    model, expected = fitted(case, dtype), CASES[case]
    assert len(model.costs) == expected["n_minibatches"]
    np.testing.assert_allclose(model.costs[:5], expected["first_costs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.costs[-5:], expected["last_costs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.epoch_losses, expected["epoch_losses"], rtol=0, atol=1e-6)


# How far two programs may part in an accumulator after n steps, in float32, the release's precision; u = eps / 2.
#
# An operation is off by at most u of its result. An accumulator is the sum of n squares, so that n additions put it off
# by up to n u of its size. A gradient is a product of numbers that are themselves off by up to n u, hence off by n u to
# first order, and its square by 2 n u. Together: 3 n u of the largest entry for each program that rounds: both in
# float32, and the release alone where the reference computes in float64. With n = 207 it is 7e-5 of the largest entry:
# 1e-5 for the largest accumulator recorded, and 2e-7 for the smallest. Weights and velocities, of steps that the
# accumulator divides, keep closer.
def rounding(n_steps, dtype):
    """Bound on the difference of two programs' accumulators after n steps, as a share of the largest entry."""
    programs = 2 if dtype == "float32" else 1
    return 3 * n_steps * programs * np.finfo("float32").eps / 2


def differences(actual, expected):
    """The largest difference in each array, as a share of the largest entry."""
    assert actual.keys() == expected.keys()
    return {name: np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max() for name in expected}


@both_precisions
@every_case
def test_weights_and_optimizer_state_after_training_are_those_of_the_release(case, dtype):
    model, bound = fitted(case, dtype), rounding(CASES[case]["n_minibatches"], dtype)
    assert_close(model.weights, recorded(case, "weight"), 2e-6)
    assert_close(model.vel, recorded(case, "vel"), 2e-6)
    for name, difference in differences(model.acc, recorded(case, "acc")).items():
        assert difference <= bound, name


@pytest.mark.parametrize("case", ["cross-entropy_rmsprop_m00", "two_layer_top1_adagrad_m02"])
def test_a_learning_rate_that_is_a_thousandth_off_is_noticed_in_accumulators(case):
    """The bound is not so wide that a wrong rule fits in."""
    arguments = CASES[case]["arguments"]
    model = NumpyGRU4Rec(**arguments | {"learning_rate": 1.001 * arguments["learning_rate"]}).fit(TRAIN)
    found = differences(model.acc, recorded(case, "acc"))
    assert min(found.values()) > rounding(CASES[case]["n_minibatches"], "float32"), found


@both_precisions
@every_case
def test_hidden_state_and_scores_are_those_of_the_release(case, dtype):
    model = fitted(case, dtype)
    for layer, states in enumerate(model.hidden):
        np.testing.assert_allclose(states[-1], ARRAYS[f"{case}/last_hidden{layer}"], rtol=2e-6, atol=2e-6)
    scores = model.scores(TEST)[ARRAYS["score_rows"]]
    np.testing.assert_allclose(scores, ARRAYS[f"{case}/scores"], rtol=0, atol=2e-6)


# --- Gradients against finite differences ---------------------------------------------------------------------------


def finite_differences(function, x, step=1e-6):
    """Central differences of a scalar function by every entry of x, which is changed in place and put back."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function()
        x[index] = kept - step
        below = function()
        x[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("loss", losses)
def test_loss_gradient_agrees_with_finite_differences(loss):
    r_hat = np.random.RandomState(1).randn(5, 5)
    expected = finite_differences(lambda: losses[loss](r_hat)[0], r_hat)
    np.testing.assert_allclose(losses[loss](r_hat)[1], expected, atol=1e-9)


def small_model(layers, repeats, **arguments):
    """A model with 7 items and 4 lanes in the middle of training, and the arguments of one step."""
    defaults = dict(batch_size=4, dropout_p_hidden=0.25, learning_rate=0.1, adapt=None)
    model = NumpyGRU4Rec(layers, **{**defaults, **arguments})
    rng = np.random.RandomState(3)
    model.initialise(7, rng)
    for p in model.weights.values():
        p += 0.3 * rng.randn(*p.shape)
    hidden = [rng.randn(4, units) for units in layers]
    masks = [(rng.rand(4, units) < 0.75) / 0.75 for units in layers]
    assert all(0 < mask.mean() < 1 / 0.75 for mask in masks)  # something is dropped, something is kept
    if repeats:
        return model, (np.array([1, 3, 1, 1]), np.array([3, 5, 5, 0]), hidden, masks)
    return model, (np.array([1, 3, 0, 6]), np.array([3, 5, 2, 0]), hidden, masks)


CONFIGURATIONS = [
    dict(loss="top1"),
    dict(loss="bpr"),
    dict(loss="cross-entropy"),
    dict(loss="cross-entropy", final_act="tanh"),
    dict(loss="bpr", final_act="linear"),
    dict(loss="top1", hidden_act="relu", final_act="relu"),
]
every_configuration = pytest.mark.parametrize("arguments", CONFIGURATIONS, ids=lambda a: "-".join(a.values()))
one_and_two_layers = pytest.mark.parametrize("layers", [[3], [3, 2]], ids=["one layer", "two layers"])
with_and_without_repeats = pytest.mark.parametrize("repeats", [False, True], ids=["distinct items", "repeated items"])


@every_configuration
@pytest.mark.parametrize("layers", [[3], pytest.param([3, 2], marks=pytest.mark.slow)], ids=["one layer", "two layers"])
@with_and_without_repeats
def test_gradients_of_a_step_with_dropout_agree_with_finite_differences(arguments, layers, repeats):
    model, step = small_model(layers, repeats, **arguments)
    _, _, dense, rows = model.gradients(*step)
    assert dense.keys() | rows.keys() == model.weights.keys()
    for name, p in model.weights.items():
        expected = finite_differences(lambda: model.gradients(*step)[0], p)
        actual = np.zeros_like(p) if name in rows else dense[name]
        if name in rows:
            for item, g in zip(*rows[name]):
                actual[item] += g
        np.testing.assert_allclose(actual, expected, atol=1e-8, err_msg=name)


@one_and_two_layers
@with_and_without_repeats
def test_plain_descent_subtracts_the_gradient_and_l2_once_per_occurrence(layers, repeats):
    model, step = small_model(layers, repeats, lmbd=0.3)
    before = {name: p.copy() for name, p in model.weights.items()}
    slope = {name: finite_differences(lambda: model.gradients(*step)[0], p) for name, p in model.weights.items()}
    model.train_minibatch(*step)
    inputs, targets = step[:2]
    for name, p in before.items():
        occurrences = 1.0
        if name in ("Wx0", "Wr0", "Wz0"):
            occurrences = np.bincount(inputs, minlength=7)[:, None]
        elif name == "Wy":
            occurrences = np.bincount(targets, minlength=7)[:, None]
        elif name == "By":
            occurrences = np.bincount(targets, minlength=7)
        expected = p - 0.1 * (slope[name] + 0.3 * occurrences * p)
        np.testing.assert_allclose(model.weights[name], expected, atol=1e-8, err_msg=name)


def test_gradient_cap_leaves_a_small_gradient_alone():
    capped, step = small_model([3], repeats=True, grad_cap=100)
    free, _ = small_model([3], repeats=True)
    capped.train_minibatch(*step)
    free.train_minibatch(*step)
    assert_same_bits(capped.weights, free.weights)


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


def test_normal_initialisation_has_the_standard_deviation_of_each_matrix():
    model = NumpyGRU4Rec([200], init_as_normal=True)
    model.initialise(400, np.random.RandomState(42))
    assert model.weights["Wx0"].std() == pytest.approx(np.sqrt(6 / 600), rel=0.01)
    assert model.weights["Wh0"].std() == pytest.approx(np.sqrt(6 / 400), rel=0.01)
    assert (model.weights["Bh0"] == 0).all()


def test_sigma_replaces_the_range_that_follows_from_the_shape():
    model = NumpyGRU4Rec([200], sigma=0.1)
    model.initialise(400, np.random.RandomState(42))
    for name in ("Wx0", "Wh0", "Wy"):
        assert 0.0999 < np.abs(model.weights[name]).max() <= np.float32(0.1)


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
