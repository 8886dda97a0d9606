"""Wide merges as trees, and large ones in little memory: which vertices are merges, and how they are rewritten.

A vertex that merges a thousand partial results has to wait for all of them, and needs all of them on one
worker. Where the function is associative the same result is the root of a tree of small merges, which run as
soon as their few inputs exist and on whichever worker has them::

    merge(a, b, c, d, e)   ->   merge(merge(merge(a, b), merge(c, d)), e)      merge_size = 2

The rewriting keeps the order of the inputs, so the function need not be commutative, and the key of the
vertex, so nothing that refers to it changes.

Merges are functions that `daskvine_merge` has marked, the aggregation of dask-histogram, coffea's ``accumulate``, and
``sum``. Two forms are understood, as arguments of their own and as one list::

    merge(a, b, c, ...)         merge([a, b, c, ...])

Keywords, as in ``merge(a, b, c, weights=w)``, go to every merge of the tree.

However wide it is, a merge of large partial results loads them one after another (`daskvine.remote.task_functions.reduce_partial_results`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from dask._task_spec import Alias, GraphNode, List, Task, TaskRef
from dask.utils import apply

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Reduction", "daskvine_merge", "is_merge", "match_reduction", "rewrite_wide_reductions"]

F = TypeVar("F", bound=Callable[..., Any])

# An attribute of the function, not its identity: it is still there after a trip through cloudpickle.
_MARK = "__daskvine_merge__"

DEFAULT_FAN_IN = 8
"""Inputs of a merge whose width nobody has chosen; dask-histogram's own trees have the same."""

# Functions of others that merge a list, by module and name: how `daskvine.remote.task_functions.reduce_partial_results` does it.
_KNOWN_REDUCTIONS = {
    ("dask_histogram.core", "hist_safe_sum"): "histograms",
    ("coffea.processor.accumulator", "accumulate"): "accumulate",
    ("builtins", "sum"): "sum",
}
# Those that are meant to be grouped in any way; a sum is not, because rounding depends on it.
_ALWAYS_SPLIT = ("histograms", "accumulate")


def daskvine_merge(func: F) -> F:
    """Mark a function whose merges may be spread over a tree.

    Parameters
    ----------
    func : Callable
        Merges partial results into one, given as arguments of their own or as one list. It has to be
        associative, ``f(f(a, b), c) == f(a, f(b, c))``, has to take any number of partial results from one
        on, and what it returns has to be a partial result again. It need not be commutative: the order is
        kept.

    Returns
    -------
    Callable
        A function that does the same, under the same name. ``func`` itself stays unmarked.

    Examples
    --------
    >>> @daskvine_merge
    ... def total(*parts):
    ...     return sum(parts)
    >>> result = dask.delayed(total)(*parts)  # doctest: +SKIP
    >>> result.compute(scheduler=m.get, reconstruct=True, merge_size=4)  # doctest: +SKIP
    """

    @functools.wraps(func)
    def merge(*parts: Any, **keywords: Any) -> Any:
        return func(*parts, **keywords)

    setattr(merge, _MARK, True)
    return cast("F", merge)


def is_merge(func: object) -> bool:
    """Return whether a function was marked by `daskvine_merge`."""
    return getattr(func, _MARK, False) is True


def rewrite_wide_reductions(graph: Mapping[Key, GraphNode], merge_size: int | None) -> dict[Key, GraphNode]:
    """Replace each wide merge by a tree of merges of at most ``merge_size`` inputs.

    Parameters
    ----------
    graph : Mapping[key, GraphNode]
        A graph as ``dask._task_spec.convert_legacy_graph`` makes it.
    merge_size : int or None
        The largest number of inputs of one merge, 2 or more. None leaves all merges as they are but those of
        histograms and of coffea's accumulators, which get trees of `WIDTH`.

    Returns
    -------
    dict[key, GraphNode]
        The same graph with more vertices. The root of a tree has the key of the vertex it replaces; the
        others have keys made from it, the same ones each time. A list vertex that only fed a merge may be
        left without use: cull afterwards.
    """
    if merge_size is not None and merge_size < 2:
        msg = f"merge_size is 2 or more; got {merge_size}"
        raise ValueError(msg)
    size = merge_size or DEFAULT_FAN_IN
    rewritten: dict[Key, GraphNode] = {}
    dull: set[int] = set()  # functions that merge nothing: there are few, and many vertices that call them
    for key, node in graph.items():
        func = getattr(node, "func", None)
        if id(func) in dull:
            rewritten[key] = node
            continue
        if not _is_associative(func):
            dull.add(id(func))
        merge = match_reduction(node, graph)
        if (
            merge is not None
            and len(merge.inputs) > size
            and (merge_size or merge.argument_style in _ALWAYS_SPLIT)
        ):
            rewritten.update(_build_tree(key, merge, size, graph))
        else:
            rewritten[key] = node
    return rewritten


class Reduction(NamedTuple):
    """One merge, apart from the form it was written in.

    Attributes
    ----------
    parts : Sequence
        The partial results: references, constants, nodes.
    node : Callable
        Makes the same merge of other parts and under another key.
    function : Callable
        The merging function.
    how : str
        "arguments" and "list" say how a marked function takes them; the others are known.
    keywords : object
        Further keyword arguments of the function: a dict, or a node that makes one.
    """

    inputs: Sequence[Any]
    node: Callable[[Key, Sequence[Any]], Task]
    function: Callable[..., Any]
    argument_style: str
    keywords: Any


def _build_tree(
    key: Key, merge: Reduction, size: int, taken: Mapping[Key, GraphNode]
) -> Iterator[tuple[Key, Task]]:
    parts, level = list(merge.inputs), 0
    while len(parts) > size:
        level += 1
        groups = [parts[i : i + size] for i in range(0, len(parts), size)]
        parts = []
        for index, group in enumerate(groups):
            if len(group) == 1:  # nothing to merge yet: it goes up as it is
                parts += group
                continue
            child = _make_intermediate_key(key, level, index, taken)
            yield child, merge.node(child, group)
            parts.append(TaskRef(child))
    yield key, merge.node(key, parts)


def _make_intermediate_key(key: Key, level: int, index: int, taken: Mapping[Key, GraphNode]) -> Key:
    suffix = f"-merge-{level}-{index}"
    while True:
        child: Key
        match key:
            case str():
                child = key + suffix
            case (str(name), *rest):  # a chunk of a collection stays one
                child = (name + suffix, *rest)
            case _:
                child = f"{key!r}{suffix}"
        if child not in taken:
            return child
        suffix = f"-merge{suffix}"


def match_reduction(node: GraphNode, graph: Mapping[Key, GraphNode]) -> Reduction | None:
    """Read a vertex as a merge; None if it is none.

    Parameters
    ----------
    node : GraphNode
        The vertex.
    graph : Mapping[key, GraphNode]
        Where lists are looked up that are vertices of their own.
    """
    if not isinstance(node, Task):
        return None
    if is_merge(node.func):
        return _match_direct_call(node, graph)
    if node.func is apply:
        return _match_apply(node, graph) if node.args and is_merge(node.args[0]) else None
    if len(node.args) == 1 and not node.kwargs:
        how = _KNOWN_REDUCTIONS.get(_find_origin(node.func))
        return _match_list_argument(node, node.func, how, graph) if how else None
    if _find_origin(node.func)[1] == "pipe":
        return _match_pipe(node, graph)
    return None


def _is_associative(func: object) -> bool:
    origin = _find_origin(func)
    return is_merge(func) or func is apply or origin in _KNOWN_REDUCTIONS or origin[1] == "pipe"


def _find_origin(function: object) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__name__", None)


def _match_direct_call(node: Task, graph: Mapping[Key, GraphNode]) -> Reduction:
    """Read ``func(*parts, **keywords)`` or ``func([*parts], **keywords)``."""
    parts, how, positional = _find_partial_results(node.args, graph)
    return Reduction(
        parts,
        lambda key, group: Task(key, node.func, *positional(group), **node.kwargs),
        node.func,
        how,
        node.kwargs,
    )


def _match_apply(node: Task, graph: Mapping[Key, GraphNode]) -> Reduction | None:
    """Read ``apply(func, arguments, keywords)``: how dask 2025.3 writes a delayed call with keywords."""
    func, *rest = node.args
    arguments = _find_items(rest[0]) if rest else None
    if arguments is None:
        return None
    parts, how, positional = _find_partial_results(arguments, graph)
    return Reduction(
        parts,
        lambda key, group: Task(key, apply, func, List(*positional(group)), *rest[1:]),
        func,
        how,
        rest[1] if rest[1:] else {},
    )


def _match_pipe(node: Task, graph: Mapping[Key, GraphNode]) -> Reduction | None:
    """Read ``pipe([*parts], func, identity)``: how dask-histogram writes each vertex of its trees."""
    _list, func, *others = node.args
    if _KNOWN_REDUCTIONS.get(_find_origin(func)) != "histograms" or any(
        _find_origin(other)[1] != "identity" for other in others
    ):
        return None
    return _match_list_argument(node, func, "histograms", graph)


def _match_list_argument(node: Task, func: Any, how: str, graph: Mapping[Key, GraphNode]) -> Reduction | None:
    """Read a call whose first argument is the list of the parts."""
    first, *others = node.args
    listed = _find_listed_items(first, graph)
    if listed is None:
        return None
    return Reduction(listed, lambda key, group: Task(key, node.func, List(*group), *others), func, how, {})


def _find_partial_results(
    args: Sequence[Any], graph: Mapping[Key, GraphNode]
) -> tuple[Sequence[Any], str, Callable[[Sequence[Any]], Sequence[Any]]]:
    """Return the partial results among positional arguments, their form, and how to write others in it."""
    if len(args) == 1:
        listed = _find_listed_items(args[0], graph)
        if listed is not None:
            return listed, "list", lambda group: (List(*group),)
    return args, "arguments", lambda group: group


def _find_listed_items(arg: Any, graph: Mapping[Key, GraphNode]) -> Sequence[Any] | None:
    return _find_items(graph.get(_referenced_key(arg), arg) if isinstance(arg, Alias | TaskRef) else arg)


def _referenced_key(ref: Alias | TaskRef) -> Key:
    return ref.target if isinstance(ref, Alias) else ref.key


def _find_items(arg: object) -> Sequence[Any] | None:
    """Return the items of a list, written as a list or as the node that makes one."""
    if isinstance(arg, list):
        return arg
    if isinstance(arg, List):
        return arg.args
    # dask 2025.3 writes a converted list as a call of a private function of this signature
    if (
        isinstance(arg, Task)
        and getattr(arg.func, "__name__", "") == "_identity_cast"
        and arg.kwargs == {"typ": list}
    ):
        return arg.args
    return None
