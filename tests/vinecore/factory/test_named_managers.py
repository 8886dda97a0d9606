"""Factories that find their managers by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import Factory, Task
from vinecore.discovery.announcer import make_record
from vinecore.factory.batch_system import PilotSpec, worker_command_line
from vinecore.factory.manager_clients import NamedManagers, Target
from vinecore.factory.settings import FactorySettings
from vinecore.protocol.discovery import registry
from vinecore.scheduler.queue_stats import QueueStats


def works(m, count=1):
    for _ in range(count):
        m.submit(Task("echo fine", cores=1))
    assert [m.wait(PATIENCE_S).output for _ in range(count)] == ["fine\n"] * count
    return True


def enter(name, key, port, **more):
    """Enter somebody as if it was on another machine."""
    about = make_record(name=name, key=key, bound="127.0.0.1", port=port, ssl=False)
    registry.write(registry.registry_directory(), key, {**about, **more})


@pytest.fixture
def dead_port():
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return gone.getsockname()[1]


def test_command_serves_matching_managers(local_cluster):
    """The command serves all managers whose name matches and ends their workers."""
    first, second, other = (local_cluster.start_manager(name=name) for name in ("run-1", "run-2", "other"))
    log = local_cluster.path("factory.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vinecore.factory.cli", "-T", "local", "-M", "run-.", "-P", local_cluster.secret, "-w", "0", "-W", "2", "--cores", "1",
             "--factory-period", "0.1"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    try:
        for m in (first, second, other):
            m.submit(Task("echo fine", cores=1))
        for m in (first, second):
            assert m.wait(PATIENCE_S).output == "fine\n"
        assert other.workers_connected == 0
        assert first.workers_connected == second.workers_connected == 1
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    wait_until(lambda: first.workers_connected == second.workers_connected == 0)
    assert "Traceback" not in log.read_text()


def test_factory_follows_manager_to_other_port(local_cluster, caplog):
    """A factory waits for a manager and follows it to another port."""
    with Factory(
        "local", manager_name="mine", password=local_cluster.secret, min_workers=0, max_workers=1, cores=1
    ):
        wait_until(lambda: "any manager called mine does not answer: there is none in" in caplog.text)
        with local_cluster.start_manager(name="mine") as m:
            assert works(m)
        with socket.create_server(("127.0.0.1", m.port)):
            assert works(local_cluster.start_manager(name="mine"))


def test_other_managers_do_not_block_live_one(local_cluster, dead_port):
    """Those that are gone or another keep nobody from the one that is there."""
    theirs = local_cluster.start_manager(name="theirs", registry=False)
    enter("mine", "dead", dead_port)
    enter("mine", "another", theirs.port)
    m = local_cluster.start_manager(name="mine")
    with Factory(
        "local", manager_name="mine", password=local_cluster.secret, min_workers=0, max_workers=1, cores=1
    ):
        assert works(m)
    assert theirs.workers_connected == 0


def test_tls_is_used_where_announced(local_cluster):
    """Tls is spoken with those that say so."""
    pytest.importorskip("cryptography")
    m, plain = (
        local_cluster.start_manager(name="mine-1", ssl=True),
        local_cluster.start_manager(name="mine-2"),
    )
    with Factory(
        "local", manager_name="mine-.", password=local_cluster.secret, min_workers=0, max_workers=2, cores=1
    ):
        for each in (m, plain):
            each.submit(Task("echo fine", cores=1))
        assert [each.wait(PATIENCE_S).output for each in (m, plain)] == ["fine\n"] * 2


def test_factory_with_tls_starts_before_first_manager(local_cluster, monkeypatch, tmp_path):
    """A user's first factory makes the certificate that the user's first manager will have."""
    pytest.importorskip("cryptography")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with Factory("local", manager_name="later", ssl=True, min_workers=0, max_workers=1, cores=1):
        m = local_cluster.start_manager(name="later", ssl=True, password_file=None)
        assert works(m)
    assert (tmp_path / "daskvine" / "secret.fingerprint").read_text() == f"{m.ssl_fingerprint}\n"


def test_manager_and_name_exclude_each_other(local_cluster):
    """A manager and a name are not both taken."""
    with pytest.raises(ValueError, match="give the manager"):
        Factory("local", manager=local_cluster.start_manager(), manager_name="mine")
    with pytest.raises(ValueError, match="give the manager"):
        Factory("local")


# ---- sharing


@pytest.fixture
def named(tmp_path):
    """A source that knows three managers, whose demand a test sets."""
    source = NamedManagers(None, tmp_path, (), ())

    def knows(**waiting):
        source._managers = {
            key: (Target(key, 1, tmp_path), QueueStats(waiting=n)) for key, n in waiting.items()
        }
        return source

    return knows


def shared(source, count, pilots=(), **settings):
    given = source.distribute(count, FactorySettings(min_workers=0, **settings), pilots)
    return {target.host: number for number, target in given}


def test_pilots_are_shared_by_need(named):
    """Pilots are shared by what each manager lacks."""
    source = named(a=100, b=50, c=0)
    assert shared(source, 15) == {"a": 10, "b": 5}
    assert shared(source, 4, tasks_per_worker=50) == {"a": 3, "b": 1}
    [(_count, target)] = source.distribute(1, FactorySettings(), ())
    source.submitted(target, [str(n) for n in range(90)])
    assert shared(source, 6, [str(n) for n in range(90)]) == {"a": 1, "b": 5}
    assert shared(source, 15, []) == {"a": 10, "b": 5}, "those that are gone do not count"


def test_pilots_without_need_are_shared_evenly(named):
    """Where no manager lacks any they are shared evenly."""
    assert shared(named(a=0, b=0, c=0), 6) == {"a": 2, "b": 2, "c": 2}
    assert named().distribute(3, FactorySettings(), ()) == []


def test_pilot_knows_addresses_and_next_manager(tmp_path):
    """A pilot is told all addresses and how to find the next manager."""
    find = ("-M", "run-.", "--catalog", "cat:1")
    order = PilotSpec(FactorySettings(), "10.0.0.1", 7, tmp_path, "f", (), (("::1", 7), ("host", 7)), find)
    assert worker_command_line(order)[:5] == ["10.0.0.1:7;[::1]:7;host:7", *find]
    from vineworker.cli import parse_addresses

    assert parse_addresses(worker_command_line(order)[:1]) == (("10.0.0.1", 7), ("::1", 7), ("host", 7))
    assert worker_command_line(order._replace(others=()))[:3] == ["10.0.0.1", "7", "-M"]
