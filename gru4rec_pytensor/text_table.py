"""A text file with a header as a frame: what separates its fields, what its quotation marks mean, which line is which.

A quotation mark before a field promises another one behind it, and whatever stands between them, line ends too, is one
field.  Where the second one is missing, a reader that trusts the first swallows the rows up to the next quotation mark.
So marks are trusted only where they have to be: if every line by itself has as many fields as the header, each line is
a row.  Else fields may span lines, unless those lines look like rows of their own, which is an error.
"""
from __future__ import annotations

import csv
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from gru4rec_pytensor.files import BLOCK_BYTES, whole_lines

DELIMITERS = {'\t': 'tabs', ',': 'commas', ';': 'semicolons', '|': 'bars'}
NEWLINE, RETURN, QUOTE = b'\n\r"'
MAX_HEADER_BYTES = 1 << 16
END_OF_FILE = '\0end of file'


class TextTable(NamedTuple):
    """A text file with a header, looked through but not read yet."""
    path: Path
    title: str  # what messages call it
    names: list[str]  # of its columns
    delimiter: str
    quoting: Literal[0, 3]  # csv.QUOTE_MINIMAL, or csv.QUOTE_NONE where marks are letters like others
    is_quoted: bool  # whether there are quotation marks


class Lines(NamedTuple):
    """What `look_through` found."""
    has_quotes: bool
    plain_quotes: bool  # whether all of them are around whole fields without delimiter, line end and mark in them
    same_length: bool  # whether every line that is not blank has as many fields as the header
    too_long: tuple[int, int] | None  # number of the first line with more fields, and how many


def open_table(path: Path, title: str, value_of: Callable[[list[str]], tuple]) -> TextTable:
    """Look a text file through.

    Parameters
    ----------
    path : of plain UTF-8 text, see `files.plain_text`
    title : what to call the file in messages
    value_of : names of columns -> how good they are; the delimiter is the one by which the header is best

    Raises
    ------
    ValueError if it is no text, or a row has more fields than the header
    """
    line = header_line(path, title)
    names = {delimiter: [clean(name) for name in line.split(delimiter)] for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda found: (value_of(names[found]), len(names[found])))
    lines = look_through(path, delimiter, line.count(delimiter))
    if lines.too_long and not lines.has_quotes:
        raise ValueError(f'{title}, line {lines.too_long[0]}: has {lines.too_long[1]} fields, but the header has '
                         f'{len(names[delimiter])}')
    trusted = not lines.same_length or lines.plain_quotes
    return TextTable(path, title, names[delimiter], delimiter, csv.QUOTE_MINIMAL if trusted else csv.QUOTE_NONE,
                     lines.has_quotes)


def clean(text: str) -> str:
    """A field without spaces and quotation marks around it.

    >>> clean(' "a ""b"" c" '), clean('"Live')
    ('a "b" c', '"Live')
    """
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def header_line(path: Path, title: str) -> str:
    """The first line that is not blank; ValueError if this is no text with lines."""
    with open(path, 'rb') as file:
        sample = file.read(MAX_HEADER_BYTES)
    if not sample.strip():
        raise ValueError(f'{title}: is empty')
    if b'\0' in sample[: 1 << 13]:
        raise ValueError(f'{title}: is a binary file, not text')
    if sample.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError(f'{title}: is a web page, not a log: was the download refused?')
    try:
        return sample.lstrip(b' \r\n').splitlines()[0].decode()
    except UnicodeDecodeError:
        raise ValueError(f'{title}: is not UTF-8 text') from None


def look_through(path: Path, delimiter: str, n_delimiters: int) -> Lines:
    """Count the fields of every line, quotation marks ignored, and look at those; block by block, with NumPy."""
    has_quotes, plain, same, too_long, n_lines = False, True, True, None, 0
    with open(path, 'rb') as file:
        for text in whole_lines(iter(lambda: file.read(BLOCK_BYTES), b'')):
            letters = np.frombuffer(text, np.uint8)
            ends, separators = np.flatnonzero(letters == NEWLINE), np.flatnonzero(letters == ord(delimiter))
            counts = np.diff(np.searchsorted(separators, ends), prepend=0)
            marks = np.flatnonzero(letters == QUOTE)
            has_quotes |= marks.size > 0
            plain = plain and _are_plain(letters, marks, separators, ends)
            for k in np.flatnonzero(counts != n_delimiters) if same or not too_long else ():
                start = ends[k - 1] + 1 if k else 0
                same = same and is_blank(text[start : ends[k]].decode(errors='replace'), delimiter)
                if counts[k] > n_delimiters and not too_long:
                    too_long = n_lines + int(k) + 1, int(counts[k]) + 1
                if too_long and not same:
                    break
            n_lines += len(ends)
    return Lines(has_quotes, plain, same, too_long)


def _are_plain(letters: np.ndarray, marks: np.ndarray, separators: np.ndarray, ends: np.ndarray) -> bool:
    """Whether all quotation marks are pairs around whole fields that need none."""
    if marks.size % 2:
        return False
    before, behind = marks[::2] - 1, marks[1::2] + 1
    around = [np.where(before < 0, NEWLINE, letters[before]), letters[np.minimum(behind, letters.size - 1)]]
    separator = letters[separators[0]] if separators.size else NEWLINE
    return bool(np.isin(around[0], [separator, NEWLINE]).all()
                and np.isin(around[1], [separator, NEWLINE, RETURN]).all()
                and all((np.searchsorted(border, before) == np.searchsorted(border, behind - 1)).all()
                        for border in (separators[~np.isin(separators, before)], ends[~np.isin(ends, before)])))


def is_blank(line: str, delimiter: str) -> bool:
    """Whether a line is one that pandas skips."""
    return not line.strip(' \t\r\n'.replace(delimiter, ''))


def records(table: TextTable) -> Iterator[tuple[int, list[str], list[str]]]:
    """Every record of a file, blank lines left out: number of its first line, its fields, and its lines."""
    lines: list[str] = []

    def kept() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line
        yield END_OF_FILE
    start = 1
    with open(table.path, encoding='utf-8', newline='') as file:
        reader = csv.reader(kept(), delimiter=table.delimiter, quoting=table.quoting, skipinitialspace=True)
        try:
            for fields in reader:
                if lines and not (len(lines) == 1 and is_blank(lines[0], table.delimiter)):
                    yield start, fields, lines
                start += len(lines)
                lines.clear()
        except UnicodeDecodeError:
            raise ValueError(f'{table.title}: is not UTF-8 text') from None
        except csv.Error as error:
            raise ValueError(f'{table.title}, line {start}: {error}; is a quotation mark missing?') from None


def line_of(table: TextTable, row: int) -> int:
    """Number of the line where a row, counted from 0, begins."""
    return next(start for k, (start, _fields, _lines) in enumerate(records(table)) if k == row + 1)


def check_records(table: TextTable, time: str) -> None:
    """ValueError for a row that is too long, or a field that swallows what looks like rows, with a `time` in each."""
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
    """These columns of a file, rows in its order; `ids` are int64 where all of a column are whole numbers, else text.

    Numbers are read ten times faster than text, and take a tenth of the room; but the ids 007 and 7 are not the same.
    """
    if table.is_quoted and table.quoting == csv.QUOTE_MINIMAL:
        check_records(table, time)
    labels = [name if name in columns else f'{place}: {name}' for place, name in enumerate(table.names)]
    options = dict(sep=table.delimiter, quoting=table.quoting, names=labels, header=0, usecols=columns,
                   keep_default_na=False, encoding='utf-8', skipinitialspace=True, index_col=False, low_memory=False)
    try:
        if table.is_quoted and table.quoting == csv.QUOTE_NONE:
            frame = pd.read_csv(table.path, dtype=str, **options)
            return frame.apply(lambda values: values.map(clean, na_action='ignore'))[columns]
        frame = None if may_have_leading_zeros(table) else pd.read_csv(table.path, **options)
        if frame is None or any(frame[name].dtype != 'int64' for name in ids):
            frame = pd.read_csv(table.path, dtype=dict.fromkeys(ids, str), **options)
        return frame[columns]
    except UnicodeDecodeError:
        raise ValueError(f'{table.title}: is not UTF-8 text') from None
    except pd.errors.ParserError as error:
        message = str(error).strip().removeprefix('Error tokenizing data. C error: ')
        raise ValueError(f'{table.title}: {message}') from None


def may_have_leading_zeros(table: TextTable) -> bool:
    """Whether a field begins like 007 or +7: a number would lose that."""
    pattern = re.compile(rb'(?:^|["\n' + re.escape(table.delimiter).encode() + rb'])[ ]*(?:\+|-?0[0-9]|-0)')
    with open(table.path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return pattern.search(text) is not None
