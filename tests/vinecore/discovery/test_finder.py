"""Workers find their manager by its name."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from vineworker import zipapp_builder
from vineworker.manager_connection import ManagerConnector

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, find_python, free_port, wait_until
from vinecore import Manager, Task
from vinecore.discovery.announcer import make_record
from vinecore.protocol import handshake
from vinecore.protocol.discovery import registry
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.security.shared_secret import read_secret, write_secret


@pytest.fixture
def by_name(local_cluster):
    """Start a worker that knows no more than a name."""

    def start(name, *options, **env):
        return local_cluster.start_worker(None, "-M", name, *options, **env)

    return start


def entered():
    return {about["project"]: about for about in registry.read(registry.registry_directory())}


def works(m):
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("echo fine"))
    task = m.wait(PATIENCE_S)
    assert task is not None
    return task.output == "fine\n"


def test_worker_finds_manager_by_name(local_cluster, by_name):
    """A worker finds its manager by its name."""
    local_cluster.start_manager(name="other")
    m = local_cluster.start_manager(name="my-analysis")
    worker = by_name("my-analysis")
    assert works(m)
    assert "looking for a manager called my-analysis" in worker.log


def test_name_may_be_full_regular_expression(local_cluster, by_name):
    """A name may be a regular expression of the whole name."""
    local_cluster.start_manager(name="run-12")
    m = local_cluster.start_manager(name="run-3")
    by_name("run-.")
    assert works(m)


def test_open_manager_is_entered_without_secret(local_cluster):
    """A manager is entered while it is open and holds no secret there."""
    with local_cluster.start_manager(name="my-analysis") as m:
        about = entered()["my-analysis"]
        assert (about["port"], about["pid"], about["name"]) == (m.port, os.getpid(), socket.gethostname())
        [path] = Path(registry.registry_directory()).glob("[!.]*")  # but for what is being written
        assert local_cluster.secret.read_text().strip() not in path.read_text()
    assert os.listdir(registry.registry_directory()) == []


def test_unnamed_manager_is_not_entered(local_cluster):
    """Who has no name or does not want to be is not entered."""
    local_cluster.start_manager()
    local_cluster.start_manager(name="hidden", registry=False)
    assert entered() == {}
    local_cluster.start_manager(name="elsewhere", registry=local_cluster.path("common"))
    assert [about["project"] for about in registry.read(str(local_cluster.path("common")))] == ["elsewhere"]
    assert entered() == {}


def test_a_registry_may_be_named(local_cluster, by_name):
    m = local_cluster.start_manager(name="mine", registry=local_cluster.path("common"))
    by_name("mine", "--registry", str(local_cluster.path("common")))
    assert works(m)


def test_unwritable_registry_does_not_stop_manager(local_cluster, caplog):
    """A manager goes on where the registry cannot be written."""
    local_cluster.path("file").touch()
    m = local_cluster.start_manager(name="mine", registry=local_cluster.path("file"))
    local_cluster.start_worker(m)
    assert works(m)
    wait_until(lambda: "workers cannot find this manager by its name" in caplog.text)


@pytest.mark.parametrize("name", ["a\nb", "x" * 201])
def test_what_is_not_a_name_is_refused(name):
    with pytest.raises(ValueError, match="printable characters"):
        Manager(port=0, name=name)


def test_worker_waits_for_and_follows_manager(local_cluster, by_name):
    """A worker waits for the manager and follows it to another port."""
    worker = by_name("mine", "--timeout", "100", command=sample_tasks.PERSISTENT)
    worker.wait_for_log("there is none in")
    with local_cluster.start_manager(name="mine", port=free_port()) as m:
        assert works(m)
    with socket.create_server(("127.0.0.1", m.port)):
        assert works(local_cluster.start_manager(name="mine"))
    assert worker.process.poll() is None


def test_unsuccessful_worker_ends_after_timeout(local_cluster, by_name):
    """A worker that finds none leaves after its timeout and says where it looked."""
    worker = by_name("mine", "--timeout", "0.5")
    assert worker.wait() == 1
    assert f"no manager called mine: there is none in {registry.registry_directory()}" in worker.log


def test_one_that_was_killed_misleads_nobody(local_cluster, by_name):
    """Its file is still there, and another manager of the same user is where it was."""
    code = "import sys; from vinecore import Manager; m = Manager(port=int(sys.argv[1]), name='mine', password_file=sys.argv[2], address='127.0.0.1'); print(m.port, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(free_port()), str(local_cluster.secret)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    with process:
        port = int(process.stdout.readline())
        process.kill()
    [path] = Path(registry.registry_directory()).glob("[!.]*")  # but for what is being written
    about = json.loads(path.read_text())
    other = local_cluster.start_manager(name="other", port=port)
    worker = by_name("mine", "--timeout", "100")
    worker.wait_for_log("there is none in")
    assert not path.exists()
    # and one of another machine, of which nobody here can say whether it is still there
    path.write_text(json.dumps({**about, "machine": "another one"}))
    worker.wait_for_log("the manager there is called 'other'")
    m = local_cluster.start_manager(name="mine")
    assert works(m)
    assert other.workers_connected == 0


def test_manager_with_other_secret_is_skipped(local_cluster, by_name, tmp_path):
    """A manager with another secret is passed over."""
    theirs = tmp_path / "theirs"
    write_secret(theirs)
    local_cluster.start_manager(name="mine-1", password_file=theirs)
    worker = by_name("mine-.", "--timeout", "100")
    worker.wait_for_log("wrong secret")
    m = local_cluster.start_manager(name="mine-2")
    assert works(m)


def test_address_and_name_must_both_match(local_cluster, by_name):
    """With an address and a name both have to fit."""
    other, m = (
        local_cluster.start_manager(name="other"),
        local_cluster.start_manager(name="mine", registry=False),
    )
    worker = local_cluster.start_worker(other, "-M", "mine", "--timeout", "100")
    worker.wait_for_log("the manager there is called 'other'")
    worker.kill()
    local_cluster.start_worker(m, "-M", "mine")
    assert works(m)


def test_several_addresses_are_tried_one_after_another(local_cluster):
    m = local_cluster.start_manager()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vineworker", f"127.0.0.1:{closed};127.0.0.1:{m.port}", "-P", local_cluster.secret, "--single-shot", "--cores", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert works(m)
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_searching_worker_ends_on_signal(by_name):
    """A worker in the dark leaves at once when it is told to."""
    worker = by_name("nobody")
    worker.wait_for_log("there is none in")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("version", ["3.9"])
def test_the_one_file_finds_managers_too(local_cluster, by_name, version):
    python, path = find_python(version), zipapp_builder.write_zipapp(str(local_cluster.folder))
    m = local_cluster.start_manager(name="mine")
    worker = by_name("mine", command=[python, path], PYTHONPATH="")
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("echo fine", cores=1))
    assert m.wait(PATIENCE_S).output == "fine\n"
    assert "Traceback" not in worker.log


def test_tls_is_used_where_recorded(local_cluster, by_name):
    """Tls is spoken where the record says so."""
    pytest.importorskip("cryptography")
    m = local_cluster.start_manager(name="mine", ssl=True)
    by_name("mine")
    assert works(m)


def test_requested_tls_is_never_dropped(local_cluster, by_name):
    """Tls that was asked for is never given up."""
    local_cluster.start_manager(name="mine")
    worker = by_name("mine", "--ssl-fingerprint", "00" * 32, "--timeout", "100")
    worker.wait_for_log("it does not speak TLS")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-M", "("], "neither a name nor a regular expression"),
        (["-M", "x", "-C", "a b"], "is not a catalog server"),
        ([], "or the manager's name with -M NAME"),
    ],
)
def test_invalid_option_is_refused_with_remedy(local_cluster, words, said):
    """What cannot be understood is refused with what to do."""
    ended = subprocess.run(
        [sys.executable, "-m", "vineworker", *words, "-P", local_cluster.secret], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert (ended.returncode, said in " ".join(ended.stderr.split())) == (2, True)


def test_slow_manager_is_tried_last(local_cluster, monkeypatch):
    """Who does not answer in time is tried last the next time."""
    folder = str(local_cluster.path("managers"))

    def enter(key, port, **more):
        about = make_record(name="mine", key=key, bound="127.0.0.1", port=port, ssl=False)
        registry.write(folder, key, {**about, **more})

    search = ManagerConnector(read_secret(local_cluster.secret), (), ManagerFinder("mine", folder))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        enter("silent", port, tasks_waiting=9)
        with monkeypatch.context() as soon:
            soon.setattr(handshake, "TIMEOUT_S", 0.3)
            with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}: timed out"):
                search.connect()
        m = local_cluster.start_manager(name="mine", registry=folder)
        assert [address[1] for address, _ssl in search._candidate_addresses()] == [m.port, port]
        sock, _key, manager = search.connect()
        sock.close()
    assert manager.address == ("127.0.0.1", m.port)
