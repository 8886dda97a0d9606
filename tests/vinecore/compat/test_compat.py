"""Programs that were written for TaskVine run unchanged, in this process and its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vinecore
from tests.harness.processes import PATIENCE_S

COMPAT = [sys.executable, "-m", "vinecore.compat.cli"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Run a Python command line in a folder of its own, and return what it has printed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("VINE_REGISTRY", "CATALOG_HOST", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)

    def run(command, *arguments, status=0, **variables):
        ended = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
            timeout=PATIENCE_S, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == status, ended.stderr
        return ended.stdout if status == 0 else ended.stderr

    return run


@pytest.mark.parametrize(
    "statement",
    [
        "import ndcctools.taskvine as vine; x = vine.Manager, vine.futures, vine.cvine",
        "import taskvine as vine; x = vine.Manager",
        "from ndcctools.taskvine import *; x = Manager, Task, PythonTask, FunctionCall, Factory, DaskVine",
        "from ndcctools.taskvine import cvine",
        "from ndcctools.taskvine.manager import Manager",
        "from ndcctools.taskvine.task import FunctionCall, LibraryTask, PythonTask, Task",
        "from ndcctools.taskvine.file import File",
        "from ndcctools.taskvine.factory import Factory",
        "from ndcctools.taskvine.dask_executor import DaskVine, daskvine_merge",
        "from ndcctools.taskvine.compat import DaskVine",
        "from ndcctools.taskvine.dask_dag import DaskVineDag",
        "from ndcctools.taskvine.compat.dask_dag import DaskVineDag; DaskVineDag({'a': 1})",
        "from ndcctools.taskvine import DaskVineExecutionError as e; raise SystemExit(not issubclass(e, Exception))",
        "from ndcctools.taskvine.cvine import VINE_DEFAULT_PORT, VINE_RESULT_SUCCESS",
        "from ndcctools.poncho import package_create; package_create.pack_env",
        "from ndcctools.taskvine.compat.dask_executor import DaskVine",
        "from ndcctools.taskvine.utils import load_variable_from_library",
        "import taskvine.dask_executor; x = taskvine.dask_executor.DaskVine",
    ],
)
def test_import_leads_to_this_project(python, statement):
    check = "import vinecore, sys; assert sys.modules.get('ndcctools') or sys.modules['taskvine']"
    python(COMPAT, "-c", f"{statement}\n{check}")


def test_names_are_the_same_objects(python):
    code = """
import vinecore.compat; vinecore.compat.install()
import ndcctools.taskvine as new, taskvine as old, vinecore, daskvine
assert new.Manager is old.Manager is vinecore.Manager
assert new.DaskVine is daskvine.DaskVine
assert {"Manager", "DaskVine", "futures"} <= set(dir(new))
assert not hasattr(new, "NoSuchName")
import ndcctools.taskvine.no_such_module
"""
    assert "No module named 'ndcctools.taskvine.no_such_module'" in python(
        [sys.executable, "-c", code], status=1
    )


def test_without_installation_nothing_changes(python):
    code = "import sys, vinecore.manager.manager; print('vinecore.compat' in sys.modules); import ndcctools"
    assert "ModuleNotFoundError: No module named 'ndcctools'" in python(
        [sys.executable, "-c", code], status=1
    )


def make_taskvine(folder):
    """Make a folder with a package that stands for an installed TaskVine."""
    package = folder / "installed" / "ndcctools" / "taskvine"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("Manager = 'the real one'\n")
    return str(folder / "installed")


def test_installed_taskvine_is_used_unless_asked(python, tmp_path):
    code = f"import sys; sys.path.append({make_taskvine(tmp_path)!r}); import vinecore.compat as compat\n"
    use = "import ndcctools.taskvine as vine; print(vine.Manager)"
    assert python([sys.executable, "-c", code + use]) == "the real one\n"
    assert python([sys.executable, "-c", f"{code}compat.install(); {use}"]).startswith("<class 'vinecore")
    late = python([sys.executable, "-c", f"{code}{use}; compat.install()"], status=1)
    assert "ndcctools.taskvine has been imported already" in late


def test_command_behaves_as_python(python, tmp_path):
    """Arguments, `__main__`, exit codes and tracebacks are those of python."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, ndcctools.taskvine\n"
        "class Own: pass\n"
        "print(sys.argv, __name__, Own.__module__, sys.modules['__main__'].Own is Own, sys.path[0])\n"
        "if sys.argv[1:] == ['fail']:\n"
        "    raise ValueError('bad')\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    for arguments, status in ((["0", "-x", "--help"], 0), (["7"], 7), (["fail"], 1)):
        assert python(COMPAT, str(script), *arguments, status=status) == python(
            [sys.executable], str(script), *arguments, status=status,
            PYTHONPATH=str(ROOT / "vinecore" / "compat" / "bootstrap"),
        )  # fmt: skip
    (tmp_path / "module.py").write_text("import taskvine, sys; print(__name__, sys.argv[1:])")
    assert python(COMPAT, "-m", "module", "a", "b") == "__main__ ['a', 'b']\n"


def test_children_see_the_modules(python, tmp_path):
    (tmp_path / "script.py").write_text(
        """
import multiprocessing, subprocess, sys, vinecore.compat
if __name__ == "__main__":
    vinecore.compat.install()
    import ndcctools.taskvine as vine
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        import helper
        print(pool.apply(helper.find, ()))
    subprocess.run([sys.executable, "-c", "import taskvine; print(taskvine.Manager.__module__)"], check=True)
    subprocess.run(["vine_worker", "--version"], check=True)
"""
    )
    (tmp_path / "helper.py").write_text(
        "def find():\n    import ndcctools.taskvine as vine\n    return vine.Task.__module__\n"
    )
    printed = python([sys.executable], str(tmp_path / "script.py"), PATH="/usr/bin:/bin").splitlines()
    assert printed[1:] == ["vinecore.manager.manager", f"vine_worker {vinecore.__version__}"]
    assert printed[0] == "vinecore.manager.tasks"


PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))
OWN_NAMES = {
    "from ndcctools.taskvine import DaskVine, Factory": "from daskvine import DaskVine\nfrom vinecore import Factory",
    "ndcctools.taskvine.utils": "vinecore",
    "ndcctools.taskvine": "vinecore",
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program_prints_the_same_both_ways(python, tmp_path, program):
    """The same program, once for TaskVine's modules and once for this project's."""
    text = program.read_text()
    for name, own in OWN_NAMES.items():
        text = text.replace(name, own)
    assert "ndcctools" not in text
    (tmp_path / program.name).write_text(text)
    expected = [
        line.partition("# prints: ")[2] for line in text.splitlines() if line.startswith("# prints: ")
    ]
    assert python([sys.executable], str(tmp_path / program.name)).splitlines() == expected
    assert python(COMPAT, str(program)).splitlines() == expected


def test_logs_are_where_the_program_wants_them(python):
    """A program of TaskVine that gives a folder finds its logs there."""
    program = """
import os, ndcctools.taskvine as vine
with vine.Manager(0, run_info_path="runs") as m:
    m.log_txn_app("begun")
    folder = m.logging_directory
print(sorted(os.listdir(folder)), "begun" in open(f"{folder}/transactions").read())
"""
    said = python(COMPAT, "-c", program)
    assert said == "['debug', 'performance', 'taskgraph', 'transactions'] True\n"
