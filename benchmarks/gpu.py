"""Training and evaluation on a GPU through JAX, next to the floor of the hardware and to plain PyTorch.

    python benchmarks/gpu.py               # 100 and 1000 units; a few minutes
    python benchmarks/gpu.py --units 100

TOP1, B = 50, dropout 0.5, adagrad, 37,483 items, and then bpr-max with 2,048 additional negatives, B = 32, 64 units;
all measured in one call.  Without a GPU everything runs on the CPU, and the first line says so.  PyTorch is left out
where it is not installed.
"""
import argparse
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from speed import fit_rate
from workload import BPR_MAX, N_ITEMS, TOP1, events

import gru4rec
from evaluation import next_item_ranks
from gru4rec_pytensor.backends.jax_loops import JaxLoop

try:
    import torch
    import torch_loops
except ImportError:
    torch = None

B = TOP1['batch_size']
BANDWIDTH, LAUNCH = 3.35e12, 2e-6  # of an H100: bytes/s, and seconds between two small kernels of a program


def floor(units: int, kernels: int) -> tuple[float, float]:
    """Seconds of a step by what it reads and writes, and by its number of kernels."""
    dense, rows = 3 * units * units, 4 * B * units
    n_bytes = 4 * (5 * dense + 6 * rows)  # weights: read twice, written once; accumulators: read and written once
    return n_bytes / BANDWIDTH, kernels * LAUNCH


def compiled_step(units: int) -> tuple[int, str]:
    """Operations in the body of the compiled loop that are kernels of their own, and the program's memory in words."""
    settings = gru4rec.GRU4Rec([units], **TOP1).settings(N_ITEMS)
    variables = gru4rec.Variables.of(settings, gru4rec.initial_weights(settings, np.random.RandomState(0)))
    states = {'H0': gru4rec.shared('H0', np.zeros((B, units), 'float32'))}
    with pytensor.config.change_flags(floatX='float32'):
        step = gru4rec.training_step(settings, gru4rec.shared('events', np.zeros(1000, 'int64')), variables, states)
    loop = JaxLoop(*step)
    n = gru4rec.chunk_length(settings)
    sequences = [np.zeros((n, B), 'int64'), np.zeros((n, B), bool), np.zeros((n, B, units), bool)]
    compiled: Any = loop.program.lower(n, sequences, loop.step.values()).compile()
    program, used = compiled.as_text(), compiled.memory_analysis()
    matrices = sum(value.nbytes for value in loop.step.values())
    in_place, workspace = used.alias_size_in_bytes, used.temp_size_in_bytes
    memory = (f'weights, accumulators and events {matrices / 1e6:,.0f} MB, of which {in_place / 1e6:,.0f} MB are '
              f'overwritten in place; {n} mini-batches with their masks '
              f'{(used.argument_size_in_bytes - matrices) / 1e6:,.1f} MB; workspace {workspace / 1e6:,.1f} MB')
    (body,) = set(re.findall(r'while\(.*body=%?([\w.\-]+)', program))
    text = re.findall(rf'^%?{re.escape(body)} .*?^}}', program, re.M | re.S)[0]
    return len(re.findall(r'= \S+ (?:fusion|custom-call|dot|scatter|gather|call|copy|sort|reduce)\(', text)), memory


def print_rates(frame, units: int, on_gpu: bool, parameters: dict, loop: Any) -> None:
    """Mini-batches a second of the backend, and of the PyTorch `loop`, if there is one, eager and compiled."""
    rates = {'JAX': fit_rate(frame, units, backend='jax', **parameters)}
    if loop:
        device = 'cuda' if on_gpu else 'cpu'
        rates |= {f'PyTorch, {name}': loop(units, device, name == 'compiled').rate() for name in ('eager', 'compiled')}
    for name, seconds in rates.items():
        print(f'{name:<20} {seconds * 1e6:>8.0f} µs a mini-batch {1 / seconds:>8.0f} mini-batches/s '
              f'{seconds / rates["JAX"]:>6.2f} x JAX', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--units', type=int, nargs='+', default=[100, 1000])
    arguments = parser.parse_args()
    device = jax.devices()[0]
    on_gpu = device.platform == 'gpu'
    print(f'{device.device_kind if on_gpu else "CPU, no GPU: the floors are those of an H100 all the same"}; '
          f'Python {platform.python_version()}, PyTensor {pytensor.__version__}, JAX {jax.__version__}, '
          f'PyTorch {torch.__version__ if torch else "not installed"}')
    for units in arguments.units:
        kernels, memory = compiled_step(units)
        by_bytes, by_kernels = floor(units, kernels)
        print(f'\n{units} units: floor {by_bytes * 1e6:.1f} µs by bytes, {by_kernels * 1e6:.0f} µs by {kernels} '
              f'kernels\nmemory: {memory}')
        frame = events(4_000_000 if on_gpu else 20_000_000 // units)
        print_rates(frame, units, on_gpu, TOP1, torch and torch_loops.TorchGRU4Rec)
        model = gru4rec.GRU4Rec([units], n_epochs=1, backend='jax', **TOP1).fit(frame[:200_000])
        test = events(70_000 if on_gpu else 7_000, seed=1)
        test = test[test.ItemId.isin(model.items_)]
        next_item_ranks(model, test)
        started = time.perf_counter()
        n = len(next_item_ranks(model, test))
        seconds = time.perf_counter() - started
        print(f'{"evaluation":<20} {seconds:>8.2f} s for {n:,} predictions among {model.n_items:,} items', flush=True)
    print(f"\nbpr-max, 64 units, {BPR_MAX['n_sample']:,} additional negatives")
    frame = events(1_000_000 if on_gpu else 50_000)
    print_rates(frame, 64, on_gpu, BPR_MAX, torch and torch_loops.TorchLater)


if __name__ == '__main__':
    main()
