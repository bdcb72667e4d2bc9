"""Checks of arguments: a TypeError or ValueError that names the argument, its value and what is allowed."""
from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def first_few(values: ArrayLike, n: int = 5) -> str:
    """Format the first few values for a message.

    >>> first_few([3, 1, 4, 1, 5, 9])
    '3, 1, 4, 1, 5, ...'
    """
    found = np.asarray(values)
    return ', '.join(map(repr, found[:n].tolist())) + (', ...' if len(found) > n else '')


def is_whole_number(value: Any) -> bool:
    """Return whether a value is an integer of Python or NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_whole_number(name: str, value: Any, low: float = 1, high: float = np.inf) -> None:
    """Raise unless it is a whole number from `low` to `high`."""
    allowed = f'a whole number of at least {low}' if high == np.inf else f'a whole number from {low} to {high}'
    if not is_whole_number(value):
        raise TypeError(f'{name}={value!r}: must be {allowed}')
    if not low <= value <= high:
        raise ValueError(f'{name}={value!r}: must be {allowed}')


def check_optional_number(name: str, value: Any) -> None:
    """Raise unless it is None or a whole number of at least 1."""
    if value is not None:
        check_whole_number(name, value)


def check_whole_numbers(name: str, values: Any, what: str, at_least: int = 0) -> None:
    """Raise unless it is a list of whole numbers of at least 1; `what` says, for the message, what they are."""
    message = f'{name}={values!r}: must be a list of {what}'
    if not isinstance(values, (list, tuple)) or not all(map(is_whole_number, values)):
        raise TypeError(message)
    if len(values) < at_least or any(value < 1 for value in values):
        raise ValueError(message)


def check_number(name: str, value: Any, low: float = 0, high: float = np.inf, *, above: bool = False,
                 below: bool = False) -> None:
    """Raise unless it is a number from `low` to `high`; `above` and `below` exclude the ends.

    Infinity and NaN are never allowed.
    """
    allowed = f'{"a" if high < np.inf else "a finite"} number {"above" if above else "of at least"} {low:g}'
    if high < np.inf:
        allowed += f' and {"below" if below else "at most"} {high:g}'
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f'{name}={value!r}: must be {allowed}')
    if not (low < value if above else low <= value) or not (value < high if below or high == np.inf else value <= high):
        raise ValueError(f'{name}={value!r}: must be {allowed}')


def check_flag(name: str, value: Any) -> None:
    """Raise unless it is True or False, or 1 or 0."""
    if not isinstance(value, (bool, np.bool_)) and not (is_whole_number(value) and value in (0, 1)):
        raise TypeError(f'{name}={value!r}: must be True or False')


def check_choice(name: str, value: Any, allowed: Iterable) -> None:
    """Raise unless it is one of the values `allowed`."""
    choices = list(allowed)
    if not any(value is choice or isinstance(value, type(choice)) and value == choice for choice in choices):
        raise ValueError(f'{name}={value!r}: must be one of {", ".join(map(repr, choices))}')


OURS = ('gru4rec', 'evaluation', 'baselines', 'preprocess_rsc15', 'run_experiments', 'gru4rec_pytensor')


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code: the innermost frame outside this project."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get('__name__', '').split('.')[0] in (*OURS, 'contextlib'):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
