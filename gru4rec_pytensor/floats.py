"""The order of float32 numbers as whole numbers, which ranks and a reduction of the backend for Numba both use."""
from __future__ import annotations

from typing import Any


def float_order(bits: Any) -> Any:
    """Whole numbers in the order of the float32 numbers whose bits are given as int32, without gaps; its own inverse.

    For arrays, and for numbers in compiled functions.  The order is that of the floats, with -0 just below 0.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
