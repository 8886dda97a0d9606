"""Describe a TTree that uproot has opened by its pickle, because a tree of NanoAOD has 200,000 parts.

Uproot parses a tree the same way each time, so the pickles of two equal trees are equal, also in other
processes. Counters are left out: a source of bytes, which counts its reads, is described by its path.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
from typing import Any, NamedTuple

_PACKAGES = frozenset(
    {"uproot", "numpy", "awkward", "fsspec", "builtins", "collections", "copyreg", "functools"}
)


class OpenedTree(NamedTuple):
    """The description of a tree, and the paths that it is read from."""

    digest: bytes
    paths: tuple[str, ...]


def is_opened_tree(value: Any) -> bool:
    """Return whether a value is a TTree of uproot's."""
    module: Any = sys.modules.get("uproot.behaviors.TTree")
    return module is not None and isinstance(value, module.TTree)


def find_source_path(value: Any) -> str | None:
    """Return the path that stands for a source of bytes of uproot's, which counts how often it was asked; None for other values."""
    if not type(value).__module__.startswith("uproot.source."):
        return None
    path = getattr(value, "file_path", None)
    return path if isinstance(path, str) else None


def describe_tree(tree: Any) -> OpenedTree | None:
    """Describe an opened tree.

    Returns
    -------
    OpenedTree or None
        None if there is something in it that a pickle does not tell: a class or function of somebody else's, or what cannot be pickled.
    """
    digest = _HashWriter()
    pickler = _TreePickler(digest, protocol=5)
    try:
        pickler.dump(tree)
    except Exception:  # noqa: BLE001 - whatever it is, the tree is looked into then
        return None
    return OpenedTree(digest.hash.digest(), tuple(pickler.paths))


class _HashWriter:
    """A file that takes the digest of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return memoryview(data).nbytes


class _TreePickler(pickle.Pickler):
    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self.paths: dict[str, None] = {}

    def reducer_override(self, value: Any) -> Any:
        path = find_source_path(value)
        if path is not None:
            self.paths[path] = None
            return str, (f"{type(value).__qualname__} {path}",)
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            module = value.__module__
            if not isinstance(module, str) or module.partition(".")[0] not in _PACKAGES:
                raise TypeError(value)
        return NotImplemented
