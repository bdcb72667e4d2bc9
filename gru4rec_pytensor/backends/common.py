"""What `numba_ops` and `jax_loops` share."""
from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from hashlib import sha256
from pathlib import Path

import pytensor
from numba.core.compiler_lock import global_compiler_lock
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


# ---------------------------------------------------------------------------------------------------------------------
# What threads of a process share
# ---------------------------------------------------------------------------------------------------------------------

COMPILER_LOCK = threading.RLock()
FORKED_WHILE_COMPILING = threading.Event()


def _after_fork() -> None:
    """Notice, in a new child process, a lock whose holder is a thread of the parent: nobody will ever release it."""
    for lock in (COMPILER_LOCK, global_compiler_lock._lock):
        if lock.acquire(blocking=False):
            lock.release()
        else:
            FORKED_WHILE_COMPILING.set()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def compiling() -> Iterator[None]:
    """For one thread at a time: PyTensor's settings, which it changes while it compiles, are those of the process."""
    if FORKED_WHILE_COMPILING.is_set():
        raise RuntimeError('this process was forked while another thread compiled, and so cannot compile: start it '
                           "with multiprocessing's method 'spawn' or 'forkserver'")
    with COMPILER_LOCK:
        yield


def check_working_directory() -> None:
    """OSError where it is gone: Numba, which looks at it, cannot compile then."""
    try:
        os.getcwd()
    except OSError as error:
        raise OSError('the working directory of this process is gone, and Numba does not compile without one: go to '
                      'another with os.chdir') from error


@contextmanager
def symbols_of_float32() -> Iterator[None]:
    """Within it, the numbers in a graph are float32; for one thread at a time."""
    with compiling(), pytensor.config.change_flags(floatX=FLOAT):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# A rewrite
# ---------------------------------------------------------------------------------------------------------------------

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
