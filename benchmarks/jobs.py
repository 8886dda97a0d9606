"""One run of a case: made ready before the clock starts, and checked after it has stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask.base import compute
from dask.delayed import delayed

from benchmarks import work
from benchmarks.sizes import Size

Get = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """What is timed.

    Attributes
    ----------
    amount
        How many calls, vertices or computes it is.
    run
        Does it.
    expected
        What it should return; None if the contenders are compared with each other instead.
    measures
        Whether it returns what is to be shown, instead of the time it has taken.
    """

    amount: float
    run: Callable[[], Any]
    expected: Any = None
    measures: bool = False


Prepare = Callable[[Size, str], Job]
"""Makes the job of a size and a part of the case."""


def wide(get: Get) -> Prepare:
    """Compute a wide graph with a dask scheduler."""

    def prepare(size: Size, _part: str) -> Job:
        graph, key, value = work.wide(size.vertices)
        return Job(len(graph), lambda: get(graph, key), value)

    return prepare


def chain(get: Get) -> Prepare:
    """Compute a chain with a dask scheduler."""

    def prepare(size: Size, _part: str) -> Job:
        graph, key, value = work.chain(size.hops)
        return Job(size.hops, lambda: get(graph, key), value)

    return prepare


def single(get: Get) -> Prepare:
    """Compute many independent vertices and ask for all of them."""

    def prepare(size: Size, _part: str) -> Job:
        graph, keys, values = work.single(size.tasks)
        return Job(size.tasks, lambda: tuple(get(graph, keys)), values)

    return prepare


def warm(get: Get) -> Prepare:
    """Compute one delayed vertex, again and again; each has a name of its own."""

    def prepare(size: Size, _part: str) -> Job:
        vertices = [delayed(work.increment)(n) for n in range(size.computes)]
        values = [n + 1 for n in range(size.computes)]
        return Job(size.computes, lambda: [vertex.compute(scheduler=get) for vertex in vertices], values)

    return prepare


def queries(get: Get) -> Prepare:
    """Compute one of the ADL queries; the graph is made before, dask optimizes it within the time."""
    from daskvine.demo.queries import QUERIES, open_events

    opened: dict[tuple[str, ...], Any] = {}

    def prepare(size: Size, part: str) -> Job:
        if size.paths not in opened:
            opened[size.paths] = open_events(size.paths, size.steps)
        histograms = QUERIES[part].histograms(opened[size.paths])

        def run() -> list[Any]:
            return [h.view(flow=True) for h in compute(*histograms, scheduler=get)]

        return Job(1, run)

    return prepare
