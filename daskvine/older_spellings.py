"""Options of ``get`` under names and values of earlier TaskVines: what they are called today.

Programs that were written for an earlier TaskVine run unchanged: `replace` turns their options into today's, and
one warning for each names the spelling to use.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from vinecore.validators import folded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OLDER_SPELLINGS", "describe", "replace"]

PRIORITY_ORDERS = ("depth-first", "breadth-first", "FIFO", "LIFO")
"""Orders of priority that ``scheduling_mode`` selected before ``task_priority_mode`` existed."""


class OlderSpelling(NamedTuple):
    """One option that has another name today.

    Attributes
    ----------
    applies : callable
        Whether a value is one of those that have another spelling today.
    option : str
        The option of today; "" if nothing has this effect.
    convert : callable
        Makes the value of today.
    values : str
        The values that are replaced, in words; "" for all.
    reason : str
        Why the option has no effect, or what changes.
    """

    option: str
    convert: Callable[[Any], Any] = lambda value: value
    applies: Callable[[Any], bool] = lambda _value: True
    values: str = ""
    reason: str = ""


def _is_priority_order(value: object) -> bool:
    return isinstance(value, str) and folded(value) in map(folded, PRIORITY_ORDERS)


def _is_storage_footprint(value: object) -> bool:
    return isinstance(value, str) and folded(value) == folded("largest-storage-footprint-first")


OLDER_SPELLINGS: dict[str, OlderSpelling] = {
    "prune_files": OlderSpelling("prune_depth", int, reason="True is 1, False is 0"),
    "lazy_transfer": OlderSpelling("worker_transfers"),
    "worker_scheduler": OlderSpelling("scheduling_mode"),
    "scheduling_mode": OlderSpelling(
        "task_priority_mode", applies=_is_priority_order, values=", ".join(map(repr, PRIORITY_ORDERS))
    ),
    "task_priority_mode": OlderSpelling(
        "task_priority_mode",
        lambda _value: "largest-input-first",
        _is_storage_footprint,
        "'largest-storage-footprint-first'",
        "it is 'largest-input-first'",
    ),
    "init_command": OlderSpelling(
        "lib_command",
        lambda command: f"sh -c '{{ {command}; }} && exec \"$@\"' sh" if command else None,
        reason="the command runs before the one that starts the library",
    ),
    "merge_chains": OlderSpelling("", reason="each vertex stays one task"),
    "low_memory_mode": OlderSpelling(
        "", reason="intermediate results are always deleted when nothing needs them any more (`prune_depth`)"
    ),
}


def replace(given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace older spellings by today's.

    Parameters
    ----------
    given : mapping
        Options of one ``get``, in any spelling.

    Returns
    -------
    dict
        The options of today. An option that is given in today's spelling, too, keeps that value.

    Warns
    -----
    FutureWarning
        For each older spelling, with the one of today.
    """
    options = dict(given)
    for name, row in OLDER_SPELLINGS.items():
        if name not in options or not row.applies(options[name]):
            continue
        value = options.pop(name)
        text = f"get() option {name}={value!r} is an older spelling"
        if row.option:
            value = row.convert(value)
            text += f": use {row.option}={value!r}"
            if row.option in options and options[row.option] != value:
                text += f"; {row.option}={options[row.option]!r} is given, too, and holds"
            options.setdefault(row.option, value)
        else:
            text += f" without an effect: {row.reason}"
        warnings.warn(text, FutureWarning, stacklevel=4)
    return options


def describe() -> str:
    """Return the table of older spellings as Markdown."""
    lines = ["| older spelling | today |", "| --- | --- |"]
    for name, row in OLDER_SPELLINGS.items():
        older = f"`{name}`" + (f" with {row.values}" if row.values else "")
        today = f"`{row.option}`" if row.option else "no effect"
        lines.append(f"| {older} | {today}{f': {row.reason}' if row.reason else ''} |")
    return "\n".join(lines) + "\n"
