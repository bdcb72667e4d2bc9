"""Run the Python blocks of documents, one after another, and write after each what it printed and drew.

    python docs/build.py                # all documents
    python docs/build.py solutions      # those with this name

writes the documents again, with the pictures of docs/walkthrough/, and the notebooks of those that have one.
`pytest -m promise tests/test_docs.py` also runs the blocks, and fails where they do not print what is written.

A block of code begins with one of

    ```python                           run; what it prints and draws is written behind it
    ```python PyTensor 3.3              the same, but what it prints is that of this version
    ```python varies                    the same, but what it prints is another on each machine
    ```ipython                          a cell of the notebook only
    ```python source gru4rec.bpr        not run: the code of functions, without docstrings, or of expressions that are
                                        code as text; separated by semicolons
"""
from __future__ import annotations

import ast
import base64
import contextlib
import inspect
import io
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]  # the project, and what draws the picture of docs/later-papers.md
import pytensor

import gru4rec
from gru4rec_pytensor import backends

NOTEBOOKS = (DOCS / 'walkthrough.md', DOCS / 'later-papers.md')
PAGES = (DOCS / 'solutions.md', ROOT / 'CONTRIBUTING.md')

# A block of code, what it printed, if anything, and the picture that it drew, if any.
BLOCK = re.compile(r'^(?P<listing>```(?P<language>i?python)(?: (?P<note>varies|PyTensor [\d.]+))?\n(?P<code>.*?)^```\n)'
                   r'(?P<output>\n```text\n(?P<text>.*?)^```\n)?'
                   r'(?P<image>\n!\[(?P<alternative>[^]]*)\]\((?P<path>[^)]*)\)\n)?', re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r'^```python source (?P<names>[^\n]*)\n.*?^```\n', re.MULTILINE | re.DOTALL)
STORED_PICTURE = re.compile(r'!\[(?P<alternative>[^]]*)\]\((?P<path>[^):]*)\.svg\)')


class Result(NamedTuple):
    """A block that was run."""
    block: re.Match
    text: str = ''  # what it printed, and the value of its last line, as a notebook shows it
    svg: str | None = None  # the picture that was the value of its last line


def is_comparable(block: re.Match) -> bool:
    """Return whether a block prints the same here."""
    return not block['note'] or f'PyTensor {pytensor.__version__}.'.startswith(f"{block['note']}.")


def run(document: str, name: str, namespace: dict | None = None) -> list[Result]:
    """Run all Python blocks of a document in one namespace; `name` is that of the file, for error messages."""
    namespace = {'__name__': '__main__'} if namespace is None else namespace
    results = []
    for block in BLOCK.finditer(document):
        if block['language'] == 'ipython':
            results.append(Result(block))
            continue
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
        output = f'\n```text\n{result.text}```\n' if result.text else ''
        return block['listing'] + output + (block['image'] or '')
    return BLOCK.sub(replaced, document)


def with_sources(document: str) -> str:
    """Return the document with the present code of the functions that it shows."""
    def replaced(block: re.Match) -> str:
        code = '\n\n'.join(map(source_of, block['names'].split('; ')))
        return f"```python source {block['names']}\n{code}```\n"
    return SOURCE.sub(replaced, document)


def source_of(expression: str) -> str:
    """Return the code of a function, without its docstring, or the text that an expression gives."""
    value = eval(expression, {'gru4rec': gru4rec, 'backends': backends})
    if isinstance(value, str):
        return f'{value.strip()}\n'
    lines = inspect.getsource(value).splitlines(keepends=True)
    first = ast.parse(''.join(lines)).body[0].body[0]
    if inspect.getdoc(value):
        end = first.end_lineno + (not lines[first.end_lineno].strip())  # with the blank line behind it
        del lines[first.lineno - 1:end]
    return ''.join(lines)


def notebook(document: str, results: list[Result]) -> str:
    """Return the document as a Jupyter notebook, outputs and pictures included."""
    import nbformat
    from nbformat import v4

    cells, end, number = [], 0, 0
    for result in results:
        cells += text_cells(document[end:result.block.start()])
        outputs = [v4.new_output('stream', text=result.text)] if result.text else []
        if result.svg:
            data = {'image/svg+xml': result.svg, 'text/plain': result.block['alternative']}
            outputs.append(v4.new_output('display_data', data=data))
        is_run = result.block['language'] == 'python'
        number += is_run
        cells.append(v4.new_code_cell(result.block['code'].rstrip('\n'), outputs=outputs,
                                      execution_count=number if is_run else None))
        end = result.block.end()
    cells += text_cells(document[end:])
    for k, cell in enumerate(cells):
        cell['id'] = f'cell-{k}'  # nbformat would draw it at random
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
    return nbformat.writes(v4.new_notebook(cells=cells, metadata=kernel)) + '\n'


def text_cells(text: str) -> list:
    """Return a cell of text, in which pictures from files are attachments, or nothing if there is no text."""
    from nbformat import v4

    text = SOURCE.sub(lambda block: block[0].replace(f" source {block['names']}", '', 1), text).strip()
    attachments = {}

    def attached(found: re.Match) -> str:
        """Attach the picture of benchmarks/ideas.py, whose numbers stand beside it, as PNG: Jupyter attaches no SVG."""
        import ideas

        path, file = DOCS / found['path'], io.BytesIO()
        ideas.picture(json.loads(path.with_suffix('.json').read_text())).savefig(file, format='png', dpi=100)
        attachments[f'{path.name}.png'] = {'image/png': base64.b64encode(file.getvalue()).decode()}
        return f"![{found['alternative']}](attachment:{path.name}.png)"
    text = STORED_PICTURE.sub(attached, text)
    return [v4.new_markdown_cell(text, **({'attachments': attachments} if attachments else {}))] if text else []


def main(names: list[str]) -> None:
    """Run the documents and write them again."""
    for path in [*NOTEBOOKS, *PAGES]:
        if names and path.stem not in names:
            continue
        document = with_sources(path.read_text(encoding='utf-8'))
        if not all(is_comparable(block) or block['note'] == 'varies' for block in BLOCK.finditer(document)):
            sys.exit(f'{path.name} shows the output of another PyTensor than {pytensor.__version__}: use that one')
        results = run(document, path.name)
        for result in results:
            if result.svg:
                (path.parent / result.block['path']).write_text(result.svg, encoding='utf-8')
        path.write_text(written(document, results), encoding='utf-8')
        if path in NOTEBOOKS:
            path.with_suffix('.ipynb').write_text(notebook(document, results), encoding='utf-8')


if __name__ == '__main__':
    main(sys.argv[1:])
