"""Turn vertices into tasks of the engine.

A vertex becomes a call: its function, its arguments with placeholders for results of other vertices, and the
names of those. Objects that many vertices share (the function; in dask-awkward also a dictionary of some hundred
kilobytes) are serialized once, travel to a worker once, and are loaded in a slot once. They are found by
identity, before anything is pickled.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import cloudpickle
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from daskvine import registrations, shuffle
from daskvine.graph import Graph, Key
from daskvine.remote import task_functions, ttree_cache
from daskvine.tree_reduction import Reduction, match_reduction
from vinecore.errors import add_note
from vinecore.manager.manager import Manager
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol.serialization import unpicklable, values
from vinecore.protocol.serialization.pickling import PLAIN_PICKLE_TYPES
from vinecore.protocol.serialization.placeholders import InputPlaceholder, LazyInput, SharedPlaceholder
from vinecore.protocol.user_modules import is_own_module

PLAIN_ARGUMENT_TYPES = PLAIN_PICKLE_TYPES | {slice, InputPlaceholder, SharedPlaceholder}
MIN_SHARED_BYTES = 256
"""Bytes; a smaller object travels with each vertex."""

MAX_SHARED_BYTES = 512 * 1024 * 1024
MAX_SHARED_OBJECTS = 4096
HELPERS = (
    task_functions.apply,
    task_functions.call_packed,
    task_functions.evaluate_node,
    task_functions.evaluate_task,
    task_functions.reduce_partial_results,
    task_functions.call_wrapper,
)
for module in (task_functions, ttree_cache, registrations, shuffle):  # workers need not have this package
    cloudpickle.register_pickle_by_value(module)
CODE_TYPES = (type, types.FunctionType, types.BuiltinFunctionType)
MODULE_NAME = re.compile(rb"\x8c.([A-Za-z_][A-Za-z0-9_.]*)")


class SharedObjects:
    """Serialized objects that runs have in common; the least recently used go when there are too many.

    Parameters
    ----------
    manager
        Where they are declared.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._objects: OrderedDict[str, list[int]] = OrderedDict()  # name -> [bytes, users]
        self._bytes = 0

    def acquire(self, data: bytes) -> str:
        """Declare an object, or use the one that is there."""
        name = self._manager.declare_shared_bytes(data)
        entry = self._objects.get(name)
        if entry is None:
            self._objects[name] = [len(data), 1]
            self._bytes += len(data)
        else:
            entry[1] += 1
            self._objects.move_to_end(name)
        return name

    def release(self, names: Iterable[str]) -> None:
        """Release objects that a computation does not need any more."""
        for name in names:
            self._objects[name][1] -= 1
        spare = [name for name, (_size, users) in self._objects.items() if not users]
        for name in spare:
            if self._bytes <= MAX_SHARED_BYTES and len(self._objects) <= MAX_SHARED_OBJECTS:
                break
            self._bytes -= self._objects.pop(name)[0]
            self._manager.release_shared_bytes(name)


class CompiledVertex:
    """A vertex as the engine takes it."""

    __slots__ = ("function", "inputs", "payload", "shared")

    def __init__(
        self, function: str, payload: bytes, shared: tuple[str, ...], inputs: tuple[str, ...]
    ) -> None:
        self.function, self.payload, self.shared, self.inputs = function, payload, shared, inputs


class Compiler:
    """Compiles the vertices of one graph.

    Parameters
    ----------
    graph
        The graph to compute.
    results
        The name of the object that each vertex makes.
    objects
        Where shared objects are kept.
    in_library
        Whether the helper functions of `daskvine.remote.task_functions` are functions of the library, or objects that travel.
    wrapper
        The user's wrapper, or None.
    registered
        The serialized object that each call loads first; empty if there is none.
    """

    def __init__(
        self,
        graph: Graph,
        results: dict[Key, str],
        objects: SharedObjects,
        *,
        in_library: bool,
        wrapper: Any,
        registered: bytes = b"",
    ) -> None:
        self._graph, self._results, self._objects = graph, results, objects
        self._in_library = in_library
        self.acquired_objects: list[str] = []  # objects acquired
        self.modules: set[str] = set()
        self._by_id: dict[int, str | None] = {}
        self._alive: list[Any] = []  # what was named by identity must not be freed meanwhile
        self._count: dict[int, int] = {}
        self._preloaded = [self.acquire(registered)] if registered else []
        self._wrapper = None if wrapper is None else self._share(wrapper)
        for node in graph.vertices.values():
            self._count_parts(node)

    def _count_parts(self, node: GraphNode) -> None:
        if type(node) is not Task:
            return
        count = self._count
        count[id(node.func)] = count.get(id(node.func), 0) + 1
        for arg in (*node.args, *node.kwargs.values()) if node.kwargs else node.args:
            value = arg.value if type(arg) is DataNode else arg
            kind = type(value)
            if (
                kind is not TaskRef
                and kind not in PLAIN_ARGUMENT_TYPES
                and not isinstance(value, (GraphNode, TaskRef))
            ):
                count[id(value)] = count.get(id(value), 0) + 1

    # ---- objects

    def acquire(self, data: bytes) -> str:
        """Declare an object that is needed as long as this graph runs."""
        name = self._objects.acquire(data)
        self.acquired_objects.append(name)
        return name

    def _share(self, value: Any, *, least: int = 0) -> str | None:
        """Name a shared object; None if it is too small to be worth it."""
        key = id(value)
        if key not in self._by_id or (self._by_id[key] is None and not least):
            self._alive.append(value)
            data = dumps(value)
            self._by_id[key] = None if len(data) < least else self.acquire(data)
            self.modules.update(modules_referenced(data))
        return self._by_id[key]

    def declare_datum(self, key: Key) -> str:
        """Name the object that holds a value of the graph."""
        name = self._results.get(key)
        if name is None:
            name = self._results[key] = self.acquire(dumps(self._graph.data[key]))
        return name

    # ---- calls

    def compile(self, key: Key) -> CompiledVertex:
        """Make the call that runs a vertex."""
        node = self._graph.vertices[key]
        dependencies = self._graph.dependencies[key]
        inputs = tuple(
            self._results[d] if d in self._graph.vertices else self.declare_datum(d) for d in dependencies
        )
        if self._wrapper is not None:
            return self._compile_with_helper(
                key, task_functions.call_wrapper, [self._wrapper], [node, self._input_keys(node)], inputs
            )
        if type(node) is not Task or inspect.iscoroutinefunction(node.func):
            return self._compile_with_helper(
                key, task_functions.evaluate_node, [], [node, self._input_keys(node)], inputs
            )
        merge = match_reduction(node, {})
        if merge is not None and _is_plain(merge):
            return self._compile_reduction(merge, dependencies, inputs)
        if any(
            isinstance(part, GraphNode) and type(part) not in (Alias, DataNode)
            for part in (*node.args, *node.kwargs.values())
        ):
            return self._compile_nested_task(node, dependencies, inputs)
        return self._compile_task(node, dependencies, inputs)

    def _input_keys(self, node: GraphNode) -> list[Key]:
        """Return the keys by which a node asks for its inputs, in the order of the inputs; an alias is asked for by its own name."""
        return sorted(node.dependencies, key=repr)

    def _compile_with_helper(
        self, key: Key, helper: Any, shared: list[str | None], args: list[Any], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        asked = args[-1]
        where = {d: number for number, d in enumerate(self._graph.dependencies[key])}
        names = [*self._preloaded, *(name for name in shared if name is not None)]
        filled = [
            *map(SharedPlaceholder, range(len(self._preloaded), len(names))),
            *args,
            *(InputPlaceholder(where[self._graph.resolve(d)]) for d in asked),
        ]
        return self._make_call(helper, filled, {}, names, inputs)

    def _compile_task(self, node: Task, dependencies: list[Key], inputs: tuple[str, ...]) -> CompiledVertex:
        where = {d: number for number, d in enumerate(dependencies)}
        shared = [*self._preloaded]

        def place(arg: Any) -> Any:
            if type(arg) is Alias or type(arg) is TaskRef:
                return InputPlaceholder(where[self._graph.resolve(referenced_key(arg))])
            return self._share_or_inline(arg, shared)

        args = [place(arg) for arg in node.args]
        kwargs = {name: place(arg) for name, arg in node.kwargs.items()}
        if self._count[id(node.func)] < 2:
            return self._make_call(task_functions.apply, [node.func, *args], kwargs, shared, inputs)
        function = self._share(node.func)
        assert function is not None
        # what a library does once before its first fork, a process for one vertex does by itself
        if not self._in_library:
            shared.append(function)
            return self._make_call(
                task_functions.apply,
                [SharedPlaceholder(len(shared) - 1), *args],
                kwargs,
                shared,
                inputs,
            )
        plain = PLAIN_ARGUMENT_TYPES.issuperset(map(type, (*args, *kwargs.values())))
        payload = dump_call(args, kwargs, plain=plain)
        if len(payload) > INLINE_LIMIT:
            shared.append(function)
            return self._move_arguments_to_object(
                [SharedPlaceholder(len(shared) - 1), *args], kwargs, shared, inputs
            )
        return CompiledVertex(function, payload, (*shared, function), inputs)

    def _compile_reduction(
        self, merge: Reduction, dependencies: list[Key], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        """Compile a merge, whose inputs are not loaded before their turn."""
        where = {d: number for number, d in enumerate(dependencies)}
        shared = [*self._preloaded]
        function: Any = merge.function
        if self._count.get(id(function), 0) > 1:
            name = self._share(function)
            assert name is not None
            shared.append(name)
            function = SharedPlaceholder(len(shared) - 1)
        parts = [LazyInput(where[self._graph.resolve(referenced_key(part))]) for part in merge.inputs]
        return self._make_call(
            task_functions.reduce_partial_results,
            [function, merge.argument_style, merge.keywords, *parts],
            {},
            shared,
            inputs,
        )

    def _share_or_inline(self, arg: Any, shared: list[str]) -> Any:
        """Return an argument as it travels: itself, or the placeholder of a shared object."""
        value = arg.value if type(arg) is DataNode else arg
        if type(value) not in PLAIN_ARGUMENT_TYPES and self._count.get(id(value), 0) > 1:
            name = self._share(value, least=MIN_SHARED_BYTES)
            if name is not None:
                shared.append(name)
                return SharedPlaceholder(len(shared) - 1)
        return value

    def _compile_nested_task(
        self, node: Task, dependencies: list[Key], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        """Compile a task with others among its arguments: `dask` evaluates them, in the slot."""
        where = {d: number for number, d in enumerate(dependencies)}
        shared = [*self._preloaded]
        args = [
            arg
            if isinstance(arg, (GraphNode, TaskRef)) and type(arg) is not DataNode
            else self._share_or_inline(arg, shared)
            for arg in node.args
        ]
        function: Any = node.func
        if self._count[id(function)] > 1:
            name = self._share(function)
            assert name is not None
            shared.append(name)
            function = SharedPlaceholder(len(shared) - 1)
        asked = self._input_keys(node)
        found = [InputPlaceholder(where[self._graph.resolve(d)]) for d in asked]
        return self._make_call(
            task_functions.evaluate_task,
            [function, len(args), asked, node.kwargs, *args, *found],
            {},
            shared,
            inputs,
        )

    def _make_call(
        self, helper: Any, args: list[Any], kwargs: dict[str, Any], shared: list[str], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        payload = dump_call(args, kwargs, plain=False)
        if len(payload) > INLINE_LIMIT:
            name = self._share(helper)
            assert name is not None
            shared.append(name)
            return self._move_arguments_to_object(
                [SharedPlaceholder(len(shared) - 1), *args], kwargs, shared, inputs
            )
        return self._helper_call(helper, payload, shared, inputs)

    def _move_arguments_to_object(
        self, args: list[Any], kwargs: dict[str, Any], shared: list[str], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        """Put the arguments into an object of their own: they are too large for a message."""
        packed = self.acquire(dump_call(args, kwargs, plain=False))
        later = {arg.index for arg in args if type(arg) is LazyInput}
        kinds = [LazyInput if n in later else InputPlaceholder for n in range(len(inputs))]
        rest = [
            *map(SharedPlaceholder, range(len(shared))),
            *(kind(n + 1) for n, kind in enumerate(kinds)),
        ]
        payload = dump_call([InputPlaceholder(0), len(shared), *rest], {}, plain=True)
        return self._helper_call(task_functions.call_packed, payload, shared, (packed, *inputs))

    def _helper_call(
        self, helper: Any, payload: bytes, shared: list[str], inputs: tuple[str, ...]
    ) -> CompiledVertex:
        if self._in_library:
            return CompiledVertex(helper.__name__, payload, tuple(shared), inputs)
        name = self._share(helper)
        assert name is not None
        return CompiledVertex(name, payload, (*shared, name), inputs)


def referenced_key(ref: Alias | TaskRef) -> Key:
    """Return the key that a reference names."""
    return ref.target if type(ref) is Alias else ref.key


def _is_plain(merge: Reduction) -> bool:
    """Return whether all that a merge takes from other vertices is partial results."""
    return (
        all(type(part) in (Alias, TaskRef) for part in merge.inputs)
        and isinstance(merge.keywords, dict)
        and not any(isinstance(value, (GraphNode, TaskRef)) for value in merge.keywords.values())
    )


def dump_call(args: list[Any], kwargs: dict[str, Any], *, plain: bool) -> bytes:
    """Serialize arguments; ``plain`` says that plain pickle can take them."""
    return values.dumps((tuple(args), kwargs), plain=True) if plain else dumps((tuple(args), kwargs))


def dumps(value: Any) -> bytes:
    """Serialize by value what a worker could not import.

    Raises
    ------
    TypeError
        It cannot be pickled; the message names it.
    """
    try:
        return values.dumps(value, by_value=True)
    except Exception as error:
        add_note(
            error,
            f"this could not be sent to a worker: {value!r:.200}: {unpicklable.describe_unpicklable(value)}",
        )
        raise


def modules_referenced(data: bytes) -> set[str]:
    """Name the modules that a pickle refers to, so that a process can import them before it forks.

    The user's own modules are imported after the fork, but the packages that they refer to need not be.
    Dask alone does not count: what runs a vertex looks for it by name where it is loaded already.
    """
    names = {match.decode() for match in MODULE_NAME.findall(data)} - {"__main__", "dask"}
    found: set[str] = set()
    for name in names & sys.modules.keys():
        found |= modules_behind(sys.modules[name])
    return {name for name in found if not name.startswith("daskvine")}


def modules_behind(module: types.ModuleType) -> set[str]:
    """Name a module; of one that is the user's own also what it refers to, through others of the user's."""
    found, waiting = {module.__name__}, [module]
    while waiting:
        one = waiting.pop()
        if not is_own_module(one):
            continue
        for value in list(vars(one).values()):
            name = value.__name__ if isinstance(value, types.ModuleType) else _find_module_name(value)
            if name not in found and isinstance(other := sys.modules.get(name), types.ModuleType):
                found.add(name)
                waiting.append(other)
    return found - {"__main__"}


def _find_module_name(value: Any) -> str:
    name = getattr(value, "__module__", None) if isinstance(value, CODE_TYPES) else None
    return name if isinstance(name, str) else ""
