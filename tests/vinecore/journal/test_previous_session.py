"""What a manager reads in the journals of those that have died."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys

import msgspec
import psutil
import pytest

from tests.harness.processes import free_port, is_alive, scheduler_state, wait_until
from vinecore import Manager, journal
from vinecore.journal import records as j
from vinecore.journal.previous_session import find_previous_session
from vinecore.server.object_store import remove_leftover_staging

HERE = socket.gethostname()
LARGE = 1 << 20
encode = msgspec.json.Encoder().encode_lines


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not is_alive(process.pid)
    return process.pid


@pytest.fixture
def write(tmp_path, dead):
    """Write a journal, and give its path."""

    def write(name, *records, tail=b"", **about):
        known = {"time": float(len(list(tmp_path.iterdir()))), "host": HERE, "pid": dead, "manager": "m", "port": 7, "daskvine": "0", "python": "3",
                 "packages": {}, "session": f"5e55{name}", **about}  # fmt: skip
        path = tmp_path / name / journal.FILE
        path.parent.mkdir()
        path.write_bytes(encode([j.Header(0.0, journal.VERSION, **known), *records]) + tail)
        return path

    return write


def made(number, name, size=LARGE, digest="12", t=1.0, **more):
    return [
        j.TaskSubmittedRecord(t, number, f"t{number}", result=name),
        j.TaskDoneRecord(t, number, 1, 0.1, size, digest=digest, **more),
    ]


def joined(number, host="elsewhere", pid=1, t=1.0):
    return j.WorkerConnectedRecord(t, number, host, "127.0.0.1", "3.11", 1, 1, 1, pid=pid)


def test_made_and_received_files_are_known(tmp_path, write):
    """What was made and what has arrived is known."""
    path = write(
        "1", *made(1, "a"), *made(2, "result-5e551-2"), *made(3, "b", 10, "12"), j.TaskSubmittedRecord(1.0, 4, "t4", result="c"),
        *made(5, "result-5e551-5", outputs={"o": LARGE, "d": -1, "temp-5e551-1": LARGE}, digests={"o": "34"}),
        j.FileDeclaredRecord(1.0, "small", 5), j.FileDeclaredRecord(1.0, "large", LARGE), j.FileDeclaredRecord(1.0, "tree", archive="large"),
        j.TransferEndedRecord(1.0, "large", "manager", 1, LARGE, 0.1, "56"),
    )  # fmt: skip
    past = find_previous_session(tmp_path, "m")
    assert (past.journal, past.port) == (path, 7)
    assert past.results == {
        ("a", LARGE, "12"), ("b", 10, ""), ("o", LARGE, "34"), ("d", -1, ""), ("small", 5, ""), ("large", LARGE, "56"), ("tree", -1, ""),
    }  # fmt: skip


def test_graph_private_files_are_forgotten(tmp_path, write):
    """Neither what a task has made whose name does not tell all that it has used, nor a copy of it; what is made under its name later is."""
    write(
        "1", *made(1, "a", single_use=True, outputs={"o": LARGE}, digests={"o": "34"}), j.TransferEndedRecord(1.0, "a", "1", 2, LARGE, 0.1, "12"),
        j.TransferEndedRecord(1.0, "o", "1", 2, LARGE, 0.1, "34"), *made(2, "b", single_use=True), *made(3, "b", digest="56"), *made(4, "c", 10, single_use=True),
        *made(5, "d", single_use=True), *made(6, "d"), j.TransferEndedRecord(1.0, "d", "1", 2, LARGE, 0.1, "12"),
    )  # fmt: skip
    assert find_previous_session(tmp_path, "m").results == {("b", LARGE, "56"), ("d", LARGE, "12")}


def test_all_versions_of_name_are_known(tmp_path, write):
    """All that was ever made under a name is known."""
    write("1", *made(1, "a", digest="12"), *made(2, "a", digest="34"))
    assert find_previous_session(tmp_path, None).results == {("a", LARGE, "12"), ("a", LARGE, "34")}


@pytest.mark.parametrize(
    "tail", [b'{"kind":"task_done","t":2.0,"ta', b'{"kind":"task_done"}\n', bytes(100), bytes(100) + b"\n"]
)
def test_truncated_record_is_skipped(tmp_path, write, tail):
    """What was not written to its end is left out."""
    write("1", *made(1, "a"), tail=tail)
    assert find_previous_session(tmp_path, None).results == {("a", LARGE, "12")}


def test_nothing_to_resume_is_found(tmp_path, write):
    """Nothing is gone on with where nothing was begun or all has ended."""
    assert find_previous_session(tmp_path / "nowhere", None) is None
    write("1", *made(1, "a"))
    write("2", *made(2, "b"), j.ManagerClosedRecord(2.0))
    assert find_previous_session(tmp_path, None) is None


def test_a_name_tells_one_manager_from_another(tmp_path, write):
    mine = write("1", *made(1, "a"))
    other = write("2", manager="other")
    assert find_previous_session(tmp_path, "m").journal == mine
    assert find_previous_session(tmp_path, None).journal == other
    assert find_previous_session(tmp_path, "nobody") is None


def test_journals_of_one_run_are_added_up(tmp_path, write):
    first = write("1", *made(1, "a"), joined(1, "x"), joined(2, "y"), joined(3, "z"))
    second = write(
        "2", *made(1, "b"), joined(1, "y"), j.WorkerDisconnectedRecord(2.0, 1, "it broke"), resumes=str(first)
    )
    write("3", joined(1, "w"), resumes=str(second))
    past = find_previous_session(tmp_path, None)
    assert {name for name, _size, _digest in past.results} == {"a", "b"}
    assert sorted(past.workers) == [("w", 1), ("x", 1), ("z", 1)]
    assert past.sessions == ["5e553", "5e552", "5e551"]
    first.unlink()
    assert {name for name, _size, _digest in find_previous_session(tmp_path, None).results} == {"b"}


def test_ended_workers_are_not_awaited(tmp_path, write, dead):
    """Workers that have ended or stayed away are not waited for."""
    first = write(
        "1", joined(1, "stayed away"), joined(2, "came"), joined(3, HERE, dead), joined(4, HERE, os.getpid())
    )
    write("2", joined(1, "came"), joined(2, HERE, os.getpid()), joined(3, "new", t=100.0), resumes=str(first))
    assert sorted(find_previous_session(tmp_path, None).workers) == sorted(
        [("came", 1), ("new", 1), (HERE, os.getpid())]
    )


def test_zombie_worker_is_not_awaited(tmp_path, write):
    """As in a container, whose first process takes no notice of what ends."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        wait_until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE, "its end")
        write("1", joined(1, HERE, ended.pid), joined(2, HERE, os.getpid()))
        assert find_previous_session(tmp_path, None).workers == [(HERE, os.getpid())]


def test_running_manager_is_left_alone(tmp_path, write, caplog):
    """A manager that still runs is let alone."""
    path = write("1", *made(1, "a"), pid=os.getpid())
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert find_previous_session(tmp_path, None) is None
        assert "still runs" in caplog.text
    assert find_previous_session(tmp_path, None) is not None


def test_lock_outliving_manager_is_ignored(tmp_path, write):
    """Processes that it has forked may hold it."""
    path = write("1", *made(1, "a"))
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert find_previous_session(tmp_path, None) is not None


def test_what_is_no_journal_is_passed_over(tmp_path, write, caplog):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / journal.FILE).write_text("what?\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / journal.FILE).touch()
    path = write("1", *made(1, "a"))
    assert find_previous_session(tmp_path, None).journal == path
    assert "is not a journal" in caplog.text


def test_journals_of_other_versions_are_skipped(tmp_path, write, caplog):
    """Journals of another version are set aside with one line."""
    for name in ("1", "2", "3"):
        path = write(name, *made(1, "a"))
        path.write_bytes(path.read_bytes().replace(b'"version":3', b'"version":1', 1))
    (tmp_path / j.MOST_RECENT).symlink_to("3")
    assert find_previous_session(tmp_path, None) is None
    (line,) = caplog.messages
    assert f"{path} is a journal of version 1, and this daskvine reads version 3" in line
    assert line.endswith(", and 2 more")


def test_temporary_files_of_killed_manager_go(tmp_path, write, monkeypatch):
    """What a killed manager has left in the temporary folder goes."""
    temporary = tmp_path / "tmp"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name in ("vine-manager-5e551-xyz", "vine-manager-other-xyz", "vine-manager-xyz"):
        (temporary / name).mkdir(parents=True)
    write("1")
    remove_leftover_staging(find_previous_session(tmp_path, None).sessions)
    assert {path.name for path in temporary.iterdir()} == {"vine-manager-other-xyz", "vine-manager-xyz"}
    write("2", session="")
    remove_leftover_staging(find_previous_session(tmp_path, None).sessions)
    assert len(list(temporary.iterdir())) == 2


# ---- managers


def test_running_manager_is_detected_until_end(local_cluster):
    """A running manager is seen and its end as well."""
    info = local_cluster.path("info")
    m = local_cluster.start_manager(name="m", run_info_path=info, resume=True)
    assert m.resumed_from is None
    assert local_cluster.start_manager(name="m", run_info_path=info, resume=True).resumed_from is None
    m.close()
    assert local_cluster.start_manager(name="m", run_info_path=info, resume=True).resumed_from is None


def test_it_listens_where_the_dead_one_did(local_cluster, dead):
    info = local_cluster.path("info")
    port = free_port()
    m = local_cluster.start_manager(name="m", run_info_path=info, resume=True, port=port)
    path = m.journal
    m.close()
    lines = (
        path.read_bytes()
        .replace(f'"pid":{os.getpid()}'.encode(), f'"pid":{dead}'.encode())
        .splitlines(keepends=True)
    )
    path.write_bytes(b"".join(line for line in lines if b'"manager_closed"' not in line))
    second = local_cluster.start_manager(name="m", run_info_path=info, resume=True)
    assert (second.resumed_from, second.port) == (path, port)
    assert next(journal.read(second.journal)).resumes == str(path)


def test_worker_ending_later_is_not_awaited(local_cluster, tmp_path, write):
    """As those of a program that was killed, which end with it, but not at once."""
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write("1", joined(1, HERE, worker.pid), joined(2, "elsewhere", 7))
    m = local_cluster.start_manager(name="m", run_info_path=tmp_path, resume=True)
    awaited = lambda: scheduler_state(m, lambda scheduler: set(scheduler.resumed.awaited_workers))  # noqa: E731
    assert awaited() == {(HERE, worker.pid), ("elsewhere", 7)}
    worker.communicate(b"")
    wait_until(lambda: awaited() == {("elsewhere", 7)})


def test_without_journal_nothing_is_resumed(local_cluster):
    """Without a journal there is nothing to go on with."""
    with pytest.raises(ValueError, match="resume=True needs a journal"):
        Manager(0, resume=True, run_info_path=False)
