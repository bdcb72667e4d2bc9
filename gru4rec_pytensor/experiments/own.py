"""Rows of one's own in Table 1: classes in modules of the user's, run like the baselines, and lists made elsewhere."""
from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gru4rec_pytensor.files import atomic_file

EXAMPLE = 'my_module:MyModel or my_module:MyModel(k=100)'


class OwnRow(NamedTuple):
    """A row of one's own."""
    model: str  # name of a class, MODULE:CLASS, or 'lists'
    parameters: dict[str, Any]  # its arguments
    source: str  # digits that change with the text of the module's file, or with the lists
    title: str
    is_seeded: bool = False  # whether the class takes a seed that `parameters` does not give
    path: Path | None = None  # file of lists that were made elsewhere, in place of a class


def own_row(text: str | Path, title: str | None = None) -> OwnRow:
    """Return the row of a class, as the command line names it, or of a file of lists.

    The module is imported from the working directory or from where Python looks.  ValueError says what is no model.
    """
    if isinstance(text, Path):
        digits = hashlib.sha256(text.read_bytes()).hexdigest()[:16]
        return OwnRow('lists', {'lists': title or text.stem}, digits, title or text.stem, path=text)
    found = re.fullmatch(r'([\w.]+:\w+)(?:\((.*)\))?', text)
    if not found:
        raise ValueError(f'{text!r}: a model of your own looks like {EXAMPLE}')
    try:
        call: Any = ast.parse(f'f({found[2] or ""})', mode='eval').body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if call.args or None in given:
            raise ValueError('no names')
        parameters = json.loads(json.dumps(given, sort_keys=True))  # as they are kept
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(f'{text}: its arguments must be names with plain values, as in {EXAMPLE}') from None
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    model = own_class(found[1])
    try:
        inspect.signature(model).bind(**parameters)
    except TypeError as error:
        raise ValueError(f'{text}: {error}') from None
    if not hasattr(model, 'fit'):
        raise ValueError(f'{found[1]}: lacks fit(train)')
    if not hasattr(model, 'predict_next') and not hasattr(model, 'predict_next_batch'):
        raise ValueError(f'{found[1]}: lacks predict_next(session_id, input_item_id, predict_for_item_ids), or '
                         'predict_next_batch(session_ids, input_item_ids, predict_for_item_ids, batch)')
    module = sys.modules[found[1].partition(':')[0]]
    is_seeded = 'seed' in inspect.signature(model).parameters and 'seed' not in parameters
    return OwnRow(found[1], parameters, source_digits(module), title or text.partition(':')[2], is_seeded)


def own_class(name: str, source: str | None = None, folder: Path | None = None) -> type:
    """Return the class MODULE:CLASS; ValueError if it cannot be imported.

    source : digits that the text of its module must have
    folder : of copies of modules, see `keep_source`, which go before what lies elsewhere
    """
    module_name, _, class_name = name.partition(':')
    loaded = sys.modules.get(module_name)
    if source and (loaded is None or source_digits(loaded) != source):
        sys.modules.pop(module_name, None)  # an earlier text, in a process that lives long
        if folder and (folder / source / f'{module_name}.py').exists():
            sys.path.insert(0, str(folder / source))
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f'{name}: {module_name} cannot be imported: {type(error).__name__}: {error}') from None
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        raise ValueError(f'{name}: {module_name} has no class {class_name}')
    if source and source_digits(module) != source:
        raise ValueError(f'{name}: {module.__file__} is not the file that the command read: all machines need the same')
    return found


def source_digits(module: ModuleType) -> str:
    """Return digits that change with the text of a module's file."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]


def keep_source(row: OwnRow, folder: Path) -> None:
    """Copy the module of a row into a folder that all workers see, unless it is part of a package."""
    module_name = row.model.partition(':')[0]
    if '.' not in module_name and not hasattr(sys.modules[module_name], '__path__'):
        path = folder / row.source / f'{module_name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file, open(str(sys.modules[module_name].__file__), 'rb') as text:
            shutil.copyfileobj(text, file)
