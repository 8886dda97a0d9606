"""Serialize the arguments of functions, and say which of them cannot be sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vinecore.manager.files import File
from vinecore.protocol.serialization import exceptions, unpicklable, values
from vinecore.protocol.serialization.pickling import PLAIN_PICKLE_TYPES
from vinecore.protocol.serialization.placeholders import InputPlaceholder

PLAIN_ARGUMENT_TYPES = PLAIN_PICKLE_TYPES | {InputPlaceholder}


def dump_arguments(args: Iterable[Any], kwargs: dict[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    """Serialize arguments; files among them become inputs.

    Returns
    -------
    payload, inputs
    """
    inputs: list[str] = []

    def replace(value: Any) -> Any:
        if isinstance(value, File):
            inputs.append(value.cache_name)
            return InputPlaceholder(len(inputs) - 1)
        return value

    args = tuple(args)
    plain = PLAIN_ARGUMENT_TYPES.issuperset(map(type, (*args, *kwargs.values())))
    if not plain:
        args = tuple(map(replace, args))
        kwargs = {key: replace(value) for key, value in kwargs.items()}
        plain = PLAIN_ARGUMENT_TYPES.issuperset(map(type, (*args, *kwargs.values())))
    try:
        return values.dumps((args, kwargs), by_value=not plain, plain=plain), tuple(inputs)
    except Exception as error:
        note_unpicklable(error, args, kwargs)
        raise


def note_unpicklable(error: Exception, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Add to an error of pickle which argument it is, and what in it."""
    named = [*((f"argument {number}", value) for number, value in enumerate(args, 1)), *kwargs.items()]
    for name, value in named:
        if not unpicklable.can_pickle(value):
            exceptions.add_note(
                error, f"{name} cannot be sent to a worker: {unpicklable.describe_unpicklable(value)}"
            )
