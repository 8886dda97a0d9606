"""A pytest plugin that sends everything dask's own tests compute through another ``get``.

Loaded by name into a pytest of its own (``-p tests.conformance.dask_test_plugin``); `test_dask_suites` does that. Each
of dask's names for a scheduler on this machine then means the ``get`` under test, and so do the defaults of
its collections.

The ``get`` under test is that of a `DaskVine` with one local worker. Whoever wants to hold another scheduler
against these tests names it in the environment: ``VINE_CONFORMANCE_GET=module:function``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.base
import dask.threaded
from dask.delayed import Delayed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

NAMES = ("sync", "synchronous", "single-threaded", "threads", "threading", "processes", "multiprocessing")

# Dask's own schedulers take any option, and a few of its tests give them to whichever scheduler there is.
FOREIGN_OPTIONS = ("num_workers", "pool", "bogus_keyword")


@contextlib.contextmanager
def get_under_test(task_mode: str = "function-calls") -> Iterator[Callable[..., Any]]:
    """Yield the get that the environment names, or that of a manager with one worker."""
    named = os.environ.get("VINE_CONFORMANCE_GET")
    if named:
        module, _, function = named.partition(":")
        yield getattr(importlib.import_module(module), function)
        return
    from daskvine import DaskVine

    with DaskVine.local(workers=1, cores=2) as manager:
        yield functools.partial(manager.get, task_mode=task_mode, progress_disable=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reroute")
    group.addoption("--exclude-test", action="append", default=[], help="name of a test that is not run")
    group.addoption("--exclude-parameter", action="append", default=[], help="name=value, likewise")
    group.addoption("--calls-to", type=Path, help="file that gets the number of calls of get, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reroute(config.getoption("calls_to")), "reroute-session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    names = set(config.getoption("exclude_test"))
    parameters = set(config.getoption("exclude_parameter"))
    excluded = [item for item in items if _names(item) & names or _parameters(item) & parameters]
    config.hook.pytest_deselected(items=excluded)
    items[:] = [item for item in items if item not in excluded]


def _names(item: pytest.Function) -> set[str]:
    return {item.name, item.originalname}


def _parameters(item: pytest.Function) -> set[str]:
    callspec = getattr(item, "callspec", None)
    return {f"{name}={value}" for name, value in callspec.params.items()} if callspec else set()


class Reroute:
    """Holds the manager for as long as pytest runs, and counts the calls."""

    def __init__(self, calls_to: Path | None) -> None:
        self._calls_to = calls_to
        self._calls = 0
        self._resources = contextlib.ExitStack()
        self._get = self._resources.enter_context(get_under_test())
        get = self.function()
        # Before any test module is imported: the collections read their defaults from here, once, ...
        dask.base.named_schedulers.update(dict.fromkeys(NAMES, get))
        # ... this one with the import of dask, ...
        Delayed.__dask_scheduler__ = staticmethod(get)
        # ... and the tests' own collections from here.
        dask.threaded.get = get
        # What get sets for the graphs it receives; for bags dask decides earlier, when they are grouped.
        self._resources.enter_context(dask.config.set({"dataframe.shuffle.method": "tasks"}))

    def function(self) -> Callable[..., Any]:
        """Return the get under test as a function: dask treats bound methods as those of a client."""

        def get(dsk: Any, keys: Any, **options: Any) -> Any:
            self._calls += 1
            return self._get(dsk, keys, **{k: v for k, v in options.items() if k not in FOREIGN_OPTIONS})

        return get

    def pytest_unconfigure(self) -> None:
        self._resources.close()
        if self._calls_to is not None:
            self._calls_to.write_text(json.dumps({"calls": self._calls}))
