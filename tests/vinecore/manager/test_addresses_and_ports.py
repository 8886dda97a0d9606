"""Ports, names and addresses, of both families."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from tests.harness.processes import PATIENCE_S, free_port, scheduler_state, wait_until, worker_summaries
from vinecore import Manager, Task
from vinecore.protocol.ports import canonical_address, parse_ports

RESOLVER = """
import socket
from vineworker import cli

ask = socket.getaddrinfo


def answer(host, port, *rest, **more):
    if host != "several.example":
        return ask(host, port, *rest, **more)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 3)]


socket.getaddrinfo = answer
cli.main()
"""
"""A worker where a name has two addresses."""


@contextlib.contextmanager
def taken(count=1):
    """Ports in a row of which the first ones are in use; gives the first and the next that is free."""
    while True:
        with contextlib.ExitStack() as stack:
            first = free_port()
            try:
                for n in range(count):
                    stack.enter_context(socket.create_server(("127.0.0.1", first + n)))
                socket.create_server(("127.0.0.1", first + count)).close()
            except (OSError, OverflowError):
                continue
            yield first, first + count
            return


def needs_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")


def run_on_each(m, folder):
    """Have one worker make a file and the other one read it; give what that has read."""
    temp = m.declare_temp()
    maker = Task("echo precious > out")
    maker.set_cores(2)
    maker.add_output(temp, "out")
    m.submit(maker)
    assert m.wait(PATIENCE_S).successful()
    # the reader that has the file's own worker waits for the other one to begin
    readers = [Task(f"echo {n} >> {folder}/readers; while [ $(wc -l < {folder}/readers) -lt 2 ]; do sleep 0.02; done; cat in") for n in range(2)]  # fmt: skip
    for reader in readers:
        reader.set_cores(2)
        reader.add_input(temp, "in")
        m.submit(reader)
    return [m.wait(PATIENCE_S).output for _ in readers]


@pytest.mark.parametrize("text", ["", "x", "1:", ":1", "2:1", "0:5", "70000", "1:70000", "-1"])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ValueError, match="LOW:HIGH"):
        parse_ports(text)


def test_ports_are_one_or_a_range():
    assert parse_ports("9200") == (9200, 9200)
    assert parse_ports("9200:9299") == (9200, 9299)
    assert parse_ports("0") == (0, 0)


def test_ipv4_address_is_used_by_name():
    """An address of the older family is called by its name."""
    assert [canonical_address(a) for a in ("::ffff:10.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0")] == ["10.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0"]  # fmt: skip


def test_manager_takes_first_free_port(local_cluster):
    """A manager takes the first free port of a range."""
    with taken(2) as (first, free):
        assert local_cluster.start_manager(port=[first, free]).port == free
        with pytest.raises(OSError, match=f"any port from {first} to {free - 1}"):
            local_cluster.start_manager(port=(first, free - 1))


def test_site_ports_bound_any_port(local_cluster, monkeypatch):
    """Where the site names ports any port is one of them."""
    with taken(1) as (first, free):
        monkeypatch.setenv("TCP_LOW_PORT", str(first))
        monkeypatch.setenv("TCP_HIGH_PORT", str(free))
        assert local_cluster.start_manager().port == free
    monkeypatch.setenv("VINE_PORT", str(first))
    assert local_cluster.start_manager().port == first
    monkeypatch.setenv("VINE_PORT", "many")
    with pytest.raises(ValueError, match="VINE_PORT is 'many'"):
        local_cluster.start_manager()


def test_ipv6_only_manager_and_workers(local_cluster):
    """A manager and workers that have only the newer family."""
    needs_ipv6()
    m = local_cluster.start_manager(address="::1")
    local_cluster.start_workers(m, 2, host="::1")
    addresses = scheduler_state(
        m, lambda scheduler: [worker.data_address for worker in scheduler.state.workers.values()]
    )
    assert all(address.startswith("::1:") for address in addresses)
    assert run_on_each(m, local_cluster.folder) == ["precious\n"] * 2


def test_manager_on_all_addresses_has_both_families(local_cluster):
    """A manager on all addresses has workers of both families."""
    needs_ipv6()
    m = local_cluster.start_manager(address="")
    local_cluster.start_workers(m, 1, host="::1")
    local_cluster.start_workers(m, 1, host="127.0.0.1")
    hosts = scheduler_state(m, lambda scheduler: [worker.host for worker in scheduler.state.workers.values()])
    assert hosts == ["::1", "127.0.0.1"]
    assert run_on_each(m, local_cluster.folder) == ["precious\n"] * 2


def test_each_address_of_a_name_is_tried(local_cluster):
    command = [sys.executable, "-c", RESOLVER]
    m = local_cluster.start_manager(address="127.0.0.3")
    [worker] = local_cluster.start_workers(m, 1, command=command, host="several.example")
    wrong = local_cluster.path("wrong")
    wrong.write_text("another secret")
    with Manager(port=m.port, address="127.0.0.2", password_file=wrong):  # whom the worker does not know
        local_cluster.start_workers(m, 1, command=command, host="several.example")
    assert run_on_each(m, local_cluster.folder) == ["precious\n"] * 2
    m.close()
    assert worker.wait() == 0
    lost = local_cluster.start_worker(m.port, "--timeout", "0.2", command=command, host="several.example")
    assert lost.wait() == 1
    assert "no manager at several.example" in lost.log


def test_peers_fetch_from_told_address(local_cluster):
    """Peers fetch where the worker was told to listen."""
    m = local_cluster.start_manager()
    with taken(1) as (first, free):
        local_cluster.start_workers(m, 1, "--transfer-port", f"{first}:{free}")
        refused = local_cluster.start_worker(m, "--transfer-port", str(first))
        assert refused.wait() == 2
        assert f"cannot listen on port {first}" in refused.log
        assert "--transfer-port" in refused.log
    local_cluster.start_workers(m, 1)
    addresses = scheduler_state(
        m, lambda scheduler: [worker.data_address for worker in scheduler.state.workers.values()]
    )
    assert addresses[0] == f"127.0.0.1:{free}"
    assert run_on_each(m, local_cluster.folder) == ["precious\n"] * 2


def test_peers_dial_what_they_are_told_to(local_cluster):
    m = local_cluster.start_manager()
    with taken(1) as (first, free):
        lost = local_cluster.start_worker(m, "--contact-hostport", "nowhere")
        assert lost.wait() == 2
        assert "HOST:PORT" in lost.log
        local_cluster.start_workers(
            m, 1, "--transfer-port", str(free), "--contact-hostport", f"localhost:{free}"
        )
    local_cluster.start_workers(m, 1)
    wait_until(lambda: len(worker_summaries(m)) == 2, "both workers")
    addresses = scheduler_state(
        m, lambda scheduler: [worker.data_address for worker in scheduler.state.workers.values()]
    )
    assert addresses[0] == f"localhost:{free}" != f"localhost:{first}"
    assert run_on_each(m, local_cluster.folder) == ["precious\n"] * 2
