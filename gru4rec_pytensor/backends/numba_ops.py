"""Numba: operations, and rewrites that put them into the graphs that `numba_mode` compiles.

PyTensor's own operations stay as they are, since other graphs of the same process may hold them.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_njit,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.scalar.basic import Composite, Exp, ScalarOp, Tanh, same_out
from pytensor.scalar.math import Sigmoid
from pytensor.tensor.basic import Split
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Max, Sum
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor import floats
from gru4rec_pytensor.backends.common import FLOAT, CompiledOp, version_of

VERSION = version_of(__file__, floats.__file__)
float_order = register_jitable(floats.float_order)


# ---------------------------------------------------------------------------------------------------------------------
# tanh, sigmoid and exp that vectorise
# ---------------------------------------------------------------------------------------------------------------------

@numba_njit(error_model='numpy')
def tanh(x: np.float32) -> np.float32:
    """Return tanh as a quotient of two polynomials, to 3e-7, which LLVM vectorises, unlike libm's tanhf."""
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
def exp(x: np.float32) -> np.float32:
    """Return exp to a relative 2e-7, by a polynomial and a shift of the exponent; within 1e-38 and 3e38."""
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


@numba_njit(error_model='numpy')
def sigmoid(x: np.float32) -> np.float32:
    """Return 1 / (1 + exp(-x)) by `exp`, to a relative 3e-7: a 0 would stop the gradient of BPR-max's logarithm."""
    return np.float32(1) / (np.float32(1) + exp(-x))


class FastTanh(Tanh):
    """`tanh` of numbers in a graph."""


class FastSigmoid(Sigmoid):
    """`sigmoid` of numbers in a graph."""


class FastExp(Exp):
    """`exp` of numbers in a graph."""


APPROXIMATIONS: dict[type, type] = {Tanh: FastTanh, Sigmoid: FastSigmoid, Exp: FastExp}
COMPILED: dict[type, Any] = {FastTanh: tanh, FastSigmoid: sigmoid, FastExp: exp}


@register_funcify_and_cache_key(FastTanh)
@register_funcify_and_cache_key(FastSigmoid)
@register_funcify_and_cache_key(FastExp)
def _funcify_approximation(op: ScalarOp, node: Apply, **kwargs: Any) -> tuple[Callable, str]:
    return COMPILED[type(op)], f'gru4rec_{type(op).__name__}_{VERSION}'


@node_rewriter([Elemwise])
def fast_activations(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: float32 tanh, sigmoid and exp by their approximations, before loops are fused."""
    fast = APPROXIMATIONS.get(type(node.op.scalar_op))
    if fast is None or node.outputs[0].type.dtype != FLOAT:
        return None
    return [Elemwise(fast(same_out, name=fast.__name__))(*node.inputs)]


# ---------------------------------------------------------------------------------------------------------------------
# Bodies of loops that are inlined
# ---------------------------------------------------------------------------------------------------------------------

class InlinedComposite(Composite):
    """The body of a fused loop, as PyTensor compiles it, but always inlined: a loop with a call stays scalar."""


_compile_composite: Callable[..., tuple[Any, str | None]] = numba_funcify_and_cache_key.dispatch(Composite)


@register_funcify_and_cache_key(InlinedComposite)
def _funcify_inlined_composite(op: InlinedComposite, node: Apply, **kwargs: Any) -> tuple[Callable, str | None]:
    body, key = _compile_composite(op, node=node, **kwargs)
    return numba_njit(body.py_func, forceinline=True), key and f'{key}_{VERSION}'


def with_inlined_bodies(op: Op) -> Op:
    """Return an equal operation with `InlinedComposite` for each `Composite`; `op` itself if it has none."""
    if type(op) is Composite:
        return InlinedComposite(op.inputs, op.outputs)
    if isinstance(op, Elemwise):
        body = with_inlined_bodies(op.scalar_op)
        return op if body is op.scalar_op else Elemwise(body, op.inplace_pattern)
    if not isinstance(op, OpFromGraph) or not hasattr(op, 'clone_with_inner_graph'):
        return op
    # From PyTensor 3.1 on, a loop that also reads or updates rows stands in the inner graph of another operation.
    frozen: Any = op.fgraph
    inner, n_replaced = frozen.unfreeze(), 0
    inner.attach_feature(DestroyHandler())  # for an order in which nothing is read after it was overwritten
    for node in inner.toposort():
        inlined = with_inlined_bodies(node.op)
        if inlined is not node.op:
            inner.replace_all(zip(node.outputs, inlined.make_node(*node.inputs).outputs), reason='inlined_bodies')
            n_replaced += 1
    return op.clone_with_inner_graph(inner) if n_replaced else op


@node_rewriter([Composite, Elemwise, OpFromGraph])
def inlined_bodies(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: Composite, wherever an operation holds one, to `InlinedComposite`."""
    op = with_inlined_bodies(node.op)
    return None if op is node.op else op.make_node(*node.inputs).outputs


# ---------------------------------------------------------------------------------------------------------------------
# Splits and reductions that vectorise
# ---------------------------------------------------------------------------------------------------------------------

class SplitColumns(CompiledOp):
    """The equal parts of a matrix's columns, as contiguous copies.

    PyTensor's Split gives views, whose rows Numba does not know to be contiguous: a loop that reads one stays scalar,
    which costs more than the copy.
    """
    __props__ = ('n_splits',)

    def __init__(self, n_splits: int) -> None:
        self.n_splits = n_splits

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        n_rows, n_columns = x.type.shape
        part = x.type.clone(shape=(n_rows, n_columns and n_columns // self.n_splits))
        return Apply(self, [x], [part() for _ in range(self.n_splits)])


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


class ColumnSums(CompiledOp):
    """Sum over the rows of a float32 matrix.  PyTensor 3.3 would fuse it into the loop before, which then is scalar.

    Without it BPR-max has other last digits on PyTensor 3.3.
    """

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[1:])()])


class RowMaxima(CompiledOp):
    """Largest number of each row of a float32 matrix; of a row with NaN, NaN or any number.

    Computed of integers in the same order: LLVM makes no vectors of a maximum of floats.
    """

    def make_node(self, x: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [x], [x.type.clone(shape=x.type.shape[:1])()])


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
    def row_maxima(x: np.ndarray) -> np.ndarray:
        maxima = np.empty(x.shape[0], np.int32)
        bits = x.view(np.int32)
        for i in range(x.shape[0]):
            largest = np.int32(float_order(bits[i, 0]))
            for j in range(1, x.shape[1]):
                largest = max(largest, np.int32(float_order(bits[i, j])))
            maxima[i] = float_order(largest)
        return maxima.view(np.float32)
    return row_maxima, VERSION


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
