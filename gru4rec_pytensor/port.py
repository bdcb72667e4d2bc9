"""Weights of the authors' PyTorch code: its names and shapes, and ours.

With an embedding, or one item matrix for input and output, its layers are PyTorch's ``GRUCell``, our unit 'gru-after',
with the gates in the order r, z, n.  Without, the one layer is a GRU of its own, our unit 'gru', with the gates of the
input in the order h, r, z.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gru4rec_pytensor.checks import first_few
from gru4rec_pytensor.events import IdIndex, as_ids
from gru4rec_pytensor.model_file import SavedModel

# An array of a GRUCell, and the parts of it by our names.
CELL = (('weight_ih', ('Wr', 'Wz', 'Wx')), ('weight_hh', ('Whr', 'Whz', 'Wh')), ('bias_ih', ('Br', 'Bz', 'Bh')),
        ('bias_hh', ('Bhr', 'Bhz', 'Bhh')))


def weights_from_port(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the arguments of `gru4rec.GRU4Rec` that a state of the port shows, and its weights by the release's names.

    ValueError names what is missing, or not known.
    """
    given = {name: np.asarray(value.detach().cpu() if hasattr(value, 'detach') else value, np.float32)
             for name, value in state_dict.items()}
    left, weights = set(given), {}

    def take(name: str) -> np.ndarray:
        if name not in given:
            raise ValueError(f'the state of the PyTorch code lacks {name!r}; it has {sorted(given)}')
        left.discard(name)
        return given[name]

    arguments: dict[str, Any] = dict(layers=[], unit='gru-after')
    if 'E.weight' in given:
        weights['E'] = take('E.weight')
        arguments['embedding'] = weights['E'].shape[1]
    arguments['constrained_embedding'] = 'GE.Wx0.weight' not in given and 'E.weight' not in given
    if 'GE.Wx0.weight' in given:
        if 'G.0.weight_ih' in given:
            raise ValueError('layers of two kinds, as the PyTorch code makes without an embedding, are not taken over: '
                             'the state has both GE and G.0')
        arguments |= dict(unit='gru', layers=[given['GE.Wx0.weight'].shape[1] // 3])
        weights |= dict(zip(('Wx0', 'Wr0', 'Wz0'), np.split(take('GE.Wx0.weight'), 3, axis=1)))
        weights |= dict(zip(('Whr0', 'Whz0'), np.split(take('GE.Wrz0'), 2, axis=1)), Wh0=take('GE.Wh0'))
        weights |= dict(zip(('Bh0', 'Br0', 'Bz0'), np.split(take('GE.Bh0'), 3)))
    while f'G.{len(arguments["layers"])}.weight_ih' in given:
        i = len(arguments['layers'])
        arguments['layers'].append(take(f'G.{i}.weight_hh').shape[1])
        for theirs, ours in CELL:
            parts = np.split(take(f'G.{i}.{theirs}'), 3)
            weights |= {f'{name}{i}': part.T for name, part in zip(ours, parts)}
    weights |= {'Wy': take('Wy.weight'), 'By': take('By.weight').reshape(-1)}
    if left:
        raise ValueError(f'the state of the PyTorch code has {sorted(left)[0]!r}, which is not known here')
    return arguments, weights


def saved_model(state_dict: Mapping[str, Any], items: ArrayLike, item_counts: ArrayLike | None) -> SavedModel:
    """Return what `GRU4Rec.from_port` makes a model of: the port's way to train, and an optimiser that begins at zero.

    Where `item_counts` is a Series, its index are item ids; without it all items count the same.
    """
    arguments, weights = weights_from_port(state_dict)
    ids = as_ids(items)
    counts = np.ones(len(ids), np.int64) if item_counts is None else np.asarray(item_counts)
    if isinstance(item_counts, pd.Series):
        places = IdIndex(item_counts.index.to_numpy()).get_indexer(ids)
        if (places < 0).any():
            raise ValueError(f'item_counts: lacks the item id(s) {first_few(ids[places < 0])}')
        counts = counts[places]
    arguments |= {'repeats': 'sum', 'drop_tail': False, 'time_sort': True}
    return SavedModel(arguments, ids, counts, [], weights, {}, {})


def port_from_weights(weights: dict[str, np.ndarray], model: Any) -> dict[str, np.ndarray]:
    """Return weights of a model under the port's names and in its shapes: the inverse of `weights_from_port`.

    ValueError if the port has no such network.
    """
    is_embedded, n_layers = bool(model.embedding or model.constrained_embedding), len(model.layers)
    has_unit = model.unit == 'gru-after' if is_embedded else (model.unit, n_layers) == ('gru', 1)
    if not has_unit or model.input_mode != 'item' or any(name[:2] in ('Ix', 'Wd') for name in weights):
        raise ValueError(f"unit={model.unit!r} with {n_layers} layer(s): the PyTorch code has unit='gru-after' with an "
                         "embedding or one item matrix, and without these one layer with unit='gru'; and "
                         "input_mode='item'")
    found = {'E.weight': weights['E']} if 'E' in weights else {}
    if not is_embedded:
        found |= {'GE.Wx0.weight': np.hstack([weights[name] for name in ('Wx0', 'Wr0', 'Wz0')]),
                  'GE.Wrz0': np.hstack([weights['Whr0'], weights['Whz0']]), 'GE.Wh0': weights['Wh0'],
                  'GE.Bh0': np.hstack([weights[name] for name in ('Bh0', 'Br0', 'Bz0')])}
    for i in range(n_layers if is_embedded else 0):
        for theirs, ours in CELL:
            found[f'G.{i}.{theirs}'] = np.concatenate([weights[f'{name}{i}'].T for name in ours])
    return found | {'Wy.weight': weights['Wy'], 'By.weight': weights['By'][:, None]}
