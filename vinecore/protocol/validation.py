"""What a message may have in its fields, read off its annotations; so neither end meets a text where a number should be.

Who has proved the secret may still be broken, or lie. Its messages are compared with these forms where they arrive, and the first that does not
fit ends the connection. Numbers have bounds, so that what is reckoned from them stays a number.
"""

from __future__ import annotations

import collections.abc
import functools
import typing
from typing import Any, Callable, cast

MAX_INTEGER = 1 << 62
"""No amount is larger: bytes, seconds, numbers of tasks."""

MAX_MACHINE_AMOUNT = 1 << 16
"""No machine has more cores, and no library more slots."""

Form = Callable[[Any], bool]


def number(value: Any) -> bool:
    """Return whether a value is a finite number, and not a Boolean."""
    return type(value) in (int, float) and -MAX_INTEGER < value < MAX_INTEGER


def integer(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return type(value) is int and -MAX_INTEGER < value < MAX_INTEGER


def machine_amount(value: Any) -> bool:
    """So many as one machine may have of something."""
    return type(value) is int and 0 <= value <= MAX_MACHINE_AMOUNT


def writable_text(value: Any) -> bool:
    """Return whether a value is a text that can be written to a file."""
    return type(value) is str and (value.isascii() or is_unicode(value))


def is_unicode(value: str) -> bool:
    """Whether a text can be encoded."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def boolean(value: Any) -> bool:
    """Return whether a value is a Boolean."""
    return type(value) is bool


def bytes_(value: Any) -> bool:
    """Bytes."""
    return type(value) is bytes


def any_json(_value: Any) -> bool:
    """Whatever JSON can say."""
    return True


def optional(form: Form) -> Form:
    """Nothing, or this."""
    return lambda value: value is None or form(value)


def list_of(form: Form) -> Form:
    """Return a check for a list whose items have this form."""
    return lambda value: isinstance(value, (list, tuple)) and all(map(form, value))


def dict_of(form: Form) -> Form:
    """Return a check for an object whose values have this form."""
    return lambda value: (
        type(value) is dict and all(map(writable_text, value)) and all(map(form, value.values()))
    )


def fixed_list(*forms: Form) -> Form:
    """Return a check for a list with as many fields, each of its own form."""

    def check(value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(forms)
            and all(form(field) for form, field in zip(forms, value))
        )

    return check


def partial_object(**known: Form) -> Form:
    """Return a check for an object whose known fields, if present, have their forms.

    Unknown fields may have any value.
    """

    def check(value: Any) -> bool:
        return type(value) is dict and all(known.get(name, any_json)(value[name]) for name in value)

    return check


def mount(value: Any) -> bool:
    """Return whether a value is a file, its name in the sandbox, whether it is linked, and perhaps its mode."""
    return _mount(value) or _mount_with_mode(value)


_mount = fixed_list(writable_text, writable_text, boolean)
_mount_with_mode = fixed_list(writable_text, writable_text, boolean, integer)
measured = partial_object(
    cores=optional(number),
    memory=optional(number),
    disk=optional(number),
    gpus=optional(number),
    wall_s=optional(number),
    processes=optional(number),
)
info = partial_object(
    digest=writable_text, digests=dict_of(writable_text), outputs=dict_of(integer), exit_code=integer, measured=optional(measured), wall_s=number, cpu_s=number,
    note=writable_text, lost=list_of(writable_text), size=integer, room=integer, reason=writable_text, resource=writable_text, log=writable_text, text=writable_text, output=writable_text, modules=list_of(writable_text),
    limit=optional(number), signal=integer,
)  # fmt: skip
"""What is known to be in the ``info`` of `TaskDone` and `TaskFailed`."""
options = partial_object(
    env=dict_of(optional(writable_text)), command=writable_text, init_command=writable_text, library_program=writable_text, program_slots=machine_amount, label=writable_text, mounts=list_of(mount), outputs=list_of(fixed_list(writable_text, writable_text, writable_text)), environment=writable_text,
    cores=optional(number), limits=optional(dict_of(optional(number))), allocation=optional(list_of(number)), time_max=optional(number), time_left=number, watch=list_of(fixed_list(writable_text, writable_text)),
    preload=list_of(writable_text),
)  # fmt: skip
"""What is known to be in the ``options`` of `RunTask` and `Library`."""

_BY_NAME: dict[str, Form] = {
    "info": info,
    "options": options,
    "slots": machine_amount,
    "cores": machine_amount,
    "gpus": machine_amount,
}
_EQUAL_LENGTH_FIELDS = {
    "PersistentObjects": ("names", "sizes", "digests"),
    "OrphanedObjects": ("names", "sizes", "digests"),
    "RetainObjects": ("names", "digests"),
}
"""Lists of a kind of messages that belong together."""
_EXPRESSIONS: dict[Form, str] = {
    integer: "type(m[{0}]) is int and -MOST < m[{0}] < MOST",
    number: "type(m[{0}]) in (float, int) and -MOST < m[{0}] < MOST",
    writable_text: "type(m[{0}]) is str and (m[{0}].isascii() or is_unicode(m[{0}]))",
    boolean: "type(m[{0}]) is bool",
    bytes_: "type(m[{0}]) is bytes",
    info: "(m[{0}] == {{}} or form_{0}(m[{0}]))",
    options: "(m[{0}] == {{}} or form_{0}(m[{0}]))",
}
"""What some forms say, as an expression."""
_PLAIN: dict[Any, Form] = {
    int: integer,
    float: number,
    str: writable_text,
    bool: boolean,
    bytes: bytes_,
    Any: any_json,
}


@functools.cache
def validator_for(kind: type) -> Form:
    """Make what tells whether a message of a kind is one.

    Parameters
    ----------
    kind
        A class of messages.

    Returns
    -------
    Form
        Takes a message.
    """
    hints: dict[str, Any] = typing.get_type_hints(kind)
    names: dict[str, Any] = {"MOST": MAX_INTEGER, "is_unicode": is_unicode}
    conditions = []
    for place, field in enumerate(kind._fields):  # type: ignore[attr-defined]
        form = _BY_NAME.get(field) or _of_hint(hints[field])
        names[f"form_{place}"] = form
        conditions.append(_EXPRESSIONS.get(form, "form_{0}(m[{0}])").format(place))
    first, *others = _EQUAL_LENGTH_FIELDS.get(kind.__name__, ("",))
    conditions += [f"len(m.{first}) == len(m.{other})" for other in others]
    # one expression for all fields: to call a function for each would take longer than to parse the message
    return cast("Form", eval(f"lambda m: {' and '.join(conditions) or True}", names))  # noqa: S307 - made of what is written above


def _of_hint(hint: Any) -> Form:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, collections.abc.Sequence):
        return list_of(_of_hint(arguments[0]))
    if origin is dict:
        return dict_of(_of_hint(arguments[1]))
    if origin is tuple:
        return fixed_list(*map(_of_hint, arguments))
    msg = f"no form for {hint}"
    raise TypeError(msg)
