"""A relative path in a vertex means the folder of the program, and its modules are found, wherever a worker sees these folders."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import warnings

import cloudpickle
import pytest
from dask import delayed

from daskvine import DaskVine
from daskvine.program_folder import TOKEN_PREFIX
from tests.harness.processes import PATIENCE_S, start_local_cluster
from vinecore import PythonTask


@delayed(pure=False)
def read(name):
    with open(name) as file:
        return file.read()


@delayed(pure=False)
def write(name, text="written"):
    with open(name, "w") as file:
        file.write(text)
    return os.path.abspath(name)


@delayed(pure=False)
def value_of(name):
    return importlib.import_module(name).VALUE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the program."""
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "cuts").write_text("1")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture
def own_modules():
    """Modules that a test has imported are forgotten."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def hidden_from(folder):
    """A command that runs a worker for which there is another folder of this name."""
    probe = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(folder)], check=False, capture_output=True
    )
    if probe.returncode:
        pytest.skip("this user may not make a namespace in which a folder is another one")
    mount = f"mount -t tmpfs none '{folder}' && exec \"$@\""
    return ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, "-m", "vineworker"]


def tokens(folder):
    return [name for name in os.listdir(folder) if name.startswith(TOKEN_PREFIX)]


def notes(caught):
    return " ".join(caught.value.__notes__)


# ---- where it is seen


def test_relative_paths_are_those_of_the_program(m, folder, task_mode):
    assert read("cuts").compute(scheduler=m.get, task_mode=task_mode) == "1"
    assert write("made").compute(scheduler=m.get, task_mode=task_mode) == str(folder / "made")
    assert (folder / "made").read_text() == "written"
    assert tokens(folder) == []  # a worker on this machine needs none


def test_a_program_may_change_its_folder(m, folder, task_mode):
    for name in ("first", "second", "first"):
        (folder / name).mkdir(exist_ok=True)
        os.chdir(folder / name)
        path = write(f"made-by-{name}").compute(scheduler=m.get, task_mode=task_mode)
        assert path == str(folder / name / f"made-by-{name}")
        assert os.path.exists(path)


def test_result_of_other_folder_is_not_reused(m, folder, task_mode):
    """What was computed in another folder is not used again."""

    def look(name):
        with open("cu" + name) as file:
            return file.read()

    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / "cuts").write_text(name)
        os.chdir(folder / name)
        for _ in range(2):
            assert m.get({"x": (look, "ts")}, "x", task_mode=task_mode, reuse=True) == name


def test_other_files_in_folder_change_nothing(m, folder):
    """What else is in the folder of the program changes no name."""

    def add(a, b):
        return a + b

    for other in ("first", "second"):
        (folder / other).write_text("not read by anybody")
        assert m.get({"x": (add, 1, 2)}, "x", task_mode="tasks", reuse=True) == 3
    assert m.last_run.executed == 0


def test_chdir_in_vertex_harms_no_other(m, folder, task_mode):
    """A vertex that changes its folder harms no other one."""
    wander = delayed(os.chdir, pure=False)
    for _ in range(3):
        wander("/").compute(scheduler=m.get, task_mode=task_mode)
        assert read("cuts").compute(scheduler=m.get, task_mode=task_mode) == "1"


def test_tasks_without_graph_have_own_folder(m, folder):
    """Tasks and calls that belong to no graph keep a folder of their own."""
    task = PythonTask(os.getcwd)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    assert task.output != str(folder)


def test_own_folder_of_process_has_name(m, folder, task_mode):
    """The own folder of the process has a name."""
    own = delayed(os.getenv)("VINE_SANDBOX").compute(scheduler=m.get, task_mode=task_mode)
    assert os.path.isabs(own)
    assert own != str(folder)


def test_with_extra_files_both_are_found(m, folder, tmp_path, task_mode):
    (tmp_path / "extra").write_text("extra")
    (tmp_path / "beside").write_text("beside")
    extra = {m.declare_file(str(tmp_path / "extra")): "extra.txt"}

    @delayed(pure=False)
    def look(number):
        os.makedirs("plots", exist_ok=True)
        for name in (f"plots/{number}", f"made{number}"):
            with open(name, "w") as file:
                file.write(name)
        texts = []
        for name in ("cuts", "extra.txt", "../beside"):
            with open(name) as file:
                texts.append(file.read())
        if number == 2:
            os.remove("cuts")
            raise ValueError(number)
        return texts

    options = {"scheduler": m.get, "task_mode": task_mode, "extra_files": extra}
    assert delayed(list)([look(0), look(1)]).compute(**options) == [["1", "extra", "beside"]] * 2
    with pytest.raises(ValueError, match="2"):
        look(2).compute(**options)
    assert sorted(os.listdir(folder)) == ["made0", "made1", "made2", "plots"]
    assert sorted(os.listdir(folder / "plots")) == ["0", "1", "2"]


# ---- where it is not


def test_other_folder_of_same_name_differs(m, folder):
    """A folder of the same name is not the programs."""

    @delayed(pure=False)
    def replace(name):
        os.rename(name, f"{name}-as-it-was")
        os.mkdir(name)
        return "cuts"

    with pytest.raises(FileNotFoundError) as caught:
        read(replace(str(folder))).compute(scheduler=m.get, task_mode="tasks")
    assert str(folder) in notes(caught)
    assert "does not see that folder" in notes(caught)


def test_removed_program_folder_is_reported(m, folder, task_mode):
    """Where the programs folder has been removed an error and a warning say so."""
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError) as caught:
        read("cuts").compute(scheduler=m.get, task_mode=task_mode)
    assert "the folder of this program has been removed" in notes(caught)
    assert "extra_files=" in notes(caught)
    with pytest.warns(UserWarning, match=r"wrote made under a relative name"):
        path = write("made").compute(scheduler=m.get, task_mode=task_mode)
    assert os.path.dirname(path) != str(folder)


def test_worker_without_folder_says_remedy(local_cluster, folder, task_mode, own_modules):
    """A worker that does not see the folder says what to do."""
    (folder / "own_beside.py").write_text("VALUE = 1")
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_worker(m, command=hidden_from(folder))
    options = {"scheduler": m.get, "task_mode": task_mode}
    with pytest.raises(FileNotFoundError) as caught:
        read("cuts").compute(**options)
    assert f"{folder}; " in notes(caught)
    assert "root://" in notes(caught)
    assert "extra_files=" in notes(caught)
    assert len(tokens(folder)) == 1
    with pytest.warns(UserWarning, match=r"wrote made under a relative name"):
        write("made").compute(**options)
    extra = {m.declare_file("cuts"): "cuts"}
    assert read("cuts").compute(**options, extra_files=extra) == "1"
    sys.path.insert(0, str(folder))
    try:
        own = importlib.import_module("own_beside")
    finally:
        sys.path.remove(str(folder))
    with pytest.raises(ModuleNotFoundError) as caught:
        value_of("own_beside").compute(**options)
    assert "register_pickle_by_value(own_beside)" in notes(caught)
    brought = {m.declare_file(own.__file__): "own_beside.py"}
    assert value_of("own_beside").compute(**options, extra_files=brought) == 1


def test_other_errors_do_not_mention_folders(m, folder, task_mode):
    """An error for another reason says nothing of folders."""
    with pytest.raises(FileNotFoundError) as caught:
        read("not-there").compute(scheduler=m.get, task_mode=task_mode)
    assert "folder" not in notes(caught)


# ---- tokens


def test_remote_worker_sees_temporary_token(local_cluster, folder, task_mode):
    """A worker that may be elsewhere sees a token which is taken away."""
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_worker(m)
    assert read("cuts").compute(scheduler=m.get, task_mode=task_mode) == "1"
    first = tokens(folder)
    assert len(first) == 1
    shutil.rmtree(folder / first[0])  # somebody cleans up
    assert read("cuts").compute(scheduler=m.get, task_mode=task_mode) == "1"
    assert len(tokens(folder)) == 1
    m.close()
    assert tokens(folder) == []


def test_git_does_not_see_a_token(local_cluster, folder):
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    m = local_cluster.start_manager(DaskVine)
    m.shared_state.folders.describe_program()
    assert len(tokens(folder)) == 1
    subprocess.run(["git", "init", "-q"], check=True)
    asked = ["git", "status", "--short", "--untracked-files=all"]
    assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout == "?? cuts\n"


def test_several_managers_have_tokens_of_their_own(local_cluster, folder):
    managers = [local_cluster.start_manager(DaskVine) for _ in range(2)]
    for m in managers:
        m.shared_state.folders.describe_program()
    assert len(tokens(folder)) == 2
    managers[0].close()
    assert len(tokens(folder)) == 1
    managers[1].close()
    assert tokens(folder) == []


def test_token_of_killed_program_is_removed(local_cluster, folder):
    """What a killed program has left is removed by the next one."""
    program = """
import signal, sys
from daskvine.program_folder import ProgramFolders
folders = ProgramFolders()
folders.describe_program()
print("there", flush=True)
signal.pause()
"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=variables) as other:
        assert other.stdout.readline() == b"there\n"
        theirs = tokens(folder)
        m = local_cluster.start_manager(DaskVine)
        m.shared_state.folders.describe_program()
        assert set(theirs) < set(tokens(folder))  # who lives keeps it
        m.close()
        other.send_signal(signal.SIGKILL)
    m = local_cluster.start_manager(DaskVine)
    m.shared_state.folders.describe_program()
    assert len(tokens(folder)) == 1
    assert not set(theirs) & set(tokens(folder))


# ---- own modules


@pytest.fixture
def path_of_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    return sys.path


def test_modules_from_later_folders_are_found(m, folder, tmp_path, task_mode, path_of_imports, own_modules):
    """Modules from folders that were added later are found."""
    assert read("cuts").compute(scheduler=m.get, task_mode=task_mode) == "1"  # processes are running
    for number, entry in enumerate([str(folder / "absolute"), "relative", str(tmp_path / "elsewhere")]):
        os.makedirs(entry)
        name = f"own_{task_mode[:4]}_{number}"
        with open(f"{entry}/{name}.py", "w") as file:
            file.write(f"VALUE = {number}")
        path_of_imports.insert(0, entry)
        assert value_of(name).compute(scheduler=m.get, task_mode=task_mode) == number
        os.chdir(folder)


def test_function_of_later_module_is_found(m, folder, task_mode, path_of_imports, own_modules):
    """A function of a module that was added later is found."""
    name = f"own_function_{task_mode[:4]}"
    (folder / f"{name}.py").write_text("def double(x):\n    return 2 * x\n")
    path_of_imports.append(str(folder))
    own = importlib.import_module(name)
    assert delayed(own.double)(2).compute(scheduler=m.get, task_mode=task_mode) == 4


def test_later_module_is_imported_before_fork(m, folder, path_of_imports, own_modules):
    """A module that was added later can be imported before the fork."""
    (folder / "own_hoisted.py").write_text("VALUE = 5")
    path_of_imports.insert(0, "")
    options = {"task_mode": "function-calls", "import_modules": ["own_hoisted"]}
    assert value_of("own_hoisted").compute(scheduler=m.get, **options) == 5


def test_module_travels_by_value_on_request(m, folder, task_mode, path_of_imports, own_modules):
    """A module goes by value where that is asked for."""
    name = f"own_value_{task_mode[:4]}"
    (folder / f"{name}.py").write_text("def triple(x):\n    return 3 * x\n")
    path_of_imports.insert(0, str(folder))
    own = importlib.import_module(name)
    cloudpickle.register_pickle_by_value(own)
    try:
        shutil.rmtree(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert delayed(own.triple)(2).compute(scheduler=m.get, task_mode=task_mode) == 6
    finally:
        cloudpickle.unregister_pickle_by_value(own)
