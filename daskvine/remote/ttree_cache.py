"""Keep parsed TTrees in the slots of a library: parsing takes 10 ms for 36 branches, and a second for NanoAOD.

Each opened file gets a tree of its own, bound to that file, as without the cache; only its description of
branches and baskets is not parsed again if the bytes are the same. So no file stays open, and none is taken for
another one.

A tree is kept only if its description is known to be complete: its parts are plain objects with nothing but
their dictionaries, texts, arrays, values that Python itself pickles, and the source of the tree. Properties that
are determined later, such as the interpretation of a branch, are not kept. A file with classes of its own,
because uproot could not read it otherwise, is not cached; and a description counts only as long as uproot would
take the same classes.

These functions travel by value, so a worker needs uproot but not this package. They assume of uproot that all
parts of a tree are `Model` objects, that these refer to the file, the chunk and the key they were read from, and
that ``uproot.classes`` is asked for the class of a tree.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import gc
import hashlib
import io
import operator
import pickle
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from vinecore.protocol.import_hooks import call_when_imported

MOST_BYTES = 64 * 1024 * 1024
"""In each slot; a branch takes two to four kilobytes."""

MODULE = "uproot.models.TTree"
_PLAIN = (type, types.FunctionType, types.BuiltinFunctionType)


def install_ttree_cache() -> None:
    """Cache descriptions of TTrees in this process and its forks, as soon as uproot is imported."""
    call_when_imported(MODULE, patch_uproot)


def patch_uproot(module: Any) -> None:
    """Let uproot use this cache when it reads a tree.

    Parameters
    ----------
    module
        ``uproot.models.TTree``.
    """
    usual = module.uproot.classes["TTree"]
    if getattr(usual, "kept", None) is not None:
        return
    kept = TTreeCache()

    def read(_cls: Any, *args: Any, **kwargs: Any) -> Any:
        return kept.read_ttree(usual.read, *args, **kwargs)

    # by the name uproot knows what the class stands for
    module.uproot.classes["TTree"] = type(
        usual.__name__, (usual,), {"kept": kept, "read": classmethod(read), "__module__": usual.__module__}
    )


class TTreeCache:
    """Descriptions of trees, by the bytes they were read from; those that were not asked for longest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[Any, TTreeDescription] = collections.OrderedDict()
        self._bytes = 0
        self.hits = 0

    def read_ttree(self, usual: Any, chunk: Any, cursor: Any, context: Any, file: Any, selffile: Any, parent: Any,
             concrete: Any = None) -> Any:  # fmt: skip
        """Read a tree as ``usual`` does, from what is known if it is; what is no object of a file by itself is left alone."""
        if concrete is not None or not _is_usual(context, file, selffile, parent):
            return usual(chunk, cursor, context, file, selffile, parent, concrete=concrete)
        digest = hashlib.blake2b(chunk.raw_data, digest_size=16).digest()
        key = digest, file.uuid, cursor.index, cursor.origin, file.options["minimal_ttree_metadata"]
        things = [file, chunk, parent]
        known = self._find(key)
        if known is not None:
            with _without_collector():
                return _TTreeUnpickler(known.text, things + known.classes).load()
        tree = usual(chunk, cursor, context, file, selffile, parent)
        if file.custom_classes is None:
            self._keep(key, pickle_ttree(tree, things))
        return tree

    def _find(self, key: Any) -> TTreeDescription | None:
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return None
            if not known.is_current():
                self._forget(key)
                return None
            self._known.move_to_end(key)
            self.hits += 1
            return known

    def _keep(self, key: Any, description: TTreeDescription | None) -> None:
        if description is None or len(description.text) > MOST_BYTES:
            return
        with self._lock:
            if key not in self._known:
                self._known[key] = description
                self._bytes += len(description.text)
            while self._bytes > MOST_BYTES:
                self._forget(next(iter(self._known)))

    def _forget(self, key: Any) -> None:
        self._bytes -= len(self._known.pop(key).text)


def _is_usual(context: Any, file: Any, selffile: Any, parent: Any) -> bool:
    """Return whether a tree is an object of its own in a file without classes of its own."""
    return (
        selffile is file
        and set(context) == {"breadcrumbs", "TKey"}
        and context["TKey"] is parent
        and file.custom_classes is None
    )


class TTreeDescription:
    """A tree without what it was read from.

    Parameters
    ----------
    text
        Its pickle.
    classes
        The classes of its parts.
    """

    def __init__(self, text: bytes, classes: list[type]) -> None:
        self.text, self.classes = text, classes
        self._found = [(cls, *place) for cls in classes if (place := _place_of(cls)) is not None]

    def is_current(self) -> bool:
        """Return whether uproot would still take these classes."""
        return all(_class_at(name, version) is cls for cls, name, version in self._found)


def _class_at(name: str, version: int | None) -> Any:
    """Find the class that uproot takes for a class of C++."""
    found: Any = sys.modules["uproot"].classes.get(name)
    known = getattr(found, "known_versions", None)
    return found if known is None or version is None else known.get(version)


def _place_of(cls: type) -> tuple[str, int | None] | None:
    """Find where uproot looks a class up; None for one that it does not look up."""
    try:
        name, version = sys.modules["uproot"].model.classname_decode(cls.__name__)
    except ValueError:
        return None
    return (name, version) if _class_at(name, version) is cls else None


def pickle_ttree(tree: Any, things: list[Any]) -> TTreeDescription | None:
    """Serialize a tree without what it was read from.

    Parameters
    ----------
    things
        The source of the tree.

    Returns
    -------
    Description or None
        None if there is something in the tree that cannot be told to be part of it.
    """
    buffer = io.BytesIO()
    pickler = _TTreePickler(buffer, things)
    try:
        with _without_collector():
            pickler.dump(tree)
    except Exception:  # noqa: BLE001 - whatever is in it, it has been read, and that is what counts
        return None
    return TTreeDescription(buffer.getvalue(), pickler.things[len(things) :])


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Do without Python's garbage collector, which would look at a hundred thousand new objects again and again: most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# a pickle can only name functions that can be imported, and these cannot, where workers lack this package: others stand in for them
_PERSISTENT_LOAD = operator.index  # for what gives one of the things
_SET = operator.setitem  # for `_set`


def _set(model: Any, state: dict[str, Any]) -> None:
    model.__dict__ = state


class _Plain:
    pass


class _PlainText(str):  # noqa: SLOT000 - it is compared with classes that have a dictionary
    pass


def _content(model: Any) -> tuple[Any, ...]:
    """Return the content of a model besides its dictionary: None, or a text.

    Raises
    ------
    TypeError
        It may be something else, because its class takes more room than that.
    """
    kind = type(model)
    text = issubclass(kind, str)
    like: type = _PlainText if text else _Plain
    if (kind.__basicsize__, kind.__itemsize__) != (like.__basicsize__, like.__itemsize__):
        raise TypeError(kind)
    return (str.__str__(model),) if text else ()


class _TTreePickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, things: list[Any]) -> None:
        super().__init__(buffer, 5)
        self.things = [*things]
        self._numbers = {id(thing): number for number, thing in enumerate(things)}
        self._uproot: Any = sys.modules["uproot"]
        self._numpy: Any = sys.modules["numpy"]
        self._lock = type(threading.Lock())

    def reducer_override(self, thing: Any) -> Any:
        number = self._numbers.get(id(thing))
        if number is None and isinstance(thing, type):
            number = self._numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        if number is not None:
            return _PERSISTENT_LOAD, (number,)
        if isinstance(thing, self._uproot.model.Model):
            content = _content(thing)
            return copyreg.__newobj__, (type(thing), *content), thing.__dict__, None, None, _SET  # type: ignore[attr-defined]
        if isinstance(thing, self._lock):
            return threading.Lock, ()
        if isinstance(
            thing,
            (
                *_PLAIN,
                self._uproot.source.cursor.Cursor,
                self._numpy.ndarray,
                self._numpy.generic,
                self._numpy.dtype,
            ),
        ):
            return NotImplemented
        raise pickle.PicklingError(type(thing))


class _TTreeUnpickler(pickle.Unpickler):
    def __init__(self, description: bytes, things: list[Any]) -> None:
        super().__init__(io.BytesIO(description))
        self._things = things

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is _PERSISTENT_LOAD:
            return self._things.__getitem__
        return _set if found is _SET else found
