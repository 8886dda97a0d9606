"""Whatever way a run ends, nothing of it is left: no process, socket, thread or file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import psutil
import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    engine_threads,
    find_paths,
    is_alive,
    list_recursively,
    scheduler_state,
    wait_until,
)
from vinecore import Factory, FunctionCall, PythonTask, Task

SCRIPT = """
import sys, threading
from pathlib import Path
from daskvine import DaskVine
from tests.harness import sample_tasks as chores
from vinecore import PythonTask, Task
folder = Path(sys.argv[1])
m = DaskVine.local(workers=2, cores=1)
library = m.create_library_from_functions("chores", chores.held, exec_mode="direct")
library.set_cores(1)
m.install_library(library)
threading.Thread(target=m.get, args=({"x": (chores.held, str(folder), "vertex", "gate")}, "x"), kwargs={"lib_resources": {"cores": 1},
                 "task_mode": "function-calls", "progress_disable": True}, daemon=True).start()
task = Task(f"sleep 1000 & echo $$ > {folder}/shell.tmp; mv {folder}/shell.tmp {folder}/shell; sleep 1000")
task.set_cores(1)
m.submit(task)
chores.wait_for(folder / "shell")
chores.wait_for(folder / "vertex")
chores.note(folder / "ready")
threading.Event().wait()
"""


@pytest.fixture
def family():
    """All processes that were started since the test began; other tests' helpers, such as a resource tracker, stay."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [p for p in psutil.Process().children(recursive=True) if p not in before]


def threads_beyond(before):
    """The engine's threads that were not there before; those of the managers of other tests may have ended meanwhile."""
    return Counter(engine_threads()) - Counter(before)


def listening():
    return {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_close_leaves_no_process_or_file(local_cluster, family):
    """After close no process socket thread or file is left."""
    before = engine_threads(), listening(), len(os.listdir("/proc/self/fd"))
    m = DaskVine(port=0, address="127.0.0.1", password_file=local_cluster.secret)
    with m, Factory("local", manager=m, min_workers=2, cores=2, memory=500, disk=500):
        graph = {("large", n): (sample_tasks.make_bytes, 300_000, n) for n in range(8)}
        graph["sum"] = (lambda *parts: sum(map(len, parts)), *graph)
        for task_mode in ("function-calls", "tasks"):
            assert m.get(graph, "sum", task_mode=task_mode, progress_disable=True) > 2_400_000
        m.submit(PythonTask(sample_tasks.make_bytes, 300_000))
        assert len(m.wait(PATIENCE_S).output) > 300_000
        m.install_library(m.create_library_from_functions("chores", sample_tasks.add))
        m.submit(FunctionCall("chores", "add", 1, 2))
        assert m.wait(PATIENCE_S).output == 3
        started = family()
        assert started
    wait_until(lambda: not any(map(is_alive, started)), "what was killed to be gone")
    assert not threads_beyond(before[0])
    assert listening() <= before[1]
    assert len(os.listdir("/proc/self/fd")) <= before[2]
    assert list_recursively(local_cluster.folder / "tmp") == []


def test_close_during_work_leaves_nothing(local_cluster, family):
    """Closing in the middle of everything leaves nothing."""
    before = engine_threads()
    m = DaskVine(port=0, address="127.0.0.1", password_file=local_cluster.secret)
    Factory("local", manager=m, cores=3, memory=500, disk=500).start()  # and nobody stops it
    library = m.create_library_from_functions("chores", sample_tasks.starts_process, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    shell = Task(f"sleep 1000 & echo $! >> {local_cluster.path('shell')}; sleep 1000")
    for task in (
        shell,
        PythonTask(sample_tasks.starts_process, str(local_cluster.folder), "python"),
        FunctionCall("chores", "starts_process", str(local_cluster.folder), "call"),
    ):
        if type(task) is not FunctionCall:
            task.set_cores(1)
        m.submit(task)
    wait_until(
        lambda: all(local_cluster.count_lines(name) for name in ("shell", "python", "call")),
        "all three to have started a process",
    )
    started = family()
    grandchildren = [int(local_cluster.path(name).read_text()) for name in ("shell", "python", "call")]
    assert set(grandchildren) <= {process.pid for process in started}
    m.close()
    wait_until(lambda: not any(map(is_alive, started)), "the end of all processes")
    assert not threads_beyond(before)
    assert list_recursively(local_cluster.folder / "tmp") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_ended_worker_takes_processes_and_files(local_cluster, number):
    """When a worker is ended its processes and files go with it."""
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1, "--cores", "3")
    library = m.create_library_from_functions("chores", sample_tasks.starts_process, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    for task in (
        Task(f"sleep 1000 & echo $! >> {local_cluster.path('shell')}; sleep 1000"),
        PythonTask(sample_tasks.starts_process, str(local_cluster.folder), "python"),
    ):
        task.set_cores(1)
        m.submit(task)
    m.submit(FunctionCall("chores", "starts_process", str(local_cluster.folder), "call"))
    wait_until(
        lambda: all(local_cluster.count_lines(name) for name in ("shell", "python", "call")),
        "all three to have started a process",
    )
    started = worker.descendants
    assert {int(local_cluster.path(name).read_text()) for name in ("shell", "python", "call")} <= {
        process.pid for process in started
    }
    worker.send(number)
    code = worker.wait()
    assert code == (0 if number == signal.SIGTERM else -number)
    wait_until(lambda: not any(map(is_alive, started)), "the end of all processes")
    wait_until(
        lambda: list_recursively(local_cluster.workspace) == [], "the files of the worker to be removed"
    )
    assert list_recursively(local_cluster.folder / "tmp") == []


def test_killed_manager_ends_workers_and_files(local_cluster):
    """When the manager is killed its workers leave with all that is theirs."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(local_cluster.folder)], env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(
            lambda: local_cluster.count_lines("ready") or script.poll() is not None, "the run to be under way"
        )
        assert script.poll() is None
        started = psutil.Process(script.pid).children(recursive=True)
    finally:
        script.kill()
        script.wait()
    wait_until(lambda: not any(map(is_alive, started)), "the end of all processes")
    left = [name for name in list_recursively(local_cluster.folder / "tmp") if "vine-worker-" in name]
    assert left == []


def test_worker_of_dying_manager_gives_up(local_cluster):
    """A worker that starts while its manager is killed does not wait for ever."""
    program = (
        "import os, sys, subprocess, time\n"
        "subprocess.Popen([sys.executable, '-m', 'vineworker', '127.0.0.1', sys.argv[1], '--single-shot', '--parent-death', str(os.getpid()), '--timeout', '1000000',"
        " '--password', sys.argv[2], '--workspace', sys.argv[3]])\n"
        "print('started', flush=True)\n"
        "time.sleep(1000)\n"
    )
    port = 1  # where nobody listens
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(port), str(local_cluster.secret), str(local_cluster.workspace)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    with parent:
        parent.stdout.readline()
        wait_until(lambda: len(list_recursively(local_cluster.workspace)) > 0, "the worker to be up")
        started = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    wait_until(lambda: not any(map(is_alive, started)), "the end of the worker")
    wait_until(lambda: list_recursively(local_cluster.workspace) == [], "its files to be removed")


def test_forked_child_takes_nothing_from_parent(local_cluster):
    """A forked child that ends takes nothing away from its parent."""
    with DaskVine.local(cores=1) as m:
        assert (
            m.get({"x": (sample_tasks.add, 1, 2)}, "x", task_mode="function-calls", progress_disable=True)
            == 3
        )
        pid = os.fork()
        if pid == 0:
            m.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert m.get({"x": (sample_tasks.add, 3, 4)}, "x", task_mode="tasks", progress_disable=True) == 7


def test_many_managers_leave_no_threads(local_cluster):
    """Many short lives of a manager leave no thread or descriptor."""

    def life():
        with local_cluster.start_manager() as m:
            m.declare_buffer("x")
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    first = life()
    for _ in range(20):
        last = life()
    assert last == first


def test_ended_tasks_leave_no_files(local_cluster):
    """Tasks that have ended in any way leave no files."""
    m = local_cluster.start_manager(DaskVine)
    [worker] = local_cluster.start_workers(m, 1, "--cores", "3")
    library = m.create_library_from_functions("chores", sample_tasks.add, sample_tasks.leaves)
    library.set_cores(1)
    m.install_library(library)
    folder = str(local_cluster.folder)
    missing, timed = Task("true"), Task("sleep 1000")
    missing.add_output(m.declare_temp(), "never-made")
    timed.set_time_max(0.1)
    evil = Task("true")
    evil.add_input(m.declare_untar(m.declare_buffer("no archive")), "in")
    tasks = [
        missing,
        timed,
        evil,
        Task("true"),
        Task("exit 3"),
        Task("mkdir d; touch d/x; chmod 0 d"),
        Task("true " + "x" * 200_000),
    ]
    tasks += [
        PythonTask(sample_tasks.add, 1, 2),
        PythonTask(sample_tasks.add, 1, None),
        PythonTask(sample_tasks.leaves, folder, "x"),
        PythonTask(signal.pause),
    ]
    tasks += [
        FunctionCall("chores", "add", 1, 2),
        FunctionCall("chores", "add", 1, None),
        FunctionCall("chores", "leaves", folder, "y"),
    ]
    for task in tasks:
        if not isinstance(task, FunctionCall):
            task.set_cores(1)
            task.set_retries(1)
        m.submit(task)
    wait_until(
        lambda: scheduler_state(m, lambda scheduler: [*scheduler.state.tasks] == [tasks[10].id]),
        "all but one to have ended",
    )
    m.cancel_all()
    while not m.empty():
        assert m.wait(PATIENCE_S) is not None
    m.remove_library("chores")
    [session] = local_cluster.workspace.glob("vine-worker-*/session-*")

    def left():
        return {path.name for path in session.iterdir()} - {"cache", "incoming"}

    # the warm Python that single tasks are forked from stays, with its folder, its log, and where it would say what keeps it from starting
    wait_until(
        lambda: len(left()) == 3 and {name.partition(".")[2] for name in left()} == {"", "log", "stack"},
        f"the leftovers of tasks to be removed: {left()}",
    )
    assert list((session / "incoming").iterdir()) == []
    wait_until(lambda: len(worker.descendants) == 2, "the processes of the library and of the tasks to end")


def test_requests_to_stopped_worker_stay_in_order(local_cluster, tmp_path):
    """More than its socket takes; and a task that is cancelled meanwhile never runs."""
    modules = tmp_path / "site-packages"  # what is installed is imported by the host, for all its tasks
    modules.mkdir()
    (modules / "slow_to_import.py").write_text(
        f"import os\nfrom tests.harness import sample_tasks as chores\nif not os.environ['VINE_SANDBOX'].endswith('.d'):\n"
        f"    chores.note({str(local_cluster.path('importing'))!r})\n    chores.wait_for({str(local_cluster.path('gate'))!r})\n"
    )
    m = local_cluster.start_manager()
    local_cluster.start_worker(
        m, "--cores", "500", PYTHONPATH=os.pathsep.join([str(modules), *filter(None, sys.path)])
    )
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(PythonTask(lambda: __import__("slow_to_import").__name__))
    assert m.wait(PATIENCE_S).output == "slow_to_import"
    wait_until(lambda: local_cluster.count_lines("importing"), "the host to be importing, too")
    tasks = [PythonTask(sample_tasks.counted, str(local_cluster.folder), f"task-{n}", n) for n in range(400)]
    for task in tasks:
        task.set_cores(1)
        m.submit(task)
    wait_until(
        lambda: len(find_paths(local_cluster.workspace, "vine-worker-*/session-*/t*.d")) == 400,
        "all sandboxes to be there",
    )
    m.cancel_by_task_id(tasks[399].id)
    assert m.wait(PATIENCE_S) is tasks[399]
    local_cluster.path("gate").touch()
    assert sorted(m.wait(PATIENCE_S).output for _ in range(399)) == list(range(399))
    assert {local_cluster.count_lines(f"task-{n}") for n in range(399)} == {1}
    assert local_cluster.count_lines("task-399") <= 1
