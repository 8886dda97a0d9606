"""The part of the executor that applies functions to many items."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.futures import remote_functions
from vinecore.futures.collected_future import CollectedFuture
from vinecore.futures.future import Timeout, VineFuture, deadline_after
from vinecore.futures.tasks import FutureFunctionCall

if TYPE_CHECKING:
    from vinecore.futures.session import ExecutorSession
    from vinecore.manager.manager import Manager

Library = str | None


class HigherOrderMethods(concurrent.futures.Executor):
    """Functions of many items."""

    manager: Manager
    _session: ExecutorSession

    def map(
        self,
        fn: Callable[..., Any] | str,
        /,
        *iterables: Any,
        library_name: Library = None,
        chunk_size: int = 1,
        timeout: Timeout = None,
        chunksize: int = 1,
    ) -> CollectedFuture:
        """Call a function with each item.

        Parameters
        ----------
        fn : callable or str
            The function, or the name of a function of the library.
        *iterables : iterable
            The items; with several iterables, each call gets one item of each, up to the end of the
            shortest.
        library_name : str or None
            The library that has the function; each item is then one call.
        chunk_size, chunksize : int
            The number of items in one task.
        timeout : float, timedelta or None
            The time in seconds that the items may take, if they are read one after another.

        Returns
        -------
        CollectedFuture
            The future of the list of values. It is also an iterator over them, as that of
            `concurrent.futures.Executor.map`.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type or is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        iterables, library_name, chunk_size = _positional_options(iterables, library_name, chunk_size)
        deadline = deadline_after(timeout)
        size = max(_checked_size("chunk_size", chunk_size), _checked_size("chunksize", chunksize))
        items = list(zip(*iterables, strict=False))
        return self._collect(fn, items, library_name, size, remote_functions.concatenate, deadline)

    def allpairs(
        self,
        fn: Callable[..., Any] | str,
        iterable_rows: Iterable[Any],
        iterable_cols: Iterable[Any],
        library_name: Library = None,
        chunk_size: int = 1,
    ) -> CollectedFuture:
        """Call a function with each pair of items.

        Parameters
        ----------
        fn : callable or str
            A function of two arguments, or the name of a function of the library.
        iterable_rows, iterable_cols : iterable
            The first and the second arguments.
        library_name : str or None
            The library that has the function; each pair is then one call.
        chunk_size : int
            The number of pairs in one task.

        Returns
        -------
        CollectedFuture
            The future of a list of rows, with a value for each column.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type or is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        rows, columns = list(iterable_rows), list(iterable_cols)
        size = _checked_size("chunk_size", chunk_size)
        arrange = functools.partial(remote_functions.split_rows, len(rows), len(columns))
        return self._collect(fn, list(itertools.product(rows, columns)), library_name, size, arrange)

    def _collect(
        self,
        fn: Callable[..., Any] | str,
        items: list[tuple[Any, ...]],
        library_name: Library,
        size: int,
        arrange: Callable[..., Any],
        deadline: float | None = None,
    ) -> CollectedFuture:
        """Submit a function for each tuple of arguments, and collect the values."""
        session = self._session
        if library_name is not None:
            calls = [
                session.submit_task(FutureFunctionCall(self.manager, library_name, fn, *item))
                for item in items
            ]
            return CollectedFuture(self.manager, calls, arrange, session.submit, deadline, is_item=True)
        if isinstance(fn, str) or not callable(fn):
            validators.refuse("fn", fn, "a function, or with library_name the name of one", TypeError)
        parts = [
            session.submit(remote_functions.run_tuples, fn, *items[start : start + size])
            for start in range(0, len(items), size)
        ]
        return CollectedFuture(self.manager, parts, arrange, session.submit, deadline)

    def reduce(
        self,
        fn: Callable[[list[Any]], Any] | str,
        iterable: Iterable[Any],
        library_name: Library = None,
        chunk_size: int = 2,
        fn_arity: int = 2,
    ) -> VineFuture:
        """Reduce items to one value in a tree.

        Parameters
        ----------
        fn : callable or str
            A function that makes one value of a list of values, or the name of a function of the
            library. It has to be associative.
        iterable : iterable
            The items, at least one.
        library_name : str or None
            The library that has the function.
        chunk_size : int
            The number of values that one task reduces, if this is more than ``fn_arity``.
        fn_arity : int
            The longest list that the function gets.

        Returns
        -------
        VineFuture
            The future of the value. A single item is returned as it is.

        Raises
        ------
        TypeError
            There are no items, or a value has a wrong type.
        ValueError
            A value is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        arity = _checked_size("fn_arity", fn_arity, least=2)
        size = max(_checked_size("chunk_size", chunk_size), arity)
        values = list(iterable)
        if not values:
            msg = "reduce() of no items has no value"
            raise TypeError(msg)
        if library_name is None:
            tree = functools.partial(self._session.submit, remote_functions.reduction_tree, fn)

            def reduce_group(group: list[Any]) -> VineFuture:
                return tree(*group, n=arity)
        else:
            size = arity

            def reduce_group(group: list[Any]) -> VineFuture:
                call = FutureFunctionCall(self.manager, library_name, fn, group)
                return self._session.submit_task(call)

        if len(values) == 1:
            return self._session.submit(remote_functions.retrieve_output, values[0])
        while len(values) > 1:
            groups = [values[start : start + size] for start in range(0, len(values), size)]
            values = [reduce_group(group) if len(group) > 1 else group[0] for group in groups]
        return values[0]  # type: ignore[no-any-return]


def _checked_size(name: str, value: Any, least: int = 1) -> int:
    size = validators.whole(name, value)
    if size < least:
        validators.refuse(name, value, f"a whole number of {least} or more", ValueError)
    return size


def _positional_options(
    iterables: tuple[Any, ...], library_name: Library, chunk_size: int
) -> tuple[tuple[Any, ...], Library, int]:
    """Accept ``map(fn, items, library_name, chunk_size)``: neither None nor a number is an iterable."""
    if len(iterables) == 3 and isinstance(iterables[2], int):
        return iterables[:1], iterables[1], iterables[2]
    if len(iterables) == 2 and iterables[1] is None:
        return iterables[:1], None, chunk_size
    return iterables, library_name, chunk_size
