"""Convert any form of graph that dask passes into one flat graph: culled, without aliases, in order.

dask up to 2025.3 passes a `HighLevelGraph` or a dict, with legacy tuples among the tasks, and nested keys; newer
versions pass an expression and flat keys. Both become a `Graph`: nodes of `dask._task_spec` by key, in the order
in which dask itself would run them. An alias is replaced by its target. Data in the graph is not a vertex
either.

dask takes seconds to order a hundred thousand vertices. So the first vertices of a large graph go depth first,
which is nearly the same order and takes no time, and the others are ordered while those run.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten
from dask.order import order

Key = Any

LARGE_GRAPH_VERTICES = 10_000  # vertices of a graph whose order takes too long to wait for
FIRST_SLICE_VERTICES = 8_192  # vertices of such a graph that go depth first


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Keep Python's garbage collector away while a graph is made: nothing of it is garbage, and looking through it again and again takes as long as all else."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Graph:
    """A graph that is ready to run.

    Attributes
    ----------
    vertices : dict
        Key to task; a vertex comes after what it depends on. `in_order` gives the order in which they should run.
    data : dict
        Key to value, of the nodes that are data.
    dependencies : dict
        Key of a vertex to the keys (of vertices and data) that it reads, with aliases resolved.
    targets : list
        Keys that are wanted, each once.
    """

    def __init__(self, nodes: dict[Key, GraphNode], keys: Iterable[Key]) -> None:
        self._aliases: dict[Key, Key] = {}
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            if key not in nodes:
                raise KeyError(key)
        needed = _cull_nodes(nodes, wanted)
        _reject_disk_shuffles(needed)
        self.data: dict[Key, Any] = {}
        tasks: dict[Key, GraphNode] = {}
        for key, node in needed.items():
            if isinstance(node, DataNode):
                self.data[key] = node.value
            elif isinstance(node, Alias) and node.target in needed:
                self._aliases[key] = node.target
            else:
                tasks[key] = node
        self.dependencies: dict[Key, list[Key]] = {
            key: self._resolve_all(node.dependencies) for key, node in tasks.items()
        }
        self.targets = list(dict.fromkeys(self.resolve(key) for key in wanted))
        self._unordered: dict[
            Key, GraphNode
        ] = {}  # with the aliases: dask's order looks at the nodes themselves
        self.vertices: dict[Key, GraphNode] = self._topological_order(tasks, needed)

    def _resolve_all(self, keys: Iterable[Key]) -> list[Key]:
        return list(dict.fromkeys(map(self.resolve, keys))) if self._aliases else list(keys)

    def resolve(self, key: Key) -> Key:
        """Return the key that an alias, or an alias of an alias, stands for."""
        aliases = self._aliases
        seen = key
        while key in aliases:
            key = aliases[key]
            if key == seen:
                msg = f"the graph is circular: the alias {key!r} refers to itself"
                raise ValueError(msg)
        return key

    def _topological_order(
        self, tasks: dict[Key, GraphNode], needed: dict[Key, GraphNode]
    ) -> dict[Key, GraphNode]:
        if not any(self.dependencies.values()):
            return tasks
        if len(tasks) > LARGE_GRAPH_VERTICES:
            self._unordered = needed
            return {key: tasks[key] for key in self._depth_first()}
        ranks: dict[Key, int] = order(needed)
        return {key: tasks[key] for key in sorted(tasks, key=ranks.__getitem__)}

    def _depth_first(self) -> list[Key]:
        """List every vertex after what it depends on, and that just before it."""
        dependencies, order_ = self.dependencies, []
        begun: set[Key] = set()
        given = set(self.data)
        stack = self.targets[::-1]
        while stack:
            key = stack.pop()
            if key in given:
                continue
            found = dependencies[key]
            missing = [d for d in found if d not in given] if found else found
            if not missing:
                given.add(key)
                order_.append(key)
                continue
            if key in begun:
                order(self._unordered)  # says where the circle is
            begun.add(key)
            stack.append(key)
            stack += missing[::-1]
        return order_

    def in_priority_order(self) -> Iterator[Key]:
        """Return the vertices in the order in which they should run."""
        if not self._unordered:
            yield from self.vertices
            return
        first = dict.fromkeys(islice(self.vertices, FIRST_SLICE_VERTICES))
        yield from first
        with gc_disabled():
            ranks: dict[Key, int] = order(self._unordered)
        gc.collect()  # what `order` leaves is in cycles, and as large as the graph
        yield from sorted((key for key in self.vertices if key not in first), key=ranks.__getitem__)

    def compute_depths(self) -> dict[Key, int]:
        """Return the distance of every vertex from the roots."""
        depths: dict[Key, int] = {}
        for key in self.vertices:
            depths[key] = 1 + max((depths.get(d, 0) for d in self.dependencies[key]), default=0)
        return depths


def flatten_keys(keys: Any) -> list[Key]:
    """List the keys in a nested request."""
    return list(flatten([keys])) if isinstance(keys, list) else [keys]


def arrange_results(keys: Any, results: Mapping[Key, Any]) -> Any:
    """Arrange results as the keys were: a value for a key, a tuple for a list."""
    if isinstance(keys, list):
        return tuple(arrange_results(key, results) for key in keys)
    return results[keys]


def to_task_spec_graph(dsk: Any) -> dict[Key, GraphNode]:
    """Make a dict of nodes out of any form dask hands over."""
    if not isinstance(dsk, Mapping):
        dsk = dsk.__dask_graph__()
    converted: dict[Key, GraphNode] = convert_legacy_graph(dict(dsk))
    return converted


def _reject_disk_shuffles(nodes: Mapping[Key, GraphNode]) -> None:
    """Refuse a graph that moves data through a folder, as dask's disk-based shuffles do.

    Raises
    ------
    ValueError
        It would lose data silently where workers do not share that folder.
    """
    seen: set[int] = set()  # there are few functions, and many vertices that call them
    for key, node in nodes.items():
        function = getattr(node, "func", None)
        if id(function) in seen:
            continue
        seen.add(id(function))
        while isinstance(function, functools.partial):
            function = function.func
        kind = function if isinstance(function, type) else type(function)
        if kind.__module__.partition(".")[0] == "partd" or kind.__name__ == "maybe_buffered_partd":
            msg = (
                f"vertex {key!r} shuffles through a folder, and workers need not share that: have dask shuffle by tasks, with "
                "shuffle='tasks' in groupby, shuffle_method='tasks' in shuffle, or dask.config.set({'dataframe.shuffle.method': 'tasks'}) "
                "before the graph is made"
            )
            raise ValueError(msg)


def _cull_nodes(nodes: dict[Key, GraphNode], wanted: Iterable[Key]) -> dict[Key, GraphNode]:
    needed: dict[Key, GraphNode] = {}
    stack = [*wanted][::-1]  # the first key first: what nothing else orders runs as it was asked for
    while stack:
        key = stack.pop()
        if key in needed:
            continue
        node = nodes.get(key)
        if node is None:
            msg = f"the graph has no vertex {key!r}, which is requested or an input of another vertex"
            raise KeyError(msg)
        needed[key] = node
        stack.extend(node.dependencies)
    return needed
