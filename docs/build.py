"""Run the Python blocks of documents, one after another, and write after each what it printed and drew.

    python docs/build.py

writes docs/walkthrough.md again, with the pictures in docs/walkthrough/, and docs/walkthrough.ipynb, the same as a
notebook; then the recipes of CONTRIBUTING.md.  `pytest -m promise tests/test_docs.py` also runs the blocks of the
walk-through, and fails where they do not print what is written.
"""
from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # the project, and what the walk-through imports from its own folder
import pytensor

DOCUMENT = DOCS / 'walkthrough.md'
RECIPES = DOCS.parent / 'CONTRIBUTING.md'

# A block of code, what it printed, if anything, and the picture that it drew, if any.
BLOCK = re.compile(r'```python(?: PyTensor (?P<version>[\d.]+))?\n(?P<code>.*?)^```\n'
                   r'(?P<output>\n```text\n(?P<text>.*?)^```\n)?'
                   r'(?P<image>\n!\[(?P<alternative>[^]]*)\]\((?P<path>[^)]*)\)\n)?', re.MULTILINE | re.DOTALL)


class Result(NamedTuple):
    """A block that was run."""
    block: re.Match
    text: str  # what it printed, and the value of its last line, as a notebook shows it
    svg: str | None  # the picture that was the value of its last line


def is_comparable(block: re.Match) -> bool:
    """Return whether a block prints the same here: some name the version of PyTensor whose output they show."""
    return not block['version'] or pytensor.__version__.startswith(f"{block['version']}.")


def run(document: str, name: str, namespace: dict | None = None) -> list[Result]:
    """Run all Python blocks of a document in one namespace; `name` is that of the file, for error messages."""
    namespace = {'__name__': '__main__'} if namespace is None else namespace
    results = []
    for block in BLOCK.finditer(document):
        line = document[:block.start()].count('\n') + 1
        tree = ast.parse('\n' * line + block['code'], name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, name, 'exec', dont_inherit=True), namespace)
            value = None
            if last:
                value = eval(compile(ast.Expression(last.value), name, 'eval', dont_inherit=True), namespace)
        svg = value._repr_svg_() if hasattr(value, '_repr_svg_') else None
        shown = f'{value!r}\n' if value is not None and svg is None else ''
        results.append(Result(block, printed.getvalue() + shown, svg))
    return results


def written(document: str, results: list[Result]) -> str:
    """Return the document with the outputs of its blocks; the lines of pictures stay as they are."""
    texts = iter(results)

    def replaced(block: re.Match) -> str:
        result = next(texts)
        if (result.svg is None) != (block['path'] is None):
            raise ValueError(f'{block["code"]}: a picture, and a line ![...](...) for it, must go together')
        code = document[block.start():block.start('output') if block['output'] else
                        block.start('image') if block['image'] else block.end()]
        output = f'\n```text\n{result.text}```\n' if result.text else ''
        return code + output + (block['image'] or '')
    return BLOCK.sub(replaced, document)


def notebook(document: str, results: list[Result]) -> str:
    """Return the document as a Jupyter notebook, outputs included."""
    import nbformat
    from nbformat import v4

    cells, end = [], 0
    for number, result in enumerate(results, 1):
        if text := document[end:result.block.start()].strip():
            cells.append(v4.new_markdown_cell(text))
        outputs = [v4.new_output('stream', text=result.text)] if result.text else []
        if result.svg:
            data = {'image/svg+xml': result.svg, 'text/plain': result.block['alternative']}
            outputs.append(v4.new_output('display_data', data=data))
        cells.append(v4.new_code_cell(result.block['code'].rstrip('\n'), outputs=outputs, execution_count=number))
        end = result.block.end()
    cells.append(v4.new_markdown_cell(document[end:].strip()))
    for number, cell in enumerate(cells):
        cell['id'] = f'cell-{number}'  # nbformat would draw it at random
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
    return nbformat.writes(v4.new_notebook(cells=cells, metadata=kernel)) + '\n'


def main() -> None:
    """Run the documents and write them again."""
    document = DOCUMENT.read_text(encoding='utf-8')
    if not all(map(is_comparable, BLOCK.finditer(document))):
        sys.exit(f'{DOCUMENT.name} shows the output of another PyTensor than {pytensor.__version__}: use that one')
    results = run(document, DOCUMENT.name)
    for result in results:
        if result.svg:
            path = DOCUMENT.parent / result.block['path']
            path.parent.mkdir(exist_ok=True)
            path.write_text(result.svg, encoding='utf-8')
    DOCUMENT.write_text(written(document, results), encoding='utf-8')
    DOCUMENT.with_suffix('.ipynb').write_text(notebook(document, results), encoding='utf-8')
    recipes = RECIPES.read_text(encoding='utf-8')
    RECIPES.write_text(written(recipes, run(recipes, RECIPES.name)), encoding='utf-8')


if __name__ == '__main__':
    main()
