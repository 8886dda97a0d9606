"""Name results by their dependencies, so that a vertex has the same name in the next computation or program.

A cache key is the digest of a function, its arguments, the cache keys of its inputs, and the surroundings: the
packages of the environment, and the texts of the program's own modules. Dask's keys do not count: many of them
are random. Code that travels by value counts by its byte code, constants, defaults, closure, and the globals it
refers to. Files and folders that arguments name count with their states (`daskvine.path_arguments`). A value
that cannot be distinguished with certainty has no cache key, and neither have results that depend on it.

Different dependencies have different names. Equal dependencies may have different names, which costs only time.
Equal vertices of one graph are numbered, because they may make different results.

A name covers only dependencies that are known before the vertex runs. The dependencies of the run are compared
with them (`ResultKeys.covers`); if the name does not cover all of them, the result is not used again.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask import _task_spec
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from daskvine import code_analysis
from daskvine.fingerprint import Fingerprint, Fingerprinter
from daskvine.graph import Graph, Key
from daskvine.value_descriptions import NotFingerprintable, ValueDescription, digest_parts

CACHE_KEY_PREFIX = "vertex-"
"""What the names of such results begin with."""
MAX_INHERITED_RESOURCES = 100
"""Things that a vertex covers because its inputs do."""

Scope = Callable[[Key], Fingerprint]
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
        The dependencies of all vertices: environment, variables, packages, texts of modules.
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
        self._fingerprinter = NodeFingerprinter(variables)
        self._covered_resources = frozenset(covered)
        self._context = self._fingerprinter.digest((sys.version_info[:3], context))
        self._fingerprints: dict[Key, Fingerprint | None] = {}
        self._equal_counts: Counter[bytes] = Counter()

    def key_for(self, key: Key) -> str | None:
        """Name the result of a vertex, after those of its inputs; None if there is no telling."""
        self._fingerprints[key] = found = self._fingerprint_vertex(key)
        return None if found is None else CACHE_KEY_PREFIX + found.digest.hex()

    def covers(self, key: Key, used: Iterable[str]) -> bool:
        """Return whether the name of a vertex holds all of these things in this state."""
        found = self._fingerprints.get(key)
        if found is None:
            return False
        places = self._fingerprinter.path_states
        return all(one in self._covered_resources or places.covers(found.resources, one) for one in used)

    def _fingerprint_vertex(self, key: Key) -> Fingerprint | None:
        try:
            if not self._deterministic(key):
                return None
            found = self._fingerprinter.fingerprint_vertex(self._graph.vertices[key], self._input_key)
        except (NotFingerprintable, RecursionError):
            return None
        except Exception:  # noqa: BLE001 - of a value that does not even like to be looked at
            return None
        if found.is_nondeterministic and not self._trusted:
            return None
        recipe = digest_parts(b"vertex", self._context, found.digest)
        number = self._equal_counts[recipe]
        self._equal_counts[recipe] += 1
        if number:
            recipe = digest_parts(recipe, str(number).encode())
        return found._replace(digest=recipe)

    def _input_key(self, key: Key) -> Fingerprint:
        key = self._graph.resolve(key)
        if key in self._graph.data:
            return self._fingerprinter.fingerprint(self._graph.data[key])
        recipe = self._fingerprints.get(key)
        if recipe is None:
            raise NotFingerprintable
        things = recipe.resources if len(recipe.resources) <= MAX_INHERITED_RESOURCES else frozenset()
        return Fingerprint(recipe.digest, (), things)


class NodeFingerprinter(Fingerprinter):
    """Digests of the nodes of a graph, whose references to other nodes are given by a scope."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(os.environ if variables is None else variables)
        self._inner_graphs: dict[tuple[int, Any, Any], tuple[Fingerprint, list[Key]]] = {}

    def fingerprint_vertex(self, node: Any, scope: Scope) -> Fingerprint:
        """Return the fingerprint of a vertex."""
        founds: list[Fingerprint] = []
        structure = self._digest_node(node, scope, founds)
        found = self.combine_fingerprints(b"values", founds)
        return found._replace(digest=digest_parts(structure, found.digest))

    def _digest_value(self, value: Any, founds: list[Fingerprint]) -> bytes:
        found = self.fingerprint(value)
        founds.append(found)
        return found.digest

    def _digest_node(self, node: Any, scope: Scope, founds: list[Fingerprint]) -> bytes:
        if isinstance(node, (Alias, TaskRef)):
            found = scope(node.target if isinstance(node, Alias) else node.key)
            founds.append(found)
            return found.digest
        if isinstance(node, DataNode):
            return self._digest_value(node.value, founds)
        if not isinstance(node, Task):
            if isinstance(node, GraphNode):
                raise NotFingerprintable
            return self._digest_value(node, founds)
        if _SUBGRAPH is not None and node.func is _SUBGRAPH:
            return self._digest_subgraph(node, scope, founds)
        function = self._digest_value(node.func, founds)
        arguments = [self._digest_node(argument, scope, founds) for argument in node.args]
        keywords = [
            part
            for name in sorted(node.kwargs)
            for part in (name.encode(), self._digest_node(node.kwargs[name], scope, founds))
        ]
        if any(
            code_analysis.is_current_time_text(node.func, getattr(one, "value", one)) for one in node.args
        ):
            founds.append(Fingerprint(b"now", is_nondeterministic=True))
        about = (type(node).__name__.encode(), function, str(len(arguments)).encode())
        return digest_parts(b"task", *about, *arguments, *keywords)

    def _digest_subgraph(self, node: Task, scope: Scope, founds: list[Fingerprint]) -> bytes:
        """Digest several vertices fused into one: a graph of its own, whose keys are names inside of it."""
        inner, target, names, *arguments = (
            part.value if isinstance(part, DataNode) else part for part in node.args
        )
        key = (id(inner), target, tuple(names))
        if key not in self._inner_graphs:
            self._inner_graphs[key] = self._fingerprint_inner_graph(inner, target, frozenset(names))
            self._alive.append(inner)
        found, used = self._inner_graphs[key]
        founds.append(found)
        given = dict(zip(names, arguments, strict=True))
        return digest_parts(
            b"subgraph", found.digest, *(self._digest_node(given[name], scope, founds) for name in used)
        )

    def _fingerprint_inner_graph(
        self, inner: Any, target: Key, names: frozenset[Key]
    ) -> tuple[Fingerprint, list[Key]]:
        """Fingerprint an inner graph; return also the names of its arguments in the order in which it uses them."""
        known: dict[Key, bytes] = {}
        used: dict[Key, int] = {}
        founds: list[Fingerprint] = []

        def scope(key: Key) -> Fingerprint:
            if key in names:
                return Fingerprint(digest_parts(b"argument", str(used.setdefault(key, len(used))).encode()))
            if key not in known:
                if key not in inner:
                    raise NotFingerprintable
                known[key] = self._digest_node(inner[key], scope, founds)
            return Fingerprint(known[key])

        structure = scope(target).digest
        found = self.combine_fingerprints(b"inner", founds)
        return found._replace(digest=digest_parts(structure, found.digest)), list(used)

    def _describe_function(self, value: Any) -> Any:
        if (value.__module__, value.__qualname__) == _REPACK:
            return self._describe_repack(value)
        return super()._describe_function(value)

    def _describe_repack(self, function: Any) -> Any:
        """Describe what dask makes of arguments with collections inside: a graph with random keys, in a closure."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        try:
            graph, target, argument = (cells[name].cell_contents for name in _REPACK_CELLS)
        except KeyError as error:
            raise NotFingerprintable from error
        found, _used = self._fingerprint_inner_graph(graph, target, frozenset({argument}))
        return ValueDescription(
            digest_parts(b"repack", found.digest),
            resources=found.resources,
            is_nondeterministic=found.is_nondeterministic,
        )
