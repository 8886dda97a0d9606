"""How an exception that user code has raised becomes bytes, and itself again in the process of who is to see it.

An exception travels in parts: its class, its arguments, what else it holds, and its traceback as plain data; its causes, contexts and the members of a
group beside it, so that neither depth nor cycles matter. It is put together without calling its constructor, which may take other arguments
than those that were kept. Only a class that says itself how it is pickled is pickled so, if what comes of it is the same.

Nothing of that raises. A part that cannot be pickled is replaced by its text. If the class itself cannot be loaded where it arrives, another
one stands in for it, with its name, text and traceback, and of the same builtin type, so that who catches that catches it.
"""

from __future__ import annotations

import builtins
import copyreg
import pickle
from types import FunctionType, MemberDescriptorType
from typing import Any, Callable, NamedTuple

from vinecore.protocol.serialization import tracebacks, values

MAX_EXCEPTIONS = 1000
MAX_PART_BYTES = 64 * 1024 * 1024
"""Of a part of an exception; what is larger comes as its text."""
MAX_TEXT_CHARACTERS = 10_000
MAX_CHAIN_DEPTH = 50
"""Of an exception that is a value among others, what is behind it is left out if that is more: pickle would go down too far."""
INTERNAL_MODULES = ("vineworker.", "vinecore.", "daskvine.remote.task_functions")
"""How the names of modules begin whose frames say nothing to a user where a traceback begins with them."""
_OMITTED_ATTRIBUTE = (AttributeError, "obj")  # whose attribute was missing: anything, of any size
_PICKLE_METHODS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


class SerializedException(NamedTuple):
    """One of the exceptions that travel together; they refer to each other by number, or -1."""

    kind: bytes  # its class
    names: tuple[str, str, str]  # of its class: name, module, and the builtin class that it derives from
    whole: bytes  # if its class says how it is pickled
    arguments: bytes
    state: bytes
    text: str
    places: list[tuple[Any, ...]]
    notes: list[str]
    cause: int
    context: int
    suppresses_context: bool
    members: list[int]


class UnavailableValue:
    """Stands for something that could not be brought here; all there is of it is its text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def add_note(error: BaseException, text: str) -> None:
    """Add a line to what is shown with an exception, if it takes one."""
    try:  # Python 3.10 shows no notes, but keeps them for who looks
        _set_attribute(error, "__notes__", [*getattr(error, "__notes__", ()), text])
    except (AttributeError, TypeError):
        pass


# ---- there


def dump_exception(error: BaseException) -> bytes:
    """Serialize an exception with all that is behind it."""
    errors, numbers = _collect_related(error)
    parts = [tuple(_serialize_one(one, numbers)) for one in errors]
    return pickle.dumps(parts, protocol=4)


def text_of(error: BaseException) -> str:
    """Return the text of an exception; never raise."""
    try:
        return str(error)
    except BaseException as problem:  # noqa: BLE001 - user code, of which this is only the text
        return f"<{type(error).__name__} that says nothing: its text raised {type(problem).__name__}>"


def summarize_exception(error: BaseException) -> str:
    """Type and message in one line."""
    words = f"{type(error).__name__}: {text_of(error)}"[:500]
    return words.encode(errors="backslashreplace").decode()  # half of a surrogate pair cannot be sent


def _builtin_attribute(error: BaseException, name: str) -> Any:
    """Return an attribute that every exception has, whatever its class defines under that name."""
    return getattr(BaseException, name).__get__(error)


def _group_members(error: BaseException) -> tuple[BaseException, ...]:
    group: Any = getattr(builtins, "BaseExceptionGroup", ())  # of Python 3.11
    return group.exceptions.__get__(error) if isinstance(error, group) else ()


def _collect_related(error: BaseException) -> tuple[list[BaseException], dict[int, int]]:
    """Find all that are behind an exception; give their numbers by identity."""
    found, numbers = [error], {id(error): 0}
    for one in found:
        for other in (
            _builtin_attribute(one, "__cause__"),
            _builtin_attribute(one, "__context__"),
            *_group_members(one),
        ):
            if other is not None and id(other) not in numbers and len(found) < MAX_EXCEPTIONS:
                numbers[id(other)] = len(found)
                found.append(other)
    return found, numbers


def _serialize_one(error: BaseException, numbers: dict[int, int]) -> SerializedException:
    kind = type(error)
    notes = _read_notes(error)
    members = [numbers[id(one)] for one in _group_members(error) if id(one) in numbers]
    missing = len(_group_members(error)) - len(members)
    if missing:
        notes.append(f"{missing} more exceptions of this group were not brought here")
    arguments = () if members else _builtin_attribute(error, "args")
    return SerializedException(
        _dump_value(kind),
        (kind.__qualname__, str(kind.__module__), _builtin_base(kind).__name__),
        _dump_whole(error),
        _dump_each(dict(enumerate(arguments)), "argument", notes),
        _dump_each(_read_state(error), "attribute", notes),
        text_of(error)[:MAX_TEXT_CHARACTERS],
        tracebacks.dump_traceback(_builtin_attribute(error, "__traceback__"), without=INTERNAL_MODULES),
        notes,
        numbers.get(id(_builtin_attribute(error, "__cause__")), -1),
        numbers.get(id(_builtin_attribute(error, "__context__")), -1),
        _builtin_attribute(error, "__suppress_context__"),
        members,
    )


def _read_notes(error: BaseException) -> list[str]:
    notes = _instance_dict(error).get("__notes__")
    return [str(note) for note in notes if isinstance(note, str)] if isinstance(notes, (list, tuple)) else []


def _instance_dict(error: BaseException) -> dict[str, Any]:
    found = object.__getattribute__(error, "__dict__")
    return found if isinstance(found, dict) else {}


def _builtin_base(kind: type) -> type:
    """Return the builtin class that decides how an exception is laid out in memory."""
    candidates = [base for base in kind.__mro__ if base.__module__ == "builtins" and base is not object]
    return max(candidates, key=lambda base: base.__basicsize__)


def _read_state(error: BaseException) -> dict[str, Any]:
    """All that an exception holds beside its arguments: what builtin classes and slots keep, and its attributes."""
    kind = type(error)
    slots: Any = copyreg._slotnames(kind)  # type: ignore[attr-defined] # noqa: SLF001 - as pickle does
    kept = {
        name: member
        for base in kind.__mro__
        for name, member in vars(base).items()
        if (base.__module__ == "builtins" and type(member) is MemberDescriptorType)
        or (type(member) is MemberDescriptorType and name in slots)
    }
    if isinstance(error, _OMITTED_ATTRIBUTE[0]):
        kept.pop(_OMITTED_ATTRIBUTE[1], None)
    if _group_members(error):
        kept.pop("exceptions")  # which travel beside it
    found = {}
    for name, member in kept.items():
        try:
            value = member.__get__(error)
        except (AttributeError, TypeError):  # nothing is in it
            continue
        if value is not None and name != "__suppress_context__":
            found[name] = value
    attributes = {name: value for name, value in _instance_dict(error).items() if name != "__notes__"}
    return {**found, **attributes}


def _has_custom_pickling(kind: type) -> bool:
    """Whether a class says how it is pickled; what tblib says of all of them, where dask has asked it to, is not of their own."""
    reducer: Any = copyreg.dispatch_table.get(kind)
    if reducer is not None and not str(getattr(reducer, "__module__", "")).startswith("tblib"):
        return True
    return any(type(getattr(kind, name, None)) is FunctionType for name in _PICKLE_METHODS)


def _dump_whole(error: BaseException) -> bytes:
    """Pickle an exception as its class says, if that says something, and if the same comes of it."""
    kind = type(error)
    if not _has_custom_pickling(kind):
        return b""
    try:
        data = values.dumps(error)
        again = values.loads(data)
        same = type(again) is kind and str(again) == str(error) and len(data) <= MAX_PART_BYTES
    except BaseException:  # noqa: BLE001 - user code; there is another way
        return b""
    return data if same else b""


def _dump_value(value: Any) -> bytes:
    """Pickle a value; nothing if that cannot be done, or not be undone."""
    try:
        data = values.dumps(value)
        if len(data) > MAX_PART_BYTES:
            return b""
        values.loads(data)
    except BaseException:  # noqa: BLE001 - user code
        return b""
    return data


def _dump_each(content: dict[Any, Any], what: str, notes: list[str]) -> bytes:
    """Pickle values, those that cannot be pickled as their texts."""
    data = _dump_value(content)
    if data:
        return data
    found = {}
    for name, value in content.items():
        if _dump_value(value):
            found[name] = value
        else:
            found[name] = UnavailableValue(_safe_repr(value))
            notes.append(
                f"its {what} {name!r}, a {type(value).__name__}, cannot be pickled: only its text is here"
            )
    return _dump_value(found)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)[:MAX_TEXT_CHARACTERS]
    except BaseException:  # noqa: BLE001 - user code
        return object.__repr__(value)


# ---- as a part of something else that is pickled


def reduce_exception(error: BaseException) -> Any:
    """Reduce an exception that is a value like others: made again without its constructor, with its traceback and what has caused it."""
    kind = type(error)
    if _has_custom_pickling(kind):
        return NotImplemented
    state = {
        "state": _read_state(error),
        "notes": _read_notes(error),
        "places": tracebacks.dump_traceback(
            _builtin_attribute(error, "__traceback__"), without=INTERNAL_MODULES
        ),
        "suppresses": _builtin_attribute(error, "__suppress_context__"),
    }
    if len(_collect_related(error)[0]) <= MAX_CHAIN_DEPTH:
        state["cause"], state["context"] = (
            _builtin_attribute(error, "__cause__"),
            _builtin_attribute(error, "__context__"),
        )
    return _create_empty, (kind, _builtin_attribute(error, "args")), state, None, None, _restore_state


def _create_empty(kind: type, args: tuple[Any, ...]) -> BaseException:
    new: Any = _builtin_base(kind).__new__
    error: BaseException = new(kind, *args)
    _set_attribute(error, "args", args)
    return error


def _restore_state(error: BaseException, state: dict[str, Any]) -> None:
    _set_attributes(error, state["state"])
    _set_attribute(error, "__traceback__", tracebacks.load_traceback(state["places"]))
    _set_attribute(error, "__context__", state.get("context"))
    _set_attribute(error, "__cause__", state.get("cause"))
    _set_attribute(error, "__suppress_context__", state["suppresses"])
    if state["notes"]:
        _set_attribute(error, "__notes__", state["notes"])


# ---- here


def load_exception(data: bytes, stand_in: type[Exception]) -> BaseException:
    """Give the exception that was serialized.

    Parameters
    ----------
    stand_in
        What takes the place of an exception whose class cannot be loaded here: the base of a class with the same name.
    """
    parts = [SerializedException(*part) for part in pickle.loads(data)]
    made: dict[int, BaseException] = {}

    def make(number: int) -> BaseException:
        if number not in made:
            part = parts[number]
            made[number] = _load_one(part, [make(member) for member in part.members], stand_in)
        return made[number]

    for number, part in enumerate(parts):
        error = make(number)
        _set_attribute(error, "__traceback__", tracebacks.load_traceback(part.places))
        if part.context >= 0:
            _set_attribute(error, "__context__", make(part.context))
        if part.cause >= 0:
            _set_attribute(error, "__cause__", make(part.cause))
        _set_attribute(error, "__suppress_context__", part.suppresses_context)
        if part.notes:
            _set_attribute(error, "__notes__", part.notes)
    return made[0]


def _set_attribute(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute, whatever its class thinks of that."""
    BaseException.__setattr__(error, name, value)


def _load_one(
    part: SerializedException, members: list[BaseException], stand_in: type[Exception]
) -> BaseException:
    attempts: list[Callable[[], Any]] = [
        lambda: values.loads(part.whole),
        lambda: _rebuild(part, members),
        lambda: _make_stand_in(part, stand_in),
    ]
    for attempt in attempts[0 if part.whole else 1 :]:
        try:
            error = attempt()
        except BaseException:  # noqa: BLE001, S112 - whatever its class does when it is loaded
            continue
        if isinstance(error, BaseException):
            return error
    return stand_in(f"{part.names[0]}: {part.text}")


def _rebuild(part: SerializedException, members: list[BaseException]) -> BaseException:
    kind = values.loads(part.kind)
    arguments = values.loads(part.arguments) if part.arguments else {0: part.text}
    state = values.loads(part.state) if part.state else {}
    args = tuple(arguments.values())
    return _set_attributes(_create_empty(kind, (state.pop("message"), members) if members else args), state)


def _set_attributes(error: BaseException, state: dict[str, Any]) -> BaseException:
    for name, value in state.items():
        try:
            _set_attribute(error, name, value)
        except (AttributeError, TypeError):  # read only, or of a type that only its constructor can set
            continue
    return error


def _make_stand_in(part: SerializedException, stand_in: type[Exception]) -> BaseException:
    name, module, builtin = part.names
    usual: Any = getattr(builtins, builtin, Exception)
    bases = (stand_in,) if issubclass(stand_in, usual) else (stand_in, usual)
    if "Group" in builtin:
        bases = (stand_in,)
    kind: Any = type(
        name, bases, {"__module__": module, "__qualname__": name, "__str__": lambda _self: part.text}
    )
    new: Any = _builtin_base(kind).__new__
    return new(kind, part.text)  # type: ignore[no-any-return]
