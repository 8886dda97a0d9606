"""Names made of all that a vertex depends on, so that the same vertex has the same name in the next computation, or in the next program.

A recipe is the digest of a function, its arguments, and the recipes of its inputs. Keys do not count: dask makes many of them at random. Code
counts as what it does: a function that travels by value is its byte code, its constants, defaults, closure, and the globals it refers to; one that
workers import is its name and the version of its package, or, for a module of the user's own, the text of that module and of the user's
modules it refers to, unless that has changed while this program runs. A path of a file or folder on this machine counts with that file's size and time of change; a remote address is taken
to stay what it is. Whatever cannot be told apart for certain has no recipe, and neither has what depends on it.

Two recipes that differ anywhere have different names; two that are the same may have different ones, which costs only time.
"""

from __future__ import annotations

import copyreg
import hashlib
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import psutil
from dask import _task_spec
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from daskvine.graph import Graph, Key

RECIPE = "vertex-"
"""What the names of such results begin with."""

Scope = Callable[[Key], bytes]
_SUBGRAPH = getattr(_task_spec, "_execute_subgraph", None)
_REPACK = ("dask.base", "unpack_collections.<locals>.repack")
_REPACK_CELLS = ("repack_dsk", "out", "collections_token")
_RECORD_FORM = ("awkward.forms.recordform", "RecordForm")
_NOT_OF_A_CLASS = (
    "__dict__",
    "__weakref__",
    "__doc__",
    "_abc_impl",
    "__firstlineno__",
    "__static_attributes__",
)
_LONGEST_PATH = 4096


class NoRecipe(Exception):
    """Something cannot be named by what it is."""


class Recipes:
    """Names the vertices of one graph.

    Parameters
    ----------
    graph
        The graph.
    context
        What all vertices depend on: versions, environment, variables, wrapper.
    deterministic
        Called with a key: whether the vertex makes the same whenever it is run.
    """

    def __init__(self, graph: Graph, context: Any, deterministic: Callable[[Key], Any]) -> None:
        self._graph, self._deterministic = graph, deterministic
        self._digests = Digests()
        self._context = self._digests.of((sys.version_info[:3], context))
        self._recipes: dict[Key, bytes | None] = {}

    def name(self, key: Key) -> str | None:
        """Name the result of a vertex, after those of its inputs; None if there is no telling."""
        try:
            if not self._deterministic(key):
                raise NoRecipe
            recipe = _digest(
                b"vertex", self._context, self._digests.of_node(self._graph.vertices[key], self._input)
            )
        except (NoRecipe, RecursionError):
            self._recipes[key] = None
            return None
        self._recipes[key] = recipe
        return RECIPE + recipe.hex()

    def _input(self, key: Key) -> bytes:
        key = self._graph.resolve(key)
        if key in self._graph.data:
            return self._digests.of(self._graph.data[key])
        recipe = self._recipes.get(key)
        if recipe is None:
            raise NoRecipe
        return recipe


class Digests:
    """Digests of values by their structure, where pickles of equal values may differ: sets, strings that are one object or two, keys."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._alive: list[Any] = []  # what is known by identity must not be freed meanwhile
        self._open: dict[int, int] = {}  # what is being looked into -> how deep
        self._lowest = sys.maxsize  # depth that a cycle has led back to
        self._versions: dict[str, bytes] = {}
        self._special: dict[type, Callable[[Any], bytes]] = {
            tuple: self._sequence, list: self._sequence, dict: self._mapping, types.MappingProxyType: self._mapping,
            set: self._set, frozenset: self._set, types.FunctionType: self._function, types.BuiltinFunctionType: self._builtin,
            types.CodeType: self._code, types.CellType: self._cell, types.ModuleType: self._module, types.MethodType: self._method,
            staticmethod: self._wrapped, classmethod: self._wrapped, property: self._property,
        }  # fmt: skip
        self._inner: dict[tuple[int, Any, Any], tuple[bytes, list[Key]]] = {}

    def of(self, value: Any) -> bytes:
        """Digest any value.

        Raises
        ------
        NoRecipe
            It holds something that has no lasting description, such as an open file.
        """
        kind = type(value)
        if kind in _PLAIN:
            return _digest(kind.__name__.encode(), repr(value).encode())
        if kind is str:
            return _digest(b"str", value.encode(errors="surrogatepass"), _state_of_file(value))
        if kind is bytes:
            return _digest(b"bytes", value)
        known = self._known.get(id(value))
        if known is not None:
            return known
        depth = self._open.get(id(value))
        if depth is not None:
            self._lowest = min(self._lowest, depth)
            return _digest(b"cycle", str(len(self._open) - depth).encode())
        return self._look_into(kind, value)

    def _look_into(self, kind: type, value: Any) -> bytes:
        depth = self._open[id(value)] = len(self._open)
        above, self._lowest = self._lowest, sys.maxsize
        try:
            special = self._special.get(kind)
            if special is not None:
                found = special(value)
            elif isinstance(value, type):
                found = self._class(value)
            elif isinstance(value, pathlib.PurePath):
                found = _digest(
                    b"path", kind.__name__.encode(), str(value).encode(), _state_of_file(str(value))
                )
            elif isinstance(value, (GraphNode, TaskRef)):  # outside of a graph that says what it refers to
                raise NoRecipe
            elif (
                (kind.__module__, kind.__qualname__) == _RECORD_FORM
                and value.fields is not None
                and not value.is_tuple
            ):
                found = self._record_form(value)
            else:
                found = self._object(value)
            if self._lowest >= depth:  # else it says "three levels up", which is true only here
                self._known[id(value)] = found
                self._alive.append(value)
        finally:
            self._lowest = min(above, self._lowest if self._lowest < depth else sys.maxsize)
            del self._open[id(value)]
        return found

    def _all(self, tag: bytes, *values: Any) -> bytes:
        return _digest(tag, *map(self.of, values))

    # ---- containers

    def _sequence(self, value: Any) -> bytes:
        return self._all(type(value).__name__.encode(), *value)

    def _mapping(self, value: Any) -> bytes:
        items = [self._all(b"item", *item) for item in value.items()]
        if any(
            map(_is_ufunc_overload, value)
        ):  # a behavior of awkward's, which coffea fills in the order of sets
            items.sort()
        return _digest(type(value).__name__.encode(), *items)

    def _set(self, value: Any) -> bytes:
        return _digest(type(value).__name__.encode(), *sorted(map(self.of, value)))

    # ---- code

    def _reference(self, value: Any) -> bytes | None:
        """Describe what workers import; None if it travels by value."""
        module: Any = getattr(value, "__module__", None)
        if module is None:
            module = getattr(getattr(value, "__self__", None), "__name__", None)
        name: Any = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
        found: Any = sys.modules.get(module) if isinstance(module, str) and module != "__main__" else None
        if found is None:
            return None
        if any(
            module == other or module.startswith(f"{other}.")
            for other in cloudpickle.list_registry_pickle_by_value()
        ):
            return None
        for part in name.split("."):
            found = getattr(found, part, None)
        return self._named(module, name) if found is value else None

    def _named(self, module: str, name: str) -> bytes:
        return _digest(b"reference", module.encode(), name.encode(), self._version(module))

    def _function(self, value: types.FunctionType) -> bytes:
        reference = self._reference(value)
        if reference is not None:
            return reference
        if (value.__module__, value.__qualname__) == _REPACK:
            return self._repack(value)
        used = {
            name: value.__globals__[name]
            for name in sorted(_names_in(value.__code__))
            if name in value.__globals__
        }
        more = (value.__defaults__, value.__kwdefaults__, value.__closure__, value.__dict__, used)
        return self._all(b"function", value.__name__, value.__code__, *more)

    def _repack(self, function: types.FunctionType) -> bytes:
        """Digest what dask makes of arguments with collections inside: a graph with random keys, in a closure."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        try:
            graph, target, argument = (cells[name].cell_contents for name in _REPACK_CELLS)
        except KeyError as error:
            raise NoRecipe from error
        found, _used = self._of_inner(graph, target, frozenset({argument}))
        return _digest(b"repack", found)

    def _builtin(self, value: Any) -> bytes:
        reference = self._reference(value)
        if reference is not None:
            return reference
        return self._object(value)

    def _code(self, code: types.CodeType) -> bytes:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return self._all(
            b"code", counts, names, code.co_code, code.co_consts, getattr(code, "co_exceptiontable", b"")
        )

    def _cell(self, cell: types.CellType) -> bytes:
        try:
            return self._all(b"cell", cell.cell_contents)
        except ValueError:  # nothing is in it yet
            return _digest(b"empty cell")

    def _class(self, value: type) -> bytes:
        reference = self._reference(value)
        if reference is not None:
            return reference
        parts = {name: part for name, part in vars(value).items() if name not in _NOT_OF_A_CLASS}
        return self._all(b"class", value.__qualname__, type(value), value.__bases__, parts)

    def _module(self, module: types.ModuleType) -> bytes:
        return self._named(module.__name__, "")

    def _method(self, method: types.MethodType) -> bytes:
        return self._all(b"method", method.__func__, method.__self__)

    def _wrapped(self, value: Any) -> bytes:
        return self._all(type(value).__name__.encode(), value.__func__)

    def _property(self, value: property) -> bytes:
        return self._all(b"property", value.fget, value.fset, value.fdel)

    # ---- everything else, as pickle sees it

    def _record_form(self, form: Any) -> bytes:
        """Digest the form of records by the names of the fields; uproot takes them out of a set, so they come in any order."""
        fields = [self._all(b"field", name, form.content(name)) for name in form.fields]
        return _digest(b"record", self.of(form.parameters), self.of(form.form_key), *sorted(fields))

    def _object(self, value: Any) -> bytes:
        reducer: Any = copyreg.dispatch_table.get(type(value))
        try:
            parts: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as error:
            raise NoRecipe from error
        if isinstance(parts, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            if module not in sys.modules:
                raise NoRecipe
            return self._named(module, parts)
        function, arguments, state, items, pairs, setter = [*parts, *[None] * 5][:6]
        return self._all(b"object", function, arguments, state, list(items or ()), list(pairs or ()), setter)

    # ---- versions

    def _version(self, module: str) -> bytes:
        found = self._versions.get(module)
        if found is None:
            found = self._versions[module] = self._find_version(module)
        return found

    def _find_version(self, name: str) -> bytes:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:  # as old as Python itself
            return b""
        module = sys.modules[name]
        if not _is_own(module):
            version = getattr(sys.modules.get(top), "__version__", None)
            if isinstance(version, str):
                return _digest(b"version", version.encode())
            return _digest(b"file", _state_of_file(getattr(module, "__file__", None) or ""))
        texts: dict[str, bytes] = {}
        for own in _own_modules_behind(module):
            path = pathlib.Path(str(own.__file__))
            try:
                changed, text = path.stat().st_mtime, path.read_bytes()
            except OSError as error:
                raise NoRecipe from error
            if (
                changed > psutil.Process().create_time()
            ):  # it need not be what was imported, here or by a worker
                raise NoRecipe
            texts[own.__name__] = text
        return _digest(b"text", *(part for own in sorted(texts) for part in (own.encode(), texts[own])))

    # ---- nodes of a graph

    def of_node(self, node: Any, scope: Scope) -> bytes:
        """Digest a node; ``scope`` gives the digests of what it refers to by key."""
        if isinstance(node, Alias):
            return scope(node.target)
        if isinstance(node, TaskRef):
            return scope(node.key)
        if isinstance(node, DataNode):
            return self.of(node.value)
        if not isinstance(node, Task):
            return self.of(node)
        if _SUBGRAPH is not None and node.func is _SUBGRAPH:
            return self._of_subgraph(node, scope)
        keywords = [
            part
            for name in sorted(node.kwargs)
            for part in (self.of(name), self.of_node(node.kwargs[name], scope))
        ]
        arguments = [self.of_node(argument, scope) for argument in node.args]
        about = (type(node).__name__.encode(), self.of(node.func), str(len(arguments)).encode())
        return _digest(b"task", *about, *arguments, *keywords)

    def _of_subgraph(self, node: Task, scope: Scope) -> bytes:
        """Digest several vertices fused into one: a graph of its own, whose keys are names inside of it."""
        inner, target, names, *arguments = (
            part.value if isinstance(part, DataNode) else part for part in node.args
        )
        key = (id(inner), target, tuple(names))
        if key not in self._inner:
            self._inner[key] = self._of_inner(inner, target, frozenset(names))
            self._alive.append(inner)
        found, used = self._inner[key]
        given = dict(zip(names, arguments, strict=True))
        return _digest(b"subgraph", found, *(self.of_node(given[name], scope) for name in used))

    def _of_inner(self, inner: Any, target: Key, names: frozenset[Key]) -> tuple[bytes, list[Key]]:
        """Digest an inner graph; and the names of its arguments in the order in which it uses them."""
        digests: dict[Key, bytes] = {}
        used: list[Key] = []

        def scope(key: Key) -> bytes:
            if key in names:
                if key not in used:
                    used.append(key)
                return _digest(b"argument", str(used.index(key)).encode())
            if key not in digests:
                if key not in inner:
                    raise NoRecipe
                digests[key] = self.of_node(inner[key], scope)
            return digests[key]

        return scope(target), used


_PLAIN = frozenset({int, float, complex, bool, type(None), type(Ellipsis), type(NotImplemented), range})


def _digest(*parts: bytes) -> bytes:
    found = hashlib.blake2b(digest_size=20)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def _is_ufunc_overload(key: Any) -> bool:
    return type(key) is tuple and len(key) > 1 and type(key[0]).__name__ == "ufunc"


def _names_in(code: types.CodeType) -> set[str]:
    """All names that a function may look up in its globals, those of functions inside of it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _state_of_file(text: str) -> bytes:
    """Size and time of change, if a text is the path of something on this machine; else nothing."""
    path = text.removeprefix("file://")
    if not path.startswith("/") or len(path) > _LONGEST_PATH or "\0" in path:
        return b""
    try:
        about = os.stat(path)
    except OSError:
        return b""
    return f"{about.st_size} {about.st_mtime_ns}".encode()


def _is_own(module: types.ModuleType) -> bool:
    """Whether a module is the user's own source, and not of an installed package."""
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return (
        bool(file)
        and str(file).endswith(".py")
        and not {"site-packages", "dist-packages"} & set(pathlib.Path(str(file)).parts)
    )


def _own_modules_behind(module: types.ModuleType) -> tuple[types.ModuleType, ...]:
    """A module of the user's, and those of the user's that it refers to, and so on."""
    found = {module.__name__: module}
    waiting = [module]
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            other = (
                value
                if isinstance(value, types.ModuleType)
                else sys.modules.get(str(getattr(value, "__module__", "")))
            )
            if other is None or other.__name__ in found or not _is_own(other):
                continue
            found[other.__name__] = other
            waiting.append(other)
    return tuple(found.values())
