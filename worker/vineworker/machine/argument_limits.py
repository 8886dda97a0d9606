"""What a system takes at most when a program is started: its arguments and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

PAGES = 32
"""Of one argument, or of one variable with its name; Linux takes no more, however much it takes in all."""
WAY_OUT = "put it into a file, such as m.declare_buffer(text), and have that as an input"


class TooLong(ValueError):
    """A command, or the variables of its environment, are more than a program can be started with; it says which, and what to do."""


def explain(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Say which of all that a program was to be started with is too much.

    Parameters
    ----------
    command
        The program and its arguments, of which the last one is the user's.
    env
        All variables.
    """
    most = PAGES * os.sysconf("SC_PAGESIZE") - 1
    longest = max(map(_size, command), default=0)
    if longest > most:
        return f"its command has {longest:,} bytes, and this system takes {most:,} in one argument: {WAY_OUT}, and run that, such as with 'sh script'"
    for name, value in env.items():
        size = _size(name) + 1 + _size(value)
        if size > most:
            return f"its environment variable {name} has {size:,} bytes, and this system takes {most:,} for one: {WAY_OUT}"
    size = sum(_size(text) + 1 for text in command) + sum(
        _size(name) + _size(value) + 2 for name, value in env.items()
    )
    limit = os.sysconf("SC_ARG_MAX")
    return (
        f"its command and its environment variables have {size:,} bytes together, and this system takes {limit:,}, with some room for "
        f"itself: {WAY_OUT}"
    )


def _size(text: str) -> int:
    return len(os.fsencode(text))
