"""Text files with a header as frames: delimiters, quotation marks, and the line of each row.

A quotation mark before a field promises another one behind it, and everything between them, line ends included, is one
field.  If the second mark is missing, a reader that trusts the first one swallows the rows up to the next mark.  So
marks are trusted only where they must be: if every line by itself has as many fields as the header, each line is a row.
Otherwise fields may span lines, unless these lines look like rows, which is an error.
"""
from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pandas as pd

from gru4rec_pytensor.files import BLOCK_BYTES, whole_lines

DELIMITERS = {'\t': 'tabs', ',': 'commas', ';': 'semicolons', '|': 'bars'}
NEWLINE, RETURN, QUOTE = b'\n\r"'
MAX_HEADER_BYTES = 1 << 22
ODD_NUMBER = re.compile(rb'[\t,;|\n][ "]*(?:\+|-?0\d|-0)')  # loses something as a number: +7, 007, -0
ODD_STARTS = [*b' "+-0']
BLANK = ' \t\r\n'  # letters of lines that pandas skips, but for the delimiter
END_OF_FILE = '\0end of file'


class TextTable(NamedTuple):
    """Text file with a header, examined but not read yet."""
    file: BinaryIO
    title: str  # what messages call it
    names: list[str]  # of its columns
    delimiter: str
    quoting: Literal[0, 3]  # csv.QUOTE_MINIMAL, or csv.QUOTE_NONE where marks are letters like others
    closed: bool  # whether marks stand around fields only, each pair within a line
    odd_numbers: bool  # whether a field may be an `ODD_NUMBER`


def open_table(file: BinaryIO, title: str, value_of: Callable[[list[str]], int]) -> TextTable:
    """Examine a text file, see `files.plain_text`: its header, its delimiter and its quotation marks.

    `value_of` says how good names of columns are; the delimiter is the one by which the header is best.  ValueError if
    it is no text, or a row has more fields than the header.
    """
    head = head_of(file, title)
    names = {delimiter: header_names(head, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda found: (value_of(names[found]), len(names[found])))
    n = len(names[delimiter])
    same_length, closed, whole, too_long, odd_numbers = look_through(file, delimiter, n - 1)
    if too_long and closed:
        raise ValueError(f'{title}, line {too_long[0]}: has {too_long[1]} fields, but the header has {n}')
    quoting: Literal[0, 3] = csv.QUOTE_NONE if same_length and not (closed and whole) else csv.QUOTE_MINIMAL
    return TextTable(file, title, names[delimiter], delimiter, quoting, closed, odd_numbers)


def clean(text: str) -> str:
    """Strip spaces and quotation marks from around a field.

    >>> clean(' "a ""b"" c" '), clean('"Live')
    ('a "b" c', '"Live')
    """
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def header_names(head: str, delimiter: str) -> list[str]:
    """Return the names of the columns from text that begins with a header; names in quotation marks may hold anything.

    >>> header_names('a, "b, c", "d"', ','), header_names('a,5" b,"c', ',')
    (['a', 'b, c', 'd'], ['a', '5" b', '"c'])
    """
    line = re.split(r'[\r\n]', head, maxsplit=1)[0]
    if '"' in line:
        with contextlib.suppress(csv.Error):  # a mark that does not stand at the end of a name, or has no second one
            reader = csv.reader(io.StringIO(head, newline=''), delimiter=delimiter, skipinitialspace=True, strict=True)
            return [name.strip() for name in next(reader)]
    return [clean(name) for name in line.split(delimiter)]


def head_of(file: BinaryIO, title: str) -> str:
    """Return the first lines, from the first that is not blank; ValueError if this is no text with lines."""
    file.seek(0)
    line = b'\n'
    while line and not line.strip():
        line = file.readline(MAX_HEADER_BYTES)
    if not line:
        raise ValueError(f'{title}: is empty')
    if b'\0' in line[: 1 << 13]:
        raise ValueError(f'{title}: is a binary file, not text')
    if len(line) == MAX_HEADER_BYTES:
        raise ValueError(f'{title}: its first line is longer than {MAX_HEADER_BYTES >> 20} MiB')
    if line.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError(f'{title}: is a web page, not a log: was the download refused?')
    if line.lstrip().startswith((b'{', b'[{')):
        raise ValueError(f'{title}: is JSON, not a table; write it as CSV or Parquet first, a row for each event '
                         "(of OTTO, session, aid and ts)")
    try:
        line.decode()
    except UnicodeDecodeError:
        raise ValueError(f'{title}: is not UTF-8 text') from None
    more = file.read(MAX_HEADER_BYTES) if b'"' in line else b''  # a name in quotation marks may span lines
    return (line + more).lstrip(b' ').decode(errors='replace')  # what follows is read, and judged, later


def look_through(file: BinaryIO, delimiter: str,
                 n_delimiters: int) -> tuple[bool, bool, bool, tuple[int, int] | None, bool]:
    """Count the fields of every line and examine its quotation marks, block by block, with NumPy.

    Returns
    -------
    same_length : whether lines that are not blank have as many fields as the header, if marks are letters like others
    closed : whether quotation marks stand around fields only, each pair within a line
    whole : like same_length, if marks are closed and hold fields together
    too_long : number of the first line that then has more fields, and how many
    odd_numbers : whether a field may be an `ODD_NUMBER`
    """
    same = closed = whole = True
    too_long, odd_numbers, n_lines = None, False, 0
    blank = [ord(letter) for letter in BLANK if letter != delimiter]
    file.seek(0)
    for text in whole_lines(iter(lambda: file.read(BLOCK_BYTES), b'')):
        letters = np.frombuffer(text, np.uint8)
        ends, separators, marks = (np.flatnonzero(letters == code) for code in (NEWLINE, ord(delimiter), QUOTE))
        counts = outside = np.diff(np.searchsorted(separators, ends), prepend=0)
        if marks.size:
            closed = closed and _are_closed(letters, marks, ends, ord(delimiter))
            parted = separators[np.searchsorted(marks, separators) % 2 == 0]
            outside = np.diff(np.searchsorted(parted, ends), prepend=0)
        other = np.array([counts, outside]) != n_delimiters
        if other.any():  # lines that pandas skips do not count
            other &= np.logical_or.reduceat(~np.isin(letters, blank), np.append(0, ends[:-1] + 1))
        same, whole = same and not other[0].any(), whole and not other[1].any()
        longer = np.flatnonzero(outside > n_delimiters)
        if longer.size and not too_long:
            too_long = n_lines + int(longer[0]) + 1, int(outside[longer[0]]) + 1
        starts = np.concatenate([[0], separators + 1, ends[:-1] + 1])
        if not odd_numbers and np.isin(letters[starts], ODD_STARTS).any():  # which is found faster
            odd_numbers = bool(ODD_NUMBER.search(b'\n' + text))
        n_lines += len(ends)
    return same, closed, whole, too_long, odd_numbers


def _are_closed(letters: np.ndarray, marks: np.ndarray, ends: np.ndarray, delimiter: int) -> bool:
    """Return whether marks come in pairs around fields, doubled ones inside, with no line end between them."""
    if marks.size % 2 or (np.searchsorted(marks, ends) % 2).any():
        return False
    before, behind = letters[marks[::2] - 1], letters[marks[1::2] + 1]
    if marks[0] == 0:
        before[0] = NEWLINE
    return bool(np.isin(before, [delimiter, NEWLINE, QUOTE]).all()
                and np.isin(behind, [delimiter, NEWLINE, RETURN, QUOTE]).all())


def records(table: TextTable) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the number of the first line, the fields and the lines of every record that is not blank."""
    lines: list[str] = []

    def kept() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line
        yield END_OF_FILE
    start, blank = 1, BLANK.replace(table.delimiter, '')
    table.file.seek(0)
    file = io.TextIOWrapper(table.file, encoding='utf-8', newline='')
    reader = csv.reader(kept(), delimiter=table.delimiter, quoting=table.quoting, skipinitialspace=True)
    try:
        for fields in reader:
            if len(lines) > 1 or lines and lines[0].strip(blank):
                yield start, fields, lines
            start += len(lines)
            lines.clear()
    except UnicodeDecodeError:
        raise ValueError(f'{table.title}: is not UTF-8 text') from None
    except csv.Error as error:
        raise ValueError(f'{table.title}, line {start}: {error}; is a quotation mark missing?') from None
    finally:
        file.detach()


def line_of(table: TextTable, row: int) -> int:
    """Return the number of the line where a row, counted from 0, begins."""
    return next(start for k, (start, _fields, _lines) in enumerate(records(table)) if k == row + 1)


def check_records(table: TextTable, time: str) -> None:
    """Raise ValueError for a row that is too long, or a field that swallows rows, each with something like a `time`."""
    n, place = len(table.names), table.names.index(time)
    for start, fields, lines in records(table):
        if fields and fields[-1].endswith(END_OF_FILE):
            raise ValueError(f'{table.title}, line {start}: a quotation mark is opened and never closed')
        if len(lines) > 1 and lines[0].count(table.delimiter) >= n - 1:
            for line in lines[1:]:
                alone = line.split(table.delimiter)
                if len(alone) >= n and re.fullmatch(r'[\d\s.:TZUC+"-]+', alone[place]):
                    raise ValueError(f'{table.title}, line {start}: a quotation mark is opened there and closed in '
                                     f'line {start + len(lines) - 1}, and what is between looks like rows; close it in '
                                     'its line, or leave it out')
        if len(fields) > n:
            raise ValueError(f'{table.title}, line {start}: has {len(fields)} fields, but the header has {n}')


def read_table(table: TextTable, columns: list[str], ids: list[str], time: str) -> pd.DataFrame:
    """Read columns of a file, rows in its order; `ids` are int64 if all of a column are whole numbers, else text.

    Numbers are read ten times faster than text, and take a tenth of the room; but the ids 007 and 7 are not the same.
    """
    if table.quoting == csv.QUOTE_MINIMAL and not table.closed:
        check_records(table, time)
    labels = [name if name in columns else f'{place}: {name}' for place, name in enumerate(table.names)]
    options = dict(sep=table.delimiter, quoting=table.quoting, names=labels, header=0, usecols=columns,
                   keep_default_na=False, encoding='utf-8', skipinitialspace=True, index_col=False, low_memory=False)

    def parsed(**types: Any) -> pd.DataFrame:
        table.file.seek(0)
        return pd.read_csv(table.file, **types, **options)
    try:
        if table.quoting == csv.QUOTE_NONE:
            frame = parsed(dtype=str)
            return frame.apply(lambda values: values.map(clean, na_action='ignore'))[columns]
        frame = None if table.odd_numbers else parsed()
        text = [name for name in ids if frame is None or frame[name].dtype != 'int64']
        if text:
            frame = parsed(dtype=dict.fromkeys(text, str))
        return frame[columns]
    except UnicodeDecodeError:
        raise ValueError(f'{table.title}: is not UTF-8 text') from None
    except pd.errors.ParserError as error:
        message = str(error).strip().removeprefix('Error tokenizing data. C error: ')
        raise ValueError(f'{table.title}: {message}') from None
