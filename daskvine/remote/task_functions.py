"""Run one vertex, inside a library slot or a task process.

These functions travel by value, so a worker needs dask and the user's packages but not this one. Most vertices need nothing from here: their
own function is called with their own arguments, in which the engine has put the inputs.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from typing import Any

from vinecore.protocol.serialization import values
from vinecore.protocol.serialization.placeholders import (
    LazyValue,
    ResultWithMetadata,
    substitute_placeholders,
)


def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function."""
    force_synchronous_compute()
    return function(*args, **kwargs)


def call_packed(packed: Any, shared_count: int, *rest: Any) -> Any:
    """Call what came in an object of its own, because its arguments are too large for a message.

    Parameters
    ----------
    packed
        ``(args, kwargs)``, of which the first argument is the function; with placeholders.
    shared_count
        How many of ``rest`` are shared objects; the others are inputs.
    """
    packed_args, packed_kwargs = packed
    args, kwargs = substitute_placeholders(
        packed_args, packed_kwargs, list(rest[:shared_count]), list(rest[shared_count:])
    )
    function, *args = args
    force_synchronous_compute()
    return function(*args, **kwargs)


def evaluate_node(node: Any, keys: list[Any], *inputs: Any) -> Any:
    """Run a vertex that has others inside of it, or whose function is a coroutine function."""
    force_synchronous_compute()
    result = node(dict(zip(keys, inputs, strict=True)))
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def evaluate_task(function: Any, count: int, keys: list[Any], kwargs: dict[str, Any], *rest: Any) -> Any:
    """Run a vertex that has others inside of it, and shares some of its arguments with other vertices."""
    from dask._task_spec import Task

    force_synchronous_compute()
    return Task("vertex", function, *rest[:count], **kwargs)(dict(zip(keys, rest[count:], strict=True)))


def call_wrapper(wrapper: Any, node: Any, keys: list[Any], *inputs: Any) -> Any:
    """Run a vertex through the user's wrapper, which returns something extra beside the result."""
    force_synchronous_compute()
    extra, result = wrapper(node, dict(zip(keys, inputs, strict=True)))
    try:
        note = values.dumps(extra)
    except Exception as error:
        from vinecore.protocol.serialization import exceptions, unpicklable

        exceptions.add_note(
            error, f"what wrapper returned as extra cannot be sent: {unpicklable.describe_unpicklable(extra)}"
        )
        raise
    return ResultWithMetadata(result, note)


MAX_BYTES_LOADED_AT_ONCE = 64 * 1024 * 1024


def reduce_partial_results(function: Any, how: str, keywords: dict[str, Any], *parts: LazyValue) -> Any:
    """Merge partial results, and where they are large in little more memory than two of them take.

    Parameters
    ----------
    function
        The merging function, in the form that ``how`` names; see `daskvine.tree_reduction`.
    parts
        The partial results, not loaded yet. Small ones go to the function all at once, as they would without this. Where all together would
        take more than `AT_ONCE` they are loaded one after another, or as many as that is, and go to the function with what was merged before.
        What is known of a function is done in place.
    """
    force_synchronous_compute()
    if len(parts) > 1 and sum(part.size for part in parts) > MAX_BYTES_LOADED_AT_ONCE:
        if how == "histograms":
            return _sum(parts, skip=tuple)
        if how == "sum":
            return _sum(parts)
        if how == "accumulate":
            return _accumulate(parts, function)
        return _reduce_in_batches(function, how, keywords, [*parts])
    loaded = [part.load() for part in parts]
    return function(*loaded, **keywords) if how == "arguments" else function(loaded, **keywords)


def _reduce_in_batches(function: Any, how: str, keywords: dict[str, Any], parts: list[LazyValue]) -> Any:
    parts.reverse()
    batch = [parts.pop().load()]
    while parts:
        room = MAX_BYTES_LOADED_AT_ONCE
        while parts and (len(batch) < 2 or parts[-1].size <= room):
            room -= parts[-1].size
            batch.append(parts.pop().load())
        batch = [function(*batch, **keywords) if how == "arguments" else function(batch, **keywords)]
    return batch[0]


def _sum(parts: Any, skip: Any = ()) -> Any:
    """Compute ``sum``, adding histograms in place, because they belong to this task alone."""
    total = 0
    for part in parts:
        total = _add(total, part.load(), skip)
    return total


def _add(total: Any, part: Any, skip: Any) -> Any:
    if isinstance(part, skip):
        return total
    if _is_histogram(part) and _has_default_add(part):
        if type(total) is int and total == 0:
            return part
        if type(total) is type(part):
            total += part
            return total
    return total + part


def _is_histogram(value: Any) -> bool:
    """Return whether a value is a histogram of boost-histogram or hist, or of a subclass."""
    known = sys.modules.get("boost_histogram")
    return known is not None and isinstance(value, known.Histogram)


def _has_default_add(histogram: Any) -> bool:
    """Return whether ``+`` is a copy and then ``+=``."""
    kind, usual = type(histogram), sys.modules["boost_histogram"].Histogram
    return kind.__add__ is usual.__add__ and kind.__iadd__ is usual.__iadd__


def _accumulate(parts: Any, accumulate: Any) -> Any:
    """Compute coffea's ``accumulate``.

    Histograms in dictionaries are added in place, unless one of them occurs twice.
    """
    add = sys.modules[accumulate.__module__].add
    total = None
    for part in parts:
        total = _accumulate_one(total, part.load(), add)
    return total


def _accumulate_one(total: Any, part: Any, add: Any) -> Any:
    if part is None or total is None:
        return total if part is None else part
    mutable = [*_mutable_values(total)]
    if len(set(map(id, mutable))) < len(mutable):
        return add(total, part)
    return _add_in_place(total, part, add)


def _mutable_values(value: Any) -> Any:
    """Dictionaries and histograms in a value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _mutable_values(inner)
    elif not _is_histogram(value):
        return
    yield value


def _add_in_place(total: Any, part: Any, add: Any) -> Any:
    if type(total) is not type(part):
        return add(total, part)
    if _is_histogram(total):
        total += part
        return total
    if not isinstance(total, dict) or hasattr(total, "__add__"):
        return add(total, part)
    for key in total:
        if key in part:
            total[key] = _add_in_place(total[key], part.pop(key), add)
    total.update(part)
    return total


def force_synchronous_compute() -> None:
    """Run a ``compute`` inside a vertex in that vertex's own process."""
    if "dask" not in sys.modules:
        os.environ["DASK_SCHEDULER"] = "synchronous"
    elif sys.modules["dask"].config.get("scheduler", None) != "synchronous":
        sys.modules["dask"].config.set(scheduler="synchronous")


def load_dask() -> None:
    """Import dask for the slots of a library, with a ``compute`` that runs in the slot itself."""
    import dask

    dask.config.set(scheduler="synchronous")
