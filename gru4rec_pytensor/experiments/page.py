"""Pieces of an HTML page in a single file: paragraphs, tables, and pictures as SVG.

Pictures are drawn by Matplotlib, an extra; without it the page says so in their place.
"""
from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that people with colour-blindness can tell apart (Okabe and Ito); each line also has a marker of its own.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#555555')
MARKERS = {'o': '●', 's': '■', 'D': '◆', '^': '▲', 'v': '▼', 'P': '✚', 'X': '✖'}  # Matplotlib's, and as text

CSS = """
:root { color-scheme: light; --ink: #1a1a1a; --muted: #5a5a5a; --line: #d5d5d5; --better: #d9efe3; --worse: #f9dfd3; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
.notice { border-left: .4rem solid #E69F00; background: #fdf4df; padding: .6rem 1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.caption { color: var(--muted); margin: 1.4rem 0 .4rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); }
td.number, th.number { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
td.better { background: var(--better); } td.worse { background: var(--worse); }
th.number { white-space: normal; } td { max-width: 40rem; } td:first-child { max-width: 24rem; }
@media (max-width: 40rem) { td:first-child { max-width: 8rem; } }
figure { margin: 1rem 0; } figcaption { color: var(--muted); }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; } .panels svg { flex: 1 1 19rem; min-width: 0; height: auto; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0; margin: .3rem 0; }
pre { background: #f4f4f4; padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10.5pt; padding: 0; } .scroll { overflow: visible; }
  table { font-size: 8.5pt; } th, td { padding: .2rem .35rem; } .panels svg { flex-basis: 8cm; }
  td.number, th.number, td:first-child { white-space: normal; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def page(title: str, sections: list[str]) -> str:
    """Return the whole file."""
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n'
            + '\n'.join(sections) + '\n</body>\n</html>\n')


def section(title: str, *parts: str) -> str:
    """Return a section of the page with its heading; empty parts are left out."""
    return f'<section>\n<h2>{html.escape(title)}</h2>\n' + '\n'.join(filter(None, parts)) + '\n</section>'


def paragraph(text: str) -> str:
    """Return text as a paragraph; **bold** and `code` as in Markdown."""
    text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', html.escape(text))
    text = re.sub(r'`(.+?)`', r'<code>\1</code>', text)
    return f'<p>{text}</p>'


def table(header: Sequence, rows: Sequence[Sequence], caption: str = '') -> str:
    """Return a table; a cell is text, or (text, class).  Columns of numbers are aligned to the right."""
    def texts(row: Sequence) -> list[str]:
        return [cell[0] if isinstance(cell, tuple) else str(cell) for cell in row]

    numeric = [all(re.match(r'[-+−]?[\d.]|^[-–]?$', text) for text in column)
               for column in zip(*map(texts, rows))] or [False] * len(header)

    def cells(row: Sequence, tag: str) -> str:
        out = []
        for cell, text, is_number in zip(row, texts(row), numeric):
            kind = ' '.join(filter(None, ['number' * is_number, cell[1] if isinstance(cell, tuple) else '']))
            scope = ' scope="col"' if tag == 'th' else ''
            out.append(f'<{tag}{scope}{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{html.escape(text)}</{tag}>')
        return '<tr>' + ''.join(out) + '</tr>'

    label = html.escape(caption, quote=True)
    title, name = (f'<p class="caption">{label}</p>\n', f' aria-label="{label}"') if caption else ('', '')
    return (f'{title}<div class="scroll"><table{name}>'
            + f'<thead>{cells(header, "th")}</thead><tbody>' + '\n'.join(cells(row, 'td') for row in rows)
            + '</tbody></table></div>')


def difference(ours: float | None, published: float | None, is_comparable: bool) -> tuple[str, str]:
    """Return a cell with the relative difference of ours to the published number, coloured if they are comparable."""
    if ours is None or not published:
        return '-', ''
    change = ours / published - 1
    return f'{change:+.1%}', '' if not is_comparable else 'better' if change > 0 else 'worse' if change < 0 else ''


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------

def figure(caption: str, panels: dict[str, Callable[[Axes], None]], labels: list[str], height: float = 3.2) -> str:
    """Return a picture as SVG within the page.

    panels : description of a panel -> a function that draws it on its axes
    labels : of the lines, for the legend; empty for none
    height : of each panel, in inches
    """
    try:
        import matplotlib
    except ImportError:
        return paragraph(f"{caption} The picture needs Matplotlib: pip install '.[experiments]'")
    from matplotlib.figure import Figure

    drawn = []
    with matplotlib.rc_context(PLOT_SETTINGS):
        for alternative, draw in panels.items():
            picture = Figure(figsize=(4.6, height), layout='constrained')
            draw(picture.subplots())
            label = html.escape(alternative, quote=True)
            drawn.append(svg_of(picture).replace('<svg', f'<svg role="img" aria-label="{label}"', 1))
    styles = [(label, *line_style(k)) for k, label in enumerate(labels)]
    legend = ''.join(f'<li><span style="color: {colour}" aria-hidden="true">{MARKERS[marker]}</span> '
                     f'{html.escape(label)}</li>' for label, colour, marker in styles)
    return (f'<figure>\n<ul class="legend">{legend}</ul>\n<div class="panels">{"".join(drawn)}</div>\n'
            f'<figcaption>{html.escape(caption)}</figcaption>\n</figure>')


# Settings of Matplotlib: text stays text, no frame, and the same ids in the SVG each time that it is drawn.
PLOT_SETTINGS: dict = {'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 10, 'font.family': 'sans-serif',
                       'axes.spines.top': False, 'axes.spines.right': False, 'text.parse_math': False}


def svg_of(picture: Figure) -> str:
    """Return the picture as an element of a page; to be called under `PLOT_SETTINGS`."""
    file = io.StringIO()
    picture.savefig(file, format='svg', metadata={'Date': None})
    return file.getvalue()[file.getvalue().index('<svg'):]


def line_style(k: int) -> tuple[str, str]:
    """Return colour and marker of the k-th line."""
    return COLOURS[k % len(COLOURS)], [*MARKERS][(k + k // len(COLOURS)) % len(MARKERS)]


def draw_lines(series: dict[str, tuple], xlabel: str, ylabel: str,
               intervals: dict[str, np.ndarray] | None = None) -> Callable[[Axes], None]:
    """Return a function that draws a panel with a line for each of `series`, label -> (x, y).

    intervals : label -> bounds (len(x), 2) of some of the lines over names, drawn as bars
    """
    def draw(ax: Axes) -> None:
        for k, (label, (x, y)) in enumerate(series.items()):
            colour, marker = line_style(k)
            places = x
            if isinstance(x[0], str):  # lines stand beside one another, so that their bars do not hide one another
                places = np.arange(len(x)) + 0.6 * ((k + 0.5) / len(series) - 0.5)
                ax.set_xticks(range(len(x)), x)
                if intervals and label in intervals:
                    ax.vlines(places, *intervals[label].T, color=colour, linewidth=0.8)
            ax.plot(places, y, label=label, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.set_ylim(bottom=0)
        ax.grid(axis='y', color='#e5e5e5')
        ax.tick_params(axis='x', labelsize=8.5)
        if not isinstance(x[0], str):
            ax.set_xscale('log')
            ax.set_xticks([1, 2, 5, 10, 20, 50, 100], ['1', '2', '5', '10', '20', '50', '100'])
            ax.minorticks_off()
    return draw


def draw_differences(rows: list[tuple[str, float, float, float]], xlabel: str) -> Callable[[Axes], None]:
    """Return a function that draws a difference and its interval for each row (title, difference, low, high).

    Titles stand above their lines, since they are long, and the picture is as narrow as a telephone.
    """
    def draw(ax: Axes) -> None:
        for y, (title, difference, low, high) in enumerate(rows):
            ax.plot([low, high], [y, y], color=COLOURS[0], linewidth=1.6)
            ax.plot(difference, y, color=COLOURS[0], marker='o', markersize=4.5)
            ax.text(0, y - 0.2, title, transform=ax.get_yaxis_transform(), fontsize=7.5,
                    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5})
        ax.axvline(0, color=COLOURS[-1], linewidth=1.2, linestyle='--')
        ax.set_ylim(len(rows) - 0.5, -0.8)  # the first row on top
        ax.set_yticks([])
        ax.spines['left'].set_visible(False)
        ax.set_xlabel(xlabel)
        ax.tick_params(axis='x', labelsize=8.5)
    return draw


def in_words(series: dict[str, tuple], what: str) -> str:
    """Return the lines of a picture as text, for readers who cannot see it."""
    names = {label: [str(place).partition('\n')[0] for place in x] for label, (x, _y) in series.items()}
    return '; '.join(f'{label}: ' + ', '.join(f'{value:.3f} {what} {place}' for place, value in zip(names[label], y)
                                         if not np.isnan(value))
                     for label, (_x, y) in series.items())


def draw_losses(ax: Axes, title: str, values: list[float], colour: str, marker: str) -> None:
    """Draw the mean loss of each epoch of one network."""
    ax.plot(np.arange(1, len(values) + 1), values, color=colour, marker=marker, markersize=4.5)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel('epoch')
    ax.set_ylabel('mean loss of the mini-batches')
    ax.locator_params(axis='x', integer=True)
