"""Call dask's callbacks; describe tasks to functions in ``env_vars``."""

from __future__ import annotations

from typing import Any, NamedTuple

from daskvine.graph import Graph, Key


class TaskInfo(NamedTuple):
    """The task that a function in ``env_vars`` is called for."""

    id: int
    key: Key
    category: str


class DaskCallbacks:
    """Calls the callbacks of dask, such as ``ProgressBar``, that are active while a graph is computed.

    Parameters
    ----------
    callbacks
        Tuples of five functions or None, as `dask.callbacks` keeps them.
    graph
        The graph that is computed.
    """

    def __init__(self, callbacks: Any, graph: Graph) -> None:
        self._callbacks = [callback for callback in callbacks or () if any(callback)]
        self._vertices = graph.vertices
        self._state = _LocalSchedulerState(graph) if self._callbacks else None

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def on_start(self) -> None:
        """Report that the graph starts."""
        self._call(0, self._vertices)
        self._call(1, self._vertices, self._state)

    def on_submit(self, key: Key) -> None:
        """Report that a vertex is submitted."""
        self._call(2, key, self._vertices, self._state)

    def on_vertex_finished(self, key: Key, worker: int) -> None:
        """Report that a vertex is done."""
        if self._state is not None:
            self._state["finished"].add(key)
        self._call(3, key, None, self._vertices, self._state, worker)

    def on_finish(self, *, failed: bool) -> None:
        """Report that the graph is over."""
        self._call(4, self._vertices, self._state, failed)

    def _call(self, position: int, *args: Any) -> None:
        for callback in self._callbacks:
            if callback[position]:
                callback[position](*args)


class _LocalSchedulerState(dict[str, Any]):
    """The part of the state of dask's local scheduler that callbacks read."""

    def __init__(self, graph: Graph) -> None:
        dependencies = {key: set(found) for key, found in graph.dependencies.items()}
        dependents: dict[Key, set[Key]] = {}
        for key, found in dependencies.items():
            for dependency in found:
                dependents.setdefault(dependency, set()).add(key)
        super().__init__(
            dependencies=dependencies,
            dependents=dependents,
            waiting={},
            waiting_data={},
            cache={},
            ready=list(graph.vertices),
            running=set(),
            finished=set(),
            released=set(),
        )
