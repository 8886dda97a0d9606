"""Further settings of tasks, each by its effect on a real worker."""

from __future__ import annotations

import json
import os
import re
import tarfile
import time
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S
from vinecore import FunctionCall, PythonTask, Task


def small(task):
    task.set_cores(1)
    return task


def process():
    return os.getpid()


def upper():
    Path("out").write_text(Path("in").read_text().upper())


@pytest.fixture(scope="module", params=["fork", "direct"])
def library(request, shared_manager):
    name = f"various-{request.param}"
    library = shared_manager.create_library_from_functions(
        name, process, upper, sample_tasks.add, exec_mode=request.param
    )
    library.set_cores(1)
    library.set_function_slots(1)
    shared_manager.install_library(library)
    yield name
    shared_manager.remove_library(name)


def test_constructor_takes_all_settings(m, run):
    data, out = m.declare_buffer(b"words"), m.declare_buffer()
    task = Task(
        "cat data; echo made > out; exit 1",
        inputs={data: {"remote_name": "data", "mount_symlink": True}},
        outputs={out: {"remote_name": "out", "success_only": True}},
        cores=1, time_start=time.time() * 1e6, time_end=(time.time() + 600) * 1e6, time_min=60, scheduler="rand",
    )  # fmt: skip
    run(task)
    assert (task.output, task.exit_code) == ("words", 1)
    with pytest.raises(FileNotFoundError):
        out.contents()


def test_features_of_constructor_are_required(m):
    for features in ("one", ["one", "two"]):
        task = Task("true", features=features, time_end=(time.time() + 0.3) * 1e6)
        m.submit(task)
        assert m.wait(PATIENCE_S).result == "max end time"


def test_parameters_of_outputs_are_positional(m, run):
    kept, dropped = m.declare_buffer(), m.declare_buffer()
    task = small(Task("echo a > a; echo b > b; exit 1"))
    task.add_output(kept, "a", False, True)
    task.add_output(dropped, "b", False, None, True)
    run(task)
    assert kept.contents() == b"a\n"
    assert task.result == "success"
    with pytest.raises(FileNotFoundError):
        dropped.contents()


def test_command_can_be_replaced(run):
    task = small(Task("echo first"))
    task.set_command("echo second")
    assert run(task).output == "second\n"
    with pytest.raises(ValueError, match="not empty"):
        task.set_command("")
    with pytest.raises(TypeError, match="use Task"):
        PythonTask(process).set_command("true")


def test_function_and_arguments_can_be_replaced(run, library):
    call = FunctionCall("nowhere", "nothing", 1)
    call.needs_library(library)
    call.set_command("add")
    call.set_fn_args([3], {"y": 4})
    assert call.get_library_required() == library
    assert run(call).output == 7
    call.set_fn_args()
    assert isinstance(run(call).output, TypeError)


@pytest.mark.parametrize("method", ["fork", "direct"])
def test_method_of_call_decides_its_process(run, library, method):
    """Each forked call has a process of its own; direct ones have those of the four slots."""
    calls = [FunctionCall(library, "process") for _ in range(12)]
    for call in calls:
        call.set_exec_method(method)
    assert len({call.output for call in run(*calls)}) in ([12] if method == "fork" else range(1, 5))
    plain = [FunctionCall(library, "process") for _ in range(12)]
    assert (len({call.output for call in run(*plain)}) == 12) == library.endswith("fork")
    with pytest.raises(ValueError, match="'fork'"):
        calls[0].set_exec_method("thread")


def test_direct_call_does_not_change_later_ones(run, library):
    """What a direct call changes in a slot that forks its calls is put back."""
    call = FunctionCall(library, "process")
    call.set_exec_method("direct")
    call.set_env_var("WORD", "changed")
    run(call)
    task = FunctionCall(library, "add", 1, 2)
    assert run(task).output == 3


def test_task_runs_as_function_of_library(m, run, library):
    """A task that requires a library has the name of a function as its command."""
    task, made = Task("upper"), m.declare_buffer()
    task.add_input(m.declare_buffer(b"words"), "in")
    task.add_output(made, "out")
    assert task.get_library_required() is None
    task.set_library_required(library)
    run(task)
    assert (task.result, task.exit_code, made.contents()) == ("success", 0, b"WORDS")
    with pytest.raises(ValueError, match="no function 'lower'"):
        m.submit(Task("lower", library_required=library))
    with pytest.raises(TypeError, match="FunctionCall"):
        PythonTask(process).set_library_required(library)


def make_context(folder):
    (folder / "bin").mkdir(parents=True)
    wrapper = folder / "bin" / "run_in_env"
    wrapper.write_text('#!/bin/sh\nexport CONTEXT=inside\nexec "$@"\n')
    wrapper.chmod(0o755)
    return folder


@pytest.mark.parametrize("setter", ["add_execution_context", "add_environment", "add_poncho_package"])
@pytest.mark.parametrize("form", ["directory", "archive"])
def test_command_runs_in_execution_context(m, run, tmp_path, setter, form):
    path = make_context(tmp_path / "context")
    if form == "archive":
        with tarfile.open(tmp_path / "context.tar.gz", "w:gz") as archive:
            archive.add(path, ".")
        path = tmp_path / "context.tar.gz"
    task = small(Task("echo $CONTEXT"))
    getattr(task, setter)(m.declare_file(path))
    assert run(task).output == "inside\n"


def test_task_that_cannot_begin_is_forsaken(m, run):
    """Two inputs of one name cannot be put in place, wherever and however often that is tried."""
    plain, limited = small(Task("true")), small(Task("true"))
    limited.set_max_forsaken(2)
    for task in (plain, limited):
        task.add_input(m.declare_buffer("a"), "data")
        task.add_input(m.declare_buffer("b"), "data")
    run(plain, limited)
    assert plain.result == "input missing"
    assert (limited.result, limited.exit_code) == ("forsaken", -1)
    assert "3 times" in str(limited.error())
    assert "'data' is taken" in str(limited.error())


def test_large_output_is_forsaken_by_small_disk(local_cluster):
    """A task whose output has no room on any disk comes back after as many attempts as it may have."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--disk", "5", "--cores", "1")
    task = PythonTask(bytes, 20_000_000)
    task.set_cores(1)
    task.set_max_forsaken(0)
    m.submit(task)
    assert m.wait(PATIENCE_S).result == "forsaken"
    assert "no room on its disk" in str(task.error())


def test_watching_library_is_preloaded(m, run, tmp_path, monkeypatch):
    """With `add_nopen` the processes of a command load the library that is there."""
    task = small(Task("echo $LD_PRELOAD; ls *.so"))
    monkeypatch.setenv("CCTOOLS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="CCTOOLS_HOME"):
        task.add_nopen(m)
    tmp_path.joinpath("lib-nopen.so").write_bytes(b"not a library, which the loader says and ignores")
    task.add_nopen(m)
    task.addref()
    assert "./lib-nopen.so\n" in run(task).output
    assert "\nlib-nopen.so\n" in task.output


def test_measured_resources_are_written(m, run, tmp_path):
    folder = tmp_path / "new" / "folder"
    task, plain = small(Task("head -c 3000000 /dev/zero > file; sleep 0.5; exit 3")), small(Task("true"))
    task.set_category("measured")
    task.set_monitor_output(folder)
    run(task, plain)
    [path] = folder.iterdir()
    assert path.name == f"vine-{os.getpid()}-task-{task.id}.summary"
    summary = json.loads(path.read_text())
    assert (summary["category"], summary["exit_type"], summary["exit_status"]) == ("measured", "normal", 3)
    assert (summary["task_id"], summary["command"]) == (task.id, task.command)
    used = task.resources_measured
    assert summary["memory"] == [used.memory, "MB"]
    assert summary["wall_time"] == [used.wall_time, "s"]
    assert used.wall_time >= 0.5
    assert summary["end"][0] - summary["start"][0] == pytest.approx(used.wall_time)


def test_gpu_task_runs_where_gpus_are(local_cluster):
    """A worker without gpus gets no task that needs one."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    local_cluster.start_workers(m, 1, "--gpus", "2")
    for _ in range(3):
        task = small(Task("echo $GPUS"))
        task.set_gpus(1)
        m.submit(task)
    tasks = [m.wait(PATIENCE_S) for _ in range(3)]
    assert [task.output for task in tasks] == ["1\n"] * 3
    assert {task.outcome.worker for task in tasks} == {2}


def test_unwritable_summary_is_logged(run, tmp_path, caplog):
    tmp_path.joinpath("file").touch()
    task = small(Task("true", monitor_output=tmp_path / "file"))
    assert run(task).successful()
    assert f"the resources of task {task.id} are not written" in caplog.text


def test_snapshots_are_refused_in_log(run, caplog):
    task = small(Task("true", snapshot_file="snapshots.json"))
    assert run(task).successful()
    assert "set_snapshot_file('snapshots.json') has no effect" in caplog.text


def test_task_is_installed_as_library(m, run):
    """A task that provides a library starts a program, whose functions are called."""
    page = (Path(__file__).parents[3] / "docs" / "library-programs.md").read_text()
    [program] = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    task = Task("sh ./words.sh", library_provided="letters")
    assert task.get_library_provided() == "letters"
    task.provides_library("words")
    task.add_input(m.declare_buffer(program), "words.sh")
    task.set_cores(1)
    task.set_function_slots(1)
    task.set_function_exec_mode_from_string("direct")
    assert (task.get_library_provided(), task.get_libray_provided()) == ("words", "words")
    with pytest.raises(ValueError, match="install_library"):
        m.submit(task)
    with pytest.raises(ValueError, match="set_library_provided"):
        m.install_library(Task("true"))
    with pytest.raises(TypeError, match="create_library_from_functions"):
        FunctionCall("words", "count").set_library_provided("words")
    m.install_library(task)
    assert run(FunctionCall("words", "count", b"some more words")).output == 3
    m.remove_library("words")


@pytest.mark.parametrize("mode", ["fork", "direct"])
def test_mode_of_library_can_be_replaced(m, run, mode):
    library = m.create_library_from_functions(f"mode-{mode}", process, exec_mode="fork")
    library.set_cores(1)
    library.set_function_exec_mode_from_string(mode)
    m.install_library(library)
    calls = run(*(FunctionCall(library.name, "process") for _ in range(8)))
    assert (len({call.output for call in calls}) == 8) == (mode == "fork")
    m.remove_library(library.name)
