"""The rows of RESULTS.md: results of this code on real clicks, beside published ones.

    python benchmarks/results.py rsc15_recent64=FOLDER rsc15_week=FOLDER       # says which rows still hold
    python benchmarks/results.py rsc15_recent64=FOLDER --rows POP --keep       # keeps what it finds, and says the same
    python benchmarks/results.py rsc15_recent64=FOLDER --cells CELLS --keep    # compares the five best rows, too
    python benchmarks/results.py                                               # writes the tables from what is kept

A folder has the files of preprocess_rsc15.py; RESULTS.md says where each data set is to be had.  Every row is a
command, run in a process of its own.  Its numbers are kept in benchmarks/results.json; RESULTS.md and README.md's first
table are written from them.  A row holds if Recall@20 and MRR@20 are within two standard deviations of its seeds, and
without seeds to the last digit shown.
"""
from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evaluation import Comparison
from gru4rec_pytensor import parameters
from gru4rec_pytensor.click_log import read_events
from gru4rec_pytensor.events import count
from gru4rec_pytensor.experiments.comparisons import (
    INTERVALS,
    Pair,
    compare_rows,
    ranks_of_rows,
    section_of_pairs,
    with_intervals,
)
from gru4rec_pytensor.experiments.datasets import DATA, RECENT64, Source, load_dataset, size_in_words
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, ROW_TITLES, RSC15
from gru4rec_pytensor.experiments.published import (
    COMPARISON_2023,
    LATER_NETWORKS,
    RECORDED,
    ROWS,
    by_yardstick,
    rows_for,
)
from gru4rec_pytensor.experiments.results import Results, digits_of, write_text
from gru4rec_pytensor.experiments.tables import (
    YARDSTICK,
    Table,
    markdown_rows,
    mean_metric,
    metric_in_words,
    stable_values,
    table_published,
)
from gru4rec_pytensor.terminal import Parser, note
from preprocess_rsc15 import FILES

KEPT, PAGE = ROOT / 'benchmarks' / 'results.json', ROOT / 'RESULTS.md'
README, FRONT = ROOT / 'README.md', re.compile(r'(?<=<!-- written by benchmarks/results.py -->\n)(?:\|.*\n)*')
METRICS = ('Recall@20', 'MRR@20')
SHOWN = (*METRICS, 'NDCG@20')
SEEDS = '42,43,44'
WEEK = 'rsc15_week'
ORIGINS = {data.title: data.origin for data in DATA} | {
    WEEK: 'YOOCHOOSE clicks of 1 to 8 April 2014 in the format of the challenge, 83,846 lines without one-click '
          'sessions and rare items, restored from the prepared sample of https://github.com/rn5l/session-rec: CLICKS '
          'has a line `session,time,item,0` for each of its rows, the time in UTC as in 2014-04-07T10:51:09.277Z; '
          '`python preprocess_rsc15.py CLICKS DATA`'}
NAMES = {'python': 'Python', 'pytensor': 'PyTensor', 'numba': 'Numba', 'numpy': 'NumPy', 'pandas': 'pandas'}
WHY = {  # why numbers differ from the recorded ones
    RECENT64: 'Initial weights, sessions, negatives and dropout masks are those of the recorded runs of 2023. Losses '
              'agree to 1e-5 for 97, 9, 5 and 12 mini-batches (BPR-max 2025, cross-entropy 2023, BPR-max 2018 with one '
              'item matrix, cross-entropy 2018), about as long as they do after moving the initial weights by their '
              'last bit: from there on rounding decides (`python benchmarks/later_release.py DATA RUNS.json --costs '
              'COSTS.npz --epochs 1`; its docstring says what the files hold). Three of the four take first steps so '
              'large that a last bit is amplified within some ten mini-batches. BPR-MF: the release was run once, with '
              "NumPy's seed 42. Ours with seed 42 has its numbers; the row is the mean over three seeds."}


# Of a cell's result; all else of it is the work of one run.
KEY = ('model', 'loss', 'units', 'epochs', 'seed', 'parameters')
KEEP = ('model', 'loss', 'units', 'epochs', 'seed', 'parameters', 'tie_policy', 'candidates', 'backend', 'recall@20',
        'mrr@20', 'ndcg@20', 'fit_seconds', 'eval_seconds', 'versions')


class Run(NamedTuple):
    """A row: a command of `run_experiments.py` for a data set."""
    data: str
    title: str
    arguments: list[str]

    @property
    def command(self) -> str:
        """The command as it is typed."""
        files = '--train DATA/train.tsv --test DATA/test.tsv' if '--published' in self.arguments else '--data DATA'
        return ' '.join(['python run_experiments.py', files, *self.arguments])


# ---------------------------------------------------------------------------------------------------------------------
# The rows
# ---------------------------------------------------------------------------------------------------------------------

def baseline_run(data: str, model: str) -> Run:
    """Return a row of Table 1, with three seeds for BPR-MF."""
    return Run(data, model, ['--table', '1', '--models', model, *['--seeds', SEEDS] * (model == 'BPR-MF')])


def network_run(data: str, loss: str, units: int = 100) -> Run:
    """Return a row of Table 3."""
    return Run(data, f'{LOSS_NAMES[loss]}, {units} units', [
        '--table', '3', '--models', NETWORK, '--loss', loss, *['--units', str(units)] * (units != 100), *of_network()])


def file_run(data: str, path: str, *more: str) -> Run:
    """Return a row of later papers, or of parameters that were searched."""
    return Run(data, parameters.read(ROOT / path).title, [*more, '--parameters', path, *of_network()])


def of_network() -> list[str]:
    """Return the options that all commands of networks have."""
    return ['--seeds', SEEDS, '--backend', 'numba']


def file_of(title: str, data: str | None = None) -> str:
    """Return the file in parameters/ with this title, and of this data where titles repeat."""
    files = {path: parameters.read(path) for path in sorted(ROOT.glob('parameters/*.toml'))}
    return next(path.relative_to(ROOT).as_posix() for path, file in files.items()
                if file.title == title and data in (None, file.data))


def all_runs() -> list[Run]:
    """Return the rows of RESULTS.md, in its order; the page leaves out those without results."""
    runs = [run for data in (RECENT64, WEEK) for run in (
        *[baseline_run(data, model) for model in BASELINES], *[network_run(data, loss) for loss in RSC15.parameters])]
    runs += [file_run(RECENT64, path.relative_to(ROOT).as_posix())
             for path in sorted(ROOT.glob('benchmarks/*.toml'))]
    runs += [file_run(RECENT64, file_of(title)) for title in LATER_NETWORKS]
    return sorted([*runs, file_run(WEEK, file_of('BPR-max, 64 units (2025)'))], key=lambda run: run.data)


def runs_of_others() -> list[tuple[Any, Run | None]]:
    """Return published rows for data that could not be run, each with its command, or None if the model is not here."""
    runs: list[tuple[Any, Run | None]] = []
    for row in ROWS:
        if row.data not in (RECENT64, 'VIDEO'):
            run = None
            if row.model in BASELINES:
                run = baseline_run(row.data, row.model)
            elif row.model in LATER_NETWORKS:
                run = file_run(row.data, file_of(row.model))
            elif row.source == COMPARISON_2023:
                run = file_run(row.data, file_of(row.model, row.data), '--published', row.data)
            elif row.arguments:
                run = network_run(row.data, row.arguments['loss'], row.arguments['layers'][0])
            runs.append((row, run))
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# Making them
# ---------------------------------------------------------------------------------------------------------------------

def measure(run: Run, folder: Path, cells: Path | None) -> dict:
    """Run the command of a row; return the part of its results that is kept.  SystemExit if it fails.

    cells : folder for the cells with their ranks, to be compared with those of other rows
    """
    with tempfile.TemporaryDirectory() as out:
        arguments = [folder if word == 'DATA' else word for word in run.command.split(' ')[1:]]
        process = subprocess.Popen([sys.executable, *map(str, arguments), '--jobs', '1', '--out', out], cwd=ROOT,
                                   stdout=subprocess.DEVNULL)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f'{run.command}: exit code {process.returncode}')
        results = Results(Path(out))
        found = results.load('cells')
        found = with_intervals(found, ranks_of_rows(found, results), load_dataset(Source(folder=folder)))
        if cells:
            shutil.copytree(Path(out) / 'cells', cells / run.data / 'cells', dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('*.lock'))
    titled = {'title': run.title} if '--parameters' in run.arguments else {}
    kept = [{name: result[name] for name in (*KEEP, 'intervals')} | titled | {
        'details': result['details'] and {name: result['details'][name] for name in ('recall', 'mrr', 'ndcg')}}
        for result in sorted(found, key=lambda result: result['seed'] or 0)]
    return {'data': run.data, 'title': run.title, 'command': run.command, 'commit': commit(), 'machine': machine(),
            'date': datetime.now(UTC).date().isoformat(), 'results': kept,
            'peak_memory': usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)}


def best_compared(name: str, folder: Path, cells: Path, kept: list[dict]) -> dict:
    """Return the comparison of the five best rows of a data set, by Recall@20, among those with ranks in `cells`."""
    results = Results(cells / name)
    titles = {digits_of([own[field] for field in KEY]): row['title'] for row in kept if row['data'] == name
              for own in row['results']}
    found = [result | {'title': title} for result in results.load('cells')
             if (title := titles.get(digits_of([result[field] for field in KEY])))]
    recalls = {title: mean_metric([result for result in found if result['title'] == title], 'recall@20') or 0.0
               for title in titles.values()}
    best = sorted(recalls, key=lambda title: -recalls[title])[:5]
    rows = [result for result in found if result['title'] in best]
    pairs = compare_rows(rows, ranks_of_rows(rows, results), load_dataset(Source(folder=folder)), best)
    return {'data': name, 'pairs': [[pair.first, pair.second, pair.tests] for pair in pairs]}


def commit() -> str:
    """Return the revision of the code, and whether it was changed since."""
    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changes = git('status', '--porcelain', '--untracked-files=no', '--', '*.py', '*.toml')
    return git('rev-parse', '--short', 'HEAD') + ' and changes' * bool(changes)


def machine() -> str:
    """Return processor, cores and memory as text."""
    name = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        found = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
        name = found[1] if found else name
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return f'{name}, {os.cpu_count()} cores, {memory / 2 ** 30:.0f} GB'


def described(name: str, folder: Path) -> dict:
    """Return counts and checksums of a data set."""
    paths = {part: folder / FILES[part] for part in ('train_full', 'test')}
    checksums = {}
    for path in paths.values():
        with path.open('rb') as file:
            checksums[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'data': name, 'files': checksums,
            'counts': {part: count(read_events(path)) for part, path in paths.items()}}


def still_holds(kept: dict, found: dict) -> bool:
    """Return whether the means of a new row are within two standard deviations of those kept."""
    for metric in METRICS:
        before, now = (mean_metric(row['results'], metric) for row in (kept, found))
        values = stable_values(kept['results'], metric)
        spread = 2 * float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        if before is None or now is None:
            return before is now
        if abs(now - before) > max(spread, 0.00005):
            return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# RESULTS.md
# ---------------------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Results on real clicks

What this code reaches on real clicks, and what is published for the same data. Written by `python
benchmarks/results.py` from `benchmarks/results.json`; do not edit it. To run rows again and see whether they still
hold: `python benchmarks/results.py rsc15_recent64=DATA`. A row holds if its means of Recall@20 and MRR@20 are within
two standard deviations of its seeds; a row without seeds, if it has the same four digits.

Ours: mean ± standard deviation over the seeds 42, 43 and 44, equal scores conservative, a hit is a rank of at most N.
{intervals}
Seconds are those of one training and one evaluation, the median of the seeds, in one process, with other work on the
machine; those of a model without seeds include compilation. Peak memory is that of the whole
command. Versions: `constraints/python3.12.txt`. {yardstick}
"Recorded" are runs of the authors' own releases on these files, made for this project; everything else is what the
named source reports.
"""


def page(kept: dict) -> str:
    """Return RESULTS.md."""
    parts = [INTRODUCTION.format(yardstick=YARDSTICK, intervals=INTERVALS)]
    for data in kept['data']:
        compared = [one for one in kept.get('comparisons', []) if one['data'] == data['data']]
        parts += data_section(data, [row for row in kept['rows'] if row['data'] == data['data']], compared)
    return '\n'.join([*parts, *others_section()]) + '\n'


def data_section(data: dict, rows: list[dict], compared: list[dict]) -> list[str]:
    """Return the section of a data set: origin, our numbers, comparisons, all published numbers, and the commands."""
    name = data['data']
    train, test = (size_in_words(data['counts'][part]) for part in ('train_full', 'test'))
    files = '; '.join(f'`{file}` {digits}' for file, digits in data['files'].items())
    parts = [f'## {name}', '', f'{ORIGINS[name]}. Train {train}; test {test}. SHA-256: {files}.', '',
             *markdown_rows(own_table(name, rows)), '']
    for comparison in compared:
        pairs = [Pair(ROW_TITLES.get(first, first), ROW_TITLES.get(second, second),
                      {metric: Comparison(*test) for metric, test in tests.items()})
                 for first, second, tests in comparison['pairs']]
        section = section_of_pairs({('the', 'five'): pairs}, [])
        parts += ['### The five best rows, compared', '', *markdown_rows(section.tables[0]), '', *section.notes, '']
    if any(row.data == name for row in ROWS):
        table = table_published([result for row in rows for result in row['results']], name)
        parts += [f'### {table.title}', '', *markdown_rows(table), '']
    parts += [*filter(None, [WHY.get(name)]), '' * (name in WHY), '```sh']
    parts += [f"{row['command']}  # {row['title']}" for row in rows]
    return [*parts, '```', '', *made_by(rows), '']


def own_table(name: str, rows: list[dict]) -> Table:
    """Return our numbers and their cost, with the first published row of the model, or else a recorded one."""
    lines = []
    for row in rows:
        results = row['results']
        found = sorted(rows_for(name, results[0]), key=lambda other: other.source in RECORDED)
        theirs = judged = '-'
        if found:
            numbers = found[0].recall[20], found[0].mrr[20]
            means = [mean_metric(results, metric) for metric in METRICS]
            theirs = ' / '.join(f'{number:.4f}' for number in numbers) + ', recorded' * (found[0].source in RECORDED)
            judged = ' / '.join(by_yardstick(mean, number) if mean else '-' for mean, number in zip(means, numbers))
        seconds = [f'{np.median(values):.1f} s' if (values := stable_values(results, key)) else '-'
                   for key in ('fit_seconds', 'eval_seconds')]
        title = ROW_TITLES.get(row['title'], row['title'])
        lines.append((title, *[metric_in_words(results, metric) for metric in SHOWN], theirs, judged, *seconds,
                      f"{row['peak_memory'] / 1e9:.1f} GB"))
    return Table('', ('Model', *SHOWN, 'published', 'verdict', 'fit', 'evaluation', 'peak memory'), lines)


def front(kept: dict) -> str:
    """Return README.md's first table: `own_table` of `RECENT64` without verdicts and memory."""
    table = own_table(RECENT64, [row for row in kept['rows'] if row['data'] == RECENT64])
    columns = [table.header.index(name) for name in ('Model', *METRICS, 'published', 'fit')]
    header, *rows = [tuple(row[k] for k in columns) for row in (table.header, *table.rows)]
    return '\n'.join(markdown_rows(Table('', header, rows))) + '\n'


def made_by(rows: list[dict]) -> list[str]:
    """Return commits, versions and machines as lines, one for all rows that have them in common."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        versions = ', '.join(f"{NAMES[name]} {row['results'][0]['versions'][name]}" for name in NAMES)
        made = f"commit {row['commit']}, {row['date']}; {versions}; {row['machine']}"
        groups.setdefault(made, []).append(row['title'])
    return [f'- {made}: {"all rows" if len(groups) == 1 else "; ".join(titles)}.' for made, titles in groups.items()]


def others_section() -> list[str]:
    """Return the section of published rows for data that is not here."""
    lines = [(row.data, row.model, f'{row.recall[20]:.4f}', f'{row.mrr[20]:.4f}', row.source,
              f'`{run.command}`' if run else '-') for row, run in runs_of_others()]
    table = Table('', ('Data', 'Model', 'Recall@20 published', 'MRR@20 published', 'Source', 'Command'), lines)
    origins = [f'- {name}: {ORIGINS[name]}.' for name in dict.fromkeys(row.data for row, _run in runs_of_others())]
    return ['## Not run: the data is not ours to ship', '', '`run_experiments.py` recognises RSC15 and its '
            'fractions by their counts; of the data sets of 2023 `--published` says which it is. Published numbers '
            'then stand beside ours. `-`: a model that is not here, or whose parameters the source lacks.', '',
            *origins, '', *markdown_rows(table)]


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

def load(path: Path) -> dict:
    """Return the numbers that are kept."""
    return json.loads(path.read_text()) if path.exists() else {'data': [], 'rows': []}


def put(entries: list[dict], entry: dict, *names: str) -> None:
    """Put an entry in the place of the one with the same values of `names`, or at the end."""
    entries[:] = [entry if all(other[name] == entry[name] for name in names) else other for other in entries]
    if entry not in entries:
        entries.append(entry)


def write(kept: dict) -> None:
    """Write numbers, page and README.md's table, rows in the order of `all_runs`."""
    order = [(run.data, run.title) for run in all_runs()]
    kept['rows'].sort(key=lambda row: order.index((row['data'], row['title'])))
    kept['data'].sort(key=lambda data: data['data'])
    write_text(KEPT, json.dumps(kept, indent=1) + '\n')
    write_text(PAGE, page(kept))
    write_text(README, FRONT.sub(front(kept), README.read_text()))


def parse(argv: list[str] | None) -> tuple[dict[str, Path], list[Run], Path | None, bool]:
    """Return folders by data set, rows to run, the folder for cells, and whether to keep the numbers."""
    parser = Parser(prog='results.py', description=__doc__)
    parser.add_argument('data', nargs='*', metavar='NAME=FOLDER', help=f'of {RECENT64} and {WEEK}')
    parser.add_argument('--rows', nargs='+', metavar='TITLE', help='only these rows')
    parser.add_argument('--cells', type=Path, metavar='FOLDER', help='keep ranks there, and compare the five best rows')
    parser.add_argument('--keep', action='store_true', help='keep the numbers, and write RESULTS.md')
    arguments = parser.parse_args(argv)
    folders = {}
    for word in arguments.data:
        name, _, folder = word.partition('=')
        if name not in {run.data for run in all_runs()} or not (Path(folder) / FILES['train_full']).is_file():
            parser.error(f'{word!r}: must be {RECENT64} or {WEEK}, =, and a folder with {FILES["train_full"]}')
        folders[name] = Path(folder).resolve()
    runs = [run for run in all_runs() if run.data in folders]
    titles = {run.title for run in runs}
    if unknown := [title for title in arguments.rows or [] if title not in titles]:
        parser.error(f'--rows {unknown[0]!r}: is none of {"; ".join(sorted(titles))}')
    return folders, [run for run in runs if run.title in (arguments.rows or titles)], arguments.cells, arguments.keep


def main(argv: list[str] | None = None) -> int:
    """Run the wanted rows; return 1 if one does not hold."""
    folders, runs, cells, keep = parse(argv)
    kept, all_hold = load(KEPT), True
    for name, folder in folders.items():
        data = described(name, folder)
        if any(other['data'] == name and other != data for other in kept['data']):
            note(f'{name}: {folder} is not the data of RESULTS.md: its checksums are {data["files"]}')
            return 2
        put(kept['data'], data, 'data')
    for run in runs:
        found = measure(run, folders[run.data], cells)
        before = next((row for row in kept['rows'] if (row['data'], row['title']) == (run.data, run.title)), None)
        holds = before is None or still_holds(before, found)
        all_hold &= holds
        told = [' / '.join(metric_in_words(row['results'], metric) for metric in METRICS)
                for row in (found, before) if row]
        print(f'{run.data}, {run.title}: {told[0]}: '
              + ('new' if before is None else 'holds' if holds else f'does not hold, was {told[1]}'), flush=True)
        if keep:
            put(kept['rows'], found, 'data', 'title')
            write(kept)
    if cells and keep:
        for name, folder in folders.items():
            put(kept.setdefault('comparisons', []), best_compared(name, folder, cells, kept['rows']), 'data')
    if keep or not folders:
        write(kept)
    return 0 if all_hold else 1


if __name__ == '__main__':
    sys.exit(main())
