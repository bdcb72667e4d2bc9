"""Numba: PyTensor's mode for it with our rewrites, the tricks, each of which can be switched off."""
from __future__ import annotations

import os

from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.rewriting.basic import in2out

from gru4rec_pytensor.backends.common import (
    ABOUT_SPECIAL_MATRICES,
    AFTER_ALL,
    BEFORE_FUSION,
    IN_PLACE,
    sums_in_own_precision,
    tables_in_place,
)
from gru4rec_pytensor.backends.numba_ops import (
    contiguous_splits,
    fast_activations,
    inlined_bodies,
    integer_maxima,
    unfused_column_sums,
)
from gru4rec_pytensor.backends.numba_rows import joint_row_updates, row_updates, rows_read_ahead

AFTER_FUSION, AFTER_JOINT = 49.2, 49.3

# name -> rewrite, and its position among PyTensor's
TRICKS = {rewrite.__name__: (rewrite, position) for position, rewrites in (
    (BEFORE_FUSION, [fast_activations, sums_in_own_precision, unfused_column_sums, contiguous_splits,
                     integer_maxima]),
    (AFTER_FUSION, [joint_row_updates]),
    (AFTER_JOINT, [rows_read_ahead]),
    (IN_PLACE, [tables_in_place]),
    (AFTER_ALL, [inlined_bodies, row_updates])) for rewrite in rewrites}


def numba_mode() -> Mode:
    """Return PyTensor's mode for Numba, with the tricks that are not switched off.

    For measuring what each brings: ``GRU4REC_WITHOUT=fast_activations,row_updates python ...``.
    """
    off = set(os.environ.get('GRU4REC_WITHOUT', '').split(',')) - {''}
    if not off <= TRICKS.keys():
        raise ValueError(f'GRU4REC_WITHOUT={",".join(sorted(off))}: each must be one of {", ".join(TRICKS)}')
    # 'local_log_sum_exp': cross_entropy subtracts the largest score itself.
    return get_mode('NUMBA').excluding('local_log_sum_exp', *ABOUT_SPECIAL_MATRICES).register(
        *((in2out(rewrite, name=name, ignore_newtrees=position == IN_PLACE), position)
          for name, (rewrite, position) in TRICKS.items() if name not in off))
