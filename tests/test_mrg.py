"""Theano's generator of dropout masks, against numbers recorded from Theano and against plain integers."""
import json

import numpy as np
import pytest
from common import GOLDEN, assert_same_bits, drawn_inputs
from numpy.testing import assert_array_equal

import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import draws, mrg

RECORDED = json.loads((GOLDEN / 'mrg.json').read_text())
M1, M2 = 2 ** 31 - 1, 2 ** 31 - 21069


def step_by_step(state):
    """The generator as the paper writes it, in Python's integers: yields d and the state after it."""
    x, y = list(state[:3]), list(state[3:])  # newest first
    while True:
        x = [(2 ** 22 * x[1] + (2 ** 7 + 1) * x[2]) % M1, *x[:2]]
        y = [(2 ** 15 * y[0] + (2 ** 15 + 1) * y[2]) % M2, *y[:2]]
        yield x[0] - y[0] + (M1 if x[0] <= y[0] else 0), (*x, *y)


def slow_uniform(states, n_draws, size):
    """`Streams.uniform`, number by number, from the state of each stream."""
    streams = [step_by_step(state) for state in states]
    numbers = [next(streams[e % len(streams)])[0] for _draw in range(n_draws) for e in range(size)]
    return (np.array(numbers).astype('float32') * np.float32(4.6566126e-10)).reshape(n_draws, size)


# --- Recorded from Theano -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, n_steps', [('jump_2p72', 2 ** 72), ('jump_2p134', 2 ** 134)])
def test_jumps_are_those_of_theano(name, n_steps):
    for step, modulus, key in ((mrg.STEP1, M1, 'A1'), (mrg.STEP2, M2, 'A2')):
        assert mrg.jump_matrix(step, n_steps, modulus).tolist() == RECORDED[name][key]


def test_streams_begin_and_draw_as_recorded():
    first, second = RECORDED['first_request'], RECORDED['second_request']
    streams = mrg.Streams(42, 0, first['n_streams'])
    assert streams.state[:, :3].T.tolist() == first['states']
    assert streams.uniform(1, first['size'])[0, :30].view('uint32').tolist() == first['bits']
    streams = mrg.Streams(42, 1, second['n_streams'])
    assert streams.state[:, :3].T.tolist() == second['states']
    for size, bits in zip(second['sizes'], second['bits']):
        assert streams.uniform(1, size)[0, :12].view('uint32').tolist() == bits


# --- Against plain integers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('n_steps', [0, 1, 2, 1000])
def test_a_jump_is_as_many_steps(n_steps):
    state, stepped = (12345, 1, 7, 99, 2 ** 31 - 21070, 3), step_by_step((12345, 1, 7, 99, 2 ** 31 - 21070, 3))
    expected = state
    for _ in range(n_steps):
        _d, expected = next(stepped)
    assert tuple(mrg.jump(state, n_steps)) == expected


@pytest.mark.parametrize('seed', [42, 1, 2 ** 32 - 1])
@pytest.mark.parametrize('n_streams, n_draws, size', [(7, 3, 20), (7, 5, 3), (1, 2, 5), (100, 40, 100)])
def test_the_compiled_draws_are_those_of_plain_integers(seed, n_streams, n_draws, size):
    streams = mrg.Streams(seed, 3, n_streams)
    states = streams.state.T.tolist()
    assert states[0] == mrg.jump(mrg.first_state(seed), 3 * 2 ** 134)
    if n_streams > 1:
        assert states[-1] == mrg.jump(states[0], (n_streams - 1) * 2 ** 72)
    assert_array_equal(streams.uniform(n_draws, size), slow_uniform(states, n_draws, size))


def test_a_draw_of_more_numbers_than_streams_begins_again_with_the_first_stream():
    size, streams = mrg.MAX_STREAMS + 1000, mrg.Streams(42, 0)
    states = streams.state.T.tolist()
    assert_array_equal(streams.uniform(2, size), slow_uniform(states, 2, size))


def test_numbers_at_the_ends_of_the_range_are_right():
    """States that random ones do not meet: x, y or a sum reaches its modulus, or x and y are the same."""
    edges = [0, 1, 2, 2 ** 16 - 1, 2 ** 16, 2 ** 30, M2 - 2, M2 - 1]
    rng = np.random.RandomState(0)
    states = [tuple(int(rng.choice(edges)) + 1 * (k == 0) for k in range(6)) for _ in range(2000)]
    states.append((0, 0, 1, 0, 0, (2 ** 7 + 1) * pow(2 ** 15 + 1, -1, M2) % M2))  # x = y = 129, so that d = m1
    streams = mrg.Streams(42, 0, len(states))
    streams.state = np.array(states).T
    assert_array_equal(streams.uniform(5, len(states)), slow_uniform(states, 5, len(states)))


@pytest.mark.parametrize('probability', [0.5, 0.8, 0.3, 0.6, 1e-9, 0.9999999, 1 - 0.1])
def test_below_is_the_comparison_of_the_uniform_numbers(probability):
    expected = mrg.Streams(1, 0).uniform(20, 5000) < np.float32(probability)
    assert_array_equal(mrg.Streams(1, 0).below(20, 5000, probability), expected)
    limit = int(mrg.first_not_below(probability))
    u = np.float32([limit - 1, limit]) * np.float32(4.6566126e-10)
    assert (u < np.float32(probability)).tolist() == [True, False]
    assert mrg.first_not_below(1.0) > M1  # no number is 1


# --- Masks of a model -----------------------------------------------------------------------------------------------


def drawn_by(n_minibatches, n_epochs_before=0, **arguments):
    settings = GRU4Rec(**dict(layers=[5, 3], batch_size=4, dropout_p_hidden=0.3) | arguments).settings(n_items=9)
    return drawn_inputs(settings, n_minibatches, n_epochs_before=n_epochs_before)


def test_each_layer_draws_from_the_streams_of_its_own_request():
    for i, (masks, n) in enumerate(zip(drawn_by(6, feedforward=[2]), (5, 3, 2))):
        assert masks.shape == (6, 4, n)
        assert_array_equal(masks.reshape(6, -1), mrg.Streams(42, i).uniform(6, 4 * n) < np.float32(1 - 0.3))


@pytest.mark.parametrize('n_working', [[4, 4, 3], [4, 4, 4], [4, 3, 3, 1], [2, 1]], ids=str)
def test_as_many_numbers_are_drawn_as_lanes_work_and_idle_lanes_have_empty_masks(n_working):
    lanes = np.array([[lane % 4 < n for lane in (3, 1, 0, 2)] for n in n_working])  # lane 0 leaves first
    masks, streams = draws.Masks(5, 0.7, seed=42, request=2)(lanes), mrg.Streams(42, 2)
    for mask, working in zip(masks, lanes, strict=True):
        assert_array_equal(mask[working].ravel(), streams.below(1, 5 * working.sum(), 0.7)[0])
        assert not mask[~working].any()


def test_a_number_draws_the_first_item_whose_cumulative_share_is_above_it(monkeypatch):
    """As the release's kernel for GPUs does; its scan for CPUs takes the item whose share equals the number.

    The ten recorded runs cannot tell them apart: a number of 24 bits equals one of 59 shares with probability 4e-6, and
    all runs together draw some 14,000.
    """
    third, two_thirds, below = np.float32(1 / 3), np.float32(2 / 3), np.float32(0)
    numbers = [np.float32(0), np.nextafter(third, below), third, np.nextafter(two_thirds, below), two_thirds,
               np.nextafter(np.float32(1), below)]
    monkeypatch.setattr(mrg.Streams, 'part_of_draw', lambda self, first, size: np.array(numbers))
    store = draws.NegativeStore(np.array([7, 7, 7]), 0.5, n_sample=6, sample_store=12, seed=42, request=0)
    assert store(1).tolist() == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize('arguments, n_requests', [({}, 2), (dict(n_sample=3, sample_store=6), 3)], ids=str)
def test_further_trainings_draw_from_further_requests(arguments, n_requests):
    """The store of additional negatives is a request as each mask is, and the first one."""
    masks = [drawn for drawn in drawn_by(6, n_epochs_before=10, **arguments) if drawn.dtype == bool]
    for i, mask in enumerate(masks, n_requests - len(masks)):
        expected = mrg.Streams(42, 10 * n_requests + i).below(6, mask[0].size, 0.7)
        assert_array_equal(mask, expected.reshape(mask.shape))


def test_further_trainings_have_uniform_negatives_of_their_own():
    first, *others = (drawn_by(50, n_epochs_before=n, negatives='uniform')[-1] for n in (0, 1, 2))
    for other in others:
        assert (first != other).mean() > 0.5


def test_seeds_give_masks_of_their_own_and_the_release_seed_those_of_theano():
    assert mrg.first_state(42) == (12345,) * 6
    words = np.random.SeedSequence(7).generate_state(6).tolist()
    assert mrg.first_state(7) == tuple(1 + word % (m - 1) for word, m in zip(words, [M1] * 3 + [M2] * 3))
    states = {mrg.first_state(seed) for seed in range(200)}
    assert len(states) == 200
    assert all(0 < number < modulus for state in states for number, modulus in zip(state, [M1] * 3 + [M2] * 3))
    assert (drawn_by(50, seed=1)[0] != drawn_by(50, seed=2)[0]).mean() > 0.3


def test_what_is_drawn_ahead_is_what_is_drawn_in_turn_and_so_is_the_state_after_each_chunk():
    settings = GRU4Rec([5, 3], batch_size=4, dropout_p_hidden=0.3, negatives='uniform').settings(n_items=9)
    offsets = np.arange(0, 400, 4)

    def drawn(ahead, with_state=True):
        chunks = gru4rec.session_parallel_minibatches(offsets, 4, chunk=7)
        random_inputs = gru4rec.random_inputs(settings, np.ones(9, int))
        return list(draws.with_random_inputs(chunks, random_inputs, ahead, with_state))
    in_turn, before = drawn(False), drawn(True)
    assert not any(state for _chunk, _inputs, state, _is_last in drawn(False, with_state=False))
    assert [is_last for *_drawn, is_last in in_turn] == [False] * (len(in_turn) - 1) + [True]
    assert len(in_turn) == len(before) > 3
    for (chunk, inputs, state, is_last), (other_chunk, others, other_state, other_last) in zip(in_turn, before):
        assert_array_equal(other_chunk.position, chunk.position)
        assert other_last == is_last
        assert inputs.keys() == {'mask0', 'mask1', 'negatives'}
        assert_same_bits(others, inputs)
        assert_same_bits(other_state, state)
