"""Read annotations of `dask.annotate` as distributed does: retries, priority and resources.

An annotation that has no meaning here is named in one warning for each ``get``; none is passed over in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from dask.base import get_annotations

from daskvine import validators
from daskvine.graph import Graph, Key
from daskvine.options import RESOURCES, Options
from vinecore.resources.amounts import ResourceRequest

RESOURCE_NAMES = {name: name for name in RESOURCES} | {
    "cpu": "cores",
    "cpus": "cores",
    "core": "cores",
    "gpu": "gpus",
}
"""Lower-case names inside ``dask.annotate(resources={...})``, and what they are called here."""

IGNORED_ANNOTATIONS = {
    "workers": "a vertex goes where its inputs are; see scheduling_mode",
    "allow_other_workers": "every worker may run every vertex",
}


LIBRARY_MARKERS = frozenset({"ak_output"})
"""What libraries mark their own vertices with (dask-awkward and uproot those that write files): nobody is asked for anything."""


class VertexAnnotations(NamedTuple):
    """The annotations of one vertex; None for a field without one."""

    request: ResourceRequest = ResourceRequest()
    retries: int | None = None
    priority: float | None = None


NO_ANNOTATIONS = VertexAnnotations()


def collect_annotations(dsk: Any) -> dict[Key, dict[str, Any]]:
    """Collect the annotations that have survived dask's optimization.

    Parameters
    ----------
    dsk
        A graph in any form that dask hands over.

    Returns
    -------
    dict
        Key to ``{name: value}``, for the vertices that have any.
    """
    found: dict[Key, dict[str, Any]] = {}
    collect = getattr(dsk, "__dask_annotations__", None)
    if collect is not None:
        for name, per_key in collect().items():
            for key, value in per_key.items():
                found.setdefault(key, {})[name] = value
    for layer in getattr(dsk, "layers", {}).values():
        for name, value in (getattr(layer, "annotations", None) or {}).items():
            for key in layer:
                found.setdefault(key, {})[name] = value(key) if callable(value) else value
    return found


def read_annotations(
    annotated: Mapping[Key, Mapping[str, Any]], graph: Graph, options: Options
) -> dict[Key, VertexAnnotations]:
    """Check the annotations of a graph's vertices, and those that are in force while it is computed.

    Parameters
    ----------
    annotated
        As `collect_annotations` gives them.
    graph
        Its vertices count; annotations of others do not.

    Returns
    -------
    dict
        Key to what is asked for; vertices without annotations are not in it.

    Raises
    ------
    TypeError, ValueError
        An annotation has a value that it cannot have.

    Warns
    -----
    UserWarning
        Names the annotations that have no effect, with the reason.
    """
    current = get_annotations()
    if not (annotated or current):
        return {}
    found: dict[Key, VertexAnnotations] = {}
    ignored: dict[str, str] = {}
    for key in graph.vertices:
        given = {**current, **annotated.get(key, {})}
        if given:
            found[key] = _read_vertex(key, given, options, ignored)
    if ignored:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in sorted(ignored.items()))
        warnings.warn(f"annotations without effect: {reasons}", stacklevel=4)
    return found


def _read_vertex(
    key: Key, given: Mapping[str, Any], options: Options, ignored: dict[str, str]
) -> VertexAnnotations:
    asked: dict[str, Any] = {}
    retries = priority = None
    try:
        for name, said in given.items():
            value = said(key) if callable(said) else said
            if name in RESOURCES:
                asked[name] = value
            elif name == "resources":
                asked |= _read_resources(value, ignored)
            elif name == "retries":
                retries = validators.integer(least=0)(value)
            elif name == "priority":
                priority = validators.number(value)
            elif name not in LIBRARY_MARKERS:
                ignored[name] = IGNORED_ANNOTATIONS.get(name, "it has no meaning to this scheduler")
        request = ResourceRequest(**validators.resources(RESOURCES)(asked))
    except (TypeError, ValueError) as error:
        detail = f": {error}" if str(error) else ""
        msg = f"vertex {key!r} has the annotation {dict(given)}, which is invalid{detail}"
        raise type(error)(msg) from None
    if asked and options.task_mode == "function-calls":
        ignored["resources"] = (
            "in task_mode='function-calls' a vertex has one slot; give lib_resources, or task_mode='tasks'"
        )
        request = ResourceRequest()
    if priority is not None and options.task_priority_mode is not None:
        ignored["priority"] = f"task_priority_mode={options.task_priority_mode!r} decides the order"
        priority = None
    return VertexAnnotations(request, retries, priority)


def _read_resources(value: object, ignored: dict[str, str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        msg = "resources takes a dict, such as {'cores': 2}"
        raise TypeError(msg)
    asked: dict[str, Any] = {}
    for name, amount in value.items():
        known = RESOURCE_NAMES.get(str(name).lower())
        if known is None:
            ignored[f"resources[{name!r}]"] = f"a worker has {', '.join(RESOURCES)}"
        elif amount is not None:
            asked[known] = amount
    return asked
