"""Rows that stand several times in a mini-batch: occurrences, and sums over these, for ``repeats='sum'``.

Duplicates are found once for all that a mini-batch reads and updates at the same rows.  A row's total stands at its
last occurrence, which alone updates the row.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor.backends.common import TableUpdate, version_of

VERSION = version_of(__file__)


class Occurrences(Op):
    """Rows (n,), and bool (n,) which of them count, to the occurrence before each and to which are the last.

    Outputs are int64 (n,), the number of the row's occurrence before this one, -1 where this is the first; and bool
    (n,), True for a row's last occurrence.  Those that do not count are neither.
    """
    __props__ = ()

    def make_node(self, rows: TensorVariable, counts: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [rows, counts], [TensorType('int64', rows.type.shape)(),
                                            TensorType('bool', rows.type.shape)()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        output_storage[0][0], output_storage[1][0] = occurrences(*inputs)


class RunningSums(TableUpdate):
    """Values (n, ...) to the sums over each row's occurrences so far, by the first output of `Occurrences`."""

    def make_node(self, values: TensorVariable, before: TensorVariable) -> Apply:  # type: ignore[override]
        return Apply(self, [values, before], [values.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list) -> None:
        values, before = inputs
        values = values if self.inplace else values.copy()
        for i in np.flatnonzero(before >= 0):
            values[i] += values[before[i]]
        output_storage[0][0] = values


def occurrences(rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the outputs of `Occurrences` with a hash table of at most half its places taken."""
    size = 1
    while size < 2 * len(rows):
        size *= 2
    latest = np.full(size, -1, np.int32)  # number of the latest occurrence of the row that has this place
    before, is_last = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        if not counts[i]:
            continue
        place = (np.int64(rows[i]) * 2654435761 >> 12) & (size - 1)
        while latest[place] >= 0 and rows[latest[place]] != rows[i]:
            place = (place + 1) & (size - 1)
        before[i] = latest[place]
        if before[i] >= 0:
            is_last[before[i]] = False
        latest[place], is_last[i] = i, True
    return before, is_last


@register_funcify_default_op_cache_key(Occurrences)
def _funcify_occurrences(op: Occurrences, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    return numba_njit(occurrences), VERSION


@register_funcify_default_op_cache_key(RunningSums)
def _funcify_running_sums(op: RunningSums, node: Apply, **kwargs: Any) -> tuple[Callable, int]:
    inplace, of_vector = op.inplace, node.inputs[0].type.ndim == 1

    @numba_njit
    def running_sums(values: np.ndarray, before: np.ndarray) -> np.ndarray:
        values = values if inplace else values.copy()
        rows = values.reshape(-1, 1) if of_vector else values
        for i in range(len(before)):
            if before[i] >= 0:
                for j in range(rows.shape[1]):
                    rows[i, j] += rows[before[i], j]
        return values
    return running_sums, VERSION + of_vector


def summed_repeats(values: TensorVariable, rows: TensorVariable,
                   counts: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
    """Return sums (n, ...) over the occurrences of each of the rows (n,) so far, and which are the last, bool (n,)."""
    before, is_last = Occurrences()(rows, counts)  # type: ignore[misc]
    return RunningSums()(values, before), is_last  # type: ignore[return-value]
