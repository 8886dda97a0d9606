"""Makes graphs of cases: the same again for each computation, because what a vertex is given may be changed there."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
from dask._task_spec import Task, TaskRef, parse_input

from tests.random_graphs.cases import Ref, Vertex, references
from tests.random_graphs.program import Program

ELEMENTS, PARTS = 12, 4


def function_of(program: Program, vertex: Vertex) -> tuple[Any, tuple[Any, ...]]:
    """Give the function of a vertex, and the arguments that it takes before those of the graph."""
    own, kind, number = program.own, vertex.kind.name, vertex.parameter
    parameter = number + program.numbers["parameter"]
    path = program.folder / f"file-{number}"
    written = program.written(int(vertex.name[1:]))
    special: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "partial": (functools.partial(own.weighted, parameter), ()),
        "scaler": (own.Scaler(parameter), ()),
        "method": (own.Scaler(parameter).scale, ()),
        "closure": (_closure(own, parameter), ()),
        "notebook": (program.notebook(), ()),
        "travels": (_call_shifted(own, program.travels), ()),
        "given_generator": (own.drawn, ({0: np.random.default_rng()},)),
        "given_random": (own.drawn, ({0: random.Random()},)),
        "given_method": (own.called, (np.random.RandomState().normal,)),
        "held_by_notebook": (program.drawing_notebook(), ()),
        "seeded_generator": (own.drawn, ({0: np.random.default_rng(number)},)),
        "file_named": (own.file_named, (str(path),)),
        "file_as_path": (own.file_named, (Path(path),)),
        "file_found": (own.file_found, (number,)),
        "file_relative": (own.file_named, (program.relative(path),)),
        "file_matching": (own.file_matching, (str(program.folder / "file-*"),)),
        "file_at_address": (own.file_at_address, (f"file:{path}",)),
        "file_of_user": (own.file_of_user, (f"~/{program.relative(path)}",)),
        "writes": (own.writes, (str(written),)),
        "writes_found": (own.writes_found, (int(vertex.name[1:]),)),
        "writes_relative": (own.writes, (program.relative(written),)),
    }
    if vertex.kind.trait == "raises":
        return getattr(own, kind), (number,)
    return special[kind] if kind in special else (getattr(own, kind), ())


def _closure(own: Any, parameter: int) -> Any:
    return lambda *values: own.total(values) + parameter + own.constant()


def _call_shifted(own: Any, travels: Any) -> Any:
    return lambda *values: travels.shifted(own.total(values))


def literal_lists(vertex: Vertex) -> tuple[Any, ...] | None:
    """Give the lists of kinds that are given the same one twice, or two that are equal."""
    if vertex.kind.name not in ("aliases", "same"):
        return None
    first = [vertex.parameter, 2]
    return (first, first) if vertex.arguments == ("twice",) else (first, list(first))


def arguments_of(program: Program, vertex: Vertex, refer: Any) -> tuple[Any, tuple[Any, ...]]:
    """Give the function and all arguments; references by what a function makes of the names."""
    function, leading = function_of(program, vertex)
    arguments = literal_lists(vertex)
    return function, leading + (substitute(vertex.arguments, refer) if arguments is None else arguments)


def substitute(argument: Any, refer: Any) -> Any:
    """Put something else into the places of references."""
    if isinstance(argument, Ref):
        return refer(argument.name)
    if isinstance(argument, (list, tuple)):
        return type(argument)(substitute(part, refer) for part in argument)
    if isinstance(argument, dict):
        return {key: substitute(part, refer) for key, part in argument.items()}
    return argument


def graph_of_tuples(program: Program, known: Mapping[str, Any]) -> dict[str, Any]:
    """Make the graph as dask's users write it.

    Parameters
    ----------
    known
        Values of vertices that are not to be called.
    """
    graph: dict[str, Any] = {}
    for vertex in program.case.vertices:
        if vertex.name in known:
            graph[vertex.name] = (_give, _Kept(known[vertex.name]))
        else:
            function, arguments = arguments_of(program, vertex, str)
            graph[vertex.name] = (function, *(_without_dicts(argument) for argument in arguments))
    return graph


class _Kept:
    """A value that dask does not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _give(kept: _Kept) -> Any:
    return kept.value


def _without_dicts(argument: Any) -> Any:
    """Make a dict in the graph, because dask does not look for keys in one."""
    if isinstance(argument, dict):
        return (dict, [[key, _without_dicts(part)] for key, part in argument.items()])
    if isinstance(argument, list):
        return [_without_dicts(part) for part in argument]
    return argument


def graph_of_tasks(program: Program, known: Mapping[str, Any]) -> dict[str, Any]:
    """Make the graph of dask's own objects."""
    graph: dict[str, Any] = {}
    for vertex in program.case.vertices:
        if vertex.name in known:
            graph[vertex.name] = Task(vertex.name, _give, _Kept(known[vertex.name]))
        else:
            function, arguments = arguments_of(program, vertex, TaskRef)
            refers = references(vertex.arguments)
            graph[vertex.name] = Task(
                vertex.name, function, *(map(parse_input, arguments) if refers else arguments)
            )
    return graph


def delayed_of(program: Program, known: Mapping[str, Any]) -> dict[str, Any]:
    """Make a delayed object of each vertex."""
    made: dict[str, Any] = {}
    for vertex in program.case.vertices:
        if vertex.name in known:
            made[vertex.name] = dask.delayed(_give)(_Kept(known[vertex.name]))
        else:
            function, arguments = arguments_of(program, vertex, made.__getitem__)
            made[vertex.name] = dask.delayed(function, pure=False)(*arguments)
    return made


def chained(program: Program) -> list[tuple[Any, bool]]:
    """Give the functions of one number that all elements of a bag or array go through, and whether they follow from what they are given."""
    steps = []
    for vertex in program.case.vertices:
        function, leading = function_of(program, vertex)
        steps.append((functools.partial(function, *leading) if leading else function, not vertex.kind.trait))
    return steps


def bag_of(program: Program) -> Any:
    """Make a bag."""
    bag = db.from_sequence(range(ELEMENTS), npartitions=PARTS)
    for step, _pure in chained(program):
        bag = bag.map(step)
    return bag


def array_of(program: Program) -> Any:
    """Make an array."""
    array = da.arange(ELEMENTS, chunks=ELEMENTS // PARTS)
    for step, _pure in chained(program):
        array = array.map_blocks(functools.partial(program.own.each, step), dtype=float, meta=np.empty(0))
    return array
