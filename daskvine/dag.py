"""The graph as programs see it: relations of its vertices, their depths, and which are ready."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

from dask._task_spec import Alias, NestedContainer, Task, TaskRef

from daskvine.graph import Graph, to_task_spec_graph
from daskvine.tree_reduction import rewrite_wide_reductions

if TYPE_CHECKING:
    from dask._task_spec import GraphNode

    from daskvine.graph import Key


class DaskVineDag:
    """A graph of dask: ``checkpoint_fn`` is called with the one that is computed.

    Vertices are submitted before their inputs are computed, so in ``checkpoint_fn`` only data of the
    graph has a result. A program that runs the vertices itself enters results with `set_result`.

    Parameters
    ----------
    dsk : mapping or Graph
        A graph in any form that dask passes, or one that is ready to run, with its targets.
    reconstruct : bool
        Whether wide merges become trees.
    merge_size : int
        Number of inputs of each merge of these trees.
    prune_depth : int
        Accepted as TaskVine has it; a graph deletes nothing, ``prune_depth`` of ``get`` does.

    Examples
    --------
    >>> dag = DaskVineDag({"a": 1, "b": (abs, "a")})
    >>> dag.set_targets(["b"])
    ['b']
    >>> dag.set_result("b", 1)
    []
    >>> dag.left_to_compute()
    0
    """

    def __init__(
        self, dsk: Any, reconstruct: bool = False, merge_size: int = 2, prune_depth: int = 0
    ) -> None:
        self.prune_depth = prune_depth
        if isinstance(dsk, Graph):
            self._nodes = dsk.vertices
            self._enter(dsk, dsk.targets)
            return
        self._nodes = to_task_spec_graph(dsk)
        if reconstruct:
            self.expand_merge(merge_size)
        self._enter(Graph(self._nodes, self._nodes), [])

    def _enter(self, graph: Graph, targets: list[Key]) -> None:
        self._graph, self._targets = graph, targets
        self._results: dict[Key, Any] = {}
        self._depths: dict[Key, int] | None = None
        self._readers: dict[Key, set[Key]] | None = None

    # ---- kinds of values in a graph

    @staticmethod
    def hashable(s: object) -> bool:
        """Return whether a value can be a key."""
        try:
            hash(s)
        except TypeError:
            return False
        return isinstance(s, Hashable)

    @staticmethod
    def keyp(s: object) -> bool:
        """Return whether a value has the form of a key."""
        return DaskVineDag.hashable(s) and not DaskVineDag.taskp(s)

    @staticmethod
    def taskrefp(s: object) -> bool:
        """Return whether a value refers to the result of a vertex."""
        return isinstance(s, TaskRef)

    @staticmethod
    def aliasp(s: object) -> bool:
        """Return whether a node is another name of a node."""
        return isinstance(s, Alias)

    @staticmethod
    def taskp(s: object) -> bool:
        """Return whether a node calls a function, as a node or as a tuple of earlier dasks."""
        is_tuple = type(s) is tuple and bool(s) and callable(s[0])
        return is_tuple or (isinstance(s, Task) and not isinstance(s, NestedContainer))

    @staticmethod
    def containerp(s: object) -> bool:
        """Return whether a node is a list, tuple, set or dict of nodes."""
        return isinstance(s, NestedContainer)

    @staticmethod
    def symbolp(s: object) -> bool:
        """Return whether a value is none of these: data."""
        kinds = (DaskVineDag.taskp, DaskVineDag.containerp, DaskVineDag.aliasp, DaskVineDag.taskrefp)
        return not any(is_kind(s) for is_kind in kinds)

    # ---- relations

    def depth_of(self, key: Key) -> int:
        """Return the distance of a vertex from the roots, which have 1."""
        if self._depths is None:
            self._depths = self._graph.compute_depths()
        return self._depths[self._graph.resolve(key)]

    def get_dependencies(self, key: Key) -> set[Key]:
        """Return the keys that a vertex reads."""
        return set(self._graph.dependencies.get(self._graph.resolve(key), ()))

    def get_needed_by(self, key: Key) -> set[Key]:
        """Return the keys of the vertices that read a result."""
        if self._readers is None:
            self._readers = {}
            for reader, found in self._graph.dependencies.items():
                for dependency in found:
                    self._readers.setdefault(dependency, set()).add(reader)
        return set(self._readers.get(self._graph.resolve(key), ()))

    def get_missing_dependencies(self, key: Key) -> set[Key]:
        """Return the keys that a vertex reads and that have no result."""
        return {key for key in self.get_dependencies(key) if not self.has_result(key)}

    def get_pending_needed_by(self, key: Key) -> set[Key]:
        """Return the keys of the vertices that read a result and have none themselves."""
        return {key for key in self.get_needed_by(key) if not self.has_result(key)}

    get_children = get_dependencies
    get_parents = get_needed_by
    get_missing_children = get_missing_dependencies

    # ---- targets and results

    def get_targets(self) -> set[Key]:
        """Return the keys that were asked for."""
        return set(self._targets)

    def set_targets(self, keys: Iterable[Key]) -> list[Key]:
        """Say which keys are wanted; vertices that they do not need are left out.

        Returns
        -------
        list of key
            The vertices that can run at once.
        """
        results = self._results
        graph = Graph(self._nodes, keys)
        self._enter(graph, graph.targets)
        self._results = results
        return self.get_ready()

    def replace_targets(self, keys: Iterable[Key]) -> list[Key]:
        """Return the keys under which results of keys are found: those that aliases stand for."""
        return [self._graph.resolve(key) for key in keys]

    def has_result(self, key: Key) -> bool:
        """Return whether a vertex has a result."""
        key = self._graph.resolve(key)
        return key in self._results or key in self._graph.data

    def get_result(self, key: Key) -> Any:
        """Return the result of a vertex.

        Raises
        ------
        KeyError
            The vertex has none.
        """
        key = self._graph.resolve(key)
        if key in self._graph.data:
            return self._graph.data[key]
        if key not in self._results:
            msg = f"vertex {key!r} has no result yet"
            raise KeyError(msg)
        return self._results[key]

    def set_result(self, key: Key, value: Any) -> list[Key]:
        """Enter the result of a vertex.

        Returns
        -------
        list of key
            The vertices that can run now and could not before.

        Raises
        ------
        KeyError
            The graph has no such vertex.
        """
        key = self._graph.resolve(key)
        if key not in self._graph.vertices:
            msg = f"the graph has no vertex {key!r}"
            raise KeyError(msg)
        was_missing = key not in self._results
        self._results[key] = value
        if not was_missing:
            return []
        readers = self.get_pending_needed_by(key)
        return [reader for reader in self._graph.vertices if reader in readers and self._is_ready(reader)]

    def get_ready(self) -> list[Key]:
        """Return the vertices without a result whose inputs all have one, in the order in which they should run."""
        return [key for key in self._graph.vertices if not self.has_result(key) and self._is_ready(key)]

    def left_to_compute(self) -> int:
        """Return how many vertices have no result."""
        return len(self._graph.vertices) - len(self._results.keys() & self._graph.vertices.keys())

    def _is_ready(self, key: Key) -> bool:
        return all(map(self.has_result, self._graph.dependencies[key]))

    # ---- changes of the graph

    def expand_merge(self, merge_size: int) -> None:
        """Replace wide merges by trees of merges of ``merge_size`` inputs; keys stay."""
        self._nodes = rewrite_wide_reductions(self._nodes, merge_size)

    def rebuild_merge(self, key: Key, sexpr: GraphNode, merge_size: int) -> None:
        """Replace one wide merge by a tree."""
        self._nodes = {**self._nodes, **rewrite_wide_reductions({key: sexpr}, merge_size)}

    def initialize_graph(self) -> None:
        """Find the relations of all vertices again, after a change of the graph; results stay."""
        results, targets = self._results, self._targets
        self._enter(Graph(self._nodes, targets or self._nodes), targets)
        self._results = results

    def set_relations(self, task: GraphNode) -> None:
        """Enter a vertex, or another one in its place."""
        self._nodes = {**self._nodes, task.key: task}
        self.initialize_graph()
