"""GRU4Rec: session-based recommendations with recurrent neural networks.

Hidasi, Karatzoglou, Baltrunas, Tikk, ICLR 2016, arXiv 1511.06939 v4, as a symbolic PyTensor graph.  Read from top to
bottom in the order of the paper's section 3:

* what the symbolic functions depend on: `Settings`;
* the gated recurrent unit (3, equations 2-5): `gru_step`, and the units that it is compared with;
* names and shapes of weights and states: `weight_layout`, `state_shapes`;
* the input (3.1): `item_input`, `session_input`, and the layers over it (Figure 1): `network`;
* mini-batches of parallel sessions (3.1.1, Figure 2): `session_parallel_minibatches`;
* scores of the sampled items (3.1.2): `sampled_scores`;
* ranking losses (3.1.3): `top1`, `bpr`, `cross_entropy`, `mrr`;
* update rules (4.2): `adagrad`, `rmsprop`, `sgd`, `momentum_step`;
* the training step that ties them together: `training_step`;
* the estimator with the interface of the authors' 2016 release: `GRU4Rec`.

Constructor arguments and weight names are those of the release, and so is every number that it computes;
docs/deviations.md lists the few differences.
"""
from __future__ import annotations

import itertools
import logging
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor import backends, model_file, mrg
from gru4rec_pytensor.backends import FLOAT
from gru4rec_pytensor.checks import (
    check_choice,
    check_flag,
    check_number,
    check_whole_number,
    check_whole_numbers,
    first_few,
)
from gru4rec_pytensor.events import (
    MAX_SESSION_LENGTH,
    as_ids,
    check_events,
    index_by_appearance,
    n_trainable_sessions,
    session_order,
)
from gru4rec_pytensor.parameters import read as read_parameters
from gru4rec_pytensor.recommend import Session, recommendations

Symbol = TensorVariable  # a tensor without a value yet: what an expression is made of
Updates = dict  # shared variable -> symbol of its value after the mini-batch

logger = logging.getLogger('gru4rec')


# ---------------------------------------------------------------------------------------------------------------------
# What the symbolic functions depend on
# ---------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Settings:
    """The number of items, and the arguments of `GRU4Rec`, where they are described, that its network depends on.

    ``GRU4Rec(layers=[100]).settings(n_items=37_483)`` makes one without any data.
    """
    n_items: int
    layers: tuple[int, ...]
    batch_size: int
    dropout_p_hidden: float
    learning_rate: float
    momentum: float
    adapt: str | None
    decay: float
    grad_cap: float
    sigma: float
    init_as_normal: bool
    reset_after_session: bool
    loss: str
    hidden_act: str
    final_act: str | None
    lmbd: float
    input_mode: str
    session_decay: float
    embedding: int | None
    unit: str
    input_to_all_layers: bool
    feedforward: tuple[int, ...]
    negatives: str
    seed: int

    @property
    def final_activation(self) -> str:
        """Name of the scores' activation."""
        return final_activation(self.loss, self.final_act)


def final_activation(loss: str, final_act: str | None) -> str:
    """Name of the scores' activation: `final_act`, or what the release takes where that is None or out of place."""
    if loss == 'cross-entropy':
        return 'tanh' if final_act == 'tanh' else 'linear'
    return final_act or 'tanh'


# ---------------------------------------------------------------------------------------------------------------------
# Recurrent units (section 3, equations 1-5)
# ---------------------------------------------------------------------------------------------------------------------

def linear(x: Any) -> Any:
    """f(x) = x."""
    return x


def relu(x: Symbol) -> Symbol:
    """f(x) = max(x, 0), as the release writes it."""
    return pt.maximum(x, 0)


ACTIVATIONS: dict[str, Callable] = {'tanh': pt.tanh, 'linear': linear, 'relu': relu}


NUMPY_ACTIVATIONS: dict[str, Callable] = {'tanh': np.tanh, 'linear': linear, 'relu': partial(np.maximum, 0)}


def gru_step(gates: Symbol, H: Symbol, Wh: Symbol, Whr: Symbol, Whz: Symbol, hidden_act: Callable) -> Symbol:
    """New hidden state of a gated recurrent unit (section 3, equations 2-5).

        z = sigmoid(Wz x + Uz h)            update gate     (eq. 3)
        r = sigmoid(Wr x + Ur h)            reset gate      (eq. 5)
        c = act(W x + U (r * h))            candidate       (eq. 4)
        h' = (1 - z) * h + z * c            new state       (eq. 2)

    The reset gate acts on h *before* the product with U, as in the paper (cuDNN's GRU applies it after).

    Parameters
    ----------
    gates : symbolic (B, 3H), what the input adds to the candidate, the reset gate and the update gate: [h | r | z]
    H : symbolic (B, H), the state before
    Wh, Whr, Whz : symbolic (H, H): U, Ur and Uz of the equations
    """
    gate_h, gate_r, gate_z = pt.split(gates, [H.shape[1]] * 3, n_splits=3, axis=1)
    r = pt.sigmoid(gate_r + H @ Whr)
    z = pt.sigmoid(gate_z + H @ Whz)
    candidate = hidden_act(gate_h + (H * r) @ Wh)
    return (1 - z) * H + z * candidate


def lstm_step(gates: Symbol, C: Symbol, H: Symbol, Wh: Symbol, Whi: Symbol, Whf: Symbol, Who: Symbol,
              hidden_act: Callable) -> tuple[Symbol, Symbol]:
    """New cell and hidden state of a long short-term memory unit, which section 4.2 compares with.

        i, f, o = sigmoid(W. x + U. h)      input, forget and output gate
        C' = f * C + i * act(W x + U h)     cell
        h' = o * act(C')                    hidden state

    `gates`, symbolic (B, 4H), are [h | i | f | o]; C, the cell before, is (B, H).  Returns (C', h').
    """
    gate_h, gate_i, gate_f, gate_o = pt.split(gates, [H.shape[1]] * 4, n_splits=4, axis=1)
    i, f, o = (pt.sigmoid(gate + H @ W) for gate, W in ((gate_i, Whi), (gate_f, Whf), (gate_o, Who)))
    C = f * C + i * hidden_act(gate_h + H @ Wh)
    return C, o * hidden_act(C)


def rnn_step(gates: Symbol, H: Symbol, Wh: Symbol, hidden_act: Callable) -> Symbol:
    """h' = act(W x + U h): new state of a unit without gates (equation 1), which section 4.2 compares with."""
    return hidden_act(gates + H @ Wh)


class Unit(NamedTuple):
    """A kind of recurrent unit.

    gates : a letter for each gate, in the order in which they stand side by side; 'h' is the candidate, and the others
        are those of the weights' names: ``Wr0, Whr0, Br0``
    states : letters of the states that a layer carries to the next event; the last, 'H', is its output
    step : (gates, states..., recurrent matrices..., activation) -> new states
    """
    gates: str
    states: str
    step: Callable


UNITS = {'gru': Unit('hrz', 'H', gru_step), 'lstm': Unit('hifo', 'CH', lstm_step), 'rnn': Unit('h', 'H', rnn_step)}


# ---------------------------------------------------------------------------------------------------------------------
# Names and shapes of weights and states
# ---------------------------------------------------------------------------------------------------------------------

def weight_layout(settings: Settings) -> dict[str, tuple[list[str], tuple]]:
    """The weights, in the order in which initial values are drawn: the parts that stand side by side, and their shape.

    The gates of a layer are one weight here, ``W0`` of [h | r | z]; the names of the parts are the release's.
    """
    gates = UNITS[settings.unit].gates
    n_inputs = settings.embedding or settings.n_items
    layout: dict = {'E': (['E'], (settings.n_items, settings.embedding))} if settings.embedding else {}
    for i, (n_below, n) in enumerate(zip([n_inputs, *settings.layers], settings.layers)):
        layout[f'W{i}'] = [f'W{gate}{i}' for gate in 'x' + gates[1:]], (n_below, n)
        if i and settings.input_to_all_layers:
            layout[f'I{i}'] = [f'I{gate}{i}' for gate in 'x' + gates[1:]], (n_inputs, n)
        layout.update((f'W{name}{i}', ([f'W{name}{i}'], (n, n))) for name in recurrent_names(UNITS[settings.unit]))
        layout[f'B{i}'] = [f'B{gate}{i}' for gate in gates], (n,)
    sizes = [settings.layers[-1], *settings.feedforward]
    for j, shape in enumerate(zip(sizes[:-1], sizes[1:])):
        layout |= {f'Wd{j}': ([f'Wd{j}'], shape), f'Bd{j}': ([f'Bd{j}'], shape[1:])}
    return layout | {'Wy': (['Wy'], (settings.n_items, sizes[-1])), 'By': (['By'], (settings.n_items,))}


def recurrent_names(unit: Unit) -> list[str]:
    """Of the recurrent matrices, without W and the number of the layer: 'h', 'hr', 'hz'."""
    return ['h', *[f'h{gate}' for gate in unit.gates[1:]]]


def input_tables(settings: Settings) -> list[str]:
    """Names of the weights with a row for each item that the input is multiplied with."""
    deeper = range(1, len(settings.layers)) if settings.input_to_all_layers else []
    return ['E'] if settings.embedding else ['W0', *[f'I{i}' for i in deeper]]


def join_gates(arrays: dict[str, np.ndarray], settings: Settings) -> dict[str, np.ndarray]:
    """Arrays under the release's names to those of `weight_layout`; none to none."""
    if not arrays:
        return {}
    return OrderedDict((name, np.hstack([arrays[part] for part in parts]))
                       for name, (parts, _shape) in weight_layout(settings).items())


def split_gates(variables: dict[str, Any], settings: Settings) -> dict[str, np.ndarray]:
    """Copies of the values of shared variables under the release's names: inverse of `join_gates`."""
    layout, arrays = weight_layout(settings), {}
    for name, variable in variables.items():
        value, parts = np.asarray(variable.get_value(borrow=True)), layout[name][0]
        arrays.update({part: array.copy() for part, array in zip(parts, np.split(value, len(parts), axis=-1))})
    return arrays


def state_shapes(settings: Settings) -> dict[str, tuple[int, str]]:
    """What a session carries from event to event: name -> width and dtype, in the order in which states are handed on.

    ``H0`` for each layer, with LSTM units ``C0`` before it; with input_mode='session' the last items come first.
    """
    shapes = {'history': (history_length(settings.session_decay), 'int32')} if settings.input_mode == 'session' else {}
    return shapes | {f'{state}{i}': (n, FLOAT) for i, n in enumerate(settings.layers)
                     for state in UNITS[settings.unit].states}


def initial_states(settings: Settings, batch_size: int) -> list[np.ndarray]:
    """The states of sessions before their first event: zeros, float32 (batch_size, H); a history is int32, of -1."""
    return [np.full((batch_size, width), -1 if name == 'history' else 0, dtype)
            for name, (width, dtype) in state_shapes(settings).items()]


def history_length(decay: float) -> int:
    """How many events of a session count for `session_input`."""
    return int(min(MAX_SESSION_LENGTH, 1 + np.floor(np.log(1e-3) / np.log(decay)))) if decay else 1


def mask_shapes(settings: Settings) -> list[tuple]:
    """Shapes of the dropout masks, (B, units) of each layer; none without dropout."""
    units = (*settings.layers, *settings.feedforward)
    return [(settings.batch_size, n) for n in units] if settings.dropout_p_hidden else []


def initial_weight(rng: np.random.RandomState, shape: tuple, sigma: float = 0, normal: bool = False,
                   n_rows: int | None = None) -> np.ndarray:
    """U(-x, x), or N(0, x), with x = `sigma`, or sqrt(6 / (rows + columns)) for sigma 0; float32 of a float64 draw.

    With `n_rows` so many rows are drawn of the weight that has this shape.  Biases, which are vectors, are zero.
    """
    drawn_shape = (shape[0] if n_rows is None else n_rows, *shape[1:])
    if len(shape) == 1:
        return np.zeros(drawn_shape, FLOAT)
    scale = sigma or np.sqrt(6 / sum(shape))
    return (rng.randn(*drawn_shape) * scale if normal else rng.rand(*drawn_shape) * 2 * scale - scale).astype(FLOAT)


def shared(name: str, value: np.ndarray) -> Any:
    """Shared variable whose static shape is known, so that the compiler need not check it."""
    return pytensor.shared(value, name=name, shape=value.shape, borrow=True)


class Variables(NamedTuple):
    """The shared variables that a training step changes, by the names of `weight_layout`.

    weights : of all layers
    acc, vel : accumulators and velocities of the update rule, of the same shapes; empty where it has none
    """
    weights: dict[str, Any]
    acc: dict[str, Any]
    vel: dict[str, Any]

    @classmethod
    def of(cls, settings: Settings, weights: dict[str, np.ndarray], acc: dict[str, np.ndarray] | None = None,
           vel: dict[str, np.ndarray] | None = None) -> Variables:
        """Variables with these values; accumulators and velocities that are not given are zero.

        Their arrays are freed with the last reference to the variables: Numba keeps what it compiled for ever, and that
        refers to them.
        """
        def state(kind: str, used: Any, values: dict[str, np.ndarray] | None) -> OrderedDict:
            return OrderedDict((name, shared(f'{kind}_{name}', values[name] if values else np.zeros(w.shape, FLOAT)))
                               for name, w in weights.items() if used)

        variables = cls(OrderedDict((name, shared(name, value)) for name, value in weights.items()),
                        state('acc', settings.adapt in ('adagrad', 'rmsprop'), acc),
                        state('vel', settings.momentum, vel))
        for group in variables:
            weakref.finalize(group, free_arrays, [*group.values()])
        return variables

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Copies of the values, (weights, acc, vel), as NumPy arrays wherever they are now."""
        return [{name: np.array(variable.get_value(borrow=True)) for name, variable in group.items()}
                for group in self]


def initial_weights(settings: Settings, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Initial values of all weights, drawn in the release's order: part after part of `weight_layout`."""
    return OrderedDict((name, np.hstack([initial_weight(rng, shape, settings.sigma, settings.init_as_normal)
                                         for _part in parts]))
                       for name, (parts, shape) in weight_layout(settings).items())


def free_arrays(variables: list) -> None:
    """Free the arrays of shared variables that nobody needs any more."""
    for variable in variables:
        variable.container.storage[0] = None


# ---------------------------------------------------------------------------------------------------------------------
# The input (section 3.1)
# ---------------------------------------------------------------------------------------------------------------------

class InputRows(NamedTuple):
    """What a mini-batch reads of a table with a row for each item, such as ``W0``, to multiply its input with it.

    The input is never built: a 1-of-N code times a matrix is a row of it, a sum of such codes is a sum of rows.

    rows : symbolic (n,), item indices
    is_event : symbolic bool (n,), False for entries that only fill up a lane; None where there are none
    product : of table[rows] (n, m): the input times the table, (B, m)
    history : list of the symbolic states that the input carries to the next event
    """
    rows: Symbol
    is_event: Symbol | None
    product: Callable[[Symbol], Symbol]
    history: list[Symbol]


def item_input(item: Symbol, starts: Symbol, history: list[Symbol], decay: float) -> InputRows:
    """The input is the event's item, 1-of-N coded (section 3.1); it needs nothing else of the session."""
    return InputRows(item, None, lambda rows: rows, [])


def session_input(item: Symbol, starts: Symbol, history: list[Symbol], decay: float) -> InputRows:
    """The input is the session so far: the sum of its items' 1-of-N codes, discounted, of length 1 (section 3.1).

    An event counts `decay` times as much with each event after it.  Those of less than 1 / 1000 are left out.

    Parameters
    ----------
    item, starts : symbolic (B,), as in `training_step`
    history : a list of one symbolic int32 (B, L): the session's last events, oldest first, -1 where it has no more
    """
    last = pt.switch(starts[:, None], np.int32(-1), history[0])
    last = pt.concatenate([last[:, 1:], pt.cast(item, 'int32')[:, None]], axis=1)
    n_lanes, n_events = last.type.shape
    is_event = last >= 0
    weight = pt.switch(is_event, np.array(decay ** np.arange(n_events - 1, -1, -1.0), FLOAT), np.float32(0))
    same = pt.eq(last[:, :, None], last[:, None, :])  # an item that occurs twice is one entry of the sum
    squares = pt.switch(same, weight[:, :, None] * weight[:, None, :], np.float32(0))
    weight = weight / pt.sqrt(pt.sum(squares, axis=(1, 2)))[:, None]

    def product(rows: Symbol) -> Symbol:
        rows = pt.reshape(rows, (n_lanes or -1, n_events, rows.type.shape[1]))
        return pt.sum(rows * weight[:, :, None], axis=1)
    # What fills up a lane is the event's item, with weight 0: it comes before the real one, whose values then count.
    return InputRows(pt.switch(is_event, last, last[:, -1:]).flatten(), is_event.flatten(), product, [last])


INPUTS = {'item': item_input, 'session': session_input}


def read_input(settings: Settings, item: Symbol, starts: Symbol,
               states: list[Symbol]) -> tuple[InputRows, list[Symbol]]:
    """What the input reads, and, of all `states` (see `state_shapes`), those of the layers."""
    n = len(states) - len(settings.layers) * len(UNITS[settings.unit].states)
    return INPUTS[settings.input_mode](item, starts, states[:n], settings.session_decay), states[n:]


# ---------------------------------------------------------------------------------------------------------------------
# The layers (section 3.1, Figure 1)
# ---------------------------------------------------------------------------------------------------------------------

def network(settings: Settings, weights: dict[str, Symbol], products: dict[str, Symbol], states: list[Symbol],
            masks: list[Symbol] | None = None) -> tuple[Symbol, list[Symbol]]:
    """What the scores are computed from, (B, H), and the new states of all layers, bottom to top.

    Parameters
    ----------
    weights : ``W{i}`` (inputs, gates x H) and ``B{i}`` (gates x H,) of each layer's gates side by side, ``Wh{i}``, ...
        (H, H) of its recurrent part; ``I{i}`` of the input to the deeper layers; ``Wd{i}, Bd{i}`` of feed-forward ones
    products : the input times ``E``, with an embedding, or times ``W0`` and each ``I{i}``: symbolic (B, ...)
    states : symbolic (B, H), the states before, in the order of `state_shapes`
    masks : a symbolic (B, H) for each layer, or None for no dropout; a dropped unit is dropped for the layer above,
        for the output and for the next time step
    """
    def input_times(name: str) -> Symbol:
        return products[name] if name in products else products['E'] @ weights[name]

    unit, act = UNITS[settings.unit], ACTIVATIONS[settings.hidden_act]
    new_states: list[Symbol] = []
    n = len(unit.states)
    for i in range(len(settings.layers)):
        gates = new_states[-1] @ weights[f'W{i}'] if i else input_times('W0')
        if i and settings.input_to_all_layers:
            gates = gates + input_times(f'I{i}')
        recurrent = [weights[f'W{name}{i}'] for name in recurrent_names(unit)]
        new = unit.step(gates + weights[f'B{i}'], *states[n * i:n * i + n], *recurrent, act)
        *cells, h = new if n > 1 else [new]
        new_states += [*cells, h if masks is None else h * masks[i]]
    top = new_states[-1]
    for j in range(len(settings.feedforward)):
        top = act(top @ weights[f'Wd{j}'] + weights[f'Bd{j}'])
        top = top if masks is None else top * masks[len(settings.layers) + j]
    return top, new_states


# ---------------------------------------------------------------------------------------------------------------------
# Session-parallel mini-batches (section 3.1.1, Figure 2)
# ---------------------------------------------------------------------------------------------------------------------

class Chunk(NamedTuple):
    """Some consecutive mini-batches: K rows of B lanes.

    position : int64 (K, B), index of the input event; the target is the event after it; -1 where a lane is idle
    starts : bool (K, B), True where a lane begins a session here, so that its hidden state has to be zero
    """
    position: np.ndarray
    starts: np.ndarray


def session_parallel_minibatches(offsets: np.ndarray, batch_size: int, order: np.ndarray | None = None,
                                 chunk: int = 256, drop_tail: bool = True) -> Iterator[Chunk]:
    """Session-parallel mini-batches of one pass over the data (section 3.1.1, Figure 2), `chunk` at a time.

    Lane k starts at the k-th session.  Every mini-batch moves each lane on by one event.  A lane whose session has no
    next event left takes the next unused session; lanes are served in lane order, and one that drew a session of a
    single event waits for the next round.

    Parameters
    ----------
    offsets : int64 (n_sessions + 1,), where each session's events begin and, last, their number
    batch_size : number of lanes B
    order : int64 (n_sessions,), the sessions in the order in which they are used; as they are when None
    chunk : the largest number of mini-batches given out at a time
    drop_tail : True ends the pass as soon as one lane finds no session, as the release trains: what is left in the
        other lanes is not used.  False goes on, with idle lanes, until every event was an input: for evaluation.

    Yields
    ------
    Chunk with at most `chunk` rows; the arrays are the caller's to keep.

    Examples
    --------
    Sessions of 3, 2 and 2 events in two lanes.  Lane 1 takes the third session when the second is over; then lane 0
    finds none.

    >>> batches, = session_parallel_minibatches(np.array([0, 3, 5, 7]), batch_size=2)
    >>> batches.position.tolist()
    [[0, 3], [1, 5]]
    >>> batches.starts.tolist()
    [[True, True], [False, True]]
    """
    order = np.arange(len(offsets) - 1) if order is None else np.asarray(order, dtype=np.int64)
    position, end = np.zeros((2, batch_size), dtype=np.int64)
    fresh = np.zeros(batch_size, dtype=np.bool_)
    used = 0
    while True:
        rows = np.empty((chunk, batch_size), dtype=np.int64)
        starts = np.empty((chunk, batch_size), dtype=np.bool_)
        filled, used = _fill_minibatches(offsets, order, used, position, end, fresh, drop_tail, rows, starts)
        if filled:
            yield Chunk(rows[:filled], starts[:filled])
        if filled < chunk:
            return


@numba.njit(cache=True)
def _fill_minibatches(offsets: np.ndarray, order: np.ndarray, used: int, position: np.ndarray, end: np.ndarray,
                      fresh: np.ndarray, drop_tail: bool, rows: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Fill `rows` and `starts` from the lanes' state; returns (number of mini-batches, number of used sessions)."""
    n_lanes = len(position)
    for k in range(len(rows)):
        waiting = True
        while waiting:  # one round: each lane without a next event draws at most one session
            waiting = False
            for lane in range(n_lanes):
                if position[lane] < 0 or end[lane] - position[lane] >= 2:
                    continue
                if used < len(order):
                    session = order[used]
                    used += 1
                    position[lane], end[lane], fresh[lane] = offsets[session], offsets[session + 1], True
                    waiting = waiting or end[lane] - position[lane] < 2
                elif drop_tail:
                    return k, used
                else:
                    position[lane], fresh[lane] = -1, False
        if position.max() < 0:
            return k, used
        for lane in range(n_lanes):
            rows[k, lane], starts[k, lane] = position[lane], fresh[lane]
            if position[lane] >= 0:
                position[lane] += 1
            fresh[lane] = False
    return len(rows), used


# ---------------------------------------------------------------------------------------------------------------------
# Scores of the sampled items (section 3.1.2)
# ---------------------------------------------------------------------------------------------------------------------

def sampled_scores(H: Symbol, output_rows: Symbol, output_bias: Symbol, final_act: Callable) -> Symbol:
    """Scores of the mini-batch's targets for every lane (section 3.1.2), symbolic (B, B).

    Row i is lane i, column j the target of lane j, so that positives are on the diagonal.  The other lanes' targets are
    the negative samples: popular items are drawn more often, and nothing extra is computed.

    Parameters
    ----------
    H : symbolic (B, H), the top layer's state
    output_rows, output_bias : symbolic (B, H) and (B,), the rows of ``Wy`` and ``By`` that belong to the targets
    """
    return final_act(H @ output_rows.T + output_bias)


def with_other_negatives(scores: Symbol) -> Symbol:
    """Of the scores of B targets and B other items, (B, 2B): each lane's own target on the diagonal of the others."""
    n = scores.shape[0]
    return pt.switch(pt.eq(pt.arange(n)[:, None], pt.arange(n)), scores[:, :n], scores[:, n:])


# ---------------------------------------------------------------------------------------------------------------------
# Losses (section 3.1.3); each takes the (B, B) matrix of activated scores
# ---------------------------------------------------------------------------------------------------------------------

def top1(scores: Symbol) -> Symbol:
    """TOP1: mean over i, j of  sigmoid(r_ij - r_ii) + sigmoid(r_ij ** 2),  without the positive's own square."""
    positive = diagonal(scores)
    own_square = mean(pt.sigmoid(positive ** 2)) / pt.cast(scores.shape[0], FLOAT)
    return mean(pt.sigmoid(scores - positive[:, None]) + pt.sigmoid(scores ** 2)) - own_square


def bpr(scores: Symbol) -> Symbol:
    """BPR: mean over i, j of  -log sigmoid(r_ii - r_ij);  j = i is included and adds log 2 / B."""
    positive = diagonal(scores)
    return mean(-pt.log(pt.sigmoid(positive[:, None] - scores)))


def cross_entropy(scores: Symbol) -> Symbol:
    """Cross-entropy (section 4.2): mean over i of  -log softmax(r_i)_i.

    The softmax does not change when a number is taken off all scores of a row; here it is the largest of them, so that
    exp cannot overflow.  No gradient goes through it, since the loss does not depend on it.
    """
    shifted = scores - pytensor.gradient.disconnected_grad(pt.max(scores, axis=1, keepdims=True))
    return mean(pt.log(pt.sum(pt.exp(shifted), axis=1)) - diagonal(shifted))


def mrr(scores: Symbol) -> Symbol:
    """MRR optimisation (section 4.2; Steck, RecSys 2015): mean over i of  1 - 1 / rank_i.

    The rank is made smooth by the link of Gaussian ranking: scores of a lane are taken for normally distributed, so

        rank_i = 1 + (B - 1) (1 - Phi((r_ii - mean_j r_ij) / std_j r_ij)).

    It is pointwise: other items matter only through mean and standard deviation.
    """
    centred = scores - mean(scores, axis=1)[:, None]
    spread = pt.sqrt(mean(centred ** 2, axis=1) + EPSILON)
    above = pt.erfc(diagonal(centred) / (spread * 2 ** 0.5)) / 2  # 1 - Phi
    return mean(1 - 1 / (1 + pt.cast(scores.shape[0] - 1, FLOAT) * above))


def diagonal(scores: Symbol) -> Symbol:
    """The diagonal of a (B, B) matrix, (B,).  Looked up, its gradient is B additions; pt.diagonal's is a matrix."""
    lane = pt.arange(scores.shape[0])
    return scores[lane, lane]


def mean(x: Symbol, axis: int | None = None) -> Symbol:
    """Mean that adds up in the scores' own precision."""
    return pt.mean(x, axis=axis, dtype=x.dtype, acc_dtype=x.dtype)


EPSILON = 1e-6  # inside the roots, as in the release


LOSSES: dict[str, Callable] = {'top1': top1, 'bpr': bpr, 'cross-entropy': cross_entropy, 'mrr': mrr}


# ---------------------------------------------------------------------------------------------------------------------
# Update rules (section 4.2)
# ---------------------------------------------------------------------------------------------------------------------

class Parameter(NamedTuple):
    """A weight as an update rule sees it: all of it, or only the rows that the mini-batch used.

    Rows are counted by occurrence: an item that stands twice in the mini-batch has two entries, each with a gradient
    of its own, and those are not summed before the rule is applied.  That is what the release computes.
    """
    weight: Symbol  # shared variable
    value: Symbol  # the symbolic value that the loss depends on: `weight`, or `weight[rows]`
    rows: Symbol | None = None  # (n,) indices, or None for the whole weight
    changes: Symbol | None = None  # bool (n,), False for occurrences that change nothing; None where all do

    def read(self, state: Symbol) -> Symbol:
        """`state`, or its entry for each occurrence."""
        return state if self.rows is None else state[self.rows]

    def add(self, state: Symbol, increment: Symbol) -> Symbol:
        """`state` with every occurrence's increment added."""
        if self.rows is None:
            return state + increment
        return pt.inc_subtensor(state[self.rows], self._where_changed(increment, np.float32(0)))

    def store(self, state: Symbol, value: Symbol) -> Symbol:
        """`state` replaced by `value`; of several occurrences of a row, the last one counts."""
        if self.rows is None:
            return value
        return pt.set_subtensor(state[self.rows], self._where_changed(value, self.read(state)))

    def _where_changed(self, value: Symbol, otherwise: Any) -> Symbol:
        return value if self.changes is None else pt.switch(self.changes[:, None], value, otherwise)


def adagrad(parameter: Parameter, gradient: Symbol, acc: Symbol) -> tuple[Symbol, Updates]:
    """acc := acc + g²;  g / sqrt(acc + 1e-6).

    Each occurrence of a row is scaled by the old accumulator and its own square; the accumulator takes all of them.
    """
    squared = gradient ** 2
    return gradient / pt.sqrt(parameter.read(acc) + squared + EPSILON), {acc: parameter.add(acc, squared)}


def rmsprop(parameter: Parameter, gradient: Symbol, acc: Symbol, decay: Symbol) -> tuple[Symbol, Updates]:
    """acc := decay acc + (1 - decay) g²;  g / sqrt(acc + 1e-6)."""
    average = decay * parameter.read(acc) + (1 - decay) * gradient ** 2
    return gradient / pt.sqrt(average + EPSILON), {acc: parameter.store(acc, average)}


def sgd(parameter: Parameter, step: Symbol) -> Updates:
    """w := w - step."""
    return {parameter.weight: parameter.add(parameter.weight, -step)}


def momentum_step(parameter: Parameter, step: Symbol, vel: Symbol, momentum: Symbol) -> Updates:
    """vel := momentum vel - step;  w := w + vel  (classical momentum)."""
    velocity = momentum * parameter.read(vel) - step
    return {vel: parameter.store(vel, velocity), parameter.weight: parameter.add(parameter.weight, velocity)}


def capped(gradients: list[Symbol], grad_cap: float) -> list[Symbol]:
    """Gradients scaled by  grad_cap / norm  when the norm of all of them together reaches `grad_cap`."""
    norm = pt.sqrt(sum(pt.sum(g ** 2) for g in gradients))
    scale = pt.cast(pt.switch(norm >= grad_cap, grad_cap / norm, 1), FLOAT)
    return [g * scale for g in gradients]


# ---------------------------------------------------------------------------------------------------------------------
# The training step
# ---------------------------------------------------------------------------------------------------------------------

def training_step(settings: Settings, events: Symbol, variables: Variables,
                  states: list[Symbol]) -> tuple[list[Symbol], Symbol, Updates]:
    """Symbols, loss, gradients and updates of one mini-batch.

    Parameters
    ----------
    events : symbolic int64 (n_events,), item indices of all events of the training data, session after session
    states : shared variables of the lanes' states, in the order of `state_shapes`

    Returns
    -------
    inputs : what differs between mini-batches: `position` of the input events among all events (B,), `starts` (B,), and
        what `RandomInputs` draws: a 0/1 mask (B, H) for each layer, and the negatives (B,), unless they are the other
        targets
    loss : symbolic scalar, of the weights before the update
    updates : ordered dictionary, shared variable -> its value after the mini-batch
    """
    weights = variables.weights
    position = pt.vector('position', dtype='int64', shape=(settings.batch_size,))
    item, target = events[position], events[position + 1]
    starts = pt.vector('starts', dtype='bool', shape=(settings.batch_size,))
    masks = [pt.matrix(f'mask{i}', dtype='bool', shape=shape) for i, shape in enumerate(mask_shapes(settings))]
    negatives = [target.type('negatives')] if settings.negatives == 'uniform' else []
    scored = pt.concatenate([target, *negatives])
    rates = shared_rates(settings)

    read, layer_states = read_input(settings, item, starts, states)
    parameters = OrderedDict((name, Parameter(w, w)) for name, w in weights.items())
    for name in input_tables(settings):
        parameters[name] = Parameter(weights[name], weights[name][read.rows], read.rows, read.is_event)
    for name in ('Wy', 'By'):
        parameters[name] = Parameter(weights[name], weights[name][scored], scored)

    top, new_states = network(
        settings, weights, {name: read.product(parameters[name].value) for name in input_tables(settings)},
        [reset(H, starts) for H in layer_states] if settings.reset_after_session else layer_states,
        [mask * rates['kept_scale'] for mask in masks] or None)
    scores = sampled_scores(top, parameters['Wy'].value, parameters['By'].value,
                            ACTIVATIONS[settings.final_activation])
    loss = LOSSES[settings.loss](with_other_negatives(scores) if negatives else scores)

    gradients: Any = pytensor.grad(loss, [parameter.value for parameter in parameters.values()])
    if settings.grad_cap:
        gradients = capped(gradients, settings.grad_cap)
    updates = OrderedDict(zip(states, [*read.history, *new_states]))
    for (name, parameter), gradient in zip(parameters.items(), gradients):
        updates.update(parameter_updates(settings, rates, parameter, gradient, variables.acc.get(name),
                                         variables.vel.get(name)))
    return [position, starts, *masks, *negatives], loss, updates


def shared_rates(settings: Settings) -> dict[str, Any]:
    """Learning rate, momentum, decay, L2 and the scale of what dropout keeps.

    Variables, not constants, so that the code compiled for one learning rate serves for others too.
    """
    return {name: shared(name, np.array(value, FLOAT)) for name, value in (
        ('learning_rate', settings.learning_rate), ('momentum', settings.momentum), ('decay', settings.decay),
        ('lmbd', settings.lmbd), ('kept_scale', np.array(1, FLOAT) / np.array(1 - settings.dropout_p_hidden, FLOAT)))}


def reset(H: Symbol, starts: Symbol) -> Symbol:
    """The states of the lanes, zero where a session starts."""
    return pt.switch(starts[:, None], np.float32(0), H)


def parameter_updates(settings: Settings, rates: dict[str, Symbol], parameter: Parameter, gradient: Symbol,
                      acc: Any, vel: Any) -> Updates:
    """Updates of one parameter and its accumulators by the model's rule: adapt the gradient, then take the step."""
    updates: Updates = {}
    if settings.adapt == 'adagrad':
        gradient, updates = adagrad(parameter, gradient, acc)
    elif settings.adapt == 'rmsprop':
        gradient, updates = rmsprop(parameter, gradient, acc, rates['decay'])
    if settings.lmbd:
        gradient = gradient + rates['lmbd'] * parameter.value
    step = rates['learning_rate'] * gradient
    if settings.momentum:
        return updates | momentum_step(parameter, step, vel, rates['momentum'])
    return updates | sgd(parameter, step)


def prediction_step(settings: Settings, weights: dict[str, Symbol]) -> tuple[list[Symbol], list[Symbol]]:
    """Symbols (item, starts, states...), and (what is scored, new states...) after one event of any number of sessions.

    The same network as in `training_step`, without dropout.
    """
    item, starts = pt.lvector('item'), pt.vector('starts', dtype='bool')
    states = [pt.matrix(name, dtype=dtype, shape=(None, width))
              for name, (width, dtype) in state_shapes(settings).items()]
    read, layer_states = read_input(settings, item, starts, states)
    products = {name: read.product(weights[name][read.rows]) for name in input_tables(settings)}
    top, new_states = network(settings, weights, products, [reset(H, starts) for H in layer_states])
    return [item, starts, *states], [top, *read.history, *new_states]


class RandomInputs:
    """What is random in mini-batches: called with K, it draws the dropout masks of the next K, bool (K, B, H) for each
    layer, and with negatives='uniform' also their negatives, int64 (K, B).

    The masks are the release's, number for number: each layer has the streams that Theano gave it in a new process, see
    `mrg`.  The release has no uniform negatives: they come from a stream of NumPy's.

    Parameters
    ----------
    fixed_masks : used for every mini-batch, if given
    n_epochs_before : epochs that the model was trained for before.  Layer i of L draws from request number
        L * n_epochs_before + i, so that further trainings have streams of their own
    """

    def __init__(self, settings: Settings, fixed_masks: list | None = None, n_epochs_before: int = 0) -> None:
        self._shapes = [] if fixed_masks else mask_shapes(settings)
        self._fixed = [np.asarray(mask, dtype=bool) for mask in fixed_masks or []]
        self._kept = 1 - settings.dropout_p_hidden
        first = len(self._shapes) * n_epochs_before
        self._mask_streams = [mrg.Streams(settings.seed, first + i) for i in range(len(self._shapes))]
        self._n_items = settings.n_items if settings.negatives == 'uniform' else None
        self._batch_size = settings.batch_size
        before = [n_epochs_before] * bool(n_epochs_before)
        self._item_stream = np.random.SFC64(np.random.SeedSequence([settings.seed, 2 ** 32 - 1, *before]))

    def __call__(self, n_minibatches: int) -> list[np.ndarray]:
        drawn = [np.broadcast_to(mask, (n_minibatches, *mask.shape)).copy() for mask in self._fixed]
        for streams, (n_lanes, n) in zip(self._mask_streams, self._shapes):
            drawn.append(streams.below(n_minibatches, n_lanes * n, self._kept).reshape(n_minibatches, n_lanes, n))
        if self._n_items:
            bits = self._item_stream.random_raw(n_minibatches * self._batch_size) >> np.uint64(24)
            items = bits * np.uint64(self._n_items) >> np.uint64(40)
            drawn.append(items.astype(np.int64).reshape(n_minibatches, self._batch_size))
        return drawn

    def state(self) -> dict[str, np.ndarray]:
        """Where the streams are."""
        of_masks = {f'streams{i}': streams.state for i, streams in enumerate(self._mask_streams)}
        return of_masks | {'item_stream': self._item_stream.state['state']['state']}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on where `state` was taken."""
        for i, streams in enumerate(self._mask_streams):
            streams.state = state[f'streams{i}']
        self._item_stream.state = self._item_stream.state | {'state': {'state': state['item_stream']}}


def with_random_inputs(chunks: Iterator[tuple[Chunk, bool]], random_inputs: RandomInputs,
                       ahead: bool) -> Iterator[tuple]:
    """Each of the chunks, what is drawn for it, and where the random streams are then.

    With `ahead` a second thread draws for the next chunk meanwhile: for a device, which leaves the host idle.  On a CPU
    the compiled loop holds the interpreter, and drawing is 5 µs of the 150 that a mini-batch takes with 100 units.
    """
    def draw(chunk: tuple[Chunk, bool]) -> tuple:
        return chunk, random_inputs(len(chunk[0].starts)), random_inputs.state()

    if not ahead:
        yield from map(draw, chunks)
        return
    with ThreadPoolExecutor(1) as thread:
        drawn = None
        for chunk in chunks:
            following = thread.submit(draw, chunk)
            if drawn:
                yield drawn.result()
            drawn = following
        if drawn:
            yield drawn.result()


def chunk_length(settings: Settings) -> int:
    """Mini-batches that are handed over at a time: 256; fewer, but 16, where their masks would take more than 8 MB."""
    return int(np.clip(8e6 / (settings.batch_size * sum([*settings.layers, *settings.feedforward])), 16, 256))


# ---------------------------------------------------------------------------------------------------------------------
# The estimator
# ---------------------------------------------------------------------------------------------------------------------

class Progress(NamedTuple):
    """What `fit` tells its callback after each chunk of mini-batches."""
    epoch: int  # from 0
    n_epochs: int
    minibatches: int  # done in this epoch
    events: int  # done in this epoch
    total_events: int  # of an epoch, the dropped tail included
    loss: float  # mean over this epoch's mini-batches
    epoch_ends: bool = False  # whether these were its last


class TrainingPosition(NamedTuple):
    """How far a training is: whole epochs, and of the one that is under way, chunks, mini-batches, sum of losses."""
    epoch: int = 0
    chunks: int = 0
    minibatches: int = 0
    total_loss: float = 0.0

    def after(self, losses: np.ndarray) -> TrainingPosition:
        """The same, after another chunk of mini-batches with these losses."""
        return TrainingPosition(self.epoch, self.chunks + 1, self.minibatches + len(losses),
                                self.total_loss + float(losses.sum(dtype='float64')))

    @property
    def mean_loss(self) -> float:
        """Over the mini-batches of the epoch that is under way."""
        return self.total_loss / self.minibatches


@dataclass(eq=False, repr=False)
class GRU4Rec:
    """Session-based recommender: layers of gated recurrent units, trained with a ranking loss (Hidasi et al., 2016).

    Arguments, defaults and results are those of the authors' 2016 release; those after `time_key` are ours.  They make
    the variants that sections 3 and 4 of the paper mention.

    Parameters
    ----------
    layers : list of int, units of each GRU layer, bottom to top
    n_epochs : passes over the training data
    batch_size : number of parallel sessions, and so of sampled items
    dropout_p_hidden : probability with which a hidden unit is dropped, 0 <= p < 1
    learning_rate, momentum : of the update rules; momentum is classical
    adapt : 'adagrad', 'rmsprop', or None (also 'none') for plain gradient descent
    decay : of rmsprop's moving average
    grad_cap : largest norm of all gradients together; 0 for none
    sigma : weights are drawn from U(-sigma, sigma) or N(0, sigma); 0 for sqrt(6 / (rows + columns)) of each matrix
    init_as_normal : draw from the normal distribution instead of the uniform
    reset_after_session : zero a lane's hidden state when it takes a new session
    loss : 'top1', 'bpr', 'cross-entropy' or 'mrr'
    hidden_act : 'tanh' or 'relu', of the candidate state
    final_act : 'tanh', 'linear' or 'relu', of the scores; None for tanh, or linear with cross-entropy.  Cross-entropy
        applies softmax to linear or tanh scores, and takes 'relu' for 'linear', as the release does
    train_random_order : draw a new order of the sessions for each epoch
    lmbd : L2 regularisation
    session_key, item_key, time_key : columns of the training frame
    input_mode : 'item' for the event's item, or 'session' for all of the session so far, discounted and normalised
    session_decay : how much an event still counts after one more event, with input_mode='session'
    embedding : width of an embedding between the input and the first layer; None for none
    unit : 'gru', 'lstm' or 'rnn'
    input_to_all_layers : connect the input to the deeper layers too
    feedforward : units of feed-forward layers between the last recurrent layer and the output
    negatives : 'minibatch' for the targets of the other lanes, so that items are drawn in proportion to their
        popularity, or 'uniform' for as many items drawn uniformly, the same for all lanes
    equal_times : order of events of a session that have the same time: 'item', by item index, as the release trains, or
        'frame', as they are in the frame: better where the log is in the order of clicks, and its times are rounded
    seed : of the initial weights, the session orders, the dropout masks and the uniform negatives; 42 gives those of
        the release, for other seeds see `mrg.first_state`
    backend : 'auto', 'numba', 'jax' or 'python', see `backends`

    Attributes
    ----------
    items_ : item ids by item index, which is the order of first appearance in the training frame
    item_counts_ : int64 (n_items,), how often each occurs there
    epoch_losses_ : mean loss of each finished epoch
    variables_ : `Variables`, weights and optimiser's state as the symbolic functions take them; `weights()` copies them
    backend_ : name of the backend in use
    error_during_train : True when training met a loss that is not finite; such a model does not predict

    Examples
    --------
    >>> log = pd.DataFrame({'SessionId': [1, 1, 1, 2, 2, 2], 'ItemId': [*'abcdef'], 'Time': range(6)})
    >>> gru = GRU4Rec([8], batch_size=2, n_epochs=50, dropout_p_hidden=0, learning_rate=0.1, backend='python').fit(log)
    >>> gru.recommend(['a'], k=1).ItemId.tolist(), gru.recommend(['a', 'b'], k=1).ItemId.tolist()
    (['b'], ['c'])
    """

    layers: Sequence[int]
    n_epochs: int = 10
    batch_size: int = 50
    dropout_p_hidden: float = 0.4
    learning_rate: float = 0.05
    momentum: float = 0.0
    adapt: str | None = 'adagrad'
    decay: float = 0.9
    grad_cap: float = 0
    sigma: float = 0
    init_as_normal: bool = False
    reset_after_session: bool = True
    loss: str = 'top1'
    hidden_act: str = 'tanh'
    final_act: str | None = None
    train_random_order: bool = False
    lmbd: float = 0.0
    session_key: str = 'SessionId'
    item_key: str = 'ItemId'
    time_key: str = 'Time'
    _: KW_ONLY
    input_mode: str = 'item'
    session_decay: float = 0.5
    embedding: int | None = None
    unit: str = 'gru'
    input_to_all_layers: bool = False
    feedforward: Sequence[int] = ()
    negatives: str = 'minibatch'
    equal_times: str = 'item'
    seed: int = 42
    backend: str = 'auto'

    items_: np.ndarray = field(init=False)
    item_counts_: np.ndarray = field(init=False)
    n_items: int = field(init=False)
    epoch_losses_: list[float] = field(init=False)
    variables_: Variables = field(init=False)
    backend_: str = field(init=False)
    error_during_train: bool = field(init=False)
    _index_of: pd.Index = field(init=False)
    _state_function: Any = field(init=False)  # of `next_states`, compiled when it is needed first
    _rank_program: Any = field(init=False)  # of `next_item_counts`, likewise
    _prediction_state: Any = field(init=False)  # of `predict_next_batch`: ids and states of the last call's sessions

    def __repr__(self) -> str:
        """The layers, and the arguments that are not the default."""
        arguments = {'layers': plain(self.layers)} | changed_arguments(self)
        return f'GRU4Rec({", ".join(f"{name}={value!r}" for name, value in arguments.items())})'

    @classmethod
    def _of_arguments(cls, arguments: dict[str, Any]) -> GRU4Rec:
        """An untrained model with these arguments; for subclasses whose constructors have others."""
        return cls(**arguments)

    @classmethod
    def from_parameters(cls, path: str | Path, **changes: Any) -> GRU4Rec:
        """An untrained model with the parameters of a file, and `changes`, which are arguments too.

        `path` is of a TOML file, such as those in ``parameters/``, or of one of the authors' own; see
        `gru4rec_pytensor.parameters`.  ValueError, which names the file, if it is neither, or a value is not allowed.
        """
        arguments = read_parameters(path).arguments
        unknown = arguments.keys() - argument_names()
        if unknown or 'layers' not in arguments:
            raise ValueError(f'{path}: ' + (f'{sorted(unknown)[0]!r} is no argument of GRU4Rec' if unknown else
                                            'layers are missing, such as layers = [100]'))
        model = cls._of_arguments(arguments | changes)
        try:
            check_arguments(model)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: {error}') from None
        return model

    def settings(self, n_items: int | None = None) -> Settings:
        """What the symbolic functions need: the arguments as they are now, and the number of items.

        `n_items` is that of the training data; an untrained model has none, and needs it given.
        """
        if n_items is None:
            self._check_trained()
            n_items = self.n_items
        arguments = {argument.name: plain(getattr(self, argument.name)) for argument in fields(Settings)
                     if argument.name != 'n_items'}
        arguments |= {name: tuple(arguments[name]) for name in ('layers', 'feedforward')}
        return Settings(n_items=int(n_items), **arguments)

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(self, data: pd.DataFrame, retrain: bool = False, *, dropout_masks: list | None = None,
            callback: Callable[[Progress], None] | None = None, checkpoint: str | Path | None = None,
            every: float = 600.0) -> GRU4Rec:
        """Train from scratch on the events of `data`, which is not modified.

        Parameters
        ----------
        data : frame with the columns `session_key`, `item_key`, `time_key`; one row an event, in any order.  Rows are
            sorted by session and time; for events of a session with equal times see `equal_times`
        retrain : True goes on from the weights as they are, as the release does: see `fit_more`
        dropout_masks : for comparing implementations: a 0/1 array (batch_size, units) for each layer, used in every
            mini-batch instead of random ones
        callback : called with a `Progress` after each chunk of mini-batches
        checkpoint : path of a file that is written at the end, and after a chunk of mini-batches when `every` seconds
            have passed since the last time.  Where it is there already, the training goes on from it: after an
            interruption at any moment, the same call ends with the same bits as one without (for what that takes of the
            compiler see `backends.compile_in_child`).  ValueError if it belongs to other data or arguments; `n_epochs`
            alone may differ
        every : seconds

        Returns
        -------
        self.  A loss that is not finite ends the training with a RuntimeWarning and sets `error_during_train`.  An
        exception in the callback, or Ctrl-C, leaves the weights of that moment.
        """
        if retrain:
            if dropout_masks is not None or checkpoint is not None:
                raise ValueError('retrain=True does not go with dropout_masks or checkpoint')
            return self.fit_more(data, callback=callback)
        check_arguments(self)
        check_number('every', every)
        self.backend_ = backends.resolve(self.backend)
        check_events(data, *self._columns)
        item_index, items = index_by_appearance(data[self.item_key])
        rows, offsets = self._session_order(data, item_index)
        settings = self.settings(len(items))
        check_masks(dropout_masks, settings)
        events = item_index[rows]
        file = None
        if checkpoint:
            training = self._what_determines_training((events, offsets, *(dropout_masks or ())))
            file = model_file.Checkpoint(checkpoint, every, training)
        self._set_items(items, np.bincount(item_index))
        rng = np.random.RandomState(self.seed)
        self._set_variables(Variables.of(settings, initial_weights(settings, rng)))
        self._train(events, offsets, rng, RandomInputs(settings, dropout_masks), callback, file)
        return self

    def fit_more(self, data: pd.DataFrame, n_epochs: int | None = None, *,
                 callback: Callable[[Progress], None] | None = None) -> GRU4Rec:
        """Go on training, on other events: with the weights and the optimiser's state as they are.

        Items that are new get fresh rows after the old ones, drawn as the first ones were, and an empty state of the
        optimiser.  This is for keeping a model up to date with the last day's sessions in a fraction of the time that
        training anew takes.  What `data` does not have is slowly forgotten, and adagrad's steps have become small for
        items that were frequent: train anew, on all of the data, when most items are new, or when accuracy on the
        newest sessions falls behind that of a model trained anew.

        Parameters
        ----------
        data : frame with the columns of `fit`
        n_epochs : passes over `data`; the model's `n_epochs` when None
        callback : as in `fit`

        Returns
        -------
        self, with the losses of the new epochs appended to `epoch_losses_`
        """
        self._check_usable()
        check_arguments(self)
        if n_epochs is not None:
            check_whole_number('n_epochs', n_epochs)
        check_events(data, *self._columns)
        ids = data[self.item_key]
        kinds = {'i' if kind == 'u' else kind for kind in (self.items_.dtype.kind, np.asarray(ids).dtype.kind)}
        if len(kinds) > 1:
            raise TypeError(f'column {self.item_key!r} has item ids such as {first_few(ids[:1])}, but those of the '
                            f'model are such as {first_few(self.items_[:1])}')
        unknown = pd.unique(ids[self._index_of.get_indexer(ids) < 0])
        item_index = pd.Index(np.concatenate([self.items_, np.asarray(unknown)])).get_indexer(ids)
        rows, offsets = self._session_order(data, item_index)
        losses, n_epochs_before = self.epoch_losses_, len(self.epoch_losses_)
        rng = np.random.RandomState([self.seed, n_epochs_before, self.n_items])
        self._add_items(unknown, rng)
        self.epoch_losses_ = losses  # to which those of the new epochs are appended
        self.item_counts_ = self.item_counts_ + np.bincount(item_index, minlength=self.n_items)
        random_inputs = RandomInputs(self.settings(), n_epochs_before=n_epochs_before)
        self._train(item_index[rows], offsets, rng, random_inputs, callback, None, n_epochs)
        return self

    @property
    def _columns(self) -> tuple[str, str, str]:
        return self.session_key, self.item_key, self.time_key

    def _session_order(self, data: pd.DataFrame, item_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`session_order` of training data; ValueError when there are too few sessions for the lanes."""
        rows, offsets = session_order(data, *self._columns, item_index if self.equal_times == 'item' else None)
        n_sessions = n_trainable_sessions(data, self.session_key)
        if n_sessions < self.batch_size:
            raise ValueError(f'batch_size={self.batch_size} needs at least as many sessions of two or more events, but '
                             f'the training data has {n_sessions}; use a smaller batch_size')
        return rows, offsets

    def _add_items(self, ids: np.ndarray, rng: np.random.RandomState) -> None:
        """Rows for new items, after those of the old ones, in every weight that has a row for each item."""
        n_old, n = self.n_items, self.n_items + len(ids)
        weights, acc, vel = self.variables_.arrays()
        self._set_items(np.concatenate([self.items_, np.asarray(ids)]),
                        np.concatenate([self.item_counts_, np.zeros(len(ids), np.int64)]))
        settings = self.settings()
        for name, (parts, shape) in weight_layout(settings).items():
            if shape[0] != n or len(weights[name]) != n_old:
                continue
            fresh = np.hstack([initial_weight(rng, shape, self.sigma, self.init_as_normal, n_rows=len(ids))
                               for _part in parts])
            weights[name] = np.concatenate([weights[name], fresh])
            for state in (acc, vel):
                if name in state:
                    state[name] = np.concatenate([state[name], np.zeros_like(fresh)])
        self._set_variables(Variables.of(settings, weights, acc, vel))

    def _set_items(self, items: np.ndarray, counts: np.ndarray) -> None:
        """Item ids in the order of their indices, and how often each occurs in the training data."""
        self.items_, self.item_counts_, self.n_items = items, counts, len(items)
        self._index_of = pd.Index(items)

    def _set_variables(self, variables: Variables) -> None:
        """Weights and optimiser's state of a model that has not been trained yet, or anew."""
        self.variables_ = variables
        self._forget_compiled()
        self._prediction_state = None
        self.epoch_losses_ = []
        self.error_during_train = False

    def _forget_compiled(self) -> None:
        """Compiled functions belong to certain variables and to a backend."""
        self._state_function = self._rank_program = None

    def _train(self, items: np.ndarray, offsets: np.ndarray, rng: np.random.RandomState, random_inputs: RandomInputs,
               callback: Callable[[Progress], None] | None, checkpoint: model_file.Checkpoint | None,
               n_epochs: int | None = None) -> None:
        """All epochs over `items` (n_events,), the item indices in session order."""
        settings, n_epochs = self.settings(), n_epochs or self.n_epochs
        states = [shared(name, state)
                  for name, state in zip(state_shapes(settings), initial_states(settings, self.batch_size))]
        events = shared('events', items)
        weakref.finalize(random_inputs, free_arrays, [events, *states])  # which this call alone refers to
        with pytensor.config.change_flags(floatX=FLOAT):
            step = training_step(settings, events, self.variables_, states)
        run = backends.compile_loop(*step, backend=self.backend_)
        position = self._resume(checkpoint, states, random_inputs) if checkpoint else TrainingPosition()
        for epoch in range(n_epochs):
            order = rng.permutation(len(offsets) - 1) if self.train_random_order else None
            if epoch < position.epoch:
                continue
            if not position.chunks:
                for variable, state in zip(states, initial_states(settings, self.batch_size)):
                    variable.set_value(state)
            chunks = session_parallel_minibatches(offsets, self.batch_size, order, chunk_length(settings))
            left = with_last(itertools.islice(chunks, position.chunks, None))
            for (batches, is_last), drawn, state in with_random_inputs(left, random_inputs, self.backend_ == 'jax'):
                losses = run(*batches, *drawn)
                position = position.after(losses)
                if not np.isfinite(losses[-1]):
                    self._fail(f'the loss of epoch {epoch}, mini-batch {position.minibatches - 1} is {losses[-1]}')
                    return
                if checkpoint and checkpoint.is_due():
                    self._write(checkpoint, states, state, position)
                if callback:
                    callback(Progress(epoch, n_epochs, position.minibatches, position.minibatches * self.batch_size,
                                      len(items) - len(offsets) + 1, position.mean_loss, is_last))
            self.epoch_losses_.append(position.mean_loss)
            logger.info('Epoch%d\tloss: %.6f', epoch, self.epoch_losses_[-1])
            position = TrainingPosition(epoch + 1)
        if checkpoint:
            self._write(checkpoint, states, random_inputs.state(), position)
        if not all(np.isfinite(weight.get_value(borrow=True)).all() for weight in self.variables_.weights.values()):
            self._fail('the last mini-batch left weights that are not finite')

    def _what_determines_training(self, data: tuple) -> dict:
        """What the result of a training depends on: `data`, its arrays, and the arguments; not how many epochs."""
        arguments = {name: value for name, value in plain_arguments(self).items() if name != 'n_epochs'}
        checksum = model_file.checksum({str(k): array for k, array in enumerate(data)})
        return arguments | {'backend': self.backend_, 'data': checksum}

    def _trained_variables(self, states: list) -> dict:
        """By name, the shared variables that a training step changes: those of the model, and the lanes' states."""
        groups = [*(group.values() for group in self.variables_), states]
        return {variable.name: variable for variables in groups for variable in variables}

    def _write(self, checkpoint: model_file.Checkpoint, states: list, random_state: dict[str, np.ndarray],
               position: TrainingPosition) -> None:
        """All that the rest of the training depends on, into the checkpoint."""
        state = {'epoch_losses': self.epoch_losses_, 'position': position}
        arrays = {name: np.asarray(variable.get_value(borrow=True))
                  for name, variable in self._trained_variables(states).items()}
        checkpoint.write(state, arrays | random_state)

    def _resume(self, checkpoint: model_file.Checkpoint, states: list, random_inputs: RandomInputs) -> TrainingPosition:
        """Put everything back as it was in the checkpoint, if there was one."""
        state, arrays = checkpoint.saved_state()
        if not state:
            return TrainingPosition()
        for name, variable in self._trained_variables(states).items():
            variable.set_value(arrays[name], borrow=True)
        random_inputs.restore(arrays)
        self.epoch_losses_ = state['epoch_losses']
        return TrainingPosition(*state['position'])

    def _fail(self, reason: str) -> None:
        self.error_during_train = True
        warnings.warn(f'training stopped: {reason}; the model cannot be used for prediction. A smaller learning_rate, '
                      'or grad_cap, may help.', RuntimeWarning, stacklevel=4)

    # -- weights ------------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of all weights, float32, under the release's names.

        ``Wx{i}, Wr{i}, Wz{i}`` (inputs, H), ``Wh{i}, Whr{i}, Whz{i}`` (H, H), ``Bh{i}, Br{i}, Bz{i}`` (H,) for layer
        i, ``Wy`` (n_items, H), ``By`` (n_items,).  Rows of ``Wx0, Wr0, Wz0, Wy, By`` are in item index order.

        Of the variants: LSTM units have the gates i, f, o instead of r, z, and plain ones have none; ``E`` (n_items,
        embedding); ``Ix{i}, Ir{i}, Iz{i}`` from the input to layer i; ``Wd{j}`` (inputs, units) and ``Bd{j}`` of
        feed-forward layer j.
        """
        return split_gates(self._own_variables().weights, self.settings())

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Copies of accumulators, ``acc_NAME``, and velocities, ``vel_NAME``, of all weights, if the rule has them."""
        acc, vel = (split_gates(group, self.settings()) for group in self._own_variables()[1:])
        return {f'acc_{name}': value for name, value in acc.items()} | {
            f'vel_{name}': value for name, value in vel.items()}

    def move_to(self, backend: str) -> GRU4Rec:
        """Predict on another backend from now on, with the same weights, and train there when `fit` is called again."""
        backend_ = backends.resolve(backend)
        for group in self._own_variables():
            for variable in group.values():
                variable.set_value(np.array(variable.get_value(borrow=True)), borrow=True)  # off a device
        self.backend, self.backend_ = backend, backend_
        self._forget_compiled()
        self._prediction_state = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: everything but compiled functions, which are made again; variables as arrays."""
        if not hasattr(self, 'variables_'):
            return vars(self)
        state = vars(self) | {'_state_function': None, '_rank_program': None}
        if self._prediction_state is not None:
            session_ids, states = self._prediction_state
            state['_prediction_state'] = session_ids, [np.asarray(H) for H in states]
        return state | {'variables_': self.variables_.arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if 'variables_' in state:
            self.variables_ = Variables.of(self.settings(), *state['variables_'])

    def save(self, path: str | Path, *, dtype: str = 'float32') -> None:
        """Write the trained model to one file, all of it or nothing; see `model_file`.

        The file holds the constructor's arguments, the item ids and their counts, the weights and the optimiser's
        state under the release's names, and a checksum.

        Parameters
        ----------
        path : of the file; one that is there is replaced
        dtype : 'float32', or 'float16' to store the weights in half the room, rounded to 11 bits; the optimiser's state
            is kept as it is
        """
        self._check_usable()
        check_choice('dtype', dtype, ('float32', 'float16'))
        weights = {name: value.astype(dtype) for name, value in self.weights().items()}
        model_file.write_model(path, plain_arguments(self), self.items_, self.item_counts_, self.epoch_losses_,
                               weights | self.optimizer_state())

    @classmethod
    def load(cls, path: str | Path, *, backend: str | None = None) -> GRU4Rec:
        """The model that `save` wrote to a file, for the backend that it had, or for another.

        ValueError if the file is damaged, of a later version, or no model.
        """
        saved = model_file.read_model(path)
        with model_file.refused_unless_model(path):
            model = cls._of_arguments(saved.arguments | ({'backend': backend} if backend else {}))
            check_arguments(model)
            model.backend_ = backends.resolve(model.backend)
            model._set_items(saved.items, saved.item_counts)
            settings = model.settings()
            groups = [join_gates({name: value.astype(FLOAT) for name, value in group.items()}, settings)
                      for group in (saved.weights, saved.acc, saved.vel)]
            model._set_variables(Variables.of(settings, *groups))
            model.epoch_losses_ = saved.epoch_losses
        return model

    savemodel = save  # the release's names
    loadmodel = load

    # -- prediction ---------------------------------------------------------------------------------------------------

    def initial_states(self, batch_size: int) -> list[np.ndarray]:
        """What sessions carry from event to event, before the first: zeros, float32 (batch_size, H), for each layer.

        With LSTM units a layer has its cell first; with input_mode='session', int32 (batch_size, L) comes before all.
        """
        return initial_states(self.settings(), batch_size)

    def next_states(self, items: np.ndarray, starts: np.ndarray, states: list) -> tuple[np.ndarray, list[np.ndarray]]:
        """B sessions after one more event in each: what they are scored by, float32 (B, H), and their new states.

        Parameters
        ----------
        items : int64 (B,), item indices of the events
        starts : bool (B,), True where a session starts
        states : list of arrays with a row for each session, as `initial_states` or the last call returned them
        """
        self._check_usable()
        if self._state_function is None:
            with pytensor.config.change_flags(floatX=FLOAT):
                inputs, outputs = prediction_step(self.settings(), self.variables_.weights)
                self._state_function = backends.compile_function(inputs, outputs, backend=self.backend_)
        top, *states = self._state_function(items, starts, *states)
        return top, states

    def output_weights(self, candidates: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``Wy`` (M, H) and ``By`` (M,) of the items with the indices `candidates`, all when None; not to be modified.

        With H as `next_states` gives it, ``H @ Wy.T + By`` are the scores before the final activation.
        """
        Wy, By = map(np.asarray, self._device_output())
        return (Wy, By) if candidates is None else (Wy[candidates], By[candidates])

    def _device_output(self) -> list:
        """``Wy`` and ``By`` as they are, with JAX on the device."""
        self._check_usable()
        return [self.variables_.weights[name].get_value(borrow=True) for name in ('Wy', 'By')]

    def next_item_counts(self, items: np.ndarray, starts: np.ndarray, targets: np.ndarray, states: list,
                         candidates: np.ndarray | None = None) -> tuple[list, list[np.ndarray]]:
        """`next_states` for K mini-batches in one call on the device, and how the targets rank; with the backend 'jax'.

        Parameters
        ----------
        items, targets : int64 (K, B), item indices of the events and of those after them
        starts : bool (K, B), True where a session starts
        states : list of arrays, as `initial_states` or the last call returned them
        candidates : int64 (M,), indices of the items among which the targets are ranked; all when None

        Returns
        -------
        list of states; int64 (K, B): how many candidates other than the target have a higher activated score, and how
        many the same; bool (K, B): where the target's score is not a number
        """
        output = self._device_output()
        if self._rank_program is None:
            settings, x = self.settings(), pt.matrix('scores', dtype=FLOAT)
            with pytensor.config.change_flags(floatX=FLOAT):
                self._rank_program = backends.compile_ranks(*prediction_step(settings, self.variables_.weights), x,
                                                            ACTIVATIONS[settings.final_activation](x))
        ranked = output if candidates is None else [array[candidates] for array in output]
        column = column_of_item(candidates, self.n_items)
        return self._rank_program(items, starts, targets, states, column, output, ranked)

    def score_activation(self, scores: np.ndarray) -> np.ndarray:
        """The final activation of raw scores, elementwise and monotone; for cross-entropy the softmax is left out."""
        return NUMPY_ACTIVATIONS[final_activation(self.loss, self.final_act)](scores)

    def activate(self, scores: np.ndarray, included: np.ndarray | bool = True) -> np.ndarray:
        """Final scores of raw ones, (B, M): activated and, with cross-entropy, the softmax over each row.

        `included`, bool (B, M), says which scores are part of the softmax.
        """
        scores = self.score_activation(scores)
        if self.loss != 'cross-entropy':
            return scores
        scores = np.where(included, scores, np.float32(-np.inf))
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict_next_batch(self, session_ids: ArrayLike, input_item_ids: ArrayLike,
                           predict_for_item_ids: ArrayLike | None = None, batch: int = 100) -> pd.DataFrame:
        """Scores of the next item for `batch` parallel sessions, given their current events.

        The hidden state is kept between calls.  Where a session id differs from the one that the last call had in the
        same place, a new session starts.  Another `batch`, or training, starts all of them anew.

        Parameters
        ----------
        session_ids : (batch,) ids of any type
        input_item_ids : (batch,) item ids, all known from training
        predict_for_item_ids : ids of the items to score; all items of the training data when None
        batch : number of parallel sessions

        Returns
        -------
        float32 frame, items x batch: the activated scores; with cross-entropy softmax over the rows
        """
        self._check_usable()
        sessions, events = as_ids(session_ids), as_ids(input_item_ids)
        if not len(sessions) == len(events) == batch:
            raise ValueError(f'session_ids ({len(sessions)}) and input_item_ids ({len(events)}) must have '
                             f'batch={batch} entries')
        items = self.item_indices(events)
        candidates = None if predict_for_item_ids is None else self.item_indices(predict_for_item_ids)
        if self._prediction_state is None or len(self._prediction_state[0]) != batch:
            starts, states = np.ones(batch, dtype=bool), self.initial_states(batch)
        else:
            last_ids, states = self._prediction_state
            starts = np.asarray(sessions != last_ids)
        H, states = self.next_states(items, starts, states)
        self._prediction_state = sessions.copy(), states
        Wy, By = self.output_weights(candidates)
        scored = self.items_ if candidates is None else self.items_[candidates]
        return pd.DataFrame(self.activate(H @ Wy.T + By).T, index=scored)

    def recommend(self, session_items: Sequence, k: int = 20, exclude_seen: bool = False) -> pd.DataFrame:
        """The k items that are most likely next, best first, for one session or for each of a list of sessions.

        Parameters
        ----------
        session_items : item ids of a session's events so far, in order; or a list of such lists
        k : number of items
        exclude_seen : leave out items of the session itself

        Returns
        -------
        frame with the columns `item_key` and ``Score``, the activated score (with cross-entropy, the probability); for
        a list of sessions also ``Session``, the place in the list, as first column.  Items that the training data did
        not have are skipped with a warning; a session without any other item gets the most popular ones, scored by
        their share of the training events, with a warning too.
        """
        self._check_usable()
        return recommendations(self, session_items, k, exclude_seen)

    def session(self) -> Session:
        """A session that has just begun, to be recommended for click by click."""
        self._check_usable()
        return Session(self)

    @property
    def itemidmap(self) -> pd.Series:
        """Item index by item id, under the release's name."""
        self._check_trained()
        return pd.Series(np.arange(self.n_items), index=self.items_, name='ItemIdx')

    def known_indices(self, item_ids: ArrayLike) -> np.ndarray:
        """int64 indices of item ids, -1 for those that the training data did not have."""
        self._check_usable()
        return self._index_of.get_indexer(as_ids(item_ids))

    def item_indices(self, item_ids: ArrayLike) -> np.ndarray:
        """int64 indices of item ids; KeyError names those that the training data did not have."""
        indices = self.known_indices(item_ids)
        if (indices < 0).any():
            unknown = pd.unique(as_ids(item_ids)[indices < 0])
            raise KeyError(f'{len(unknown)} item id(s) are not in the training data: {first_few(unknown)}')
        return indices

    def _check_trained(self) -> None:
        if not hasattr(self, 'items_'):
            raise RuntimeError('this GRU4Rec is not trained yet: call fit first')

    def _own_variables(self) -> Variables:
        self._check_trained()
        return self.variables_

    def _check_usable(self) -> None:
        self._check_trained()
        if self.error_during_train:
            raise RuntimeError('training of this GRU4Rec stopped at a loss that is not finite: it cannot predict')


def column_of_item(candidates: np.ndarray | None, n_items: int) -> np.ndarray:
    """Column of each item among the candidates, -1 for the others, int64 (n_items,); None for all items in order."""
    if candidates is None:
        return np.arange(n_items)
    column = np.full(n_items, -1)
    column[candidates] = np.arange(len(candidates))
    return column


def with_last(values: Iterator) -> Iterator[tuple]:
    """Each of the values, and whether it is the last one."""
    for value in values:
        for following in values:
            yield value, False
            value = following
        yield value, True


# ---------------------------------------------------------------------------------------------------------------------
# The constructor's arguments
# ---------------------------------------------------------------------------------------------------------------------

def argument_names() -> list[str]:
    """Names of the constructor's arguments."""
    return [argument.name for argument in fields(GRU4Rec) if argument.init]


def plain(value: Any) -> Any:
    """An argument's value as JSON can hold it: numbers of NumPy as Python's, tuples as lists."""
    if isinstance(value, (list, tuple)):
        return [*map(plain, value)]
    return value.item() if isinstance(value, np.generic) else value


def plain_arguments(model: GRU4Rec) -> dict[str, Any]:
    """The constructor's arguments as values that JSON can hold."""
    return {name: plain(getattr(model, name)) for name in argument_names()}


def changed_arguments(model: GRU4Rec) -> dict[str, Any]:
    """Those of `plain_arguments` that are not the default."""
    defaults = {argument.name: plain(argument.default) for argument in fields(GRU4Rec)}
    return {name: value for name, value in plain_arguments(model).items() if value != defaults[name]}


def check_masks(dropout_masks: list | None, settings: Settings) -> None:
    """ValueError unless fixed masks, if there are any, have the shapes that the network needs."""
    shapes = mask_shapes(settings)
    if dropout_masks is not None and ([np.shape(mask) for mask in dropout_masks] != shapes or not shapes):
        raise ValueError('dropout_masks needs dropout_p_hidden > 0 and an array for each layer, of the shapes '
                         f'{shapes}; got {[np.shape(mask) for mask in dropout_masks]}')


def check_arguments(model: GRU4Rec) -> None:
    """TypeError or ValueError that names the first argument that is no such value, or out of range."""
    value = vars(model)
    check_whole_numbers('layers', value['layers'], 'numbers of units, at least one layer, such as [100]', at_least=1)
    check_whole_numbers('feedforward', value['feedforward'], 'numbers of units; an empty one for no such layers')
    for name in ('init_as_normal', 'reset_after_session', 'train_random_order', 'input_to_all_layers'):
        check_flag(name, value[name])
    for name in ('n_epochs', 'batch_size', *(['embedding'] if value['embedding'] is not None else [])):
        check_whole_number(name, value[name])
    check_whole_number('seed', value['seed'], 0, 2 ** 32 - 1)
    check_number('learning_rate', value['learning_rate'], above=True)
    for name in ('dropout_p_hidden', 'momentum', 'decay', 'session_decay'):
        check_number(name, value[name], 0, 1, below=True)
    for name in ('grad_cap', 'sigma', 'lmbd'):
        check_number(name, value[name])
    for name, allowed in (('adapt', ('adagrad', 'rmsprop', None, 'none')), ('loss', LOSSES),
                          ('hidden_act', ('tanh', 'relu')), ('final_act', ('tanh', 'linear', 'relu', None)),
                          ('input_mode', INPUTS), ('unit', UNITS),
                          ('negatives', ('minibatch', 'uniform')), ('equal_times', ('item', 'frame')),
                          ('backend', backends.BACKENDS)):
        check_choice(name, value[name], allowed)
