"""Networks that cut, refuse, truncate and babble."""

from __future__ import annotations

import hashlib
import logging
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    age_connection,
    engine_threads,
    make_file_and_block,
    scheduler_state,
    wait_for_task,
    wait_until,
    worker_summaries,
)
from tests.harness.tcp_proxy import TcpProxy
from vinecore import FunctionCall, PythonTask, Task
from vinecore.protocol import frames
from vinecore.protocol.transfer import server
from vinecore.protocol.transfer.server import _next_request

ODD = str(Path(__file__).with_name("misbehaving_worker.py"))
LARGE = 1_000_000


def odd(fault):
    return [sys.executable, ODD, fault]


# ---- the connection to the manager


def test_reset_connection_costs_session_only(local_cluster):
    """A connection that is reset costs a session and nothing else."""
    m = local_cluster.start_manager()
    proxy = TcpProxy(m.port)
    try:
        worker = local_cluster.start_worker(
            proxy.port, "--timeout", "60", command=[sys.executable, "-c", WITHOUT_SINGLE_SHOT]
        )
        m.wait_for_workers(1, PATIENCE_S)
        m.submit(PythonTask(sample_tasks.held, str(local_cluster.folder), "held", "gate"))
        wait_until(lambda: local_cluster.count_lines("held") == 1, "the task to be running")
        proxy.cut()
        wait_until(lambda: local_cluster.count_lines("held") == 2, "the task to be running again")
        local_cluster.path("gate").touch()
        assert wait_for_task(m).output == "held"
        assert worker.process.poll() is None
        assert [w["id"] for w in worker_summaries(m)] == [2]
        sessions = list(local_cluster.workspace.glob("vine-worker-*/session-*"))
        assert len(sessions) == 1, "the files of the first session are still there"
    finally:
        proxy.close()


WITHOUT_SINGLE_SHOT = """
import sys
from vineworker import cli
sys.argv.remove("--single-shot")
cli.main()
"""


def test_stopped_worker_is_dropped_and_returns(local_cluster):
    """A worker that is stopped is given up and comes back."""
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(
        m, 1, "--timeout", "60", command=[sys.executable, "-c", WITHOUT_SINGLE_SHOT]
    )
    m.submit(PythonTask(sample_tasks.held, str(local_cluster.folder), "held", "gate"))
    wait_until(lambda: local_cluster.count_lines("held") == 1, "the task to be running")
    worker.send(signal.SIGSTOP)
    wait_until(lambda: age_connection(m, 1) or m.workers_connected == 0, "the manager to give the worker up")
    worker.send(signal.SIGCONT)
    wait_until(lambda: local_cluster.count_lines("held") == 2, "the task to be running again")
    local_cluster.path("gate").touch()
    assert wait_for_task(m).output == "held"


def test_deaf_worker_does_not_hold_its_tasks(local_cluster):
    """A worker that takes nothing any more does not hold what it was sent."""
    m = local_cluster.start_manager()
    first, _second = local_cluster.start_workers(m, 2)
    first.send(signal.SIGSTOP)
    payload = b"x" * 60_000
    tasks = [
        PythonTask(sample_tasks.length, payload + str(n).encode()) for n in range(200)
    ]  # more than the buffers of a socket hold
    for task in tasks:
        task.set_cores(0.01)
        m.submit(task)
    wait_until(lambda: age_connection(m, 1) or m.workers_connected == 1, "the manager to give the worker up")
    assert {wait_for_task(m).output for _ in tasks} <= {60_001, 60_002, 60_003}
    assert len(worker_summaries(m)) == 1


# ---- connections between workers


def made_and_moved(local_cluster, fault, other=None, size=LARGE):
    """Have a faulty worker make an object and another one read it."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, command=odd(fault) if fault else None)
    m.wait_for_workers(1, PATIENCE_S)
    maker = PythonTask(sample_tasks.make_bytes, size)
    maker.enable_temp_output()
    m.submit(maker)
    assert wait_for_task(m).successful()
    blocker = PythonTask(
        sample_tasks.held, str(local_cluster.folder), "blocker", "gate"
    )  # keeps the whole of the first worker
    m.submit(blocker)
    wait_until(lambda: local_cluster.count_lines("blocker"), "the first worker to be busy")
    local_cluster.start_worker(m, command=odd(other) if other else None)
    m.wait_for_workers(2, PATIENCE_S)
    reader = PythonTask(sample_tasks.digest, maker.output_file)
    m.submit(reader)
    assert wait_for_task(m) is reader
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is blocker
    assert reader.output == hashlib.sha256(sample_tasks.make_bytes(size)).hexdigest()
    return m, maker


@pytest.mark.parametrize("fault", ["unreachable", "no_door"])
def test_unreachable_worker_is_relayed_by_manager(local_cluster, fault):
    """A worker whose port cannot be reached is relayed by the manager."""
    m, maker = made_and_moved(local_cluster, fault)
    assert scheduler_state(
        m, lambda scheduler: scheduler.state.files[maker.output_file.cache_name].at_manager
    )


def test_a_truncated_object_is_had_from_elsewhere(local_cluster, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    made_and_moved(local_cluster, "truncating")
    assert "before the end of the object" in caplog.text


def test_silent_peer_is_abandoned(local_cluster, caplog):
    """A peer that sends nothing is given up."""
    caplog.set_level(logging.WARNING, "vinecore")
    made_and_moved(local_cluster, "stalling", "impatient")
    assert "nothing has come" in caplog.text


def test_object_denied_by_holder_is_remade(local_cluster, caplog):
    """An object that its holder denies to have is made again."""
    caplog.set_level(logging.INFO, "vinecore")
    made_and_moved(local_cluster, "denying")
    assert "again" in caplog.text


def test_unreachable_holder_keeps_files_obtainable(local_cluster):
    """Many workers that cannot reach one do not make its files unobtainable."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--cores", "1", command=odd("unreachable"))
    m.wait_for_workers(1, PATIENCE_S)
    maker, blocker = make_file_and_block(local_cluster, m, LARGE)
    for _ in range(8):
        local_cluster.start_worker(m, "--cores", "1")
    m.wait_for_workers(9, PATIENCE_S)
    readers = [PythonTask(sample_tasks.digest, maker.output_file) for _ in range(8)]
    for reader in readers:
        m.submit(reader)
    assert {wait_for_task(m).output for _ in readers} == {
        hashlib.sha256(sample_tasks.make_bytes(LARGE)).hexdigest()
    }
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is blocker


# ---- ends that do not fit, or hang


def test_worker_of_other_protocol_is_refused(local_cluster):
    """A worker of another protocol is sent away with the reason."""
    m = local_cluster.start_manager()
    program = "import vinecore.protocol as p\nfrom vineworker import cli\nfrom vineworker.session import session\nsession.VERSION = 99\ncli.main()"
    worker = local_cluster.start_worker(m, command=[sys.executable, "-c", program])
    assert worker.wait() == 0
    assert "use the same version of daskvine" in worker.log
    assert m.workers_connected == 0


def test_idle_peer_connection_closes_and_reopens(local_cluster, monkeypatch):
    """A peer that asks nothing for long is cut off and comes back."""
    ask, known = _next_request, set()

    def wait_briefly_for_the_second(words):
        monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.05 if words in known else 60.0)
        known.add(words)
        return ask(words)

    monkeypatch.setattr(server, "_next_request", wait_briefly_for_the_second)
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    for _ in range(3):  # each over a connection that the manager has closed meanwhile
        m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
        assert wait_for_task(m).output == sample_tasks.make_bytes(LARGE)
        wait_until(
            lambda: not [name for name in engine_threads() if name == "vine-guest"],
            "the connection to be closed",
        )


def test_transfers_that_hang_keep_no_task_waiting(local_cluster, monkeypatch):
    monkeypatch.setattr("vinecore.manager.url_metadata.HEAD_TIMEOUT_S", 0.05)
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1, "--cores", "100")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        for n in range(12):
            task = Task("cat in", cores=1)
            task.add_input(m.declare_url(f"http://127.0.0.1:{silent.getsockname()[1]}/{n}"), "in")
            m.submit(task)
        fine = [Task("echo fine", cores=1), PythonTask(sample_tasks.add, 1, 2)]
        fine[1].set_cores(1)
        for task in fine:
            m.submit(task)
        assert {wait_for_task(m), wait_for_task(m)} == set(fine)
        m.cancel_all()
        assert {wait_for_task(m).result for _ in range(12)} == {"cancelled"}
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0  # and does not wait for them either


class Odd(Task):
    """A task with an option that cannot be sent."""

    def make_spec(self, manager, number):
        spec = super().make_spec(manager, number)
        return spec._replace(options={**spec.options, "odd": object()})


def test_unsendable_task_costs_only_itself(local_cluster):
    """A task that cannot be sent costs only itself."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--cores", "8")
    others = [Task(f"echo {number}", cores=1) for number in range(6)]
    odd = Odd("true", cores=1)
    tasks = [*others[:3], odd, *others[3:]]
    # at once, so that they share a frame
    scheduler_state(m, lambda _scheduler: [m.submit(task) for task in tasks])
    ended = [wait_for_task(m) for _ in tasks]
    assert sorted(task.output for task in ended if task is not odd) == [f"{number}\n" for number in range(6)]
    assert odd.result == "output transfer error"
    assert "object is unsupported" in str(odd.error())
    assert [worker["id"] for worker in m.summarize_workers()] == [1]


def test_large_arguments_are_split_or_refused(local_cluster, monkeypatch):
    """Arguments that are too large for one frame go in several and what is too large for any fails."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--cores", "8")
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 100_000)
    tasks = [PythonTask(len, bytes(40_000 + number)) for number in range(6)]
    large = PythonTask(len, bytes(200_000))
    for task in (*tasks, large):
        task.set_cores(1)
    scheduler_state(m, lambda _scheduler: [m.submit(task) for task in (*tasks, large)])
    ended = [wait_for_task(m) for _ in (*tasks, large)]
    assert sorted(task.output for task in ended if task is not large) == [
        40_000 + number for number in range(6)
    ]
    assert "it takes 200," in str(large.error())
    assert [worker["id"] for worker in m.summarize_workers()] == [1]


def test_call_with_unsendable_answer_fails_alone(local_cluster):
    """A call whose answer cannot be sent costs only itself."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, command=odd("unspeakable"))
    m.submit(Task("echo spoken"))
    task = wait_for_task(m)
    assert task.result == "output transfer error"
    assert "what its worker says of it cannot be sent" in str(task.error())
    assert [worker["id"] for worker in m.summarize_workers()] == [1]


def test_exception_with_surrogate_is_delivered(local_cluster):
    """An exception with half a surrogate pair is the exception."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    library = m.create_library_from_functions(
        "lib", sample_tasks.add, library_context_info=[raise_odd_text, [], {}]
    )
    m.install_library(library)
    for task in (PythonTask(raise_odd_text), FunctionCall("lib", "add", 1, 2)):
        m.submit(task)
        assert wait_for_task(m) is task
        assert type(task.output) is ValueError
        assert task.output.args == ("half \udc80",)
    assert [worker["id"] for worker in m.summarize_workers()] == [1]


def raise_odd_text():
    msg = "half \udc80"
    raise ValueError(msg)
