"""Placeholders for objects that travel beside the arguments of a call, and lazily loaded inputs."""

from __future__ import annotations

from typing import Any, Callable

from vinecore.protocol.serialization.values import Readable, loaded_size, loads


class Placeholder:
    """Stands, among the arguments of a call, for an object that travels beside them."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.index,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index})"


class InputPlaceholder(Placeholder):
    """The call's input with this number, loaded afresh."""

    __slots__ = ()


class LazyInput(Placeholder):
    """The call's input with this number, as a `LazyValue` that the function loads when it comes to it."""

    __slots__ = ()


class SharedPlaceholder(Placeholder):
    """The call's shared object with this number, loaded once in a slot."""

    __slots__ = ()


class NestedInputs:
    """A list, tuple, dict or set that has an `InputPlaceholder` somewhere inside of it."""

    __slots__ = ("container",)

    def __init__(self, container: Any) -> None:
        self.container = container

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.container,))

    def fill(self, inputs: list[Any]) -> Any:
        """Return the container with the inputs in the places of their placeholders."""

        def replace(value: Any) -> Any:
            if type(value) is InputPlaceholder:
                return inputs[value.index]
            return rebuild_container(value, replace)

        return replace(self.container)


def rebuild_container(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Return a list, tuple, named tuple, dict or set with each item replaced; anything else as it is."""
    kind = type(value)
    if kind is dict:
        return {replace(key): replace(item) for key, item in value.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(map(replace, value))
    if isinstance(value, tuple) and hasattr(kind, "_make"):
        return kind._make(map(replace, value))
    return value


REPLACED_TYPES = frozenset({InputPlaceholder, LazyInput, SharedPlaceholder, NestedInputs})


def substitute_placeholders(
    args: tuple[Any, ...], kwargs: dict[str, Any], shared: list[Any], inputs: list[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Put objects in the places of their placeholders, among the arguments and in `NestedInputs`."""

    def replace(value: Any) -> Any:
        kind = type(value)
        if kind not in REPLACED_TYPES:
            return value
        if kind is SharedPlaceholder:
            return shared[value.index]
        return value.fill(inputs) if kind is NestedInputs else inputs[value.index]

    return [replace(a) for a in args], ({k: replace(v) for k, v in kwargs.items()} if kwargs else kwargs)


class LazyValue:
    """A value that has not been loaded, and until then takes neither memory nor an open file.

    Parameters
    ----------
    data
        Gives what it is loaded from.

    Attributes
    ----------
    size : int
        Bytes of memory that it takes when it is loaded.
    """

    __slots__ = ("_data", "size")

    def __init__(self, data: Callable[[], Readable]) -> None:
        self._data = data
        self.size = loaded_size(data())

    def load(self) -> Any:
        """Load it, afresh each time; what one may do to it is as with an input."""
        return loads(self._data())


class ResultWithMetadata:
    """A result with something extra that goes to the manager beside it."""

    __slots__ = ("extra", "value")

    def __init__(self, value: Any, note: bytes) -> None:
        self.value, self.extra = value, note
