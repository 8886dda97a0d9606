"""The worker as one file, on Pythons that have nothing else."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import traceback
import venv
import zipfile
from pathlib import Path

import cloudpickle
import pytest
from vineworker import zipapp_builder

from tests.harness.processes import PATIENCE_S, find_python, wait_until
from vinecore import FunctionCall, PythonTask, Task, protocol

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]


@pytest.fixture(scope="session")
def pyz(tmp_path_factory):
    """The file, alone in a folder that nobody may write to and whose name has spaces."""
    folder = tmp_path_factory.mktemp("one file") / "all alone: a worker"
    folder.mkdir()
    path = zipapp_builder.write_zipapp(str(folder))
    folder.chmod(0o555)
    yield path
    folder.chmod(0o755)
    assert [entry.name for entry in folder.iterdir()] == [zipapp_builder.ZIPAPP_NAME]


def bare(python, path, home):
    """The command that runs the file from its own folder, with next to no environment variables."""
    folder, name = os.path.split(path)
    variables = [f"{key}={value}" for key, value in (("PATH", os.defpath), ("HOME", home), ("TMPDIR", home))]
    return ["env", "-i", *variables, "/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, python, name]


def command(*arguments, **env):
    """Run ``vine_worker`` to its end."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env}
    return subprocess.run(
        [sys.executable, "-m", "vineworker", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, env=variables, check=False,
    )  # fmt: skip


def functions():
    """Two that are sent by value: the workers cannot import this module."""

    def look_around():
        import only_in_archive

        return only_in_archive.WORD, sys.version_info[:2]

    def double(x):
        return 2 * x

    return look_around, double


# ---- the file


def test_command_prints_path_named_by_content(tmp_path):
    """The command prints where the file is which is named by its content."""
    first, second = (command("--pyz", XDG_CACHE_HOME=str(tmp_path / "cache")) for _ in range(2))
    assert (first.returncode, first.stderr, first.stdout) == (0, "", second.stdout)
    (entry,) = (tmp_path / "cache" / "daskvine").iterdir()
    assert (str(entry), entry.read_bytes()) == (first.stdout.strip(), zipapp_builder.build_zipapp())
    assert os.access(entry, os.X_OK)


def test_altered_cached_file_is_rewritten(tmp_path, monkeypatch):
    """What was altered in the cache is written again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = zipapp_builder.write_zipapp()
    with open(path, "ab") as file:
        file.write(b"more")
    assert zipapp_builder.write_zipapp() == path
    with open(path, "rb") as file:
        assert file.read() == zipapp_builder.build_zipapp()


def test_command_writes_file_at_given_path(tmp_path):
    """The command writes the file where it is told to."""
    for place in (tmp_path, tmp_path / "my worker.pyz"):
        written = tmp_path / "vine_worker.pyz" if place == tmp_path else place
        assert command("--pyz", place).stdout == f"{written}\n"
        assert written.read_bytes() == zipapp_builder.build_zipapp()
    ended = command("--pyz", tmp_path / "no" / "such" / "folder")
    assert (ended.returncode, "cannot be written: No such file" in ended.stderr) == (2, True)
    assert "Traceback" not in ended.stderr


def test_the_file_makes_itself(pyz, tmp_path):
    copy = tmp_path / "copy.pyz"
    subprocess.run([sys.executable, "-I", pyz, "--pyz", copy], check=True, timeout=PATIENCE_S)
    with open(pyz, "rb") as file:
        assert copy.read_bytes() == file.read()


def test_file_has_worker_source_only(pyz):
    """The file holds the source of the worker and nothing of this machine."""
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {zipapp_builder.ENTRY_TIME}
    assert names == sorted(names)
    assert {
        "__main__.py",
        "vineworker/library/fork_server.py",
        "vinecore/__init__.py",
        "vinecore/protocol/frames.py",
    } <= set(names)
    assert all(name.endswith(".py") for name in names)


def test_file_has_every_module(pyz):
    """The file holds every module of every folder."""
    top = Path(zipapp_builder.__file__).parents[1]
    packages = {top: "vineworker", Path(protocol.__file__).parents[2]: "vinecore/protocol"}
    of_folders = {
        path.relative_to(base).as_posix()
        for base, name in packages.items()
        for path in (base / name).rglob("*.py")
    }
    with zipfile.ZipFile(pyz) as archive:
        assert set(archive.namelist()) == of_folders | {"vinecore/__init__.py", "__main__.py"}


def test_code_in_nested_folders_is_included(tmp_path):
    """Code in folders below comes into the file."""
    top = Path(zipapp_builder.__file__).parents[1]
    for part in ("vineworker", "vinecore"):
        source = top / part if part == "vineworker" else Path(protocol.__file__).parents[1]
        shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    below = tmp_path / "vineworker" / "below" / "further"
    below.mkdir(parents=True)
    for folder in (below.parent, below):
        (folder / "__init__.py").write_text("")
    (below / "added.py").write_text("VALUE = 1\n")
    (below / "__pycache__").mkdir()
    (below / "__pycache__" / "added.cpython-311.pyc").write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run([sys.executable, "-m", "vineworker", "--pyz", str(out)], check=True, env=environment)
    with zipfile.ZipFile(out / zipapp_builder.ZIPAPP_NAME) as archive:
        names = archive.namelist()
    assert "vineworker/below/further/added.py" in names
    assert not [name for name in names if not name.endswith(".py")]


def test_function_imports_daskvine_beside_worker_code(tmp_path):
    """A function can import daskvine beside the workers own code."""
    zipapp_builder.copy_sources(str(tmp_path))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    found = subprocess.run(
        [sys.executable, "-c", "import daskvine, vinecore.protocol.frames as ours; print(daskvine.DaskVine.__name__, ours.__file__)"],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd="/", env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert found.stdout.split() == ["DaskVine", str(tmp_path / "vinecore/protocol/frames.py")], found.stderr


def test_old_python_is_reported(pyz):
    """A python that is too old says so."""
    ended = subprocess.run(
        [find_python("3.8"), pyz], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("vine_worker needs Python 3.9 or newer; this is Python 3.8: /")


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """A Python of this version and no packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


# ---- a worker from it


@pytest.mark.parametrize("version", VERSIONS)
def test_bare_python_runs_commands_and_environments(local_cluster, pyz, packed, version):
    """A bare python runs commands at once and functions in an environment."""
    python = find_python(version)
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, command=bare(python, pyz, local_cluster.folder))
    m.wait_for_workers(1, PATIENCE_S)
    shell = Task("echo from the shell", cores=1)
    m.submit(shell)
    assert m.wait(PATIENCE_S) is shell
    assert shell.output == "from the shell\n"

    look_around, double = functions()
    environment = m.declare_poncho(packed)
    task = PythonTask(look_around)
    task.add_environment(environment)
    library = m.create_library_from_functions("doubling", double, poncho_env=environment, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    call = FunctionCall("doubling", "double", 21)
    task.set_cores(1)
    for each in (task, call):
        m.submit(each)
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {task, call}
    assert (task.output, call.output) == (("packed", sys.version_info[:2]), 42)

    family = worker.descendants
    assert family
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.log
    assert list(local_cluster.workspace.iterdir()) == []


def test_file_may_change_while_worker_runs(local_cluster, tmp_path):
    """The file may go or change while its worker runs."""
    path = zipapp_builder.write_zipapp(str(tmp_path))
    m = local_cluster.start_manager()
    packages = os.pathsep.join(p for p in sys.path if p.endswith("-packages"))
    worker = local_cluster.start_worker(m, command=[sys.executable, path], PYTHONPATH=packages)
    m.wait_for_workers(1, PATIENCE_S)
    with open(path, "r+b") as file:
        file.write(bytes(1 << 20))
    task = PythonTask(functions()[1], 4)
    m.submit(task)
    assert m.wait(PATIENCE_S).output == 8, "in the worker's own Python, which has what it takes"
    os.unlink(path)
    url = local_cluster.path("data")
    url.write_text("of a file")
    reader = Task("cat in", cores=1)
    reader.add_input(m.declare_url(f"file://{url}"), "in")
    m.submit(reader)
    assert m.wait(PATIENCE_S).output == "of a file"
    assert worker.process.poll() is None


# ---- where its Python will not do


def test_missing_packages_are_reported_before_tasks(local_cluster, pyz, bare_python, caplog):
    """The user is told what the workers python lacks before anything runs."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, command=bare(bare_python, pyz, local_cluster.folder))
    double = functions()[1]
    library = m.create_library_from_functions("doubling", double, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    task, call = PythonTask(double, 3), FunctionCall("doubling", "double", 21)
    task.set_cores(1)
    for each in (task, call):
        m.submit(each)
    shell = Task("echo fine", cores=1)
    m.submit(shell)
    assert m.wait(PATIENCE_S) is shell
    text = wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert "the workers' own Python has no cloudpickle" in text
    assert "Install cloudpickle there, or ship an environment with environment='my-env.tar.gz'" in text
    wait_until(lambda: text in caplog.text, "the log to say it, too")
    assert m.wait(0) is None
    local_cluster.start_worker(m)  # one that has it
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {task, call}
    assert (task.output, call.output) == (6, 42)


def test_environment_without_cloudpickle_is_named(local_cluster, pyz, bare_python, tmp_path):
    """An environment without cloudpickle is named at once."""
    archive = tmp_path / "bare.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(os.path.dirname(os.path.dirname(bare_python)), ".")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, command=bare(bare_python, pyz, local_cluster.folder))
    environment, double = m.declare_poncho(archive), functions()[1]
    task = PythonTask(double, 1)
    task.add_environment(environment)
    m.install_library(m.create_library_from_functions("doubling", double, poncho_env=environment))
    call = FunctionCall("doubling", "double", 1)
    for each in (task, call):
        m.submit(each)
        assert m.wait(PATIENCE_S) is each
        assert "has no cloudpickle, without which it can load no functions" in str(each.error())
        assert "bin/python" in str(each.error())


def test_cloudpickle_alone_keeps_exceptions(local_cluster, pyz, bare_python, tmp_path):
    """With cloudpickle alone an exception is itself with its traceback."""
    shutil.copytree(os.path.dirname(cloudpickle.__file__), tmp_path / "packages" / "cloudpickle")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, command=[bare_python, pyz], PYTHONPATH=str(tmp_path / "packages"))

    def fails():
        importlib.import_module("no_such_module_at_all")

    task = PythonTask(fails)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    error = task.error()
    assert type(error) is ModuleNotFoundError
    assert ", in fails" in "".join(traceback.format_tb(error.__traceback__))
    assert "install it there, or ship environment='my-env.tar.gz'" in "\n".join(error.__notes__)
