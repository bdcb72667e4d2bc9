"""Pictures of symbolic graphs, as PyTensor builds and rewrites them; docs/walkthrough.md shows some."""
from __future__ import annotations

from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.scalar.basic import Composite
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise

from gru4rec_pytensor.experiments.figures import INK, TINTS, Picture, arrow


def draw(outputs: list[Variable]) -> Picture:
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
    scalar = op.scalar_op
    if not isinstance(scalar, Composite):
        return scalar_name(scalar)
    inside = [scalar_name(node.op) for node in scalar.fgraph.toposort()]
    return 'one loop: ' + ', '.join(f'{inside.count(name)} {name}' if inside.count(name) > 1 else name
                                    for name in dict.fromkeys(inside))


def scalar_name(op: Any) -> str:
    """Return the name of what an operation does to a number, such as add."""
    return op.name or type(op).__name__
