"""How much work each case is."""

from __future__ import annotations

from dataclasses import dataclass

SLOTS = 2
"""Calls that every contender but the synchronous one runs at the same time."""


@dataclass(frozen=True)
class Size:
    """Amounts of one run.

    Attributes
    ----------
    calls, vertices, hops, tasks, computes
        Function calls; vertices of the wide graph; length of the chain; vertices with a process each;
        computes of one vertex.
    file_mb, array_mb, partitions, branches
        Size of the file that is moved, and of the array that is loaded; vertices that share a layout, and its branches.
    files, events, steps
        Files of the data set, events in each, partitions of each.
    paths
        The files themselves, once they are written.
    """

    calls: int
    vertices: int
    hops: int
    tasks: int
    computes: int
    files: int
    events: int
    file_mb: int
    array_mb: int
    partitions: int
    branches: int
    steps: int = 1
    paths: tuple[str, ...] = ()


FULL = Size(calls=10_000, vertices=10_000, hops=2_000, tasks=400, computes=20, files=20, events=50_000,
            file_mb=512, array_mb=500, partitions=1_000, branches=1_500)  # fmt: skip
QUICK = Size(calls=1_000, vertices=1_000, hops=200, tasks=40, computes=5, files=2, events=10_000,
             file_mb=64, array_mb=50, partitions=200, branches=1_500)  # fmt: skip
WARM_UP = Size(calls=64, vertices=64, hops=16, tasks=4, computes=3, files=1, events=0,
               file_mb=8, array_mb=8, partitions=16, branches=10)  # fmt: skip
