"""Turns of the threads that share a model: any number read it, or one trains it."""
from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator


class ProcessLock:
    """A lock for the threads of one process: a forked child finds it free, whichever thread of its parent held it."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __reduce__(self) -> tuple:  # a copy is another lock
        return ProcessLock, ()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock within."""
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            yield


class Turns:
    """Threads that read one model, and those that train it.

    A thread that starts to train waits until the readers have finished.  One that comes while another trains, or waits
    to train, gets a RuntimeError, and so does a child that is forked meanwhile: nobody sees a half trained model.
    """

    def __init__(self) -> None:
        self._trainer: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._change = threading.Condition()
        self._readers: Counter[int] = Counter()  # thread -> how many of its calls, one within another, read
        self._is_half_trained = self._trainer not in (None, threading.get_ident())
        self._predictor: int | None = None

    def _changing(self) -> threading.Condition:
        """Return the lock of all attributes; a forked child, which has none of its parent's threads, gets a new one."""
        if self._process != os.getpid():
            self._begin()
        if self._is_half_trained:
            raise RuntimeError('this process was forked while another thread trained this GRU4Rec, which is half '
                               'trained here: load or make another one')
        return self._change

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the model as it is within; the thread that trains may come in, too."""
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
        """Let this thread alone use the model within, once the others have left it."""
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

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """Let one call of `predict_next_batch` in: RuntimeError in a second thread, or in a call within a call."""
        with self._changing():
            if self._predictor is not None:
                raise RuntimeError('another thread is in predict_next_batch, whose sessions are those of one caller: '
                                   'call recommend or session, or give each thread a copy (copy.deepcopy)')
            self._predictor = threading.get_ident()
        try:
            yield
        finally:
            self._predictor = None
