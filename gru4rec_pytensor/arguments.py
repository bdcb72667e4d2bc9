"""The arguments of a network, each once: its name, default, kind and range; and the checks that follow from them.

`gru4rec.GRU4Rec`, whose docstring says what each argument means, is constructed with them; `gru4rec.Settings` are a
copy of them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_pytensor.activations import check_activation
from gru4rec_pytensor.checks import (
    check_choice,
    check_flag,
    check_number,
    check_optional_number,
    check_whole_number,
    check_whole_numbers,
    warn,
)


def argument(default: Any = MISSING, check: Callable[[str, Any], None] | None = None) -> Any:
    """Field of an argument; `check` raises TypeError or ValueError for (name, value) that is not allowed."""
    return field(default=default, metadata={'check': check})


LAYERS = partial(check_whole_numbers, what='numbers of units, at least one layer, such as [100]', at_least=1)
NO_LAYERS = partial(check_whole_numbers, what='numbers of units; an empty one for no such layers')
COUNT = partial(check_whole_number, low=0)
SEED = partial(check_whole_number, low=0, high=2 ** 32 - 1)
POSITIVE = partial(check_number, above=True)
BELOW_1 = partial(check_number, high=1, below=True)  # 0 <= x < 1
FLOAT32 = ('learning_rate', 'grad_cap', 'sigma', 'lmbd', 'sample_alpha', 'bpreg', 'logq')  # which a graph holds


def one_of(*allowed: Any) -> Callable[[str, Any], None]:
    """Check of an argument that has one of a few values."""
    return partial(check_choice, allowed=allowed)


@dataclass(eq=False, repr=False)
class Arguments:
    """The arguments of `gru4rec.GRU4Rec`, in the order of its constructor.

    Where `check` is missing, the argument is a column's name, or one of a table that `check_arguments` is given.
    """
    layers: Sequence[int] = argument(check=LAYERS)
    n_epochs: int = argument(10, check_whole_number)
    batch_size: int = argument(50, check_whole_number)
    dropout_p_hidden: float = argument(0.4, BELOW_1)
    learning_rate: float = argument(0.05, POSITIVE)
    momentum: float = argument(0.0, BELOW_1)
    adapt: str | None = argument('adagrad', one_of('adagrad', 'rmsprop', None, 'none'))
    decay: float = argument(0.9, BELOW_1)
    grad_cap: float = argument(0, check_number)
    sigma: float = argument(0, check_number)
    init_as_normal: bool = argument(False, check_flag)
    reset_after_session: bool = argument(True, check_flag)
    loss: str = argument('top1')
    hidden_act: str = argument('tanh', check_activation)
    final_act: str | None = argument(None)
    train_random_order: bool = argument(False, check_flag)
    lmbd: float = argument(0.0, check_number)
    session_key: str = argument('SessionId')
    item_key: str = argument('ItemId')
    time_key: str = argument('Time')
    _: KW_ONLY
    input_mode: str = argument('item')
    session_decay: float = argument(0.5, BELOW_1)
    embedding: int | None = argument(None, check_optional_number)
    unit: str = argument('gru')
    input_to_all_layers: bool = argument(False, check_flag)
    feedforward: Sequence[int] = argument((), NO_LAYERS)
    negatives: str = argument('minibatch', one_of('minibatch', 'uniform'))
    equal_times: str = argument('item', one_of('item', 'frame'))
    n_sample: int = argument(0, COUNT)
    sample_alpha: float = argument(0.75, check_number)
    sample_store: int = argument(10_000_000, COUNT)
    bpreg: float = argument(1.0, check_number)
    logq: float = argument(0.0, check_number)
    constrained_embedding: bool = argument(False, check_flag)
    dropout_p_embed: float = argument(0.0, BELOW_1)
    repeats: str = argument('each', one_of('each', 'sum'))
    time_sort: bool = argument(False, check_flag)
    drop_tail: bool = argument(True, check_flag)
    seed: int = argument(42, SEED)
    backend: str = argument('auto')


def argument_names() -> list[str]:
    """Return the names of the constructor's arguments."""
    return [argument.name for argument in fields(Arguments)]


def json_value(value: Any) -> Any:
    """Return an argument's value as JSON can hold it: NumPy's numbers as Python's, tuples as lists."""
    if isinstance(value, (list, tuple)):
        return [*map(json_value, value)]
    return value.item() if isinstance(value, np.generic) else value


def plain_arguments(model: Arguments) -> dict[str, Any]:
    """Return the arguments as values that JSON can hold."""
    return {name: json_value(getattr(model, name)) for name in argument_names()}


def changed_arguments(model: Arguments) -> dict[str, Any]:
    """Return those of `plain_arguments` that are not the default."""
    defaults = {argument.name: json_value(argument.default) for argument in fields(Arguments)}
    return {name: value for name, value in plain_arguments(model).items() if value != defaults[name]}


def check_arguments(model: Arguments, tables: Mapping[str, Iterable]) -> None:
    """Raise TypeError or ValueError that names the first argument whose value is not allowed.

    `tables` holds the choices of those that others can add to: ``{'loss': LOSSES, ...}``.
    """
    for argument in fields(Arguments):
        if check := argument.metadata['check']:
            check(argument.name, getattr(model, argument.name))
    for name in FLOAT32:
        if getattr(model, name) > float(np.finfo(np.float32).max):
            raise ValueError(f'{name}={getattr(model, name)!r}: must be at most 3.4e+38, the largest float32')
    if model.final_act is not None and (model.final_act, model.loss) != ('softmax', 'cross-entropy'):
        check_activation('final_act', model.final_act, also=", None, or 'softmax' with cross-entropy")
    for name, allowed in tables.items():
        check_choice(name, getattr(model, name), allowed)
    check_combinations(model)


def check_combinations(model: Arguments) -> None:
    """Raise ValueError that names arguments which exclude one another, or of which one needs another."""
    if model.constrained_embedding and model.embedding:
        raise ValueError(f'constrained_embedding=True does not go with embedding={model.embedding!r}: the input is '
                         "embedded by the output's matrix")
    if model.dropout_p_embed and not (model.constrained_embedding or model.embedding):
        raise ValueError(f'dropout_p_embed={model.dropout_p_embed!r} needs embedding or constrained_embedding')
    if model.n_sample and model.negatives == 'uniform':
        raise ValueError(f"n_sample={model.n_sample!r} does not go with negatives='uniform': use sample_alpha=0 for "
                         'additional negatives that are drawn uniformly')
    if model.logq and model.negatives == 'uniform':
        raise ValueError(f"logq={model.logq!r} does not go with negatives='uniform', which are not drawn by popularity")
    if model.n_sample and model.sample_store < 2 * model.n_sample:
        raise ValueError(f'sample_store={model.sample_store!r}: must hold at least two mini-batches, so 2 * n_sample = '
                         f'{2 * model.n_sample}')
    if model.batch_size == 1 and not model.n_sample and (not model.drop_tail or model.loss in ('top1-max', 'bpr-max')):
        raise ValueError('batch_size=1 and n_sample=0 leave a target nothing to be ranked among, so that '
                         f'loss={model.loss!r} with drop_tail={model.drop_tail!r} cannot be trained: use a larger '
                         'batch_size, or n_sample')


def check_masks(dropout_masks: list | None, batch_size: int, layout: dict[str, tuple[int, float]]) -> None:
    """Raise ValueError unless fixed masks, if there are any, have the shapes of `gru4rec.mask_layout`."""
    shapes = [(batch_size, width) for width, _kept in layout.values()]
    if dropout_masks is not None and ([np.shape(mask) for mask in dropout_masks] != shapes or not shapes):
        raise ValueError('dropout_masks needs dropout_p_hidden > 0 and an array for each layer, with dropout_p_embed '
                         f'> 0 one for the embedding before them, of the shapes {shapes}; got '
                         f'{[np.shape(mask) for mask in dropout_masks]}')


def checked_negatives(sampled_negatives: ArrayLike, n_minibatches: int, n_sample: int, n_items: int) -> np.ndarray:
    """Return given negatives as int64; ValueError unless they are items for each of so many mini-batches."""
    negatives = np.asarray(sampled_negatives)
    shape = (n_minibatches, n_sample)
    if not n_sample or negatives.shape != shape:
        raise ValueError('sampled_negatives needs n_sample > 0 and an array of the shape (mini-batches of all epochs, '
                         f'n_sample) = {shape}; got {negatives.shape}')
    if negatives.dtype.kind not in 'iu' or negatives.min() < 0 or negatives.max() >= n_items:
        raise ValueError(f'sampled_negatives must be item indices, integers from 0 to {n_items - 1}')
    return negatives.astype(np.int64)


def warn_of_constant_loss(model: Arguments, n_items: int) -> None:
    """Warn where the loss hardly depends on what a model may learn."""
    n_others = model.batch_size - 1 + model.n_sample
    if n_items == 1:
        reason = 'the training data has one item only, which is always the next one'
    elif not n_others:
        reason = 'with batch_size=1 there are no other targets to rank a target among, and the loss is constant'
    elif model.loss == 'mrr' and n_others == 1:
        reason = ("with batch_size=2 there is one other target, and of two scores loss='mrr' sees which is higher, but "
                  'not by how much')
    elif not np.float32(model.learning_rate):
        reason = f'learning_rate={model.learning_rate} is zero as a float32'
    else:
        return
    warn(f'nothing can be learned: {reason}')
