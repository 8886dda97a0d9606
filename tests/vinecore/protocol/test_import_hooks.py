"""Something is done as soon as a module is there."""

from __future__ import annotations

import importlib
import sys
import threading

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.protocol.import_hooks import call_when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that nobody has imported; importing it says so and waits."""
    (tmp_path / "arriving.py").write_text("import sys\nsys.begun.set()\nsys.go_on.wait(60)\nready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "begun", threading.Event(), raising=False)
    monkeypatch.setattr(sys, "go_on", threading.Event(), raising=False)
    sys.go_on.set()
    finders = [*sys.meta_path]
    yield "arriving"
    sys.modules.pop("arriving", None)
    assert sys.meta_path == finders


def test_at_once_if_it_is_there(module):
    importlib.import_module(module)
    seen = []
    call_when_imported(module, lambda found: seen.append(found.ready))
    assert seen == [True]


def test_hook_runs_once_after_import(module):
    """When it has been imported and only what was asked for last."""
    seen = []
    call_when_imported(module, lambda _found: seen.append("first"))
    call_when_imported(module, lambda found: seen.append(found.ready))
    assert seen == []
    importlib.import_module(module)
    assert seen == [True]


def test_while_another_thread_imports_it(module):
    sys.go_on.clear()
    importing = threading.Thread(target=importlib.import_module, args=[module])
    importing.start()
    assert sys.begun.wait(PATIENCE_S)
    seen = []
    waiting = threading.Thread(
        target=call_when_imported, args=[module, lambda found: seen.append(found.ready)]
    )
    waiting.start()
    sys.go_on.set()
    importing.join()
    waiting.join()
    assert seen == [True]
