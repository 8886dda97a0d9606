"""Functions that tasks of an executor run on workers. They travel by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def run_iterable(fn: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function with one item after another.

    Parameters
    ----------
    fn : callable
        A function of one argument.
    *args : object
        The items.

    Returns
    -------
    list
        What the calls have returned.
    """
    return [fn(item) for item in args]


def run_tuples(fn: Callable[..., Any], *args: Sequence[Any]) -> list[Any]:
    """Call a function with the arguments in one tuple after another."""
    return [fn(*item) for item in args]


def reduction_tree(fn: Callable[..., Any], *args: Any, n: int = 2) -> Any:
    """Reduce items to one value, a few at a time.

    Parameters
    ----------
    fn : callable
        A function that makes one value of a list of values.
    *args : object
        The items, at least one.
    n : int
        The longest list that ``fn`` gets.

    Returns
    -------
    object
        The value; a single item is returned as it is.

    Raises
    ------
    ValueError
        ``n`` is below 2, or there are no items.
    """
    if n < 2 or not args:
        msg = f"reduction_tree of {len(args)} items, {n} at a time: it takes at least one item, and two at a time"
        raise ValueError(msg)
    items = list(args)
    while len(items) > 1:
        groups = [items[start : start + n] for start in range(0, len(items), n)]
        items = [fn(group) if len(group) > 1 else group[0] for group in groups]
    return items[0]


def retrieve_output(arg: Any) -> Any:
    """Return the argument: as a task, this makes one value of what a future stands for.

    Parameters
    ----------
    arg : object
        Any value.

    Returns
    -------
    object
        The same value.
    """
    return arg


def concatenate(*parts: list[Any]) -> list[Any]:
    """Return the items of all lists in one list."""
    return [item for part in parts for item in part]


def split_rows(rows: int, columns: int, *parts: list[Any]) -> list[list[Any]]:
    """Return the items of all lists as rows of a matrix."""
    items = concatenate(*parts)
    return [items[row * columns : (row + 1) * columns] for row in range(rows)]
