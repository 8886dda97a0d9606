"""Keywords of calls: one that is not known is refused with the nearest that is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from vinecore.validators import suggest_name

P = ParamSpec("P")
T = TypeVar("T")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def explain_unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message that ``what`` has no such option, with the nearest or all options."""
    known = list(known)
    hint = suggest_name(name, known) or f"; it has: {', '.join(known)}"
    return f"{what} has no option {name!r}{hint}"


def of(function: Callable[..., object]) -> list[str]:
    """List the keywords that a function takes."""
    parameters = list(inspect.signature(function).parameters.values())
    return [p.name for p in parameters if p.kind in NAMED and p.name != "self"]


def refuse_unknown(function: Callable[P, T]) -> Callable[P, T]:
    """Let a method refuse unknown keywords with the nearest known one.

    Python itself makes such a suggestion since 3.13, with the full name of the method.
    """
    known = of(function)
    allowed = frozenset(known)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if not allowed.issuperset(kwargs):
            (name, *_others) = [name for name in kwargs if name not in allowed]
            # a subclass is what the user has called
            made = function.__name__ == "__init__" and args
            what = type(args[0]).__name__ if made else f"{function.__name__}()"
            raise TypeError(explain_unknown(what, name, known))
        return function(*args, **kwargs)

    return checked
