"""The paper's experiments: Tables 1 to 3 of arXiv 1511.06939 v4, published next to reproduced, and its claims.

    python run_experiments.py                          # Tables 1 and 3, on a synthetic click log that it makes itself
    python run_experiments.py --data DIR               # on the four files of preprocess_rsc15.py
    python run_experiments.py --train F --test F       # on any two files with SessionId, ItemId and Time
    python run_experiments.py --dataset video ...      # with the protocol and the parameters of the paper's VIDEO data
    python run_experiments.py --table 2 --trials 100   # the parameter search
    python run_experiments.py --claims --quick         # what sections 3 and 4 claim, with small networks
    python run_experiments.py --parameters FILE...     # networks of later papers, with the parameters of parameters/
    python run_experiments.py --figures                # Figures 1 and 2 and training curves too, as SVG and PNG

A cell is what is trained and evaluated for one number.  Each finished one is a file in OUT/cells and is not run again;
any number of commands may work on the same OUT, also from several machines.  OUT/tables.md, OUT/claims.md and
OUT/report.html show all that OUT has for the data set, OUT/figures holds what --figures draws.
"""
from __future__ import annotations

import argparse
import logging
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from evaluation import TIE_POLICIES
from gru4rec_pytensor import backends
from gru4rec_pytensor.events import EQUAL_TIMES, share_of_equal_times
from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import Cell, Options, memory_of, plan, plan_files
from gru4rec_pytensor.experiments.claims import claims_cells
from gru4rec_pytensor.experiments.datasets import (
    Source,
    fingerprint,
    load_dataset,
    share_events,
    size_in_words,
    validation_split,
)
from gru4rec_pytensor.experiments.engines import Engine, count_workers, default_jobs, in_processes, on_cluster
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, PROTOCOLS, RSC15, VIDEO
from gru4rec_pytensor.experiments.publish import keep_claims, keep_command, keep_parameters, publish
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import rows_of_tables
from gru4rec_pytensor.experiments.work import TasksFailed, Work, run_cells, run_search
from gru4rec_pytensor.terminal import Parser, listed, note, positive_number, whole_number
from preprocess_rsc15 import FILES

# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------

def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; SystemExit with a message if it is wrong."""
    parser = Parser(prog='run_experiments.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_version()
    add_data_options(parser.add_argument_group('the clicks'))
    add_network_options(parser.add_argument_group('what is trained and evaluated'))
    add_search_options(parser.add_argument_group('the parameter search, --table 2'))
    add_engine_options(parser.add_argument_group('where and how'))
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    fill_in(arguments)
    if problem := contradiction(arguments):
        parser.error(problem)
    return arguments


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """Which click log."""
    group.add_argument('--dataset', choices=PROTOCOLS, default='rsc15', help='which data set of the paper: its '
                       'protocol, parameters and published numbers (rsc15)')
    group.add_argument('--data', metavar='DIR', help=f'folder with {FILES["train_full"]} and {FILES["test"]}')
    group.add_argument('--train', metavar='F', help='tab-separated training events; goes with --test')
    group.add_argument('--test', metavar='F', help='tab-separated test events; goes with --train')
    group.add_argument('--sessions', type=positive_number, metavar='N', help='size of the synthetic click log, in '
                       f'sessions ({RSC15.sessions:,}; with --dataset video {VIDEO.sessions:,})')
    group.add_argument('--items', type=positive_number, metavar='N', help='and in items '
                       f'({RSC15.items:,}; with --dataset video {VIDEO.items:,})')


def add_network_options(group: argparse._ArgumentGroup) -> None:
    """Which rows of which tables, or claims."""
    models = (*BASELINES, NETWORK)
    group.add_argument('--table', type=listed(whole_number, (1, 2, 3)), nargs='+', default=[],
                       help='tables to run (1 3)')
    group.add_argument('--models', type=listed(str, models), nargs='+', default=[],
                       help=f'rows to run, of {", ".join(models)} (those of the paper)')
    group.add_argument('--loss', type=listed(str, LOSS_NAMES), nargs='+', default=[],
                       help=f'rows of Tables 2 and 3, of {", ".join(RSC15.parameters)} (all); Table 2 also takes mrr')
    group.add_argument('--units', type=listed(positive_number), nargs='+', default=[],
                       help='hidden units, for Tables 2 and 3 (100); for the claims those of small and large networks '
                            '(100,1000; with --quick 50,200)')
    group.add_argument('--epochs', type=positive_number, help='training epochs of GRU4Rec (10; with --quick 3)')
    group.add_argument('--seeds', type=listed(whole_number), nargs='+', default=[],
                       help='one run for each (42; for the claims 42,43,44)')
    group.add_argument('--parameters', nargs='+', default=[], metavar='FILE', help='networks with the parameters '
                       "of files, such as those in parameters/ or the authors' own, as rows of a table of later "
                       'papers; without --table nothing else is run')
    group.add_argument('--claims', action='store_true', help='compare the variants that the paper makes claims about')
    group.add_argument('--quick', action='store_true', help='claims with fewer units and epochs')
    group.add_argument('--figures', action='store_true', help="after the tables, draw the paper's Figure 1 from the "
                       'layers of the networks, Figure 2 from the first mini-batches, and training curves')
    group.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                       help='rank of a target whose score other items share: before them, after them, in the middle '
                            '(conservative: after them)')


def add_search_options(group: argparse._ArgumentGroup) -> None:
    """How parameters are searched for."""
    group.add_argument('--trials', type=positive_number, metavar='N', help='random points (100)')
    group.add_argument('--storage', metavar='URL', help='database of the trials, as SQLAlchemy writes it '
                       '(sqlite:///OUT/search.db); processes that share one work on the same search')
    group.add_argument('--prune', action='store_true', help='stop a trial whose Recall@20 after an epoch is below the '
                       'median of the others')


def add_engine_options(group: argparse._ArgumentGroup) -> None:
    """What computes, and where results go."""
    group.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    group.add_argument('--jobs', type=positive_number, metavar='N', help='cells or trials that run at the same time, '
                       'each in a process of its own (one for each core, as far as memory goes; on a GPU 1)')
    group.add_argument('--scheduler', metavar='ADDRESS', help='of a Dask cluster, whose workers run them; they must '
                       'see OUT under the same name')
    group.add_argument('--checkpoint-every', type=positive_number, default=600, metavar='SECONDS',
                       help='how often each training writes what it goes on from after an interruption (600)')
    group.add_argument('--out', metavar='DIR', default='results', help='folder for all results (results)')
    group.add_argument('--cache', metavar='DIR', default='cache', help='folder for the synthetic click log (cache)')


def fill_in(arguments: argparse.Namespace) -> None:
    """Flatten the lists, and fill in what was not given, as far as it depends on nothing but other arguments."""
    for name in ('table', 'models', 'loss', 'units', 'seeds'):  # a list for each word, flattened, without repetitions
        setattr(arguments, name, list(dict.fromkeys(value for values in getattr(arguments, name) for value in values)))
    arguments.ignored = [f'--{name}' for name in ('table', 'models', 'loss', 'trials', 'storage', 'prune', 'parameters',
                                                  'figures') if getattr(arguments, name)] if arguments.claims else []
    usual_units = ([50, 200] if arguments.quick else [100, 1000]) if arguments.claims else [100]
    of_the_paper = [row for row in RSC15.published if row in BASELINES]
    arguments.of_tables = [f'--{name}' for name in ('models', 'loss', 'units', 'trials') if getattr(arguments, name)]
    arguments.own_epochs = arguments.epochs
    defaults = {'table': [] if arguments.parameters else [1, 3], 'models': [*of_the_paper, NETWORK],
                'loss': [*RSC15.parameters], 'trials': 100, 'epochs': 3 if arguments.quick else 10,
                'seeds': [42, 43, 44] if arguments.claims else [42], 'units': usual_units}
    for name, value in defaults.items():
        setattr(arguments, name, getattr(arguments, name) or value)


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
    if arguments.ignored:
        return f"{', '.join(arguments.ignored)} and --claims do not go together: they are of the tables"
    if arguments.parameters and arguments.of_tables and not (arguments.table or arguments.claims):
        return f'{arguments.of_tables[0]} goes with --table, without which --parameters runs nothing but its files'
    if arguments.scheduler and arguments.jobs:
        return '--jobs and --scheduler do not go together: a cluster runs one cell on each worker'
    if arguments.scheduler and 2 in arguments.table and (arguments.storage or 'sqlite:').startswith('sqlite:'):
        return '--table 2 on a cluster needs a database server: --storage postgresql://USER@HOST/DATABASE'
    if 2 not in arguments.table and (arguments.storage or arguments.prune):
        return f"{'--storage' if arguments.storage else '--prune'} goes with --table 2"
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
    began = datetime.now(UTC).isoformat()
    protocol, options, source = PROTOCOLS[arguments.dataset], options_of(arguments), source_of(arguments)
    check_extras(arguments)
    cells = [] if arguments.claims else plan(protocol, options)
    files = plan_files(arguments.parameters, protocol, options, arguments.own_epochs)
    results = Results(Path(arguments.out).absolute() if arguments.scheduler else Path(arguments.out))
    results.prepare()
    n_workers = check_engines(arguments, results)
    data = load_dataset(source, protocol)
    events = results.folder / 'data' / data.fingerprint
    data = replace(data, **share_events(events, data.train, data.test)._asdict())
    if arguments.claims:
        cells = claims_cells(data, options, arguments.quick)
        keep_claims(results, data, options, arguments.quick)
    keep_parameters(results, data, files)
    for _title, cell in files:
        cells += [cell] * (cell not in cells)
    engine, jobs = engine_of(arguments, cells, len(data.train), options.backend, n_workers)
    if jobs > 1:  # the longest come last in the tables; first, no process is left with one at the end
        cells = cells[::-1]
    train, test = (size_in_words(data.counts[part]) for part in ('train', 'test'))
    if arguments.train and (share := share_of_equal_times(data.train)) >= EQUAL_TIMES:
        note(f'{share:.1%} of the training events have the time of another one of their session, and GRU4Rec trains '
             'them in the order of their items; equal_times = "frame" in a file of --parameters keeps the order of the '
             'file')
    note(f'{data.name}: train {train}; test {test}; backend {options.backend}; {jobs} at a time')
    work = Work(data, events, results, engine, arguments.checkpoint_every)
    for _cell in run_cells(cells, work):
        publish(results, data)
    if 2 in options.tables and not arguments.claims:
        search_all(arguments, options, source, jobs, work)
    command = search.without_password(shlex.join(['python', 'run_experiments.py', *arguments.words]))
    keep_command(results, data, command, began)
    texts = publish(results, data, with_report=True)
    if arguments.figures:
        from gru4rec_pytensor.experiments.figures import write_figures  # which needs Matplotlib
        write_figures(results.folder / 'figures', rows_of_tables(results.load('cells', data.fingerprint), protocol),
                      data, options.losses, options.units)
    print(texts.get('claims.md' if arguments.claims else 'tables.md', ''))
    work.check()


def check_engines(arguments: argparse.Namespace, results: Results) -> int:
    """How many workers the cluster has, 0 without one; ValueError if it, or the storage of trials, cannot be used."""
    if 2 in arguments.table and not arguments.claims:
        search.check_storage(storage_of(arguments, results))
    return count_workers(arguments.scheduler, results.folder) if arguments.scheduler else 0


def storage_of(arguments: argparse.Namespace, results: Results) -> str:
    """URL of the database of trials."""
    return arguments.storage or f"sqlite:///{results.folder / 'search.db'}"


def engine_of(arguments: argparse.Namespace, cells: list[Cell], n_events: int, backend: str,
              n_workers: int) -> tuple[Engine, int]:
    """What runs cells and trials, and how many at a time."""
    if n_workers:
        return on_cluster(arguments.scheduler), n_workers
    models = [cell.model for cell in cells] + [NETWORK] * backends.available_cores() * (2 in arguments.table)
    jobs = arguments.jobs or default_jobs([memory_of(model, n_events) for model in models], backend)
    return in_processes(jobs), jobs


def check_extras(arguments: argparse.Namespace) -> None:
    """ValueError for packages that are needed and not installed."""
    if (2 in arguments.table or arguments.claims) and not find_spec('optuna'):
        raise ValueError("--table 2 and --claims need Optuna: pip install '.[experiments]'")
    if arguments.scheduler and not find_spec('distributed'):
        raise ValueError("--scheduler needs Dask: pip install '.[cluster]'")
    if arguments.figures and not find_spec('matplotlib'):
        raise ValueError("--figures needs Matplotlib: pip install '.[experiments]'")


def search_all(arguments: argparse.Namespace, options: Options, source: Source, jobs: int, work: Work) -> None:
    """Table 2: the search of each loss."""
    train, valid = validation_split(source, work.data)
    digits = fingerprint(train, valid)
    events = work.results.folder / 'data' / digits
    share_events(events, train, valid)
    del train, valid  # which the processes have from there
    url = storage_of(arguments, work.results)
    for loss in options.losses:
        settings = dict(data_name=digits, loss=loss, units=options.units[0], epochs=options.epochs,
                        seed=options.seeds[0], backend=options.backend, tie_policy=options.tie_policy,
                        candidates=work.data.protocol.candidates, prune=arguments.prune)
        for _outcome in run_search(settings, arguments.trials, url, jobs, replace(work, events=events)):
            publish(work.results, work.data)


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; its exit code."""
    arguments = parse(argv)
    logging.basicConfig(level='WARNING', format='%(message)s')
    logging.getLogger('gru4rec.events').setLevel('INFO')  # how many events each filter drops
    try:
        run(arguments)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        note(f'run_experiments.py: error: {str(message) or type(error).__name__}')
        return 2
    except TasksFailed as error:
        note(f'run_experiments.py: {error}')
        return 1
    except KeyboardInterrupt:
        note('interrupted; the finished cells are kept, and the same command goes on from there')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
