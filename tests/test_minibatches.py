"""Session-parallel mini-batches against Figure 2 of the paper drawn by hand, and against a plain loop."""
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy_gru4rec import minibatches

from gru4rec import session_parallel_minibatches


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def drawn(lengths, batch_size, **options):
    """Positions and starts of all mini-batches, (n, B) each."""
    chunks = list(session_parallel_minibatches(offsets_of(lengths), batch_size, **options))
    empty = np.zeros((0, batch_size), dtype=int)
    return (np.concatenate([empty, *(s.position for s in chunks)]),
            np.concatenate([empty.astype(bool), *(s.starts for s in chunks)]))


def named(lengths, position):
    """Events by number and place, such as 'i3,2' for the second event of the third session; '-' for an idle lane."""
    names = [f'i{session},{event}' for session, n in enumerate(lengths, start=1) for event in range(1, n + 1)]
    return [[names[p] if p >= 0 else '-' for p in row] for row in position]


@pytest.mark.parametrize('lengths, batch_size, options, expected', [
    pytest.param([4, 2, 6, 2, 3], 3, {}, ['i1,1 i2,1 i3,1', 'i1,2 i4,1 i3,2', 'i1,3 i5,1 i3,3'], id='figure 2'),
    pytest.param([2, 5, 3, 2], 2, {}, ['i1,1 i2,1', 'i3,1 i2,2', 'i3,2 i2,3', 'i4,1 i2,4'],
                 id='a lane whose session ends takes the next unused one'),
    # After the first mini-batch all three lanes end: lane 1 draws session 4, of one event, lane 2 session 5 and lane 3
    # session 6; only then does lane 1 take session 7.
    pytest.param([2, 2, 2, 1, 3, 3, 3], 3, {}, ['i1,1 i2,1 i3,1', 'i7,1 i5,1 i6,1', 'i7,2 i5,2 i6,2'],
                 id='a lane that draws a session of one event waits for the next round'),
    # Round 1: sessions 1, 2, 3.  Round 2: lane 1 draws session 4, lane 3 session 5.  Round 3: lane 1 draws session 6.
    pytest.param([1, 2, 1, 1, 3, 2], 3, {}, ['i6,1 i2,1 i5,1'], id='sessions of one event are skipped in rounds'),
    pytest.param([2, 3, 2, 4], 2, dict(order=np.array([3, 0, 2, 1])), ['i4,1 i1,1', 'i4,2 i3,1', 'i4,3 i2,1'],
                 id='sessions in the given order'),
    pytest.param([2, 4, 2], 2, dict(drop_tail=False), ['i1,1 i2,1', 'i3,1 i2,2', '- i2,3'],
                 id='with the tail lanes fall idle one by one'),
    pytest.param([2, 4, 2], 2, dict(drop_tail=False, fewest_lanes=2), ['i1,1 i2,1', 'i3,1 i2,2'],
                 id='the tail ends where fewer lanes than asked for are left'),
    pytest.param([3, 2], 3, {}, [], id='fewer sessions than lanes'),
    pytest.param([3, 2], 3, dict(drop_tail=False), ['i1,1 i2,1 -', 'i1,2 - -'], id='fewer sessions than lanes: a tail'),
])
def test_lanes_walk_through_the_sessions_as_drawn_by_hand(lengths, batch_size, options, expected):
    position, starts = drawn(lengths, batch_size, **options)
    assert named(lengths, position) == [row.split() for row in expected]
    assert starts.tolist() == [[name.endswith(',1') for name in row.split()] for row in expected]


@pytest.mark.parametrize('batch_size', [1, 2, 7, 50])
def test_with_the_tail_every_event_that_has_a_next_one_is_an_input_once(batch_size):
    lengths = np.random.RandomState(3).randint(1, 6, 40)
    position, starts = drawn(lengths, batch_size, drop_tail=False)
    offsets = offsets_of(lengths)
    last_of_session = offsets[1:] - 1
    assert_array_equal(np.sort(position[position >= 0]), np.setdiff1d(np.arange(offsets[-1]), last_of_session))
    assert_array_equal(np.sort(position[starts]), offsets[:-1][lengths > 1])


@pytest.mark.parametrize('drop_tail', [True, False])
@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 8, 1000])
def test_the_length_of_a_chunk_does_not_change_the_minibatches(chunk, drop_tail):
    lengths = np.random.RandomState(1).randint(1, 7, 25)
    # All are held, so that one which overwrites another is seen.
    chunks = list(session_parallel_minibatches(offsets_of(lengths), 4, chunk=chunk, drop_tail=drop_tail))
    position, starts = drawn(lengths, 4, drop_tail=drop_tail)
    assert_array_equal(np.concatenate([s.position for s in chunks]), position)
    assert_array_equal(np.concatenate([s.starts for s in chunks]), starts)
    assert [len(s.position) for s in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1].position) <= chunk


@pytest.mark.parametrize('seed', range(20))
def test_minibatches_are_those_of_a_plain_loop_over_lanes(seed):
    rng = np.random.RandomState(seed)
    lengths = rng.randint(1, 2 + rng.randint(1, 8), rng.randint(8, 60))
    batch_size = rng.randint(1, 8)
    order = rng.permutation(len(lengths)) if seed % 2 else None
    expected = minibatches(lengths.tolist(), batch_size, order)
    position, starts = drawn(lengths, batch_size, order=order, chunk=7)
    assert_array_equal(position, [inputs for inputs, _, _ in expected] or np.zeros((0, batch_size)))
    assert_array_equal(position + 1, [targets for _, targets, _ in expected] or np.zeros((0, batch_size)))
    assert_array_equal(starts, [fresh for _, _, fresh in expected] or np.zeros((0, batch_size)))
