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


def test_three_lanes_walk_through_the_sessions_as_in_figure_2():
    lengths = [4, 2, 6, 2, 3]
    position, starts = drawn(lengths, 3)
    assert named(lengths, position) == [['i1,1', 'i2,1', 'i3,1'],
                                        ['i1,2', 'i4,1', 'i3,2'],
                                        ['i1,3', 'i5,1', 'i3,3']]
    assert named(lengths, position + 1) == [['i1,2', 'i2,2', 'i3,2'],
                                            ['i1,3', 'i4,2', 'i3,3'],
                                            ['i1,4', 'i5,2', 'i3,4']]
    assert starts.tolist() == [[True, True, True], [False, True, False], [False, True, False]]


def test_a_lane_whose_session_ends_takes_the_next_unused_session():
    lengths = [2, 5, 3, 2]
    position, starts = drawn(lengths, 2)
    assert named(lengths, position) == [['i1,1', 'i2,1'], ['i3,1', 'i2,2'], ['i3,2', 'i2,3'], ['i4,1', 'i2,4']]
    assert starts.tolist() == [[True, True], [True, False], [False, False], [True, False]]


def test_a_lane_that_draws_a_one_event_session_waits_for_the_next_round():
    # After the first mini-batch all three lanes end: lane 1 draws session 4, of one event, lane 2 session 5 and lane 3
    # session 6; only then does lane 1 take session 7.
    lengths = [2, 2, 2, 1, 3, 3, 3]
    position, starts = drawn(lengths, 3)
    assert named(lengths, position) == [['i1,1', 'i2,1', 'i3,1'], ['i7,1', 'i5,1', 'i6,1'], ['i7,2', 'i5,2', 'i6,2']]
    assert starts.tolist() == [[True] * 3, [True] * 3, [False] * 3]


def test_one_event_sessions_at_the_beginning_are_skipped_in_rounds():
    lengths = [1, 2, 1, 1, 3, 2]
    position, _starts = drawn(lengths, 3)
    # Round 1: sessions 1, 2, 3.  Round 2: lane 1 draws session 4, lane 3 session 5.  Round 3: lane 1 draws session 6.
    assert named(lengths, position) == [['i6,1', 'i2,1', 'i5,1']]


def test_with_the_tail_lanes_fall_idle_one_by_one():
    lengths = [2, 4, 2]
    position, starts = drawn(lengths, 2, drop_tail=False)
    assert named(lengths, position) == [['i1,1', 'i2,1'], ['i3,1', 'i2,2'], ['-', 'i2,3']]
    assert starts.tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize('batch_size', [1, 2, 7, 50])
def test_with_the_tail_every_event_that_has_a_next_one_is_an_input_once(batch_size):
    lengths = np.random.RandomState(3).randint(1, 6, 40)
    position, starts = drawn(lengths, batch_size, drop_tail=False)
    offsets = offsets_of(lengths)
    last_of_session = offsets[1:] - 1
    assert_array_equal(np.sort(position[position >= 0]), np.setdiff1d(np.arange(offsets[-1]), last_of_session))
    assert_array_equal(np.sort(position[starts]), offsets[:-1][lengths > 1])


def test_fewer_sessions_than_lanes_give_no_minibatch_unless_the_tail_is_kept():
    assert len(drawn([3, 2], 3)[0]) == 0
    assert named([3, 2], drawn([3, 2], 3, drop_tail=False)[0]) == [['i1,1', 'i2,1', '-'], ['i1,2', '-', '-']]


def test_the_tail_ends_where_fewer_lanes_than_asked_for_are_left():
    assert len(drawn([2, 4, 2], 2, drop_tail=False, fewest_lanes=2)[0]) == 2


def test_sessions_are_used_in_the_given_order():
    lengths = [2, 3, 2, 4]
    position, starts = drawn(lengths, 2, order=np.array([3, 0, 2, 1]))
    assert named(lengths, position) == [['i4,1', 'i1,1'], ['i4,2', 'i3,1'], ['i4,3', 'i2,1']]
    assert starts.tolist() == [[True, True], [False, True], [False, True]]


@pytest.mark.parametrize('drop_tail', [True, False])
@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 8, 1000])
def test_the_length_of_a_chunk_does_not_change_the_minibatches(chunk, drop_tail):
    lengths = np.random.RandomState(1).randint(1, 7, 25)
    chunks = list(session_parallel_minibatches(offsets_of(lengths), 4, chunk=chunk, drop_tail=drop_tail))
    position, starts = drawn(lengths, 4, drop_tail=drop_tail)
    assert_array_equal(np.concatenate([s.position for s in chunks]), position)
    assert_array_equal(np.concatenate([s.starts for s in chunks]), starts)
    assert [len(s.position) for s in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1].position) <= chunk


def test_a_chunk_is_not_overwritten_by_the_next_one():
    lengths = np.random.RandomState(1).randint(2, 7, 25)
    kept, copies = [], []
    for chunk in session_parallel_minibatches(offsets_of(lengths), 4, chunk=3):
        kept.append(chunk)
        copies.append((chunk.position.copy(), chunk.starts.copy()))
    assert len(kept) > 2
    for chunk, (position, starts) in zip(kept, copies):
        assert_array_equal(chunk.position, position)
        assert_array_equal(chunk.starts, starts)


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
