"""Amounts of resources as the readers of a task return them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = -1
RESOURCE_NAMES = (
    "cores",
    "memory",
    "disk",
    "gpus",
    "wall_time",
    "cpu_time",
    "cores_avg",
    "max_concurrent_processes",
    "start",
    "end",
)
# TaskVine's resource monitor counts these; nothing here does.
UNCOUNTED_NAMES = frozenset(
    {
        "total_processes",
        "virtual_memory",
        "swap_memory",
        "bytes_read",
        "bytes_written",
        "bytes_received",
        "bytes_sent",
        "bandwidth",
        "total_files",
    }
)


class TaskResources(Mapping[str, float]):
    """Amounts of a task: requested, allocated, measured, or limits that it has exceeded.

    Each amount is an attribute; one that is not known is -1. As a mapping it has the known ones
    only, so it is false if nothing is known.

    Parameters
    ----------
    **amounts : float or None
        The amounts by their names; None for one that is not known.

    Attributes
    ----------
    cores, gpus : float
        Numbers of cores and gpus; of what was measured, the average of the cores in use.
    memory, disk : int
        MB.
    wall_time, cpu_time : float
        Seconds.
    cores_avg : float
        CPU time over wall time.
    max_concurrent_processes : int
        The most processes at any moment.
    start, end : float
        Seconds since 1970.
    """

    __slots__ = ("_amounts",)

    def __init__(self, **amounts: float | None) -> None:
        self._amounts = {name: amount for name, amount in amounts.items() if amount is not None}

    def __getattr__(self, name: str) -> Any:
        if name in RESOURCE_NAMES:
            return self._amounts.get(name, UNKNOWN)
        if name in UNCOUNTED_NAMES:
            return UNKNOWN
        msg = f"{type(self).__name__!r} has no attribute {name!r}: it has {', '.join(RESOURCE_NAMES)}"
        raise AttributeError(msg)

    def __getitem__(self, name: str) -> float:
        return self._amounts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={amount!r}' for name, amount in self._amounts.items())})"

    def __reduce__(self) -> Any:
        return _make, (self._amounts,)


def _make(amounts: dict[str, float]) -> TaskResources:
    return TaskResources(**amounts)
