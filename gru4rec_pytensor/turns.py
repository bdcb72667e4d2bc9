"""Which threads may use a model at a time: any number that read it, or one that trains it."""
from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator


class Turns:
    """Threads that read one model, and those that train it.

    Who comes to train waits until the others have finished what they are at; who comes while one trains, or waits to,
    gets a RuntimeError.  So a reader never sees half of the old model and half of the new one.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._change = threading.Condition()
        self._readers: Counter[int] = Counter()  # thread -> how many of its calls, one within another, read
        self._trainer: int | None = None

    def _changing(self) -> threading.Condition:
        """The lock of what follows.  A forked child has none of the threads that its parent counted."""
        if self._process != os.getpid():
            self._begin()
        return self._change

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A stretch in which the model stays as it is; for the thread that trains, too."""
        thread = threading.get_ident()
        with self._changing():
            if self._trainer not in (None, thread) and thread not in self._readers:
                raise RuntimeError('another thread is training this GRU4Rec: train a copy (copy.deepcopy), and take '
                                   'that when it is ready')
            self._readers[thread] += 1
        try:
            yield
        finally:
            with self._change:
                self._readers[thread] -= 1
                if not self._readers[thread]:
                    del self._readers[thread]
                    self._change.notify_all()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A stretch in which this thread alone may use the model, once the others have left it."""
        thread = threading.get_ident()
        with self._changing():
            if self._trainer is not None:
                raise RuntimeError('this GRU4Rec is being trained already: train a copy (copy.deepcopy)')
            self._trainer = thread
        try:
            with self._change:
                self._change.wait_for(lambda: not self._readers.keys() - {thread})
            yield
        finally:
            self._trainer = None
