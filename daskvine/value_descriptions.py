"""Descriptions of values by what they consist of: data by their parts, code by what it does, other objects as pickle sees them."""

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

from dask._task_spec import GraphNode, TaskRef

from daskvine import code_analysis, uproot_trees
from daskvine.path_arguments import PathStates
from vinecore.protocol import used_resources
from vinecore.protocol.serialization import random_seeds
from vinecore.protocol.serialization.importable_names import find_by_name, is_pickled_by_value
from vinecore.protocol.user_modules import is_own_module

NO_RESOURCES: frozenset[str] = frozenset()
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
_VARIABLE = re.compile(r"\w{1,200}")


class NotFingerprintable(Exception):
    """Something cannot be named by what it is."""


class ValueDescription(NamedTuple):
    """A value as it is described: what it is, and what it consists of.

    With ``group`` the order of its parts, taken so many at a time, does not count.
    """

    tag: bytes
    parts: Sequence[Any] = ()
    group: int = 0
    resources: frozenset[str] = NO_RESOURCES
    is_nondeterministic: bool = False


class UnorderedParts:
    """Parts of a value whose order does not count."""

    def __init__(self, parts: Sequence[Any], group: int) -> None:
        self.parts, self.group = parts, group


class ValueDescriber:
    """Describes values one by one, without looking into their parts.

    Parameters
    ----------
    variables
        The environment that vertices will have, as far as it is known.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self.path_states = PathStates()
        self._variables = os.environ if variables is None else variables
        self._describers: dict[type, Callable[[Any], ValueDescription]] = {
            tuple: self._describe_sequence,
            list: self._describe_sequence,
            dict: self._describe_mapping,
            types.MappingProxyType: self._describe_mapping,
            set: self._describe_set,
            frozenset: self._describe_set,
            types.FunctionType: self._describe_function,
            types.BuiltinFunctionType: self._describe_builtin,
            types.CodeType: self._describe_code,
            types.CellType: self._describe_cell,
            types.ModuleType: self._describe_module,
            types.MethodType: self._describe_method,
            staticmethod: self._describe_wrapper,
            classmethod: self._describe_wrapper,
            property: self._describe_property,
            UnorderedParts: self._describe_members,
            type(functools.cache(abs)): self._describe_cached_function,
        }

    def _describe(self, value: Any) -> ValueDescription:
        kind = type(value)
        special = self._describers.get(kind)
        if special is not None:
            return special(value)
        if isinstance(value, type):
            return self._describe_class(value)
        if isinstance(value, types.ModuleType):
            return self._describe_module(value)
        if isinstance(value, pathlib.PurePath):
            state, things = self.path_states.find_state(str(value))
            return ValueDescription(
                digest_parts(b"path", kind.__name__.encode(), str(value).encode(), state), resources=things
            )
        if isinstance(value, (GraphNode, TaskRef)):  # outside of a graph that says what it refers to
            raise NotFingerprintable
        if (
            (kind.__module__, kind.__qualname__) == _RECORD_FORM
            and value.fields is not None
            and not value.is_tuple
        ):
            return self._describe_record_form(value)
        if uproot_trees.is_opened_tree(value) and (tree := uproot_trees.describe_tree(value)) is not None:
            return ValueDescription(digest_parts(b"tree", tree.digest), tree.paths)
        source_path = uproot_trees.find_source_path(value)
        if source_path is not None:
            return ValueDescription(digest_parts(b"source", kind.__qualname__.encode()), (source_path,))
        return self._describe_object(value)

    def _describe_sequence(self, value: Any) -> ValueDescription:
        return ValueDescription(type(value).__name__.encode(), value)

    def _describe_mapping(self, value: Any) -> ValueDescription:
        items = [part for item in value.items() for part in item]
        # a behavior of awkward's is filled by coffea in the order of sets
        group = 2 if any(map(_is_ufunc_overload, value)) else 0
        return ValueDescription(type(value).__name__.encode(), items, group)

    def _describe_set(self, value: Any) -> ValueDescription:
        return ValueDescription(type(value).__name__.encode(), list(value), 1)

    def _describe_members(self, members: UnorderedParts) -> ValueDescription:
        return ValueDescription(b"members", members.parts, members.group)

    # ---- code

    def _describe_importable(self, value: Any) -> ValueDescription | None:
        """Describe what workers import; None if it travels by value."""
        module: Any = getattr(value, "__module__", None)
        if module is None:
            module = getattr(getattr(value, "__self__", None), "__name__", None)
        name: Any = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
        is_importable = isinstance(module, str) and module != "__main__" and module in sys.modules
        if not is_importable or is_pickled_by_value(module) or find_by_name(module, name) is not value:
            return None
        return self._describe_name(module, name, value)

    def _describe_name(self, module: str, name: str, value: Any = None) -> ValueDescription:
        """Describe what is imported by its name; what that stands for is told by the environment, or the texts of own modules."""
        tag = digest_parts(b"reference", module.encode(), name.encode())
        if value is None or not is_own_module(sys.modules[module]):
            return ValueDescription(tag, is_nondeterministic=code_analysis.is_nondeterministic_builtin(value))
        return ValueDescription(tag, is_nondeterministic=_is_nondeterministic(value))

    def _describe_function(self, value: types.FunctionType) -> ValueDescription:
        reference = self._describe_importable(value)
        if reference is not None:
            return reference
        is_nondeterministic = _is_nondeterministic(value)
        names = code_analysis.find_global_names(value.__code__)
        used = {name: value.__globals__[name] for name in sorted(names) if name in value.__globals__}
        more = (value.__defaults__, value.__kwdefaults__, value.__closure__, value.__dict__)
        parts = [value.__name__, value.__code__, *more]
        for name, part in used.items():
            parts += [name, part]
        return ValueDescription(
            b"function", parts, 0, self._find_variables(value.__code__, names), is_nondeterministic
        )

    def _describe_cached_function(self, value: Any) -> ValueDescription:
        """Describe a function with a cache, whose contents do not count."""
        reference = self._describe_importable(value)
        if reference is not None:
            return reference
        return ValueDescription(b"cached", (value.__wrapped__, value.cache_parameters()))

    def _find_variables(self, code: types.CodeType, names: Iterable[str]) -> frozenset[str]:
        """Variables of the environment that code seems to read."""
        if not {"environ", "getenv"}.intersection(names):
            return NO_RESOURCES
        found = {text for text in _find_texts(code) if _VARIABLE.fullmatch(text)}
        return frozenset(used_resources.describe_variable(name, self._variables.get(name)) for name in found)

    def _describe_builtin(self, value: Any) -> ValueDescription:
        reference = self._describe_importable(value)
        if reference is not None:
            return reference
        return self._describe_object(value)._replace(
            is_nondeterministic=code_analysis.is_nondeterministic_builtin(value)
        )

    def _describe_code(self, code: types.CodeType) -> ValueDescription:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        exceptions = getattr(code, "co_exceptiontable", b"")
        return ValueDescription(b"code", (counts, names, code.co_code, code.co_consts, exceptions))

    def _describe_cell(self, cell: types.CellType) -> ValueDescription:
        try:
            return ValueDescription(b"cell", (cell.cell_contents,))
        except ValueError:  # nothing is in it yet
            return ValueDescription(b"empty cell")

    def _describe_class(self, value: type) -> ValueDescription:
        reference = self._describe_importable(value)
        if reference is not None:
            return reference
        parts: list[Any] = [value.__qualname__, type(value), value.__bases__]
        for name, part in vars(value).items():
            if name not in _NOT_OF_A_CLASS:
                parts += [name, part]
        return ValueDescription(b"class", parts)

    def _describe_module(self, module: types.ModuleType) -> ValueDescription:
        name = module.__name__
        if sys.modules.get(name) is module and not is_pickled_by_value(name):
            return self._describe_name(name, "")
        parts: list[Any] = [name]
        for variable, value in vars(module).items():
            if variable not in _NOT_OF_A_MODULE:
                parts += [variable, value]
        return ValueDescription(b"module", parts)

    def _describe_method(self, method: types.MethodType) -> ValueDescription:
        return ValueDescription(b"method", (method.__func__, method.__self__))

    def _describe_wrapper(self, value: Any) -> ValueDescription:
        return ValueDescription(type(value).__name__.encode(), (value.__func__,))

    def _describe_property(self, value: property) -> ValueDescription:
        return ValueDescription(b"property", (value.fget, value.fset, value.fdel))

    # ---- everything else, as pickle sees it

    def _describe_record_form(self, form: Any) -> ValueDescription:
        """Describe the form of records by the names of the fields; uproot takes them out of a set, so they come in any order."""
        fields = [part for name in form.fields for part in (name, form.content(name))]
        return ValueDescription(b"record", (form.parameters, form.form_key, UnorderedParts(fields, 2)))

    def _describe_object(self, value: Any) -> ValueDescription:
        if random_seeds.is_unseeded(value):
            return ValueDescription(
                digest_parts(b"generator", type(value).__qualname__.encode()), is_nondeterministic=True
            )
        reducer: Any = copyreg.dispatch_table.get(type(value))
        try:
            parts: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as error:
            raise NotFingerprintable from error
        if isinstance(parts, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            if module not in sys.modules or module == "__main__":  # a name says nothing of what is there
                raise NotFingerprintable
            return self._describe_name(module, parts)
        function, arguments, state, items, pairs, setter = [*parts, *[None] * 5][:6]
        items, pairs = list(items or ()), [part for pair in pairs or () for part in pair]
        counts = f"{len(arguments)} {len(items)} {len(pairs)}".encode()
        return ValueDescription(
            digest_parts(b"object", counts), [function, state, setter, *arguments, *items, *pairs]
        )


def digest_parts(*parts: bytes) -> bytes:
    """Return the digest of some texts, which tells where each of them ends."""
    return hashlib.blake2b(
        b"%a%b" % ([len(part) for part in parts], b"".join(parts)), digest_size=20
    ).digest()


def _is_nondeterministic(function: Any) -> bool:
    """Return whether a function computes something else each time.

    Raises
    ------
    NotFingerprintable
        It reads files in a way that cannot be seen when it runs.
    """
    properties = code_analysis.analyze_function(function)
    if properties.has_untracked_reads:
        raise NotFingerprintable
    return properties.is_nondeterministic


def _is_ufunc_overload(key: Any) -> bool:
    return type(key) is tuple and len(key) > 1 and type(key[0]).__name__ == "ufunc"


def _find_texts(code: types.CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if type(constant) is str:
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _find_texts(constant)
