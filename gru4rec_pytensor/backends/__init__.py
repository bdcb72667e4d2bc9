"""How a symbolic graph becomes a program: the only module that knows a linker.

The model (`gru4rec.py`) hands over a step, written once in symbols, and gets back a function that runs it on
a whole stretch of mini-batches.  Three backends are offered:

* ``'numba'``: machine code for the CPU.  The step and the loop over mini-batches around it are one compiled function,
  so that no Python runs between two mini-batches.
* ``'jax'``: the same for a GPU, through JAX and XLA; works on a CPU too.  Needs JAX, an extra of the package.
* ``'python'``: PyTensor's own interpreter.  Compiles in a second and runs slowly: for tests and for looking inside.

``'auto'`` is JAX where it sees a GPU, and Numba elsewhere.
"""
from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.executor import Function
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_njit,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.scalar.basic import Composite, Exp, Tanh, same_out
from pytensor.scalar.math import Sigmoid
from pytensor.tensor import subtensor
from pytensor.tensor.basic import Split
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Max, Sum
from pytensor.tensor.variable import TensorVariable
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from jax import Array

logger = logging.getLogger('gru4rec')

BACKENDS = ('auto', 'numba', 'jax', 'python')
FLOAT = 'float32'  # of weights and scores, as in the release's own scripts

# Compiled functions are found again on disk by keys that hold this: they must change when their code does.
VERSION = int(sha256(Path(__file__).read_bytes()).hexdigest()[:12], 16)


def switched_off() -> set[str]:
    """Names of the tricks, of those in `TRICKS`, that the environment variable GRU4REC_WITHOUT switches off.

    For measuring what each brings: ``GRU4REC_WITHOUT=fast_activations,row_updates python ...``.
    """
    names = set(os.environ.get('GRU4REC_WITHOUT', '').split(',')) - {''}
    if not names <= TRICKS.keys():
        raise ValueError(f'GRU4REC_WITHOUT={",".join(sorted(names))}: must be some of {", ".join(TRICKS)}')
    return names


def resolve(backend: str) -> str:
    """The backend that a name stands for; ValueError if it is JAX and JAX does not work."""
    if backend == 'auto':
        return 'jax' if find_spec('jax') and _gpu() else 'numba'
    if backend == 'jax':
        try:
            import jax
            jax.devices()
        except Exception as error:
            raise ValueError(f"backend='jax' needs JAX, which does not work here ({type(error).__name__}: {error}): "
                             "pip install '.[jax]', or '.[gpu]' for CUDA; backend='numba' does without") from error
    return backend


def _gpu() -> bool:
    """Whether JAX works and sees a GPU."""
    try:
        import jax
        return jax.default_backend() == 'gpu'
    except Exception as error:
        logger.warning('JAX is installed but does not work (%s: %s): going on without', type(error).__name__, error)
        return False


# ---------------------------------------------------------------------------------------------------------------------
# tanh, sigmoid and exp that vectorise
# ---------------------------------------------------------------------------------------------------------------------

class FastTanh(Tanh):
    """tanh of a float32 as a quotient of two polynomials, to 3e-7; LLVM can vectorise it, libm's tanhf it cannot."""


class FastSigmoid(Sigmoid):
    """sigmoid(x) = tanh(x / 2) / 2 + 1 / 2 of a float32, by the same quotient."""


class FastExp(Exp):
    """exp of a float32 to a relative 2e-7, as a polynomial and a shift of the exponent; within 1e-38 and 3e38."""


@numba_njit(error_model='numpy')
def _tanh(x: np.float32) -> np.float32:
    # Coefficients as in Eigen's float tanh.  The comparisons are written so that NaN goes through.  Under Numba's other
    # error model the division is checked for a zero divisor, and a loop with a branch is no longer made of vectors.
    x = np.float32(-7.90531110763549805) if x < np.float32(-7.90531110763549805) else x
    x = np.float32(7.90531110763549805) if x > np.float32(7.90531110763549805) else x
    x2 = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * x2 + np.float32(2.00018790482477e-13)
    p = p * x2 + np.float32(-8.60467152213735e-11)
    p = p * x2 + np.float32(5.12229709037114e-08)
    p = p * x2 + np.float32(1.48572235717979e-05)
    p = p * x2 + np.float32(6.37261928875436e-04)
    p = p * x2 + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * x2 + np.float32(1.18534705686654e-04)
    q = q * x2 + np.float32(2.26843463243900e-03)
    q = q * x2 + np.float32(4.89352518554385e-03)
    return x * p / q


@numba_njit
def _sigmoid(x: np.float32) -> np.float32:
    return _tanh(x * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)


@numba_njit
def _exp(x: np.float32) -> np.float32:
    # exp(x) = 2^n exp(rest) with |rest| <= log(2) / 2; log(2) is taken off in two parts, the first of which is exact.
    x = np.float32(-87.33) if x < np.float32(-87.33) else x
    x = np.float32(88.37) if x > np.float32(88.37) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)  # coefficients as in Cephes' expf
    p = p * rest + np.float32(1.3981999507e-3)
    p = p * rest + np.float32(8.3334519073e-3)
    p = p * rest + np.float32(4.1665795894e-2)
    p = p * rest + np.float32(1.6666665459e-1)
    p = p * rest + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * rest * rest + rest + np.float32(1)) * power


@register_funcify_and_cache_key(FastTanh)
def _funcify_fast_tanh(op: FastTanh, node: Apply, **kwargs: Any) -> tuple[Callable, str]:
    return _tanh, f'gru4rec_tanh_{VERSION}'


@register_funcify_and_cache_key(FastSigmoid)
def _funcify_fast_sigmoid(op: FastSigmoid, node: Apply, **kwargs: Any) -> tuple[Callable, str]:
    return _sigmoid, f'gru4rec_sigmoid_{VERSION}'


@register_funcify_and_cache_key(FastExp)
def _funcify_fast_exp(op: FastExp, node: Apply, **kwargs: Any) -> tuple[Callable, str]:
    return _exp, f'gru4rec_exp_{VERSION}'


_pytensor_composite: Callable[..., tuple[Any, str | None]] = numba_funcify_and_cache_key.dispatch(Composite)


@register_funcify_and_cache_key(Composite)
def _funcify_composite(op: Composite, node: Apply, **kwargs: Any) -> tuple[Callable, str | None]:
    """The body of a fused loop, as PyTensor compiles it, but always inlined: a loop with a call stays scalar."""
    body, key = _pytensor_composite(op, node=node, **kwargs)
    if 'inlined_bodies' in switched_off():
        return body, key
    return numba_njit(body.py_func, forceinline=True), key and f'{key}_inlined'


_FAST: dict[type, type] = {Tanh: FastTanh, Sigmoid: FastSigmoid, Exp: FastExp}


@node_rewriter([Elemwise])
def fast_activations(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: float32 tanh, sigmoid and exp by their fast twins, before loops are fused."""
    fast = _FAST.get(type(node.op.scalar_op))
    if fast is None or node.outputs[0].type.dtype != FLOAT:
        return None
    return [Elemwise(fast(same_out, name=fast.__name__))(*node.inputs)]


# ---------------------------------------------------------------------------------------------------------------------
# Transposes that are not copied
# ---------------------------------------------------------------------------------------------------------------------

class Transpose(Op):
    """Transpose of a matrix whose memory layout Numba knows: BLAS then reads it as it is, without a copy.

    PyTensor 3.0 transposes by strides that the compiler cannot see through, and Numba's product copies such a matrix.
    """
    __props__ = ()
    view_map = {0: [0]}

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[::-1])()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        output_storage[0][0] = inputs[0].T


@register_funcify_default_op_cache_key(Transpose)
def _funcify_transpose(op: Transpose, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    @numba_njit
    def transpose(x: np.ndarray) -> np.ndarray:
        return x.T
    return transpose, VERSION


@node_rewriter([DimShuffle])
def transposes_without_copy(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: DimShuffle to `Transpose` where it is one."""
    return [Transpose()(node.inputs[0])] if tuple(node.op.new_order) == (1, 0) else None


# ---------------------------------------------------------------------------------------------------------------------
# Splits that are contiguous
# ---------------------------------------------------------------------------------------------------------------------

class SplitColumns(Op):
    """A matrix taken apart into matrices of as many columns each, as contiguous copies.

    PyTensor's Split gives views.  Numba does not know that neighbours in a row of a view are neighbours in memory, and
    a loop that reads one stays scalar: that costs more than the copy.
    """
    __props__ = ('n_splits',)

    def __init__(self, n_splits: int) -> None:
        self.n_splits = n_splits

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        n_rows, n_columns = x.type.shape
        part = x.type.clone(shape=(n_rows, n_columns and n_columns // self.n_splits))
        return Apply(self, [x], [part() for _ in range(self.n_splits)])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        for storage, part in zip(output_storage, np.split(inputs[0], self.n_splits, axis=1)):
            storage[0] = part.copy()


@register_funcify_default_op_cache_key(SplitColumns)
def _funcify_split_columns(op: SplitColumns, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    n = op.n_splits
    source = '\n'.join([
        'def split_columns(x):',
        f'    width = x.shape[1] // {n}',
        f'    parts = np.empty(({n}, len(x), width), x.dtype)',
        '    for i in range(len(x)):',
        f'        for k in range({n}):',
        '            for j in range(width):',
        '                parts[k, i, j] = x[i, k * width + j]',
        f"    return ({''.join(f'parts[{k}], ' for k in range(n))})",
    ])
    return numba_njit(compile_numba_function_src(source, 'split_columns', {'np': np})), VERSION


@node_rewriter([Split])
def contiguous_splits(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: Split of a matrix into equally many columns to `SplitColumns`."""
    n_columns = node.inputs[0].type.shape[-1]
    n = len(node.outputs)
    if n_columns is None or any(part.type.shape[1:] != (n_columns // n,) for part in node.outputs):
        return None
    parts: Any = SplitColumns(n)(node.inputs[0], return_list=True)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Reductions that vectorise
# ---------------------------------------------------------------------------------------------------------------------

class ColumnSums(Op):
    """Sum over the rows of a float32 matrix.  PyTensor 3.3 would fuse it into the loop before, which then is scalar."""
    __props__ = ()

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[1:])()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        output_storage[0][0] = inputs[0].sum(axis=0)


class RowMaxima(Op):
    """Largest number of each row of a float32 matrix; of a row with NaN, NaN or any number.

    Found among integers in the same order: floats have no maximum that LLVM would make vectors of.
    """
    __props__ = ()

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[:1])()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        output_storage[0][0] = inputs[0].max(axis=1)


@register_funcify_default_op_cache_key(ColumnSums)
def _funcify_column_sums(op: ColumnSums, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    @numba_njit
    def column_sums(x: np.ndarray) -> np.ndarray:
        sums = np.zeros(x.shape[1], x.dtype)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                sums[j] += x[i, j]
        return sums
    return column_sums, VERSION


@register_funcify_default_op_cache_key(RowMaxima)
def _funcify_row_maxima(op: RowMaxima, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    @numba_njit
    def ordered(bits: np.int32) -> np.int32:
        # Integers in the order of the floats that the bits stand for; its own inverse.
        return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))

    @numba_njit
    def row_maxima(x: np.ndarray) -> np.ndarray:
        maxima = np.empty(x.shape[0], np.int32)
        bits = x.view(np.int32)
        for i in range(x.shape[0]):
            largest = ordered(bits[i, 0])
            for j in range(1, x.shape[1]):
                largest = max(largest, ordered(bits[i, j]))
            maxima[i] = ordered(largest)
        return maxima.view(np.float32)
    return row_maxima, VERSION


@node_rewriter([Sum])
def sums_in_own_precision(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: add up float32 in float32, not in float64, which halves the width of a vector instruction."""
    if node.inputs[0].type.dtype != FLOAT or node.op.acc_dtype == FLOAT:
        return None
    return [Sum(axis=node.op.axis, dtype=FLOAT, acc_dtype=FLOAT)(node.inputs[0])]


@node_rewriter([Sum])
def unfused_column_sums(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: Sum over the rows of a float32 matrix to `ColumnSums`."""
    x = node.inputs[0]
    return [ColumnSums()(x)] if x.type.dtype == FLOAT and x.type.ndim == 2 and node.op.axis == (0,) else None


@node_rewriter([Max])
def integer_maxima(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: Max over the columns of a float32 matrix to `RowMaxima`."""
    x = node.inputs[0]
    return [RowMaxima()(x)] if x.type.dtype == FLOAT and x.type.ndim == 2 and node.op.axis == (1,) else None


# ---------------------------------------------------------------------------------------------------------------------
# Row updates that vectorise
# ---------------------------------------------------------------------------------------------------------------------

@numba_njit
def _set_rows(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    for i in range(len(rows)):
        row = rows[i]
        for j in range(x.shape[1]):
            x[row, j] = y[i, j]
    return x


@numba_njit
def _add_to_rows(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    for i in range(len(rows)):
        row = rows[i]
        for j in range(x.shape[1]):
            x[row, j] += y[i, j]
    return x


ROW_UPDATES = [getattr(subtensor, name) for name in ('AdvancedIncSubtensor', 'AdvancedIncSubtensor1')
               if hasattr(subtensor, name)]

if hasattr(subtensor, 'AdvancedIncSubtensor1'):  # PyTensor 3.0; later ones have another operation, and good loops
    _pytensor_row_update = numba_funcify_and_cache_key.dispatch(subtensor.AdvancedIncSubtensor1)

    @register_funcify_and_cache_key(subtensor.AdvancedIncSubtensor1)
    def _funcify_row_update(op: Any, node: Apply, **kwargs: Any) -> tuple[Callable, str | None]:
        """Rows of a matrix increased or set in place, in loops over plain indices; the rest as PyTensor does it."""
        x, y, _rows = node.inputs
        if (not op.inplace or x.type.ndim != 2 or None in y.type.shape or y.type.shape[0] == 1
                or x.type.shape[1] != y.type.shape[1] or 'row_updates' in switched_off()):
            return _pytensor_row_update(op, node=node, **kwargs)
        name = 'set_rows' if op.set_instead_of_inc else 'add_to_rows'
        return (_set_rows if op.set_instead_of_inc else _add_to_rows), f'gru4rec_{name}_{VERSION}'


# ---------------------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------------------

BEFORE_FUSION = 48.9  # position among PyTensor's rewrites

# What can be switched off: rewrites of the graph, and, with None, compilations of an operation other than PyTensor's.
TRICKS = {rewrite.__name__: rewrite for rewrite in (fast_activations, sums_in_own_precision, unfused_column_sums,
                                                    transposes_without_copy, contiguous_splits, integer_maxima)}
TRICKS |= {'inlined_bodies': None, 'row_updates': None}


def compile_function(inputs: Sequence[Variable], outputs: Variable | Sequence[Variable], updates: dict | None = None, *,
                     backend: str) -> Function:
    """`pytensor.function` for a backend."""
    if backend == 'python':
        # Fused loops would run element by element in Python; unfused, each operation is a call of NumPy.
        mode = Mode(linker='py', optimizer='fast_run').excluding('fusion')
    elif backend == 'jax':
        mode = jax_mode()
    else:
        rewrites = [rewrite for name, rewrite in TRICKS.items() if rewrite and name not in switched_off()]
        mode = get_mode('NUMBA').excluding('local_log_sum_exp').register(  # cross_entropy takes off the largest itself
            *((in2out(rewrite, name=rewrite.__name__), BEFORE_FUSION) for rewrite in rewrites))
    return pytensor.function(inputs, outputs, updates=updates, mode=mode, on_unused_input='ignore')


def compile_loop(sequences: Sequence[Variable], output: Variable, updates: dict, *,
                 backend: str) -> Callable[..., np.ndarray]:
    """Compile a step that is run for each row of its sequences.

    Parameters
    ----------
    sequences : symbolic inputs of one step
    output : symbolic scalar
    updates : shared variable -> its value after the step

    Returns
    -------
    function of arrays with a leading axis of K rows, one array for each of `sequences`; it runs the step K times and
    returns the outputs (K,).  After an output that is not finite it stops, and returns those up to it.
    """
    loops: dict[str, type] = {'python': PythonLoop, 'numba': NumbaLoop, 'jax': JaxLoop}
    return loops[backend](sequences, output, updates)


class PythonLoop:
    """A loop in Python around the step."""

    def __init__(self, sequences: Sequence[Variable], output: Variable, updates: dict) -> None:
        self._step = compile_function(sequences, output, updates, backend='python')

    def __call__(self, *sequences: np.ndarray) -> np.ndarray:
        outputs = np.empty(len(sequences[0]), dtype=FLOAT)
        for k, row in enumerate(zip(*sequences)):
            outputs[k] = self._step(*row)
            if not np.isfinite(outputs[k]):
                return outputs[:k + 1]
        return outputs


class NumbaLoop:
    """The step and the loop around it as one compiled function, so that no Python runs between two steps.

    PyTensor makes the step a Numba function of (a row of each sequence, arrays of the shared variables) that returns
    (output, new arrays) and writes into the old arrays where it may.  The loop hands the new arrays to the next step.
    Its source is generated, since the number of arrays differs from model to model.
    """

    def __init__(self, sequences: Sequence[Variable], output: Variable, updates: dict) -> None:
        function: Any = compile_function(sequences, output, updates, backend='numba')
        fgraph, step = function.maker.fgraph, function.vm.jit_fn
        self._cells = [function.vm.storage_map[variable] for variable in fgraph.inputs[len(sequences):]]
        source = loop_source(len(sequences), len(self._cells), len(fgraph.outputs), fgraph.update_mapping)
        # PyTensor has a key for the step's machine code on disk; with one made of it, the loop's is found again too.
        step_key = CACHED_SRC_FUNCTIONS.get(step.py_func)
        key = step_key and sha256((step_key + source).encode()).hexdigest()
        loop = compile_numba_function_src(source, 'loop', {'__name__': __name__, 'step': step, 'np': np}, cache_key=key)
        self._is_cached = key is not None
        self._loop: Any = numba_njit(loop, final_function=True, cache=self._is_cached)
        self._threads = ThreadpoolController()

    def __call__(self, *sequences: np.ndarray) -> np.ndarray:
        outputs = np.empty(len(sequences[0]), dtype=FLOAT)
        if self._is_cached and not self._loop.signatures:
            compile_apart(self._loop, (outputs, *sequences, *(cell[0] for cell in self._cells)))
        # The products of a step are small: handing them to more threads costs more than it brings, and with another
        # busy process on the machine a hundred times more, since the threads wait for one another by spinning.
        with self._threads.limit(limits=1, user_api='blas'):
            done, states = self._loop(outputs, *sequences, *(cell[0] for cell in self._cells))
        for cell, state in zip(self._cells, states):
            cell[0] = state
        return outputs[:done]


def compile_apart(function: Any, arguments: tuple) -> None:
    """Compile a function that Numba caches in a child process, so that this one finds it in the cache.

    In the process that compiles it, the functions that it calls are those that were compiled one by one; what the cache
    has is one piece, which was optimised as a whole.  Both are right, but last digits differ.  This way the first run
    of a model on a machine gives the same bits as all later ones.  Elsewhere than on Linux, and once JAX is there,
    whose threads do not take a fork well, the caller compiles the function itself.
    """
    if sys.platform != 'linux' or 'jax' in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of a fork with threads: BLAS's, which the child leaves
        child = os.fork()
    if not child:
        try:
            function.compile(tuple(map(numba.typeof, arguments)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def loop_source(n_sequences: int, n_states: int, n_outputs: int, update_mapping: dict[int, int]) -> str:
    """Source of the loop; `update_mapping` says which output of the step replaces which of its inputs."""
    sequences = [f'sequence{i}' for i in range(n_sequences)]
    states = [f'state{i}' for i in range(n_states)]
    results = [f'result{i}' for i in range(n_outputs)]
    return '\n'.join([
        f"def loop(outputs, {', '.join(sequences + states)}):",
        '    done = 0',
        '    while done < len(outputs):',
        f"        {', '.join(results)}, = step({', '.join([f'{name}[done]' for name in sequences] + states)})",
        '        outputs[done] = result0.item()',
        *[f'        state{i - n_sequences} = result{o}' for o, i in update_mapping.items()],
        '        done += 1',
        '        if not np.isfinite(outputs[done - 1]):',
        '            break',
        f"    return done, ({', '.join(states)},)",
    ])


# ---------------------------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------------------------

@node_rewriter(ROW_UPDATES)
def row_updates_without_race(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: rows increased or set to rows set, where all occurrences of a row write the same value.

    A GPU adds in any order, which changes the last bits from run to run, and of several values that are set any one
    may win.  Here each occurrence of a row writes the row's final value: the old one plus the sum over all occurrences,
    or the value of the last one.  Since it is made of rows that the step reads anyway, XLA also sees that the matrix
    may be overwritten; an increment would make it copy the matrix first.
    """
    inputs: list[Any] = node.inputs
    x, y, *index = inputs
    if len(index) != 1 or index[0].ndim != 1 or index[0].type.shape[0] is None or y.ndim != x.ndim:
        return None
    rows = index[0]
    same = pt.eq(rows[:, None], rows)
    if node.op.set_instead_of_inc:
        value = y[pt.argmax(pt.switch(same, np.arange(rows.type.shape[0]), -1), axis=1)]
    else:
        value = x[rows] + pt.cast(same, x.dtype) @ y
    return [pt.set_subtensor(x[rows], value)]


def jax_mode(linker: str = 'jax') -> Mode:
    """PyTensor's mode for JAX, with our rewrites; with the linker 'pure' functions are converted but not compiled."""
    from pytensor.link.jax.linker import JAXLinker

    class PureLinker(JAXLinker):
        def jit_compile(self, fn: Callable) -> Callable:
            return fn

    mode = Mode(PureLinker() if linker == 'pure' else JAXLinker(), get_mode('JAX').provided_optimizer)
    return mode.register(*((in2out(rewrite, name=rewrite.__name__, ignore_newtrees=True), BEFORE_FUSION)
                           for rewrite in (sums_in_own_precision, row_updates_without_race)))


class JaxFunction:
    """A graph as a pure function for JAX: ``function(*inputs, *values of the shared variables)`` -> outputs.

    cells : one-element lists that hold the values of the shared variables
    source : which output is the new value of which shared variable, both counted from 0
    """

    def __init__(self, inputs: Sequence[Variable], outputs: Sequence[Variable],
                 updates: dict | None = None) -> None:
        function = pytensor.function(inputs, outputs, updates=updates, mode=jax_mode('pure'), on_unused_input='ignore')
        fgraph = function.maker.fgraph
        self.function = function.vm.jit_fn
        self.cells = [function.vm.storage_map[variable] for variable in fgraph.inputs[len(inputs):]]
        self.source = {i - len(inputs): o for o, i in fgraph.update_mapping.items()}

    def values(self) -> list:
        """Values of the shared variables, on the device."""
        import jax
        for cell in self.cells:
            cell[0] = jax.numpy.asarray(cell[0])
        return [cell[0] for cell in self.cells]


def filled_up(rows: np.ndarray, length: int) -> np.ndarray:
    """Rows with zeros after them up to `length`, since XLA compiles a program for each shape."""
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])


class JaxLoop:
    """The step and the loop around it as one program of XLA, which owns the weights and overwrites them.

    The arrays that the step updates are donated to each call and come back from it, so that no matrix is copied.  They
    stay on the device between calls; `SharedVariable.get_value` gives JAX arrays then.
    """

    def __init__(self, sequences: Sequence[Variable], output: Variable, updates: dict) -> None:
        import jax

        self._step = JaxFunction(sequences, [output], updates)
        self._length = 0
        step, source = self._step.function, self._step.source

        def loop(n_rows: Array, sequences: list[Array], states: list[Array]) -> tuple:
            def unfinished(carry: tuple) -> Array:
                done, outputs, _states = carry
                return (done < n_rows) & jax.numpy.isfinite(outputs[done - 1])

            def one_step(carry: tuple) -> tuple:
                done, outputs, states = carry
                results = step(*[rows[done] for rows in sequences], *states)
                states = [results[source[k]] if k in source else state for k, state in enumerate(states)]
                return done + 1, outputs.at[done].set(results[0]), states

            outputs = jax.numpy.zeros(len(sequences[0]), FLOAT)
            return jax.lax.while_loop(unfinished, one_step, (0, outputs, states))

        self.program = jax.jit(loop, donate_argnums=2)

    def __call__(self, *sequences: np.ndarray) -> np.ndarray:
        import jax

        n_rows = len(sequences[0])
        self._length = max(self._length, n_rows)
        filled = [filled_up(rows, self._length) for rows in sequences]
        with jax.default_matmul_precision('float32'):  # a GPU would round factors to 10 bits otherwise
            done, outputs, states = self.program(n_rows, filled, self._step.values())
        for cell, state in zip(self._step.cells, states):
            cell[0] = state
        return np.asarray(outputs)[:int(done)]


class JaxRanks:
    """Ranks of next items, counted on the device: states, scores and comparisons of K mini-batches in one call.

    Scores are made and compared in blocks of items, so that no array of all items' scores is needed.

    Parameters
    ----------
    inputs, outputs : symbols (item, starts, states...), and (what is scored, new states...)
    x, activated : a symbolic matrix of raw scores, and the same activated
    block : items at a time
    """

    def __init__(self, inputs: Sequence[Variable], outputs: Sequence[Variable], x: Variable, activated: Variable,
                 block: int = 16384) -> None:
        import jax

        self._step, self._activation = JaxFunction(inputs, outputs), JaxFunction([x], [activated])
        self._block, self._length = block, 0

        def loop(items: Array, starts: Array, targets: Array, states: list[Array], values: list[Array],
                 *arrays: Array) -> tuple:
            def one_step(states: list[Array], row: tuple) -> tuple:
                item, start, target = row
                H, *states = self._step.function(item, start, *states, *values)
                return states, self._counts(H, target, *arrays)
            return jax.lax.scan(one_step, states, (items, starts, targets))

        self.program = jax.jit(loop)

    def _counts(self, H: Array, target: Array, place: Array, all_Wy: Array, all_By: Array, Wy: Array,
                By: Array) -> tuple[Array, Array, Array]:
        """Of one mini-batch: other items that score higher than the target, those that score the same, and NaN."""
        import jax

        jnp, size = jax.numpy, min(self._block, len(By))

        def activation(scores: Array) -> Array:
            return self._activation.function(scores)[0]

        def scores_of(k: Array) -> tuple[Array, Array, Array]:
            # The last block reaches back into the one before it, and repeats some of its items.
            first = jnp.minimum(k * size, len(By) - size)
            W, b = (jax.lax.dynamic_slice_in_dim(array, first, size) for array in (Wy, By))
            item = first + jnp.arange(size)
            return activation(H @ W.T + b), item == place[target][:, None], item >= k * size

        def find(k: Array, own: Array) -> Array:
            scores, here, _new = scores_of(k)
            return jnp.where(here.any(axis=1), jnp.where(here, scores, 0).sum(axis=1), own)

        def count(k: Array, totals: tuple) -> tuple[Array, Array]:
            scores, here, new = scores_of(k)
            other, (greater, equal) = new & ~here, totals
            return (greater + (other & (scores > own[:, None])).sum(axis=1),
                    equal + (other & (scores == own[:, None])).sum(axis=1))

        n_blocks, zeros = -(-len(By) // size), jnp.zeros(len(H), int)
        own = activation(((H * all_Wy[target]).sum(axis=1) + all_By[target])[:, None])[:, 0]
        own = jax.lax.fori_loop(0, n_blocks, find, own)
        return *jax.lax.fori_loop(0, n_blocks, count, (zeros, zeros)), jnp.isnan(own)

    def __call__(self, items: np.ndarray, starts: np.ndarray, targets: np.ndarray, states: list, place: np.ndarray,
                 all_output: tuple, output: tuple) -> tuple[list, list[np.ndarray]]:
        """The states after K mini-batches, and (K, B) counts of higher and of equal scores, and where one is NaN."""
        import jax

        n_rows = len(items)
        self._length = max(self._length, n_rows)
        sequences = [filled_up(rows, self._length) for rows in (items, starts, targets)]
        with jax.default_matmul_precision('float32'):
            states, counts = self.program(*sequences, states, self._step.values(), place, *all_output, *output)
        return states, [np.asarray(count)[:n_rows] for count in counts]
