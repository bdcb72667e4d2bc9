"""Spaces of a search: the parameters to search and their values, and those that all networks share, from a file.

A file has a JSON object in each line, as the authors' have, or is TOML, such as those in ``spaces/``::

    {"name": "momentum", "dtype": "float", "values": [0.0, 0.9], "step": 0.05}

    [space]
    momentum = {dtype = "float", values = [0.0, 0.9], step = 0.05}

What a file of JSON lines does not name is at the defaults of the authors' later release, as in their files of
parameters; a TOML file says it in a table `parameters`, whose defaults are those of `gru4rec.GRU4Rec`.
"""
from __future__ import annotations

import ast
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gru4rec import GRU4Rec, argument_names, check_arguments
from gru4rec_pytensor import parameters
from gru4rec_pytensor.experiments.storage import quiet_optuna

if TYPE_CHECKING:
    from optuna import Trial

# Arguments that say nothing about a network, and so are not searched.
OTHERS = ('seed', 'backend', 'session_key', 'item_key', 'time_key')
N_CHECKED = 20_000  # largest number of combinations of extreme values that are checked


class Space(NamedTuple):
    """Parameters that a search tries, and those that all its networks share.

    parameters : of each parameter to search, a tuple of its categories, or a range: its dtype, 'int' or 'float', its
        lowest and highest values, step and log
    """
    name: str  # of the file, without its end
    fixed: dict[str, Any]  # arguments of `gru4rec.GRU4Rec` that all networks share; the others are at their defaults
    parameters: dict[str, Any]


def read(path: Path, given: Sequence[str] = ()) -> Space:
    """Read the file of a space; ValueError, which names it, unless all networks in it can be trained.

    given : what all networks share beside what the file says: files of parameters, and words 'momentum=0.1,logq=1'
    """
    text = path.read_bytes()
    try:
        if path.suffix == '.toml':
            content = tomllib.loads(text.decode())
            if unknown := content.keys() - {'parameters', 'space'}:
                raise ValueError(f'has the unknown name {min(unknown)!r}; allowed are the tables parameters and space')
            fixed, entries = content.get('parameters', {}), [*content.get('space', {}).items()]
            own = {*fixed}
        else:
            fixed, own, entries = parameters.of_later_release({}), set(), []
            for number, line in enumerate(text.decode().splitlines(), 1):
                try:
                    if line.strip():
                        description = json.loads(line)
                        entries.append((str(description.pop('name')), description))
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise ValueError(f'line {number} is not like {{"name": "momentum", "dtype": "float", "values": '
                                     '[0.0, 0.9], "step": 0.05}') from None
        for word in sorted(given, key=lambda word: '=' in word):  # files first
            if '=' not in word:
                fixed |= parameters.read(word).arguments
                continue
            for assignment in word.split(','):
                name, _, value = assignment.partition('=')
                try:
                    fixed[name] = ast.literal_eval(value)
                except (ValueError, SyntaxError):
                    fixed[name] = value
                own.add(name)
        found: dict[str, Any] = {}
        for name, description in entries:
            if name in own or name in found:
                raise ValueError(f'{name} is searched' + (
                    ' twice' if name in found else f', and fixed at {fixed[name]!r}: leave one of them out'))
            found[name] = checked(name, description)
        fixed = {name: value for name, value in fixed.items() if name not in (*found, *OTHERS)}
        check_networks(fixed, found)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: {error}') from None
    return Space(path.stem, fixed, found)


def checked(name: str, given: Any) -> tuple | dict[str, Any]:
    """Return a parameter as a space has it, or raise ValueError."""
    if name not in (*argument_names(), 'elu_param') or name in OTHERS:
        raise ValueError(f'{name!r} is no argument of GRU4Rec that can be searched')
    found = {'dtype': None, 'values': None, 'step': None, 'log': False} | (given if isinstance(given, dict) else {})
    kind, values = found['dtype'], found['values']
    if found.keys() != {'dtype', 'values', 'step', 'log'} or kind not in ('int', 'float', 'categorical') or (
            not isinstance(values, list) or len(values) < 2 or kind != 'categorical' and len(values) > 2):
        raise ValueError(f'{name} has {given!r}; it needs dtype, which is "int", "float" or "categorical", and values, '
                         'a list of the lowest and the highest one, or of all categories, and may have step or log')
    types = {'int': int, 'float': int | float, 'categorical': bool | int | float | str}[kind]
    if wrong := [value for value in values if not isinstance(value, types)]:
        raise ValueError(f'{name} has {wrong[0]!r} among its values, which is not {kind}; layers are written "100/50"')
    return tuple(values) if kind == 'categorical' else found


def check_networks(fixed: dict[str, Any], searched: dict[str, Any]) -> None:
    """Raise ValueError or TypeError that names the arguments of a network of a space that cannot be trained."""
    if unknown := fixed.keys() - {*argument_names(), 'elu_param'}:
        raise ValueError(f'{sorted(unknown)[0]!r} is no argument of GRU4Rec')
    if not searched or 'layers' not in fixed | searched:
        raise ValueError('layers are missing, such as --fixed layers=100' if searched else 'has nothing to search')
    random_points(searched, 1, seed=0)  # ranges that Optuna cannot take
    for values in itertools.islice(itertools.product(*map(extremes, searched.values())), N_CHECKED):
        check_arguments(GRU4Rec(**network_arguments(fixed | dict(zip(searched, values)))))


def network_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `gru4rec.GRU4Rec` for those of a space: layers as a list, no embedding of width 0.

    The authors' PyTorch code has ``elu_param`` in place of ``final_act``, which is accepted too.
    """
    found = parameters.with_final_act(given)
    layers = str(found['layers'])
    if layers.replace('/', '').isdecimal():
        found['layers'] = [int(units) for units in layers.split('/')]
    if 'embedding' in found:
        found['embedding'] = parameters.embedding_of({'constrained_embedding': False} | found)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Points of a space
# ---------------------------------------------------------------------------------------------------------------------

def extremes(given: tuple | dict) -> Sequence:
    """Return the categories of a parameter, or the lowest and the highest value."""
    return given['values'] if isinstance(given, dict) else given


@quiet_optuna()
def random_points(space: dict[str, Any], n: int, seed: int) -> list[dict]:
    """Return the first n points of the search with this seed, by Optuna's random sampler."""
    import optuna
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [suggested(study.ask(), space) for _ in range(n)]


def suggested(trial: Trial, space: dict[str, Any]) -> dict[str, Any]:
    """Return the point of a trial."""
    for name, given in space.items():
        if isinstance(given, dict):
            suggest: Any = trial.suggest_int if given['dtype'] == 'int' else trial.suggest_float
            suggest(name, *given['values'], **{key: given[key] for key in ('step', 'log') if given[key]})
        else:
            trial.suggest_categorical(name, given)
    return rounded(trial.params, space)


def rounded(point: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    """Return a point with six digits of numbers from ranges, whose steps, such as 0.05, are not exact.

    >>> rounded({'momentum': 0.1 + 0.2, 'bpreg': 1.2345678}, {'momentum': {'step': 0.1}, 'bpreg': (0.5, 1.2345678)})
    {'momentum': 0.3, 'bpreg': 1.2345678}
    """
    return {name: float(f'{value:.6g}') if isinstance(value, float) and isinstance(space[name], dict) else value
            for name, value in point.items()}
