"""Check and convert the values that a user gives.

The engine computes with plain values of Python, and sends them: a value of another type would fail far away from
the user's call, in the server thread. So each setter passes its value through one of these functions. A check
takes the user's name of the value, and the value. It returns the plain value, or raises an error with the name,
the value and the allowed ones.

Whole numbers of NumPy are whole numbers. A text is never a number, and neither is a Boolean.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, NoReturn

from vinecore.constants import Schedule
from vinecore.protocol.validation import MAX_MACHINE_AMOUNT, is_unicode
from vinecore.resources.amounts import ResourceRequest

MOST = 1 << 53
"""No number is larger: up to here whole numbers survive being sent, and written to a journal."""
MAX_PRIORITY = 1e300
"""The largest priority: sums of two are still finite."""
RESOURCES = ResourceRequest._fields
FOREVER = "wait_forever"
PLAIN_NUMBERS = (int, float)
MIN_TIME_US = 1e14
"""No time is smaller, in microseconds since the epoch: that is one in seconds, or a duration."""
SCHEDULES = ("", *(rule.name.lower() for rule in Schedule if rule))
"""Rules that choose a worker, by TaskVine's numbers; "" is the usual one."""
NOTHING: Mapping[Any, Any] = {}


def refuse(name: str, value: object, allowed: str, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise the error about a value.

    Raises
    ------
    TypeError, ValueError
        As ``kind`` says.
    """
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]}... ({len(shown):,} characters)"
    msg = f"{name}={shown}: use {allowed}"
    raise kind(msg)


def number(name: str, value: Any, least: float = 0, most: float = MOST, unit: str = "") -> float:
    """Take a finite number within bounds; one without a fraction comes back as int."""
    plain = _bounded(name, value, least, most, "a number", unit)
    return int(plain) if plain == int(plain) else plain


def whole(name: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """Take a whole number within bounds."""
    plain = _bounded(name, value, least, most, "a whole number")
    if plain != int(plain):
        refuse(name, value, f"a whole number of {least:,} or more")
    return int(plain)


def _bounded(name: str, value: Any, least: float, most: float, what: str, unit: str = "") -> float:
    if type(value) in PLAIN_NUMBERS and least <= value <= most:  # mostly; the rest takes longer
        return value  # type: ignore[no-any-return]
    allowed = (what if least <= -MOST else f"{what} of {least:,} or more") + unit
    if not _is_number(value):
        refuse(name, value, allowed, TypeError)
    if not (isinstance(value, Integral) or math.isfinite(value)):
        refuse(name, value, f"{allowed} that is finite")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if plain > most:
        refuse(name, value, f"{what} of {most:,} or less{unit}")
    if plain < least:
        refuse(name, value, allowed)
    return plain


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def amount(name: str, value: Any) -> float | None:
    """Take an amount of cores or gpus; None leaves it open."""
    return None if value is None else number(name, value)


def megabytes(name: str, value: Any) -> int | None:
    """Take an amount of memory or disk in MB, rounded up; None leaves it open."""
    return None if value is None else math.ceil(number(name, value, unit=" (MB)"))


def mapping(name: str, value: Any, such_as: str) -> Mapping[Any, Any]:
    """Take a dict; None for an empty one."""
    if value is None:
        return NOTHING
    if type(value) is dict:
        return value
    if not isinstance(value, Mapping):
        refuse(name, value, f"a dict, such as {such_as}", TypeError)
    return value


def request(name: str, value: Any) -> ResourceRequest:
    """Take a dict with any of cores, memory, disk and gpus, or an object that has them as attributes.

    In an object a negative amount is one that is not given, as in TaskVine's records of resources.
    """
    allowed = f"a dict with any of {', '.join(RESOURCES)}, such as {{'cores': 1, 'memory': 2000}}"
    if not isinstance(value, Mapping) and any(hasattr(value, resource) for resource in RESOURCES):
        amounts = {resource: getattr(value, resource, None) for resource in RESOURCES}
        value = {name: n for name, n in amounts.items() if n is None or not _is_number(n) or n >= 0}
    if not isinstance(value, Mapping):
        refuse(name, value, allowed, TypeError)
    for resource in value:
        if resource not in RESOURCES:
            refuse(
                name, dict(value), f"{allowed}; {resource!r} is not known{suggest_name(resource, RESOURCES)}"
            )
    return ResourceRequest(
        amount("cores", value.get("cores")),
        megabytes("memory", value.get("memory")),
        megabytes("disk", value.get("disk")),
        amount("gpus", value.get("gpus")),
    )


def slots(name: str, value: Any) -> int:
    """Take a number of slots."""
    return whole(name, value, 1, MAX_MACHINE_AMOUNT)


def seconds(name: str, value: Any, least: float = 0) -> float:
    """Take a duration: seconds, or a timedelta."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return number(name, value, least, unit=" (seconds), or a timedelta")


def microseconds(name: str, value: Any) -> float:
    """Take a time in microseconds since the epoch; return 0 for less than 1, which is no time."""
    time_us = number(name, value, -MOST, unit=" (microseconds since the epoch)")
    if 0 < time_us < MIN_TIME_US:
        refuse(name, value, "microseconds since the epoch, such as (time.time() + 60) * 1e6")
    return max(0, time_us)


def exec_mode(name: str, value: Any) -> str:
    """Take how calls of a library run."""
    if value not in ("fork", "direct"):
        refuse(
            name,
            value,
            "'fork' (a child process for each call) or 'direct' (one call after another in a slot)",
        )
    return str(value)


def schedule(name: str, value: Any) -> str:
    """Take a rule that chooses a worker, or its number; return "" for the usual one."""
    if value is None or value == "":
        return ""
    allowed = f"one of {', '.join(map(repr, SCHEDULES[1:]))}, or None"
    if _is_number(value):
        if value in range(len(SCHEDULES)):
            return SCHEDULES[int(value)]
    elif not isinstance(value, str):
        refuse(name, value, allowed, TypeError)
    elif value in SCHEDULES:
        return value
    refuse(name, value, allowed + suggest_name(value, SCHEDULES))


def time_max(name: str, value: Any) -> float | None:
    """Take the longest duration of a task in seconds; None for no limit."""
    if value is None:
        return None
    limit = seconds(name, value)
    if limit == 0:
        refuse(name, value, "more than 0 seconds, or None for no limit")
    return limit


def timeout(name: str, value: Any) -> float | None:
    """Take a timeout in seconds; return None for no limit ("wait_forever", None, infinity, negative)."""
    forever = value == FOREVER if isinstance(value, str) else _is_number(value) and value == math.inf
    if value is None or forever:
        return None
    waited = number(name, _total(value), -MOST, unit=f" of seconds, a timedelta, None or '{FOREVER}'")
    return None if waited < 0 else waited


def _total(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def priority(name: str, value: Any) -> float:
    """Take a priority: any finite number; a very large whole one as float, as it is stored and sent."""
    plain = number(name, value, -MAX_PRIORITY, MAX_PRIORITY)
    return plain if -MOST <= plain <= MOST else float(plain)


def flag(name: str, value: Any) -> bool:
    """Take True or False; also those of NumPy, and 1 or 0."""
    if isinstance(value, str | bytes) or value is None:
        refuse(name, value, "True or False", TypeError)
    try:
        known = value in (True, False)
    except ValueError:  # an array of several
        known = False
    if not known:
        refuse(name, value, "True or False", TypeError)
    return bool(value)


def text(name: str, value: Any, *, empty: bool = True) -> str:
    """Take a text that can be sent, and given to a program."""
    if type(value) is str and value.isascii() and "\0" not in value and (empty or value.strip()):
        return value
    if not isinstance(value, str):
        refuse(name, value, "text (str)", TypeError)
    if "\0" in value:
        refuse(name, value, "text without a NUL character")
    if not (value.isascii() or is_unicode(value)):
        refuse(name, value, "text that can be written as UTF-8: it has half of a surrogate pair")
    if not (empty or value.strip()):
        refuse(name, value, "text that is not empty")
    return str(value)


def label(name: str, value: Any) -> str:
    """Take a text that is not empty."""
    return text(name, value, empty=False)


def command(name: str, value: Any) -> str:
    """Take a shell command; an empty one would do nothing, and succeed."""
    if isinstance(value, str) and not value.strip():
        refuse(name, value, "text that is not empty: a shell command, such as 'echo hello'")
    return text(name, value)


def category(name: str, value: Any) -> str:
    """Take the name of a category; None for the usual one."""
    return "default" if value is None else label(name, value)


def path(name: str, value: Any) -> str:
    """Take a path of this machine, as text or as a Path."""
    if not isinstance(value, str | os.PathLike) or isinstance(place := os.fspath(value), bytes):
        refuse(name, value, "a path, as text (str) or as a pathlib.Path", TypeError)
    if not place or "\0" in place:
        refuse(name, value, "a path that is not empty and has no NUL character")
    return str(place)


def variable(name: Any, value: Any, *, none: bool = False) -> tuple[str, str | None]:
    """Take the name and value of an environment variable; with ``none``, None removes it."""
    for part in (name, value):
        usable = isinstance(part, str) and "\0" not in part and is_unicode(part)
        if not (usable or (none and part is None and part is value)):
            msg = f"{name!r}={value!r} cannot be an environment variable: use strings"
            raise ValueError(msg)
    if not name or "=" in name:
        msg = f"{name!r}={value!r} cannot be an environment variable: use strings, and a name without '='"
        raise ValueError(msg)
    return str(name), None if value is None else str(value)


def suggest_name(name: Any, known: Iterable[str]) -> str:
    """Return the hint at the known name that is nearest to an unknown one, or "".

    Upper and lower case, ``-``, ``_`` and a space count as equal.
    """
    spellings = {folded(choice): choice for choice in known}
    close = difflib.get_close_matches(folded(str(name)), spellings, 1, 0.5)
    return f"; did you mean {spellings[close[0]]!r}?" if close else ""


def folded(name: str) -> str:
    """Normalize the spelling of a name."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")
