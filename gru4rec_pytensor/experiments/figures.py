"""Pictures: the layers of a model, the mini-batches of an iterator, training curves, symbolic graphs.

Figures 1 and 2 of the paper are drawn from the objects that compute, so that they change with the model and the data.
``python run_experiments.py --figures`` writes the first three as SVG and PNG; docs/walkthrough.md and its notebook show
all of them.  Needs Matplotlib, an extra of the package.
"""
from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.scalar.basic import Composite
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise

from gru4rec import UNITS, GRU4Rec, Settings, session_parallel_minibatches, weight_layout
from gru4rec_pytensor.events import session_of_event, session_order
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.page import PLOT_SETTINGS, draw_losses, line_style, svg_of
from gru4rec_pytensor.experiments.report import mean_losses
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import rows_of_tables
from gru4rec_pytensor.files import atomic_file
from gru4rec_pytensor.terminal import note

INK, MUTED, UNUSED = '#1a1a1a', '#5a5a5a', '#ececec'
TINTS = ('#bfdcf5', '#fbb888', '#aee3cf', '#f4bfdc', '#fbe68f', '#c9ad8c', '#b9a5ee', '#b9dd6b', '#f08f8f', '#86c7d6')
MANY_EPOCHS = 20  # a longer curve has no markers


class Picture(Figure):
    """A Matplotlib figure that a notebook shows by itself, and whose file is the same each time that it is drawn."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout='constrained')

    def subplots(self, *args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(PLOT_SETTINGS):
            return super().subplots(*args, **kwargs)

    def _repr_svg_(self) -> str:
        with matplotlib.rc_context(PLOT_SETTINGS):
            return svg_of(self)

    def save(self, path: Path) -> list[Path]:
        """Write `path` with the endings .svg and .png, each whole or not at all; return the two paths."""
        paths = [path.with_suffix(ending) for ending in ('.svg', '.png')]
        with atomic_file(paths[0]) as file:
            file.write(self._repr_svg_().encode())
        with atomic_file(paths[1]) as file, matplotlib.rc_context(PLOT_SETTINGS):
            self.savefig(file, format='png', dpi=150)
        return paths


def write_figures(results: Results, data: Dataset, losses: Sequence[str], units: Sequence[int]) -> None:
    """Draw Figure 1 of the paper for these losses and units, Figure 2 for the data, and training curves of the results.
    """
    networks = {}
    for loss, n in itertools.product(losses, units):
        network = GRU4Rec([n], loss=loss).settings(data.n_items)
        networks[n, network.final_activation] = network
    n = units[0]  # on the right, a network with all that section 3.1 mentions
    everything = GRU4Rec([n, n], embedding=n, feedforward=[n], input_to_all_layers=True).settings(data.n_items)
    _rows, offsets = session_order(data.train)
    pictures = {'architecture': architecture(*networks.values(), everything),
                'minibatches': minibatches(offsets, batch_size=3)}
    if of_networks := mean_losses(rows_of_tables(results.load('cells', data.fingerprint), data.protocol)):
        pictures['training'] = training_curves(of_networks)
    folder = results.folder / 'figures' / data.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        note('drew ' + ', '.join(map(str, picture.save(folder / name))))


# ---------------------------------------------------------------------------------------------------------------------
# Figure 1: the layers
# ---------------------------------------------------------------------------------------------------------------------

def architecture(*networks: Settings) -> Picture:
    """Draw Figure 1 of the paper: the layers of each network, bottom to top, with the shapes of their weights.

    ``GRU4Rec(layers=[100]).settings(n_items=37_483)`` is a network, and so is ``settings()`` of a trained model.
    """
    columns = [layers_of(settings) for settings in networks]
    height = max(map(len, columns))
    picture = Picture(3.6 * len(networks), 0.5 + 1.02 * height)
    for ax, settings, boxes in zip(np.atleast_1d(picture.subplots(1, len(networks))), networks, columns):
        ax.set(xlim=(0, 10), ylim=(-0.2, height - 0.1))
        ax.axis('off')
        for y, (title, details, recurrent) in enumerate(boxes):
            ax.add_patch(FancyBboxPatch((0.9, y), 8, 0.72, boxstyle='round,pad=0,rounding_size=0.1',
                                        facecolor=TINTS[0] if recurrent else 'white', edgecolor=INK))
            ax.text(5, y + 0.55, title, ha='center', va='center', fontsize=10)
            ax.text(5, y + 0.23, details, ha='center', va='center', fontsize=7.5, color=MUTED, linespacing=1.3)
            if y:
                arrow(ax, (5, y - 0.28), (5, y))
            if recurrent:  # the state goes to the next event
                arrow(ax, (8.9, y + 0.52), (8.9, y + 0.2), curve=-1.5)
        if settings.input_to_all_layers:
            first = len(boxes) - 1 - len(settings.feedforward) - len(settings.layers)  # the box of the lowest layer
            for i in range(1, len(settings.layers)):
                ax.plot([0.9, 0.3, 0.3], [first - 0.64] * 2 + [first + i + 0.36], color=INK, linewidth=1)
                arrow(ax, (0.3, first + i + 0.36), (0.9, first + i + 0.36))
    return picture


def layers_of(settings: Settings) -> list[tuple[str, str, bool]]:
    """Return title, weights without biases, and whether it is recurrent, of each box of Figure 1, bottom to top."""
    layout = weight_layout(settings)

    def described(names: list[str]) -> str:
        by_shape: dict[tuple, list[str]] = {}
        for parts, shape in (layout[name] for name in names if name in layout):
            by_shape.setdefault(shape, []).extend(parts)
        return '\n'.join(f"{', '.join(parts)}: {' × '.join(f'{n:,}' for n in shape)}"
                         for shape, parts in by_shape.items())

    coded = 'session so far, discounted' if settings.input_mode == 'session' else 'item, 1-of-N coded'
    boxes = [(f'input: {coded}', f'N = {settings.n_items:,} items', False)]
    if settings.embedding:
        boxes.append(('embedding', described(['E']), False))
    for i, n in enumerate(settings.layers):
        names = [f'W{i}', *[f'{name}{i}' for name in UNITS[settings.unit].recurrent], f'I{i}']
        boxes.append((f'{settings.unit.upper()} layer, {n:,} units', described(names), True))
    for j, n in enumerate(settings.feedforward):
        boxes.append((f'feed-forward layer, {n:,} units, {settings.hidden_act}', described([f'Wd{j}']), False))
    return [*boxes, (f'output: scores of items, {settings.final_activation}', described(['Wy']), False)]


def arrow(ax: Axes, start: tuple, end: tuple, curve: float = 0.0) -> None:
    """Draw an arrow from one point to another; `curve` bends it."""
    style = f'arc3,rad={curve}'
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=9, connectionstyle=style, color=INK,
                                 linewidth=1, shrinkA=0, shrinkB=0))


# ---------------------------------------------------------------------------------------------------------------------
# Figure 2: session-parallel mini-batches
# ---------------------------------------------------------------------------------------------------------------------

def minibatches(offsets: np.ndarray, batch_size: int, labels: Sequence[str] | None = None,
                order: np.ndarray | None = None, steps: int = 10) -> Picture:
    """Draw Figure 2 of the paper, from the mini-batches that training gets.

    Above stand the sessions, below inputs and targets of the network.  A bar marks the event at which a lane begins a
    session; grey events of the sessions are in no mini-batch of the picture.

    offsets, batch_size, order : as `gru4rec.session_parallel_minibatches` takes them
    labels : a short name for each event; session and event number, counted from 1, when None
    steps : largest number of mini-batches to draw
    """
    position, starts = next(iter(session_parallel_minibatches(offsets, batch_size, order, chunk=steps)))
    session = session_of_event(offsets)
    number = np.arange(offsets[-1]) - offsets[session]
    used = np.union1d(position, position + 1)
    shown = np.unique(session[used]) if order is None else order[np.isin(order, session[used])]
    length = int(number[used].max()) + 2  # an event more than is used, where there is one
    names = {event: f'{session[event] + 1}.{number[event] + 1}' if labels is None else labels[event]
             for s in shown for event in range(offsets[s], min(offsets[s + 1], offsets[s] + length))}
    n_steps = len(position)

    cell_width = 0.3 + 0.075 * max(len(names[event]) for event in used)
    n_columns, n_lines = max(length, n_steps), (len(shown), 2 * batch_size + 1)
    picture = Picture(cell_width * n_columns + 1.2, 0.3 * sum(n_lines) + 1)
    above, below = picture.subplots(2, 1, height_ratios=[n + 0.7 for n in n_lines])
    for row, s in enumerate(shown):
        above.text(-0.15, row + 0.5, f'session {s + 1}', ha='right', va='center', fontsize=8)
        for n in range(min(length, offsets[s + 1] - offsets[s])):
            event = offsets[s] + n
            cell(above, n, row, names[event], TINTS[s % len(TINTS)] if event in used else UNUSED)
    lanes = [(f'{title}, lane {lane + 1}', lane + k * (batch_size + 1), position[:, lane] + k,
              starts[:, lane] & (k == 0)) for k, title in enumerate(('input', 'output')) for lane in range(batch_size)]
    for title, row, events, begins in lanes:
        below.text(-0.15, row + 0.5, title, ha='right', va='center', fontsize=8)
        for step, event in enumerate(events):
            cell(below, step, row, names[event], TINTS[session[event] % len(TINTS)])
            if begins[step]:
                below.add_patch(Rectangle((step + 0.03, row + 0.04), 0.09, 0.92, facecolor=INK))
    for step in range(n_steps):
        below.text(step + 0.5, -0.1, step + 1, ha='center', va='bottom', fontsize=8, color=MUTED)
    for ax, n_rows, title in zip((above, below), n_lines, ('sessions', 'mini-batches')):
        ax.set(xlim=(-0.1, n_columns), ylim=(n_rows, -0.7))
        ax.set_title(title, fontsize=10)
        ax.axis('off')
    return picture


def cell(ax: Axes, column: float, row: float, text: str, colour: str) -> None:
    """Draw an event of Figure 2."""
    ax.add_patch(Rectangle((column + 0.03, row + 0.04), 0.94, 0.92, facecolor=colour, edgecolor='white'))
    ax.text(column + 0.53, row + 0.5, text, ha='center', va='center', fontsize=8,
            color=MUTED if colour == UNUSED else INK)


# ---------------------------------------------------------------------------------------------------------------------
# Training curves
# ---------------------------------------------------------------------------------------------------------------------

def training_curves(losses: dict[str, list[float]]) -> Picture:
    """Draw the mean loss of each epoch, a panel for each network; `losses` are those of each, by title."""
    n_columns = min(3, len(losses))
    n_rows = -(-len(losses) // n_columns)
    picture = Picture(3.4 * n_columns, 2.8 * n_rows)
    panels = picture.subplots(n_rows, n_columns, squeeze=False).flat
    for k, (ax, (title, values)) in enumerate(zip(panels, losses.items())):
        colour, marker = line_style(k)
        draw_losses(ax, title, values, colour, marker if len(values) <= MANY_EPOCHS else '')
    for ax in [*panels][len(losses):]:
        ax.axis('off')
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# Symbolic graphs
# ---------------------------------------------------------------------------------------------------------------------

def symbolic_graph(outputs: list[Variable]) -> Picture:
    """Draw a symbolic graph: each operation is a box below all that it needs, the results are at the bottom.

    An input stands right above the first operation that needs it.  Constants are left out, and so is the adding of
    dimensions of length 1 (`DimShuffle`), since nothing is computed there.
    """
    nodes, edges = operations(outputs)
    texts = {node: str(node.name) if isinstance(node, Variable) else operation_name(node) for node in nodes}
    level: dict = {}
    for node in nodes:  # in topological order
        level[node] = 1 + max((level[source] for source, target in edges if target is node), default=-1)
    for node in nodes:
        if isinstance(node, Variable):  # an input stands right above the first operation that needs it
            level[node] = min(level[target] for source, target in edges if source is node) - 1
    paths = [[source, *[(source, target, k) for k in range(level[source] + 1, level[target])], target]
             for source, target in edges]  # a long edge has a place of its own in each row that it passes
    level.update({place: place[-1] for path in paths for place in path[1:-1]})
    x = places_in_rows(level, [pair for path in paths for pair in zip(path, path[1:])],
                       {node: 0.35 + 0.085 * len(text) for node, text in texts.items()})

    n_rows = max(level.values()) + 1
    picture = Picture(max(x.values()) - min(x.values()) + 2, 0.5 * n_rows + 0.3)
    ax = picture.subplots()
    ax.set(xlim=(min(x.values()) - 1, max(x.values()) + 1), ylim=(n_rows - 0.4, -0.6))
    ax.axis('off')
    for path in paths:
        for a, b in zip(path[:-2], path[1:-1]):
            ax.plot([x[a], x[b]], [level[a], level[b]], color=INK, linewidth=1, zorder=1)
        arrow(ax, (x[path[-2]], level[path[-2]]), (x[path[-1]], level[path[-1]] - 0.26))
    for node, text in texts.items():
        is_input = isinstance(node, Variable)
        ax.text(x[node], level[node], text, ha='center', va='center', fontsize=8, zorder=3,
                bbox=dict(boxstyle='round,pad=0.3' if is_input else 'square,pad=0.3', edgecolor=INK, linewidth=0.8,
                          facecolor=TINTS[4] if is_input else TINTS[0]))
    return picture


def places_in_rows(level: dict, edges: list[tuple], widths: dict) -> dict:
    """Return {node: x in inches} with few crossing edges.

    Each row in turn is sorted by the mean place of its neighbours in the rows around it, and moved there as far as the
    widths of the nodes allow (Sugiyama's method, without its finer points).
    """
    rows: list[list] = [[] for _ in range(max(level.values()) + 1)]
    near: dict = {node: [] for node in level}
    for node, k in level.items():
        rows[k].append(node)
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    x = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else rows[::-1]:
            wanted = {node: float(np.mean([x[other] for other in near[node]])) for node in row}
            row.sort(key=wanted.__getitem__)
            right = -np.inf
            for node in row:
                half = widths.get(node, 0.2) / 2
                x[node] = max(wanted[node], right + half)
                right = x[node] + half
            shift = np.mean([wanted[node] - x[node] for node in row])
            x.update({node: x[node] + shift for node in row})
    return x


def operations(outputs: list[Variable]) -> tuple[list, list[tuple]]:
    """Return inputs and operations in topological order, and the pairs of which the first feeds the second."""
    nodes: list = []
    edges = []
    made_by: dict = {}  # variable -> the box that it comes out of
    for apply in toposort(outputs):
        if isinstance(apply.op, DimShuffle) and apply.op.is_expand_dims:
            continue
        for variable in apply.inputs:
            while variable.owner and isinstance(variable.owner.op, DimShuffle) and variable.owner.op.is_expand_dims:
                variable = variable.owner.inputs[0]
            if isinstance(variable, Constant):
                continue
            if variable.owner is None and variable not in made_by:
                made_by[variable] = variable
                nodes.append(variable)
            if (edge := (made_by[variable], apply)) not in edges:
                edges.append(edge)
        nodes.append(apply)
        made_by.update(dict.fromkeys(apply.outputs, apply))
    return nodes, edges


def operation_name(apply: Apply) -> str:
    """Return what an operation does, in few words; for a fused loop, all that is computed in it."""
    op = apply.op
    if isinstance(op, Blockwise):
        op = op.core_op
    if not isinstance(op, Elemwise):
        return type(op).__name__
    is_loop = isinstance(op.scalar_op, Composite)
    scalars = [node.op for node in op.scalar_op.fgraph.toposort()] if is_loop else [op.scalar_op]
    numbers = Counter(scalar.name or type(scalar).__name__ for scalar in scalars)
    return 'one loop: ' * is_loop + ', '.join(f'{n} {name}' if n > 1 else name for name, n in numbers.items())
