"""What a message may have in its fields, read off its annotations; so neither end meets a text where a number should be.

Who has proved the secret may still be broken, or lie. Its messages are compared with these forms where they arrive, and the first that does not
fit ends the connection. Numbers have bounds, so that what is reckoned from them stays a number.
"""

from __future__ import annotations

import collections.abc
import functools
import typing
from typing import Any, Callable, cast

MOST = 1 << 62
"""No amount is larger: bytes, seconds, numbers of tasks."""

MANY = 1 << 16
"""No machine has more cores, and no library more slots."""

Form = Callable[[Any], bool]


def number(value: Any) -> bool:
    """A number that is finite, and no truth value."""
    return type(value) in (int, float) and -MOST < value < MOST


def whole(value: Any) -> bool:
    """A whole number."""
    return type(value) is int and -MOST < value < MOST


def some(value: Any) -> bool:
    """So many as one machine may have of something."""
    return type(value) is int and 0 <= value <= MANY


def text(value: Any) -> bool:
    """A text that can be written to a file."""
    return type(value) is str and (value.isascii() or is_unicode(value))


def is_unicode(value: str) -> bool:
    """Whether a text can be encoded."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def truth(value: Any) -> bool:
    """True or False."""
    return type(value) is bool


def raw(value: Any) -> bool:
    """Bytes."""
    return type(value) is bytes


def anything(_value: Any) -> bool:
    """Whatever JSON can say."""
    return True


def optional(form: Form) -> Form:
    """Nothing, or this."""
    return lambda value: value is None or form(value)


def list_of(form: Form) -> Form:
    """A list of these."""
    return lambda value: isinstance(value, (list, tuple)) and all(map(form, value))


def dict_of(form: Form) -> Form:
    """An object whose values are these."""
    return lambda value: type(value) is dict and all(map(text, value)) and all(map(form, value.values()))


def row_of(*forms: Form) -> Form:
    """A list of as many fields, each of its own form."""

    def check(value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(forms)
            and all(form(field) for form, field in zip(forms, value))
        )

    return check


def record(**known: Form) -> Form:
    """An object in which these, where they are there, are what they should be; nobody reckons with what else is in it."""

    def check(value: Any) -> bool:
        return type(value) is dict and all(known.get(name, anything)(value[name]) for name in value)

    return check


measured = record(
    cores=optional(number), memory=optional(number), disk=optional(number), gpus=optional(number)
)
info = record(
    digest=text, digests=dict_of(text), outputs=dict_of(whole), exit_code=whole, measured=optional(measured), wall_s=number, cpu_s=number,
    note=text, lost=list_of(text), size=whole, room=whole, reason=text, resource=text, log=text, text=text, output=text, modules=list_of(text),
)  # fmt: skip
"""What is known to be in the ``info`` of `Done` and `Failed`."""
options = record(
    env=dict_of(optional(text)), command=text, mounts=list_of(row_of(text, text, truth)), outputs=list_of(row_of(text, text, text)), environment=text,
    cores=optional(number), limits=optional(dict_of(optional(number))), allocation=optional(list_of(number)), time_max=optional(number),
    preload=list_of(text),
)  # fmt: skip
"""What is known to be in the ``options`` of `Run` and `Library`."""

_BY_NAME: dict[str, Form] = {"info": info, "options": options, "slots": some, "cores": some, "gpus": some}
_ALIKE = {
    "Have": ("names", "sizes", "digests"),
    "Left": ("names", "sizes", "digests"),
    "Retain": ("names", "digests"),
}
"""Lists of a kind of messages that belong together."""
_IN_WORDS: dict[Form, str] = {
    whole: "type(m[{0}]) is int and -MOST < m[{0}] < MOST",
    number: "type(m[{0}]) in (float, int) and -MOST < m[{0}] < MOST",
    text: "type(m[{0}]) is str and (m[{0}].isascii() or is_unicode(m[{0}]))",
    truth: "type(m[{0}]) is bool",
    raw: "type(m[{0}]) is bytes",
    info: "(m[{0}] == {{}} or form_{0}(m[{0}]))",
    options: "(m[{0}] == {{}} or form_{0}(m[{0}]))",
}
"""What some forms say, as an expression."""
_PLAIN: dict[Any, Form] = {int: whole, float: number, str: text, bool: truth, bytes: raw, Any: anything}


@functools.cache
def of(kind: type) -> Form:
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
    names: dict[str, Any] = {"MOST": MOST, "is_unicode": is_unicode}
    conditions = []
    for place, field in enumerate(kind._fields):  # type: ignore[attr-defined]
        form = _BY_NAME.get(field) or _of_hint(hints[field])
        names[f"form_{place}"] = form
        conditions.append(_IN_WORDS.get(form, "form_{0}(m[{0}])").format(place))
    first, *others = _ALIKE.get(kind.__name__, ("",))
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
        return row_of(*map(_of_hint, arguments))
    msg = f"no form for {hint}"
    raise TypeError(msg)
