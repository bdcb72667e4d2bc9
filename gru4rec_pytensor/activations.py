"""Activations by name, for symbols and for arrays: tanh, linear and ReLU of 2016, and those with numbers of 2018."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytensor.tensor as pt


def linear(x: Any) -> Any:
    """f(x) = x."""
    return x


def relu(x: Any) -> Any:
    """f(x) = max(x, 0), as the release writes it."""
    return pt.maximum(x, 0)


def leaky_relu(x: Any, slope: Any, module: Any = pt) -> Any:
    """f(x) = x for x >= 0, slope x below."""
    return module.where(x >= 0, x, slope * x)


def scaled_elu(x: Any, scale: Any, alpha: Any, module: Any = pt) -> Any:
    """f(x) = scale x for x >= 0, scale alpha (exp(x) - 1) below; `module` has `exp`, `where` and `minimum`."""
    below = alpha * (module.exp(module.minimum(x, 0)) - 1)  # exp of what is not used must not overflow
    value = module.where(x >= 0, x, below)
    return value if scale == 1 else scale * value


ACTIVATIONS: dict[str, Callable] = {'tanh': pt.tanh, 'linear': linear, 'relu': relu}
NUMPY_ACTIVATIONS: dict[str, Callable] = {'tanh': np.tanh, 'linear': linear, 'relu': partial(np.maximum, 0)}
WITH_NUMBERS = {'leaky': 1, 'elu': 1, 'selu': 2}  # activations whose name ends in numbers -> how many


def activation(name: str, module: Any = pt) -> Callable:
    """Return the function of an activation's name, for symbols, or with ``module=np`` for arrays.

    'leaky-X' is `leaky_relu`, 'elu-X' and 'selu-X-Y' are `scaled_elu`; X and Y are not negative, so that all of them
    are monotone.  KeyError or ValueError for any other name.
    """
    kind, *numbers = str(name).split('-')
    if kind not in WITH_NUMBERS:
        return (ACTIVATIONS if module is pt else NUMPY_ACTIVATIONS)[name]
    values = [np.float32(number) for number in numbers]
    if len(values) != WITH_NUMBERS[kind] or not all(0 <= value < np.inf for value in values):
        raise ValueError(name)
    if kind == 'leaky':
        return partial(leaky_relu, slope=values[0], module=module)
    scale = values[0] if kind == 'selu' else np.float32(1)
    return partial(scaled_elu, scale=scale, alpha=values[-1], module=module)


def final_activation(loss: str, final_act: str | None) -> str:
    """Return the scores' activation: `final_act`, or what the releases take where that is None or out of place."""
    if loss == 'cross-entropy':
        return 'linear' if final_act in (None, 'relu', 'softmax') else final_act
    return final_act or ('linear' if loss in ('top1-max', 'bpr-max') else 'tanh')


def check_activation(name: str, value: Any, also: str = '') -> None:
    """Raise ValueError unless the argument `name` has the name of an activation; `also` says what else is allowed."""
    try:
        activation(value)
        known = isinstance(value, str)
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{name}={value!r}: must be one of 'tanh', 'linear', 'relu', 'leaky-X', 'elu-X', 'selu-X-Y' "
                         f'with numbers X and Y of at least 0, such as elu-0.5{also}')
