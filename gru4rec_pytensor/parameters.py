"""Files of a network's parameters: TOML files such as those in ``parameters/``, and the authors' own Python files.

A TOML file says what it is (`title`, `data`), where it is published (`source`), and in the table `parameters` the
arguments of `gru4rec.GRU4Rec`, the others being at their defaults; what was reached with those in ``parameters/`` is in
`experiments.published`.  The authors' files assign ``gru4rec_params = OrderedDict([('loss', 'bpr-max'), ...])``.  They
are taken apart as text, and nothing of them is executed; what they do not name is at the defaults of the release that
they are for.
"""
from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gru4rec_pytensor.arguments import argument_names
from gru4rec_pytensor.checks import warn

# The later release's arguments, in the order of its constructor, and their defaults.
LATER_DEFAULTS: dict[str, Any] = dict(
    loss='bpr-max', final_act='linear', hidden_act='tanh', layers=(100,), n_epochs=10, batch_size=32,
    dropout_p_hidden=0.0, dropout_p_embed=0.0, learning_rate=0.1, momentum=0.0, lmbd=0.0, embedding=0, n_sample=2048,
    sample_alpha=0.75, smoothing=0.0, constrained_embedding=False, adapt='adagrad', adapt_params=(), grad_cap=0.0,
    bpreg=1.0, logq=0.0, sigma=0.0, init_as_normal=False, train_random_order=False, time_sort=True,
    session_key='SessionId', item_key='ItemId', time_key='Time')

# Values that are refused, and what to do instead.
SOFTMAX = "loss='cross-entropy' with final_act='softmax' is the same unless a probability is below 1e-17"
NOT_TAKEN_OVER = {
    ('adapt', 'adam'): "the release's has two mistakes, and lets the weights of items fall only; use 'adagrad'",
    ('adapt', 'adadelta'): "no published setting uses it; use 'adagrad'",
    ('loss', 'xe_logit'): SOFTMAX, ('final_act', 'softmax_logit'): SOFTMAX,
}
# Values that are accepted, and mean what they do in the 2016 release.
OF_2016 = {
    ('loss', 'top1'): 'the mean over lanes and items; the later release multiplies it by the number of lanes',
    ('loss', 'bpr'): 'the mean over lanes and items; the later release takes the sum over items',
    ('adapt', 'rmsprop'): 'each occurrence of a repeated item has an average of its own; the later release adds up '
                          'their squares',
}


class ParameterFile(NamedTuple):
    """Contents of a file of parameters; the authors' files have the arguments alone."""
    arguments: dict[str, Any]  # of `gru4rec.GRU4Rec`, whose values need not be valid
    title: str = ''  # of the row of the publication
    data: str = ''
    source: str = ''


def read(path: str | Path) -> ParameterFile:
    """Read a file of parameters: ``.toml``, or ``.py`` for the authors' files; ValueError names the file."""
    path = Path(path)
    if path.suffix not in ('.toml', '.py'):
        raise ValueError(f"{path}: a file of parameters must end in .toml, or in .py if it is one of the authors'")
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file of parameters')
    try:
        text = path.read_text(encoding='utf-8')
        return of_toml(text) if path.suffix == '.toml' else ParameterFile(of_authors_file(text))
    except ValueError as error:  # those of tomllib and of the encoding are such errors, too
        raise ValueError(f'{path}: {error}') from None


def of_toml(text: str) -> ParameterFile:
    """Read the text of a TOML file of parameters."""
    found = tomllib.loads(text)
    if unknown := found.keys() - {'title', 'data', 'source', 'parameters'}:
        raise ValueError(f'has the unknown name {sorted(unknown)[0]!r}; allowed are title, data, source and the table '
                         '[parameters]')
    given = found.get('parameters')
    if not isinstance(given, dict):
        raise ValueError('has no table [parameters]')
    if unknown := given.keys() - argument_names():
        raise ValueError(f'{sorted(unknown)[0]!r} is no argument of GRU4Rec')
    if 'layers' not in given:
        raise ValueError('layers are missing, such as layers = [100]')
    for name in ('title', 'data', 'source'):
        if not isinstance(found.get(name, ''), str):
            raise ValueError(f'{name} = {found[name]!r}: must be text')
    return ParameterFile(found.pop('parameters'), **found)


def of_authors_file(text: str) -> dict[str, Any]:
    """Read the arguments of `gru4rec.GRU4Rec` from one of the authors' Python files; nothing of it is executed.

    Their PyTorch code has ``elu_param`` in place of ``final_act``, which is accepted too.
    """
    wanted = "gru4rec_params = OrderedDict([('loss', 'bpr-max'), ...]) with literal values"
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f'line {error.lineno}: {error.msg}; must assign {wanted}') from None
    assigned = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)
                and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    if len(assigned) != 1 or not isinstance(assigned[0], ast.Assign) or [
            getattr(target, 'id', None) for target in assigned[0].targets] != ['gru4rec_params']:
        raise ValueError(f'must assign one thing, {wanted}, and do nothing else')
    value = assigned[0].value
    if isinstance(value, ast.Call) and getattr(value.func, 'id', None) in ('OrderedDict', 'dict') and (
            len(value.args) == 1 and not value.keywords):
        value = value.args[0]
    try:
        arguments = dict(ast.literal_eval(value))
    except (ValueError, TypeError):
        raise ValueError(f'line {assigned[0].lineno}: must be {wanted}; nothing is computed') from None
    return of_later_release(with_final_act(arguments))


def with_final_act(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with `final_act` in place of `elu_param`, if that is there."""
    arguments = dict(given)
    if 'elu_param' in arguments:
        elu = arguments.pop('elu_param')
        otherwise = 'softmax' if arguments.get('loss') == 'cross-entropy' else 'linear'
        arguments['final_act'] = f'elu-{elu}' if elu else otherwise
    return arguments


def of_later_release(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `gru4rec.GRU4Rec` that mean what `given` means to the authors' later release (2018-2023).

    ValueError, in one sentence, for a name that it does not have, and for what is not taken over.  A warning names what
    is ignored, as the release does, or has the meaning of the 2016 release.
    """
    if unknown := given.keys() - LATER_DEFAULTS.keys():
        raise ValueError(f'{sorted(map(str, unknown))[0]!r} is no argument of the later release, which has '
                         f'{", ".join(LATER_DEFAULTS)}')
    arguments = LATER_DEFAULTS | dict(given)
    for (name, value), reason in NOT_TAKEN_OVER.items():
        if arguments[name] == value:
            raise ValueError(f'{name}={value!r} is not taken over: {reason}')
    for (name, value), meaning in OF_2016.items():
        if arguments[name] == value:
            warn(f'{name}={value!r} is that of the 2016 release: {meaning}')
    smoothing, adapt_params = arguments.pop('smoothing'), arguments.pop('adapt_params')
    if smoothing:
        raise ValueError(f'smoothing={smoothing!r} is not taken over: no published setting uses it; leave it at 0')
    if arguments['adapt'] == 'rmsprop':
        if not isinstance(adapt_params, list | tuple) or len(adapt_params) != 1:
            raise ValueError(f"adapt_params={adapt_params!r}: adapt='rmsprop' needs a list of one number, the decay, "
                             'such as [0.9]')
        arguments['decay'] = adapt_params[0]
    arguments['layers'] = [*arguments['layers']] if isinstance(arguments['layers'], tuple) else arguments['layers']
    arguments['embedding'] = embedding_of(arguments)
    p = arguments['dropout_p_embed']
    if p and not (arguments['embedding'] or arguments['constrained_embedding']):
        warn(f'dropout_p_embed={p!r} is ignored: there is no embedding')
        arguments['dropout_p_embed'] = 0.0
    return arguments | {'drop_tail': False, 'equal_times': 'frame'}


def embedding_of(arguments: Mapping[str, Any]) -> int | None:
    """Return the width of the embedding that the later release makes; None with one matrix for both ends."""
    embedding = arguments['embedding']
    if arguments['constrained_embedding'] or embedding in (0, None):
        return None
    if embedding != 'layersize':
        return embedding
    layers = arguments['layers']
    if not isinstance(layers, list | tuple) or not layers:
        raise ValueError(f"layers={layers!r}: embedding='layersize' needs a list of numbers of units")
    return layers[0]
