"""vinecore: a vine manager in Python. Files, tasks, libraries and workers, under TaskVine's names.

The names are loaded when they are first used: a worker imports `vinecore.protocol` on nodes that have nothing else installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vinecore.errors import (
        FunctionCallNoResult,
        InsufficientResources,
        LibraryError,
        PythonTaskNoResult,
        RemoteError,
        TaskCrashed,
        TaskFailed,
        VineError,
        WorkersNotStarted,
    )
    from vinecore.factory import Factory
    from vinecore.futures import FutureFunctionCall, FuturePythonTask, FuturesExecutor, VineFuture
    from vinecore.manager.files import File
    from vinecore.manager.libraries import LibraryTask
    from vinecore.manager.manager import Manager
    from vinecore.manager.python_tasks import FunctionCall, PythonTask
    from vinecore.manager.tasks import Task
    from vinecore.protocol.library_context import load_variable_from_library

__version__ = "0.1.0"

_HOMES = {
    "Factory": "factory", "File": "manager.files", "FunctionCall": "manager.python_tasks", "FunctionCallNoResult": "errors",
    "FutureFunctionCall": "futures", "FuturePythonTask": "futures", "FuturesExecutor": "futures", "VineFuture": "futures", "InsufficientResources": "errors", "LibraryError": "errors",
    "LibraryTask": "manager.libraries", "Manager": "manager.manager", "PythonTask": "manager.python_tasks", "PythonTaskNoResult": "errors", "RemoteError": "errors", "Task": "manager.tasks",
    "TaskCrashed": "errors", "TaskFailed": "errors", "VineError": "errors", "WorkersNotStarted": "errors", "load_variable_from_library": "protocol.library_context",
}  # fmt: skip

__all__ = [
    "Factory", "File", "FunctionCall", "FunctionCallNoResult", "FutureFunctionCall", "FuturePythonTask", "FuturesExecutor", "InsufficientResources", "LibraryError", "LibraryTask", "Manager", "PythonTask", "PythonTaskNoResult", "RemoteError",
    "Task", "TaskCrashed", "TaskFailed", "VineError", "VineFuture", "WorkersNotStarted", "load_variable_from_library",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "futures":
        return importlib.import_module("vinecore.futures")
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"vinecore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
