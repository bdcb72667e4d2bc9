"""Numba: reading and updating many rows of a table, and rewrites that put this into a graph.

A mini-batch with 2,048 additional negatives reads as many rows, and changes them in three tables: the weights, their
accumulators and their velocities.  Most of the time goes into waiting for memory.  So each row is prefetched some rows
ahead of its turn, and one loop reads and writes the three tables.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_njit,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.scalar.basic import ScalarOp, get_scalar_type
from pytensor.tensor import subtensor
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor.backends.common import FEW, FLOAT, ROW_UPDATES, CompiledOp, RowUpdate, TableUpdate, version_of
from gru4rec_pytensor.backends.numba_ops import with_inlined_bodies
from gru4rec_pytensor.backends.repeats import Occurrences

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


def is_reading_of_rows(node: Apply | None) -> bool:
    """Return whether a node is table[rows], of a matrix and a vector of whole numbers."""
    return node is not None and isinstance(node.op, READING) and [
        (variable.type.ndim, variable.type.dtype[:3] in ('int', 'uin')) for variable in node.inputs] == [
        (2, False), (1, True)]


class ReadRows(CompiledOp):
    """table[rows], of many rows."""

    def make_node(self, table: TensorVariable, rows: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [table, rows], [table[rows].type()])


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
    """Rewrite: table[rows] of many rows to `ReadRows`."""
    if not is_reading_of_rows(node) or (node.outputs[0].type.shape[0] or 0) <= FEW:
        return None
    return [ReadRows()(*node.inputs)]


# ---------------------------------------------------------------------------------------------------------------------
# Updating one table
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


# ---------------------------------------------------------------------------------------------------------------------
# Updating several tables at once
# ---------------------------------------------------------------------------------------------------------------------

class JointRowUpdate(CompiledOp, TableUpdate):
    """The `RowUpdate` of several tables at the same rows, with the loop that computes their values.

    Inputs are rows (n,), for `conditional` updates `changes` (n,), the tables, and other arguments of the body, to be
    broadcast to (n, columns).  Each occurrence of a row reads the tables as they were before all of them.

    body : of the loop, a function of numbers
    operands : for each of its inputs, the number of the table whose row it is, or None
    outputs : for each table, the number of the body's output that is added or stored
    stores : for each table, True to store, False to add
    distinct : whether no row changes twice
    """
    __props__ = ('body', 'operands', 'outputs', 'stores', 'conditional', 'distinct', 'inplace')

    def __init__(self, body: ScalarOp, operands: tuple[int | None, ...], outputs: tuple[int, ...],
                 stores: tuple[bool, ...], conditional: bool, distinct: bool = False, inplace: bool = False) -> None:
        self.body, self.operands, self.outputs, self.stores = body, operands, outputs, stores
        self.conditional, self.distinct = conditional, distinct
        self.first_table = 2 if conditional else 1  # number of the input
        super().__init__(inplace, range(self.first_table, self.first_table + len(outputs)))

    def make_node(self, *inputs: Variable) -> Apply:
        tables = inputs[self.first_table:self.first_table + len(self.outputs)]
        return Apply(self, [*inputs], [table.type() for table in tables])

    def arguments_of_body(self, others: Sequence, row_of: Callable[[int], Any]) -> list:
        """Return the arguments of the body: what `row_of` says of a table's number, or the next of `others`."""
        left = iter(others)
        return [next(left) if k is None else row_of(k) for k in self.operands]


@numba_njit
def repeated_rows(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the rows that occur several times.

    Returns, int32 (n,), each occurrence's number of its row, -1 if that occurs once, and how many numbers there are.
    """
    size = 1
    while size < 4 * len(rows):
        size *= 2
    number, n_repeated = np.full(len(rows), -1, np.int32), 0
    first = np.full(size, -1, np.int32)  # a hash table: number of the row's first occurrence
    for i in range(len(rows)):
        place = (rows[i] * 2654435761 >> 12) & (size - 1)
        while first[place] >= 0 and rows[first[place]] != rows[i]:
            place = (place + 1) & (size - 1)
        before = first[place]
        if before < 0:
            first[place] = i
            continue
        if number[before] < 0:
            number[before] = n_repeated
            n_repeated += 1
        number[i] = number[before]
    return number, n_repeated


def joint_row_update_source(op: JointRowUpdate, operands: Sequence[Variable]) -> str:
    """Return the source of a `JointRowUpdate`; the types of `operands` say which are the same for all rows or columns.

    The body's values go to arrays of one row, so that each loop is over few arrays: LLVM makes no vectors where
    it would have to compare many arrays for overlap.
    """
    tables = [f'table{k}' for k in range(len(op.outputs))]
    others = [f'other{i}' for i in range(len(operands))]
    read = sorted({k for k in op.operands if k is not None})
    written = sorted(set(op.outputs))

    def number_at(other: str, type_: Any) -> str:
        i, j = (0 if fixed else name for fixed, name in zip(type_.broadcastable, 'ij'))
        return f'{other}[{i}, {j}]'

    numbers = op.arguments_of_body([number_at(other, variable.type) for other, variable in zip(others, operands)],
                                   lambda k: f'old{k}[j]')
    results = ', '.join(f'value{k}[j]' if k in written else '_' for k in range(op.body.nout))
    arguments = ['rows', *['changes'] * op.conditional, *tables, *others]
    keep = [] if op.distinct else [  # what this occurrence writes, a later one must not read
        '        if number[i] >= 0:',
        '            if not is_kept[number[i]]:',
        *[f'                kept{k}[number[i], :] = old{k}' for k in read],
        '            is_kept[number[i]] = True',
        *[f'            old{k} = kept{k}[number[i]]' for k in read]]
    return '\n'.join([
        f"def joint_row_update({', '.join(arguments)}):",
        *[f'    {table} = {table}.copy()' for table in tables if not op.inplace],
        *([] if op.distinct else [
            '    number, n_repeated = repeated_rows(rows)',
            '    is_kept = np.zeros(n_repeated, np.bool_)',
            *[f'    kept{k} = np.empty((n_repeated, table{k}.shape[1]), table{k}.dtype)' for k in read]]),
        *[f'    value{k} = np.empty(table0.shape[1], table0.dtype)' for k in written],
        '    for i in range(len(rows)):',
        f'        row, later = rows[i], rows[min(i + {AHEAD}, len(rows) - 1)]',
        *[f'        fetch_row({table}, later)' for table in tables],
        *['        if not changes[i]:', '            continue'] * op.conditional,
        *[f'        old{k} = table{k}[row]' for k in read],
        *keep,
        '        for j in range(table0.shape[1]):',
        f"            {results} = body({', '.join(numbers)})",
        *[line for table, output, store in zip(tables, op.outputs, op.stores) for line in (
            f'        for j in range({table}.shape[1]):',
            f"            {table}[row, j] {'=' if store else '+='} value{output}[j]")],
        f"    return ({''.join(f'{table}, ' for table in tables)})" if len(tables) > 1 else f'    return {tables[0]}'])


@register_funcify_and_cache_key(JointRowUpdate)
def _funcify_joint_row_update(op: JointRowUpdate, node: Apply, **kwargs: Any) -> tuple[Callable, str | None]:
    body: Any = with_inlined_bodies(op.body)
    others = node.inputs[op.first_table + len(op.outputs):]
    dtypes = op.arguments_of_body([variable.type.dtype for variable in others], lambda k: FLOAT)
    compiled, body_key = numba_funcify_and_cache_key(body, node=body.make_node(*[
        get_scalar_type(dtype=dtype)() for dtype in dtypes]))
    source = joint_row_update_source(op, others)
    names = {'np': np, 'body': compiled, 'repeated_rows': repeated_rows, 'fetch_row': fetch_row}
    function = numba_njit(compile_numba_function_src(source, 'joint_row_update', names), error_model='numpy')
    return function, body_key and sha256(f'{source} {body_key} {VERSION}'.encode()).hexdigest()


@node_rewriter([RowUpdate])
def joint_row_updates(fgraph: FunctionGraph, node: Apply) -> dict | None:
    """Rewrite: `RowUpdate` of several tables, whose values one loop computes for them alone, to `JointRowUpdate`."""
    loop, rows, changes = node.inputs[1].owner, node.inputs[2], node.inputs[3:]
    if loop is None or not isinstance(loop.op, Elemwise):
        return None
    updates = [client for output in loop.outputs for client, _number in fgraph.clients[output]]
    tables = [update.inputs[0] for update in updates]
    if len(set(tables)) < len(tables) or any(
            not isinstance(update.op, RowUpdate) or update.op.inplace or update.inputs[2:] != [rows, *changes]
            or update.inputs[0].type.dtype != FLOAT or update.inputs[1].type.dtype != FLOAT
            or update.inputs[0].type.ndim != 2 or update.inputs[1].type.shape != (
                rows.type.shape[0], update.inputs[0].type.shape[1]) for update in updates):
        return None
    operands = [row_of_table(variable, tables, rows) for variable in loop.inputs]
    op = JointRowUpdate(loop.op.scalar_op, tuple(operands), tuple(loop.outputs.index(u.inputs[1]) for u in updates),
                        tuple(update.op.store for update in updates), conditional=bool(changes),
                        distinct=any(isinstance(getattr(which.owner, 'op', None), Occurrences) for which in changes))
    others = [variable for variable, k in zip(loop.inputs, operands) if k is None]
    joint = op.make_node(rows, *changes, *tables, *others)
    return dict(zip([update.outputs[0] for update in updates], joint.outputs))


def row_of_table(variable: Variable, tables: list[Variable], rows: Variable) -> int | None:
    """Return the number of the table that a variable is rows of, or None."""
    if not is_reading_of_rows(variable.owner):
        return None
    table, index = variable.owner.inputs
    return tables.index(table) if index is rows and table in tables else None
