"""Shuffles that dask does through a folder go through what vertices make.

Dask's disk-based shuffles (``shuffle_method="disk"`` of dataframes, ``groupby(..., shuffle="disk")`` of bags) have one vertex that makes a folder, many
that append to files in it, and many that read these when all have been written. Workers need not share a folder, and a vertex that is run again would append twice. So the
graph is changed before it runs: what a vertex would append is its result, on the disk of its worker; those that read get all these results, map them,
and take out of each what is theirs. How values become bytes stays partd's.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections.abc import Callable
from typing import Any

import dask
from dask._task_spec import Alias, GraphNode, Task, TaskRef

Key = Any
WrittenParts = tuple[list[Any], bytes, Any]
"""Names of parts, where each ends, and the bytes of all."""


class ShuffleMethodOverride:
    """Has dask shuffle by tasks while any manager is open, unless the user has chosen something.

    Without a client of distributed it would shuffle through a folder, which workers need not share. It decides that when a bag is
    grouped, or a dataframe is optimized, so long before `DaskVine.get` sees the graph.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Of each open manager, what it has set in dask's configuration.
        self._settings: dict[object, Any] = {}

    def enable(self) -> Callable[[], None]:
        """Begin, for a manager that opens; the returned function ends it, when the manager closes."""
        manager = object()
        with self._lock:
            self._settings[manager] = self._set_method()
        return lambda: self._disable(manager)

    def _set_method(self) -> Any:
        if dask.config.get("dataframe.shuffle.method", None) is not None:
            return None
        return dask.config.set({"dataframe.shuffle.method": "tasks"})

    def _disable(self, manager: object) -> None:
        with self._lock:
            setting = self._settings.pop(manager)
            if setting is None:
                return
            setting.__exit__(None, None, None)
            if self._settings and not any(self._settings.values()):  # another one relied on it
                self._settings[next(iter(self._settings))] = self._set_method()


SHUFFLE_METHOD = ShuffleMethodOverride()


def replace_disk_shuffles(nodes: dict[Key, GraphNode]) -> dict[Key, GraphNode]:
    """Return a graph that does the same, and shuffles through no folder as far as its form is known."""
    encoders = _find_encoders(nodes)
    if not encoders:
        return nodes
    users: dict[Key, list[Key]] = {folder: [] for folder in encoders}
    for key, node in nodes.items():
        for folder in node.dependencies & encoders.keys():
            users[folder].append(key)
    changed = dict(nodes)
    for folder, found in users.items():
        changed.update(_rewrite_users(nodes, folder, found, encoders[folder]))
    return changed


def _find_encoders(nodes: dict[Key, GraphNode]) -> dict[Key, Any]:
    """Find the vertices that make such folders, and what has each of them write and read values."""
    found: dict[Key, Any] = {}
    known: dict[int, Any] = {}  # there are few functions, and many vertices that call them
    for key, node in nodes.items():
        function = getattr(node, "func", None)
        if id(function) not in known:
            known[id(function)] = _find_encoder(function)
        if known[id(function)] is not None:
            found[key] = known[id(function)]
    return found


def _find_encoder(function: Any) -> Any:
    if type(function).__name__ == "maybe_buffered_partd":
        return function.encode_cls
    kind = function.func if isinstance(function, functools.partial) else function
    if isinstance(kind, type) and kind.__module__ == "partd.encode":
        return function
    return None


def _rewrite_users(
    nodes: dict[Key, GraphNode], folder: Key, users: list[Key], encoder: Any
) -> dict[Key, GraphNode]:
    """Rewrite the vertices that use one folder, without it; nothing if there are others among them than those known."""
    own = set(users)
    barriers = {key for key, node in nodes.items() if key not in own and node.dependencies & own}
    reading = {key for key in users if nodes[key].dependencies & barriers}
    writers = _sort_keys([key for key in users if key not in reading])
    known: dict[tuple[int, Any], Any] = {}
    made: dict[Key, GraphNode] = {}
    for key in users:
        node = nodes[key]
        where = _find_position(node, folder)
        if where is None:
            return {}
        reads = key in reading
        name = (id(node.func), reads)  # type: ignore[attr-defined]
        if name not in known:  # one function for all, as before
            function = node.func  # type: ignore[attr-defined]
            known[name] = (
                functools.partial(read_parts, function, encoder, where, len(writers))
                if reads
                else functools.partial(collect_parts, function, encoder, where)
            )
        gone = {folder, *barriers} if reads else {folder}
        args = [None if _referenced_key(arg) in gone else arg for arg in node.args]  # type: ignore[attr-defined]
        more = [TaskRef(writer) for writer in writers] if reads else []
        made[key] = Task(key, known[name], *args, *more, **node.kwargs)  # type: ignore[attr-defined]
    return made


def _sort_keys(keys: list[Key]) -> list[Key]:
    """Sort keys by partition, so that values stay in the order in which they were."""
    try:
        return sorted(keys)
    except TypeError:
        return keys


def _find_position(node: GraphNode, folder: Key) -> int | None:
    """Return which argument of a vertex is the folder; None if it is in another place."""
    if type(node) is not Task:
        return None
    found = [number for number, arg in enumerate(node.args) if _referenced_key(arg) == folder]
    return found[0] if len(found) == 1 else None


_NOTHING = object()


def _referenced_key(arg: Any) -> Any:
    if type(arg) is Alias:
        return arg.target
    return arg.key if type(arg) is TaskRef else _NOTHING


# ---- in a vertex


def collect_parts(
    function: Callable[..., Any], encoder: Any, where: int, *args: Any, **kwargs: Any
) -> WrittenParts:
    """Call a function that appends to a folder; give what it would have appended."""
    parts: dict[Any, list[bytes]] = {}

    class PartCollector:
        def append(self, data: dict[Any, bytes], **_options: Any) -> None:
            for name, text in data.items():
                parts.setdefault(name, []).append(text)

        def drop(self) -> None:
            parts.clear()

    function(*args[:where], encoder(PartCollector()), *args[where + 1 :], **kwargs)
    ends, size = array("Q"), 0
    for texts in parts.values():
        size += sum(map(len, texts))
        ends.append(size)
    whole: Any = b"".join(text for texts in parts.values() for text in texts)
    try:
        import numpy as np
    except ImportError:
        pass
    else:
        whole = np.frombuffer(whole, dtype=np.uint8)  # which is mapped, not loaded, where it is read
    return list(parts), ends.tobytes(), whole


def read_parts(
    function: Callable[..., Any], encoder: Any, where: int, count: int, *args: Any, **kwargs: Any
) -> Any:
    """Call a function that reads from a folder what others have appended to it."""
    written: tuple[WrittenParts, ...] = args[len(args) - count :]

    def taken(name: Any) -> bytes:
        found = []
        for names, text, whole in written:
            if name in names:
                number = names.index(name)
                ends = array("Q")
                ends.frombytes(text)
                found.append(bytes(whole[ends[number - 1] if number else 0 : ends[number]]))
        return b"".join(found)

    class PartReader:
        def _get(self, names: list[Any], **_options: Any) -> list[bytes]:
            return [taken(name) for name in names]

        def drop(self) -> None:
            pass

    args = args[: len(args) - count]
    return function(*args[:where], encoder(PartReader()), *args[where + 1 :], **kwargs)
