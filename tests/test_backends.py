"""The compiled loop, the approximations of the fast backend, and the backends against one another."""
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import PROMISE, TRAIN, assert_close, assert_same_bits, few_items_log, needs_jax, small_model, state_of
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.compile.mode import Mode
from pytensor.graph.op import Op
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key
from pytensor.tensor import subtensor
from pytensor.tensor.elemwise import Elemwise

import gru4rec
from gru4rec_pytensor import backends
from gru4rec_pytensor.backends import numba_ops, numba_rows, numba_tricks, python_ops
from gru4rec_pytensor.backends.common import RowUpdate, version_of
from gru4rec_pytensor.floats import float_order

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

import yardstick

# --- The loop over a chunk of mini-batches --------------------------------------------------------------------------


@pytest.fixture(scope='module', params=['numba', 'python', pytest.param('jax', marks=needs_jax)])
def loop(request):
    """x -> x y + row sum, y -> 2 y, output the sum of log x before that; with x and y."""
    x = pytensor.shared(np.array([1, 3], dtype='float32'), name='x', shape=(2,))
    y = pytensor.shared(np.float32(1), name='y')
    row = pt.fvector('row')
    updates = {x: x * y + row.sum(dtype='float32', acc_dtype='float32'), y: 2 * y}
    return backends.compile_loop({'row': row}, pt.log(x).sum(), updates, backend=request.param), x, y


def run(loop, rows):
    """Outputs, and both variables after them."""
    function, x, y = loop
    x.set_value(np.array([1, 3], dtype='float32'))
    y.set_value(np.float32(1))
    with np.errstate(all='ignore'):
        outputs = function({'row': np.array(rows, dtype='float32')})
    return outputs, np.asarray(x.get_value()), float(y.get_value())


def test_a_loop_hands_the_updated_variables_to_the_next_step(loop):
    outputs, x, y = run(loop, [[1, 1], [0, 1], [2, 3]])
    # x: [1, 3] -> [3, 5] -> [7, 11] -> [33, 49]
    assert_allclose(outputs, np.log([3, 15, 77]), rtol=1e-6)
    assert x.tolist() == [33, 49] and y == 8


def test_a_loop_continues_from_where_the_last_call_ended(loop):
    run(loop, [[1, 1]])
    outputs = loop[0]({'row': np.array([[0, 1], [2, 3]], dtype='float32')})
    assert_allclose(outputs, np.log([15, 77]), rtol=1e-6)
    assert np.asarray(loop[1].get_value()).tolist() == [33, 49]


@pytest.mark.parametrize('rows, outputs', [
    ([[1, 1], [-4, -3], [5, 5], [5, 5]], [np.log(3), np.log(15), np.nan]),  # x becomes [-1, 3]
    ([[1, 1], [-3, -3], [5, 5], [5, 5]], [np.log(3), np.log(15), -np.inf]),  # x becomes [0, 4]
    ([[-1, -1], [5, 5], [5, 5]], [np.log(3), np.nan]),  # x becomes [-1, 1]
    ([[-1, -1], [5, 5]], [np.log(3), np.nan]),  # at its last row
])
def test_a_loop_stops_after_the_first_output_that_is_not_finite(loop, rows, outputs):
    actual, _x, y = run(loop, rows)
    assert_allclose(actual, outputs, rtol=1e-6)
    assert y == 2 ** len(outputs)  # no step was run after it


# --- tanh, sigmoid and exp of the fast backend ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def fast():
    """tanh, sigmoid and exp as the fast backend compiles them."""
    x = pt.fvector('x')
    return backends.compile_function([x], [pt.tanh(x), pt.sigmoid(x), pt.exp(x)], backend='numba')


GRID = np.linspace(-20, 20, 2_000_001).astype('float32')


def test_tanh_is_within_3e_7_and_sigmoid_within_2e_7_of_the_exact_ones(fast):
    x = GRID.astype('float64')
    tanh, sigmoid, _exp = fast(GRID)
    assert np.abs(tanh - np.tanh(x)).max() < 3e-7
    assert np.abs(sigmoid - 1 / (1 + np.exp(-x))).max() < 2e-7


def test_exp_is_within_a_relative_2e_7_of_the_exact_one_and_sigmoid_within_3e_7(fast):
    x = np.linspace(-87, 88, 2_000_001).astype('float32')
    exact = np.exp(x.astype('float64'))
    _tanh, sigmoid, exp = fast(x)
    assert (np.abs(exp - exact) / exact).max() < 2e-7
    assert np.abs(sigmoid * (1 + 1 / exact) - 1).max() < 3e-7


def test_the_approximations_stay_in_the_range_of_the_functions(fast):
    x = np.concatenate([GRID, np.float32([-np.inf, -1e30, -100, 100, 1e30, np.inf])])
    tanh, sigmoid, exp = fast(x)
    assert (np.abs(tanh) <= 1).all()
    assert (sigmoid >= 0).all() and (sigmoid <= 1).all()
    assert (exp > 0).all() and np.isfinite(exp).all()
    assert_allclose(tanh[[-6, -5, -4, -3, -2, -1]], [-1, -1, -1, 1, 1, 1], rtol=0, atol=3e-7)
    assert_allclose(sigmoid[[-6, -5, -4, -3, -2, -1]], [0, 0, 0, 1, 1, 1], rtol=0, atol=2e-7)
    assert_allclose(exp[[-6, -5, -4]], 0, rtol=0, atol=1e-37)


def test_nan_goes_through_the_approximations(fast):
    for values in fast(np.float32([np.nan, 0, np.nan])):
        assert np.isnan(values).tolist() == [True, False, True]


def test_float64_is_left_exact():
    x = pt.dvector('x')
    function = backends.compile_function([x], [pt.tanh(x), pt.sigmoid(x)], backend='numba')
    values = np.linspace(-5, 5, 101)
    tanh, sigmoid = function(values)
    assert_allclose(tanh, np.tanh(values), rtol=1e-14)
    assert_allclose(sigmoid, 1 / (1 + np.exp(-values)), rtol=1e-14)


@pytest.mark.parametrize('function', [numba_ops.tanh, numba_ops.sigmoid, numba_ops.exp])
def test_a_loop_of_an_approximation_is_made_of_vectors(function):
    @numba.njit
    def loop(x, y):
        for i in range(len(x)):
            y[i] = function(x[i])

    loop(GRID, GRID.copy())
    (code,) = loop.inspect_llvm().values()
    assert re.search(r'fmul (?:\w+ )*<\d+ x float>', code)


# --- Operations of the fast backend that vectorise ------------------------------------------------------------------


def random_matrix(*shape):
    return np.random.RandomState(0).randn(*shape).astype('float32')


def updated(table, values, rows, store=False):
    """A table with each value added to its row, or stored there: the last of a repeated row."""
    table = table.copy()
    if store:
        table[rows] = values
    else:
        np.add.at(table, rows, values)
    return table


X, ROWS = pt.fmatrix('x'), pt.lvector('rows')
WIDE, TABLE, BLOCK = (pt.matrix(name, dtype='float32', shape=shape) for name, shape in (
    ('wide', (None, 12)), ('table', (5, 9)), ('block', (4, 9))))
TABLE_AND_ROWS = [random_matrix(5, 9), random_matrix(4, 9), np.array([3, 0, 3, -1])]
# Inputs and outputs of expressions that the fast backend rewrites, the same in NumPy, arguments.
REWRITTEN = {
    'column sums': ([X], [X.sum(axis=0)], lambda x: [x.sum(axis=0)], [random_matrix(7, 21)]),
    'row maxima': ([X], [X.max(axis=1)], lambda x: [x.max(axis=1)], [random_matrix(7, 21)]),
    'row maxima of one column': ([X], [X.max(axis=1)], lambda x: [x.max(axis=1)], [random_matrix(7, 1)]),
    'row maxima with signs and infinities': ([X], [X.max(axis=1)], lambda x: [x.max(axis=1)], [np.float32([
        [-3, -1, -2], [-3, -2, -1], [-np.inf, -np.inf, -np.inf], [1, np.inf, 2], [-0.0, -1, -2], [-1e-45, -1, -2],
        [3e38, -3e38, 0]])]),
    'thirds': ([WIDE], pt.split(WIDE, [4, 4, 4], n_splits=3, axis=1), lambda x: np.split(x, 3, axis=1),
               [random_matrix(6, 12)]),
    'rows increased': ([TABLE, BLOCK, ROWS], [pt.inc_subtensor(TABLE[ROWS], BLOCK)], lambda *given: [updated(*given)],
                       TABLE_AND_ROWS),
    'rows set': ([TABLE, BLOCK, ROWS], [pt.set_subtensor(TABLE[ROWS], BLOCK)],
                 lambda *given: [updated(*given, store=True)], [*TABLE_AND_ROWS[:2], np.array([3, 0, 2, -1])]),
    'rows increased by one column': ([TABLE, X, ROWS], [pt.inc_subtensor(TABLE[ROWS], X)],
                                     lambda *given: [updated(*given)], TABLE_AND_ROWS)}


@pytest.mark.parametrize('name', REWRITTEN)
def test_a_rewritten_operation_gives_what_numpy_gives(name):
    inputs, outputs, in_numpy, arguments = REWRITTEN[name]
    with pytensor.config.change_flags(floatX='float32'):
        function = backends.compile_function([pytensor.In(variable, mutable=True) for variable in inputs], outputs,
                                             backend='numba')
    actual, tolerance = function(*[argument.copy() for argument in arguments]), 0 if 'maxima' in name else 1e-6
    for value, right in zip(actual, in_numpy(*arguments), strict=True):
        assert_allclose(value, right, rtol=tolerance, atol=tolerance)


def rewritten_nodes(inputs, outputs, updates=None):
    """Nodes of a graph as Numba would get it, with those of inner graphs; nothing is compiled."""
    mode = Mode('py', numba_tricks.numba_mode().provided_optimizer)
    nodes = []

    def add_nodes(fgraph):
        for node in fgraph.toposort():
            nodes.append(node)
            if hasattr(node.op, 'fgraph'):
                add_nodes(node.op.fgraph)

    with pytensor.config.change_flags(cxx=''):  # nor in C, as the graphs inside some operations would be
        add_nodes(pytensor.function(inputs, outputs, updates=updates, mode=mode).maker.fgraph)
    return nodes


def names_of_operations(nodes):
    """Names of the classes of operations, of what stands in their loops, and of the types in which sums add up."""
    return {type(op).__name__ for node in nodes for op in (node.op, getattr(node.op, 'scalar_op', None))} | {
        getattr(node.op, 'acc_dtype', None) for node in nodes}


@pytest.fixture
def rows_updated():
    """Inputs, outputs and updates of a graph that changes rows by what it also returns, and by what it only stores."""
    table, squares = (pytensor.shared(random_matrix(5, 9), name=name, shape=(5, 9)) for name in ('table', 'squares'))
    block, rows = pt.matrix('block', dtype='float32', shape=(4, 9)), pt.vector('rows', dtype='int64', shape=(4,))
    step = block * 2 - pt.exp(table[rows])
    updates = {table: pt.inc_subtensor(table[rows], step), squares: pt.set_subtensor(squares[rows], step ** 2)}
    return [block, rows], [step, step.sum()], updates


HAS_ROW_UPDATE = hasattr(subtensor, 'AdvancedIncSubtensor1')  # later versions of PyTensor have good loops for it


def test_only_equal_parts_of_columns_are_taken_apart_by_an_operation_of_ours():
    for sizes, axis, is_ours in (([4, 4, 4], 1, True), ([6, 2, 4], 1, False), ([2, 2, 2], 0, False)):
        nodes = rewritten_nodes([WIDE], pt.split(WIDE, sizes, n_splits=3, axis=axis))
        assert ('SplitColumns' in names_of_operations(nodes)) == is_ours


@pytest.fixture(params=[False, True], ids=['all change', 'some change'])
def many_rows_updated(request):
    """Inputs, an output and updates of a graph that reads and changes 600 rows, which occur several times, of two
    matrices and a vector."""
    matrices = [pytensor.shared(random_matrix(50, 9), name=name, shape=(50, 9)) for name in ('table', 'squares')]
    bias = pytensor.shared(random_matrix(50, 1)[:, 0], name='bias', shape=(50,))
    block, rows = pt.matrix('block', dtype='float32', shape=(600, 9)), pt.vector('rows', dtype='int64', shape=(600,))
    changes = pt.vector('changes', dtype='bool', shape=(600,)) if request.param else None
    table, squares = matrices
    step = block * 2 - pt.exp(table[rows]) * squares[rows] + pt.ones(9, 'float32')
    updates = {table: backends.row_update(table, rows, step, changes, store=False),
               squares: backends.row_update(squares, rows, step ** 2, changes, store=True),
               bias: backends.row_update(bias, rows, block[:, 0] * bias[rows], changes, store=False)}
    return [block, rows, *[changes] * request.param], pt.sum(table[rows]), updates


def test_each_trick_can_be_switched_off(monkeypatch, rows_updated, many_rows_updated):
    outputs = [pt.tanh(WIDE).sum(axis=0), WIDE.max(axis=1), *pt.split(WIDE, [4, 4, 4], n_splits=3, axis=1)]
    operation = {'fast_activations': 'FastTanh', 'unfused_column_sums': 'ColumnSums', 'integer_maxima': 'RowMaxima',
                 'contiguous_splits': 'SplitColumns', 'inlined_bodies': 'InlinedComposite',
                 'joint_row_updates': 'JointRowUpdate', 'rows_read_ahead': 'ReadRows',
                 'sums_in_own_precision': 'float32'}
    assert {*operation, 'tables_in_place', 'row_updates'} == backends.TRICKS.keys()

    def names():
        graphs = ([WIDE], outputs, None), rows_updated, many_rows_updated
        return names_of_operations([node for graph in graphs for node in rewritten_nodes(*graph)])

    assert names() >= set(operation.values()) and not names() & {'Composite', 'float64'}
    for trick, name in operation.items():
        monkeypatch.setenv('GRU4REC_WITHOUT', trick)
        assert set(operation.values()) - names() == {name}
    for trick, is_there in (('', HAS_ROW_UPDATE), ('row_updates', False)):
        monkeypatch.setenv('GRU4REC_WITHOUT', trick)
        assert ('RowUpdate' in names_of_operations(rewritten_nodes(*rows_updated))) == is_there


def test_updates_of_many_rows_overwrite_the_shared_arrays_themselves(monkeypatch, many_rows_updated):
    def overwritten():
        return {node.inputs[i].name for node in rewritten_nodes(*many_rows_updated)
                for (i,) in getattr(node.op, 'destroy_map', {}).values()} & {'table', 'squares', 'bias'}

    assert overwritten() == {'table', 'squares', 'bias'}
    monkeypatch.setenv('GRU4REC_WITHOUT', 'tables_in_place')
    assert not overwritten()


@pytest.mark.parametrize('without', [pytest.param('', marks=PROMISE), *[
    pytest.param(tricks, marks=pytest.mark.slow) for tricks in (
        'tables_in_place', 'joint_row_updates,rows_read_ahead')]])
def test_many_rows_are_updated_as_by_a_loop_over_the_occurrences(monkeypatch, many_rows_updated, without):
    monkeypatch.setenv('GRU4REC_WITHOUT', without)
    inputs, output, updates = many_rows_updated
    rng = np.random.RandomState(0)
    block, rows, changes = random_matrix(600, 9), rng.randint(50, size=600), rng.rand(600) < 0.5
    before = {variable.name: variable.get_value().astype('float64') for variable in updates}
    expected = {name: value.copy() for name, value in before.items()}
    step = block * 2 - np.exp(before['table'][rows]) * before['squares'][rows] + 1
    for i, row in enumerate(rows):
        if changes[i] or len(inputs) == 2:
            expected['table'][row] += step[i]
            expected['squares'][row] = step[i] ** 2
            expected['bias'][row] += block[i, 0] * before['bias'][row]
    values = [block, rows, changes][:len(inputs)]
    for backend in ['numba', 'python'] if not without else ['numba']:
        for variable in updates:
            variable.set_value(before[variable.name].astype('float32'))
        total = backends.compile_function(inputs, output, updates, backend=backend)(*values)
        assert_allclose(total, before['table'][rows].sum(), rtol=1e-5)
        for variable in updates:
            assert_allclose(variable.get_value(), expected[variable.name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('store', [False, True])
def test_an_update_of_rows_takes_indices_from_the_end(store):
    op, results = RowUpdate(store), [[None]]
    node = op.make_node(X, X, ROWS)
    in_numba, _key = numba_funcify_and_cache_key(op, node=node)
    op.perform(node, TABLE_AND_ROWS, results)
    expected = updated(*TABLE_AND_ROWS, store)
    assert_array_equal(results[0][0], expected)
    assert_array_equal(numba.njit(lambda *arrays: in_numba(*arrays))(*TABLE_AND_ROWS), expected)


def test_a_trick_that_is_not_there_cannot_be_switched_off(monkeypatch):
    monkeypatch.setenv('GRU4REC_WITHOUT', 'fast_activations,magic')
    with pytest.raises(ValueError, match='magic.*must be one of fast_activations, '):
        numba_tricks.numba_mode()


def test_the_interpreter_adds_and_multiplies_two_arrays_at_a_time():
    """NumPy's functions take two; an operation of more would go through the elements one by one, in Python."""
    x, y, z = (pt.fmatrix(name) for name in 'xyz')
    function = backends.compile_function([x, y, z], [x + y + z + y, x * y * z], backend='python')
    assert {len(node.inputs) for node in function.maker.fgraph.apply_nodes} == {2}
    values = random_matrix(3, 40, 5)
    total, product = function(*values)
    assert_array_equal(product, values[0] * values[1] * values[2])
    assert_allclose(total, values.sum(axis=0) + values[1], rtol=1e-6, atol=1e-6)


def test_the_interpreter_calls_numpy_once_for_an_operation_and_gives_the_bits_of_pytensor(monkeypatch):
    a, b, c = (pt.matrix(name, dtype=kind) for name, kind in (('a', 'float32'), ('b', 'float32'), ('c', 'int8')))
    outputs = [a + b[0], a * b, -a, pt.sigmoid(a), pt.tanh(a), pt.exp(a), pt.log(a), a ** 2, pt.sqrt(a), a / b, a > b,
               pt.neq(a, b), pt.maximum(a, b), pt.switch(c, a, b), pt.switch(a > b, a, np.float32(0)), c + c, pt.exp(c),
               c / 7, pt.log1p(pt.exp(a)), pt.cast(a, 'int32')]
    arrays = [*random_matrix(2, 40, 5), np.random.RandomState(1).randint(-3, 4, (40, 5)).astype('int8')]
    calls = backends.compile_function([a, b, c], outputs, backend='python')
    monkeypatch.setattr(python_ops, 'is_numpy_call', lambda node: False)
    pytensors = pytensor.function([a, b, c], outputs, mode=python_ops.python_mode())
    kept, before = ([str(node.op.scalar_op) for node in function.maker.fgraph.apply_nodes
                     if isinstance(node.op, Elemwise)] for function in (calls, pytensors))
    assert len(before) > 15 and set(kept) == {'exp', 'Softplus', 'Cast{int32}'}
    with np.errstate(all='ignore'):
        for output, result, expected in zip(outputs, calls(*arrays), pytensors(*arrays)):
            assert result.dtype == expected.dtype
            assert_array_equal(result, expected, err_msg=str(output.owner))


# --- Other users of PyTensor in the same process --------------------------------------------------------------------


@pytest.mark.promise
def test_importing_the_project_changes_nothing_for_other_users_of_pytensor():
    """The code of a foreign graph, and all settings of the process."""
    script = Path(__file__).with_name('other_users.py')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''


# --- The order of floats --------------------------------------------------------------------------------------------


def test_the_order_of_floats_is_that_of_whole_numbers_without_gaps():
    floats = np.float32([-np.inf, -3e38, -1, -1e-45, -0.0, 0, 1e-45, 1, 3e38, np.inf])
    order = float_order(floats.view(np.int32))
    assert order.dtype == np.int32 and (np.diff(order.astype('int64')) > 0).all()
    assert order[3:7].tolist() == [-2, -1, 0, 1]
    neighbours = np.nextafter(floats[[1, 2, 7, 8]], np.float32(np.inf))
    assert_array_equal(float_order(neighbours.view(np.int32)), order[[1, 2, 7, 8]] + 1)
    assert_array_equal(float_order(order).view(np.float32), floats)


# --- Code on disk ---------------------------------------------------------------------------------------------------


OWN_OPERATIONS = {op for room in (numba_ops, numba_rows) for op in vars(room).values()
                  if isinstance(op, type) and issubclass(op, Op) and op.__module__ == room.__name__}
OWN_OPERATIONS.add(RowUpdate)


def keys_of_own_operations(nodes):
    """Class of each operation of ours, or of the body of a loop -> keys under which its code is found again on disk."""
    keys = {}
    for node in nodes:
        if isinstance(node.op, Elemwise):
            node = node.op.make_scalar_node(*node.inputs)
        if type(node.op) in OWN_OPERATIONS:
            _compiled, key = numba_funcify_and_cache_key(node.op, node=node)
            keys.setdefault(type(node.op), set()).add(key)
    return keys


def test_code_of_an_operation_is_not_found_again_once_the_file_that_makes_it_has_changed(
        monkeypatch, rows_updated, many_rows_updated):
    nodes = rewritten_nodes([WIDE], [pt.exp(WIDE[0]), pt.tanh(WIDE[:, 0]), pt.sigmoid(WIDE[:1]), WIDE.sum(axis=0),
                                     WIDE.max(axis=1), *pt.split(WIDE, [4, 4, 4], n_splits=3, axis=1)])
    nodes += rewritten_nodes(*rows_updated) + rewritten_nodes(*many_rows_updated)
    before = keys_of_own_operations(nodes)
    assert before.keys() == OWN_OPERATIONS
    assert keys_of_own_operations(nodes) == before
    monkeypatch.setattr(numba_ops, 'VERSION', 0)
    monkeypatch.setattr(numba_rows, 'VERSION', 0)
    after = keys_of_own_operations(nodes)
    assert all(not before[op] & after[op] for op in before)


def test_code_of_a_loop_is_not_found_again_once_the_file_that_makes_it_has_changed(monkeypatch, rows_updated):
    inputs, (_step, total), updates = rows_updated

    def key():
        loop = backends.compile_loop(dict(enumerate(inputs)), total, updates, backend='numba')
        return CACHED_SRC_FUNCTIONS[loop._loop.py_func]

    first = key()
    assert key() == first
    monkeypatch.setattr(backends, 'VERSION', 0)
    assert key() != first


def test_a_disk_that_is_full_is_one_error_that_says_which_and_what_to_set(monkeypatch):
    def full(*_arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('numba.core.caching.IndexDataCacheFile._save_data', full)
    x = pt.fvector('x')
    new = np.float32(np.random.default_rng().random())  # in no cache yet
    step = backends.compile_step({'x': x}, {'product': x * new}, backend='numba')
    with pytest.raises(OSError, match='cannot be written to .*nbi: No space left.*set PYTENSOR_FLAGS=base_compiledir='):
        step({'x': np.ones(3, 'float32')})


@pytest.mark.parametrize('backend', ['numba', 'python'])
def test_a_step_takes_what_its_inputs_take_and_leaves_them_and_its_results_alone(backend):
    x, n = pt.fmatrix('x'), pt.lscalar('n')
    outputs = {'same': x, 'product': x.T * pt.cast(n, 'float32')}
    step = backends.compile_step({'x': x, 'n': n}, outputs, backend=backend)
    given = random_matrix(3, 5)
    for matrix in (given, np.asfortranarray(given), given[::-1], given.astype('float16')):
        before = matrix.copy()
        same, product = step({'x': matrix, 'n': np.int8(3)}).values()
        assert_array_equal(same, before)
        assert_array_equal(product, before.astype('float32').T * 3)
        same += 1
        assert_array_equal(matrix, before)
        assert_array_equal(product, before.astype('float32').T * 3)
    for wrong in ((given, 0.5), (given[0], 3), (given.astype('float64'), 3)):
        with pytest.raises(TypeError):
            step(dict(zip('xn', wrong)))
    for missing in ({'x': given}, {'x': given, 'n': 3, 'm': 3}):
        with pytest.raises(ValueError, match=r"inputs are \['n', 'x'\]; got"):
            step(missing)


def test_the_version_of_a_file_is_another_when_a_byte_of_it_is(tmp_path):
    versions = []
    for text in ('x = 1', 'x = 2', 'x = 1'):
        (tmp_path / 'code.py').write_text(text)
        versions.append(version_of(tmp_path / 'code.py'))
    assert versions[0] == versions[2] != versions[1]


# --- The step by hand -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # compiles a training step for the benchmark's sake
def test_the_step_that_the_benchmark_writes_by_hand_is_that_of_the_graph():
    model = small_model(layers=[5], n_epochs=1, batch_size=7, dropout_p_hidden=0.4, learning_rate=0.1)
    model.fit(few_items_log())  # for weights and accumulators that are not those of the start
    weights, acc = ({name: variable.get_value() for name, variable in variables.items()}
                    for variables in model.variables_[:2])
    rng = np.random.RandomState(0)
    events, position = rng.randint(model.n_items, size=50), rng.randint(49, size=(12, 7))
    starts, masks = rng.rand(12, 7) < 0.3, rng.rand(12, 7, 5) < 0.6
    states = {'H0': gru4rec.shared('H0', np.zeros((7, 5), 'float32'))}
    with pytensor.config.change_flags(floatX='float32'):
        step = gru4rec.training_step(model.settings(), gru4rec.shared('events', events), model.variables_, states)
    losses = backends.compile_loop(*step, backend='python')({'position': position, 'starts': starts, 'mask0': masks})

    names = ('W0', 'B0', 'Wh0', 'Whr0', 'Whz0', 'Wy', 'By')
    by_hand, H = np.empty(12, 'float32'), np.zeros((7, 5), 'float32')
    yardstick.run(events[position], events[position + 1], starts, masks, np.float32(1 / 0.6), np.float32(0.1),
                  *[weights[name] for name in names], *[acc[name] for name in names], H, by_hand)
    assert_allclose(by_hand, losses, rtol=0, atol=1e-5)
    assert_allclose(H, states['H0'].get_value(), rtol=0, atol=1e-5)
    assert_close(weights, {name: variable.get_value() for name, variable in model.variables_.weights.items()}, 1e-5)
    assert_close(acc, {name: variable.get_value() for name, variable in model.variables_.acc.items()}, 1e-5)


# --- One backend against the other ----------------------------------------------------------------------------------


DROPOUT = dict(layers=[10], n_epochs=3, batch_size=8, dropout_p_hidden=0.5, learning_rate=0.05)  # as recorded


@pytest.mark.parametrize('backend', ['numba', pytest.param('jax', marks=[needs_jax, PROMISE])])
def test_backends_draw_the_same_dropout_masks_and_session_orders(backend):
    fast, slow = (small_model(**DROPOUT, train_random_order=True, backend=name).fit(TRAIN)
                  for name in (backend, 'python'))
    assert_close(state_of(fast), state_of(slow), 1e-5)


@pytest.mark.promise
def test_the_fast_backend_gives_the_same_bits_for_the_same_seed():
    first, again, other = (state_of(small_model(**DROPOUT, seed=seed, backend='numba').fit(few_items_log()))
                           for seed in (1, 1, 2))
    assert_same_bits(first, again)
    for name in first:
        assert (first[name] != other[name]).any(), name


@pytest.mark.promise
def test_auto_is_the_fast_backend_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(backends, '_gpu', lambda: False)
    default = gru4rec.GRU4Rec(**DROPOUT).fit(few_items_log())
    assert default.backend == 'auto' and default.backend_ == 'numba'
    assert_same_bits(state_of(default), state_of(small_model(**DROPOUT, backend='numba').fit(few_items_log())))
