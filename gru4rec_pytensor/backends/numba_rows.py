"""Numba: reading and updating many rows of a table, and rewrites that put this into a graph.

A mini-batch with 2,048 additional negatives reads as many rows, and changes them in three tables: the weights, their
accumulators and their velocities.  They lie anywhere in memory, so that most of the time goes into waiting for it.  So
each row is prefetched some rows ahead of its turn.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_njit,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.tensor import subtensor
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor.backends.common import FEW, ROW_UPDATES, RowUpdate, version_of

VERSION = version_of(__file__)
AHEAD = 4  # rows: long enough for memory, and few enough for the nearest cache
CACHE_LINE = 16  # float32 numbers in it


@intrinsic
def prefetch(typing_context: Any, table: Any, row: Any, column: Any) -> tuple[Any, Callable]:
    """Prefetch the cache line of table[row, column], which is written soon; for compiled functions."""
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, *index_types = signature.args
        array = context.make_array(kind)(context, builder, arguments[0])
        index = [context.cast(builder, value, of, types.intp) for value, of in zip(arguments[1:], index_types)]
        bytes_at = ir.IntType(8).as_pointer()
        address = builder.bitcast(cgutils.get_item_pointer(context, builder, kind, array, index), bytes_at)
        whole = ir.IntType(32)
        kind_of_prefetch = ir.FunctionType(ir.VoidType(), [bytes_at, whole, whole, whole])
        function = builder.module.declare_intrinsic('llvm.prefetch', [bytes_at], kind_of_prefetch)
        to_write, to_keep, data = whole(1), whole(3), whole(1)
        builder.call(function, [address, to_write, to_keep, data])
        return context.get_dummy_value()
    return types.void(table, row, column), code


@numba_njit
def fetch_row(table: np.ndarray, row: int) -> None:
    """Prefetch a row of a matrix."""
    for j in range(0, table.shape[1], CACHE_LINE):
        prefetch(table, row, j)  # type: ignore[call-arg]


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

# PyTensor 3.0 and 3.1 have a second operation each for reading and for updating rows.
READING = tuple(getattr(subtensor, name) for name in ('AdvancedSubtensor', 'AdvancedSubtensor1')
                if hasattr(subtensor, name))
AdvancedIncSubtensor1: Any = getattr(subtensor, 'AdvancedIncSubtensor1', ())


class ReadRows(Op):
    """table[rows], of many rows."""
    __props__ = ()

    def make_node(self, table: TensorVariable, rows: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [table, rows], [table[rows].type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        table, rows = inputs
        output_storage[0][0] = table[rows]


@register_funcify_default_op_cache_key(ReadRows)
def _funcify_read_rows(op: ReadRows, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    @numba_njit
    def read_rows(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
        values = np.empty((len(rows), table.shape[1]), table.dtype)
        for i in range(len(rows)):
            fetch_row(table, rows[min(i + AHEAD, len(rows) - 1)])
            row = rows[i]
            for j in range(table.shape[1]):
                values[i, j] = table[row, j]
        return values
    return read_rows, VERSION


@node_rewriter([*READING])
def rows_read_ahead(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: table[rows], of a matrix and a vector of many whole numbers, to `ReadRows`."""
    kinds = [(variable.type.ndim, variable.type.dtype[:3] in ('int', 'uin')) for variable in node.inputs]
    if kinds != [(2, False), (1, True)] or (node.outputs[0].type.shape[0] or 0) <= FEW:
        return None
    return [ReadRows()(*node.inputs)]


# ---------------------------------------------------------------------------------------------------------------------
# Updating
# ---------------------------------------------------------------------------------------------------------------------

@register_funcify_and_cache_key(RowUpdate)
def _funcify_row_update(op: RowUpdate, node: Apply, **kwargs: Any) -> tuple[Callable, str]:
    changes, of_vector = len(node.inputs) == 4, node.inputs[0].type.ndim == 1
    assign = '=' if op.store else '+='
    source = '\n'.join([
        f"def row_update(table, values, rows{', changes' if changes else ''}):",
        *['    table = table.copy()'] * (not op.inplace),
        '    for i in range(len(rows)):',
        *[f'        fetch_row(table, rows[min(i + {AHEAD}, len(rows) - 1)])'] * (not of_vector),
        *['        if not changes[i]:', '            continue'] * changes,
        '        row = rows[i]',
        *([f'        table[row] {assign} values[i]'] if of_vector else [
            '        for j in range(table.shape[1]):', f'            table[row, j] {assign} values[i, j]']),
        '    return table'])
    function = numba_njit(compile_numba_function_src(source, 'row_update', {'fetch_row': fetch_row}))
    return function, sha256(f'{source} {VERSION}'.encode()).hexdigest()


@node_rewriter(ROW_UPDATES)
def row_updates(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: AdvancedIncSubtensor1 to `RowUpdate` where it overwrites whole rows of a matrix in place.

    PyTensor 3.0 and 3.1 make loops over views of rows, which stay scalar; later ones have good loops.
    """
    if not isinstance(node.op, AdvancedIncSubtensor1) or not node.op.inplace:
        return None
    x, y, rows = node.inputs
    if x.type.ndim != 2 or None in y.type.shape or y.type.shape[0] == 1 or x.type.shape[1] != y.type.shape[1]:
        return None
    return [RowUpdate(node.op.set_instead_of_inc, inplace=True)(x, y, rows)]
