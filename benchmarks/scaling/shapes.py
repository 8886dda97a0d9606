"""The graphs: as vertices, as tasks of the engine, and as dask has them.

``tree`` is an analysis: each partition is read and made into histograms by two vertices, and the histograms are added up in a tree, eight at a
time. ``flat`` has nothing but vertices that need nothing, and all their results are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from dask._task_spec import List, Task, TaskRef

from vinecore.protocol.serialization import values
from vinecore.protocol.serialization.placeholders import InputPlaceholder
from vinecore.scheduler.specs import TASK, TaskSpec

FAN_IN = 8
VALUE = values.dumps(0)
NAMES = {"read": "from-uproot", "fill": "histogram", "add": "hist-add", "call": "call"}
TOKEN = "5f93b1a8c6b54a0c9f2d7e11aa6c0d42"  # noqa: S105 - as dask has in its keys


class Vertex(NamedTuple):
    """A vertex of any graph; ``wanted`` says whether its result is."""

    number: int
    kind: str
    inputs: tuple[int, ...]
    wanted: bool

    @property
    def key(self) -> tuple[str, int]:
        """What dask would call it."""
        return f"{NAMES[self.kind]}-{TOKEN}", self.number


def tree(count: int) -> Iterator[Vertex]:
    """About so many vertices of an analysis, exactly so many at least, in the order in which dask runs them."""
    number = 0
    pending: list[list[int]] = [[]]  # results of each level of the tree that have not been added up yet
    while number < count - len(pending):
        yield Vertex(number, "read", (), False)
        yield Vertex(number + 1, "fill", (number,), False)
        pending[0].append(number + 1)
        number += 2
        level = 0
        while len(pending[level]) == FAN_IN:
            yield Vertex(number, "add", tuple(pending[level]), False)
            pending[level].clear()
            level += 1
            if level == len(pending):
                pending.append([])
            pending[level].append(number)
            number += 1
    for level, rest in enumerate(pending):
        last = level == len(pending) - 1
        if rest or last:
            yield Vertex(number, "add", tuple(rest), last)
            if not last:
                pending[level + 1].append(number)
            number += 1


def flat(count: int) -> Iterator[Vertex]:
    """So many vertices that need nothing."""
    for number in range(count):
        yield Vertex(number, "call", (), True)


SHAPES = {"tree": tree, "flat": flat}


def specs(
    vertices: Iterator[Vertex], run: int, first: int, library: str, function: str
) -> Iterator[TaskSpec]:
    """Generate the tasks that `DaskVine.get` would submit.

    The first one has the number ``first``, and all call the same shared function.
    """
    results: list[str] = []
    for rank, vertex in enumerate(vertices):
        number = first + rank
        result = f"result-5f93b1a8-{number}"
        results.append(result)
        inputs = tuple([results[n] for n in vertex.inputs])
        payload = values.dumps((([InputPlaceholder(n) for n in range(len(inputs))], rank), {}))
        yield TaskSpec(
            number, str(vertex.key), result, run, library, function, payload, (function,), inputs,
            wanted_at_manager=(result,) if vertex.wanted else (), category=NAMES[vertex.kind], priority=rank,
            reader_count=0 if vertex.wanted else 1, level=TASK,
        )  # fmt: skip


def work(*_values: Any) -> int:
    """Stand for the function of a dask vertex; simulated workers do not call it."""
    return 0


def dask_graph(vertices: Iterator[Vertex]) -> tuple[dict[Any, Any], list[Any]]:
    """Build the same graph for dask, with the keys of its targets."""
    keys: list[Any] = []
    graph: dict[Any, Any] = {}
    wanted = []
    for vertex in vertices:
        key = vertex.key
        keys.append(key)
        args = [TaskRef(keys[n]) for n in vertex.inputs]
        graph[key] = Task(
            key, work, List(*args) if vertex.kind == "add" else args[0] if args else vertex.number
        )
        if vertex.wanted:
            wanted.append(key)
    return graph, wanted
