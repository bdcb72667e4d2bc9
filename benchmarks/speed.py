"""Speed of training and evaluation, next to what the arithmetic allows.

    python benchmarks/speed.py            # the main table: a few minutes on an idle machine
    python benchmarks/speed.py --sizes    # the same work over events, items, units and batch sizes
    python benchmarks/speed.py --threads  # training with 1 thread of BLAS and with all, idle and beside a busy process
    python benchmarks/speed.py --tricks   # training with and without each trick of `backends`, in turns: 45 minutes
    python benchmarks/speed.py --tricks row_updates joint_row_updates  # without these alone

Every ratio comes from one run: both of its times are measured here, in turns, and the best of several is taken.  One
BLAS thread unless a row says otherwise.  The data is synthetic: Zipf items, sessions of four events on average.
"""
import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pytensor
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import yardstick
from workload import BPR_MAX, CROSS_ENTROPY, N_ITEMS, TOP1, best, events

from baselines import BPR, ItemKNN, Pop, SessionPop
from evaluation import next_item_ranks
from gru4rec import GRU4Rec
from gru4rec_pytensor.backends import TRICKS

OF_TRICKS = {'TOP1, H=100, B=50': (100, TOP1, 500_000), 'cross-entropy, H=100, B=500': (100, CROSS_ENTROPY, 500_000),
             'bpr-max, H=64': (64, BPR_MAX, 100_000)}  # units, parameters, events


def fit_rate(frame: pd.DataFrame, units: int, threads: int | None = None, **parameters) -> float:
    """Seconds per mini-batch of `GRU4Rec.fit`, from the end of the first chunk of mini-batches to that of the last.

    Drawing dropout masks and making mini-batches are part of it, compilation is not.
    """
    reports = []
    model = GRU4Rec([units], n_epochs=1, **parameters)
    model.fit(frame, callback=lambda progress: reports.append((time.perf_counter(), progress.minibatches)),
              threads=threads)
    (start, first), (end, last) = reports[0], reports[-1]
    return (end - start) / (last - first)


def yardstick_rate(units: int = 100, batch_size: int = 50, n_items: int = N_ITEMS, steps: int = 1000) -> float:
    """Seconds per mini-batch of the step written by hand, on random mini-batches of the same kind."""
    rng = np.random.default_rng(0)
    frame = events(steps * batch_size, n_items)
    items = rng.permutation(frame.ItemId.to_numpy()[:steps * batch_size].copy()).reshape(-1, batch_size)
    targets = rng.permuted(items, axis=1)
    starts = rng.random(items.shape) < 1 / 3
    masks = rng.random((*items.shape, units)) < 0.5
    shapes = [(n_items, 3 * units), (3 * units,), *[(units, units)] * 3, (n_items, units), (n_items,)]
    weights = [rng.uniform(-0.1, 0.1, shape).astype('float32') for shape in shapes]
    accumulators = [np.zeros_like(weight) for weight in weights]
    H, losses = np.zeros((batch_size, units), 'float32'), np.empty(len(items), 'float32')
    arrays = [*weights, *accumulators, H, losses]

    def run():
        yardstick.run(items, targets, starts, masks, np.float32(2), np.float32(0.01), *arrays)
    run()
    return best(run) / len(items)


def product_rate(units: int, batch_size: int) -> float:
    """Seconds of a step's ten matrix products alone, in NumPy, into existing arrays."""
    rng = np.random.default_rng(0)
    h, sampled, gate = rng.random((3, batch_size, units), dtype='float32')
    W = rng.random((units, units), dtype='float32')
    scores = rng.random((batch_size, batch_size), dtype='float32')
    out_h, out_W, out_s = np.empty_like(h), np.empty_like(W), np.empty_like(scores)

    def run():
        for _ in range(10):
            for _ in range(3):
                np.dot(h, W, out=out_h)
                np.dot(h.T, gate, out=out_W)
            np.dot(gate, W.T, out=out_h)
            np.dot(h, sampled.T, out=out_s)
            np.dot(scores, sampled, out=out_h)
            np.dot(scores.T, h, out=out_h)
    return best(run) / 10


def stream_rate(units: int, batch_size: int) -> float:
    """Seconds to read and write once, in NumPy, what adagrad's updates read and write in a step."""
    n = 3 * units * units + 4 * batch_size * units
    weight, acc, gradient = np.ones((3, n), dtype='float32')

    def run():
        np.add(acc, gradient, out=acc)
        np.subtract(weight, acc, out=weight)
    return best(run, 20)


def many_negatives_rate(units: int, batch_size: int, n_sample: int) -> float:
    """Seconds of the work that a step with additional negatives has to do, in NumPy, into existing arrays.

    The products of a step without them; those of scores, their gradients by states and by rows; exp over all scores,
    once for the softmax and once for the sigmoid; and what is read and written once of the rows, which lie side by side
    here, of weights, accumulators and velocities.
    """
    rng = np.random.default_rng(0)
    h, rows = rng.random((batch_size, units), dtype='float32'), rng.random((batch_size + n_sample, units), 'float32')
    scores, out_rows, out_h = np.empty((batch_size, len(rows)), 'float32'), np.empty_like(rows), np.empty_like(h)
    weight, acc, vel, gradient = np.ones((4, batch_size + len(rows), units), 'float32')

    def run():
        np.dot(h, rows.T, out=scores)
        np.exp(scores, out=scores)
        np.exp(scores, out=scores)
        np.dot(scores, rows, out=out_h)
        np.dot(scores.T, h, out=out_rows)
        np.add(acc, gradient, out=acc)
        np.subtract(vel, gradient, out=vel)
        np.add(weight, vel, out=weight)
    with np.errstate(over='ignore'):
        return best(run, 20) + product_rate(units, batch_size) + stream_rate(units, batch_size)


def later_rows(frame):
    """bpr-max with 2,048 additional negatives next to its bound and, where it is installed, to a plain PyTorch loop."""
    seconds = min(fit_rate(frame, 64, **BPR_MAX) for _ in range(3))
    name = 'fit, bpr-max, H=64, B=32, 2,048 negatives'
    yield f'{name}: against the bound', seconds, many_negatives_rate(64, BPR_MAX['batch_size'], BPR_MAX['n_sample'])
    try:
        import torch
        import torch_loops
    except ImportError:
        return
    torch.set_num_threads(1)
    yield f'plain PyTorch {torch.__version__}, the same step: fit against it', torch_loops.TorchLater(
        64, 'cpu', compiled=False).rate(), seconds


def training_rows(frame):
    for units, parameters, name in ((100, TOP1, 'TOP1, H=100, B=50'),
                                    (100, CROSS_ENTROPY, 'cross-entropy, H=100, B=500'),
                                    (1000, TOP1, 'TOP1, H=1000, B=50')):
        subset = frame[:len(frame) // 2] if units == 100 else frame[:len(frame) // 10]
        seconds = min(fit_rate(subset, units, **parameters) for _ in range(3))
        if units == 100 and parameters is TOP1:
            yield f'fit, {name}: against the step by hand', seconds, yardstick_rate()
        bound = product_rate(units, parameters['batch_size']) + stream_rate(units, parameters['batch_size'])
        yield f'fit, {name}: against products and streaming', seconds, bound
    yield from later_rows(frame[:len(frame) // 5])


def evaluation_rows(train, test):
    model = GRU4Rec([100], n_epochs=1, **TOP1).fit(train)
    Wy, H = model.weights()['Wy'], np.random.default_rng(0).random((100, 100), dtype='float32')
    n_predictions = len(test) - test.SessionId.nunique()
    for threads in (1, os.cpu_count()):
        with threadpool_limits(threads):
            next_item_ranks(model, test[:1000])
            seconds = best(lambda: next_item_ranks(model, test), 3)
            bound = best(lambda: H @ Wy.T, 20) / 100 * n_predictions
        yield f'evaluation, {n_predictions:,} predictions, {threads} thread(s): against H @ Wy.T', seconds, bound


def baseline_rows(train, test):
    for name, model in (('POP', Pop()), ('S-POP', SessionPop()), ('Item-KNN', ItemKNN()),
                        ('BPR-MF, 100 factors, 1 epoch', BPR(n_iterations=1))):
        model.fit(train[:10_000])  # compiles
        yield f'{name}: fit, {len(train):,} events', best(lambda model=model: model.fit(train), 1), None
        ranking = best(lambda model=model: next_item_ranks(model, test), 1)
        yield f'{name}: ranks of {len(test):,} test events', ranking, None


START_UP = """
import sys, time
import pandas as pd
frame = pd.DataFrame({'SessionId': [k // 2 for k in range(400)], 'ItemId': [k % 97 for k in range(400)], 'Time': 0})
from gru4rec import GRU4Rec
from evaluation import next_item_ranks
started, first = time.perf_counter(), []
model = GRU4Rec([100], n_epochs=1, loss='top1', batch_size=50, dropout_p_hidden=0.5)
model.fit(frame, callback=lambda progress: first.append(time.perf_counter()))
trained = time.perf_counter()
next_item_ranks(model, frame[:20])
print(first[0] - started, time.perf_counter() - trained)
"""


def start_up_rows():
    """Seconds from the call of `fit` to its first mini-batches, in new processes: first with an empty compile cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {'PYTENSOR_FLAGS': f'base_compiledir={cache}', 'NUMBA_CACHE_DIR': cache,
                                    'PYTHONPATH': str(ROOT)}
        for state in ('empty', 'warm'):
            output = subprocess.run([sys.executable, '-c', START_UP], env=environment, capture_output=True, text=True,
                                    check=True).stdout
            fit, evaluation = map(float, output.split())
            yield f'first mini-batches, {state} compile cache', fit, None
            yield f'first ranks, {state} compile cache', evaluation, None


def peak_memory() -> float:
    """Largest resident memory of this process since `forget_peak_memory`, in bytes.  Linux only, as that is."""
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return 1024 * int(status['VmHWM'].split()[0])


def forget_peak_memory():
    Path('/proc/self/clear_refs').write_text('5')


def size_rows():
    state = 2 * 4 * (401 * N_ITEMS + 30_300)  # bytes of weights and accumulators
    for n_events in (1_000_000, 4_000_000, 16_000_000, 32_000_000):
        frame = events(n_events)
        forget_peak_memory()
        yield f'events {n_events:,}', fit_rate(frame, 100, **TOP1), 50
        print(f'    peak memory of the process, frame included, over the {state / 1e6:.0f} MB of weights and '
              f'accumulators: {(peak_memory() - state) / 1e9:.2f} GB')
    for n_items in (3_000, 37_483, 330_000):
        yield f'items {n_items:,}', fit_rate(events(2_000_000, n_items), 100, **TOP1), 50
    for units in (50, 100, 200, 500, 1000):
        yield f'units {units}', fit_rate(events(60_000_000 // units), units, **TOP1), 50
    for batch_size in (32, 50, 100, 200, 500):
        seconds = fit_rate(events(2_000_000), 100, **TOP1 | {'batch_size': batch_size})
        yield f'batch size {batch_size}', seconds, batch_size


@contextlib.contextmanager
def busy_process():
    """Let another process use a core meanwhile."""
    process = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def thread_rows():
    """Seconds per mini-batch with one thread of BLAS and with one for each core, and how many of a thousand weights
    differ between the two after 100 mini-batches."""
    for units, parameters in ((100, TOP1), (100, CROSS_ENTROPY), (200, TOP1), (300, TOP1), (500, TOP1), (1000, TOP1)):
        numbers, few = (1, os.cpu_count()), events(100 * parameters['batch_size'])
        weights = [GRU4Rec([units], n_epochs=1, **parameters).fit(few, threads=n).weights()['Wh0'] for n in numbers]
        differ = 1000 * (weights[0] != weights[1]).mean()
        frame = events(1500 * parameters['batch_size'])
        for name, others in (('idle', contextlib.nullcontext()), ('beside a busy process', busy_process())):
            with others:
                seconds = [fit_rate(frame, units, n, **parameters) for n in numbers]
            yield f"{units} units, {parameters['batch_size']} lanes, {name}", *seconds, differ


def trick_rows(tricks, rounds=8):
    """Seconds per mini-batch of each of `OF_TRICKS` without a trick of `backends` and with all, and their ratio.

    Two processes measure in turns, so that what the machine does meanwhile is the same for both; medians of `rounds`.
    """
    script = ('import sys, speed; frame = speed.events(500_000)\n'
              'for _line in sys.stdin:\n'
              '    print(*[speed.fit_rate(frame[:n_events], units, **parameters)\n'
              '            for units, parameters, n_events in speed.OF_TRICKS.values()], flush=True)')

    def start(trick):
        environment = os.environ | {'GRU4REC_WITHOUT': trick, 'PYTHONPATH': str(Path(__file__).parent)}
        process = subprocess.Popen([sys.executable, '-c', script], env=environment, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        measure(process)  # compiles, and is not counted
        return process

    def measure(process):
        print(file=process.stdin, flush=True)
        return [float(seconds) for seconds in process.stdout.readline().split()]

    with_all = start('')
    for trick in tricks:
        without = start(trick)
        pairs = np.array([(measure(without), measure(with_all)) for _ in range(rounds)])
        without.communicate()
        ratios = np.median(pairs[:, 0] / pairs[:, 1], axis=0)
        yield trick, *zip(*np.median(pairs, axis=0), ratios)
    with_all.communicate()


def print_row(name, seconds, bound):
    def text(value):
        return f'{value * 1e6:.0f} µs' if value < 1e-3 else f'{value * 1e3:.2f} ms' if value < 1 else f'{value:.1f} s'
    ratio = f'{text(bound):>10} {bound / seconds:>6.2f}' if bound else ''
    print(f'{name:<74} {text(seconds):>10} {ratio}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', action='store_true')
    parser.add_argument('--threads', action='store_true')
    parser.add_argument('--tricks', nargs='*', choices=[*TRICKS], metavar='TRICK')
    arguments = parser.parse_args()
    print(f'Python {platform.python_version()}, PyTensor {pytensor.__version__}, Numba {numba.__version__}, '
          f'NumPy {np.__version__}, {os.cpu_count()} cores')
    if arguments.sizes:
        print(f"{'TOP1, H=100, B=50 but for what is named':<74} {'mini-batch':>10} {'per event':>10}")
        with threadpool_limits(1):
            for name, seconds, batch_size in size_rows():
                print(f'{name:<74} {seconds * 1e6:>7.0f} µs {seconds / batch_size * 1e6:>7.2f} µs', flush=True)
        return
    if arguments.threads:
        print(f"{'ms a mini-batch':<44} {'1 thread':>9} {f'{os.cpu_count()} threads':>9} {'differ':>9}")
        for name, *seconds, differ in thread_rows():
            print(f'{name:<44}', *[f'{1e3 * value:>9.3f}' for value in seconds], f'{differ:>8.0f}‰', flush=True)
        return
    if arguments.tricks is not None:
        print(f"{'without / with, and their ratio':<24}", *[f'{name:>27}' for name in OF_TRICKS])
        for name, *pairs in trick_rows(arguments.tricks or TRICKS):
            print(f'{name:<24}', *[f'{without * 1e6:>12.0f} / {with_all * 1e6:>4.0f} {ratio:>7.3f}'
                                   for without, with_all, ratio in pairs], flush=True)
        return
    print(f"{'':<74} {'time':>10} {'bound':>10} {'bound/time':>6}")
    train, test = events(2_000_000), events(70_000, seed=1)
    with threadpool_limits(1):
        for row in training_rows(train):
            print_row(*row)
    for rows in (evaluation_rows(train, test), baseline_rows(train, test), start_up_rows()):
        for row in rows:
            print_row(*row)


if __name__ == '__main__':
    main()
