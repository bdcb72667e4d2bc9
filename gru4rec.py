"""GRU4Rec: session-based recommendations with recurrent neural networks.

Hidasi, Karatzoglou, Baltrunas, Tikk, ICLR 2016, arXiv 1511.06939 v4, as a symbolic PyTensor graph.  Read from top to
bottom in the order of the paper's section 3:

* the gated recurrent unit (3, equations 1-5): `gru_step`, and the units that it is compared with;
* the input (3.1): `item_input`, `session_input`, and the layers over it (Figure 1): `network`;
* names and shapes of weights, states and dropout masks: `weight_layout`, `state_shapes`, `mask_layout`;
* mini-batches of parallel sessions (3.1.1, Figure 2): `session_parallel_minibatches`;
* scores of the sampled items (3.1.2): `sampled_scores`;
* ranking losses (3.1.3): `top1`, `bpr`, `cross_entropy`, `mrr`, and those of the later papers;
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
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from gru4rec_pytensor import arguments, backends, draws, model_file, port
from gru4rec_pytensor.activations import (
    ACTIVATIONS,
    NUMPY_ACTIVATIONS,
    activation,
    final_activation,
    leaky_relu,
    linear,
    relu,
    scaled_elu,
)
from gru4rec_pytensor.arguments import Arguments, argument_names, changed_arguments, plain_arguments
from gru4rec_pytensor.backends import FLOAT, Variables, free_with, shared
from gru4rec_pytensor.checks import check_choice, check_number, check_optional_number, first_few, warn
from gru4rec_pytensor.events import IdIndex, as_ids, check_events, column_of_item, index_by_appearance, session_order
from gru4rec_pytensor.parameters import read as read_parameters
from gru4rec_pytensor.recommend import Session, recommendations
from gru4rec_pytensor.turns import Turns

__all__ = ['ACTIVATIONS', 'GRU4Rec', 'INPUTS', 'LOSSES', 'NUMPY_ACTIVATIONS', 'UNITS', 'Variables', 'activation',
           'argument_names', 'changed_arguments', 'final_activation', 'leaky_relu', 'linear', 'plain_arguments', 'relu',
           'scaled_elu', 'shared']

Symbol = TensorVariable  # a tensor without a value yet: what an expression is made of
Symbols = dict[str, Symbol]  # by name
Updates = dict  # shared variable -> symbol of its value after the mini-batch

logger = logging.getLogger('gru4rec')
MAX_HISTORY = 200  # events of a session that its input is made of, at most
HISTORY = 'history'  # name of the state that holds them


@dataclass(eq=False, repr=False)
class Settings(Arguments):
    """What the symbolic functions depend on: the arguments of `GRU4Rec`, where they are described, and `n_items`.

    ``GRU4Rec(layers=[100]).settings(n_items=37_483)`` makes one without any data.
    """
    n_items: int = field(kw_only=True)

    @property
    def final_activation(self) -> str:
        """Name of the scores' activation."""
        return final_activation(self.loss, self.final_act)

    @property
    def embedded_width(self) -> int | None:
        """Number of columns of the matrix whose rows stand for items in the input; None for the 1-of-N code itself."""
        return [*self.layers, *self.feedforward][-1] if self.constrained_embedding else self.embedding


# ---------------------------------------------------------------------------------------------------------------------
# Recurrent units (section 3, equations 1-5)
# ---------------------------------------------------------------------------------------------------------------------

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


def gru_after_step(gates: Symbol, H: Symbol, Wh: Symbol, Whr: Symbol, Whz: Symbol, BH: Symbol,
                   hidden_act: Callable) -> Symbol:
    """New hidden state of the GRU of cuDNN and PyTorch's ``GRUCell``, in which the reset gate acts after the product.

        r, z as in `gru_step`, with a second bias each
        n = act(W x + b + r * (U h + c))    candidate, c the second bias
        h' = (1 - z) * n + z * h            new state: z keeps, where it replaces in the paper

    `BH`, symbolic (3H,), are the second biases, [h | r | z]; the others are those of `gru_step`.
    """
    gate_h, gate_r, gate_z = pt.split(gates, [H.shape[1]] * 3, n_splits=3, axis=1)
    c_h, c_r, c_z = pt.split(BH, [H.shape[1]] * 3, n_splits=3)
    r = pt.sigmoid(gate_r + H @ Whr + c_r)
    z = pt.sigmoid(gate_z + H @ Whz + c_z)
    candidate = hidden_act(gate_h + r * (H @ Wh + c_h))
    return (1 - z) * candidate + z * H


def rnn_step(gates: Symbol, H: Symbol, Wh: Symbol, hidden_act: Callable) -> Symbol:
    """h' = act(W x + U h): new state of a unit without gates (equation 1), which section 4.2 compares with."""
    return hidden_act(gates + H @ Wh)


class Unit(NamedTuple):
    """Kind of recurrent unit.

    gates : a letter for each gate, in the order in which they stand side by side; 'h' is the candidate, and the others
        are those of the weights' names: ``Wr0, Whr0, Br0``
    states : letters of the states that a layer carries to the next event; the last, 'H', is its output
    step : (gates, states..., recurrent matrices..., second biases if it has some, activation) -> new states
    two_biases : whether the recurrent part has biases of its own, ``Bhh0, Bhr0, Bhz0``
    """
    gates: str
    states: str
    step: Callable
    two_biases: bool = False

    @property
    def recurrent(self) -> list[str]:
        """Names of the recurrent weights, without the layer's number: 'Wh', 'Whr', 'Whz' and, of two biases, 'BH'."""
        return ['Wh', *[f'Wh{gate}' for gate in self.gates[1:]], *['BH'] * self.two_biases]


UNITS = {'gru': Unit('hrz', 'H', gru_step), 'lstm': Unit('hifo', 'CH', lstm_step), 'rnn': Unit('h', 'H', rnn_step),
         'gru-after': Unit('hrz', 'H', gru_after_step, two_biases=True)}


# ---------------------------------------------------------------------------------------------------------------------
# The input (section 3.1)
# ---------------------------------------------------------------------------------------------------------------------

class InputRows(NamedTuple):
    """Rows that a mini-batch reads of a table with a row for each item, such as ``W0``, to multiply its input with it.

    The input is never built: a 1-of-N code times a matrix is a row of it, a sum of such codes is a sum of rows.

    rows : symbolic (n,), item indices
    is_event : symbolic bool (n,), False for entries that only fill up a lane; None where there are none
    product : of table[rows] (n, m): the input times the table, (B, m)
    history : the symbolic states that the input carries to the next event, by name
    """
    rows: Symbol
    is_event: Symbol | None
    product: Callable[[Symbol], Symbol]
    history: Symbols


def item_input(item: Symbol, starts: Symbol, history: Any, decay: float) -> InputRows:
    """The event's item as input, 1-of-N coded (section 3.1); it needs nothing else of the session."""
    return InputRows(item, None, lambda rows: rows, {})


def session_input(item: Symbol, starts: Symbol, history: Any, decay: float) -> InputRows:
    """The session so far as input: the sum of its items' 1-of-N codes, discounted, of length 1 (section 3.1).

    An event counts `decay` times as much with each event after it.  Those of less than 1 / 1000 are left out.

    Parameters
    ----------
    item, starts : symbolic (B,), as in `training_step`
    history : symbolic int32 (B, L), the session's last events, oldest first, -1 where it has no more
    """
    last = pt.switch(starts[:, None], np.int32(-1), history)
    last = pt.concatenate([last[:, 1:], pt.cast(item, 'int32')[:, None]], axis=1)  # (B, L)
    n_lanes, n_events = last.type.shape
    is_event = last >= 0
    weight = pt.switch(is_event, np.array(decay ** np.arange(n_events - 1, -1, -1.0), FLOAT), np.float32(0))
    same = pt.eq(last[:, :, None], last[:, None, :])  # (B, L, L): an item that occurs twice is one entry of the sum
    squares = pt.switch(same, weight[:, :, None] * weight[:, None, :], np.float32(0))
    weight = weight / pt.sqrt(pt.sum(squares, axis=(1, 2)))[:, None]  # (B, L)

    def product(rows: Symbol) -> Symbol:
        rows = pt.reshape(rows, (n_lanes or -1, n_events, rows.type.shape[1]))  # (B L, m) to (B, L, m)
        return pt.sum(rows * weight[:, :, None], axis=1)  # (B, m)
    # An entry that only fills up a lane is the event's item with weight 0.  It comes before the real one, whose value
    # is stored last and so counts.
    return InputRows(pt.switch(is_event, last, last[:, -1:]).flatten(), is_event.flatten(), product, {HISTORY: last})


INPUTS = {'item': item_input, 'session': session_input}


# ---------------------------------------------------------------------------------------------------------------------
# The layers (section 3.1, Figure 1)
# ---------------------------------------------------------------------------------------------------------------------

def network(settings: Settings, weights: Symbols, products: Symbols, states: Symbols,
            masks: Symbols | None = None) -> tuple[Symbol, Symbols]:
    """Return the last layer's output, (B, H), which the scores are computed from, and the new states of all layers.

    Parameters
    ----------
    weights : ``W{i}`` (inputs, gates x H) and ``B{i}`` (gates x H,) of each layer's gates side by side, ``Wh{i}``, ...
        (H, H) of its recurrent part; ``I{i}`` of the input to the deeper layers; ``Wd{j}, Bd{j}`` of feed-forward ones
    products : the input times the matrix of the embedding, or times ``W0`` and each ``I{i}``: symbolic (B, ...)
    states : ``H{i}``, with LSTM units ``C{i}`` too, symbolic (B, H): the states before
    masks : ``mask{i}``, symbolic (B, H), of each layer; none for no dropout.  A dropped unit is dropped for the layer
        above, for the output and, since it is carried on, for the next event
    """
    def input_times(name: str) -> Symbol:
        if name in products:
            return products[name]
        (embedded,) = products.values()
        return embedded @ weights[name]

    def dropped(h: Symbol, layer: int) -> Symbol:
        return h * masks[f'mask{layer}'] if masks else h

    unit, act = UNITS[settings.unit], activation(settings.hidden_act)
    new_states: Symbols = {}
    top: Any = None
    for i in range(len(settings.layers)):
        gates = top @ weights[f'W{i}'] if i else input_times('W0')  # (B, gates x H)
        if i and settings.input_to_all_layers:
            gates = gates + input_times(f'I{i}')
        recurrent = [weights[f'{name}{i}'] for name in unit.recurrent]
        new = unit.step(gates + weights[f'B{i}'], *[states[f'{state}{i}'] for state in unit.states], *recurrent, act)
        *cells, h = new if len(unit.states) > 1 else [new]
        top = dropped(h, i)  # (B, H)
        new_states.update((f'{state}{i}', value) for state, value in zip(unit.states, [*cells, top]))
    for j in range(len(settings.feedforward)):
        top = dropped(act(top @ weights[f'Wd{j}'] + weights[f'Bd{j}']), len(settings.layers) + j)
    return top, new_states


# ---------------------------------------------------------------------------------------------------------------------
# Names and shapes
# ---------------------------------------------------------------------------------------------------------------------

def weight_layout(settings: Settings) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """Return name -> (parts that stand side by side, shape of each) of the weights, in the order of initial draws.

    The gates of a layer are one weight here, ``W0`` of [h | r | z]; the names of the parts are the release's.

    Examples
    --------
    >>> for name, (parts, shape) in weight_layout(GRU4Rec(layers=[100]).settings(n_items=37_483)).items():
    ...     print(name, parts, shape)
    W0 ['Wx0', 'Wr0', 'Wz0'] (37483, 100)
    Wh0 ['Wh0'] (100, 100)
    Whr0 ['Whr0'] (100, 100)
    Whz0 ['Whz0'] (100, 100)
    B0 ['Bh0', 'Br0', 'Bz0'] (100,)
    Wy ['Wy'] (37483, 100)
    By ['By'] (37483,)
    """
    unit = UNITS[settings.unit]
    layout: dict[str, tuple[list[str], tuple[int, ...]]] = {}
    if settings.embedding:
        layout['E'] = ['E'], (settings.n_items, settings.embedding)
    n_inputs = n_below = settings.embedded_width or settings.n_items
    for i, n in enumerate(settings.layers):
        layout[f'W{i}'] = [f'W{gate}{i}' for gate in 'x' + unit.gates[1:]], (n_below, n)
        if i and settings.input_to_all_layers:
            layout[f'I{i}'] = [f'I{gate}{i}' for gate in 'x' + unit.gates[1:]], (n_inputs, n)
        for name in unit.recurrent:
            second_biases = [f'Bh{gate}{i}' for gate in unit.gates], (n,)
            layout[f'{name}{i}'] = second_biases if name == 'BH' else ([f'{name}{i}'], (n, n))
        layout[f'B{i}'] = [f'B{gate}{i}' for gate in unit.gates], (n,)
        n_below = n
    for j, n in enumerate(settings.feedforward):
        layout[f'Wd{j}'] = [f'Wd{j}'], (n_below, n)
        layout[f'Bd{j}'] = [f'Bd{j}'], (n,)
        n_below = n
    layout['Wy'] = ['Wy'], (settings.n_items, n_below)
    layout['By'] = ['By'], (settings.n_items,)
    return layout


def input_tables(settings: Settings) -> list[str]:
    """Return the names of the weights with a row for each item that the input is multiplied with."""
    if settings.embedded_width:
        return ['Wy' if settings.constrained_embedding else 'E']
    deeper = range(1, len(settings.layers)) if settings.input_to_all_layers else []
    return ['W0', *[f'I{i}' for i in deeper]]


def state_shapes(settings: Settings) -> dict[str, tuple[int, str]]:
    """Return name -> (width, dtype) of what a session carries from event to event.

    That is ``H0`` for each layer, with LSTM units ``C0`` before it; with input_mode='session' also its last items.
    """
    shapes = {HISTORY: (history_length(settings.session_decay), 'int32')} if settings.input_mode == 'session' else {}
    return shapes | {f'{state}{i}': (n, FLOAT) for i, n in enumerate(settings.layers)
                     for state in UNITS[settings.unit].states}


def history_length(decay: float) -> int:
    """Return how many events of a session count for `session_input`."""
    return int(min(MAX_HISTORY, 1 + np.floor(np.log(1e-3) / np.log(decay)))) if decay else 1


def mask_layout(settings: Settings) -> dict[str, tuple[int, float]]:
    """Return name -> (columns, probability that one is kept) of the dropout masks, in the order of their draws."""
    layout = {}
    if settings.dropout_p_embed:
        layout['mask_embed'] = settings.embedded_width or 0, 1 - settings.dropout_p_embed
    if settings.dropout_p_hidden:
        for i, n in enumerate([*settings.layers, *settings.feedforward]):
            layout[f'mask{i}'] = n, 1 - settings.dropout_p_hidden
    return layout


# ---------------------------------------------------------------------------------------------------------------------
# Session-parallel mini-batches (section 3.1.1, Figure 2)
# ---------------------------------------------------------------------------------------------------------------------

class Chunk(NamedTuple):
    """Consecutive mini-batches: K rows of B lanes.

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
    """Fill `rows` and `starts` from the lanes' state; return the numbers of mini-batches and of used sessions."""
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
    """Return scores of the mini-batch's targets for every lane (section 3.1.2), symbolic (B, B + n).

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


def diagonal(scores: Symbol) -> Symbol:
    """Return the diagonal of a (B, B + n) matrix, (B,).

    It is looked up, so that its gradient is B additions; that of pt.diagonal is a matrix.
    """
    lane = pt.arange(scores.shape[0])
    return scores[lane, lane]


def mean(x: Symbol, axis: int | None = None) -> Symbol:
    """Return the mean, added up in the precision of x."""
    return pt.mean(x, axis=axis, dtype=x.dtype, acc_dtype=x.dtype)


def working_columns(scores: Symbol, lanes: Symbol) -> Symbol:
    """Return which columns of a (B, B + n) matrix are not those of idle lanes' targets, bool (B + n,)."""
    return pt.concatenate([lanes, pt.ones(scores.shape[1] - scores.shape[0], 'bool')])


def counted(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Return the (B, B + n) matrix with zeros in the columns of idle lanes."""
    return x if lanes is None else pt.switch(working_columns(x, lanes), x, np.float32(0))


def n_columns(scores: Symbol, lanes: Symbol | None) -> Symbol:
    """Return the number of columns that count."""
    n_idle = 0 if lanes is None else pt.sum(~lanes)
    return pt.cast(scores.shape[1] - n_idle, FLOAT)


def mean_of_row(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Return the mean of each row of a (B, B + n) matrix over the columns that count, (B,)."""
    return mean(x, axis=1) if lanes is None else pt.sum(counted(x, lanes), axis=1) / n_columns(x, lanes)


def mean_over_lanes(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Return the sum of x (B,) over the lanes that are not idle, divided by B."""
    return mean(x) if lanes is None else mean(pt.switch(lanes, x, np.float32(0)))


def mean_score(x: Symbol, lanes: Symbol | None) -> Symbol:
    """Return the mean over the lanes of the means of their rows."""
    return mean(x) if lanes is None else mean_over_lanes(mean_of_row(x, lanes), lanes)


EPSILON = 1e-6  # inside the roots, as in the releases
TINY = np.float32(1e-24)  # inside the logarithms of BPR-max and, with `lanes`, cross-entropy, likewise
LOSSES: dict[str, Callable] = {'top1': top1, 'bpr': bpr, 'cross-entropy': cross_entropy, 'mrr': mrr}


# ---------------------------------------------------------------------------------------------------------------------
# Losses of the later papers
# ---------------------------------------------------------------------------------------------------------------------

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
    """Return exp of the scores of each lane's negatives, (B, B + n), and 0 for its own target: a softmax times its sum.

    The largest of them is taken off before, as in `cross_entropy`.
    """
    lane, column = pt.arange(scores.shape[0])[:, None], pt.arange(scores.shape[1])
    is_negative = pt.neq(lane, column) if lanes is None else pt.neq(lane, column) & working_columns(scores, lanes)
    of_negatives = pt.switch(is_negative, scores, np.float32(-np.inf))
    return pt.exp(of_negatives - pytensor.gradient.disconnected_grad(pt.max(of_negatives, axis=1, keepdims=True)))


LOSSES |= {'top1-max': top1_max, 'bpr-max': bpr_max}


# ---------------------------------------------------------------------------------------------------------------------
# Update rules (section 4.2)
# ---------------------------------------------------------------------------------------------------------------------

class Parameter(NamedTuple):
    """A weight as an update rule sees it: all of it, or the rows that the mini-batch used.

    Rows are counted by occurrence: an item that stands twice in the mini-batch has two entries, each with a gradient
    of its own, and those are not summed before the rule is applied.  That is what the release computes; for the other
    way see `with_repeats_summed`.
    """
    weight: Symbol  # shared variable
    value: Symbol  # the symbolic value that the loss depends on: `weight`, or `weight[rows]`
    rows: Symbol | None = None  # (n,) indices, or None for the whole weight
    changes: Symbol | None = None  # bool (n,), False for occurrences that change nothing; None where all do
    parts: tuple = ()  # where the loss depends on parts of `value`, one after the other, these

    def read(self, state: Symbol) -> Symbol:
        """Return `state`, or its entry for each occurrence."""
        return state if self.rows is None else state[self.rows]

    def add(self, state: Symbol, increment: Symbol) -> Symbol:
        """Return `state` with every occurrence's increment added."""
        if self.rows is None:
            return state + increment
        return backends.row_update(state, self.rows, increment, self.changes, store=False)

    def store(self, state: Symbol, value: Symbol) -> Symbol:
        """Return `state` replaced by `value`; of several occurrences of a row, the last one counts."""
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
    """Scale gradients by  grad_cap / norm  when the norm of all of them together reaches `grad_cap`."""
    norm = pt.sqrt(sum(pt.sum(g ** 2) for g in gradients))
    scale = pt.cast(pt.switch(norm >= grad_cap, grad_cap / norm, 1), FLOAT)
    return [g * scale for g in gradients]


# ---------------------------------------------------------------------------------------------------------------------
# The training step
# ---------------------------------------------------------------------------------------------------------------------

def training_step(settings: Settings, events: Symbol, variables: Variables, states: Symbols,
                  log_counts: Any = None) -> tuple[Symbols, Symbol, Updates]:
    """Return symbols of the inputs, the loss and the updates of one mini-batch.

    Parameters
    ----------
    events : symbolic int64 (n_events,), item indices of all events of the training data, session after session
    states : shared variables of the lanes' states, by the names of `state_shapes`
    log_counts : symbolic float32 (n_items,), log of the items' numbers of events; needed with ``logq`` alone

    Returns
    -------
    inputs : what differs between mini-batches, by name: those of `Chunk`; masks of `mask_layout`, bool (B, columns);
        'negatives', int64 (n_sample,), or with negatives='uniform' (B,), unless they are the other targets
    loss : symbolic scalar, of the weights before the update
    updates : ordered dictionary, shared variable -> its value after the mini-batch
    """
    weights, n_lanes = variables.weights, settings.batch_size
    position = pt.vector('position', dtype='int64', shape=(n_lanes,))
    starts = pt.vector('starts', dtype='bool', shape=(n_lanes,))
    masks = {name: pt.matrix(name, dtype='bool', shape=(n_lanes, width))
             for name, (width, _kept) in mask_layout(settings).items()}
    n_negatives = n_lanes if settings.negatives == 'uniform' else settings.n_sample
    negatives = {'negatives': pt.vector('negatives', dtype='int64', shape=(n_negatives,))} if n_negatives else {}
    lanes = None if settings.drop_tail else position >= 0
    event = position if lanes is None else pt.maximum(position, 0)
    item, target = events[event], events[event + 1]
    scored = pt.concatenate([target, *negatives.values()])  # (B + n,)
    rates = shared_rates(settings)

    read = INPUTS[settings.input_mode](item, starts, states.get(HISTORY), settings.session_decay)
    parameters, input_rows, output_rows = used_parameters(settings, weights, read, lanes, scored)
    products = embedded(read, input_rows, masks.get('mask_embed'), rates)
    scaled_masks = {name: mask * rates['kept_scale'] for name, mask in masks.items() if name != 'mask_embed'}
    top, new_states = network(settings, weights, products, reset(states, starts, settings.reset_after_session),
                              scaled_masks)
    bias = parameters['By'].value
    if settings.logq:
        bias = bias - log_popularity(settings, log_counts, target, [*negatives.values()])
    scores = sampled_scores(top, output_rows, bias, activation(settings.final_activation))
    if settings.negatives == 'uniform':
        scores = with_other_negatives(scores)
    options = {'bpreg': rates['bpreg']} if settings.loss == 'bpr-max' else {}
    loss = LOSSES[settings.loss](scores, **options, **({} if lanes is None else {'lanes': lanes}))

    updates = OrderedDict((states[name], value) for name, value in (read.history | new_states).items())
    gradients = gradients_of(loss, [*parameters.values()])
    if settings.repeats == 'sum':
        for k, (name, parameter) in enumerate(parameters.items()):
            parameters[name], gradients[k] = with_repeats_summed(parameter, gradients[k], bool(settings.grad_cap))
    if settings.grad_cap:
        gradients = capped(gradients, settings.grad_cap)
    for (name, parameter), gradient in zip(parameters.items(), gradients):
        updates |= updates_of(settings, rates, parameter, gradient, variables.acc.get(name), variables.vel.get(name))
    return {'position': position, 'starts': starts, **masks, **negatives}, loss, updates


def reset(states: Symbols, starts: Symbol, reset_after_session: bool = True) -> Symbols:
    """Return the lanes' states with zeros where a session starts; a history, whose input does that, as it is."""
    if not reset_after_session:
        return states
    return {name: H if name == HISTORY else pt.switch(starts[:, None], np.float32(0), H) for name, H in states.items()}


def used_parameters(settings: Settings, weights: Symbols, read: InputRows, lanes: Symbol | None,
                    scored: Symbol) -> tuple[dict[str, Parameter], Symbols, Symbol]:
    """Return all weights as the update rules see them, and what the mini-batch reads of them.

    Returns
    -------
    parameters : by the names of `weight_layout`
    input_rows : of each of `input_tables`, the rows that the input reads
    output_rows : of ``Wy``, those of the items `scored` (B + n,)
    """
    n_negatives = scored.type.shape[0] - settings.batch_size
    of_input, of_scored = read.is_event, lanes  # occurrences that change something; None where all do
    if lanes is not None:
        n_events = read.rows.type.shape[0] // settings.batch_size
        of_input = lanes if of_input is None else of_input & pt.repeat(lanes, n_events)
        if n_negatives:  # those of negatives='uniform' belong to a lane each, additional ones to all
            of_negatives = lanes if settings.negatives == 'uniform' else pt.ones(n_negatives, 'bool')
            of_scored = pt.concatenate([lanes, of_negatives])
    parameters = OrderedDict((name, Parameter(w, w)) for name, w in weights.items())
    for name in input_tables(settings):
        parameters[name] = Parameter(weights[name], weights[name][read.rows], read.rows, of_input)
    for name in ('Wy', 'By'):
        parameters[name] = Parameter(weights[name], weights[name][scored], scored, of_scored)
    if settings.constrained_embedding:
        return with_one_item_matrix(parameters, read, scored, of_input, of_scored)
    return parameters, {name: parameters[name].value for name in input_tables(settings)}, parameters['Wy'].value


def gradients_of(loss: Symbol, parameters: list[Parameter]) -> list[Symbol]:
    """Return the gradient of the loss by the value of each parameter."""
    parts = [parameter.parts or (parameter.value,) for parameter in parameters]
    gradients: Any = iter(pytensor.grad(loss, [*itertools.chain(*parts)]))  # type: ignore[arg-type]
    of_parameters = [[*itertools.islice(gradients, len(some))] for some in parts]
    return [pt.concatenate(some) if len(some) > 1 else some[0] for some in of_parameters]


def updates_of(settings: Settings, rates: Symbols, parameter: Parameter, gradient: Symbol, acc: Any,
               vel: Any) -> Updates:
    """Return the updates of one parameter and its accumulators: adapt the gradient, then take the step."""
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


def shared_rates(settings: Settings) -> dict[str, Any]:
    """Return learning rate, momentum, decay, L2, BPR-max's regularisation, and the scales of what dropout keeps.

    They are variables, not constants, so that the code compiled for one learning rate serves for others, too.
    """
    rates = {name: np.array(getattr(settings, name), FLOAT)
             for name in ('learning_rate', 'momentum', 'decay', 'lmbd', 'bpreg')}
    for name, p in (('kept_scale', settings.dropout_p_hidden), ('kept_scale_embed', settings.dropout_p_embed)):
        rates[name] = np.array(1, FLOAT) / np.array(1 - p, FLOAT)
    return {name: shared(name, np.array(value)) for name, value in rates.items()}


def with_one_item_matrix(parameters: dict[str, Parameter], read: InputRows, scored: Symbol, of_input: Symbol | None,
                         of_scored: Symbol | None) -> tuple[dict[str, Parameter], Symbols, Symbol]:
    """Return what `used_parameters` does where input and output share ``Wy`` (constrained embedding, 2018).

    There is one list of occurrences: inputs, then targets, then additional negatives; so that there is one accumulator,
    and each occurrence is one step.
    """
    W, rows, changes = parameters['Wy'].weight, [read.rows, scored], [of_input, of_scored]
    parts = W[read.rows], W[scored]
    if of_input is not None or of_scored is not None:
        changes = [pt.ones(n.type.shape, 'bool') if part is None else part for part, n in zip(changes, rows)]
    parameters['Wy'] = Parameter(W, pt.concatenate(parts), pt.concatenate(rows),
                                 None if None in changes else pt.concatenate(changes), parts)
    return parameters, {'Wy': parts[0]}, parts[1]


def embedded(read: InputRows, rows: Symbols, mask: Symbol | None, rates: Symbols) -> Symbols:
    """Return the input times each of `input_tables`, (B, ...), with dropout where the input is embedded."""
    products = {name: read.product(of_table) for name, of_table in rows.items()}
    if mask is None:
        return products
    return {name: product * (mask * rates['kept_scale_embed']) for name, product in products.items()}


def with_repeats_summed(parameter: Parameter, gradient: Symbol, with_zeros: bool) -> tuple[Parameter, Symbol]:
    """Return a parameter whose distinct rows are updated once each, by the sum of their occurrences' gradients.

    That is how the authors' PyTorch code, with its sparse gradients, applies every rule.  The sum stands at a row's
    last occurrence; the others change nothing, and are zero for a norm that adds up all of them.
    """
    if parameter.rows is None:
        return parameter, gradient
    counts = pt.ones(parameter.rows.type.shape, 'bool') if parameter.changes is None else parameter.changes
    sums, is_last = backends.summed_repeats(gradient, parameter.rows, counts)
    if with_zeros:
        sums = pt.switch(is_last[:, None] if gradient.type.ndim == 2 else is_last, sums, np.float32(0))
    return parameter._replace(changes=is_last), sums


def log_popularity(settings: Settings, log_counts: Symbol, target: Symbol, negatives: list[Symbol]) -> Symbol:
    """Return what ``logq`` takes off the scores, (B + n,): logq times the log of how often an item is drawn.

    That is its number of events in the training data for targets, and this number to the power `sample_alpha` for
    additional negatives.  Neither is divided by its total, so the two kinds of columns differ by a constant.
    """
    drawn = [log_counts[target], *[np.float32(settings.sample_alpha) * log_counts[sample] for sample in negatives]]
    return np.float32(settings.logq) * pt.concatenate(drawn)


def with_other_negatives(scores: Symbol) -> Symbol:
    """Return the scores of the others, own targets on the diagonal, from those of B targets and B others, (B, 2B)."""
    n = scores.shape[0]
    return pt.switch(pt.eq(pt.arange(n)[:, None], pt.arange(n)), scores[:, :n], scores[:, n:])


def prediction_step(settings: Settings, weights: Symbols) -> tuple[Symbols, Symbols]:
    """Return symbols of the inputs and outputs of one event of any number of sessions, by name.

    The network is that of `training_step`, without dropout.  Inputs are 'item', 'starts' and the states; outputs are
    'top', which the scores are computed from, and the new states.
    """
    item, starts = pt.lvector('item'), pt.vector('starts', dtype='bool')
    states = {name: pt.matrix(name, dtype=dtype, shape=(None, width))
              for name, (width, dtype) in state_shapes(settings).items()}
    read = INPUTS[settings.input_mode](item, starts, states.get(HISTORY), settings.session_decay)
    products = {name: read.product(weights[name][read.rows]) for name in input_tables(settings)}
    top, new_states = network(settings, weights, products, reset(states, starts))
    return {'item': item, 'starts': starts, **states}, {'top': top, **read.history, **new_states}


# ---------------------------------------------------------------------------------------------------------------------
# Values of weights
# ---------------------------------------------------------------------------------------------------------------------

def initial_weight(rng: np.random.RandomState, shape: tuple, sigma: float = 0, normal: bool = False,
                   n_rows: int | None = None) -> np.ndarray:
    """Draw a weight from U(-x, x), or N(0, x): float32 of a float64 draw; a bias, which is a vector, is zero.

    x is `sigma`, or sqrt(6 / (rows + columns)) where that is 0.  With `n_rows` so many rows of the weight that has this
    shape are drawn.
    """
    drawn_shape = (shape[0] if n_rows is None else n_rows, *shape[1:])
    if len(shape) == 1:
        return np.zeros(drawn_shape, FLOAT)
    scale = sigma or np.sqrt(6 / sum(shape))
    return (rng.randn(*drawn_shape) * scale if normal else rng.rand(*drawn_shape) * 2 * scale - scale).astype(FLOAT)


def initial_weights(settings: Settings, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Draw the initial values of all weights in the release's order: part after part of `weight_layout`."""
    return OrderedDict((name, np.hstack([initial_weight(rng, shape, settings.sigma, settings.init_as_normal)
                                         for _part in parts]))
                       for name, (parts, shape) in weight_layout(settings).items())


def initial_states(settings: Settings, batch_size: int) -> dict[str, np.ndarray]:
    """Return the states of sessions before their first event: zeros, (batch_size, H); a history is -1 throughout."""
    return {name: np.full((batch_size, width), -1 if name == HISTORY else 0, dtype)
            for name, (width, dtype) in state_shapes(settings).items()}


def random_inputs(settings: Settings, item_counts: np.ndarray, fixed_masks: list | None = None,
                  fixed_negatives: np.ndarray | None = None, n_epochs_before: int = 0) -> draws.RandomInputs:
    """Return what draws the masks and negatives of `training_step`; see `draws.RandomInputs`."""
    masks = mask_layout(settings)
    return draws.RandomInputs(
        settings.seed, masks, item_counts, fixed_masks=dict(zip(masks, fixed_masks or [])),
        fixed_negatives=fixed_negatives, n_sample=settings.n_sample, sample_alpha=settings.sample_alpha,
        sample_store=settings.sample_store, n_epochs_before=n_epochs_before,
        n_uniform=settings.batch_size if settings.negatives == 'uniform' else 0)


def chunk_length(settings: Settings) -> int:
    """Return how many mini-batches a chunk has: 256; fewer, but at least 16, where masks would take more than 8 MB."""
    return int(np.clip(8e6 / (settings.batch_size * sum([*settings.layers, *settings.feedforward])), 16, 256))


# ---------------------------------------------------------------------------------------------------------------------
# The estimator
# ---------------------------------------------------------------------------------------------------------------------

def check_arguments(model: GRU4Rec) -> None:
    """Raise TypeError or ValueError that names the first argument that is no such value, or out of range."""
    arguments.check_arguments(model, {'loss': LOSSES, 'input_mode': INPUTS, 'unit': UNITS,
                                      'backend': backends.BACKENDS})


class Progress(NamedTuple):
    """Progress of a training, which `fit` hands to its callback after each chunk of mini-batches."""
    epoch: int  # from 0
    n_epochs: int
    minibatches: int  # done in this epoch
    events: int  # done in this epoch
    total_events: int  # of an epoch, the dropped tail included
    loss: float  # mean over this epoch's mini-batches
    epoch_ends: bool = False  # whether these were its last


class GRU4Rec(Arguments):
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
    hidden_act : activation of the candidate state: 'tanh', 'relu', 'linear', or one with numbers, see `activation`
    final_act : the same, of the scores; None for tanh, or linear with cross-entropy, top1-max and bpr-max.
        Cross-entropy applies softmax to the scores, which 'softmax' says too, and takes 'relu' for 'linear', as the
        2016 release does
    train_random_order : draw a new order of the sessions for each epoch
    lmbd : L2 regularisation
    session_key, item_key, time_key : columns of the training frame
    input_mode : 'item' for the event's item, or 'session' for all of the session so far, discounted and normalised
    session_decay : how much an event still counts after one more event, with input_mode='session'
    embedding : width of an embedding between the input and the first layer; None for none
    unit : 'gru', 'lstm', 'rnn', or 'gru-after', the GRU of PyTorch and cuDNN
    input_to_all_layers : connect the input to the deeper layers too
    feedforward : units of feed-forward layers between the last recurrent layer and the output
    negatives : 'minibatch' for the targets of the other lanes, so that items are drawn in proportion to their
        popularity, or 'uniform' for as many items drawn uniformly, the same for all lanes
    equal_times : order of events of a session that have the same time: 'item', by item index, as the release trains, or
        'frame', as in the frame: better where the log is in the order of clicks and its times are rounded
    n_sample : number of additional negatives, drawn for each mini-batch and the same for all its lanes
    sample_alpha : they are drawn in proportion to an item's number of events to the power of this; 0 for uniformly
    sample_store : as many of them are drawn at a time; it determines which are drawn, not how well
    bpreg : how much bpr-max keeps the scores of the negatives small
    logq : how much of the log of an item's popularity is taken off its scores in training, see `log_popularity`; not
        with negatives='uniform'
    constrained_embedding : the input is embedded by the output's matrix ``Wy``
    dropout_p_embed : probability with which a column of an embedded input is dropped, 0 <= p < 1
    repeats : 'each' for one step for each occurrence of an item in a mini-batch, as in both Theano releases, or 'sum'
        for one step with the sum of their gradients, as in the authors' PyTorch code
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

    items_: np.ndarray
    item_counts_: np.ndarray
    n_items: int
    epoch_losses_: list[float]
    variables_: Variables
    backend_: str
    error_during_train: bool
    _index_of: IdIndex
    _state_function: Any  # of `next_states`, compiled when it is needed first
    _rank_program: Any  # of `next_item_counts`, likewise
    _prediction_state: Any  # of `predict_next_batch`: ids and states of the last call's sessions

    def __repr__(self) -> str:
        changed = {'layers': plain_arguments(self)['layers']} | changed_arguments(self)
        return f'GRU4Rec({", ".join(f"{name}={value!r}" for name, value in changed.items())})'

    @classmethod
    def _of_arguments(cls, given: dict[str, Any]) -> GRU4Rec:
        """Return an untrained model with these arguments; for subclasses whose constructors have others."""
        return cls(**given)

    @classmethod
    def from_parameters(cls, path: str | Path, **changes: Any) -> GRU4Rec:
        """Return an untrained model with the parameters of a file, and `changes`, which are arguments too.

        `path` is of a TOML file, such as those in ``parameters/``, or of one of the authors' own; see
        `gru4rec_pytensor.parameters`.  ValueError, which names the file, if it is neither, or a value is not allowed.
        """
        model = cls._of_arguments(read_parameters(path).arguments | changes)
        try:
            check_arguments(model)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: {error}') from None
        return model

    def settings(self, n_items: int | None = None) -> Settings:
        """Return what the symbolic functions depend on: the arguments as they are now, and the number of items.

        `n_items` is that of the training data; an untrained model has none, and needs it given.
        """
        if n_items is None:
            self._check_trained()
            n_items = self.n_items
        return Settings(**plain_arguments(self), n_items=int(n_items))

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(self, data: pd.DataFrame, retrain: bool = False, *, dropout_masks: list | None = None,
            sampled_negatives: ArrayLike | None = None, callback: Callable[[Progress], None] | None = None,
            checkpoint: str | Path | None = None, every: float = 600.0, threads: int | None = None) -> GRU4Rec:
        """Train from scratch on the events of `data`, which is not modified.

        Parameters
        ----------
        data : frame with the columns `session_key`, `item_key`, `time_key`; one row an event, in any order.  Rows are
            sorted by session and time; for events of a session with equal times see `equal_times`
        retrain : True continues from the weights as they are, as the release does: see `fit_more`
        dropout_masks : for comparing implementations: a 0/1 array (batch_size, columns) for each of `mask_layout`, used
            in every mini-batch instead of random ones
        sampled_negatives : likewise, int (mini-batches of all epochs, n_sample), item indices instead of drawn ones
        callback : called with a `Progress` after each chunk of mini-batches
        checkpoint : path of a file that is written at the end, and after a chunk when `every` seconds have passed since
            the last time.  Where it exists, the training continues from it: after an interruption at any moment, the
            same call ends with the same bits as one without.  ValueError if it belongs to other data or arguments;
            `n_epochs` alone may differ, and must not be less than what is done
        every : seconds
        threads : number of BLAS's threads, on a CPU; None for one, or for that of the checkpoint.  From about 300 units
            or 500 lanes on two threads are faster; they add up in another order, so that last digits change, and in
            ten epochs more

        Returns
        -------
        self.  A loss that is not finite ends the training with a RuntimeWarning and sets `error_during_train`.  After
        an exception in the callback, or Ctrl-C, the weights are those of that moment.
        """
        if retrain:
            if any(value is not None for value in (dropout_masks, sampled_negatives, checkpoint)):
                raise ValueError('retrain=True does not go with dropout_masks, sampled_negatives or checkpoint')
            return self.fit_more(data, callback=callback, threads=threads)
        check_arguments(self)
        check_number('every', every)
        check_optional_number('threads', threads)
        backends.check_working_directory()
        backend = backends.resolve(self.backend)
        check_events(data, *self._columns)
        item_index, items = index_by_appearance(data[self.item_key])
        rows, offsets = self._session_order(data, item_index)
        settings = self.settings(len(items))
        arguments.check_masks(dropout_masks, self.batch_size, mask_layout(settings))
        arguments.warn_of_constant_loss(self, len(items))
        rng = np.random.RandomState(self.seed)
        weights = initial_weights(settings, rng)
        negatives = None
        if sampled_negatives is not None:
            chunks = itertools.chain(*self._epochs(settings, offsets, copy.deepcopy(rng), self.n_epochs))
            n_minibatches = sum(len(chunk.starts) for chunk in chunks)
            negatives = arguments.checked_negatives(sampled_negatives, n_minibatches, self.n_sample, len(items))
        events = item_index[rows]
        file = None
        if checkpoint:
            given = [*(dropout_masks or ()), *([] if negatives is None else [negatives])]
            file = model_file.Checkpoint(checkpoint, every, plain_arguments(self) | {'backend': backend},
                                         (events, offsets, *given))
        with self._turns.training():
            self.backend_ = backend
            self._set_items(items, np.bincount(item_index))
            self._set_variables(Variables.of(settings, weights))
            self.epoch_losses_ = []
            drawn = random_inputs(settings, self.item_counts_, dropout_masks, negatives)
            self._train(events, offsets, rng, drawn, callback, file, n_threads=threads)
        return self

    def fit_more(self, data: pd.DataFrame, n_epochs: int | None = None, *,
                 callback: Callable[[Progress], None] | None = None, threads: int | None = None) -> GRU4Rec:
        """Continue the training on other events, from the weights and the optimiser's state as they are.

        New items get rows after the old ones, drawn as the first ones were, and an empty state of the optimiser.  This
        keeps a model up to date with the last day's sessions in a fraction of the time of a new training.  What `data`
        does not have is slowly forgotten, and adagrad's steps have become small for items that were frequent: train
        from scratch when most items are new, or when accuracy on the newest sessions falls behind such a training.

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
        check_optional_number('n_epochs', n_epochs)
        check_optional_number('threads', threads)
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
            arguments.warn_of_constant_loss(self, self.n_items + len(unknown))
            n_epochs_before = len(self.epoch_losses_)
            rng = np.random.RandomState([self.seed, n_epochs_before, self.n_items])
            self._add_items(unknown, rng)
            self.item_counts_ = self.item_counts_ + np.bincount(item_index, minlength=self.n_items)
            drawn = random_inputs(self.settings(), self.item_counts_, n_epochs_before=n_epochs_before)
            self._train(item_index[rows], offsets, rng, drawn, callback, None, n_epochs, threads)
        return self

    @property
    def _columns(self) -> tuple[str, str, str]:
        return self.session_key, self.item_key, self.time_key

    def _session_order(self, data: pd.DataFrame, item_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the `session_order` of training data; ValueError when there are too few sessions for the lanes."""
        rows, offsets = session_order(data, *self._columns, item_index if self.equal_times == 'item' else None,
                                      by_start=self.time_sort and not self.train_random_order)
        n_sessions = int((np.diff(offsets) >= 2).sum())
        if n_sessions < self.batch_size:
            raise ValueError(f'batch_size={self.batch_size} needs at least as many sessions of two or more events, but '
                             f'the training data has {n_sessions}; use a smaller batch_size')
        return rows, offsets

    def _epochs(self, settings: Settings, offsets: np.ndarray, rng: np.random.RandomState,
                n_epochs: int) -> Iterator[Iterator[Chunk]]:
        """Yield the mini-batches of each epoch.

        Two lanes are the fewest without additional negatives, since a lane that is left alone has no negatives at all.
        """
        for _epoch in range(n_epochs):
            order = rng.permutation(len(offsets) - 1) if self.train_random_order else None
            yield session_parallel_minibatches(offsets, self.batch_size, order, chunk_length(settings),
                                               bool(self.drop_tail), fewest_lanes=1 if self.n_sample else 2)

    def _add_items(self, ids: np.ndarray, rng: np.random.RandomState) -> None:
        """Add rows for new items, after those of the old ones, to every weight that has a row for each item."""
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
        """Set the item ids in the order of their indices, and how often each occurs in the training data."""
        self.items_, self.item_counts_, self.n_items = items, counts, len(items)
        self._index_of = IdIndex(items)

    def _set_variables(self, variables: Variables) -> None:
        """Set weights and optimiser's state of a model whose training begins."""
        self.variables_ = variables
        self._forget_compiled()
        self.error_during_train = False

    def _forget_compiled(self) -> None:
        """Drop compiled functions and states, which belong to certain variables and to a backend."""
        self._state_function = self._rank_program = self._prediction_state = None

    def _train(self, items: np.ndarray, offsets: np.ndarray, rng: np.random.RandomState, drawn: draws.RandomInputs,
               callback: Callable[[Progress], None] | None, checkpoint: model_file.Checkpoint | None,
               n_epochs: int | None = None, n_threads: int | None = None) -> None:
        """Train all epochs on `items` (n_events,), the item indices in session order."""
        settings, n_epochs = self.settings(), n_epochs or self.n_epochs
        states = {name: shared(name, state) for name, state in initial_states(settings, self.batch_size).items()}
        events, log_counts = shared('events', items), shared('log_counts', np.log(self.item_counts_).astype(FLOAT))
        free_with(drawn, [events, log_counts, *states.values()])  # which this call alone refers to
        trained = {variable.name: variable for group in (*self.variables_, states) for variable in group.values()}
        saved = checkpoint.restore(trained, drawn, n_threads) if checkpoint else {}
        position = model_file.TrainingPosition(*saved.get('position', ()))
        self.epoch_losses_ = saved.get('epoch_losses', self.epoch_losses_)
        n_threads = n_threads or saved.get('threads', 1)
        with backends.symbols_of_float32():
            step = training_step(settings, events, self.variables_, states, log_counts)
        run = backends.compile_loop(*step, backend=self.backend_, n_threads=n_threads)

        def save(random_state: dict[str, np.ndarray]) -> None:
            if checkpoint:
                checkpoint.write({'epoch_losses': self.epoch_losses_, 'position': position, 'threads': n_threads},
                                 trained, random_state)

        for epoch, chunks in enumerate(self._epochs(settings, offsets, rng, n_epochs)):
            if epoch < position.epoch:
                continue
            if not position.chunks:
                for name, state in initial_states(settings, self.batch_size).items():
                    states[name].set_value(state)
            left = itertools.islice(chunks, position.chunks, None)
            for chunk, random, random_state, is_last in draws.with_random_inputs(
                    left, drawn, ahead=self.backend_ == 'jax', with_state=checkpoint is not None):
                losses = run(chunk._asdict() | random)
                position = position.after(losses, chunk)
                if not np.isfinite(losses[-1]):
                    self._fail(f'the loss of epoch {epoch}, mini-batch {position.minibatches - 1} is {losses[-1]}')
                    return
                if checkpoint and checkpoint.is_due():
                    save(random_state)
                if callback:
                    callback(Progress(epoch, n_epochs, position.minibatches, position.events,
                                      len(items) - len(offsets) + 1, position.mean_loss, is_last))
            self.epoch_losses_ = [*self.epoch_losses_, position.mean_loss]  # a copy of the model keeps its own
            logger.info('Epoch%d\tloss: %.6f', epoch, self.epoch_losses_[-1])
            position = model_file.TrainingPosition(epoch + 1)
        save(drawn.state())
        if not all(np.isfinite(weight.get_value(borrow=True)).all() for weight in self.variables_.weights.values()):
            self._fail('the last mini-batch left weights that are not finite')

    def _fail(self, reason: str) -> None:
        self.error_during_train = True
        warn(f'training stopped: {reason}; the model cannot be used for prediction. A smaller learning_rate, or '
             'grad_cap, may help.', RuntimeWarning)

    # -- weights ------------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Return copies of all weights, float32, under the release's names.

        `weight_layout` lists them with shapes: ``Wx{i}, Wr{i}, Wz{i}, Wh{i}, Whr{i}, Whz{i}, Bh{i}, Br{i}, Bz{i}``
        of layer i, ``Wy`` and ``By``.  Rows of ``Wx0, Wr0, Wz0, Wy, By`` are in item index order.
        """
        self._check_trained()
        with self.in_use():
            return model_file.split_parts(self.variables_.weights, weight_layout(self.settings()))

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Return copies of all accumulators, ``acc_NAME``, and velocities, ``vel_NAME``, if the rule has them."""
        self._check_trained()
        with self.in_use():
            acc, vel = (model_file.split_parts(group, weight_layout(self.settings())) for group in self.variables_[1:])
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
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied or pickled: all but compiled functions, which are made again; variables as arrays."""
        with self.in_use():
            state = {name: value for name, value in vars(self).items() if name != '_taken_turns'}
            if not hasattr(self, 'variables_'):
                return state
            state |= {'_state_function': None, '_rank_program': None}
            if self._prediction_state is not None:
                session_ids, states = self._prediction_state
                state['_prediction_state'] = session_ids, {name: np.asarray(H) for name, H in states.items()}
            return state | {'variables_': self.variables_.arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if 'variables_' in state:
            self.backend_ = backends.resolve('auto') if self.backend == 'auto' else self.backend_  # of this machine
            self._index_of = IdIndex(self.items_)
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
            try:
                check_arguments(self)
                groups = [model_file.split_parts(group, weight_layout(self.settings())) for group in self.variables_]
                saved = model_file.SavedModel(plain_arguments(self), self.items_, self.item_counts_, self.epoch_losses_,
                                              *groups)
                self._check_saved(saved)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f'cannot save this model with its arguments as they are now: {error}') from None
            weights = {name: model_file.rounded(name, value, dtype) for name, value in saved.weights.items()}
            model_file.write_model(path, saved._replace(weights=weights))

    @classmethod
    def load(cls, path: str | Path, *, backend: str | None = None) -> GRU4Rec:
        """Return the model that `save` wrote to a file, for the backend that it had, or for another.

        ValueError if the file is damaged, of a later version, or no model.
        """
        if backend is not None:
            check_choice('backend', backend, backends.BACKENDS)
        saved = model_file.read_model(path)
        with model_file.refused_unless_model(path):
            model = cls._of_arguments(saved.arguments | ({'backend': backend} if backend else {}))
            model._check_saved(saved)
        return model._take_over(saved)

    def _check_saved(self, saved: model_file.SavedModel) -> None:
        """Raise TypeError or ValueError unless what is saved belongs to the arguments of this model."""
        check_arguments(self)
        saved.check_items()
        saved.check_arrays(weight_layout(self.settings(len(saved.items))), acc=self.adapt in ('adagrad', 'rmsprop'),
                           vel=bool(self.momentum))

    def _take_over(self, saved: model_file.SavedModel) -> GRU4Rec:
        """Become the trained model that was saved."""
        self.backend_ = backends.resolve(self.backend)
        self._set_items(saved.items, saved.item_counts.astype(np.int64))
        settings = self.settings()
        groups = [model_file.join_parts(group, weight_layout(settings), FLOAT)
                  for group in (saved.weights, saved.acc, saved.vel)]
        self._set_variables(Variables.of(settings, *groups))
        self.epoch_losses_ = saved.epoch_losses
        return self

    @classmethod
    def from_port(cls, state_dict: Mapping[str, Any], items: ArrayLike, item_counts: ArrayLike | None = None,
                  **given: Any) -> GRU4Rec:
        """Return a model with the weights of the authors' PyTorch code, that predicts what it predicts.

        Its saved model is a pickle of its own classes.  Where these can be imported,

            gru = torch.load('model.pt', weights_only=False)
            state_dict = {name: tensor.cpu().numpy() for name, tensor in gru.model.state_dict().items()}
            items = gru.data_iterator.itemidmap.sort_values().index

        Parameters
        ----------
        state_dict : name -> array or tensor
        items : item ids, in the order of the rows of ``Wy.weight``
        item_counts : events of each item in the training data, for sessions without a known item: whole numbers in the
            order of `items`, or a Series by item id; None for all the same
        given : arguments that the weights do not show: `loss`, `final_act` such as 'elu-0.5', and the like.  The
            optimiser's state is not taken over
        """
        saved = port.saved_model(state_dict, items, item_counts)
        model = cls._of_arguments(saved.arguments | given)
        model._check_saved(saved)
        return model._take_over(saved)

    def port_state_dict(self) -> dict[str, np.ndarray]:
        """Return the weights under the names and in the shapes of the authors' PyTorch code, for `load_state_dict`."""
        return port.port_from_weights(self.weights(), self)

    savemodel = save  # the release's names
    loadmodel = load

    # -- prediction ---------------------------------------------------------------------------------------------------

    def initial_states(self, batch_size: int) -> dict[str, np.ndarray]:
        """Return what sessions carry from event to event, before the first; see `initial_states`."""
        return initial_states(self.settings(), batch_size)

    def next_states(self, items: np.ndarray, starts: np.ndarray,
                    states: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return B sessions after one more event: what they are scored by, float32 (B, H), and their new states.

        Parameters
        ----------
        items : int64 (B,), item indices of the events
        starts : bool (B,), True where a session starts
        states : arrays with a row for each session, as `initial_states` or the last call returned them
        """
        with self.in_use():
            self._check_usable()
            function = self._state_function
            if function is None:
                with backends.symbols_of_float32():  # one thread compiles, the others find it
                    function = self._state_function = self._state_function or backends.compile_step(
                        *prediction_step(self.settings(), self.variables_.weights), backend=self.backend_)
            new_states = function({'item': items, 'starts': starts, **states})
            return new_states.pop('top'), new_states

    def output_weights(self, candidates: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ``Wy`` (M, H) and ``By`` (M,) of the items `candidates`, indices, or of all; not to be modified.

        With H as `next_states` gives it, ``H @ Wy.T + By`` are the scores before the final activation.
        """
        with self.in_use():
            self._check_usable()
            Wy, By = (np.asarray(self.variables_.weights[name].get_value(borrow=True)) for name in ('Wy', 'By'))
            return (Wy, By) if candidates is None else (Wy[candidates], By[candidates])

    def next_item_counts(self, items: np.ndarray, starts: np.ndarray, targets: np.ndarray, states: dict,
                         candidates: np.ndarray | None = None) -> tuple[dict, list[np.ndarray]]:
        """Return the states after K mini-batches and the counts of `JaxRanks`, computed in one call on a device by JAX.

        `items`, `targets` and `starts` are (K, B), `candidates` (M,) the indices of the items among which the targets
        are ranked, or None for all.
        """
        with self.in_use():
            self._check_usable()
            output = [self.variables_.weights[name].get_value(borrow=True) for name in ('Wy', 'By')]
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
        """Return the final activation of raw scores, elementwise and monotone; the softmax is left out."""
        return activation(final_activation(self.loss, self.final_act), np)(scores)

    def activate(self, scores: np.ndarray, included: np.ndarray | bool = True) -> np.ndarray:
        """Return final scores of raw ones, (B, M): activated and, with cross-entropy, the softmax over each row.

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
        """Return scores of the next item for `batch` parallel sessions, given their current events.

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
        with self.in_use(), self._turns.predicting():
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
        """Return the k items that are most likely next, best first, for one session or for each of a list of sessions.

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
        """Return a session that has just begun, to be recommended for click by click."""
        self._check_usable()
        return Session(self)

    @property
    def itemidmap(self) -> pd.Series:
        """Item index by item id, under the release's name."""
        self._check_trained()
        return pd.Series(np.arange(self.n_items), index=self.items_, name='ItemIdx')

    def known_indices(self, item_ids: ArrayLike) -> np.ndarray:
        """Return int64 indices of item ids, -1 for those that the training data did not have."""
        self._check_usable()
        return self._index_of.get_indexer(item_ids)

    def item_indices(self, item_ids: ArrayLike) -> np.ndarray:
        """Return int64 indices of item ids; KeyError names those that the training data did not have."""
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
        """The model's turns, made at the first use, in one step that no other thread can come between."""
        return vars(self).setdefault('_taken_turns', Turns())

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Keep the model as it is for predictions that belong together: ``with gru.in_use(): ...``

        A thread that starts to train waits until they are done.  RuntimeError while another thread trains.
        """
        return self._turns.reading()

    def _check_usable(self) -> None:
        self._check_trained()
        if self.error_during_train:
            raise RuntimeError('training of this GRU4Rec stopped at a loss that is not finite: it cannot predict')
