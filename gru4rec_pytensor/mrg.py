"""Theano's random numbers, from which the authors' release draws its dropout masks: MRG31k3p.

The generator of L'Ecuyer and Touzin (Fast combined multiple recursive generators with multipliers of the form
a = ± 2^q ± 2^r, 2000) has two recurrences and gives their difference:

    x_t = 2^22 x_(t-2) + (2^7 + 1) x_(t-3)       mod m1 = 2^31 - 1
    y_t = 2^15 y_(t-1) + (2^15 + 1) y_(t-3)      mod m2 = 2^31 - 21069
    d_t = x_t - y_t, plus m1 where that is not positive;        u_t = float32(d_t) * 4.6566126e-10

Theano deals its numbers out to streams.  Each random variable of a graph, in the order in which they were made, is a
request for some streams: the first of them starts where the generator is, each other one 2^72 steps after the one
before it, and then the generator jumps 2^134 steps.  Of each draw, number e comes from stream e mod K.
"""
from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numba
import numpy as np

M1, M2 = 2 ** 31 - 1, 2 ** 31 - 21069
STEP1 = ((0, 2 ** 22, 2 ** 7 + 1), (1, 0, 0), (0, 1, 0))  # (x_t, x_(t-1), x_(t-2)) from the three before
STEP2 = ((2 ** 15, 0, 2 ** 15 + 1), (1, 0, 0), (0, 1, 0))
NEXT_STREAM, NEXT_REQUEST = 2 ** 72, 2 ** 134  # steps
MAX_STREAMS = 15_360  # what Theano takes where it does not know the size of a draw when it compiles
UNIT = np.float32(4.6566126e-10)  # 1 / m1

RELEASE_SEED, DEFAULT_SEED = 42, 12_345  # NumPy's seed in the release, and the generator's, which it leaves as it is


def first_state(seed: int) -> tuple[int, ...]:
    """Return the generator's six numbers, x then y, newest first, for a seed of `GRU4Rec`.

    42, the release's seed, gives Theano's default, 12345 six times.  Any other seed gives the first six words of
    NumPy's ``SeedSequence(seed)``, those of x modulo m1 - 1, those of y modulo m2 - 1, plus 1.
    """
    if seed == RELEASE_SEED:
        return (DEFAULT_SEED,) * 6
    words = np.random.SeedSequence(seed).generate_state(6).tolist()
    return tuple(1 + word % (modulus - 1) for word, modulus in zip(words, [M1] * 3 + [M2] * 3))


def jump_matrix(step: tuple, n_steps: int, modulus: int) -> np.ndarray:
    """Return the power of a transition matrix that makes `n_steps` steps at once, (3, 3) of Python's integers."""
    result, power = np.identity(3, dtype=object), np.array(step, dtype=object)
    while n_steps:
        if n_steps & 1:
            result = result @ power % modulus
        power = power @ power % modulus
        n_steps >>= 1
    return result


def jump(state: Any, n_steps: int) -> list[int]:
    """Return a generator's state after `n_steps` steps."""
    return [int(number) for step, part, modulus in ((STEP1, state[:3], M1), (STEP2, state[3:], M2))
            for number in jump_matrix(step, n_steps, modulus) @ np.array([*map(int, part)], dtype=object) % modulus]


class Streams:
    """The streams of one random variable, in the order of requests.

    `seed` is that of `GRU4Rec`, see `first_state`; `request`, how many random variables were made before this one;
    `n_streams` is at most `MAX_STREAMS`.
    """

    def __init__(self, seed: int, request: int, n_streams: int = MAX_STREAMS) -> None:
        self._n_streams = n_streams
        self._state = np.zeros(6 * MAX_STREAMS, np.uint32)
        first = np.array(jump(first_state(seed), NEXT_REQUEST * request), np.uint64)
        next_x, next_y = (jump_matrix(step, NEXT_STREAM, modulus).astype(np.uint64)
                          for step, modulus in ((STEP1, M1), (STEP2, M2)))
        _spread(first, next_x, next_y, n_streams, self._state)

    def uniform(self, n_draws: int, size: int, first: int = 0) -> np.ndarray:
        """Draw uniform numbers, float32 (n_draws, size): of each draw those from number `first` on."""
        numbers = np.empty((n_draws, size), np.uint32)
        _draw(self._state, self._n_streams, first, numbers)
        return numbers.astype(np.float32) * UNIT

    def part_of_draw(self, first: int, size: int) -> np.ndarray:
        """Draw `size` numbers of one draw from number `first` on, float32; those before it must have been drawn."""
        return self.uniform(1, size, first)[0]

    def below(self, n_draws: int, size: int, probability: float) -> np.ndarray:
        """Draw the numbers of `uniform` and return which are below float32(probability), bool (n_draws, size)."""
        is_below = np.empty((n_draws, size), np.bool_)
        _draw_below(self._state, self._n_streams, first_not_below(probability), is_below)
        return is_below

    @property
    def state(self) -> np.ndarray:
        """The states of the streams, uint32 (6, n_streams), as a copy; can be set."""
        return self._state.reshape(6, MAX_STREAMS)[:, :self._n_streams].copy()

    @state.setter
    def state(self, value: np.ndarray) -> None:
        self._state.reshape(6, MAX_STREAMS)[:, :self._n_streams] = value


def first_not_below(probability: float) -> np.uint32:
    """Return the smallest integer d with float32(d) * 4.6566126e-10 >= float32(probability), by bisection."""
    return np.uint32(bisect_left(range(M1 + 1), np.float32(probability), key=lambda d: np.float32(d) * UNIT))


@numba.njit(cache=True)
def _spread(first: np.ndarray, next_x: np.ndarray, next_y: np.ndarray, n_streams: int, state: np.ndarray) -> None:
    """Fill `state`, six numbers for each of MAX_STREAMS, from the first stream's by jumps to the next."""
    numbers = first.copy()
    for s in range(n_streams):
        for k in range(6):
            state[k * MAX_STREAMS + s] = numbers[k]
        before = numbers.copy()
        for k in range(3):
            x = y = np.uint64(0)
            for j in range(3):
                x = (x + next_x[k, j] * before[j]) % np.uint64(M1)
                y = (y + next_y[k, j] * before[3 + j]) % np.uint64(M2)
            numbers[k], numbers[3 + k] = x, y


# Numba makes 64-bit integers of the result of every operation: each is cut back to 32 bits, of which twice as many fit
# into a vector register.  min(y, y - m) subtracts m where y is not smaller, since a negative number wraps around.

@numba.njit
def _modulo1(x: np.uint32) -> np.uint32:
    return min(x, np.uint32(x - np.uint32(M1)))


@numba.njit
def _modulo2(y: np.uint32) -> np.uint32:
    return min(y, np.uint32(y - np.uint32(M2)))


@numba.njit
def _times_2_15(y: np.uint32) -> np.uint32:
    """Return 2^15 y mod m2: the upper bits of y are multiplied by 2^31, which is 21069 modulo m2."""
    low, high = np.uint32(y & np.uint32(0xFFFF)), np.uint32(y >> np.uint32(16))
    return _modulo2(np.uint32(np.uint32(low << np.uint32(15)) + np.uint32(np.uint32(21069) * high)))


@numba.njit
def _next(state: np.ndarray, s: int) -> np.uint32:
    """Move stream s one step on and return its d."""
    x2, x3 = state[MAX_STREAMS + s], state[2 * MAX_STREAMS + s]
    # 2^q x mod 2^31 - 1 is x with its 31 bits rotated by q.
    x2_part = np.uint32(np.uint32(np.uint32(x2 & np.uint32(0x1FF)) << np.uint32(22)) + np.uint32(x2 >> np.uint32(9)))
    x3_part = np.uint32(np.uint32(np.uint32(x3 & np.uint32(0xFFFFFF)) << np.uint32(7)) + np.uint32(x3 >> np.uint32(24)))
    x = _modulo1(np.uint32(_modulo1(np.uint32(x2_part + x3_part)) + x3))
    y1, y2, y3 = state[3 * MAX_STREAMS + s], state[4 * MAX_STREAMS + s], state[5 * MAX_STREAMS + s]
    y = _modulo2(np.uint32(_modulo2(np.uint32(_times_2_15(y1) + _times_2_15(y3))) + y3))
    state[2 * MAX_STREAMS + s], state[MAX_STREAMS + s], state[s] = x2, state[s], x
    state[5 * MAX_STREAMS + s], state[4 * MAX_STREAMS + s], state[3 * MAX_STREAMS + s] = y2, y1, y
    d = np.uint32(x - y)
    return d if x > y else np.uint32(d + np.uint32(M1))


@numba.njit(cache=True, nogil=True)
def _draw(state: np.ndarray, n_streams: int, first: int, numbers: np.ndarray) -> None:
    """Fill each row of `numbers`, uint32 (n_draws, size), with the d of numbers first, first + 1, ... of a draw."""
    for row in range(len(numbers)):
        done, s = 0, first % n_streams
        while done < numbers.shape[1]:
            n = min(n_streams - s, numbers.shape[1] - done)
            for k in range(n):
                numbers[row, done + k] = _next(state, s + k)
            done, s = done + n, 0


@numba.njit(cache=True, nogil=True)
def _draw_below(state: np.ndarray, n_streams: int, limit: np.uint32, is_below: np.ndarray) -> None:
    """Fill `is_below`, bool (n_draws, size), with d < limit."""
    for row in range(len(is_below)):
        for first in range(0, is_below.shape[1], n_streams):
            for s in range(min(n_streams, is_below.shape[1] - first)):
                is_below[row, first + s] = _next(state, s) < limit
