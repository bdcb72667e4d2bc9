"""What `numba_ops` and `jax_loops` share."""
from __future__ import annotations

from functools import reduce
from hashlib import sha256
from pathlib import Path

from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor import subtensor
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Sum

FLOAT = 'float32'  # of weights and scores, as in the release's own scripts
BEFORE_FUSION = 48.9  # position among PyTensor's rewrites: before element-wise operations are fused into loops

# Rows of an array increased or set; PyTensor 3.0 and 3.1 have two operations for it, later ones have one.
ROW_UPDATES = [getattr(subtensor, name) for name in ('AdvancedIncSubtensor', 'AdvancedIncSubtensor1')
               if hasattr(subtensor, name)]


def version_of(file: str | Path) -> int:
    """A number that changes when the file does.

    Compiled functions are found again on disk by their keys, so the key of a function holds the version of the file
    that makes the function's code.
    """
    return int(sha256(Path(file).read_bytes()).hexdigest()[:12], 16)


@node_rewriter([Sum])
def sums_in_own_precision(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: add up float32 in float32, not in float64, which halves the width of a vector instruction."""
    if node.inputs[0].type.dtype != FLOAT or node.op.acc_dtype == FLOAT:
        return None
    return [Sum(axis=node.op.axis, dtype=FLOAT, acc_dtype=FLOAT)(node.inputs[0])]


@node_rewriter([Elemwise])
def two_by_two(fgraph: FunctionGraph, node: Apply) -> list | None:
    """Rewrite: a + b + c becomes (a + b) + c, and products likewise: NumPy's functions take two."""
    if not isinstance(node.op.scalar_op, (Add, Mul)) or len(node.inputs) < 3:
        return None
    return [reduce(node.op, node.inputs)]
