"""Pictures of symbolic graphs: they show the operations."""
import pytensor
import pytensor.tensor as pt
import pytest

pytest.importorskip('matplotlib', reason='Matplotlib, an extra, is not installed')

from gru4rec_pytensor.experiments import figures


def test_a_graph_has_a_box_for_each_input_and_operation_and_an_edge_for_each_use():
    x, y = pt.matrix('x'), pt.vector('y')
    nodes, edges = figures.operations([pt.tanh(x @ x + y) * y])
    assert [getattr(node, 'name', None) or figures.operation_name(node) for node in nodes] == [
        'x', 'Dot', 'y', 'add', 'tanh', 'mul']
    named = {node: getattr(node, 'name', None) or figures.operation_name(node) for node in nodes}
    assert sorted((named[a], named[b]) for a, b in edges) == [
        ('Dot', 'add'), ('add', 'tanh'), ('tanh', 'mul'), ('x', 'Dot'), ('y', 'add'), ('y', 'mul')]


def test_a_fused_loop_says_what_is_computed_in_it():
    x = pt.matrix('x')
    function = pytensor.function([x], pt.tanh(x + 1) * (x + 1) + pt.exp(x), mode='NUMBA')
    name, = [figures.operation_name(node) for node in function.maker.fgraph.apply_nodes]
    assert name.startswith('one loop: ')
    assert all(word in name for word in ('tanh', 'exp', 'mul', '2 add'))


def test_no_two_boxes_of_a_graph_lie_on_one_another():
    x = [pt.matrix(f'a_rather_long_name_{k}') for k in range(4)]
    nodes, edges = figures.operations([pt.tanh(x[0] @ x[1]) + pt.tanh(x[2] @ x[3]) + x[0]])
    ax, = figures.symbolic_graph([pt.tanh(x[0] @ x[1]) + pt.tanh(x[2] @ x[3]) + x[0]]).axes
    ax.figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    assert len(boxes) == len(nodes)
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
