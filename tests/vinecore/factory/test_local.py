"""Workers of this machine, kept alive as long as they are wanted."""

from __future__ import annotations

import os
import signal
import sys
import tarfile

import psutil
import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, is_alive, wait_for_task, wait_until, worker_summaries
from vinecore import Factory, PythonTask, Task, WorkersNotStarted
from vinecore.factory.adaptive import MAX_START_TRIES


def test_requested_number_of_workers_runs(local_cluster):
    """As many workers as asked for are there."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, min_workers=2, cores=1, memory=300, disk=200) as factory:
        m.wait_for_workers(2, PATIENCE_S)
        assert [w["total"] for w in worker_summaries(m)] == [
            {"cores": 1.0, "memory": 300, "disk": 200, "gpus": 0.0}
        ] * 2 or len(worker_summaries(m)) == 2
        m.submit(PythonTask(sample_tasks.add, 1, 2))
        assert m.wait(PATIENCE_S).output == 3
        assert "vine_worker" in factory.log
        processes = list(factory.processes)
    assert [process.returncode for process in processes] == [0, 0]


def test_a_worker_that_dies_is_replaced(local_cluster):
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        before = worker_summaries(m)[0]["id"]
        factory.processes[0].kill()
        wait_until(lambda: [w["id"] for w in worker_summaries(m)] not in ([], [before]), "another worker")
        m.submit(Task("echo fine"))
        assert m.wait(PATIENCE_S).output == "fine\n"


def test_workers_past_wall_time_are_replaced(local_cluster):
    """Workers with a wall time are replaced when it is over."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1, memory=100, disk=100, wall_time=2) as factory:
        first = wait_until(lambda: factory.processes, "a worker")[0]
        assert first.wait(PATIENCE_S) == 0
        wait_until(lambda: factory.processes and factory.processes[0] is not first, "another worker")


def test_without_replacement_dead_worker_stays_dead(local_cluster):
    """Without replacement a worker that dies stays dead."""
    m = local_cluster.start_manager()
    factory = Factory("local", manager=m, cores=1).start(replace=False)
    try:
        m.wait_for_workers(1, PATIENCE_S)
        factory.processes[0].kill()
        factory.processes[0].wait()
        wait_until(lambda: m.workers_connected == 0, "the manager to notice")
        assert len(factory.processes) == 1
    finally:
        factory.stop()


def test_workers_dying_early_are_delayed(local_cluster, caplog):
    """Workers that die at once are not started as fast as possible."""
    m = local_cluster.start_manager()
    m.password_file = local_cluster.path("no-such-file")
    with Factory("local", manager=m, cores=1, factory_period=0.01) as factory:
        wait_until(lambda: caplog.text.count("others in") >= 3, "pauses")
        assert factory._scaling.pause_s >= 1.6
    told = [r.getMessage() for r in caplog.records if "others in" in r.getMessage()][:3]
    assert [text.rpartition("; ")[2] for text in told] == [
        "others in 0.4 s",
        "others in 0.8 s",
        "others in 1.6 s",
    ]
    assert all("before connecting: its exit code is 2: " in text and "no secret at" in text for text in told)


BROKEN_PYTHON = """#!/bin/sh
echo "No module named encodings" >&2
exit 3
"""


def broken_python(folder, text=BROKEN_PYTHON):
    """Write a program that is no Python; return its path."""
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(text)
    program.chmod(0o755)
    return str(program)


def test_a_python_that_never_starts_fails_tasks(local_cluster, tmp_path, monkeypatch):
    """A user whose environment is broken gets an error, and not silence; a mended one is taken up."""
    monkeypatch.setattr("vinecore.factory.adaptive.INITIAL_BACKOFF_S", 0.01)
    right, wrong = sys.executable, broken_python(tmp_path)
    m = local_cluster.start_manager()
    monkeypatch.setattr(sys, "executable", wrong)
    with Factory("local", manager=m, min_workers=2, cores=1, factory_period=0.01):
        with pytest.raises(WorkersNotStarted, match="in 5 tries") as told:
            m.wait_for_workers(1, PATIENCE_S)
        assert f"{wrong} -c 'import sys" in str(told.value)
        assert "exit status 3" in str(told.value)
        assert str(told.value).count("No module named encodings") in (1, 2)
        assert "run the command in a terminal" in str(told.value)
        m.submit(PythonTask(sample_tasks.add, 1, 2))
        assert isinstance(m.wait(PATIENCE_S).error(), WorkersNotStarted)
        monkeypatch.setattr(sys, "executable", right)
        m.scale(1)
        m.submit(PythonTask(sample_tasks.add, 1, 2))
        assert m.wait(PATIENCE_S).output == 3


@pytest.mark.parametrize("path", ["/no/such/python", ""])
def test_a_python_that_is_absent_fails_tasks(local_cluster, monkeypatch, path):
    monkeypatch.setattr("vinecore.factory.adaptive.INITIAL_BACKOFF_S", 0.01)
    m = local_cluster.start_manager()
    m.submit(PythonTask(sample_tasks.add, 1, 2))
    monkeypatch.setattr(sys, "executable", path)
    with Factory("local", manager=m, cores=1, factory_period=0.01):
        error = m.wait(PATIENCE_S).error()
    assert isinstance(error, WorkersNotStarted)
    assert (path or "sys.executable is empty") in str(error)


def test_an_environment_without_python_fails_tasks(local_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("vinecore.factory.adaptive.INITIAL_BACKOFF_S", 0.01)
    with tarfile.open(tmp_path / "env.tar.gz", "w:gz"):
        pass
    m = local_cluster.start_manager()
    m.submit(PythonTask(sample_tasks.add, 1, 2))
    with Factory("local", manager=m, cores=1, factory_period=0.01, python_env=str(tmp_path / "env.tar.gz")):
        assert "it has no bin/python" in str(m.wait(PATIENCE_S).output)


def test_workers_that_connected_are_always_replaced(local_cluster, tmp_path, monkeypatch):
    """Failures to start are counted from the last worker that has connected."""
    monkeypatch.setattr("vinecore.factory.adaptive.INITIAL_BACKOFF_S", 0.001)
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1, factory_period=0.01) as factory:
        for _ in range(MAX_START_TRIES + 1):
            m.wait_for_workers(1, PATIENCE_S)
            factory.processes[0].kill()
            wait_until(lambda: m.workers_connected == 0, "the manager to notice")
        m.wait_for_workers(1, PATIENCE_S)


def test_unresponsive_worker_is_ended(local_cluster, monkeypatch):
    """A worker that does not listen is ended all the same."""
    monkeypatch.setattr("vinecore.factory.local.GRACE_S", 0.2)
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        [process] = factory.processes
        os.kill(process.pid, signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL
    assert not is_alive(process.pid)


def test_stop_removes_files_and_is_idempotent(local_cluster):
    """Stopping removes all files and may be done twice."""
    m = local_cluster.start_manager()
    factory = Factory("local", manager=m, cores=1, workspace=local_cluster.folder / "tmp").start()
    m.wait_for_workers(1, PATIENCE_S)
    assert any((local_cluster.folder / "tmp").iterdir())
    factory.stop()
    factory.stop()
    assert list((local_cluster.folder / "tmp").iterdir()) == []


def test_closed_manager_ends_its_factory(local_cluster):
    """A manager that is closed ends its factory."""
    m = local_cluster.start_manager()
    factory = Factory("local", manager=m, cores=1).start()
    m.wait_for_workers(1, PATIENCE_S)
    [process] = factory.processes
    m.close()
    assert process.returncode == 0
    assert factory.processes == []


def test_workers_import_what_the_user_can_import(local_cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("WORD = 'found'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1):
        m.submit(PythonTask(lambda: __import__("only_here").WORD))
        assert m.wait(PATIENCE_S).output == "found"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_type": "condor-of-tomorrow"}, "batch_type"),
        ({"manager": None}, "manager"),
        ({"min_workers": 0}, "min_workers=0"),
        ({"min_workers": 3, "max_workers": 2}, "max_workers=2"),
    ],
)
def test_what_makes_no_sense_is_refused(m, options, words):
    with pytest.raises(ValueError, match=words):
        Factory(**{"manager": m, **options})


def test_requested_workspace_is_made(local_cluster, monkeypatch):
    """A workspace is made where it is wanted and needed to keep something."""
    m = local_cluster.start_manager()
    monkeypatch.setenv("HOME", str(local_cluster.folder))
    with Factory("local", manager=m, cores=1, workspace="~/deep/place"):
        m.wait_for_workers(1, PATIENCE_S)
        assert [path.name.partition("-local-")[0] for path in local_cluster.path("deep/place").iterdir()] == [
            "vine"
        ]
    assert not [*local_cluster.path("deep/place").iterdir()]
    with pytest.raises(ValueError, match="keep_workspace=True needs a workspace"):
        Factory("local", manager=m, keep_workspace=True)


def listening(process):
    """The addresses on which a process listens."""
    return {
        found.laddr.ip
        for found in psutil.Process(process.pid).net_connections()
        if found.status == psutil.CONN_LISTEN
    }


def test_loopback_managers_workers_listen_on_loopback(local_cluster):
    """Workers of a manager on loopback listen there only."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, min_workers=2, cores=1) as factory:
        m.wait_for_workers(2, PATIENCE_S)
        assert [listening(process) for process in factory.processes] == [{"127.0.0.1"}] * 2
        maker = PythonTask(sample_tasks.make_bytes, 200_000)
        maker.enable_temp_output()
        maker.set_cores(1)
        m.submit(maker)
        assert wait_for_task(m).successful()
        # one reads where it was made, the other one has fetched it
        readers = [
            PythonTask(
                sample_tasks.held_length,
                str(local_cluster.folder),
                f"reader-{number}",
                "gate",
                maker.output_file,
            )
            for number in range(2)
        ]
        for reader in readers:
            reader.set_cores(1)
            m.submit(reader)
        wait_until(
            lambda: sum(local_cluster.count_lines(f"reader-{number}") for number in range(2)) == 2,
            "both to have it",
        )
        local_cluster.path("gate").touch()
        assert [wait_for_task(m).output for _ in readers] == [len(sample_tasks.make_bytes(200_000))] * 2
        assert m.get_file_replica_count(maker.output_file) == 2


def test_public_managers_workers_listen_everywhere(local_cluster):
    """Workers of a manager for everybody listen everywhere."""
    m = local_cluster.start_manager(address="")
    with Factory("local", manager=m, min_workers=1, cores=1) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        assert all(listening(process) & {"::", "0.0.0.0"} for process in factory.processes)
