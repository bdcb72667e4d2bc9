"""JAX: the loop over mini-batches, and ranks, each as one program of XLA.  Needs JAX, an extra of the package."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt
from jax import Array
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.link.jax.linker import JAXLinker

from gru4rec_pytensor.backends.common import (
    BEFORE_FUSION,
    FLOAT,
    FORKED_WITH_JAX,
    ROW_UPDATES,
    CompiledOp,
    RowUpdate,
    compiling,
    sums_in_own_precision,
)
from gru4rec_pytensor.backends.repeats import Occurrences, RunningSums

NOWHERE = 2 ** 30  # number of a row that no table has


# ---------------------------------------------------------------------------------------------------------------------
# Updates of rows
# ---------------------------------------------------------------------------------------------------------------------
#
# A GPU adds in any order, which changes the last bits from run to run, and of several values that are set any one may
# win.  So each occurrence of a row writes the same final value, or only the last one writes at all.  XLA then sees that
# the table may be overwritten; an increment would make it copy the table first.

class SortedRows(CompiledOp):
    """The order of rows (n,), and the sorted rows; an optional second input says which of them change something.

    The sort is stable, so that the occurrences of a row lie together as they came; those that change nothing come last,
    as `NOWHERE`.
    """

    def make_node(self, rows: Variable, *changes: Variable) -> Apply:  # type: ignore[override]
        return Apply(self, [rows, *changes], [rows.type(), rows.type()])


class FinalRows(CompiledOp):
    """A table with values (n, ...) added to its rows, or stored there, by the outputs of `SortedRows`."""
    __props__ = ('store',)

    def __init__(self, store: bool) -> None:
        self.store = store

    def make_node(self, table: Variable, values: Variable, order: Variable,  # type: ignore[override]
                  rows: Variable) -> Apply:
        return Apply(self, [table, values, order, rows], [table.type()])


def sorted_rows(rows: Array, changes: Array | None = None) -> tuple[Array, Array]:
    """Compute `SortedRows`."""
    rows = rows if changes is None else jnp.where(changes, rows, NOWHERE)
    order = jnp.argsort(rows, stable=True)
    return order.astype(rows.dtype), rows[order]


def final_rows(table: Array, values: Array, order: Array, rows: Array, store: bool) -> Array:
    """Compute `FinalRows`; the last occurrence of a row writes."""
    values = values[order]
    if not store:
        values = table[rows] + sums_of_rows(rows, values)
    is_last = jnp.append(rows[1:] != rows[:-1], True)
    places = jnp.where(is_last, rows, NOWHERE + 1 + jnp.arange(len(rows)))
    return table.at[places].set(values, mode='drop', unique_indices=True)


def sums_of_rows(rows: Array, values: Array) -> Array:
    """Return, for each of the sorted rows (n,), the sum of the values (n, ...) of its occurrences up to and with it.

    By blocks of about sqrt(n) occurrences: one product with the table of which are the same adds up within each block;
    the row that a block begins with may also end those before it, and has their sums added.  So n occurrences take
    n sqrt(n) additions of rows, in the same order every time, and no n x n table.
    """
    n = len(rows)
    size = math.isqrt(n - 1) + 1
    padding = size * size - n
    blocks = jnp.pad(rows, (0, padding), constant_values=-1).reshape(size, size)
    of_blocks = jnp.pad(values.reshape(n, -1), ((0, padding), (0, 0))).reshape(size, size, -1)
    until = jnp.tri(size, dtype=bool)
    same = (blocks[:, :, None] == blocks[:, None, :]) & until
    sums = same.astype(values.dtype) @ of_blocks
    goes_on = (blocks[:, :1] == blocks[:, -1]) & jnp.tri(size, k=-1, dtype=bool)
    before = goes_on.astype(values.dtype) @ sums[:, -1]
    sums += jnp.where((blocks == blocks[:, :1])[:, :, None], before[:, None, :], 0)
    return sums.reshape(size * size, -1)[:n].reshape(values.shape)


@jax_funcify.register(SortedRows)
@jax_funcify.register(FinalRows)
def _funcify_rows(op: SortedRows | FinalRows, **kwargs: Any) -> Callable:
    return partial(final_rows, store=op.store) if isinstance(op, FinalRows) else sorted_rows


@node_rewriter([RowUpdate])
def many_row_updates_without_race(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: `RowUpdate` to `FinalRows`; the tables of a parameter have one `SortedRows`, after graphs are merged."""
    table, values, rows, *changes = node.inputs
    ordered: Any = SortedRows()(rows, *changes)
    final: Any = FinalRows(node.op.store)(table, values, *ordered)
    return [final]


@node_rewriter(ROW_UPDATES)
def row_updates_without_race(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: of few rows increased or set each occurrence writes the final value, by a table of which are the same.

    For the 50 rows of a mini-batch one product with such a table takes less time than the steps of `FinalRows`.
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


@jax_funcify.register(Occurrences)
def _funcify_occurrences(op: Occurrences, **kwargs: Any) -> Callable:
    def occurrences(rows: Array, counts: Array) -> tuple[Array, Array]:
        order, ordered = sorted_rows(rows, counts)
        same = (ordered[1:] == ordered[:-1]) & (ordered[1:] != NOWHERE)
        before = jnp.where(jnp.append(False, same), jnp.append(-1, order[:-1]), -1)
        is_last = ~jnp.append(same, False) & (ordered != NOWHERE)
        return jnp.zeros_like(order).at[order].set(before), jnp.zeros(len(rows), bool).at[order].set(is_last)
    return occurrences


@jax_funcify.register(RunningSums)
def _funcify_running_sums(op: RunningSums, **kwargs: Any) -> Callable:
    def running_sums(values: Array, before: Array) -> Array:
        # The first occurrence of a row, found by following the one before it, stands for the row in the sums.
        first = jnp.where(before < 0, jnp.arange(len(before)), before)
        for _doubling in range(len(before).bit_length()):
            first = first[first]
        order, rows = sorted_rows(first)
        return jnp.zeros_like(values).at[order].set(sums_of_rows(rows, values[order]))
    return running_sums


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------

class PureLinker(JAXLinker):
    """PyTensor's linker for JAX, which converts functions and does not compile them."""

    def jit_compile(self, fn: Callable) -> Callable:
        return fn


def jax_mode(linker: type[JAXLinker] = JAXLinker) -> Mode:
    """Return PyTensor's mode for JAX, with our rewrites."""
    rewrites = (sums_in_own_precision, row_updates_without_race, many_row_updates_without_race)
    return Mode(linker(), get_mode('JAX').provided_optimizer).register(*(
        (in2out(rewrite, name=rewrite.__name__, ignore_newtrees=True), BEFORE_FUSION) for rewrite in rewrites))


def check_not_forked() -> None:
    """Raise RuntimeError in a child of a process that had imported JAX: it would wait for JAX's threads for ever."""
    if FORKED_WITH_JAX.is_set():
        raise RuntimeError("this process was forked from one that had JAX's threads, and so cannot use JAX: start it "
                           "with multiprocessing's method 'spawn' or 'forkserver'")


class JaxFunction:
    """A graph as a pure function for JAX: ``function(*inputs, *values of the shared variables)`` -> outputs.

    `storage` are one-element lists that hold the values of the shared variables; `new_value` is the number of a shared
    variable -> number of the output that is its value after the step.
    """

    def __init__(self, inputs: Sequence[Variable], outputs: Sequence[Variable], updates: dict | None = None) -> None:
        check_not_forked()
        with compiling():
            function = pytensor.function(inputs, outputs, updates=updates, mode=jax_mode(PureLinker),
                                         on_unused_input='ignore')
        fgraph = function.maker.fgraph
        self.function = function.vm.jit_fn
        self.storage = [function.vm.storage_map[variable] for variable in fgraph.inputs[len(inputs):]]
        self.new_value = {i - len(inputs): o for o, i in fgraph.update_mapping.items()}
        self._length = 0  # of the longest chunk so far

    def values(self) -> list:
        """Return the values of the shared variables, on the device."""
        check_not_forked()
        for cell in self.storage:
            cell[0] = jnp.asarray(cell[0])
        return [cell[0] for cell in self.storage]

    def padded(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Return sequences with zeros up to the longest so far, since XLA compiles a program for each shape."""
        length = self._length = max(self._length, len(sequences[0]))  # other threads may change the attribute
        return [np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1)) for rows in sequences]


class JaxStep:
    """A graph as one program of XLA, which holds no state but the variables that it reads."""

    def __init__(self, inputs: Mapping[str, Variable], outputs: Mapping[str, Variable]) -> None:
        self._step, self._inputs, self._outputs = JaxFunction([*inputs.values()], [*outputs.values()]), inputs, outputs
        self._program = jax.jit(self._step.function)

    def __call__(self, arrays: dict[str, Any]) -> dict[str, Array]:
        with jax.default_matmul_precision('float32'):
            found = self._program(*[arrays[name] for name in self._inputs], *self._step.values())
        return dict(zip(self._outputs, found))


class JaxLoop:
    """The step and the loop around it as one program of XLA, which owns the weights and overwrites them.

    The arrays that the step updates are donated to each call and returned by it, so that no matrix is copied.  They
    stay on the device between calls; `SharedVariable.get_value` gives JAX arrays then.
    """

    def __init__(self, sequences: Mapping[str, Variable], output: Variable, updates: dict) -> None:
        self.step, self._names = JaxFunction([*sequences.values()], [output], updates), [*sequences]
        step, new_value = self.step.function, self.step.new_value

        def loop(n_rows: Array, sequences: list[Array], states: list[Array]) -> tuple:
            def unfinished(carry: tuple) -> Array:
                n_done, outputs, _states = carry
                return (n_done < n_rows) & jnp.isfinite(outputs[n_done - 1])

            def one_step(carry: tuple) -> tuple:
                n_done, outputs, states = carry
                results = step(*[rows[n_done] for rows in sequences], *states)
                states = [results[new_value[k]] if k in new_value else state for k, state in enumerate(states)]
                return n_done + 1, outputs.at[n_done].set(results[0]), states

            outputs = jnp.zeros(len(sequences[0]), FLOAT)
            return jax.lax.while_loop(unfinished, one_step, (0, outputs, states))

        self.program = jax.jit(loop, donate_argnums=2)

    def __call__(self, sequences: dict[str, np.ndarray]) -> np.ndarray:
        n_rows = len(sequences[self._names[0]])
        rows = self.step.padded([sequences[name] for name in self._names])
        with jax.default_matmul_precision('float32'):  # a GPU would round factors to 10 bits otherwise
            n_done, outputs, states = self.program(n_rows, rows, self.step.values())
        for cell, state in zip(self.step.storage, states):
            cell[0] = state
        return np.asarray(outputs)[:int(n_done)]


class JaxRanks:
    """Ranks of next items, counted on the device: states, scores and comparisons of K mini-batches in one call.

    Scores are made and compared in blocks of items, so that no array of all items' scores is needed.

    `inputs` are 'item', 'starts' and the states; `outputs` are 'top', the last layer's output, and the new states;
    `activated` is made of `scores`, a symbolic matrix; `block` is the number of items at a time.
    """

    def __init__(self, inputs: Mapping[str, Variable], outputs: Mapping[str, Variable], scores: Variable,
                 activated: Variable, block: int) -> None:
        step = JaxFunction([*inputs.values()], [*outputs.values()])
        self._step, self._activation, self._block = step, JaxFunction([scores], [activated]), block

        def loop(items: Array, starts: Array, targets: Array, states: dict[str, Array], values: list[Array],
                 *arrays: Array) -> tuple:
            def one_step(states: dict[str, Array], row: tuple) -> tuple:
                item, start, target = row
                given = {'item': item, 'starts': start, **states}
                found = dict(zip(outputs, step.function(*[given[name] for name in inputs], *values)))
                return {name: found[name] for name in states}, self._counts(found['top'], target, *arrays)
            return jax.lax.scan(one_step, states, (items, starts, targets))

        self.program = jax.jit(loop)

    def _counts(self, H: Array, target: Array, column: Array, all_Wy: Array, all_By: Array, Wy: Array,
                By: Array) -> tuple[Array, Array, Array]:
        """Count, for one mini-batch, the other items that score higher than the target and the same, and find NaN."""
        size, activation = min(self._block, len(By)), self._activation.function

        def scores_of_block(k: Array) -> tuple[Array, Array, Array]:
            # The last block reaches back into the one before it, and repeats some of its items.
            first = jnp.minimum(k * size, len(By) - size)
            W, b = (jax.lax.dynamic_slice_in_dim(array, first, size) for array in (Wy, By))
            columns = first + jnp.arange(size)
            return activation(H @ W.T + b)[0], columns == column[target][:, None], columns >= k * size

        def find_target(k: Array, target_score: Array) -> Array:
            scores, is_target, _is_new = scores_of_block(k)
            return jnp.where(is_target.any(axis=1), jnp.where(is_target, scores, 0).sum(axis=1), target_score)

        def count(k: Array, totals: tuple) -> tuple[Array, Array]:
            scores, is_target, is_new = scores_of_block(k)
            counted, (greater, equal) = is_new & ~is_target, totals
            return (greater + (counted & (scores > target_score[:, None])).sum(axis=1),
                    equal + (counted & (scores == target_score[:, None])).sum(axis=1))

        n_blocks, zeros = -(-len(By) // size), jnp.zeros(len(H), int)
        # A target that is none of the ranked items has this score; others have that of their column, to the last bit.
        target_score = activation(((H * all_Wy[target]).sum(axis=1) + all_By[target])[:, None])[0][:, 0]
        target_score = jax.lax.fori_loop(0, n_blocks, find_target, target_score)
        return *jax.lax.fori_loop(0, n_blocks, count, (zeros, zeros)), jnp.isnan(target_score)

    def __call__(self, items: np.ndarray, starts: np.ndarray, targets: np.ndarray, states: dict, column: np.ndarray,
                 all_output: tuple, output: tuple) -> tuple[dict, list[np.ndarray]]:
        """Return the states after K mini-batches, counts (K, B) of higher and of equal scores, and where one is NaN.

        items, targets : int64 (K, B), indices; starts : bool (K, B), True where a session starts
        states : arrays by name, before the first mini-batch
        column : int64 (n_items,), position of each item among the ranked ones, -1 where it is none of them
        all_output, output : Wy and By of all items, and of the ranked ones
        """
        sequences = self._step.padded([items, starts, targets])
        with jax.default_matmul_precision('float32'):
            states, counts = self.program(*sequences, states, self._step.values(), column, *all_output, *output)
        return states, [np.asarray(count)[:len(items)] for count in counts]
