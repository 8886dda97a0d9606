"""What is right: what dask's synchronous scheduler finds now, and what may be found where each time gives another value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class WrongValue(AssertionError):
    """A computation has found something that it cannot have found."""


def check_equal(found: Any, expected: Any, what: str) -> None:
    """Compare two values with their types, and those in them."""
    if not equal(found, expected):
        msg = f"{what}: found {found!r} where dask's synchronous scheduler finds {expected!r}"
        raise WrongValue(msg)


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, with their types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def describe_error(error: BaseException | None) -> Any:
    """Give all that a program can see of an error, and of those that led to it."""
    if error is None:
        return None
    own = {name: value for name, value in vars(error).items() if name not in ("__notes__", "ex_notes")}
    return (
        type(error),
        str(error),
        error.args,
        own,
        error.__suppress_context__,
        describe_error(error.__cause__),
        describe_error(error.__context__)
        if error.__cause__ is None and not error.__suppress_context__
        else None,
    )


def check_error(found: BaseException, expected: BaseException | None, what: str) -> None:
    """Compare what two computations have raised."""
    if describe_error(found) != describe_error(expected):
        msg = f"{what}: raised {describe_error(found)} where dask's synchronous scheduler raises {describe_error(expected)}"
        raise WrongValue(msg) from found
    notes = list(getattr(expected, "__notes__", ()))
    if list(getattr(found, "__notes__", ()))[: len(notes)] != notes:
        msg = f"{what}: the notes {notes} are not the first of {found.__notes__}"
        raise WrongValue(msg) from found


class Impure:
    """Knows what vertices have found that find another value each time.

    Parameters
    ----------
    reuse
        Whether a vertex may give again what it has given before.
    earlier
        How many programs have computed the same before, and may have left what they found.
    """

    def __init__(self, reuse: bool, earlier: int = 0) -> None:
        self._reuse, self._earlier = reuse, earlier
        self._owners: dict[Any, Any] = {}
        self._calls = 0

    def check_random(self, values: Iterable[tuple[Any, Any]]) -> None:
        """No two are the same, in any computation of the case.

        Parameters
        ----------
        values
            Pairs of who has made it, and what.
        """
        of_now: dict[Any, Any] = {}
        for owner, value in values:
            if value in of_now:
                msg = f"{owner} and {of_now[value]} of one graph have the same random value {value}"
                raise WrongValue(msg)
            of_now[value] = owner
            before = self._owners.get(value)
            if before is not None and not (self._reuse and before == owner):
                msg = f"{owner} has the random value {value}, which {before} had before"
                raise WrongValue(msg)
        self._owners.update(of_now)

    def check_times(self, values: Iterable[tuple[Any, int]], began: int, ended: int) -> None:
        """All are of this computation, or what the same vertex has found before."""
        for owner, value in values:
            known = (self._reuse and self._owners.get(value) == owner) or (self._earlier and value <= ended)
            if not (known or began <= value <= ended):
                msg = (
                    f"{owner} has the time {value}, which is not in this computation, from {began} to {ended}"
                )
                raise WrongValue(msg)
            self._owners[value] = owner

    def check_counts(self, values: list[int]) -> None:
        """A process counts the calls of a function in it, from 0."""
        self._calls += len(values) * (1 + self._earlier)
        if any(value >= self._calls or value < 0 for value in values):
            msg = f"the counts {values} are not below {self._calls}, the calls so far"
            raise WrongValue(msg)

    def start_again(self) -> None:
        """The module that counts was edited."""
        if not self._reuse:
            self._calls = 0
