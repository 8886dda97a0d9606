"""Managers and workers that speak TLS, and those that should not be able to."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket

import dask
import pytest
from click.testing import CliRunner

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import make_file_and_block, wait_for_task, wait_until
from vinecore import Factory, PythonTask, Task
from vinecore.factory.cli import command
from vinecore.protocol import tls
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.security import certificates
from vinecore.security.shared_secret import read_secret

pytest.importorskip("cryptography")
LARGE = 5_000_000


def test_a_run_over_tls_with_a_transfer_between_peers(local_cluster):
    m = local_cluster.start_manager(ssl=True)
    local_cluster.start_workers(m, 1, "--ssl")
    maker, blocker = make_file_and_block(local_cluster, m, LARGE)
    local_cluster.start_workers(m, 1, "--ssl-fingerprint", m.ssl_fingerprint)
    reader = PythonTask(sample_tasks.digest, maker.output_file)
    m.submit(reader)
    assert wait_for_task(m) is reader
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is blocker
    assert reader.output == hashlib.sha256(sample_tasks.make_bytes(LARGE)).hexdigest()
    assert not m._engine.query(lambda mind: mind.tables.files[maker.output_file.cache_name].at_manager)
    m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
    assert wait_for_task(m).output == sample_tasks.make_bytes(LARGE)


def test_a_worker_leaves_with_its_manager(local_cluster):
    m = local_cluster.start_manager(ssl=True, shutdown=True)
    [worker] = local_cluster.start_workers(m, 1, "--ssl")
    m.close()
    assert worker.wait() == 0
    assert "the manager has ended" in worker.log


def test_a_worker_without_tls_is_refused_and_both_say_why(local_cluster, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager(ssl=True)
    worker = local_cluster.start_worker(m)
    assert worker.wait() == 1
    assert "this manager wants TLS: use --ssl" in worker.log
    wait_until(lambda: "start vine_worker with --ssl" in caplog.text)


def test_a_worker_with_tls_leaves_a_manager_without_it(local_cluster, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "it does not speak TLS" in worker.log
    wait_until(lambda: "start the manager with ssl=True" in caplog.text)


def test_a_worker_refuses_another_certificate_before_it_uses_the_secret(local_cluster):
    m = local_cluster.start_manager(ssl=True)
    worker = local_cluster.start_worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "its certificate is not the one that was expected" in worker.log
    assert m.workers_connected == 0


def test_a_worker_that_knows_no_fingerprint_says_what_to_do(local_cluster):
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--ssl")
    assert worker.wait() == 2
    assert "name the fingerprint with --ssl-fingerprint" in worker.log


def test_those_who_stall_in_the_handshake_keep_nobody_waiting(local_cluster):
    m = local_cluster.start_manager(ssl=True)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", m.port)))
            sock.sendall(b"\x16\x03\x01"[: number % 4])
        local_cluster.start_workers(m, 1, "--ssl")
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


def test_a_key_and_a_certificate_of_the_users_own_are_taken(local_cluster):
    text, fingerprint = certificates.make_certificate()
    key, certificate = local_cluster.path("key.pem"), local_cluster.path("certificate.pem")
    end = text.index("-----BEGIN CERTIFICATE")
    key.write_text(text[:end])
    certificate.write_text(text[end:])
    m = local_cluster.start_manager(ssl=(key, certificate))
    assert m.ssl_fingerprint == f"sha256:{fingerprint}"
    local_cluster.start_workers(m, 1, "--ssl")
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"


def test_what_is_no_key_and_certificate_is_refused(local_cluster):
    with pytest.raises(ValueError, match="the paths of a key and of its certificate"):
        local_cluster.start_manager(ssl="key.pem")
    local_cluster.path("empty").touch()
    with pytest.raises(ValueError, match="holds no certificate"):
        local_cluster.start_manager(ssl=(local_cluster.path("empty"), local_cluster.path("empty")))


def test_a_local_factory_uses_tls_where_its_manager_does(local_cluster):
    m = local_cluster.start_manager(ssl=True)
    with Factory("local", manager=m, min_workers=1, max_workers=1, cores=1):
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


@pytest.mark.parametrize("named", [False, True], ids=["from the file", "named"])
def test_a_factory_speaks_tls_with_a_manager_of_another_process_and_so_do_its_workers(local_cluster, named):
    m = local_cluster.start_manager(ssl=True)
    how = {"ssl_fingerprint": m.ssl_fingerprint} if named else {"ssl": True}
    where = f"127.0.0.1:{m.port}"
    with Factory(
        "local", manager_host_port=where, password=local_cluster.secret, max_workers=2, cores=1, **how
    ):
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


def test_a_factory_without_tls_says_what_to_do_and_one_with_another_certificate_does_not_believe(
    local_cluster, caplog
):
    m = local_cluster.start_manager(ssl=True)
    where = {"manager_host_port": f"127.0.0.1:{m.port}", "password": local_cluster.secret}
    with Factory("local", min_workers=0, max_workers=1, **where):
        wait_until(lambda: "this manager wants TLS: use --ssl" in caplog.text)
    with Factory("local", min_workers=0, max_workers=1, ssl_fingerprint="00" * 32, **where):
        wait_until(lambda: "its certificate is not the one that was expected" in caplog.text)
    assert m.workers_connected == 0


def test_a_factory_that_knows_no_fingerprint_says_what_to_do(local_cluster):
    words = ["-T", "local", "localhost", "9123", "-P", str(local_cluster.secret)]
    for more, said in (
        [("--ssl",), "copy the file from beside"],
        [("--ssl-fingerprint", "00"), "64 hexadecimal"],
    ):
        result = CliRunner().invoke(command, [*words, *more])
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())


def test_a_vine_of_this_machine_speaks_tls(local_cluster):
    with DaskVine.local(cores=1, ssl=True) as m:
        assert m.ssl_fingerprint
        assert dask.delayed(sample_tasks.add)(1, 2).compute(scheduler=m.get) == 3


def test_many_connections_stay_open_and_keep_nobody_out(local_cluster):
    m = local_cluster.start_manager(ssl=True)
    tunnels, fingerprint = tls.TlsTunnels(), tls.parse_fingerprint(m.ssl_fingerprint)
    secret = read_secret(local_cluster.secret)
    clients = [
        TransferConnection("127.0.0.1", m.port, secret, lambda sock: tunnels.connect(sock, [fingerprint]))
        for _ in range(150)
    ]
    try:
        local_cluster.start_workers(m, 1, "--ssl")
        m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
        assert wait_for_task(m).output == sample_tasks.make_bytes(LARGE)
    finally:
        for client in clients:
            client.close()
        tunnels.drain_and_close(60)
