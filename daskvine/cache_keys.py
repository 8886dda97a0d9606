"""Names made of all that a vertex depends on, so that the same vertex has the same name in the next computation, or in the next program.

A recipe is the digest of a function, its arguments, the recipes of its inputs, and the surroundings: the packages of the environment, and the texts
of the program's own modules. Keys do not count: dask makes many of them at random. Code that travels by value counts as what it does: its byte code, constants,
defaults, closure, and the globals it refers to. What is named on this machine counts in the state in which it is (`daskvine.path_arguments`).
Whatever cannot be told apart for certain has no recipe, and neither has what depends on it.

Two recipes that differ anywhere have different names; two that are the same may have different ones, which costs only time. Vertices of one graph
that are the same are numbered, for nobody knows that they would make the same.

A name holds only what can be known before a vertex runs. What it used when it ran is compared with what its name covers (`Recipes.covers`), and if that is
less its result is not used again.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask import _task_spec
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from daskvine import impurity
from daskvine.fingerprint import Fingerprinter, Found, NotFingerprintable, Part, digest
from daskvine.graph import Graph, Key

CACHE_KEY_PREFIX = "vertex-"
"""What the names of such results begin with."""
MOST_INHERITED = 100
"""Things that a vertex covers because its inputs do."""

Scope = Callable[[Key], Found]
_SUBGRAPH = getattr(_task_spec, "_execute_subgraph", None)
_REPACK = ("dask.base", "unpack_collections.<locals>.repack")
_REPACK_CELLS = ("repack_dsk", "out", "collections_token")


class ResultKeys:
    """Names the vertices of one graph.

    Parameters
    ----------
    graph
        The graph.
    context
        What all vertices depend on: environment, variables, packages, texts of modules.
    deterministic
        Called with a key: whether the vertex makes the same whenever it is run.
    covered
        Things that the context covers; see `vinecore.protocol.used_resources`.
    variables
        The environment that vertices will have.
    trusted
        Whether code that seems to make something else each time has a recipe all the same.
    """

    def __init__(
        self,
        graph: Graph,
        context: Any,
        deterministic: Callable[[Key], Any],
        covered: Iterable[str] = (),
        variables: Mapping[str, str] | None = None,
        *,
        trusted: bool = False,
    ) -> None:
        self._graph, self._deterministic, self._trusted = graph, deterministic, trusted
        self._digests = NodeDigests(variables)
        self._covered = frozenset(covered)
        self._context = self._digests.of((sys.version_info[:3], context))
        self._recipes: dict[Key, Found | None] = {}
        self._equal: Counter[bytes] = Counter()

    def key_for(self, key: Key) -> str | None:
        """Name the result of a vertex, after those of its inputs; None if there is no telling."""
        self._recipes[key] = found = self._find(key)
        return None if found is None else CACHE_KEY_PREFIX + found.digest.hex()

    def covers(self, key: Key, used: Iterable[str]) -> bool:
        """Whether the name of a vertex holds all of these things in this state."""
        found = self._recipes.get(key)
        if found is None:
            return False
        places = self._digests.places
        return all(one in self._covered or places.covers(found.things, one) for one in used)

    def _find(self, key: Key) -> Found | None:
        try:
            if not self._deterministic(key):
                return None
            found = self._digests.vertex(self._graph.vertices[key], self._input_key)
        except (NotFingerprintable, RecursionError):
            return None
        except Exception:  # noqa: BLE001 - of a value that does not even like to be looked at
            return None
        if found.varies and not self._trusted:
            return None
        recipe = digest(b"vertex", self._context, found.digest)
        number = self._equal[recipe]
        self._equal[recipe] += 1
        if number:
            recipe = digest(recipe, str(number).encode())
        return found._replace(digest=recipe)

    def _input_key(self, key: Key) -> Found:
        key = self._graph.resolve(key)
        if key in self._graph.data:
            return self._digests.find(self._graph.data[key])
        recipe = self._recipes.get(key)
        if recipe is None:
            raise NotFingerprintable
        things = recipe.things if len(recipe.things) <= MOST_INHERITED else frozenset()
        return Found(recipe.digest, (), things)


class NodeDigests(Fingerprinter):
    """Digests of the nodes of a graph, whose references to other nodes are given by a scope."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(os.environ if variables is None else variables)
        self._inner: dict[tuple[int, Any, Any], tuple[Found, list[Key]]] = {}

    def vertex(self, node: Any, scope: Scope) -> Found:
        """Find out about a vertex all there is to know."""
        founds: list[Found] = []
        structure = self._node(node, scope, founds)
        found = self.join(b"values", founds)
        return found._replace(digest=digest(structure, found.digest))

    def _value(self, value: Any, founds: list[Found]) -> bytes:
        found = self.find(value)
        founds.append(found)
        return found.digest

    def _node(self, node: Any, scope: Scope, founds: list[Found]) -> bytes:
        if isinstance(node, (Alias, TaskRef)):
            found = scope(node.target if isinstance(node, Alias) else node.key)
            founds.append(found)
            return found.digest
        if isinstance(node, DataNode):
            return self._value(node.value, founds)
        if not isinstance(node, Task):
            if isinstance(node, GraphNode):
                raise NotFingerprintable
            return self._value(node, founds)
        if _SUBGRAPH is not None and node.func is _SUBGRAPH:
            return self._subgraph(node, scope, founds)
        function = self._value(node.func, founds)
        arguments = [self._node(argument, scope, founds) for argument in node.args]
        keywords = [
            part
            for name in sorted(node.kwargs)
            for part in (name.encode(), self._node(node.kwargs[name], scope, founds))
        ]
        if any(impurity.is_now(node.func, getattr(one, "value", one)) for one in node.args):
            founds.append(Found(b"now", varies=True))
        about = (type(node).__name__.encode(), function, str(len(arguments)).encode())
        return digest(b"task", *about, *arguments, *keywords)

    def _subgraph(self, node: Task, scope: Scope, founds: list[Found]) -> bytes:
        """Digest several vertices fused into one: a graph of its own, whose keys are names inside of it."""
        inner, target, names, *arguments = (
            part.value if isinstance(part, DataNode) else part for part in node.args
        )
        key = (id(inner), target, tuple(names))
        if key not in self._inner:
            self._inner[key] = self._find_inner(inner, target, frozenset(names))
            self._alive.append(inner)
        found, used = self._inner[key]
        founds.append(found)
        given = dict(zip(names, arguments, strict=True))
        return digest(b"subgraph", found.digest, *(self._node(given[name], scope, founds) for name in used))

    def _find_inner(self, inner: Any, target: Key, names: frozenset[Key]) -> tuple[Found, list[Key]]:
        """Find out about an inner graph; and the names of its arguments in the order in which it uses them."""
        known: dict[Key, bytes] = {}
        used: dict[Key, int] = {}
        founds: list[Found] = []

        def scope(key: Key) -> Found:
            if key in names:
                return Found(digest(b"argument", str(used.setdefault(key, len(used))).encode()))
            if key not in known:
                if key not in inner:
                    raise NotFingerprintable
                known[key] = self._node(inner[key], scope, founds)
            return Found(known[key])

        structure = scope(target).digest
        found = self.join(b"inner", founds)
        return found._replace(digest=digest(structure, found.digest)), list(used)

    def _function(self, value: Any) -> Any:
        if (value.__module__, value.__qualname__) == _REPACK:
            return self._repack(value)
        return super()._function(value)

    def _repack(self, function: Any) -> Any:
        """Describe what dask makes of arguments with collections inside: a graph with random keys, in a closure."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        try:
            graph, target, argument = (cells[name].cell_contents for name in _REPACK_CELLS)
        except KeyError as error:
            raise NotFingerprintable from error
        found, _used = self._find_inner(graph, target, frozenset({argument}))
        return Part(digest(b"repack", found.digest), things=found.things, varies=found.varies)
