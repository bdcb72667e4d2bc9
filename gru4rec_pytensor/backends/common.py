"""Definitions that the backends for Numba and JAX share: locks, updates of rows, two rewrites."""
from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from numba.core.compiler_lock import global_compiler_lock
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor import subtensor
from pytensor.tensor.math import Sum
from pytensor.tensor.variable import TensorVariable

FLOAT = 'float32'  # of weights and scores, as in the release's own scripts
# Positions among PyTensor's rewrites: before element-wise operations are fused into loops, where operations may
# overwrite their inputs, and after all others.
BEFORE_FUSION, IN_PLACE, AFTER_ALL = 48.9, 70, 1000

# PyTensor's rewrites for diagonal, symmetric and selection matrices: there are none here, and looking for them takes a
# fifth of the time of all rewrites.
ABOUT_SPECIAL_MATRICES = ('dot_diag_to_elemwise', 'selection_dot_to_indexing', 'useless_symmetric_transpose')

# Rows of an array increased or set; PyTensor 3.0 and 3.1 have two operations for it, later ones have one.
ROW_UPDATES = [getattr(subtensor, name) for name in ('AdvancedIncSubtensor', 'AdvancedIncSubtensor1')
               if hasattr(subtensor, name)]

FEW = 512  # rows of an update that PyTensor's own operations serve well


def version_of(*files: str | Path) -> int:
    """Return a number that changes when one of the files does.

    A compiled function is found on disk by its key.  So the key holds the version of the files that make its code.
    """
    return int(sha256(b''.join(Path(file).read_bytes() for file in files)).hexdigest()[:12], 16)


# ---------------------------------------------------------------------------------------------------------------------
# What threads of a process share
# ---------------------------------------------------------------------------------------------------------------------

COMPILER_LOCK = threading.RLock()
FORKED_WHILE_COMPILING = threading.Event()
FORKED_WITH_JAX = threading.Event()


def _after_fork() -> None:
    """Notice, in a new child process, what only threads of the parent could do: release a lock, or run JAX."""
    if 'jax' in sys.modules:
        FORKED_WITH_JAX.set()
    for lock in (COMPILER_LOCK, global_compiler_lock._lock):
        if lock.acquire(blocking=False):
            lock.release()
        else:
            FORKED_WHILE_COMPILING.set()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def compiling() -> Iterator[None]:
    """Let one thread in at a time: PyTensor changes settings of the whole process while it compiles."""
    if FORKED_WHILE_COMPILING.is_set():
        raise RuntimeError('this process was forked while another thread compiled, and so cannot compile: start it '
                           "with multiprocessing's method 'spawn' or 'forkserver'")
    with COMPILER_LOCK:
        yield


def check_working_directory() -> None:
    """Raise OSError if the working directory is gone, which Numba reads before it compiles."""
    try:
        os.getcwd()
    except OSError as error:
        raise OSError('the working directory of this process is gone, and Numba does not compile without one: go to '
                      'another with os.chdir') from error


@contextmanager
def symbols_of_float32() -> Iterator[None]:
    """Make numbers in a graph float32 within; for one thread at a time."""
    with compiling(), pytensor.config.change_flags(floatX=FLOAT):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Operations, updates of rows, and rewrites
# ---------------------------------------------------------------------------------------------------------------------

class CompiledOp(Op):
    """An operation that rewrites put into graphs for Numba or JAX; the interpreter does not run it."""
    __props__: tuple[str, ...] = ()

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        raise NotImplementedError(f'{self} is for a compiled backend')


def row_update(table: TensorVariable, rows: TensorVariable, values: TensorVariable,
               changes: TensorVariable | None = None, *, store: bool) -> TensorVariable:
    """Return `table` with values (n, ...) added to its rows (n,), or stored there: the last of a repeated row.

    An occurrence for which `changes`, bool (n,), is False does nothing.
    """
    n_rows = rows.type.shape[0]
    if changes is None and n_rows is not None and n_rows <= FEW:
        return (pt.set_subtensor if store else pt.inc_subtensor)(table[rows], values)
    of_rows: Any = RowUpdate(store)(table, values, rows, *[] if changes is None else [changes])
    return of_rows


class TableUpdate(Op):
    """An operation that returns new values of `tables`, numbers of its inputs, and overwrites those if `inplace`."""
    __props__: tuple[str, ...] = ('inplace',)

    def __init__(self, inplace: bool = False, tables: Sequence[int] = (0,)) -> None:
        self.inplace = inplace
        if inplace:
            self.destroy_map = {k: [table] for k, table in enumerate(tables)}


class RowUpdate(TableUpdate):
    """The operation of `row_update`: table, values, rows and, as an optional fourth input, `changes`.

    PyTensor's operations for it mean different things by version where a row occurs twice, and are compiled to loops
    that wait for the memory of one row after the other.
    """
    __props__ = ('store', 'inplace')

    def __init__(self, store: bool, inplace: bool = False) -> None:
        super().__init__(inplace)
        self.store = store

    def make_node(self, table: TensorVariable, values: TensorVariable, rows: TensorVariable,  # type: ignore[override]
                  *changes: TensorVariable) -> Apply:
        if values.type.dtype != table.type.dtype or values.type.ndim != table.type.ndim:
            raise TypeError(f'values must be like rows of the table, {table.type}: {values.type}')
        return Apply(self, [table, values, rows, *changes], [table.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        table, values, rows, *changes = inputs
        table = table if self.inplace else table.copy()
        if changes:
            values, rows = values[changes[0]], rows[changes[0]]
        if self.store:
            table[rows] = values
        else:
            np.add.at(table, rows, values)
        output_storage[0][0] = table


@node_rewriter([Sum])
def sums_in_own_precision(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: add up float32 in float32, not in float64, which halves the width of a vector instruction."""
    if node.inputs[0].type.dtype != FLOAT or node.op.acc_dtype == FLOAT:
        return None
    return [Sum(axis=node.op.axis, dtype=FLOAT, acc_dtype=FLOAT)(node.inputs[0])]


@node_rewriter([TableUpdate])
def tables_in_place(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: `TableUpdate` to the one that overwrites its tables."""
    if node.op.inplace:
        return None
    arguments = {name: getattr(node.op, name) for name in node.op.__props__}
    return type(node.op)(**arguments | {'inplace': True}).make_node(*node.inputs).outputs
