"""Spaces of a search: the parameters to search and their values, and those that all networks share, from a file.

A file has a JSON object in each line, as the authors' have, or is TOML, such as those in ``spaces/``::

    {"name": "momentum", "dtype": "float", "values": [0.0, 0.9], "step": 0.05}

    [space]
    momentum = {dtype = "float", values = [0.0, 0.9], step = 0.05}

What a file of JSON lines does not name is at the defaults of the authors' later release, as in their files of
parameters; a TOML file says it in a table `parameters`, whose defaults are those of `gru4rec.GRU4Rec`.
"""
from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gru4rec import GRU4Rec, check_arguments
from gru4rec_pytensor import parameters
from gru4rec_pytensor.arguments import argument_names
from gru4rec_pytensor.experiments.storage import quiet_optuna

if TYPE_CHECKING:
    from optuna import Trial

# Arguments that say nothing about a network, and so are not searched.
OTHERS = ('seed', 'backend', 'session_key', 'item_key', 'time_key')
N_CHECKED = 20_000  # largest number of combinations of extreme values that are checked
WORDS = {'true': True, 'false': False, 'none': None}


class Space(NamedTuple):
    """What a search tries.

    name : of the file, without its end
    fixed : arguments of `gru4rec.GRU4Rec` that all networks share; the others are at their defaults
    parameters : of each parameter to search, a tuple of its categories, or a range: its dtype, 'int' or 'float', its
        lowest and highest values, step and log
    """
    name: str
    fixed: dict[str, Any]
    parameters: dict[str, Any]


def read(path: Path, given: Sequence[str] = ()) -> Space:
    """Read the file of a space; ValueError, which names it, unless all networks in it can be trained.

    given : what all networks share beside what the file says: files of parameters, and words 'momentum=0.1,logq=1'
    """
    text = path.read_bytes()
    try:
        lines = text.decode().splitlines()
        if path.suffix == '.toml':
            content = tomllib.loads('\n'.join(lines))
            fixed, entries = content.get('parameters', {}), [*content.get('space', {}).items()]
            own = {*fixed}
        else:
            fixed, own = parameters.of_later_release({}), set()
            entries = [entry(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        for word in given:
            if '=' not in word:
                fixed |= parameters.read(word).arguments
                continue
            for assignment in word.split(','):
                name, _, value = assignment.partition('=')
                fixed[name.strip()] = value_of(value.strip())
                own.add(name.strip())
        space = Space(path.stem, {name: value for name, value in fixed.items() if name not in OTHERS}, {})
        for name, description in entries:
            if name in own:
                raise ValueError(f'{name} is searched and fixed at {fixed[name]!r}; leave one of them out')
            if name in space.parameters:
                raise ValueError(f'{name} is there twice')
            space.parameters[name] = checked(name, description)
            space.fixed.pop(name, None)
        return check_networks(space)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path}: {error}') from None


def entry(number: int, line: str) -> tuple[str, dict]:
    """Return name and description of a parameter, of a line of the authors' format."""
    try:
        found = json.loads(line)
        return str(found.pop('name')), found
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'line {number} is not like {{"name": "momentum", "dtype": "float", "values": [0.0, 0.9], '
                         '"step": 0.05}') from None


def value_of(text: str) -> Any:
    """Return the value of an assignment on the command line."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def checked(name: str, given: Any) -> tuple | dict[str, Any]:
    """Return a parameter as a space has it, or raise ValueError."""
    if name not in (*argument_names(), 'elu_param') or name in OTHERS:
        raise ValueError(f'{name!r} is no argument of GRU4Rec that can be searched')
    kind, values = (given.get(key) for key in ('dtype', 'values')) if isinstance(given, dict) else (None, None)
    if kind not in ('int', 'float', 'categorical') or not isinstance(values, list) or len(values) < 2:
        raise ValueError(f"{name} needs dtype, 'int', 'float' or 'categorical', and values, a list of the lowest and "
                         f'the highest, or of the categories; got {given!r}')
    if unknown := given.keys() - {'dtype', 'values', 'step', 'log'}:
        raise ValueError(f'{name} has {sorted(unknown)[0]!r}, which is none of dtype, values, step and log')
    if kind == 'categorical':
        if wrong := [value for value in values if not isinstance(value, bool | int | float | str | None)]:
            raise ValueError(f'{name} has {wrong[0]!r}, which is no number, text or truth value; layers are written '
                             'as "100/50"')
        return tuple(values)
    step, log = given.get('step'), bool(given.get('log'))
    numbers = (int,) if kind == 'int' else (int, float)
    if len(values) != 2 or not all(isinstance(value, numbers) and math.isfinite(value) for value in values) or (
            values[0] >= values[1] or log and values[0] <= 0):
        raise ValueError(f"values of {name}, {values!r}, must be the lowest and the highest {kind}{', above 0' * log}")
    if step is not None and (log or not isinstance(step, numbers) or not 0 < step <= values[1] - values[0]):
        raise ValueError(f"step of {name}, {step!r}, must be {kind}, above 0 and at most the range, and does not go "
                         'with log')
    if step:  # the highest value that it reaches
        highest = values[0] + math.floor((values[1] - values[0]) / step + 1e-9) * step
        values = [values[0], rounded({name: highest})[name]]
    return {'dtype': kind, 'values': values, 'step': step, 'log': log}


def check_networks(space: Space) -> Space:
    """Return a space; ValueError or TypeError that names the arguments of a network in it that cannot be trained."""
    if not space.parameters:
        raise ValueError('has no parameters to search')
    if unknown := space.fixed.keys() - {*argument_names(), 'elu_param'}:
        raise ValueError(f'{sorted(unknown)[0]!r} is no argument of GRU4Rec')
    if 'layers' not in space.fixed | space.parameters:
        raise ValueError('layers are missing, such as --fixed layers=100')
    points = itertools.product(*map(extremes, space.parameters.values()))
    for values in itertools.islice(points, N_CHECKED):
        arguments = space.fixed | dict(zip(space.parameters, values))
        check_arguments(GRU4Rec(**network_arguments(arguments)))
    return space


def network_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `gru4rec.GRU4Rec` for those of a space: layers as a list, no embedding of width 0.

    The authors' PyTorch code has ``elu_param`` in place of ``final_act``, which is accepted too.
    """
    found = parameters.with_final_act(given)
    layers = found.get('layers')
    if isinstance(layers, int | str) and str(layers).replace('/', '').isdecimal():
        found['layers'] = [int(units) for units in str(layers).split('/')]
    if 'embedding' in found:
        found['embedding'] = parameters.embedding_of({'constrained_embedding': False} | found)
    return found


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
    """Return the point of a trial, with numbers of six digits."""
    point = {}
    for name, given in space.items():
        if isinstance(given, dict):
            suggest: Any = trial.suggest_int if given['dtype'] == 'int' else trial.suggest_float
            options = {key: given[key] for key in ('step', 'log') if given[key]}
            point[name] = suggest(name, *given['values'], **options)
        else:
            point[name] = trial.suggest_categorical(name, given)
    return rounded(point)


def rounded(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with numbers of six digits, which steps such as 0.05 are not.

    >>> rounded({'momentum': 0.1 + 0.2, 'batch_size': 1234567})
    {'momentum': 0.3, 'batch_size': 1234567}
    """
    return {name: float(f'{value:.6g}') if isinstance(value, float) else value for name, value in point.items()}
