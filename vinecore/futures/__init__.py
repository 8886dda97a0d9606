"""Futures: a standard executor on the workers of a manager. Names and meanings are TaskVine's."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import Any

import cloudpickle

from vinecore import validators
from vinecore.futures import remote_functions
from vinecore.futures.executor import FuturesExecutor
from vinecore.futures.future import Timeout, VineFuture
from vinecore.futures.remote_functions import reduction_tree, retrieve_output, run_iterable
from vinecore.futures.tasks import RESULT_PENDING, FutureFunctionCall, FuturePythonTask

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "RESULT_PENDING",
    "FutureFunctionCall",
    "FuturePythonTask",
    "FuturesExecutor",
    "VineFuture",
    "as_completed",
    "reduction_tree",
    "retrieve_output",
    "run_iterable",
    "wait",
]

# Workers need not have this package.
cloudpickle.register_pickle_by_value(remote_functions)


def wait(fs: Iterable[VineFuture], timeout: Timeout = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait for futures, as `concurrent.futures.wait` does.

    Parameters
    ----------
    fs : iterable of Future
        The futures.
    timeout : float, timedelta, str or None
        Duration in seconds; None or "wait_forever" for no limit.
    return_when : str
        FIRST_COMPLETED, FIRST_EXCEPTION or ALL_COMPLETED.

    Returns
    -------
    named tuple of sets
        The futures that have ended, ``done``, and the others, ``not_done``.

    Raises
    ------
    TypeError, ValueError
        The timeout is no duration, or there is no such ``return_when``.
    """
    return concurrent.futures.wait(fs, validators.timeout("timeout", timeout), return_when)


def as_completed(fs: Iterable[VineFuture], timeout: Timeout = None) -> Iterator[VineFuture]:
    """Yield futures as they end, as `concurrent.futures.as_completed` does.

    Parameters
    ----------
    fs : iterable of Future
        The futures.
    timeout : float, timedelta, str or None
        Duration in seconds; None or "wait_forever" for no limit.

    Returns
    -------
    iterator of Future
        Each future when it has ended.

    Raises
    ------
    TypeError, ValueError
        The timeout is no duration.
    TimeoutError
        Not all futures have ended in time.
    """
    return concurrent.futures.as_completed(fs, validators.timeout("timeout", timeout))  # type: ignore[return-value]
