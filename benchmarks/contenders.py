"""The columns of the table, and the process that each contender of a case runs in.

A process of its own: threads, caches, garbage and imported modules of one contender do not slow down another.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pkgutil
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.sizes import SLOTS, Size

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.jobs import Job

CONTENDERS: Final = {
    "daskvine": ("daskvine", "benchmarks.with_daskvine:Vine"),
    "synchronous": ("dask\nsynchronous", "benchmarks.with_dask:Synchronous"),
    "threads": (f"dask\n{SLOTS} threads", "benchmarks.with_dask:Threads"),
    "distributed": (f"distributed\n{SLOTS} processes", "benchmarks.with_distributed:Cluster"),
    "bare": (f"bare\n{SLOTS} processes", "benchmarks.bare:Bare"),
}
"""Name: heading, and the class with a method for each case that it takes part in."""

PATIENCE_S = 900.0
GRACE_S = 30.0


class Outcome(NamedTuple):
    """What came of one run."""

    seconds: float  # or what else was measured
    amount: float
    result: Any


class ContenderFailed(RuntimeError):
    """A contender could not do its job; the message has its traceback."""


class Contestant:
    """A contender of one case, in a process of its own.

    Parameters
    ----------
    contender
        A name in `CONTENDERS`.
    case
        The name of the case.
    """

    def __init__(self, contender: str, case: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._about = f"{contender}, {case}"
        self._connection, theirs = context.Pipe()
        # not a daemon: those may not start processes, and most contenders do
        self._process = context.Process(target=_serve, args=(theirs, contender, case), name=self._about)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until it has started what it needs."""
        self._answer()

    def prepare(self, size: Size, part: str) -> None:
        """Have everything there that is not to be timed."""
        self._connection.send((size, part))
        self._answer()

    def start(self) -> None:
        """Begin the job that was prepared."""
        self._connection.send(None)

    def outcome(self) -> Outcome:
        """Wait for the end of the job."""
        outcome = self._answer()
        assert isinstance(outcome, Outcome)
        return outcome

    def run(self) -> Outcome:
        """Do the job that was prepared."""
        self.start()
        return self.outcome()

    def _answer(self) -> Any:
        problem = f"no answer for {PATIENCE_S:.0f} s"
        try:
            answer = self._connection.recv() if self._connection.poll(PATIENCE_S) else problem
        except (EOFError, ConnectionResetError):
            answer = "the process is gone"
        if isinstance(answer, str):
            msg = f"{self._about}: {answer}"
            raise ContenderFailed(msg)
        return answer

    def close(self) -> None:
        """Let it close what it has started."""
        self._connection.close()
        self._process.join(GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _end_with_parent() -> None:
    """Do not outlive a benchmark that was killed; what this process has started watches over its parent, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(connection: Connection, contender: str, case: str) -> None:
    """Run jobs until the other end hangs up."""
    threading.Thread(target=_end_with_parent, name="watch-parent", daemon=True).start()
    try:
        contestant = pkgutil.resolve_name(CONTENDERS[contender][1])()
        with getattr(contestant, case)() as prepare:
            connection.send(None)
            while True:
                job = prepare(*connection.recv())
                gc.collect()
                connection.send(None)
                connection.recv()
                connection.send(_run(job))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the other end has hung up
        pass
    except Exception:  # noqa: BLE001 - raised at the other end
        connection.send(traceback.format_exc())


def _run(job: Job) -> Outcome:
    start = time.perf_counter()
    result = job.run()
    seconds = time.perf_counter() - start
    if job.measures:
        return Outcome(result, job.amount, None)
    if job.expected is None:
        return Outcome(seconds, job.amount, result)
    if result != job.expected:
        msg = f"wrong result: {result!r:.200} is not {job.expected!r:.200}"
        raise AssertionError(msg)
    return Outcome(seconds, job.amount, None)
