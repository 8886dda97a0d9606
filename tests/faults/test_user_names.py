"""What we need to run user code is not in the way of the user's names: variables, and modules that are called as ours or Python's are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from daskvine import DaskVine
from tests.harness.processes import PATIENCE_S, find_python, wait_for_task
from vinecore import PythonTask, Task

PROGRAM = """
import sys
from daskvine import DaskVine
from vinecore import PythonTask, Task
{imports}
def names():
    import importlib
    return [importlib.import_module(name).__doc__ for name in {names!r}]
if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        assert {{name: sys.modules[name].__doc__ for name in {names!r}}} == {{name: "the user's" for name in {names!r}}}
        for task_mode in ("function-calls", "tasks"):
            assert m.get({{"x": (names,)}}, "x", task_mode=task_mode, progress_disable=True) == ["the user's"] * {count}
        m.submit(PythonTask(names))
        task = m.wait(60)
        assert task.output == ["the user's"] * {count}, task.output
"""
NAMES = [
    "slot",
    "host",
    "worker",
    "session",
    "state",
    "calls",
    "modules",
    "tests",
    "cache",
    "sandbox",
    "files",
]


def in_program(folder, *words, **env):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env}
    return subprocess.run([sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # fmt: skip


def test_user_modules_may_have_internal_names(local_cluster, tmp_path):
    """Modules that are called as ours are the users."""
    home = tmp_path / "home"
    home.mkdir()
    for name in NAMES:
        (home / f"{name}.py").write_text('"""the user\'s"""\n')
    imports = "\n".join(f"import {name}" for name in NAMES)
    (home / "analysis.py").write_text(PROGRAM.format(imports=imports, names=NAMES, count=len(NAMES)))
    ended = in_program(home, "analysis.py")
    assert ended.returncode == 0, ended.stderr


def test_program_folder_shadows_no_python_modules(local_cluster, tmp_path):
    """Modules beside which a program is started replace none of pythons."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    for name in ("random", "logging", "socket", "queue"):
        (here / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    (home / "analysis.py").write_text(PROGRAM.format(imports="", names=[], count=0))
    ended = in_program(here, str(home / "analysis.py"))
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def m():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "/the/users:/own")
        with DaskVine.local(cores=1) as m:
            yield m


def test_users_import_path_reaches_started_processes(m):
    """An import path is the users in all that tasks start."""
    command = Task("echo $PYTHONPATH")
    m.submit(command)
    assert wait_for_task(m).output == "/the/users:/own\n"

    def path():
        return subprocess.run(
            ["/bin/sh", "-c", "echo $PYTHONPATH"], capture_output=True, text=True, check=True
        ).stdout

    for task_mode in ("function-calls", "tasks"):
        assert m.get({"x": (path,)}, "x", task_mode=task_mode, progress_disable=True) == "/the/users:/own\n"


def test_another_python_works_in_commands_and_functions(m):
    python = find_python("3.9")
    code = "import asyncio, ssl, sys; print(sys.version_info[1])"
    command = Task(f'{python} -c "{code}"')
    m.submit(command)
    assert wait_for_task(m).output == "9\n"

    def other():
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout

    m.submit(PythonTask(other))
    assert wait_for_task(m).output == "9\n"
