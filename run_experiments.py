"""The paper's experiments: Tables 1 to 3 of arXiv 1511.06939 v4, published next to reproduced, and its claims.

    python run_experiments.py                          # Tables 1 and 3, on a synthetic click log
    python run_experiments.py --data DIR               # on the four files of preprocess_rsc15.py
    python run_experiments.py --train F --test F       # on any two files with SessionId, ItemId and Time
    python run_experiments.py --dataset video ...      # with the protocol and the parameters of the paper's VIDEO data
    python run_experiments.py --table 2 --trials 100   # the parameter search
    python run_experiments.py --data DIR --search F    # the best settings for one's own log, in a space of spaces/
    python run_experiments.py --claims --quick         # the claims of sections 3 and 4, with small networks
    python run_experiments.py --parameters FILE...     # networks of later papers, with the parameters of parameters/
    python run_experiments.py --models mine:MyModel    # a model of your own, a class in mine.py, as a row of Table 1
    python run_experiments.py --compare                # all rows in OUT against the best: intervals and p-values
    python run_experiments.py --figures                # Figures 1 and 2 and training curves too, as SVG and PNG

A cell is a model that is trained and evaluated for one number.  Each finished one is a file in OUT/cells and is not run
again; any number of commands may work on the same OUT, also from several machines.  OUT/tables.md, OUT/claims.md and
OUT/report.html show all results in OUT for the data set; OUT/figures holds the pictures of --figures, in a folder for
each data set.
"""
from __future__ import annotations

import gru4rec_pytensor  # isort: skip  # noqa: F401  so that Ctrl-C while the others are imported is no traceback
import argparse
import itertools
import logging
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from evaluation import TIE_POLICIES
from gru4rec_pytensor import backends
from gru4rec_pytensor.events import EQUAL_TIMES, share_of_equal_times
from gru4rec_pytensor.experiments import search, spaces, storage
from gru4rec_pytensor.experiments.cells import LISTS_KEYS, Cell, Request, file_cells, plan
from gru4rec_pytensor.experiments.claims import claims_cells
from gru4rec_pytensor.experiments.datasets import BY_TITLE, Dataset, Source, load_dataset, share, validation_data
from gru4rec_pytensor.experiments.engines import Engine, count_workers, default_jobs, in_processes, on_cluster
from gru4rec_pytensor.experiments.own import EXAMPLE, keep_source, own_row
from gru4rec_pytensor.experiments.protocols import BASELINES, LOSS_NAMES, NETWORK, PROTOCOLS, REVISION, RSC15, VIDEO
from gru4rec_pytensor.experiments.publish import cells_without_ranks, keep_request, publish
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.work import Place, Work, keep_lists, run_cells, run_searches
from gru4rec_pytensor.terminal import Parser, listed, note, positive_number, print_result, whole_number
from preprocess_rsc15 import FILES

# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------

def parse(argv: list[str] | None) -> tuple[Request, Source, Place]:
    """Return what to run, on which data, and where; SystemExit or ValueError if the command line is wrong."""
    parser = Parser(prog='run_experiments.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_version()
    add_options(parser)
    given = parser.parse_args(argv)
    for name in ('table', 'models', 'loss', 'units', 'seeds'):  # a list for each word, flattened, without repetitions
        setattr(given, name, tuple(dict.fromkeys(value for values in getattr(given, name) for value in values)))
    if problem := contradiction(given, parser):
        parser.error(problem)
    own = [name for name in given.models if ':' in name]
    models = tuple(name for name in given.models if name not in own)
    if not given.models:
        models = (*[row for row in RSC15.published if row in BASELINES], NETWORK)
    is_apart = given.parameters or given.claims or given.search or given.lists or given.compare is not None
    searched = {}
    if given.search:
        fixed = given.fixed + [f'n_epochs={given.epochs}'] * bool(given.epochs)
        searched = {'space': spaces.read(given.search, fixed), 'sampler': given.sampler or search.SAMPLERS[0],
                    'metric': given.metric or 'MRR@20', 'timeout': given.timeout or float('inf')}
    request = Request(
        tables=given.table or (() if is_apart and not given.models else (1, 3)),
        models=models,
        losses=given.loss or (*RSC15.parameters,),
        units=given.units or ((100,) if not given.claims else (50, 200) if given.is_quick else (100, 1000)),
        epochs=given.epochs or (3 if given.is_quick else 10),
        seeds=given.seeds or ((42, 43, 44) if given.claims or given.search else (42,)),
        tie_policy=given.tie_policy, backend=backends.resolve(given.backend),
        files=tuple(given.parameters), own_epochs=given.epochs, claims=given.claims, is_quick=given.is_quick,
        n_trials=given.trials or 100, prune=given.prune, figures=given.figures,
        own=tuple(map(own_row, [*own, *given.lists], itertools.chain(given.name, itertools.repeat(None)))),
        compared=None if given.compare is None else tuple(dict.fromkeys(given.compare)), again=given.rerun,
        lists_metrics=given.lists_metrics, search=searched)
    source = Source(PROTOCOLS[given.dataset], given.train, given.test, given.data, given.cache, given.sessions,
                    given.items, BY_TITLE.get(given.published), given.valid)
    folder = given.out.absolute() if given.scheduler else given.out
    url = given.storage or f"sqlite:///{folder / 'search.db'}"
    return request, source, Place(folder, given.jobs, given.scheduler, url, given.checkpoint_every)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for data, networks, searches, processes and folders."""
    group = parser.add_argument_group('the clicks')
    group.add_argument('--dataset', choices=PROTOCOLS, default='rsc15', help='data set of the paper whose '
                       'protocol, parameters and published numbers are used (rsc15)')
    group.add_argument('--data', type=Path, metavar='DIR',
                       help=f'folder with {FILES["train_full"]} and {FILES["test"]}')
    group.add_argument('--train', type=Path, metavar='F', help='tab-separated training events; goes with --test')
    group.add_argument('--test', type=Path, metavar='F', help='tab-separated test events; goes with --train')
    group.add_argument('--published', type=str.lower, choices=BY_TITLE, metavar='TITLE', help='published data set that '
                       f'the files are, for those that no counts tell: {", ".join(BY_TITLE)}')
    group.add_argument('--valid', type=Path, metavar='F', help='events for validation, in place of the last day of '
                       '--train; the best network is trained on both')
    for name in ('sessions', 'items'):
        group.add_argument(f'--{name}', type=positive_number, metavar='N', help='size of the synthetic click log, in '
                           f'{name} ({getattr(RSC15, name):,}; with --dataset video {getattr(VIDEO, name):,})')

    group = parser.add_argument_group('what is trained and evaluated')
    models = (*BASELINES, NETWORK)
    group.add_argument('--table', type=listed(whole_number, (1, 2, 3)), nargs='+', default=(),
                       help='tables to run (1 3)')
    group.add_argument('--models', type=lambda text: [text] if ':' in text else listed(str, models)(text), nargs='+',
                       default=(), help=f'rows to run, of {", ".join(models)} (those of the paper), and models of your '
                       f'own, such as {EXAMPLE}')
    group.add_argument('--loss', type=listed(str, LOSS_NAMES), nargs='+', default=(),
                       help=f'rows of Tables 2 and 3, of {", ".join(RSC15.parameters)} (all); Table 2 also takes mrr')
    group.add_argument('--units', type=listed(positive_number), nargs='+', default=(),
                       help='hidden units, for Tables 2 and 3 (100); for the claims those of small and large networks '
                            '(100,1000; with --quick 50,200)')
    group.add_argument('--epochs', type=positive_number, help='training epochs of GRU4Rec (10; with --quick 3)')
    group.add_argument('--seeds', type=listed(whole_number), nargs='+', default=(),
                       help='one run for each (42; for the claims 42,43,44)')
    group.add_argument('--parameters', type=Path, nargs='+', default=[], metavar='FILE', help='networks with the '
                       "parameters of files, such as those in parameters/ or the authors' own, as rows of a table of "
                       'later papers; without --table nothing else is run')
    group.add_argument('--claims', action='store_true', help='compare the variants of the paper\'s claims')
    group.add_argument('--quick', action='store_true', dest='is_quick', help='claims with fewer units and epochs')
    group.add_argument('--figures', action='store_true', help="after the tables, draw the paper's Figure 1 from the "
                       'layers of the networks, Figure 2 from the first mini-batches, and training curves')
    group.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                       help='rank of a target whose score other items share: before them, after them, in the middle '
                            '(conservative: after them)')

    add_own_options(parser)
    add_search_options(parser)
    group = parser.add_argument_group('where and how')
    group.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    group.add_argument('--jobs', type=positive_number, metavar='N', help='cells or trials that run at the same time, '
                       'each in a process of its own (one for each core, as far as memory goes; on a GPU 1)')
    group.add_argument('--scheduler', metavar='ADDRESS', help='of a Dask cluster whose workers run them; they must see '
                       'OUT under the same name')
    group.add_argument('--checkpoint-every', type=positive_number, default=600, metavar='SECONDS',
                       help='time between two checkpoints, from which a training continues after an interruption (600)')
    group.add_argument('--out', type=Path, metavar='DIR', default='results', help='folder for all results (results)')
    group.add_argument('--cache', type=Path, metavar='DIR', default='cache', help='folder for the synthetic click '
                       'log (cache)')


def add_own_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for rows of one's own and for comparisons."""
    group = parser.add_argument_group('rows of your own, and comparisons')
    group.add_argument('--lists', type=Path, nargs='+', default=[], metavar='FILE', help='lists of 20 items or more '
                       'that another program made, as rows (docs/experiments.md has their form)')
    group.add_argument('--lists-metrics', action='store_true', help='measure lists of 20 items, too: coverage and mean '
                       'popularity')
    group.add_argument('--name', nargs='+', default=[], metavar='TITLE', help='titles of the rows of your own, first '
                       'of --models, then of --lists (the name of the class or file)')
    group.add_argument('--compare', nargs='*', metavar='ROW', help='compare rows of the tables, by their titles: '
                       'several with one another, all with one, or all with the best; without --table and --models '
                       'nothing else is run')
    group.add_argument('--rerun', action='store_true', help='run the cells of --compare again that were kept without '
                       'ranks, by an earlier version')


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for searches."""
    group = parser.add_argument_group('the parameter searches, --table 2 and --search')
    group.add_argument('--search', type=Path, metavar='SPACE', help='file of parameters to search and their values, '
                       "such as those in spaces/ or the authors' own; the best network is then trained on all training "
                       'data and evaluated, with three seeds')
    group.add_argument('--fixed', nargs='+', default=[], metavar='NAME=VALUE,...', help='what the networks of --search '
                       'share, beside what its file says; also a file of parameters')
    group.add_argument('--sampler', choices=search.SAMPLERS, help='of the points of --search: a model of the earlier '
                       'trials, or random numbers (tpe)')
    group.add_argument('--metric', type=metric, metavar='NAME@N', help='what --search maximises: recall, mrr or ndcg '
                       'at any cut-off (mrr@20)')
    group.add_argument('--timeout', type=positive_number, metavar='SECONDS',
                       help='after which --search begins no trial')
    group.add_argument('--trials', type=positive_number, metavar='N', help='points, in Table 2 random ones (100)')
    group.add_argument('--storage', metavar='URL', help='database of the trials, as SQLAlchemy writes it '
                       '(sqlite:///OUT/search.db); processes that share one work on the same search')
    group.add_argument('--prune', action='store_true', help='stop a trial whose metric after an epoch is below the '
                       'median of the others')


def metric(text: str) -> str:
    """Parse the name of a metric."""
    if not re.fullmatch('(recall|mrr|ndcg)@[1-9][0-9]*', text.lower()):
        raise argparse.ArgumentTypeError(f'{text!r} is no metric such as recall@20 or mrr@5')
    return text.lower().replace('recall', 'Recall').replace('mrr', 'MRR').replace('ndcg', 'NDCG')


def contradiction(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str | None:
    """Return which options do not go together, or which package is missing, or None."""
    def used(*names: str) -> list[str]:
        return [f'--{name}' for name in names if getattr(given, name) != parser.get_default(name)]

    def first(*names: str) -> str:
        return next(iter(used(*names)), '')

    of_tables = used('table', 'models', 'loss', 'trials', 'storage', 'prune', 'parameters', 'figures')
    apart, of_rows = first('parameters', 'search', 'lists', 'compare'), first('loss', 'units')
    of_search = first('fixed', 'sampler', 'metric', 'timeout', 'valid')
    of_searches = first('trials', 'storage', 'prune')
    of_files = given.data or given.train
    is_search = given.search or 2 in given.table
    n_own = len(given.lists) + sum(':' in name for name in given.models)
    unpublished = ', '.join(loss for loss in given.loss if loss not in RSC15.parameters)
    problems = [
        (bool(given.train) != bool(given.test), '--train and --test go together'),
        (given.train and given.data, 'give either --data, or --train and --test'),
        ((given.sessions or given.items) and of_files, '--sessions and --items are sizes of the synthetic log; they do '
                                                       'not go with --data or --train'),
        (len(given.name) > n_own, f'--name gives {len(given.name)} titles to {n_own} rows of your own'),
        (given.rerun and given.compare is None, '--rerun goes with --compare'),
        (given.published and not of_files, '--published goes with --data or --train'),
        (given.is_quick and not given.claims, '--quick goes with --claims'),
        (of_search and not given.search, f'{of_search} goes with --search'),
        (given.search and (2 in given.table or given.claims),
         '--search does not go with --claims or --table 2, which is another search'),
        (given.valid and not given.train, '--valid goes with --train and --test'),
        (given.claims and of_tables,
         f"{', '.join(of_tables)} and --claims do not go together: they are of the tables"),
        (apart and of_rows and not (given.table or given.claims or given.models),
         f'{of_rows} goes with --table, without which {apart} runs nothing but its own'),
        (given.scheduler and given.jobs,
         '--jobs and --scheduler do not go together: a cluster runs one cell on each worker'),
        (given.scheduler and is_search and (given.storage or 'sqlite:').startswith('sqlite:'),
         'a search on a cluster needs a database server: --storage postgresql://USER@HOST/DATABASE'),
        (of_searches and not is_search, f'{of_searches} goes with --table 2 or --search'),
        (given.claims and given.units and (len(given.units) != 2 or given.units[0] >= given.units[1]),
         '--units of the claims are two numbers, of small and of large networks'),
        (unpublished and given.table != (2,),
         f'--loss {unpublished} goes with --table 2: the paper has no row for it in Table 3'),
        (2 in given.table and max(len(given.units), len(given.seeds)) > 1,
         '--table 2 searches for networks of one size and with one seed: give one number each'),
        ((is_search or given.claims) and not find_spec('optuna'),
         "--table 2, --search and --claims need Optuna: pip install '.[experiments]'"),
        (given.scheduler and not find_spec('distributed'), "--scheduler needs Dask: pip install '.[cluster]'"),
        (given.figures and not find_spec('matplotlib'), "--figures needs Matplotlib: pip install '.[experiments]'")]
    return next((message for is_wrong, message in problems if is_wrong), None)


# ---------------------------------------------------------------------------------------------------------------------
# From the request to the files
# ---------------------------------------------------------------------------------------------------------------------

def run(request: Request, source: Source, place: Place, command: str) -> int:
    """Run the cells and searches of a request that have no results yet, publish all, and print tables or claims.

    Returns the exit code: 1 if some failed, whose reasons are noted.
    """
    began = datetime.now(UTC).isoformat()
    cells, results = plan(source.protocol, request), Results(place.folder)
    results.make_folders()
    if request.is_search:  # ValueError if the database cannot be used
        with storage.quiet_optuna(), storage.storage_lock(place.storage):
            storage.open_storage(place.storage).engine.dispose()
    n_workers = count_workers(place.scheduler, results.folder) if place.scheduler else 0
    read = load_dataset(source)
    for row in request.own:
        if row.path:
            keep_lists(row, read, results, request)
        else:
            keep_source(row, results.folder / 'sources')
    data = share(read, results.folder / 'data')
    if request.claims:
        cells = claims_cells(data, request)
    keep_request(results, data, request, cells)
    if request.again:
        cells = [*cells, *cells_without_ranks(results, data, cells)]

    engine, jobs = choose_engine(request, place, cells, len(data.train), n_workers)
    note_equal_times(data, source, cells, request)
    note(f"{data.name}: train {data.sizes['train']}; test {data.sizes['test']}; backend {request.backend}; {jobs} at "
         'a time')
    wanted = ('ranks',) * request.again + LISTS_KEYS * request.lists_metrics
    work = Work(data, results, engine, place.every, wanted)
    for _cell in run_cells(cells[::-1] if jobs > 1 else cells, work):  # the longest, which are the last, first
        publish(results, data)
    if request.is_search:
        validation = share(validation_data(source, data), results.folder / 'data')
        for path in run_searches(request, validation, place.storage, jobs, work):
            publish(results, data)
            if path:  # of the best parameters, whose network is trained on all training data
                best = request._replace(files=(path,), own_epochs=None, compared=None)
                keep_request(results, data, best, [])
                for _cell in run_cells(file_cells(path, source.protocol, best), work):
                    publish(results, data)

    key = {'data': data.fingerprint, 'revision': REVISION, 'command': command}
    if not results.path('commands', key).exists():
        results.save('commands', key, {'began': began})
    if request.figures:
        from gru4rec_pytensor.experiments.figures import write_figures  # which needs Matplotlib
        write_figures(results, data, request.losses, request.units)
    texts = publish(results, data, with_report=True)
    print_result(texts.get('claims.md' if request.claims else 'tables.md', ''))
    if work.failures:
        reasons = '; '.join(f'{title}: {" ".join(reason.split())}' for title, reason in work.failures.items())
        note(f'run_experiments.py: {len(work.failures)} failed, the others are kept: {reasons}')
    return 1 if work.failures else 0


def note_equal_times(data: Dataset, source: Source, cells: list[Cell], request: Request) -> None:
    """Note, of files of one's own, how many events have equal times, if a network orders these by their items."""
    networks = [cell.parameters or {} for cell in cells if cell.model == NETWORK]
    if request.is_search:
        networks.append(request.search['space'].fixed if request.search else {})
    if not source.train or all(network.get('equal_times') == 'frame' for network in networks):
        return
    equal = share_of_equal_times(data.train)
    if equal >= EQUAL_TIMES:
        note(f'{equal:.1%} of the training events have the time of another one of their session, and GRU4Rec trains '
             'them in the order of their items; equal_times = "frame" in a file of --parameters keeps the order of the '
             'file')


def choose_engine(request: Request, place: Place, cells: list[Cell], n_events: int,
                  n_workers: int) -> tuple[Engine, int]:
    """Return the engine for cells and trials, and how many of them it runs at a time."""
    if place.scheduler:
        return on_cluster(place.scheduler), n_workers
    models = [cell.model for cell in cells] + [NETWORK] * backends.available_cores() * request.is_search
    # Bytes, as measured; the vectors of BPR-MF double them.
    sizes = [(0.5e9 + 120 * n_events) * (2 if model == 'BPR-MF' else 1) for model in models]
    jobs = place.jobs or default_jobs(sizes, request.backend)
    return in_processes(jobs), jobs


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level='WARNING', format='%(message)s')
    logging.getLogger('gru4rec.events').setLevel('INFO')  # how many events each filter drops
    try:
        command = shlex.join(['python', 'run_experiments.py', *map(storage.without_password, words)])
        return run(*parse(words), command)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        note(f'run_experiments.py: error: {" ".join(str(message).split()) or type(error).__name__}')
        return 2
    except KeyboardInterrupt:
        note('interrupted; the finished cells are kept, and the same command continues from there')
        return 130


if __name__ == '__main__':
    sys.exit(main())
