"""Calls of one function with many arguments in one task."""

from __future__ import annotations

from typing import Any, Callable


class EachElement:
    """A function of a list that calls another one with each element, and returns a list.

    Parameters
    ----------
    function
        The function that is called.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        # the name of the task in texts of errors
        self.__qualname__ = getattr(function, "__qualname__", type(function).__name__)

    def __call__(self, elements: list[Any]) -> list[Any]:
        """Return the values of the function."""
        return [self._function(element) for element in elements]
