"""PyTensor's interpreter: its mode with our rewrites, by which each operation is one call of NumPy."""
from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import GraphRewriter, in2out, node_rewriter
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import discrete_dtypes, float_dtypes
from pytensor.tensor.utils import import_func_from_string
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor.backends.common import ABOUT_SPECIAL_MATRICES, AFTER_ALL, BEFORE_FUSION, IN_PLACE, tables_in_place


@node_rewriter([Elemwise])
def two_by_two(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: a + b + c becomes (a + b) + c, and products likewise: NumPy's functions take two."""
    if not isinstance(node.op.scalar_op, (Add, Mul)) or len(node.inputs) < 3:
        return None
    return [reduce(node.op, node.inputs)]


class NumpyCall(Op):
    """PyTensor's operation `elementwise` as one call of its NumPy function.

    PyTensor looks at the shape of each input before and at the memory of the result after each call, which takes longer
    than to compute a small one.
    """
    __props__ = ('elementwise',)

    def __init__(self, elementwise: Elemwise) -> None:
        self.elementwise, self._function = elementwise, import_func_from_string(elementwise.nfunc_spec[0])

    def make_node(self, *inputs: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, inputs, [output.type() for output in self.elementwise.make_node(*inputs).outputs])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        output_storage[0][0] = np.asarray(self._function(*inputs), node.outputs[0].type.dtype)


def is_numpy_call(node: Apply) -> bool:
    """Return whether NumPy has a function for an operation of PyTensor's that makes a new array.

    Floats of integers are left to PyTensor's own operation, which tells NumPy their precision.
    """
    if not isinstance(node.op, Elemwise) or not node.op.nfunc_spec or node.op.inplace_pattern:
        return False
    name, *counts = node.op.nfunc_spec
    is_float_of_integers = node.inputs[0].type.dtype in discrete_dtypes and node.outputs[0].type.dtype in float_dtypes
    return counts == [len(node.inputs), 1] and (
        name == 'where' or isinstance(import_func_from_string(name), np.ufunc) and not is_float_of_integers)


class NumpyCalls(GraphRewriter):
    """Rewrite: element-wise operations to `NumpyCall`.

    It comes last and exchanges the operation within each node: new nodes would take longer than these calls save in a
    short training.
    """
    name = 'numpy_calls'

    def apply(self, fgraph: FunctionGraph) -> None:
        for node in filter(is_numpy_call, fgraph.apply_nodes):
            node.op = NumpyCall(node.op)


def python_mode() -> Mode:
    """Return PyTensor's mode for its interpreter.

    Fused loops, and sums of three and more, would run element by element in Python.  Finding loops that may overwrite
    their inputs takes a third of the time of a compilation, and brings nothing here.
    """
    mode = Mode(linker='py', optimizer='fast_run').excluding('fusion', 'inplace_elemwise', *ABOUT_SPECIAL_MATRICES)
    return mode.register((in2out(two_by_two, name='two_by_two'), BEFORE_FUSION),
                         (in2out(tables_in_place, name='tables_in_place', ignore_newtrees=True), IN_PLACE),
                         (NumpyCalls(), AFTER_ALL))
