"""What the releases draw for each mini-batch from Theano's generator, `mrg`: dropout masks and additional negatives."""
from __future__ import annotations

import numba
import numpy as np

from gru4rec_pytensor.mrg import MAX_STREAMS, Streams


class Masks:
    """The masks of one layer: called with bool (K, B), the lanes at work, it draws bool (K, B, width), True for kept.

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


def fixed_mask(mask: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """The same 0/1 mask (B, width) for each of K mini-batches; if M lanes are at work, they have its first M rows."""
    rows = np.where(lanes, lanes.cumsum(axis=1) - 1, 0)
    return np.asarray(mask, bool)[rows] & lanes[:, :, None]


class NegativeStore:
    """The later release's additional negatives: called with K, it draws those of K mini-batches, int64 (K, n_sample).

    The release draws a store of floor(sample_store / n_sample) mini-batches at once, and again when it is empty, across
    epochs.  A uniform number u gives the item with the smallest index a for which

        cdf_a > u,    cdf_a = sum of counts_b ** sample_alpha over b <= a, divided by the sum over all items,

    summed up in float64 and rounded to float32.  Drawn here as they are needed, which gives the same numbers.

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
        cdf = np.cumsum(item_counts.astype(float) ** sample_alpha)
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


@numba.njit(cache=True, nogil=True)
def _find_items(numbers: np.ndarray, cdf: np.ndarray, first: np.ndarray, items: np.ndarray) -> None:
    """Fill `items` with the smallest index a with cdf[a] > u of each of the numbers u."""
    for i in range(len(numbers)):
        u = numbers[i]
        a = first[min(int(u * len(first)), len(first) - 1)]
        while a < len(cdf) - 1 and cdf[a] <= u:
            a += 1
        items[i] = min(a, len(cdf) - 1)
