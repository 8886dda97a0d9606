"""Amounts of memory and disk as people write them on a command line."""

from __future__ import annotations

import re

MAX_MEGABYTES = 1 << 53
AMOUNT = re.compile(r"(\d+(?:\.\d*)?) *([kmgt]i?b?|b|)", re.IGNORECASE)
LETTERS = "kmgt"


def parse_megabytes(text: str) -> int:
    """Understand megabytes, or a number with a unit: 2000, 2GB, 2.5 g, 512MiB.

    Raises
    ------
    ValueError
        It is something else.
    """
    found = AMOUNT.fullmatch(text.strip())
    value = float(found[1]) * _unit_in_megabytes(found[2].lower()) if found else -1.0
    if not 0 <= value < MAX_MEGABYTES:
        msg = f"{text!r} is not an amount: give megabytes, such as 2000, or a number with a unit, such as 2GB or 512MiB"
        raise ValueError(msg)
    return int(value)


def _unit_in_megabytes(name: str) -> float:
    """How many megabytes a unit has."""
    if not name:
        return 1.0
    if name == "b":
        return 1e-6
    return (1024.0 if "i" in name else 1000.0) ** (LETTERS.index(name[0]) - 1)
