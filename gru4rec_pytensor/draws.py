"""Random inputs of mini-batches: the dropout masks and additional negatives that the releases draw from `mrg`."""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np

from gru4rec_pytensor.mrg import MAX_STREAMS, Streams


class Masks:
    """Dropout masks of one layer: called with bool (K, B), the lanes at work, bool (K, B, width), True for kept.

    With M lanes at work the release draws M * width numbers; the rows of idle lanes are False here.

    Parameters
    ----------
    width : units of the layer
    kept : probability with which a unit is kept
    seed, request : of `mrg.Streams`
    """

    def __init__(self, width: int, kept: float, seed: int, request: int) -> None:
        self.width, self.kept, self.streams = width, kept, Streams(seed, request)

    def __call__(self, lanes: np.ndarray) -> np.ndarray:
        n_lanes = lanes.shape[1]
        n_working = lanes.sum(axis=1)
        n_full = int((n_working == n_lanes).sum())  # they come first: a lane that leaves does not come back
        full = self._draw(n_full, n_lanes)
        if n_full == len(lanes):
            return full
        masks = np.zeros((*lanes.shape, self.width), bool)
        masks[:n_full] = full
        for k in range(n_full, len(lanes)):
            masks[k, lanes[k]] = self._draw(1, n_working[k])[0]
        return masks

    def _draw(self, n_minibatches: int, n_lanes: int) -> np.ndarray:
        return self.streams.below(n_minibatches, n_lanes * self.width, self.kept).reshape(-1, n_lanes, self.width)

    def state(self) -> dict[str, np.ndarray]:
        return {'streams': self.streams.state}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.streams.state = state['streams']


def fixed_mask(mask: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """Repeat a 0/1 mask (B, width) for each of K mini-batches; if M lanes are at work, they have its first M rows."""
    rows = np.where(lanes, lanes.cumsum(axis=1) - 1, 0)
    return np.asarray(mask, bool)[rows] & lanes[:, :, None]


class NegativeStore:
    """The later release's additional negatives: called with K, it draws those of K mini-batches, int64 (K, n_sample).

    The release draws a store of floor(sample_store / n_sample) mini-batches at once, and again when it is empty, across
    epochs.  A uniform number u gives the item with the smallest index a for which

        cdf_a > u,    cdf_a = sum of counts_b ** sample_alpha over b <= a, divided by the sum over all items,

    summed up in float64 and rounded to float32.  They are drawn here as they are needed, which gives the same numbers.

    Parameters
    ----------
    item_counts : int64 (n_items,), events of each item in the training data
    sample_alpha, n_sample, sample_store : arguments of `GRU4Rec`
    seed, request : of `mrg.Streams`
    """

    def __init__(self, item_counts: np.ndarray, sample_alpha: float, n_sample: int, sample_store: int, seed: int,
                 request: int) -> None:
        self._n_sample, self._n_minibatches = n_sample, sample_store // n_sample
        n_numbers = self._n_minibatches * n_sample
        n_streams = n_numbers if n_numbers <= 6 else min(n_numbers // 6, MAX_STREAMS)
        self.streams = Streams(seed, request, n_streams)
        self.used = 0  # mini-batches of the store
        with np.errstate(over='ignore'):
            cdf = np.cumsum(item_counts.astype(float) ** sample_alpha)
        if not np.isfinite(cdf[-1]):
            cdf = np.cumsum((item_counts / item_counts.max()) ** sample_alpha)
        self._cdf = (cdf / cdf[-1]).astype(np.float32)
        self._cdf[-1] = 1
        # Where the search for u starts: at the first item with cdf > floor(u G) / G, so that few are left to look at.
        n_parts = 1 << int(2 * len(cdf)).bit_length()
        self._first = np.searchsorted(self._cdf, np.arange(n_parts) / n_parts, side='right').astype(np.int32)

    def __call__(self, n_minibatches: int) -> np.ndarray:
        items = np.empty((n_minibatches, self._n_sample), np.int64)
        done = 0
        while done < n_minibatches:
            n = min(n_minibatches - done, self._n_minibatches - self.used)
            numbers = self.streams.part_of_draw(self.used * self._n_sample, n * self._n_sample)
            _find_items(numbers, self._cdf, self._first, items[done:done + n].reshape(-1))
            done, self.used = done + n, (self.used + n) % self._n_minibatches
        return items

    def state(self) -> dict[str, np.ndarray]:
        return {'streams': self.streams.state, 'used': np.array([self.used])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.streams.state, self.used = state['streams'], state['used'].item()
        if not 0 <= self.used < self._n_minibatches:
            raise ValueError(f'used={self.used}')


@numba.njit(cache=True, nogil=True)
def _find_items(numbers: np.ndarray, cdf: np.ndarray, first: np.ndarray, items: np.ndarray) -> None:
    """Fill `items` with the smallest index a with cdf[a] > u of each of the numbers u."""
    for i in range(len(numbers)):
        u = numbers[i]
        a = first[min(int(u * len(first)), len(first) - 1)]
        while a < len(cdf) - 1 and cdf[a] <= u:
            a += 1
        items[i] = min(a, len(cdf) - 1)


class UniformItems:
    """Items drawn uniformly: called with K, it draws int64 (K, n_drawn), from a stream of NumPy's.

    The releases have none.  A number x of 40 random bits gives the item floor(x n_items / 2^40).
    """

    def __init__(self, n_items: int, n_drawn: int, seed: list[int]) -> None:
        self._n_items, self._n_drawn, self.stream = n_items, n_drawn, np.random.SFC64(np.random.SeedSequence(seed))

    def __call__(self, n_minibatches: int) -> np.ndarray:
        bits = self.stream.random_raw(n_minibatches * self._n_drawn) >> np.uint64(24)
        items = bits * np.uint64(self._n_items) >> np.uint64(40)
        return items.astype(np.int64).reshape(n_minibatches, self._n_drawn)

    def state(self) -> dict[str, np.ndarray]:
        return {'stream': self.stream.state['state']['state']}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.stream.state = self.stream.state | {'state': {'state': state['stream']}}


class FixedNegatives:
    """Given negatives, int64 (mini-batches of all epochs, n_sample): called with K, it returns the next K rows."""

    def __init__(self, negatives: np.ndarray) -> None:
        self._negatives, self.used = negatives, 0

    def __call__(self, n_minibatches: int) -> np.ndarray:
        self.used += n_minibatches
        return self._negatives[self.used - n_minibatches:self.used]

    def state(self) -> dict[str, np.ndarray]:
        return {'used': np.array([self.used])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.used = state['used'].item()


class RandomInputs:
    """The random inputs of mini-batches: called with bool (K, B), the lanes at work, it draws {name: array}.

    The arrays are the masks of each name, bool (K, B, columns), and 'negatives', int64 (K, number).  Masks and
    additional negatives are the releases', number for number: each has the streams that Theano gave it in a new
    process, in the order of their requests: the store of negatives, then the masks.

    Parameters
    ----------
    masks : name -> number of columns, and the probability with which one is kept
    fixed_masks : name -> 0/1 array (B, columns) that is used for every mini-batch instead
    n_sample, sample_alpha, sample_store, item_counts : of `NegativeStore`; n_sample = 0 for no additional negatives
    fixed_negatives : int64 (mini-batches of all epochs, n_sample), used instead
    n_uniform : number of negatives that are drawn uniformly among all items; 0 for none
    n_epochs_before : epochs that the model was trained for before.  Request i of R draws from request number
        R * n_epochs_before + i of the generator, so that further trainings have streams of their own
    """

    def __init__(self, seed: int, masks: dict[str, tuple[int, float]], item_counts: np.ndarray, *,
                 fixed_masks: dict[str, np.ndarray] | None = None, fixed_negatives: np.ndarray | None = None,
                 n_sample: int = 0, sample_alpha: float = 0, sample_store: int = 0, n_uniform: int = 0,
                 n_epochs_before: int = 0) -> None:
        n_stores = int(n_sample > 0)
        first = (n_stores + len(masks)) * n_epochs_before
        self._fixed_masks = fixed_masks or {}
        self._masks = {name: Masks(width, kept, seed, first + n_stores + i)
                       for i, (name, (width, kept)) in enumerate(masks.items()) if not fixed_masks}
        self._negatives: dict[str, NegativeStore | FixedNegatives | UniformItems] = {}
        if fixed_negatives is not None:
            self._negatives['negatives'] = FixedNegatives(fixed_negatives)
        elif n_sample:
            self._negatives['negatives'] = NegativeStore(item_counts, sample_alpha, n_sample, sample_store, seed, first)
        elif n_uniform:
            before = [n_epochs_before] * bool(n_epochs_before)
            self._negatives['negatives'] = UniformItems(len(item_counts), n_uniform, [seed, 2 ** 32 - 1, *before])

    def __call__(self, lanes: np.ndarray) -> dict[str, np.ndarray]:
        fixed = {name: fixed_mask(mask, lanes) for name, mask in self._fixed_masks.items()}
        masks = {name: draw(lanes) for name, draw in self._masks.items()}
        negatives = {name: draw(len(lanes)) for name, draw in self._negatives.items()}
        return fixed | masks | negatives

    def state(self) -> dict[str, np.ndarray]:
        """Return where the streams are."""
        return {f'{name}_{key}': value for name, draw in (self._masks | self._negatives).items()
                for key, value in draw.state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        for name, draw in (self._masks | self._negatives).items():
            draw.restore({key: state[f'{name}_{key}'] for key in draw.state()})


def with_random_inputs(chunks: Iterator, random_inputs: RandomInputs, ahead: bool,
                       with_state: bool) -> Iterator[tuple[Any, dict, dict, bool]]:
    """Yield each chunk, its random inputs, with_state where the streams are after them, and whether it is the last.

    With `ahead` a second thread draws for the next chunk meanwhile: for a device, which leaves the host idle.  On a CPU
    the compiled loop holds the interpreter, and drawing is 5 µs of the 150 that a mini-batch takes with 100 units.
    """
    def draw(chunk: Any) -> tuple[Any, dict, dict]:
        return chunk, random_inputs(chunk.position >= 0), random_inputs.state() if with_state else {}

    with ThreadPoolExecutor(1) as thread:
        before: Any = None
        for chunk in chunks:
            drawn = thread.submit(draw, chunk).result if ahead else partial(draw, chunk)
            if before:
                yield *before(), False
            before = drawn
        if before:
            yield *before(), True
