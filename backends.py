"""How a symbolic graph becomes a program: the only module that knows a linker.

The model (`gru4rec.py`) hands over a step, written once in symbols, and gets back a function that runs it on
a whole stretch of mini-batches.  Two backends are offered:

* ``'numba'`` (also ``'auto'``): machine code for the CPU.  The step and the loop over mini-batches around it are one
  compiled function, so that no Python runs between two mini-batches.
* ``'python'``: PyTensor's own interpreter.  Compiles in a second and runs slowly: for tests and for looking inside.
"""
from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytensor
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_njit,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.scalar.basic import Exp, Tanh, same_out
from pytensor.scalar.math import Sigmoid
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Sum
from threadpoolctl import ThreadpoolController

BACKENDS = ('auto', 'numba', 'python')
FLOAT = 'float32'  # of weights and scores, as in the release's own scripts


def resolve(backend: str) -> str:
    """The backend that a name stands for."""
    return 'numba' if backend == 'auto' else backend


# ---------------------------------------------------------------------------------------------------------------------
# tanh, sigmoid and exp that vectorise
# ---------------------------------------------------------------------------------------------------------------------

class FastTanh(Tanh):
    """tanh of a float32 as a quotient of two polynomials, to 3e-7; LLVM can vectorise it, libm's tanhf it cannot."""


class FastSigmoid(Sigmoid):
    """sigmoid(x) = tanh(x / 2) / 2 + 1 / 2 of a float32, by the same quotient."""


class FastExp(Exp):
    """exp of a float32 to a relative 2e-7, as a polynomial and a shift of the exponent; within 1e-38 and 3e38."""


@numba_njit
def _tanh(x):
    # Coefficients as in Eigen's float tanh.  The comparisons are written so that NaN goes through.
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
def _sigmoid(x):
    return _tanh(x * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)


@numba_njit
def _exp(x):
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
def _funcify_fast_tanh(op, node, **kwargs):
    return _tanh, 'gru4rec_fast_tanh_1'


@register_funcify_and_cache_key(FastSigmoid)
def _funcify_fast_sigmoid(op, node, **kwargs):
    return _sigmoid, 'gru4rec_fast_sigmoid_1'


@register_funcify_and_cache_key(FastExp)
def _funcify_fast_exp(op, node, **kwargs):
    return _exp, 'gru4rec_fast_exp_1'


BEFORE_FUSION = 48.9  # position among PyTensor's rewrites
_FAST = {Tanh: FastTanh, Sigmoid: FastSigmoid, Exp: FastExp}


@node_rewriter([Sum])
def sum_in_own_precision(fgraph, node):
    """Rewrite: add up float32 in float32, not in float64, which halves the width of a vector instruction."""
    if node.inputs[0].dtype != FLOAT or node.op.acc_dtype == FLOAT:
        return None
    return [Sum(axis=node.op.axis, dtype=FLOAT, acc_dtype=FLOAT)(node.inputs[0])]


@node_rewriter([Elemwise])
def use_fast_activations(fgraph, node):
    """Rewrite: float32 tanh, sigmoid and exp by their fast twins, before loops are fused."""
    fast = _FAST.get(type(node.op.scalar_op))
    if fast is None or node.outputs[0].dtype != FLOAT:
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

    def make_node(self, x):
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[::-1])()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0].T


@register_funcify_default_op_cache_key(Transpose)
def _funcify_transpose(op, node, **kwargs):
    @numba_njit
    def transpose(x):
        return x.T
    return transpose


@node_rewriter([DimShuffle])
def transpose_without_copy(fgraph, node):
    """Rewrite: DimShuffle to `Transpose` where it is one."""
    return [Transpose()(node.inputs[0])] if tuple(node.op.new_order) == (1, 0) else None


# ---------------------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------------------

def compile_function(inputs, outputs, updates=None, *, backend: str):
    """`pytensor.function` for a backend."""
    if backend == 'python':
        # Fused loops would run element by element in Python; unfused, each operation is a call of NumPy.
        mode = Mode(linker='py', optimizer='fast_run').excluding('fusion')
    else:
        mode = get_mode('NUMBA').excluding('local_log_sum_exp').register(  # cross_entropy takes off the largest itself
            *((in2out(rewrite, name=rewrite.__name__), BEFORE_FUSION)
              for rewrite in (use_fast_activations, sum_in_own_precision, transpose_without_copy)))
    return pytensor.function(inputs, outputs, updates=updates, mode=mode)


def compile_loop(sequences, output, updates, *, backend: str) -> Callable:
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
    return (PythonLoop if backend == 'python' else NumbaLoop)(sequences, output, updates)


class PythonLoop:
    """A loop in Python around the step."""

    def __init__(self, sequences, output, updates):
        self._step = compile_function(sequences, output, updates, backend='python')

    def __call__(self, *sequences) -> np.ndarray:
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

    def __init__(self, sequences, output, updates):
        function = compile_function(sequences, output, updates, backend='numba')
        fgraph, step = function.maker.fgraph, function.vm.jit_fn
        self._cells = [function.vm.storage_map[variable] for variable in fgraph.inputs[len(sequences):]]
        source = loop_source(len(sequences), len(self._cells), len(fgraph.outputs), fgraph.update_mapping)
        # PyTensor has a key for the step's machine code on disk; with one made of it, the loop's is found again too.
        step_key = CACHED_SRC_FUNCTIONS.get(step.py_func)
        key = step_key and sha256((step_key + source).encode()).hexdigest()
        loop = compile_numba_function_src(source, 'loop', {'__name__': __name__, 'step': step, 'np': np}, cache_key=key)
        self._loop = numba_njit(loop, final_function=True, cache=key is not None)
        self._threads = ThreadpoolController()

    def __call__(self, *sequences) -> np.ndarray:
        outputs = np.empty(len(sequences[0]), dtype=FLOAT)
        # The products of a step are small: handing them to more threads costs more than it brings, and with another
        # busy process on the machine a hundred times more, since the threads wait for one another by spinning.
        with self._threads.limit(limits=1, user_api='blas'):
            done, states = self._loop(outputs, *sequences, *(cell[0] for cell in self._cells))
        for cell, state in zip(self._cells, states):
            cell[0] = state
        return outputs[:done]


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
