"""The descriptions of TTrees that a library has read, kept in its slots: reading one again is ten milliseconds for a tree of 36 branches, a second for NanoAOD.

Whoever opens a file gets a tree of his own, bound to the file as he has opened it, as without this; only, what it says of its branches and
baskets is not parsed from the file's bytes again, if they are the same bytes. So nothing stays open, and no file is taken for another one.

These functions travel by value, so a worker needs uproot but not this package. What they know of uproot is that all parts of a tree are
`Model`, that they refer to the file, the chunk and the key they were read from, and that ``uproot.classes`` is asked for the class of a tree.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import gc
import hashlib
import importlib.util
import io
import operator
import pickle
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

MOST_BYTES = 64 * 1024 * 1024
"""In each slot; a branch takes two to four kilobytes."""

MODULE = "uproot.models.TTree"
_PLAIN = (type, types.FunctionType, types.BuiltinFunctionType)


def keep() -> None:
    """Have this process, and those that are forked from it, keep the descriptions of TTrees, from whenever uproot is imported."""
    if MODULE in sys.modules:
        register(sys.modules[MODULE])
    elif not any(type(finder).__name__ == Watch.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())


class Watch:
    """Waits for uproot to be imported; one of the finders of ``sys.meta_path``."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """Leave the import to the others, and have it end with `register`."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: types.ModuleType) -> None:
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register(module: Any) -> None:
    """Have uproot ask here for trees.

    Parameters
    ----------
    module
        ``uproot.models.TTree``.
    """
    usual = module.uproot.classes["TTree"]
    if getattr(usual, "kept", None) is not None:
        return
    kept = Kept()

    def read(_cls: Any, *args: Any, **kwargs: Any) -> Any:
        return kept.read(usual.read, *args, **kwargs)

    # by the name uproot knows what the class stands for
    module.uproot.classes["TTree"] = type(
        usual.__name__, (usual,), {"kept": kept, "read": classmethod(read), "__module__": usual.__module__}
    )


class Kept:
    """Descriptions of trees, by the bytes they were read from; those that were not asked for longest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[Any, tuple[bytes, list[Any]]] = collections.OrderedDict()
        self._bytes = 0
        self.hits = 0

    def read(self, usual: Any, chunk: Any, cursor: Any, context: Any, file: Any, selffile: Any, parent: Any,
             concrete: Any = None) -> Any:  # fmt: skip
        """Read a tree as ``usual`` does, from what is known if it is; what is no object of a file by itself is left alone."""
        if selffile is not file or context.get("TKey") is not parent or concrete is not None:
            return usual(chunk, cursor, context, file, selffile, parent, concrete=concrete)
        digest = hashlib.blake2b(chunk.raw_data, digest_size=16).digest()
        key = digest, file.uuid, cursor.index, cursor.origin
        things = [file, chunk, parent]
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                self.hits += 1
        if known is not None:
            description, classes = known
            with _without_collector():
                return _Unpickler(description, things + classes).load()
        tree = usual(chunk, cursor, context, file, selffile, parent)
        description, classes = describe(tree, things)
        with self._lock:
            if key not in self._known and 0 < len(description) <= MOST_BYTES:
                self._known[key] = description, classes
                self._bytes += len(description)
            while self._bytes > MOST_BYTES:
                _key, (oldest, _classes) = self._known.popitem(last=False)
                self._bytes -= len(oldest)
        return tree


def describe(tree: Any, things: list[Any]) -> tuple[bytes, list[Any]]:
    """Serialize a tree without what it was read from; give the classes it is made of, too.

    Parameters
    ----------
    things
        What it was read from.

    Returns
    -------
    tuple of bytes and list of type
        Nothing if there is something in the tree that cannot be told to be part of it.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, things)
    try:
        with _without_collector():
            pickler.dump(tree)
    except Exception:  # noqa: BLE001 - whatever is in it, it has been read, and that is what counts
        return b"", []
    return buffer.getvalue(), pickler.things[len(things) :]


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
_THING = operator.index  # for what gives one of the things
_SET = operator.setitem  # for `_set`


def _set(model: Any, state: dict[str, Any]) -> None:
    model.__dict__ = state


class _Pickler(pickle.Pickler):
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
            return _THING, (number,)
        if isinstance(thing, self._uproot.model.Model):
            return copyreg.__newobj__, (type(thing),), thing.__dict__, None, None, _SET  # type: ignore[attr-defined]
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


class _Unpickler(pickle.Unpickler):
    def __init__(self, description: bytes, things: list[Any]) -> None:
        super().__init__(io.BytesIO(description))
        self._things = things

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is _THING:
            return self._things.__getitem__
        return _set if found is _SET else found
