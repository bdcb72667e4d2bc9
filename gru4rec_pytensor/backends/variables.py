"""Shared variables: the values that a training step changes."""
from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytensor

from gru4rec_pytensor.backends.common import FLOAT


def shared(name: str, value: np.ndarray) -> Any:
    """Return a shared variable whose static shape is known, so that the compiler need not check it."""
    return pytensor.shared(value, name=name, shape=value.shape, borrow=True)


def free_with(owner: Any, variables: Iterable) -> None:
    """Free the arrays of shared variables as soon as `owner` is gone.

    Numba never forgets what it compiled, and that refers to the variables.  The callback is a method in C, which puts
    the dead reference in the place of the array: a Ctrl-C within a callback in Python would be lost.
    """
    for variable in variables:
        variable.tag.freed_with = weakref.ref(owner, partial(variable.container.storage.__setitem__, 0))


class Variables(NamedTuple):
    """The shared variables that a training step changes, by the names of `weight_layout`: weights of all layers, and
    accumulators and velocities of the update rule, of the same shapes; empty where it has none.
    """
    weights: dict[str, Any]
    acc: dict[str, Any]
    vel: dict[str, Any]

    @classmethod
    def of(cls, settings: Any, weights: dict[str, np.ndarray], acc: dict[str, np.ndarray] | None = None,
           vel: dict[str, np.ndarray] | None = None) -> Variables:
        """Make variables with these values; accumulators and velocities that are not given are zero.

        The arrays are freed with the last reference to a group.
        """
        def group(prefix: str, used: Any, values: dict[str, np.ndarray] | None) -> dict[str, Any]:
            # Ordered, since a plain dictionary cannot be referred to weakly.
            variables = OrderedDict((name, shared(prefix + name, values[name] if values else np.zeros(w.shape, FLOAT)))
                                    for name, w in weights.items() if used)
            free_with(variables, variables.values())
            return variables

        return cls(group('', True, weights), group('acc_', settings.adapt in ('adagrad', 'rmsprop'), acc),
                   group('vel_', settings.momentum, vel))

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Return copies of the values, (weights, acc, vel), as NumPy arrays wherever they are now."""
        return [{name: np.array(variable.get_value(borrow=True)) for name, variable in group.items()}
                for group in self]
