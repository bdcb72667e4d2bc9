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

import contextlib
import copy
import itertools
import logging
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gru4rec_pytensor  # noqa: F401 (before PyTensor: finds it a folder to write to)

# isort: split
import numba
import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pytensor.tensor.variable import TensorVariable

from gru4rec_pytensor import backends, draws, model_file
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
    IdIndex,
    as_ids,
    check_events,
    index_by_appearance,
    n_trainable_sessions,
    session_order,
    sessions_by_start,
)
from gru4rec_pytensor.parameters import read as read_parameters
from gru4rec_pytensor.recommend import Session, recommendations
from gru4rec_pytensor.turns import Turns

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
    n_sample: int
    sample_alpha: float
    sample_store: int
    bpreg: float
    logq: float
    constrained_embedding: bool
    dropout_p_embed: float
    drop_tail: bool
    seed: int

    @property
    def final_activation(self) -> str:
        """Name of the scores' activation."""
        return final_activation(self.loss, self.final_act)

    @property
    def output_width(self) -> int:
        """Units of the layer that the scores are computed from."""
        return [*self.layers, *self.feedforward][-1]

    @property
    def embedded_width(self) -> int | None:
        """Columns of the matrix whose rows stand for items in the input; None for the 1-of-N code itself."""
        return self.output_width if self.constrained_embedding else self.embedding


def final_activation(loss: str, final_act: str | None) -> str:
    """Name of the scores' activation: `final_act`, or what the releases take where that is None or out of place."""
    if loss == 'cross-entropy':
        return 'linear' if final_act in (None, 'relu', 'softmax') else final_act
    return final_act or ('linear' if loss in ('top1-max', 'bpr-max') else 'tanh')


# ---------------------------------------------------------------------------------------------------------------------
# Recurrent units (section 3, equations 1-5)
# ---------------------------------------------------------------------------------------------------------------------

def linear(x: Any) -> Any:
    """f(x) = x."""
    return x


def relu(x: Symbol) -> Symbol:
    """f(x) = max(x, 0), as the release writes it."""
    return pt.maximum(x, 0)


def scaled_elu(x: Any, scale: Any, alpha: Any, module: Any = pt) -> Any:
    """f(x) = scale x for x >= 0, scale alpha (exp(x) - 1) below; `module` has `exp`, `where` and `minimum`."""
    below = alpha * (module.exp(module.minimum(x, 0)) - 1)  # exp of what is not used must not overflow
    value = module.where(x >= 0, x, below)
    return value if scale == 1 else scale * value


def leaky_relu(x: Any, slope: Any, module: Any = pt) -> Any:
    """f(x) = x for x >= 0, slope x below."""
    return module.where(x >= 0, x, slope * x)


ACTIVATIONS: dict[str, Callable] = {'tanh': pt.tanh, 'linear': linear, 'relu': relu}
NUMPY_ACTIVATIONS: dict[str, Callable] = {'tanh': np.tanh, 'linear': linear, 'relu': partial(np.maximum, 0)}
WITH_NUMBERS = {'leaky': 1, 'elu': 1, 'selu': 2}  # activations whose name goes on with numbers -> how many


def activation(name: str, module: Any = pt) -> Callable:
    """The function of an activation's name, for symbols, or with ``module=np`` for arrays: ``'tanh'``, ``'elu-0.5'``.

    'leaky-X' is `leaky_relu`, 'elu-X' and 'selu-X-Y' are `scaled_elu`; X and Y are not negative, so that all of them
    are monotone.  KeyError or ValueError for any other name.
    """
    kind, *numbers = str(name).split('-')
    if kind not in WITH_NUMBERS:
        return (ACTIVATIONS if module is pt else NUMPY_ACTIVATIONS)[name]
    values = [np.float32(number) for number in numbers]
    if len(values) != WITH_NUMBERS[kind] or not all(0 <= value < np.inf for value in values):
        raise ValueError(name)
    if kind == 'leaky':
        return partial(leaky_relu, slope=values[0], module=module)
    scale = values[0] if kind == 'selu' else np.float32(1)
    return partial(scaled_elu, scale=scale, alpha=values[-1], module=module)


def is_activation(name: Any) -> bool:
    """Whether `activation` knows the name."""
    try:
        activation(name)
    except (KeyError, ValueError):
        return False
    return isinstance(name, str)


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
    n_inputs = settings.embedded_width or settings.n_items
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
    return layout | {'Wy': (['Wy'], (settings.n_items, settings.output_width)), 'By': (['By'], (settings.n_items,))}


def recurrent_names(unit: Unit) -> list[str]:
    """Of the recurrent matrices, without W and the number of the layer: 'h', 'hr', 'hz'."""
    return ['h', *[f'h{gate}' for gate in unit.gates[1:]]]


def input_tables(settings: Settings) -> list[str]:
    """Names of the weights with a row for each item that the input is multiplied with."""
    deeper = range(1, len(settings.layers)) if settings.input_to_all_layers else []
    if settings.embedded_width:
        return ['Wy' if settings.constrained_embedding else 'E']
    return ['W0', *[f'I{i}' for i in deeper]]


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


def mask_shapes(settings: Settings) -> dict[str, tuple]:
    """Shapes of the dropout masks: (B, columns) of the embedded input first, then (B, units) of each layer; of those
    that have dropout."""
    widths = {'mask_embed': settings.embedded_width} if settings.dropout_p_embed else {}
    if settings.dropout_p_hidden:
        widths |= {f'mask{i}': n for i, n in enumerate([*settings.layers, *settings.feedforward])}
    return {name: (settings.batch_size, n) for name, n in widths.items()}


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
    products : the input times the matrix of the embedding, or times ``W0`` and each ``I{i}``: symbolic (B, ...)
    states : symbolic (B, H), the states before, in the order of `state_shapes`
    masks : a symbolic (B, H) for each layer, or None for no dropout; a dropped unit is dropped for the layer above,
        for the output and for the next time step
    """
    def input_times(name: str) -> Symbol:
        if name in products:
            return products[name]
        (embedded,) = products.values()
        return embedded @ weights[name]

    unit, act = UNITS[settings.unit], activation(settings.hidden_act)
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
                                 chunk: int = 256, drop_tail: bool = True, fewest_lanes: int = 1) -> Iterator[Chunk]:
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
    drop_tail : True ends the pass as soon as one lane finds no session, as the 2016 release trains: what is left in
        the other lanes is not used.  False goes on, with idle lanes, until every event was an input: for evaluation,
        and as the later release trains
    fewest_lanes : with drop_tail=False, the pass ends when fewer lanes than these are left

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
        least = batch_size if drop_tail else fewest_lanes
        filled, used = _fill_minibatches(offsets, order, used, position, end, fresh, least, rows, starts)
        if filled:
            yield Chunk(rows[:filled], starts[:filled])
        if filled < chunk:
            return


@numba.njit(cache=True)
def _fill_minibatches(offsets: np.ndarray, order: np.ndarray, used: int, position: np.ndarray, end: np.ndarray,
                      fresh: np.ndarray, least: int, rows: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Fill `rows` and `starts` from the lanes' state; returns (number of mini-batches, number of used sessions)."""
    n_lanes = len(position)
    n_idle = np.sum(position < 0)
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
                else:
                    position[lane], fresh[lane] = -1, False
                    n_idle += 1
        if n_lanes - n_idle < least:
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
    """Scores of the mini-batch's targets for every lane (section 3.1.2), symbolic (B, B + n).

    Row i is lane i, column j the target of lane j, so that positives are on the diagonal.  The other lanes' targets are
    the negative samples: popular items are drawn more often, and nothing extra is computed.  After them come the n
    additional negatives of the later releases, the same for all lanes.  Nothing is masked: a negative may be the lane's
    own target.

    Parameters
    ----------
    H : symbolic (B, H), the top layer's state
    output_rows, output_bias : symbolic (B + n, H) and (B + n,), the rows of ``Wy`` and ``By`` that belong to the
        targets and the additional negatives
    """
    return final_act(H @ output_rows.T + output_bias)


def log_popularity(settings: Settings, log_counts: Symbol, target: Symbol, samples: list[Symbol]) -> Symbol:
    """What ``logq`` takes off the scores, (B + n,): logq times the log of how often an item is drawn as a negative.

    That is in proportion to its events in the training data among targets, and to their power `sample_alpha` among
    additional negatives.  Only differences between columns count in a softmax.
    """
    drawn = [log_counts[target], *[np.float32(settings.sample_alpha) * log_counts[sample] for sample in samples]]
    return np.float32(settings.logq) * pt.concatenate(drawn)


def with_other_negatives(scores: Symbol) -> Symbol:
    """Of the scores of B targets and B other items, (B, 2B): each lane's own target on the diagonal of the others."""
    n = scores.shape[0]
    return pt.switch(pt.eq(pt.arange(n)[:, None], pt.arange(n)), scores[:, :n], scores[:, n:])


# ---------------------------------------------------------------------------------------------------------------------
# Losses (section 3.1.3); each takes the (B, B + n) matrix of activated scores, the lanes' own targets on its diagonal
# ---------------------------------------------------------------------------------------------------------------------
#
# `lanes`, symbolic bool (B,), is False for lanes that are idle, which happens with drop_tail=False alone.  Their rows
# and columns do not count, but sums over lanes are divided by B all the same, as in the later release.  None: all work.

def top1(scores: Symbol, lanes: Symbol | None = None) -> Symbol:
    """TOP1: mean over i, j of  sigmoid(r_ij - r_ii) + sigmoid(r_ij ** 2),  without the positive's own square."""
    positive = diagonal(scores)
    own_square = mean_over_lanes(pt.sigmoid(positive ** 2), lanes) / n_columns(scores, lanes)
    return mean_score(pt.sigmoid(scores - positive[:, None]) + pt.sigmoid(scores ** 2), lanes) - own_square


def bpr(scores: Symbol, lanes: Symbol | None = None) -> Symbol:
    """BPR: mean over i, j of  -log sigmoid(r_ii - r_ij);  j = i is included and adds log 2 / B."""
    positive = diagonal(scores)
    return mean_score(-pt.log(pt.sigmoid(positive[:, None] - scores)), lanes)


def cross_entropy(scores: Symbol, lanes: Symbol | None = None) -> Symbol:
    """Cross-entropy (section 4.2): mean over i of  -log softmax(r_i)_i.

    The softmax does not change when a number is taken off all scores of a row; here it is the largest of them, so that
    exp cannot overflow.  No gradient goes through it, since the loss does not depend on it.

    With `lanes` it is  -log(softmax(r_i)_i + 1e-24),  as in the later release: a lane whose target scores hopelessly
    low costs 55, and its gradient is 0.  After large first steps there are such lanes on real clicks.
    """
    shifted = scores - pytensor.gradient.disconnected_grad(pt.max(scores, axis=1, keepdims=True))
    exponentials = counted(pt.exp(shifted), lanes)
    total = pt.sum(exponentials, axis=1)
    if lanes is None:
        return mean(pt.log(total) - diagonal(shifted))
    return mean_over_lanes(-pt.log(diagonal(exponentials) / total + TINY), lanes)


def mrr(scores: Symbol, lanes: Symbol | None = None) -> Symbol:
    """MRR optimisation (section 4.2; Steck, RecSys 2015): mean over i of  1 - 1 / rank_i.

    The rank is made smooth by the link of Gaussian ranking: scores of a lane are taken for normally distributed, so

        rank_i = 1 + (B - 1) (1 - Phi((r_ii - mean_j r_ij) / std_j r_ij)).

    It is pointwise: other items matter only through mean and standard deviation.
    """
    centred = scores - mean_of_row(scores, lanes)[:, None]
    spread = pt.sqrt(mean_of_row(centred ** 2, lanes) + EPSILON)
    above = pt.erfc(diagonal(centred) / (spread * 2 ** 0.5)) / 2  # 1 - Phi
    return mean_over_lanes(1 - 1 / (1 + (n_columns(scores, lanes) - 1) * above), lanes)


def top1_max(scores: Symbol, lanes: Symbol | None = None) -> Symbol:
    """TOP1-max (Hidasi and Karatzoglou, CIKM 2018): mean over i of

        sum_j s_ij (sigmoid(r_ij - r_ii) + sigmoid(r_ij ** 2)),

    with s_i the softmax over the scores of the negatives of lane i: those that score high count most.
    """
    weights = negatives_exponentials(scores, lanes)
    above = pt.sigmoid(scores - diagonal(scores)[:, None])
    total = pt.sum(weights * (above + pt.sigmoid(scores ** 2)), axis=1)
    return mean_over_lanes(total / pt.sum(weights, axis=1), lanes)


def bpr_max(scores: Symbol, lanes: Symbol | None = None, bpreg: Any = 1.0) -> Symbol:
    """BPR-max (Hidasi and Karatzoglou, CIKM 2018): mean over i of

        -log(sum_j s_ij sigmoid(r_ii - r_ij)) + bpreg sum_j s_ij r_ij ** 2,

    with s_i as in `top1_max`.  The second part keeps the scores of the negatives small.
    """
    weights = negatives_exponentials(scores, lanes)
    total = pt.sum(weights, axis=1)
    below = pt.sum(weights * pt.sigmoid(diagonal(scores)[:, None] - scores), axis=1) / total
    return mean_over_lanes(-pt.log(below + TINY) + bpreg * pt.sum(weights * scores ** 2, axis=1) / total, lanes)


def negatives_exponentials(scores: Symbol, lanes: Symbol | None) -> Symbol:
    """exp of the scores of each lane's negatives, (B, B + n), and 0 for its own target: a softmax times its sum.

    The largest of them is taken off before, as in `cross_entropy`.
    """
    lane, column = pt.arange(scores.shape[0])[:, None], pt.arange(scores.shape[1])
    is_negative = pt.neq(lane, column) if lanes is None else pt.neq(lane, column) & working_columns(scores, lanes)
    of_negatives = pt.switch(is_negative, scores, np.float32(-np.inf))
    return pt.exp(of_negatives - pytensor.gradient.disconnected_grad(pt.max(of_negatives, axis=1, keepdims=True)))


def diagonal(scores: Symbol) -> Symbol:
    """The diagonal of a (B, B + n) matrix, (B,).  Looked up, its gradient is B additions; pt.diagonal's is a matrix."""
    lane = pt.arange(scores.shape[0])
    return scores[lane, lane]


def mean(x: Symbol, axis: int | None = None) -> Symbol:
    """Mean that adds up in the scores' own precision."""
    return pt.mean(x, axis=axis, dtype=x.dtype, acc_dtype=x.dtype)


def counted(x: Symbol, lanes: Symbol | None) -> Symbol:
    """The (B, B + n) matrix with zeros in the columns of idle lanes."""
    return x if lanes is None else pt.switch(working_columns(x, lanes), x, np.float32(0))


def working_columns(scores: Symbol, lanes: Symbol) -> Symbol:
    """Which columns of a (B, B + n) matrix are not those of idle lanes' targets, bool (B + n,)."""
    return pt.concatenate([lanes, pt.ones(scores.shape[1] - scores.shape[0], 'bool')])


def n_columns(scores: Symbol, lanes: Symbol | None) -> Symbol:
    """How many columns count."""
    n_idle = 0 if lanes is None else pt.sum(~lanes)
    return pt.cast(scores.shape[1] - n_idle, FLOAT)


def mean_of_row(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Of each row of a (B, B + n) matrix, the mean over the columns that count."""
    return mean(x, axis=1) if lanes is None else pt.sum(counted(x, lanes), axis=1) / n_columns(x, lanes)


def mean_over_lanes(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Sum over the lanes that are not idle, divided by B."""
    return mean(x) if lanes is None else mean(pt.switch(lanes, x, np.float32(0)))


def mean_score(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Mean over the lanes of the means of their rows."""
    return mean(x) if lanes is None else mean_over_lanes(mean_of_row(x, lanes), lanes)


EPSILON = 1e-6  # inside the roots, as in the releases
TINY = np.float32(1e-24)  # inside the logarithms of BPR-max and, with `lanes`, cross-entropy, likewise


LOSSES: dict[str, Callable] = {'top1': top1, 'bpr': bpr, 'cross-entropy': cross_entropy, 'mrr': mrr,
                               'top1-max': top1_max, 'bpr-max': bpr_max}


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
    parts: tuple = ()  # where the loss depends on parts of `value`, one after the other, these

    def read(self, state: Symbol) -> Symbol:
        """`state`, or its entry for each occurrence."""
        return state if self.rows is None else state[self.rows]

    def add(self, state: Symbol, increment: Symbol) -> Symbol:
        """`state` with every occurrence's increment added."""
        if self.rows is None:
            return state + increment
        return backends.row_update(state, self.rows, increment, self.changes, store=False)

    def store(self, state: Symbol, value: Symbol) -> Symbol:
        """`state` replaced by `value`; of several occurrences of a row, the last one counts."""
        if self.rows is None:
            return value
        return backends.row_update(state, self.rows, value, self.changes, store=True)


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

def training_step(settings: Settings, events: Symbol, variables: Variables, states: list[Symbol],
                  log_counts: Any = None) -> tuple[list[Symbol], Symbol, Updates]:
    """Symbols, loss, gradients and updates of one mini-batch.

    Parameters
    ----------
    events : symbolic int64 (n_events,), item indices of all events of the training data, session after session
    states : shared variables of the lanes' states, in the order of `state_shapes`
    log_counts : symbolic float32 (n_items,), log of the items' numbers of events; needed with ``logq`` alone

    Returns
    -------
    inputs : what differs between mini-batches: `position` of the input events among all events (B,), `starts` (B,), and
        what `RandomInputs` draws: the 0/1 masks of `mask_shapes`, and the negatives, unless they are the other targets:
        (n_sample,), or with negatives='uniform' (B,)
    loss : symbolic scalar, of the weights before the update
    updates : ordered dictionary, shared variable -> its value after the mini-batch
    """
    weights, n_lanes = variables.weights, settings.batch_size
    position = pt.vector('position', dtype='int64', shape=(n_lanes,))
    starts = pt.vector('starts', dtype='bool', shape=(n_lanes,))
    masks = {name: pt.matrix(name, dtype='bool', shape=shape) for name, shape in mask_shapes(settings).items()}
    n_negatives = n_lanes if settings.negatives == 'uniform' else settings.n_sample
    negatives = [pt.vector('negatives', dtype='int64', shape=(n_negatives,))] if n_negatives else []
    lanes = None if settings.drop_tail else position >= 0
    event = position if lanes is None else pt.maximum(position, 0)
    item, target = events[event], events[event + 1]
    rates = shared_rates(settings)

    read, layer_states = read_input(settings, item, starts, states)
    parameters, input_rows, output_rows = used_parameters(settings, weights, read, lanes,
                                                          pt.concatenate([target, *negatives]))
    top, new_states = network(
        settings, weights, embedded(read, input_rows, masks.get('mask_embed'), rates),
        [reset(H, starts) for H in layer_states] if settings.reset_after_session else layer_states,
        [mask * rates['kept_scale'] for name, mask in masks.items() if name != 'mask_embed'] or None)
    bias = parameters['By'].value
    if settings.logq:
        bias = bias - log_popularity(settings, log_counts, target, negatives)
    scores = sampled_scores(top, output_rows, bias, activation(settings.final_activation))
    loss = loss_of(settings, with_other_negatives(scores) if settings.negatives == 'uniform' else scores, lanes, rates)

    updates = OrderedDict(zip(states, [*read.history, *new_states]))
    for update in parameter_updates(settings, rates, parameters, loss, variables):
        assert not updates.keys() & update.keys(), f'two rules update one of {[*update]}'  # one would be lost
        updates.update(update)
    return [position, starts, *masks.values(), *negatives], loss, updates


def loss_of(settings: Settings, scores: Symbol, lanes: Symbol | None, rates: dict[str, Symbol]) -> Symbol:
    """The loss of activated scores, by its name."""
    options = {'bpreg': rates['bpreg']} if settings.loss == 'bpr-max' else {}
    return LOSSES[settings.loss](scores, **options, **({} if lanes is None else {'lanes': lanes}))


def used_parameters(settings: Settings, weights: dict[str, Symbol], read: InputRows, lanes: Symbol | None,
                    scored: Symbol) -> tuple[dict[str, Parameter], dict[str, Symbol], Symbol]:
    """All weights as the update rules see them, and what the mini-batch reads of them.

    Where input and output share one matrix there is one list of occurrences: inputs, then targets, then additional
    negatives; so that there is one accumulator, and each occurrence is one step.

    Returns
    -------
    parameters : by the names of `weight_layout`
    input_rows : of each of `input_tables`, the rows that the input reads
    output_rows : of ``Wy``, those of the items `scored` (B + n,)
    """
    of_input, of_scored = working_occurrences(read, lanes), lanes
    n_negatives = scored.type.shape[0] - settings.batch_size
    if lanes is not None and n_negatives:
        # The negatives of negatives='uniform' belong to a lane each, additional ones to all.
        of_scored = pt.concatenate([lanes, lanes if settings.negatives == 'uniform' else pt.ones(n_negatives, 'bool')])
    parameters = OrderedDict((name, Parameter(w, w)) for name, w in weights.items())
    for name in input_tables(settings):
        parameters[name] = Parameter(weights[name], weights[name][read.rows], read.rows, of_input)
    for name in ('Wy', 'By'):
        parameters[name] = Parameter(weights[name], weights[name][scored], scored, of_scored)
    if not settings.constrained_embedding:
        return parameters, {name: parameters[name].value for name in input_tables(settings)}, parameters['Wy'].value
    W, rows = weights['Wy'], [read.rows, scored]
    parts = W[read.rows], W[scored]
    changes = [of_input, of_scored]
    if of_input is not None or of_scored is not None:
        changes = [pt.ones(n.type.shape, 'bool') if part is None else part for part, n in zip(changes, rows)]
    parameters['Wy'] = Parameter(W, pt.concatenate(parts), pt.concatenate(rows),
                                 None if None in changes else pt.concatenate(changes), parts)
    return parameters, {'Wy': parts[0]}, parts[1]


def gradients_of(loss: Symbol, parameters: list[Parameter]) -> list[Symbol]:
    """Gradient of the loss by the value of each parameter."""
    parts = [parameter.parts or (parameter.value,) for parameter in parameters]
    gradients: Any = pytensor.grad(loss, [*itertools.chain(*parts)])
    remaining = iter(gradients)
    joined = [[next(remaining) for _part in of_parameter] for of_parameter in parts]
    return [pt.concatenate(some) if len(some) > 1 else some[0] for some in joined]


def embedded(read: InputRows, rows: dict[str, Symbol], mask: Symbol | None,
             rates: dict[str, Symbol]) -> dict[str, Symbol]:
    """The input times each of `input_tables`, (B, ...), with the dropout of an embedded input, if there is one."""
    products = {name: read.product(of_table) for name, of_table in rows.items()}
    return products if mask is None else {name: product * (mask * rates['kept_scale_embed'])
                                          for name, product in products.items()}


def working_occurrences(read: InputRows, lanes: Symbol | None) -> Symbol | None:
    """Of what the input reads, bool (n,), which entries are events of lanes that are not idle; None where all are."""
    if lanes is None or read.is_event is None:
        return lanes if read.is_event is None else read.is_event
    n_events = read.rows.type.shape[0] // lanes.type.shape[0]
    return read.is_event & pt.repeat(lanes, n_events)


def shared_rates(settings: Settings) -> dict[str, Any]:
    """Learning rate, momentum, decay, L2, BPR-max's regularisation, and the scales of what dropout keeps.

    Variables, not constants, so that the code compiled for one learning rate serves for others too.
    """
    def kept_scale(p: float) -> np.ndarray:
        return np.array(1, FLOAT) / np.array(1 - p, FLOAT)

    return {name: shared(name, np.array(value, FLOAT)) for name, value in (
        ('learning_rate', settings.learning_rate), ('momentum', settings.momentum), ('decay', settings.decay),
        ('lmbd', settings.lmbd), ('bpreg', settings.bpreg), ('kept_scale', kept_scale(settings.dropout_p_hidden)),
        ('kept_scale_embed', kept_scale(settings.dropout_p_embed)))}


def reset(H: Symbol, starts: Symbol) -> Symbol:
    """The states of the lanes, zero where a session starts."""
    return pt.switch(starts[:, None], np.float32(0), H)


def parameter_updates(settings: Settings, rates: dict[str, Symbol], parameters: dict[str, Parameter], loss: Symbol,
                      variables: Variables) -> Iterator[Updates]:
    """The updates of each parameter, by the gradients of the loss."""
    gradients = gradients_of(loss, [*parameters.values()])
    if settings.grad_cap:
        gradients = capped(gradients, settings.grad_cap)
    for (name, parameter), gradient in zip(parameters.items(), gradients):
        yield updates_of(settings, rates, parameter, gradient, variables.acc.get(name), variables.vel.get(name))


def updates_of(settings: Settings, rates: dict[str, Symbol], parameter: Parameter, gradient: Symbol, acc: Any,
               vel: Any) -> Updates:
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
    """What is random in mini-batches: called with a chunk of K, it draws their dropout masks, bool (K, B, columns) for
    each of `mask_shapes`, and their negatives, int64 (K, n_sample), or (K, B) with negatives='uniform'.

    Masks and additional negatives are the releases', number for number: each has the streams that Theano gave it in a
    new process, see `draws`.  The releases have no uniform negatives: they come from a stream of NumPy's.

    Parameters
    ----------
    item_counts : int64 (n_items,), events of each item in the training data; additional negatives are drawn in
        proportion to their power ``sample_alpha``
    fixed_masks : used for every mini-batch, if given
    fixed_negatives : int64 (mini-batches of all epochs, n_sample), if given
    n_epochs_before : epochs that the model was trained for before.  Request i of R draws from request number
        R * n_epochs_before + i of the generator, so that further trainings have streams of their own
    """

    def __init__(self, settings: Settings, item_counts: np.ndarray, fixed_masks: list | None = None,
                 fixed_negatives: np.ndarray | None = None, n_epochs_before: int = 0) -> None:
        shapes = [*mask_shapes(settings).values()]
        n_stores = int(settings.n_sample > 0)
        first = (n_stores + len(shapes)) * n_epochs_before
        self._fixed_masks, self._fixed_negatives, self._used = fixed_masks or [], fixed_negatives, 0
        self._store = None
        if n_stores and fixed_negatives is None:
            self._store = draws.NegativeStore(item_counts, settings.sample_alpha, settings.n_sample,
                                              settings.sample_store, settings.seed, first)
        self._masks = [draws.Masks(width, kept, settings.seed, first + n_stores + i)
                       for i, ((_n_lanes, width), kept) in enumerate(zip(shapes, kept_probabilities(settings)))
                       if not fixed_masks]
        self._n_items = settings.n_items if settings.negatives == 'uniform' else None
        before = [n_epochs_before] * bool(n_epochs_before)
        self._item_stream = np.random.SFC64(np.random.SeedSequence([settings.seed, 2 ** 32 - 1, *before]))

    def __call__(self, chunk: Chunk) -> list[np.ndarray]:
        lanes = chunk.position >= 0
        n_minibatches, n_lanes = lanes.shape
        drawn = [draws.fixed_mask(mask, lanes) for mask in self._fixed_masks] + [draw(lanes) for draw in self._masks]
        if self._fixed_negatives is not None:
            drawn.append(self._fixed_negatives[self._used:self._used + n_minibatches])
            self._used += n_minibatches
        elif self._store:
            drawn.append(self._store(n_minibatches))
        elif self._n_items:
            bits = self._item_stream.random_raw(n_minibatches * n_lanes) >> np.uint64(24)
            items = bits * np.uint64(self._n_items) >> np.uint64(40)
            drawn.append(items.astype(np.int64).reshape(n_minibatches, n_lanes))
        return drawn

    def state(self) -> dict[str, np.ndarray]:
        """Where the streams are."""
        of_masks = {f'streams{i}': masks.streams.state for i, masks in enumerate(self._masks)}
        store = self._store
        of_store = {'store_streams': store.streams.state, 'store_used': np.array([store.used])} if store else {}
        return of_masks | of_store | {'item_stream': self._item_stream.state['state']['state'],
                                      'used_negatives': np.array([self._used])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on where `state` was taken."""
        for i, masks in enumerate(self._masks):
            masks.streams.state = state[f'streams{i}']
        if self._store:
            self._store.streams.state, self._store.used = state['store_streams'], state['store_used'].item()
        self._item_stream.state = self._item_stream.state | {'state': {'state': state['item_stream']}}
        self._used = state['used_negatives'].item()


def kept_probabilities(settings: Settings) -> list[float]:
    """Of each of `mask_shapes`, the probability with which a unit is kept."""
    return [1 - (settings.dropout_p_embed if name == 'mask_embed' else settings.dropout_p_hidden)
            for name in mask_shapes(settings)]


def with_random_inputs(chunks: Iterator[tuple[Chunk, bool]], random_inputs: RandomInputs, ahead: bool,
                       with_state: bool) -> Iterator[tuple]:
    """Each of the chunks, what is drawn for it, and, if asked for, where the random streams are then.

    With `ahead` a second thread draws for the next chunk meanwhile: for a device, which leaves the host idle.  On a CPU
    the compiled loop holds the interpreter, and drawing is 5 µs of the 150 that a mini-batch takes with 100 units.
    """
    def draw(chunk: tuple[Chunk, bool]) -> tuple:
        return chunk, random_inputs(chunk[0]), random_inputs.state() if with_state else {}

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


def largest_product(settings: Settings) -> int:
    """Multiplications of the largest matrix product of a training step: of a layer, or of the scores."""
    widths = [settings.embedded_width or 0, *settings.layers, *settings.feedforward]
    n_columns = settings.batch_size + settings.n_sample
    return settings.batch_size * max(max(widths) ** 2, settings.output_width * n_columns)


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
    """How far a training is: whole epochs, and of the one that is under way, chunks, mini-batches, events, and the sum
    of the losses, each times its number of lanes at work."""
    epoch: int = 0
    chunks: int = 0
    minibatches: int = 0
    events: int = 0
    total_loss: float = 0.0

    def after(self, losses: np.ndarray, chunk: Chunk) -> TrainingPosition:
        """The same, after another chunk of mini-batches with these losses."""
        n_lanes = (chunk.position[:len(losses)] >= 0).sum(axis=1)
        return TrainingPosition(self.epoch, self.chunks + 1, self.minibatches + len(losses),
                                self.events + int(n_lanes.sum()),
                                self.total_loss + float((losses * n_lanes).sum(dtype='float64')))

    @property
    def mean_loss(self) -> float:
        """Over the lanes of the epoch that is under way."""
        return self.total_loss / self.events


@dataclass(eq=False, repr=False)
class GRU4Rec:
    """Session-based recommender: layers of gated recurrent units, trained with a ranking loss (Hidasi et al., 2016).

    Arguments, defaults and results are those of the authors' 2016 release.  Those after `time_key` are given by name:
    `input_mode` to `equal_times` make the variants that sections 3 and 4 of the paper mention, `n_sample` to
    `drop_tail` what the authors' later releases added, under the names and with the results of those, see
    `gru4rec_pytensor.later`.

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
    loss : 'top1', 'bpr', 'cross-entropy', 'mrr', 'top1-max' or 'bpr-max'
    hidden_act : 'tanh', 'relu', 'linear', or one with numbers, see `activation`, of the candidate state
    final_act : the same, of the scores; None for tanh, or linear with cross-entropy, top1-max and bpr-max.
        Cross-entropy applies softmax to the scores, which 'softmax' says too, and takes 'relu' for 'linear', as the
        2016 release does
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
    n_sample : number of additional negatives, drawn for each mini-batch and the same for all its lanes
    sample_alpha : they are drawn in proportion to an item's number of events to the power of this; 0 for uniformly
    sample_store : as many of them are drawn at a time; it determines which are drawn, not how well
    bpreg : how much bpr-max keeps the scores of the negatives small
    logq : how much of the log of an item's popularity is taken off its scores in training, see `log_popularity`
    constrained_embedding : the input is embedded by the output's matrix ``Wy``
    dropout_p_embed : probability with which a column of an embedded input is dropped, 0 <= p < 1
    time_sort : use the sessions in the order of their first events' times, not of their ids
    drop_tail : end an epoch as soon as a lane finds no session, as the 2016 release does; False lets the lanes leave
        one by one, as the later release does; `epoch_losses_` are then means weighted by the lanes at work, and
        cross-entropy has the later release's 1e-24, see `cross_entropy`
    seed : of the initial weights, the session orders, the dropout masks and the negatives; 42 gives those of the
        releases, for other seeds see `mrg.first_state`
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
    n_sample: int = 0
    sample_alpha: float = 0.75
    sample_store: int = 10_000_000
    bpreg: float = 1.0
    logq: float = 0.0
    constrained_embedding: bool = False
    dropout_p_embed: float = 0.0
    time_sort: bool = False
    drop_tail: bool = True
    seed: int = 42
    backend: str = 'auto'

    items_: np.ndarray = field(init=False)
    item_counts_: np.ndarray = field(init=False)
    n_items: int = field(init=False)
    epoch_losses_: list[float] = field(init=False)
    variables_: Variables = field(init=False)
    backend_: str = field(init=False)
    error_during_train: bool = field(init=False)
    _index_of: IdIndex = field(init=False)
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
            sampled_negatives: ArrayLike | None = None, callback: Callable[[Progress], None] | None = None,
            checkpoint: str | Path | None = None, every: float = 600.0, threads: int | None = None) -> GRU4Rec:
        """Train from scratch on the events of `data`, which is not modified.

        Parameters
        ----------
        data : frame with the columns `session_key`, `item_key`, `time_key`; one row an event, in any order.  Rows are
            sorted by session and time; for events of a session with equal times see `equal_times`
        retrain : True goes on from the weights as they are, as the release does: see `fit_more`
        dropout_masks : for comparing implementations: a 0/1 array (batch_size, units) for each layer, with
            dropout_p_embed one of (batch_size, width of the embedding) before them, used in every mini-batch instead of
            random ones
        sampled_negatives : likewise, int (mini-batches of all epochs, n_sample), item indices instead of drawn ones
        callback : called with a `Progress` after each chunk of mini-batches
        checkpoint : path of a file that is written at the end, and after a chunk of mini-batches when `every` seconds
            have passed since the last time.  Where it is there already, the training goes on from it: after an
            interruption at any moment, the same call ends with the same bits as one without (for what that takes of the
            compiler see `backends.add_code_on_disk`).  ValueError if it belongs to other data or arguments; `n_epochs`
            alone may differ
        every : seconds
        threads : number of BLAS's threads, on a CPU; None to choose by the size of the network's products and the cores
            that are free, see `backends.TrainingThreads`.  From about 200 units on the last digits of products depend
            on it: give a number for the same bits on machines with other cores, or on one that is busy at times

        Returns
        -------
        self.  A loss that is not finite ends the training with a RuntimeWarning and sets `error_during_train`.  An
        exception in the callback, or Ctrl-C, leaves the weights of that moment.
        """
        if retrain:
            if any(value is not None for value in (dropout_masks, sampled_negatives, checkpoint)):
                raise ValueError('retrain=True does not go with dropout_masks, sampled_negatives or checkpoint')
            return self.fit_more(data, callback=callback, threads=threads)
        check_arguments(self)
        check_number('every', every)
        if threads is not None:
            check_whole_number('threads', threads)
        backends.check_working_directory()
        backend = backends.resolve(self.backend)
        check_events(data, *self._columns)
        item_index, items = index_by_appearance(data[self.item_key])
        rows, offsets = self._session_order(data, item_index)
        settings = self.settings(len(items))
        check_masks(dropout_masks, settings)
        warn_of_constant_loss(settings)
        rng = np.random.RandomState(self.seed)
        weights = initial_weights(settings, rng)
        negatives = None
        if sampled_negatives is not None:
            chunks = itertools.chain(*self._epochs(settings, offsets, copy.deepcopy(rng), self.n_epochs))
            negatives = checked_negatives(sampled_negatives, settings, sum(len(chunk.starts) for chunk in chunks))
        events = item_index[rows]
        file = None
        if checkpoint:
            given = [*(dropout_masks or ()), *([] if negatives is None else [negatives])]
            training = self._what_determines_training((events, offsets, *given), backend)
            file = model_file.Checkpoint(checkpoint, every, training)
        with self._turns.training():
            self.backend_ = backend
            self._set_items(items, np.bincount(item_index))
            self._set_variables(Variables.of(settings, weights))
            random_inputs = RandomInputs(settings, self.item_counts_, dropout_masks, negatives)
            self._train(events, offsets, rng, random_inputs, callback, file, n_threads=threads)
        return self

    def fit_more(self, data: pd.DataFrame, n_epochs: int | None = None, *,
                 callback: Callable[[Progress], None] | None = None, threads: int | None = None) -> GRU4Rec:
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
        callback, threads : as in `fit`

        Returns
        -------
        self, with the losses of the new epochs appended to `epoch_losses_`
        """
        self._check_usable()
        check_arguments(self)
        for name, number in (('n_epochs', n_epochs), ('threads', threads)):
            if number is not None:
                check_whole_number(name, number)
        backends.check_working_directory()
        check_events(data, *self._columns)
        with self._turns.training():
            try:
                ids = self._index_of.like(data[self.item_key])
            except ValueError as error:
                raise TypeError(f'column {self.item_key!r} has item ids such as {error}, but those of the model are '
                                f'such as {first_few(self.items_[:1])}') from None
            unknown = pd.unique(ids[self._index_of.get_indexer(ids) < 0])
            item_index = IdIndex(np.concatenate([self.items_, unknown])).get_indexer(ids)
            rows, offsets = self._session_order(data, item_index)
            warn_of_constant_loss(self.settings(self.n_items + len(unknown)))
            losses, n_epochs_before = self.epoch_losses_, len(self.epoch_losses_)
            rng = np.random.RandomState([self.seed, n_epochs_before, self.n_items])
            self._add_items(unknown, rng)
            self.epoch_losses_ = losses  # to which those of the new epochs are appended
            self.item_counts_ = self.item_counts_ + np.bincount(item_index, minlength=self.n_items)
            random_inputs = RandomInputs(self.settings(), self.item_counts_, n_epochs_before=n_epochs_before)
            self._train(item_index[rows], offsets, rng, random_inputs, callback, None, n_epochs, threads)
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
        if self.time_sort and not self.train_random_order:
            return sessions_by_start(rows, offsets, data[self.time_key].to_numpy())
        return rows, offsets

    def _epochs(self, settings: Settings, offsets: np.ndarray, rng: np.random.RandomState,
                n_epochs: int) -> Iterator[Iterator[Chunk]]:
        """The mini-batches of each epoch.  Without additional negatives a lane that is left alone has none."""
        for _epoch in range(n_epochs):
            order = rng.permutation(len(offsets) - 1) if self.train_random_order else None
            yield session_parallel_minibatches(offsets, self.batch_size, order, chunk_length(settings),
                                               bool(self.drop_tail), fewest_lanes=1 if self.n_sample else 2)

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
        self._index_items()

    def _index_items(self) -> None:
        self._index_of = IdIndex(self.items_)

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
               n_epochs: int | None = None, n_threads: int | None = None) -> None:
        """All epochs over `items` (n_events,), the item indices in session order."""
        settings, n_epochs = self.settings(), n_epochs or self.n_epochs
        states = [shared(name, state)
                  for name, state in zip(state_shapes(settings), initial_states(settings, self.batch_size))]
        events = shared('events', items)
        weakref.finalize(random_inputs, free_arrays, [events, *states])  # which this call alone refers to
        with backends.symbols_of_float32():
            log_counts = shared('log_counts', np.log(self.item_counts_).astype(FLOAT))
            step = training_step(settings, events, self.variables_, states, log_counts)
        threads = backends.TrainingThreads(n_threads, largest_product(settings))
        run = backends.compile_loop(*step, backend=self.backend_, threads=threads)
        position = self._resume(checkpoint, states, random_inputs, threads) if checkpoint else TrainingPosition()
        for epoch, chunks in enumerate(self._epochs(settings, offsets, rng, n_epochs)):
            if epoch < position.epoch:
                continue
            if not position.chunks:
                for variable, state in zip(states, initial_states(settings, self.batch_size)):
                    variable.set_value(state)
            left = with_last(itertools.islice(chunks, position.chunks, None))
            for (batches, is_last), drawn, state in with_random_inputs(left, random_inputs, self.backend_ == 'jax',
                                                                       with_state=checkpoint is not None):
                losses = run(*batches, *drawn)
                position = position.after(losses, batches)
                if not np.isfinite(losses[-1]):
                    self._fail(f'the loss of epoch {epoch}, mini-batch {position.minibatches - 1} is {losses[-1]}')
                    return
                if checkpoint and checkpoint.is_due():
                    self._write(checkpoint, states, state, threads, position)
                if callback:
                    callback(Progress(epoch, n_epochs, position.minibatches, position.events,
                                      len(items) - len(offsets) + 1, position.mean_loss, is_last))
            self.epoch_losses_.append(position.mean_loss)
            logger.info('Epoch%d\tloss: %.6f', epoch, self.epoch_losses_[-1])
            position = TrainingPosition(epoch + 1)
        if checkpoint:
            self._write(checkpoint, states, random_inputs.state(), threads, position)
        if not all(np.isfinite(weight.get_value(borrow=True)).all() for weight in self.variables_.weights.values()):
            self._fail('the last mini-batch left weights that are not finite')

    def _what_determines_training(self, data: tuple, backend: str) -> dict:
        """What the result of a training depends on: `data`, its arrays, and the arguments; not how many epochs."""
        arguments = {name: value for name, value in plain_arguments(self).items() if name != 'n_epochs'}
        checksum = model_file.checksum({str(k): array for k, array in enumerate(data)})
        return arguments | {'backend': backend, 'data': checksum}

    def _trained_variables(self, states: list) -> dict:
        """By name, the shared variables that a training step changes: those of the model, and the lanes' states."""
        groups = [*(group.values() for group in self.variables_), states]
        return {variable.name: variable for variables in groups for variable in variables}

    def _write(self, checkpoint: model_file.Checkpoint, states: list, random_state: dict[str, np.ndarray],
               threads: backends.TrainingThreads, position: TrainingPosition) -> None:
        """All that the rest of the training depends on, into the checkpoint."""
        state = {'epoch_losses': self.epoch_losses_, 'position': position, 'threads': threads.most}
        arrays = {name: np.asarray(variable.get_value(borrow=True))
                  for name, variable in self._trained_variables(states).items()}
        checkpoint.write(state, arrays | random_state)

    def _resume(self, checkpoint: model_file.Checkpoint, states: list, random_inputs: RandomInputs,
                threads: backends.TrainingThreads) -> TrainingPosition:
        """Put everything back as it was in the checkpoint, if there was one."""
        state, arrays = checkpoint.saved_state()
        if not state:
            return TrainingPosition()
        with checkpoint.refused_unless_whole():
            for name, variable in self._trained_variables(states).items():
                variable.set_value(arrays[name], borrow=True)
            random_inputs.restore(arrays)
            threads.go_on_from(state['threads'])
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
        self._check_trained()
        with self.in_use():
            return split_gates(self.variables_.weights, self.settings())

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Copies of accumulators, ``acc_NAME``, and velocities, ``vel_NAME``, of all weights, if the rule has them."""
        self._check_trained()
        with self.in_use():
            acc, vel = (split_gates(group, self.settings()) for group in self.variables_[1:])
        return {f'acc_{name}': value for name, value in acc.items()} | {
            f'vel_{name}': value for name, value in vel.items()}

    def move_to(self, backend: str) -> GRU4Rec:
        """Predict on another backend from now on, with the same weights, and train there when `fit` is called again."""
        backend_ = backends.resolve(backend)
        self._check_trained()
        with self._turns.training():
            for group in self.variables_:
                for variable in group.values():
                    variable.set_value(np.array(variable.get_value(borrow=True)), borrow=True)  # off a device
            self.backend, self.backend_ = backend, backend_
            self._forget_compiled()
            self._prediction_state = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: everything but compiled functions, which are made again; variables as arrays."""
        with self.in_use():
            state = {name: value for name, value in vars(self).items() if name not in ('_taken_turns', '_predictor')}
            if not hasattr(self, 'variables_'):
                return state
            state |= {'_state_function': None, '_rank_program': None}
            if self._prediction_state is not None:
                session_ids, states = self._prediction_state
                state['_prediction_state'] = session_ids, [np.asarray(H) for H in states]
            return state | {'variables_': self.variables_.arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if 'variables_' in state:
            self.backend_ = backends.resolve('auto') if self.backend == 'auto' else self.backend_  # of this machine
            self._index_items()
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
        check_choice('dtype', dtype, ('float32', 'float16'))
        with self.in_use():
            self._check_usable()
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
        with self.in_use():
            self._check_usable()
            function = self._state_function
            if function is None:
                with backends.symbols_of_float32():  # one thread compiles, the others find it
                    function = self._state_function = self._state_function or backends.compile_step(
                        *prediction_step(self.settings(), self.variables_.weights), backend=self.backend_)
            top, *states = function(items, starts, *states)
            return top, states

    def output_weights(self, candidates: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``Wy`` (M, H) and ``By`` (M,) of the items with the indices `candidates`, all when None; not to be modified.

        With H as `next_states` gives it, ``H @ Wy.T + By`` are the scores before the final activation.
        """
        with self.in_use():
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
        with self.in_use():
            output = self._device_output()
            program = self._rank_program
            if program is None:
                settings, x = self.settings(), pt.matrix('scores', dtype=FLOAT)
                with backends.symbols_of_float32():
                    program = self._rank_program = self._rank_program or backends.compile_ranks(
                        *prediction_step(settings, self.variables_.weights), x,
                        activation(settings.final_activation)(x))
            ranked = output if candidates is None else [array[candidates] for array in output]
            column = column_of_item(candidates, self.n_items)
            return program(items, starts, targets, states, column, output, ranked)

    def score_activation(self, scores: np.ndarray) -> np.ndarray:
        """The final activation of raw scores, elementwise and monotone; for cross-entropy the softmax is left out."""
        return activation(final_activation(self.loss, self.final_act), np)(scores)

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
        same place, a new session starts.  Another `batch`, or training, starts all of them anew.  So the sessions are
        those of one caller: a thread that calls while another one is in here gets a RuntimeError.  `recommend`,
        `session`, `next_states` and `evaluation.next_item_ranks` keep nothing, and are for any number of threads.

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
        sessions, events = as_ids(session_ids, 'session_ids'), as_ids(input_item_ids, 'input_item_ids')
        if not len(sessions) == len(events) == batch:
            raise ValueError(f'session_ids ({len(sessions)}) and input_item_ids ({len(events)}) must have '
                             f'batch={batch} entries')
        with self.in_use(), self._only_predictor():
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
        with self.in_use():
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
        return self._index_of.get_indexer(item_ids)

    def item_indices(self, item_ids: ArrayLike) -> np.ndarray:
        """int64 indices of item ids; KeyError names those that the training data did not have."""
        ids = as_ids(item_ids)
        indices = self.known_indices(ids)
        if (indices < 0).any():
            unknown = pd.unique(ids[indices < 0])
            raise KeyError(f'{len(unknown)} item id(s) are not in the training data: {first_few(unknown)}')
        return indices

    def _check_trained(self) -> None:
        if not hasattr(self, 'items_'):
            raise RuntimeError('this GRU4Rec is not trained yet: call fit first')

    @property
    def _turns(self) -> Turns:
        """Made at the first use, in one step, which no other thread can come between."""
        return vars(self).setdefault('_taken_turns', Turns())

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """For predictions that belong together: ``with gru.in_use(): ...``

        A thread that comes to train waits until they are done.  RuntimeError while another thread trains: weights
        change under way, and with JAX are where it works.
        """
        return self._turns.reading()

    @contextlib.contextmanager
    def _only_predictor(self) -> Iterator[None]:
        """For one thread: RuntimeError in a second one, or in a call within a call."""
        thread = [threading.get_ident()]
        if vars(self).setdefault('_predictor', thread) is not thread:
            raise RuntimeError('another thread is in predict_next_batch, whose sessions are those of one caller: call '
                               'recommend or session, or give each thread a copy (copy.deepcopy)')
        try:
            yield
        finally:
            del vars(self)['_predictor']

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
    shapes = [*mask_shapes(settings).values()]
    if dropout_masks is not None and ([np.shape(mask) for mask in dropout_masks] != shapes or not shapes):
        raise ValueError('dropout_masks needs dropout_p_hidden > 0 and an array for each layer, with dropout_p_embed '
                         f'> 0 one for the embedding before them, of the shapes {shapes}; got '
                         f'{[np.shape(mask) for mask in dropout_masks]}')


def checked_negatives(sampled_negatives: ArrayLike, settings: Settings, n_minibatches: int) -> np.ndarray:
    """Given negatives as int64; ValueError or TypeError unless they are items for each of so many mini-batches."""
    negatives = np.asarray(sampled_negatives)
    shape = (n_minibatches, settings.n_sample)
    if not settings.n_sample or negatives.shape != shape:
        raise ValueError('sampled_negatives needs n_sample > 0 and an array of the shape (mini-batches of all epochs, '
                         f'n_sample) = {shape}; got {negatives.shape}')
    if negatives.dtype.kind not in 'iu' or negatives.min() < 0 or negatives.max() >= settings.n_items:
        raise ValueError(f'sampled_negatives must be item indices, integers from 0 to {settings.n_items - 1}')
    return negatives.astype(np.int64)


def warn_of_constant_loss(settings: Settings) -> None:
    """One warning, of the line that called the caller, where the loss hardly depends on what a model may learn."""
    n_others = settings.batch_size - 1 + settings.n_sample
    if settings.n_items == 1:
        reason = 'the training data has one item only, which is always the next one'
    elif not n_others:
        reason = 'with batch_size=1 there are no other targets to rank a target among, and the loss is constant'
    elif settings.loss == 'mrr' and n_others == 1:
        reason = ("with batch_size=2 there is one other target, and of two scores loss='mrr' sees which is higher, but "
                  'not by how much')
    elif not np.float32(settings.learning_rate):
        reason = f'learning_rate={settings.learning_rate} is zero as a float32'
    else:
        return
    warnings.warn(f'nothing can be learned: {reason}', stacklevel=3)


def check_arguments(model: GRU4Rec) -> None:
    """TypeError or ValueError that names the first argument that is no such value, or out of range."""
    value = vars(model)
    check_whole_numbers('layers', value['layers'], 'numbers of units, at least one layer, such as [100]', at_least=1)
    check_whole_numbers('feedforward', value['feedforward'], 'numbers of units; an empty one for no such layers')
    for name in ('init_as_normal', 'reset_after_session', 'train_random_order', 'input_to_all_layers',
                 'constrained_embedding', 'time_sort', 'drop_tail'):
        check_flag(name, value[name])
    for name in ('n_epochs', 'batch_size', *(['embedding'] if value['embedding'] is not None else [])):
        check_whole_number(name, value[name])
    check_whole_number('seed', value['seed'], 0, 2 ** 32 - 1)
    check_whole_number('n_sample', value['n_sample'], 0)
    check_whole_number('sample_store', value['sample_store'], 0)
    check_number('learning_rate', value['learning_rate'], above=True)
    for name in ('dropout_p_hidden', 'dropout_p_embed', 'momentum', 'decay', 'session_decay'):
        check_number(name, value[name], 0, 1, below=True)
    for name in ('grad_cap', 'sigma', 'lmbd', 'sample_alpha', 'bpreg', 'logq'):
        check_number(name, value[name])
    check_activation('hidden_act', value['hidden_act'])
    if value['final_act'] is not None and (value['final_act'], value['loss']) != ('softmax', 'cross-entropy'):
        check_activation('final_act', value['final_act'])
    check_combinations(model)
    for name, allowed in (('adapt', ('adagrad', 'rmsprop', None, 'none')), ('loss', LOSSES),
                          ('input_mode', INPUTS), ('unit', UNITS),
                          ('negatives', ('minibatch', 'uniform')), ('equal_times', ('item', 'frame')),
                          ('backend', backends.BACKENDS)):
        check_choice(name, value[name], allowed)


def check_activation(name: str, value: Any) -> None:
    """ValueError unless it is the name of an activation."""
    if not is_activation(value):
        also = ", None, or 'softmax' with cross-entropy" if name == 'final_act' else ''
        raise ValueError(f"{name}={value!r}: must be one of 'tanh', 'linear', 'relu', 'leaky-X', 'elu-X', 'selu-X-Y' "
                         f'with numbers X and Y of at least 0, such as elu-0.5{also}')


def check_combinations(model: GRU4Rec) -> None:
    """ValueError that names arguments which exclude one another, or of which one needs another."""
    if model.constrained_embedding and model.embedding:
        raise ValueError(f'constrained_embedding=True does not go with embedding={model.embedding!r}: the input is '
                         "embedded by the output's matrix")
    if model.dropout_p_embed and not (model.constrained_embedding or model.embedding):
        raise ValueError(f'dropout_p_embed={model.dropout_p_embed!r} needs embedding or constrained_embedding')
    if model.n_sample and model.negatives == 'uniform':
        raise ValueError(f"n_sample={model.n_sample!r} does not go with negatives='uniform': use sample_alpha=0 for "
                         'additional negatives that are drawn uniformly')
    if model.n_sample and model.sample_store < 2 * model.n_sample:
        raise ValueError(f'sample_store={model.sample_store!r}: must hold at least two mini-batches, so 2 * n_sample = '
                         f'{2 * model.n_sample}')
