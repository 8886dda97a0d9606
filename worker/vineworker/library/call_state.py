"""Restore the state of a process after each call.

A call must not change what the next one finds. Each call runs in a copy of the slot's context
variables (`contextvars`), where NumPy and `decimal` keep their settings. The items of
`vineworker.library.process_state` are all other state.

An import happens once in a process, so its changes stay, whichever call has caused it. So do those
of loading an object that many calls share. Python looks up one function for each import of a
module that is not loaded yet. That function is wrapped here; other imports cost nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextvars
import importlib
import os
import select
import sys
from typing import Any, Callable, Optional

from vineworker.library.process_state import (
    ENVIRONMENT_INDEX,
    ITEMS,
    RARE_ITEMS,
    READERS,
    called_setters,
    mark_descriptors,
    restore_items,
)


class CallState:
    """The state of this process in which each call starts; created before the first one."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        mark_descriptors()
        self._before = [look() for look in READERS]
        self._rare_before = [item.read() for item in RARE_ITEMS]
        called_setters.clear()
        self._poll = select.poll()
        for descriptor in _open_descriptors():
            self._poll.register(descriptor, 0)
        self._thread = _thread.get_ident()
        self._imports = False
        _wrap_imports(self)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a copy of the context variables."""
        return self._context.copy().run(_call_with_own_decimals, function, *args)

    def restore(self) -> Optional[str]:
        """Restore what a call has changed; return the name of what cannot be restored."""
        timeouts: Any = sys.modules.get("faulthandler")
        if timeouts is not None:
            timeouts.cancel_dump_traceback_later()
        _signal.set_wakeup_fd(-1)
        for _descriptor, state in self._poll.poll(0):
            if state & select.POLLNVAL:
                return "closed descriptors"
        try:
            if not called_setters and [look() for look in READERS] == self._before:
                return None
            return restore_items(RARE_ITEMS, self._rare_before) or restore_items(ITEMS, self._before)
        except OSError:
            # of a look: one of the standard descriptors is closed
            return "closed descriptors"
        finally:
            called_setters.clear()

    def accept_current(self) -> None:
        """Have calls start from the current state, after objects were loaded that many share."""
        self._before = [look() for look in READERS]
        self._copy_context_variables({}, "")

    def run_import(self, load: Callable[..., Any], *args: Any) -> Any:
        """Import a module, and have calls start from the state with its changes."""
        if self._imports or _thread.get_ident() != self._thread:
            return load(*args)
        try:
            before = [look() for look in READERS]
        except OSError:
            # the call has closed one of the standard descriptors: this process will be replaced
            return load(*args)
        variables, decimals = dict(contextvars.copy_context()), _describe_decimals()
        self._imports = True
        try:
            return load(*args)
        finally:
            self._imports = False
            self._accept_since(before)
            self._copy_context_variables(variables, decimals)

    def _accept_since(self, before: list[Any]) -> None:
        for number, look in enumerate(READERS):
            now, then = look(), before[number]
            if now == then:
                continue
            if self._before[number] == then:
                self._before[number] = now
            elif number == ENVIRONMENT_INDEX:
                mapping, variables = self._before[number]
                new = {name: value for name, value in now[1].items() if then[1].get(name) != value}
                kept = {
                    name: value for name, value in variables.items() if name in now[1] or name not in then[1]
                }
                self._before[number] = mapping, {**kept, **new}

    def _copy_context_variables(self, before: dict[Any, Any], decimals: str) -> None:
        for variable, value in contextvars.copy_context().items():
            # the same object, even where it has changed
            if type(value).__module__ == "decimal":
                if _describe_decimals() != decimals:
                    self._context.run(variable.set, value.copy())
            elif before.get(variable, before) is not value:
                self._context.run(variable.set, value)


def _describe_decimals() -> str:
    decimal: Any = sys.modules.get("_decimal")
    return "" if decimal is None else str(decimal.getcontext())


def _call_with_own_decimals(function: Callable[..., Any], *args: Any) -> Any:
    decimal: Any = sys.modules.get("_decimal")
    # what its variable holds is an object that changes
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())
    return function(*args)


def _open_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            # the one that has listed them
            continue
        found.append(int(name))
    return found


_current_state: list[CallState] = []


def _wrap_imports(state: CallState) -> None:
    _current_state[:] = [state]
    bootstrap: Any = importlib._bootstrap  # noqa: SLF001 - the only place all imports pass
    load = bootstrap._find_and_load  # noqa: SLF001
    if getattr(load, "watches", False):
        return

    def _find_and_load(name: str, import_: Any) -> Any:
        return _current_state[0].run_import(load, name, import_) if _current_state else load(name, import_)

    # Python leaves its own frames out of the tracebacks of imports by this name
    _find_and_load.__code__ = _find_and_load.__code__.replace(co_filename=load.__code__.co_filename)
    _find_and_load.watches = True  # type: ignore[attr-defined]
    bootstrap._find_and_load = _find_and_load  # noqa: SLF001
