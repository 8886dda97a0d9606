"""Digests of values by their structure, where pickles of equal values may differ: sets, strings that are one object or two, keys.

A value is described by a tag and by the values that it consists of (`Part`). Values are looked into once each, in a search that finds cycles
(Tarjan, SIAM J. Comput. 1 (1972) 146), so the time is linear in what there is. The digest of a value outside of cycles is that of its tag and of the digests
of its parts. The values of a cycle are told apart by what they consist of, what that consists of, and so on, until that tells no more of them
apart (the refinement of Hopcroft, 1971).

Two equal values that could be changed may be one or two, and who changes one of them sees the difference. So a digest also counts which of the values that
can be changed are there more than once.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
from dask._task_spec import GraphNode, TaskRef

from daskvine import impurity, opened_trees
from daskvine.path_arguments import Places
from vinecore.protocol import used_resources
from vinecore.protocol.serialization import random_seeds
from vinecore.protocol.user_modules import is_own_module

_RECORD_FORM = ("awkward.forms.recordform", "RecordForm")
_NOT_OF_A_CLASS = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__doc__",
        "_abc_impl",
        "__firstlineno__",
        "__static_attributes__",
    }
)
_NOT_OF_A_MODULE = frozenset({"__builtins__", "__loader__", "__spec__", "__cached__"})
_DEEPEST = 2000
_MOST_ROUNDS = 500
_NONE: frozenset[str] = frozenset()
_VARIABLE = re.compile(r"\w{1,200}")


class NotFingerprintable(Exception):
    """Something cannot be named by what it is."""


Blocks = tuple[dict[int, int], ...]
LARGE = 500
"""Values in a block that is passed on as it is."""


class Found(NamedTuple):
    """What is known of a value.

    Attributes
    ----------
    digest
        Of its structure.
    mutable
        The identities of the values in it that can be changed, with their places: in blocks that share none, large ones not copied.
    things
        What on this machine it names; see `daskvine.path_arguments` and `vinecore.protocol.used_resources`.
    varies
        Whether there is code in it that makes something else each time.
    """

    digest: bytes
    mutable: Blocks = ()
    things: frozenset[str] = _NONE
    varies: bool = False


class Part(NamedTuple):
    """A value as it is described: what it is, and what it consists of.

    With ``group`` the order of its parts, taken so many at a time, does not count.
    """

    tag: bytes
    parts: Sequence[Any] = ()
    group: int = 0
    things: frozenset[str] = _NONE
    varies: bool = False


class _Members:
    """Parts of a value whose order does not count."""

    def __init__(self, parts: Sequence[Any], group: int) -> None:
        self.parts, self.group = parts, group


class _Node:
    """A value that is being looked into."""

    __slots__ = ("low", "number", "part", "rest", "value")

    def __init__(self, value: Any, part: Part, number: int) -> None:
        self.value, self.part, self.number, self.low = value, part, number, number
        self.rest: Iterator[Any] = iter(part.parts)


class Fingerprinter:
    """Describes values, and remembers what it has described as long as it lives.

    Parameters
    ----------
    variables
        The environment that vertices will have, as far as it is known.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self.places = Places()
        self._variables = os.environ if variables is None else variables
        self._known: dict[int, Found] = {}
        self._alive: list[Any] = []  # what is known by identity must not be freed meanwhile
        self._texts: dict[str, Found] = {}
        self._overlaps: dict[tuple[int, int], bool] = {}  # of blocks, by identity
        self._special: dict[type, Callable[[Any], Part]] = {
            tuple: self._sequence, list: self._sequence, dict: self._mapping, types.MappingProxyType: self._mapping,
            set: self._set, frozenset: self._set, types.FunctionType: self._function, types.BuiltinFunctionType: self._builtin,
            types.CodeType: self._code, types.CellType: self._cell, types.ModuleType: self._module, types.MethodType: self._method,
            staticmethod: self._wrapped, classmethod: self._wrapped, property: self._property, _Members: self._members,
            type(functools.cache(abs)): self._cached,
        }  # fmt: skip

    def of(self, value: Any) -> bytes:
        """Digest any value.

        Raises
        ------
        NoRecipe
            It holds something that has no lasting description, such as an open file.
        """
        return self.find(value).digest

    def find(self, value: Any) -> Found:
        """Find out all there is to know about a value; see `of`."""
        found = self._leaf(value)
        return self._search(value) if found is None else found

    def join(self, tag: bytes, founds: Sequence[Found]) -> Found:
        """Put together what is known of several values."""
        again, together = self._repeated(founds, {})
        digest = _digest(tag, *(found.digest for found in founds), *([repr(again).encode()] if again else []))
        things = _NONE.union(*(found.things for found in founds if found.things))
        return Found(digest, together, things, any(found.varies for found in founds))

    # ---- the search

    def _leaf(self, value: Any) -> Found | None:
        """What is known of a value already, or at once."""
        kind = type(value)
        if kind is str:
            return self._texts.get(value) or self._text(value)
        if kind in _PLAIN:
            return Found(_digest(kind.__name__.encode(), repr(value).encode()))
        if kind is bytes:
            return Found(_digest(b"bytes", value))
        return self._known.get(id(value))

    def _text(self, value: str) -> Found:
        state, things = self.places.of(value)
        found = Found(_digest(b"str", value.encode(errors="surrogatepass"), state), (), things)
        self._texts[value] = found
        return found

    def _search(self, root: Any) -> Found:
        numbers: dict[int, int] = {}  # of what is open
        path = [self._enter(root, numbers)]
        open_: list[_Node] = path.copy()
        while path:
            node = path[-1]
            for value in node.rest:
                if self._leaf(value) is not None:
                    continue
                number = numbers.get(id(value))
                if number is None:
                    if len(path) >= _DEEPEST:
                        raise NotFingerprintable
                    path.append(self._enter(value, numbers))
                    open_.append(path[-1])
                    break
                node.low = min(node.low, number)
            else:
                path.pop()
                if path:
                    path[-1].low = min(path[-1].low, node.low)
                if node.low == node.number:
                    self._close(node, open_, numbers)
        return self._known[id(root)]

    def _enter(self, value: Any, numbers: dict[int, int]) -> _Node:
        number = numbers[id(value)] = len(numbers)
        return _Node(value, self._describe(value), number)

    def _close(self, node: _Node, open_: list[_Node], numbers: dict[int, int]) -> None:
        """All of a cycle, or of a value outside of any, is there."""
        members: list[_Node] = []
        while not members or members[-1] is not node:
            members.append(open_.pop())
            # its number stays taken, for numbers only grow
            numbers[id(members[-1].value)] = sys.maxsize
        cyclic = len(members) > 1 or any(part is node.value for part in node.part.parts)
        if cyclic:
            self._close_cycle(members[::-1])
        else:
            self._remember(node.value, self._put_together(node))

    def _remember(self, value: Any, found: Found) -> None:
        self._known[id(value)] = found
        self._alive.append(value)

    def _put_together(self, node: _Node) -> Found:
        part = node.part
        founds: list[Any] = [self._leaf(value) for value in part.parts]
        digests = [found.digest for found in founds]
        again, together = self._repeated(founds, {id(node.value): 0} if _can_change(node.value) else {})
        if again and part.group:  # the places of members are not those of another process
            again = [len(again)]
        rest = [repr(again).encode()] if again else []
        digest = _digest(part.tag, *_in_order(digests, part.group), *rest)
        things = part.things.union(*(found.things for found in founds if found.things))
        varies = part.varies or any(found.varies for found in founds)
        return Found(digest, together, things, varies)

    def _repeated(self, founds: Sequence[Found], own: dict[int, int]) -> tuple[list[Any], Blocks]:
        """Which values that can be changed are in several of these, by their places; and all of them together."""
        again: list[Any] = []
        large: list[dict[int, int]] = []
        small = own
        for n, found in enumerate(founds):
            for block in found.mutable:
                known = [(m + 1, other) for m, other in enumerate(large) if self._overlap(block, other)]
                if not block.keys().isdisjoint(small.keys()):  # it grows, so nothing is remembered of it
                    known.insert(0, (0, small))
                for m, other in known:
                    if other is block:
                        again.append((n, m))
                    else:
                        fewer, more = sorted((block, other), key=len)
                        again.append((n, m, sorted((block[one], other[one]) for one in fewer if one in more)))
                rest = block
                if known:
                    rest = {one: k for one, k in block.items() if not any(one in o for _m, o in known)}
                if len(rest) >= LARGE:
                    large.append(rest)
                for one in () if len(rest) >= LARGE else rest:
                    small.setdefault(one, len(small))
        return again, (*([small] if small else ()), *large)

    def _overlap(self, one: dict[int, int], other: dict[int, int]) -> bool:
        if one is other:
            return True
        if len(one) < LARGE or len(other) < LARGE:
            return not one.keys().isdisjoint(other.keys())
        pair = (id(one), id(other))
        if pair not in self._overlaps:
            self._overlaps[pair] = not one.keys().isdisjoint(other.keys())
            self._alive += [one, other]
        return self._overlaps[pair]

    def _close_cycle(self, members: list[_Node]) -> None:
        inside = {id(node.value): n for n, node in enumerate(members)}
        digests: list[list[bytes | int]] = []  # of parts outside, and the numbers of members
        outside: list[Found] = []
        for node in members:
            row: list[bytes | int] = []
            for value in node.part.parts:
                number = inside.get(id(value)) if type(value) not in _SIMPLE else None
                if number is not None:
                    row.append(number)
                    continue
                found = self._leaf(value)
                assert found is not None
                outside.append(found)
                row.append(found.digest)
            digests.append(row)
        colours = [_digest(b"member", node.part.tag) for node in members]
        groups = [node.part.group for node in members]
        blake2b, told_apart = hashlib.blake2b, 0
        for _round in range(_MOST_ROUNDS):
            if told_apart == (told_apart := len(set(colours))):
                break
            colours = [  # all are of one length
                blake2b(
                    colour + b"".join(_in_order([x if type(x) is bytes else colours[x] for x in row], group)),  # type: ignore[index]
                    digest_size=20,
                ).digest()
                for colour, row, group in zip(colours, digests, groups, strict=True)
            ]
        else:
            raise NotFingerprintable
        own = {id(node.value): n for n, node in enumerate(members) if _can_change(node.value)}
        again, mutable = self._repeated(outside, own)
        things = _NONE.union(*(found.things for found in outside), *(node.part.things for node in members))
        varies = any(found.varies for found in outside) or any(node.part.varies for node in members)
        about = f"{len(members)} {sum(map(len, mutable))} {len(again)}".encode()
        for node, colour in zip(members, colours, strict=True):
            self._remember(node.value, Found(_digest(b"cycle", about, colour), mutable, things, varies))

    # ---- what values consist of

    def _describe(self, value: Any) -> Part:
        kind = type(value)
        special = self._special.get(kind)
        if special is not None:
            return special(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, pathlib.PurePath):
            state, things = self.places.of(str(value))
            return Part(_digest(b"path", kind.__name__.encode(), str(value).encode(), state), things=things)
        if isinstance(value, (GraphNode, TaskRef)):  # outside of a graph that says what it refers to
            raise NotFingerprintable
        if (
            (kind.__module__, kind.__qualname__) == _RECORD_FORM
            and value.fields is not None
            and not value.is_tuple
        ):
            return self._record_form(value)
        if opened_trees.is_opened_tree(value) and (tree := opened_trees.describe(value)) is not None:
            return Part(_digest(b"tree", tree.digest), tree.paths)
        if kind.__module__.startswith("uproot.source.") and isinstance(
            getattr(value, "file_path", None), str
        ):  # it counts how often it was asked
            return Part(_digest(b"source", kind.__qualname__.encode()), (value.file_path,))
        return self._object(value)

    def _sequence(self, value: Any) -> Part:
        return Part(type(value).__name__.encode(), value)

    def _mapping(self, value: Any) -> Part:
        items = [part for item in value.items() for part in item]
        # a behavior of awkward's is filled by coffea in the order of sets
        group = 2 if any(map(_is_ufunc_overload, value)) else 0
        return Part(type(value).__name__.encode(), items, group)

    def _set(self, value: Any) -> Part:
        return Part(type(value).__name__.encode(), list(value), 1)

    def _members(self, members: _Members) -> Part:
        return Part(b"members", members.parts, members.group)

    # ---- code

    def _reference(self, value: Any) -> Part | None:
        """Describe what workers import; None if it travels by value."""
        module: Any = getattr(value, "__module__", None)
        if module is None:
            module = getattr(getattr(value, "__self__", None), "__name__", None)
        name: Any = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
        found: Any = sys.modules.get(module) if isinstance(module, str) and module != "__main__" else None
        if found is None or _travels_by_value(module):
            return None
        for part in name.split("."):
            found = getattr(found, part, None)
        return self._named(module, name, value) if found is value else None

    def _named(self, module: str, name: str, value: Any = None) -> Part:
        """Describe what is imported by its name; what that stands for is told by the environment, or the texts of own modules."""
        tag = _digest(b"reference", module.encode(), name.encode())
        if value is None or not is_own_module(sys.modules[module]):
            return Part(tag, varies=impurity.is_asking(value))
        if impurity.reads_unseen(value):
            raise NotFingerprintable
        return Part(tag, varies=impurity.varies(value))

    def _function(self, value: types.FunctionType) -> Part:
        reference = self._reference(value)
        if reference is not None:
            return reference
        if impurity.reads_unseen(value):
            raise NotFingerprintable
        names = impurity.names_in(value.__code__)
        used = {name: value.__globals__[name] for name in sorted(names) if name in value.__globals__}
        more = (value.__defaults__, value.__kwdefaults__, value.__closure__, value.__dict__)
        parts = [value.__name__, value.__code__, *more]
        for name, part in used.items():
            parts += [name, part]
        return Part(
            b"function", parts, 0, self._named_variables(value.__code__, names), impurity.varies(value)
        )

    def _cached(self, value: Any) -> Part:
        """Describe a function with a cache, whose contents do not count."""
        reference = self._reference(value)
        if reference is not None:
            return reference
        return Part(b"cached", (value.__wrapped__, value.cache_parameters()))

    def _named_variables(self, code: types.CodeType, names: Iterable[str]) -> frozenset[str]:
        """Variables of the environment that code seems to read."""
        if not {"environ", "getenv"}.intersection(names):
            return _NONE
        found = {text for text in _texts_in(code) if _VARIABLE.fullmatch(text)}
        return frozenset(used_resources.describe_variable(name, self._variables.get(name)) for name in found)

    def _builtin(self, value: Any) -> Part:
        reference = self._reference(value)
        if reference is not None:
            return reference
        return self._object(value)._replace(varies=impurity.is_asking(value))

    def _code(self, code: types.CodeType) -> Part:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        exceptions = getattr(code, "co_exceptiontable", b"")
        return Part(b"code", (counts, names, code.co_code, code.co_consts, exceptions))

    def _cell(self, cell: types.CellType) -> Part:
        try:
            return Part(b"cell", (cell.cell_contents,))
        except ValueError:  # nothing is in it yet
            return Part(b"empty cell")

    def _class(self, value: type) -> Part:
        reference = self._reference(value)
        if reference is not None:
            return reference
        parts: list[Any] = [value.__qualname__, type(value), value.__bases__]
        for name, part in vars(value).items():
            if name not in _NOT_OF_A_CLASS:
                parts += [name, part]
        return Part(b"class", parts)

    def _module(self, module: types.ModuleType) -> Part:
        name = module.__name__
        if sys.modules.get(name) is module and not _travels_by_value(name):
            return self._named(name, "")
        parts: list[Any] = [name]
        for variable, value in vars(module).items():
            if variable not in _NOT_OF_A_MODULE:
                parts += [variable, value]
        return Part(b"module", parts)

    def _method(self, method: types.MethodType) -> Part:
        return Part(b"method", (method.__func__, method.__self__))

    def _wrapped(self, value: Any) -> Part:
        return Part(type(value).__name__.encode(), (value.__func__,))

    def _property(self, value: property) -> Part:
        return Part(b"property", (value.fget, value.fset, value.fdel))

    # ---- everything else, as pickle sees it

    def _record_form(self, form: Any) -> Part:
        """Describe the form of records by the names of the fields; uproot takes them out of a set, so they come in any order."""
        fields = [part for name in form.fields for part in (name, form.content(name))]
        return Part(b"record", (form.parameters, form.form_key, _Members(fields, 2)))

    def _object(self, value: Any) -> Part:
        if random_seeds.is_unseeded(value):
            return Part(_digest(b"generator", type(value).__qualname__.encode()), varies=True)
        reducer: Any = copyreg.dispatch_table.get(type(value))
        try:
            parts: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as error:
            raise NotFingerprintable from error
        if isinstance(parts, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            if module not in sys.modules or module == "__main__":  # a name says nothing of what is there
                raise NotFingerprintable
            return self._named(module, parts)
        function, arguments, state, items, pairs, setter = [*parts, *[None] * 5][:6]
        items, pairs = list(items or ()), [part for pair in pairs or () for part in pair]
        counts = f"{len(arguments)} {len(items)} {len(pairs)}".encode()
        return Part(_digest(b"object", counts), [function, state, setter, *arguments, *items, *pairs])


_PLAIN = frozenset({int, float, complex, bool, type(None), type(Ellipsis), type(NotImplemented), range})
_SIMPLE = _PLAIN | {str, bytes}


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(
        b"%a%b" % ([len(part) for part in parts], b"".join(parts)), digest_size=20
    ).digest()


digest = _digest


def _in_order(digests: list[bytes], group: int) -> list[bytes]:
    if not group:
        return digests
    return sorted(b"".join(digests[n : n + group]) for n in range(0, len(digests), group))


def _can_change(value: Any) -> bool:
    """Whether two equal values of this type are told apart by who changes one of them."""
    kind = type(value)
    found = _CHANGES.get(kind)
    if found is None:
        hashes: Any = kind.__hash__
        code = isinstance(value, (type, types.ModuleType)) or kind.__module__ == "builtins"
        found = _CHANGES[kind] = (hashes is None or hashes is object.__hash__) and not code
    return found


_CHANGES: dict[type, bool] = {list: True, dict: True, set: True, bytearray: True, _Members: False}


def _is_ufunc_overload(key: Any) -> bool:
    return type(key) is tuple and len(key) > 1 and type(key[0]).__name__ == "ufunc"


def _texts_in(code: types.CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if type(constant) is str:
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _texts_in(constant)


def _travels_by_value(module: str) -> bool:
    return any(
        module == other or module.startswith(f"{other}.")
        for other in cloudpickle.list_registry_pickle_by_value()
    )
