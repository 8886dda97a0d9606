"""The manager's face: submitting, waiting, cancelling, closing, from one thread and from many."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import threading

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    interrupt_when,
    is_alive,
    scheduler_state,
    wait_until,
    worker_summaries,
)
from vinecore import FunctionCall, Manager, PythonTask, Task
from vinecore.resources.categories import MODES


def held(local_cluster, name):
    task = PythonTask(sample_tasks.held, str(local_cluster.folder), name, f"{name}-gate")
    task.set_cores(1)
    return task


# ---- submitting and waiting


def test_empty_manager_waits_for_nothing(m):
    """An empty manager has nothing to wait for."""
    assert m.empty()
    assert m.wait(0) is None
    assert m.wait(1000) is None  # at once: there is nothing that could come
    assert m.wait_for_tag("no-such-tag", 1000) is None


def test_every_task_comes_back_once(m):
    tasks = [Task("true", cores=1) for _ in range(20)]
    numbers = [m.submit(task) for task in tasks]
    assert len(set(numbers)) == 20
    assert not m.empty()
    ended = []
    while not m.empty():
        ended.append(m.wait(PATIENCE_S))
    assert {task.id for task in ended} == set(numbers)
    assert len(ended) == 20


def test_waiting_ends_when_its_time_is_over(m, shared_cluster):
    m.submit(held(shared_cluster, "timeout"))
    assert m.wait(0) is None
    assert m.wait(0.05) is None
    assert m.wait_for_tag("x", 0.05) is None
    shared_cluster.path("timeout-gate").touch()
    assert m.wait("wait_forever").output == "timeout"


def test_tasks_are_awaited_by_tag_and_id(m):
    """Tasks are waited for by tag and by number."""
    tasks = {name: Task(f"echo {name}", tag=name, cores=1) for name in ("a", "b", "x")}
    tasks["c"] = tasks.pop("x")
    tasks["c"].set_tag("c")
    tasks["d"] = Task("echo d", cores=1)
    for task in tasks.values():
        m.submit(task)
    assert m.wait_for_tag("c", PATIENCE_S) is tasks["c"]
    assert m.wait_for_task_id(tasks["b"].id, PATIENCE_S) is tasks["b"]
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {tasks["a"], tasks["d"]}
    assert m.wait_for_tag("a", 0) is None


def test_larger_priorities_run_first(local_cluster):
    m = local_cluster.start_manager()
    tasks = [Task(f"echo {n} >> {local_cluster.path('order')}", priority=n, cores=2) for n in (1, 3, 2)]
    tasks.append(Task(f"echo 4 >> {local_cluster.path('order')}", cores=2))
    tasks[-1].set_priority(4)
    for task in tasks:
        m.submit(task)
    local_cluster.start_workers(m, 1)
    while not m.empty():
        m.wait(PATIENCE_S)
    assert local_cluster.path("order").read_text().split() == ["4", "3", "2", "1"]


def test_what_is_not_a_task_is_refused(m):
    with pytest.raises(TypeError, match="cannot submit"):
        m.submit("echo hello")


def test_tasks_of_four_threads_all_return(m):
    """Two thousand tasks from four threads all come back."""
    m.install_library(m.create_library_from_functions("adding", sample_tasks.add, exec_mode="direct"))
    expected, found, lock = [], [], threading.Lock()

    def submit(start):
        for n in range(start, start + 500):
            m.submit(FunctionCall("adding", "add", n, 1))
            with lock:
                expected.append(n + 1)

    def collect():
        while len(found) < 2000:
            task = m.wait(0.2)
            if task is not None:
                found.append(task.output)

    threads = [threading.Thread(target=submit, args=(500 * n,)) for n in range(4)]
    threads += [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(found) == sorted(expected) == list(range(1, 2001))
    assert m.empty()
    m.remove_library("adding")


def test_manager_works_in_event_loop(m):
    """A manager works inside of a running event loop."""

    async def main():
        m.submit(PythonTask(sample_tasks.add, 1, 2))
        return m.wait(PATIENCE_S).output

    assert asyncio.run(main()) == 3


def test_progress_is_made_while_nobody_waits(m):
    tasks = [Task("true", cores=1) for _ in range(10)]
    for task in tasks:
        m.submit(task)
    wait_until(
        lambda: all(task.state == "DONE" for task in tasks), "the tasks to be done without a call of wait"
    )
    assert sorted(m.wait(0).id for _ in tasks) == [task.id for task in tasks]


def test_control_c_gets_through_to_who_waits(local_cluster):
    m = local_cluster.start_manager()
    m.submit(Task("true"))
    with pytest.raises(KeyboardInterrupt), interrupt_when(lambda: m._waiters):
        m.wait(PATIENCE_S)
    local_cluster.start_workers(m, 1)
    assert m.wait(PATIENCE_S).successful()


# ---- cancelling


def test_a_waiting_task_is_cancelled(m):
    task = Task("true", cores=500)
    m.submit(task)
    m.cancel_by_task_id(task.id)
    assert m.wait(PATIENCE_S) is task
    assert (task.result, task.completed(), task.exit_code) == ("cancelled", False, -1)


@pytest.mark.parametrize("kind", ["shell", "python", "call"])
def test_a_running_task_is_cancelled_and_killed(m, shared_cluster, kind):
    name = f"cancel-{kind}"
    if kind == "shell":
        task = Task(f"echo $$ >> {shared_cluster.path(name)}; sleep 1000", cores=1)
    elif kind == "python":
        task = held(shared_cluster, name)
    else:
        library = m.create_library_from_functions(
            "holding", sample_tasks.held, sample_tasks.add, exec_mode="direct"
        )
        library.set_cores(1)
        m.install_library(library)
        task = FunctionCall("holding", "held", str(shared_cluster.folder), name, f"{name}-gate")
    m.submit(task)
    wait_until(lambda: shared_cluster.count_lines(name), "the task to be running")
    pid = int(shared_cluster.path(name).read_text())
    m.cancel_by_task_id(task.id)
    assert m.wait(PATIENCE_S) is task
    assert task.result == "cancelled"
    wait_until(lambda: not is_alive(pid), "its process to be gone")
    if kind == "call":  # the slot has been replaced
        m.submit(FunctionCall("holding", "add", 1, 2))
        assert m.wait(PATIENCE_S).output == 3
        m.remove_library("holding")
    wait_until(lambda: worker_summaries(m)[0]["free"]["cores"] == 4, "what it held to be free again")


def test_tasks_cancelled_early_leave_nothing_running(m, shared_cluster):
    """At whatever moment of its short life the cancellation finds a task."""
    tasks = []
    for n in range(60):
        task = Task("sleep 1000", cores=1) if n % 2 else PythonTask(signal.pause)
        task.set_cores(1)
        tasks.append(task)
        m.submit(task)
        if n % 3 == 0:
            m.cancel_by_task_id(task.id)
    wait_until(lambda: worker_summaries(m)[0]["tasks"] > 0, "some of them to be with the worker")
    m.cancel_all()
    assert {m.wait(PATIENCE_S).result for _ in tasks} == {"cancelled"}
    wait_until(lambda: worker_summaries(m)[0]["free"]["cores"] == 4, "what they held to be free again")
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"


def test_cancelling_unknown_task_does_nothing(m):
    """Cancelling what is over or unknown does nothing."""
    task = Task("true")
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    m.cancel_by_task_id(task.id)
    m.cancel_by_task_id(10**9)
    assert m.empty()
    assert task.successful()


# ---- where it listens


def test_any_port_will_do(local_cluster):
    assert local_cluster.start_manager(port=0).port > 0


def test_taken_port_is_error_with_remedy(local_cluster):
    """A port that is taken is an error that says what to do."""
    port = local_cluster.start_manager(port=0).port
    with pytest.raises(OSError, match=f"port {port}.*port=0 for any"):
        local_cluster.start_manager(port=port)


def test_first_free_port_of_range_is_taken(local_cluster):
    """Of a range of ports the first free one is taken."""
    first = local_cluster.start_manager(port=0).port
    if first + 20 > 65535:
        pytest.skip("the first manager has one of the last ports that there are")
    second = local_cluster.start_manager(port=(first, first + 20)).port
    assert first < second <= first + 20
    with pytest.raises(OSError, match=f"port {first} to {first}|port {first}:"):
        local_cluster.start_manager(port=(first, first))


@pytest.mark.parametrize("port", [-1, 65536, (10, 5), (0, 70000)])
def test_what_is_not_a_port_is_refused(port):
    with pytest.raises(ValueError, match="port"):
        Manager(port=port)


# ---- its secret


def test_new_secret_is_private_to_user(local_cluster, tmp_path):
    """A manager makes a secret that only its user may read."""
    m = Manager(port=0, address="127.0.0.1")
    try:
        assert m.password_file == tmp_path / "config" / "daskvine" / "secret"
        assert stat.S_IMODE(m.password_file.stat().st_mode) == 0o600
        worker = local_cluster.start_worker(m, command=None, secret=m.password_file)
        m.wait_for_workers(1, PATIENCE_S)
    finally:
        m.close()
    assert worker.wait() == 0


def test_managers_of_user_share_secret(local_cluster):
    """Two managers of a user have the same secret."""
    first, second = Manager(port=0, address="127.0.0.1"), Manager(port=0, address="127.0.0.1")
    with first, second:
        assert first.password_file.read_bytes() == second.password_file.read_bytes() != b""


@pytest.mark.parametrize(
    ("content", "error"), [(b"", ValueError), (b" \n", ValueError), (None, FileNotFoundError)]
)
def test_empty_password_file_is_refused(tmp_path, content, error):
    """A password file without a password is refused."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        Manager(port=0, password_file=path)


# ---- policy


@pytest.mark.parametrize("name", ["files", "time", "rand", "worst", "disk", "fcfs"])
def test_every_scheduling_policy_runs_tasks(local_cluster, name):
    """Every way to choose a worker runs tasks."""
    m = local_cluster.start_manager()
    m.set_scheduler(name)
    local_cluster.start_workers(m, 2)
    tasks = [PythonTask(sample_tasks.add, n, 1) for n in range(6)]
    for task in tasks:
        task.set_cores(1)
        m.submit(task)
    assert sorted(m.wait(PATIENCE_S).output for _ in tasks) == [1, 2, 3, 4, 5, 6]


def test_unknown_scheduling_policy_is_refused(m):
    """An unknown way to choose a worker is refused."""
    with pytest.raises(ValueError, match="use one of files"):
        m.set_scheduler("fastest")


def test_known_parameter_is_tuned_only(m):
    """A tune that is known is taken and another is not."""
    assert m.tune("worker-source-max-transfers", 5) == 0
    assert m.tune("no-such-thing", 5) == -1


@pytest.mark.parametrize("mode", MODES)
def test_categories_learn_in_every_mode(local_cluster, mode):
    m = local_cluster.start_manager()
    m.set_category_mode("kind", mode)
    m.set_category_resources_max("kind", {"cores": 1, "memory": 500})
    m.set_category_resources_min("kind", {"memory": 50})
    m.tune("category-steady-n-tasks", 1)
    local_cluster.start_workers(m, 1)
    tasks = [Task("echo $CORES", category="kind") for _ in range(6)]
    for task in tasks:
        m.submit(task)
    assert {m.wait(PATIENCE_S).output for _ in tasks} == {"1\n"}


# ---- what is going on


def test_workers_are_described(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--cores", "3")
    [worker] = m.summarize_workers()
    assert worker["total"]["cores"] == 3
    assert worker["free"] == worker["total"]
    assert (worker["tasks"], worker["files"], worker["libraries"]) == (0, 0, {})
    assert m.workers_connected == 1
    assert m.worker_name(worker["id"]) == worker["host"]


def test_waiting_for_absent_workers_ends(local_cluster):
    """Waiting for workers that do not come ends."""
    m = local_cluster.start_manager()
    with pytest.raises(TimeoutError, match="0 of 2 workers"):
        m.wait_for_workers(2, 0.05)


def test_without_workers_the_manager_says_so(local_cluster):
    m = local_cluster.start_manager()
    m.submit(Task("true"))
    assert wait_until(lambda: m.stalled_reason) == "no worker is connected"
    local_cluster.start_workers(m, 1)
    assert m.wait(PATIENCE_S).successful()
    wait_until(lambda: not m.stalled_reason, "the complaint to end")


# ---- its end


def test_closed_manager_refuses_work(local_cluster):
    """A closed manager refuses work with a clear error."""
    m = local_cluster.start_manager()
    m.close()
    m.close()
    for call in (
        lambda: m.submit(Task("true")),
        lambda: m.wait(1),
        lambda: m.workers_connected,
        lambda: m.declare_buffer("x"),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert "closed" in repr(m)


def test_inline_results_outlive_manager(local_cluster):
    """Results that came with their task outlive the manager."""
    with local_cluster.start_manager() as m:
        local_cluster.start_workers(m, 1)
        m.submit(PythonTask(sample_tasks.add, 1, 2))
        m.submit(PythonTask(sample_tasks.make_bytes, 10**6))
        small, large = sorted((m.wait(PATIENCE_S), m.wait(PATIENCE_S)), key=lambda task: task.id)
    assert small.output == 3
    with pytest.raises(FileNotFoundError, match="before the manager is closed"):
        large.output  # noqa: B018 - the attribute is a question


def test_closing_ends_waits_in_other_threads(local_cluster):
    """Who waits in another thread is told that the manager is closed."""
    m = local_cluster.start_manager()
    m.submit(Task("true"))
    answers = []

    def wait():
        try:
            answers.append(m.wait())
        except RuntimeError as error:
            answers.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: m._waiters, "the thread to be waiting")
    m.close()
    thread.join(PATIENCE_S)
    assert answers == [None] or "closed" in str(answers[0])


def test_shutdown_ends_workers_for_good(local_cluster):
    """A manager with shutdown sends its workers away for good."""
    with local_cluster.start_manager(shutdown=True) as m:
        worker = local_cluster.start_worker(m, "--timeout", "1000", command=sample_tasks.PERSISTENT)
        m.wait_for_workers(1, PATIENCE_S)
    assert worker.wait() == 0


def test_a_worker_that_leaves_is_noted(local_cluster, caplog):
    caplog.set_level(logging.INFO, "vinecore")
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    worker.send(signal.SIGTERM)
    worker.wait()
    wait_until(lambda: "got SIGTERM" in caplog.text, "the reason in the log")


def test_forked_child_cannot_use_parents_manager(local_cluster):
    """A forked child cannot use the manager of its parent."""
    m = local_cluster.start_manager()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            m.submit(Task("true"))
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"belongs to the process that made it" in os.read(read, 1000)
    for descriptor in (read, write):
        os.close(descriptor)


def test_init_fn_is_called_with_the_manager(local_cluster):
    seen = []
    m = local_cluster.start_manager(init_fn=seen.append)
    assert seen == [m]


def test_manager_listens_on_given_address_only(local_cluster):
    """The manager listens only where it was told."""
    m = local_cluster.start_manager(address="127.0.0.1")
    with socket.create_connection(("127.0.0.1", m.port)):
        pass
    with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
        socket.create_connection(("127.0.0.2", m.port), timeout=1)


def test_contradiction_stops_manager_that_validates(local_cluster):
    """With `validate=True` a contradiction in the scheduler's state stops the manager, which names it."""
    m = local_cluster.start_manager(validate=True)
    m.submit(Task("true"))
    scheduler_state(m, lambda scheduler: setattr(scheduler.state, "assigned", 9))
    with pytest.raises(RuntimeError, match="assigned is 9, not 0"):
        m.wait(PATIENCE_S)
