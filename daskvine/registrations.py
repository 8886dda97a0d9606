"""Collect the registrations of a program with packages, for its vertices in other processes.

- behaviors of awkward arrays: ``ak.behavior[...] = ...``, ``ak.mixin_class``, ``vector.register_awkward()``. No
  package registers any when it is imported.
- classes and interpretations of its own for uproot.
- reducers for pickles of its own types, in ``copyreg``.
- settings of dask: plain ones that are not those of the defaults, files and variables.
- settings of the process, such as `numpy.seterr` and environment variables (see `vinecore.protocol.settings`).

All of it is one shared object, so it travels to a worker once, and a process loads it once, before everything
else of a call. It is collected for each computation: after a change it is another object, and the registrations
of the previous one are undone first. Registrations with a package that a process has not imported wait until it
is imported.

The functions that register travel by value: a worker need not have this package.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import hashlib
import itertools
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from daskvine.fingerprint import Fingerprinter
from daskvine.value_descriptions import NotFingerprintable
from vinecore.protocol import library_context, settings, user_modules
from vinecore.protocol.import_hooks import call_when_imported
from vinecore.protocol.serialization import values

log = logging.getLogger("daskvine")

EXCLUDED_SETTINGS = (
    "scheduler",
    "pool",
    "num_workers",
    "dataframe.shuffle.method",
    "distributed.",
    "temporary-directory",
)
"""How the names of dask's settings begin that say how and where a program computes, not what."""
PLAIN_TYPES = (str, int, float, bool, type(None))
PACKAGES = {
    # first: what is registered may be of one
    "modules": "sys",
    "behavior": "awkward",
    "uproot": "uproot",
    "interpretations": "uproot.interpretation.identify",
    "copyreg": "copyreg",
    "dask": "dask",
    **settings.PACKAGES,
}
"""What has to be imported before something of a kind can be registered."""


# ---- here


class Registrations:
    """Collects what a program has registered, for one manager."""

    def __init__(self) -> None:
        self.current: dict[str, dict[Any, Any]] = {}
        self._texts: dict[str, tuple[bytes, ...]] = {}
        # entries of packages, by kind, with their text
        self._lasting: dict[str, tuple[dict[Any, Any], bytes]] = {}
        self._variables = dict(os.environ)  # workers on this machine inherit these
        self._object = b""
        self._time_ns = 0
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def serialize(self, chosen: Collection[str] = ()) -> bytes:
        """Serialize all that is registered now, as what registers it when it is loaded; nothing if there never was anything.

        Parameters
        ----------
        chosen
            Variables of the environment that vertices get otherwise.
        """
        with self._lock:
            content = {**collect_registrations(), **settings.collect_settings(self._variables, chosen)}
            if not _is_unchanged(content, self.current):
                texts = {kind: self._serialize_parts(kind, part) for kind, part in content.items()}
                if texts != self._texts:
                    # the time makes another object of what was registered before, then was not, and now is again
                    self._time_ns = max(time.time_ns(), self._time_ns + 1)
                    self._object = values.dumps(RegistrationPayload(texts, self._time_ns), by_value=True)
                self.current, self._texts = content, texts
            return self._object

    def serialized_kinds(self) -> Iterable[bytes]:
        """Return what is serialized, in parts."""
        return itertools.chain.from_iterable(self._texts.values())

    def are_plain_settings(self) -> bool:
        """Return whether nothing is registered but settings with plain values, which keep nothing."""
        with self._lock:
            return all(
                kind in settings.PACKAGES
                and all(isinstance(value, (bool, int, float, str, type(None))) for value in part.values())
                for kind, part in self.current.items()
            )

    def digest(self) -> str:
        """Name what is registered, for what depends on it; "" if there is nothing."""
        with self._lock:
            # which variables of the environment a vertex reads is recorded when it runs
            counting = self.current.keys() - {"variables"}
            if not counting:
                return ""
            try:
                # a module counts by its content here, and not by its name
                content = {
                    kind: self._texts[kind] if kind == "modules" else self.current[kind]
                    for kind in sorted(counting)
                }
                return Fingerprinter().digest(content).hex()
            except (NotFingerprintable, RecursionError):  # then it is the same only in this program
                texts = [(kind, self._texts[kind]) for kind in sorted(counting)]
                return hashlib.sha256(repr(texts).encode()).hexdigest()

    def _serialize_parts(self, kind: str, content: dict[Any, Any]) -> tuple[bytes, ...]:
        """Serialize entries of packages and those of the program.

        The former are many (awkward and vector have hundreds) and stay the same, so their text is
        kept. The program may change an object of its own at any time.
        """
        if kind == "modules":
            with _pickle_by_value(content.values()):
                return (self._serialize_kind(kind, content),)
        lasting = {name: value for name, value in content.items() if _is_lasting(name, value)}
        known, text = self._lasting.get(kind, ({}, b""))
        if lasting and not _is_same(lasting, known):
            text = self._serialize_kind(kind, lasting)
            self._lasting[kind] = lasting, text
        own = {name: value for name, value in content.items() if name not in lasting}
        return (*([text] if lasting else []), *([self._serialize_kind(kind, own)] if own else []))

    def _serialize_kind(self, kind: str, content: dict[Any, Any]) -> bytes:
        try:
            return values.dumps(content, by_value=True)
        except Exception:  # noqa: BLE001 - one of them is the reason
            return values.dumps(
                {name: value for name, value in content.items() if self._is_picklable(kind, name, value)},
                by_value=True,
            )

    def _is_picklable(self, kind: str, name: Any, value: Any) -> bool:
        try:
            values.dumps((name, value), by_value=True)
        except Exception as error:  # noqa: BLE001 - vertices that do not need it can run all the same
            text = f"{kind}: {name!r:.100}"
            if text not in self._refused:
                self._refused.add(text)
                log.warning(
                    "the registration of %s cannot be pickled, so vertices run without it: %s", text, error
                )
            return False
        return True


def collect_registrations() -> dict[str, dict[Any, Any]]:
    """Find what this program has registered, by kind; nothing of what it has not imported."""
    found = {
        "modules": _collect_modules(),
        "behavior": dict(getattr(sys.modules.get("awkward"), "behavior", None) or {}),
        "uproot": _collect_uproot_classes(),
        "interpretations": _collect_interpretations(),
        "copyreg": _collect_reducers(),
        "dask": _collect_settings(),
    }
    return {kind: content for kind, content in found.items() if content}


def is_user_defined(value: Any) -> bool:
    """Return whether a function or class is part of the program, and not of a package."""
    name = getattr(value, "__module__", None)
    if not isinstance(name, str) or name == "__main__":
        return True
    module = sys.modules.get(name)
    return module is None or user_modules.is_own_module(module)


def _collect_modules() -> dict[Any, Any]:
    """Return the modules that the program has made itself, without files.

    Those that compiled packages make have no specification either.
    """
    return {
        name: module
        for name, module in list(sys.modules.items())
        if type(module) is types.ModuleType
        and module.__dict__.get("__spec__") is None
        and not isinstance(module.__dict__.get("__file__"), str)
        and not module.__dict__.get("__path__")
        and not name.startswith(("__", "cython_runtime", "_cython_"))
        and _is_made_or_own(sys.modules.get(name.partition(".")[0]))
    }


def _is_made_or_own(package: Any) -> bool:
    return isinstance(package, types.ModuleType) and (
        (package.__spec__ is None and not isinstance(package.__dict__.get("__file__"), str))
        or user_modules.is_own_module(package)
    )


@contextlib.contextmanager
def _pickle_by_value(modules: Iterable[types.ModuleType]) -> Iterator[None]:
    """Have modules pickled with their content, and their functions and classes likewise."""
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    new = [module for module in modules if module.__name__ in sys.modules.keys() - before]
    for module in new:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in new:
            cloudpickle.unregister_pickle_by_value(module)


def _collect_uproot_classes() -> dict[Any, Any]:
    classes = getattr(sys.modules.get("uproot"), "classes", None) or {}
    return {name: cls for name, cls in classes.items() if not str(cls.__module__).startswith("uproot.")}


def _collect_interpretations() -> dict[Any, Any]:
    identify = sys.modules.get("uproot.interpretation.identify")
    known = getattr(identify, "_registered_interpretations", ())  # not in older ones
    return dict.fromkeys(cls for cls in known if is_user_defined(cls))


def _collect_reducers() -> dict[Any, Any]:
    """Return what reduces types of the program; many of a package's share a module, which is looked at once."""
    table = dict(copyreg.dispatch_table)
    one_of_each = {getattr(reduce, "__module__", None): reduce for reduce in table.values()}
    own = {name for name, reduce in one_of_each.items() if is_user_defined(reduce)}
    return {kind: reduce for kind, reduce in table.items() if getattr(reduce, "__module__", None) in own}


def _collect_settings() -> dict[str, Any]:
    """Return the plain settings of dask that this program has made itself."""
    import dask

    before = _find_default_settings(len(dask.config.defaults))
    return {
        name: value
        for name, value in _flatten_config(dask.config.config)
        if not name.startswith(EXCLUDED_SETTINGS) and (name not in before or before[name] != value)
    }


@functools.lru_cache(maxsize=1)
def _find_default_settings(_packages: int) -> dict[str, Any]:
    """Return the settings that packages, files and the environment make; the files are read once for each number of packages that have defaults."""
    import dask

    usual: dict[str, Any] = {}
    for defaults in dask.config.defaults:
        dask.config.update(usual, defaults, priority="old")
    dask.config.update(usual, dask.config.collect())
    return dict(_flatten_config(usual))


def _flatten_config(config: dict[str, Any], above: str = "") -> Any:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flatten_config(value, f"{above}{name}.")
        elif all(isinstance(one, PLAIN_TYPES) for one in (value if isinstance(value, list) else [value])):
            yield above + name, value


def _is_unchanged(content: dict[str, dict[Any, Any]], known: dict[str, dict[Any, Any]]) -> bool:
    """Return whether there is nothing but what packages have, and that is what it was; what a program has written may do something else by now."""
    return content.keys() == known.keys() and all(
        _is_same(part, known[kind]) and all(_is_lasting(name, value) for name, value in part.items())
        for kind, part in content.items()
    )


def _is_same(part: dict[Any, Any], known: dict[Any, Any]) -> bool:
    return part.keys() == known.keys() and all(known[name] is value for name, value in part.items())


def _is_lasting(name: Any, value: Any) -> bool:
    """Return whether an entry is of a package, so that it stays as it is; a key may name classes."""
    numpy: Any = sys.modules.get("numpy")
    return _is_constant(value) and all(
        _is_constant(part) or (numpy is not None and isinstance(part, numpy.ufunc))
        for part in (name if isinstance(name, tuple) else (name,))
    )


def _is_constant(value: Any) -> bool:
    if isinstance(value, PLAIN_TYPES):
        return True
    if isinstance(value, functools.partial):
        return _is_constant(value.func)
    name = getattr(value, "__module__", None)
    return isinstance(name, str) and _is_package(name)


@functools.lru_cache(maxsize=1024)
def _is_package(name: str) -> bool:
    return name != "__main__" and name in sys.modules and not user_modules.is_own_module(sys.modules[name])


# ---- there


class RegistrationPayload:
    """Registrations that are made when this object is loaded."""

    def __init__(self, texts: dict[str, tuple[bytes, ...]], time_ns: int) -> None:
        self._texts, self._time_ns = texts, time_ns

    def __reduce__(self) -> Any:
        return apply_registrations, (self._texts, self._time_ns)


def apply_registrations(texts: dict[str, tuple[bytes, ...]], time_ns: int) -> None:
    """Register what a program has registered, instead of what it had before; what is older than that comes from another thread of it, and too late."""
    if time_ns < library_context.registered_ns[0]:
        return
    library_context.registered_ns[0] = time_ns
    for kind, package in PACKAGES.items():
        if kind in texts or kind in library_context.registered:
            call_when_imported(package, functools.partial(replace_kind, kind, texts.get(kind, ())))


def replace_kind(kind: str, texts: tuple[bytes, ...], _package: Any = None) -> None:
    """Register what is of one kind, after taking back what was."""
    missing = library_context.MISSING
    for name, value in library_context.registered.pop(kind, {}).items():
        _set_entry(kind, name, value, missing)
    if not texts:
        return
    before: dict[Any, Any] = {}
    library_context.registered[kind] = before
    for text in texts:
        for name, value in values.loads(text).items():
            before[name] = _set_entry(kind, name, value, missing)


def _set_entry(kind: str, name: Any, value: Any, missing: Any) -> Any:
    """Set an entry of a registry; give what was there."""
    if kind in settings.PACKAGES:
        return settings.apply_setting(kind, name, value)
    if kind == "interpretations":
        known: Any = sys.modules[PACKAGES[kind]]._registered_interpretations  # noqa: SLF001 - it has no public function for classes
        there = name if name in known else missing
        known.discard(name) if value is missing else known.add(name)
        return None if there is not missing else missing
    registry: Any = sys.modules if kind == "modules" else copyreg.dispatch_table
    if kind == "behavior":
        registry = sys.modules["awkward"].behavior
    elif kind == "uproot":
        registry = sys.modules["uproot"].classes
    elif kind == "dask":
        registry = sys.modules["dask"].config.config
        *parents, name = name.split(".")
        for parent in parents:
            registry = registry.setdefault(parent, {})
    before = registry.get(name, missing)
    if value is missing:
        registry.pop(name, None)
    else:
        registry[name] = value
    return before
