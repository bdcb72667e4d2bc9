"""The paper's experiments: Tables 1 to 3 of arXiv 1511.06939 v4, published next to reproduced, and its claims.

    python run_experiments.py                          # Tables 1 and 3, on a synthetic click log that it makes itself
    python run_experiments.py --data DIR               # on the four files of preprocess_rsc15.py
    python run_experiments.py --train F --test F       # on any two files with SessionId, ItemId and Time
    python run_experiments.py --dataset video ...      # with the protocol and the parameters of the paper's VIDEO data
    python run_experiments.py --table 2 --trials 100   # the parameter search
    python run_experiments.py --claims --quick         # what sections 3 and 4 claim, with small networks
    python run_experiments.py --figures                # Figures 1 and 2 and training curves too, as SVG and PNG

Each finished cell is written to OUT/results.json at once and is not run again when the command is repeated;
OUT/tables.md holds the tables, OUT/claims.md the claims, OUT/report.html all of it with pictures, and OUT/figures what
--figures draws.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from evaluation import TIE_POLICIES
from gru4rec_pytensor import backends
from gru4rec_pytensor.events import most_frequent
from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import Options, plan
from gru4rec_pytensor.experiments.claims import run_claims
from gru4rec_pytensor.experiments.datasets import (
    Dataset,
    Source,
    fingerprint,
    load_dataset,
    size_in_words,
    validation_split,
)
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, PROTOCOLS, RSC15, VIDEO
from gru4rec_pytensor.experiments.report import format_report
from gru4rec_pytensor.experiments.results import load_results, run_cells, write_text
from gru4rec_pytensor.experiments.tables import Section, as_markdown, table_2, tables_1_and_3
from gru4rec_pytensor.files import check_writable
from gru4rec_pytensor.terminal import Parser, listed, note, positive_number, whole_number
from preprocess_rsc15 import FILES

RESULTS = 'results.json'


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------

def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; SystemExit with a message if it is wrong."""
    models = (*BASELINES, NETWORK)
    parser = Parser(prog='run_experiments.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_version()
    parser.add_argument('--dataset', choices=PROTOCOLS, default='rsc15', help='which data set of the paper: its '
                        'protocol, parameters and published numbers (rsc15)')
    parser.add_argument('--data', metavar='DIR', help=f'folder with {FILES["train_full"]} and {FILES["test"]}')
    parser.add_argument('--train', metavar='F', help='tab-separated training events; goes with --test')
    parser.add_argument('--test', metavar='F', help='tab-separated test events; goes with --train')
    parser.add_argument('--sessions', type=positive_number, metavar='N', help='size of the synthetic click log, in '
                        f'sessions ({RSC15.sessions:,}; with --dataset video {VIDEO.sessions:,})')
    parser.add_argument('--items', type=positive_number, metavar='N', help='and in items '
                        f'({RSC15.items:,}; with --dataset video {VIDEO.items:,})')
    parser.add_argument('--table', type=listed(whole_number, (1, 2, 3)), nargs='+', default=[[1, 3]],
                        help='tables to run (1 3)')
    parser.add_argument('--models', type=listed(str, models), nargs='+',
                        default=[[model for model in models if model in {*RSC15.published, NETWORK}]],
                        help=f'rows to run, of {", ".join(models)} (those of the paper)')
    parser.add_argument('--loss', type=listed(str, LOSS_NAMES), nargs='+', default=[RSC15.parameters],
                        help=f'rows of Tables 2 and 3, of {", ".join(RSC15.parameters)} (all); Table 2 also takes mrr')
    parser.add_argument('--units', type=listed(positive_number), nargs='+', default=[[]],
                        help='hidden units, for Tables 2 and 3 (100); for the claims those of small and large networks '
                             '(100,1000; with --quick 50,200)')
    parser.add_argument('--epochs', type=positive_number, help='training epochs of GRU4Rec (10; with --quick 3)')
    parser.add_argument('--seeds', type=listed(whole_number), nargs='+', default=[[]],
                        help='one run for each (42; for the claims 42,43,44)')
    parser.add_argument('--trials', type=positive_number, default=100, metavar='N',
                        help='random points of Table 2 (100)')
    parser.add_argument('--storage', metavar='URL', help='database of the trials of Table 2, as SQLAlchemy writes it '
                        '(sqlite:///OUT/search.db); processes that share one work on the same search')
    parser.add_argument('--prune', action='store_true', help='Table 2: stop a trial whose Recall@20 after an epoch is '
                        'below the median of the others')
    parser.add_argument('--claims', action='store_true', help='compare the variants that the paper makes claims about')
    parser.add_argument('--quick', action='store_true', help='claims with fewer units and epochs')
    parser.add_argument('--figures', action='store_true', help="after the tables, draw the paper's Figure 1 from the "
                        'layers of the networks, Figure 2 from the first mini-batches, and training curves')
    parser.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                        help='rank of a target whose score other items share: before them, after them, in the middle '
                             '(conservative: after them)')
    parser.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    parser.add_argument('--out', metavar='DIR', default='results',
                        help='folder for results.json and tables.md (results)')
    parser.add_argument('--cache', metavar='DIR', default='cache', help='folder for the synthetic click log (cache)')
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    fill_in(arguments)
    if problem := contradiction(arguments):
        parser.error(problem)
    return arguments


def fill_in(arguments: argparse.Namespace) -> None:
    """Flatten the lists, and fill in what depends on other arguments."""
    for name in ('table', 'models', 'loss', 'units', 'seeds'):  # a list for each word, flattened, without repetitions
        setattr(arguments, name, list(dict.fromkeys(value for values in getattr(arguments, name) for value in values)))
    usual_units = ([50, 200] if arguments.quick else [100, 1000]) if arguments.claims else [100]
    arguments.epochs = arguments.epochs or (3 if arguments.quick else 10)
    arguments.seeds = arguments.seeds or ([42, 43, 44] if arguments.claims else [42])
    arguments.units = arguments.units or usual_units


def contradiction(arguments: argparse.Namespace) -> str | None:
    """What does not go together, or None."""
    if bool(arguments.train) != bool(arguments.test):
        return '--train and --test go together'
    if arguments.train and arguments.data:
        return 'give either --data, or --train and --test'
    if (arguments.sessions or arguments.items) and (arguments.data or arguments.train):
        return '--sessions and --items are sizes of the synthetic log; they do not go with --data or --train'
    if arguments.quick and not arguments.claims:
        return '--quick goes with --claims'
    if arguments.figures and arguments.claims:
        return '--figures goes with tables, not with --claims'
    if arguments.claims and (len(arguments.units) != 2 or arguments.units[0] >= arguments.units[1]):
        return '--units of the claims are two numbers, of small and of large networks'
    unpublished = [loss for loss in arguments.loss if loss not in RSC15.parameters]
    if unpublished and arguments.table != [2]:
        return f'--loss {unpublished[0]} goes with --table 2: the paper has no row for it in Table 3'
    if 2 in arguments.table and not arguments.claims and max(map(len, (arguments.units, arguments.seeds))) > 1:
        return '--table 2 searches for networks of one size and with one seed: give one number each'
    return None


def source_of(arguments: argparse.Namespace) -> Source:
    """Where the data is."""
    train, test, folder = (Path(path) if path else None for path in (arguments.train, arguments.test, arguments.data))
    return Source(train, test, folder, Path(arguments.cache), arguments.sessions, arguments.items)


def options_of(arguments: argparse.Namespace) -> Options:
    """What to train, and how to rank."""
    return Options(tuple(arguments.table), tuple(arguments.models), tuple(arguments.loss), tuple(arguments.units),
                   arguments.epochs, tuple(arguments.seeds), arguments.tie_policy, backends.resolve(arguments.backend))


# ---------------------------------------------------------------------------------------------------------------------
# What it asks for
# ---------------------------------------------------------------------------------------------------------------------

def run(arguments: argparse.Namespace) -> None:
    """What the command line asks for, as far as it is not in OUT yet; prints tables or claims."""
    out = Path(arguments.out)
    if out.is_file():
        raise ValueError(f'--out {out}: is a file; give the name of a folder')
    out.mkdir(parents=True, exist_ok=True)
    protocol, options, source = PROTOCOLS[arguments.dataset], options_of(arguments), source_of(arguments)
    check_extras(arguments)
    cells = [] if arguments.claims else plan(protocol, options)
    load_results(out / RESULTS)
    check_writable(out / RESULTS)
    data = load_dataset(source, protocol)
    note(f'{data.name}: train {size_in_words(data.train)}; test {size_in_words(data.test)}; backend {options.backend}')
    results: list[dict] = []
    tables: list[Section] = []  # Tables 1 and 3
    others: list[Section] = []  # Table 2, or the claims
    text = ''
    for results in run_cells(cells, data, out / RESULTS):
        tables = [tables_1_and_3(results, data, options)]
        text = write_markdown(out / 'tables.md', data, tables)
    if arguments.claims:
        for section in run_claims(data, options, arguments.quick, out / RESULTS):
            others = [section]
            text = write_markdown(out / 'claims.md', data, others)
    elif 2 in options.tables:
        for section in run_search(arguments, options, source, data, out):
            others = [section]
            text = write_markdown(out / 'tables.md', data, [*tables, *others])
    command = search.without_password(shlex.join(['python', 'run_experiments.py', *arguments.words]))
    write_text(out / 'report.html', format_report(results, data, others, command))
    if arguments.figures:
        from gru4rec_pytensor.experiments.figures import write_figures  # which needs Matplotlib
        write_figures(out / 'figures', results, data, options.losses, options.units)
    print(text)


def check_extras(arguments: argparse.Namespace) -> None:
    """ValueError for packages that are needed and not installed."""
    if (2 in arguments.table or arguments.claims) and not find_spec('optuna'):
        raise ValueError("--table 2 and --claims need Optuna: pip install '.[experiments]'")
    if arguments.figures and not find_spec('matplotlib'):
        raise ValueError("--figures needs Matplotlib: pip install '.[experiments]'")


def run_search(arguments: argparse.Namespace, options: Options, source: Source, data: Dataset,
               out: Path) -> Iterator[Section]:
    """Table 2, after the search of each loss."""
    train, valid = validation_split(source, data)
    url = arguments.storage or f'sqlite:///{out / "search.db"}'
    candidates, outcomes = most_frequent(train.ItemId, data.protocol.candidates), {}
    for loss in options.losses:
        of_loss = search.Search(train, valid, f'{data.name}, {fingerprint(train, valid)}', loss, options.units[0],
                                options.epochs, options.seeds[0], options.backend, options.tie_policy, candidates,
                                arguments.prune)
        outcomes[loss] = search.run(of_loss, arguments.trials, url, note)
        yield table_2(outcomes, of_loss, arguments.trials, data)


def write_markdown(path: Path, data: Dataset, sections: list[Section]) -> str:
    """Write the sections as Markdown; the text."""
    text = '\n'.join(as_markdown(data, section) for section in sections)
    write_text(path, text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; its exit code."""
    arguments = parse(argv)
    try:
        run(arguments)
    except (OSError, ValueError) as error:
        note(f'run_experiments.py: error: {error}')
        return 2
    except KeyboardInterrupt:
        note('interrupted; the finished cells are kept, and the same command goes on from there')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
