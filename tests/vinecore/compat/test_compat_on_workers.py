"""Functions on workers that have nothing of this project but the worker itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import cloudpickle
import pytest
from vineworker import zipapp_builder

from tests.harness.processes import wait_for_task
from vinecore import PythonTask
from vinecore.protocol import taskvine_modules


@pytest.fixture
def installed(monkeypatch):
    """Have imports of TaskVine's modules lead to this project during a test."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    taskvine_modules.install_finder()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ndcctools", "taskvine")]:
        del sys.modules[name]


def start_bare_worker(local_cluster, manager):
    """Start the worker that is one file, with a Python that has cloudpickle only."""
    packages = local_cluster.path("packages")
    packages.mkdir()
    (packages / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    pyz = zipapp_builder.write_zipapp(str(local_cluster.path("worker.pyz")))
    command = [sys._base_executable, pyz]
    return local_cluster.start_worker(manager, command=command, PYTHONPATH=str(packages))


def make_function():
    """Return a function that workers without this module can load."""

    def find_modules():
        import importlib.util as finding

        import ndcctools.taskvine as vine
        from ndcctools.taskvine.utils import load_variable_from_library as load

        return vine.__name__, load.__module__, finding.find_spec("vinecore.manager")

    return find_modules


def test_bare_worker_imports_the_modules(installed, local_cluster):
    m = local_cluster.start_manager()
    start_bare_worker(local_cluster, m)
    vine = importlib.import_module("ndcctools.taskvine")
    for function in (make_function(), lambda: vine.__name__):
        m.submit(PythonTask(function))
    outputs = {wait_for_task(m).output for _ in range(2)}
    assert outputs == {
        ("ndcctools.taskvine", "vinecore.protocol.library_context", None),
        "ndcctools.taskvine",
    }


def test_without_installation_workers_have_no_modules(local_cluster):
    m = local_cluster.start_manager()
    start_bare_worker(local_cluster, m)
    m.submit(PythonTask(make_function()))
    assert "No module named 'ndcctools'" in str(wait_for_task(m).output)
