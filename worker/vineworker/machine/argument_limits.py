"""Explain why a program cannot be started: its arguments or environment are too large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

MAX_ARGUMENT_PAGES = 32
"""Linux takes no more pages for one argument, or for one variable with its name."""
ADVICE = "put it into a file, such as m.declare_buffer(text), and have that as an input"


class ArgumentsTooLong(ValueError):
    """The command or the environment of a program is too large; the text says what to do."""


def describe_excess(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Describe which argument or variable of a program is too long.

    Parameters
    ----------
    command
        The program and its arguments; the last one is the user's.
    env
        All environment variables.
    """
    most = MAX_ARGUMENT_PAGES * os.sysconf("SC_PAGESIZE") - 1
    longest = max(map(_byte_length, command), default=0)
    if longest > most:
        return (
            f"its command has {longest:,} bytes, and this system takes {most:,} in one argument: "
            f"{ADVICE}, and run that, such as with 'sh script'"
        )
    for name, value in env.items():
        size = _byte_length(name) + 1 + _byte_length(value)
        if size > most:
            return (
                f"its environment variable {name} has {size:,} bytes, and this system takes "
                f"{most:,} for one: {ADVICE}"
            )
    size = sum(_byte_length(text) + 1 for text in command) + sum(
        _byte_length(name) + _byte_length(value) + 2 for name, value in env.items()
    )
    limit = os.sysconf("SC_ARG_MAX")
    return (
        f"its command and its environment variables have {size:,} bytes together, and this system "
        f"takes {limit:,}, with some room for "
        f"itself: {ADVICE}"
    )


def _byte_length(text: str) -> int:
    return len(os.fsencode(text))
