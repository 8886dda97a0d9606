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
from tests.harness.processes import made_and_held, one_result, until
from vinecore import Factory, PythonTask, Task
from vinecore.factory.cli import command
from vinecore.protocol import tls
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.security import certificates
from vinecore.security.shared_secret import read_secret

pytest.importorskip("cryptography")
LARGE = 5_000_000


def test_a_run_over_tls_with_a_transfer_between_peers(yard):
    m = yard.manager(ssl=True)
    yard.workers(m, 1, "--ssl")
    maker, blocker = made_and_held(yard, m, LARGE)
    yard.workers(m, 1, "--ssl-fingerprint", m.ssl_fingerprint)
    reader = PythonTask(sample_tasks.digest, maker.output_file)
    m.submit(reader)
    assert one_result(m) is reader
    yard.place("gate").touch()
    assert one_result(m) is blocker
    assert reader.output == hashlib.sha256(sample_tasks.make_bytes(LARGE)).hexdigest()
    assert not m._engine.query(lambda mind: mind.tables.files[maker.output_file.cache_name].at_manager)
    m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
    assert one_result(m).output == sample_tasks.make_bytes(LARGE)


def test_a_worker_leaves_with_its_manager(yard):
    m = yard.manager(ssl=True, shutdown=True)
    [worker] = yard.workers(m, 1, "--ssl")
    m.close()
    assert worker.wait() == 0
    assert "the manager has ended" in worker.log


def test_a_worker_without_tls_is_refused_and_both_say_why(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = yard.manager(ssl=True)
    worker = yard.worker(m)
    assert worker.wait() == 1
    assert "this manager wants TLS: use --ssl" in worker.log
    until(lambda: "start vine_worker with --ssl" in caplog.text)


def test_a_worker_with_tls_leaves_a_manager_without_it(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = yard.manager()
    worker = yard.worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "it does not speak TLS" in worker.log
    until(lambda: "start the manager with ssl=True" in caplog.text)


def test_a_worker_refuses_another_certificate_before_it_uses_the_secret(yard):
    m = yard.manager(ssl=True)
    worker = yard.worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "its certificate is not the one that was expected" in worker.log
    assert m.workers_connected == 0


def test_a_worker_that_knows_no_fingerprint_says_what_to_do(yard):
    m = yard.manager()
    worker = yard.worker(m, "--ssl")
    assert worker.wait() == 2
    assert "name the fingerprint with --ssl-fingerprint" in worker.log


def test_those_who_stall_in_the_handshake_keep_nobody_waiting(yard):
    m = yard.manager(ssl=True)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", m.port)))
            sock.sendall(b"\x16\x03\x01"[: number % 4])
        yard.workers(m, 1, "--ssl")
        m.submit(Task("echo fine"))
        assert one_result(m).output == "fine\n"


def test_a_key_and_a_certificate_of_the_users_own_are_taken(yard):
    text, fingerprint = certificates.make_certificate()
    key, certificate = yard.place("key.pem"), yard.place("certificate.pem")
    end = text.index("-----BEGIN CERTIFICATE")
    key.write_text(text[:end])
    certificate.write_text(text[end:])
    m = yard.manager(ssl=(key, certificate))
    assert m.ssl_fingerprint == f"sha256:{fingerprint}"
    yard.workers(m, 1, "--ssl")
    m.submit(Task("echo fine"))
    assert one_result(m).output == "fine\n"


def test_what_is_no_key_and_certificate_is_refused(yard):
    with pytest.raises(ValueError, match="the paths of a key and of its certificate"):
        yard.manager(ssl="key.pem")
    yard.place("empty").touch()
    with pytest.raises(ValueError, match="holds no certificate"):
        yard.manager(ssl=(yard.place("empty"), yard.place("empty")))


def test_a_local_factory_uses_tls_where_its_manager_does(yard):
    m = yard.manager(ssl=True)
    with Factory("local", manager=m, min_workers=1, max_workers=1, cores=1):
        m.submit(Task("echo fine"))
        assert one_result(m).output == "fine\n"


@pytest.mark.parametrize("named", [False, True], ids=["from the file", "named"])
def test_a_factory_speaks_tls_with_a_manager_of_another_process_and_so_do_its_workers(yard, named):
    m = yard.manager(ssl=True)
    how = {"ssl_fingerprint": m.ssl_fingerprint} if named else {"ssl": True}
    where = f"127.0.0.1:{m.port}"
    with Factory("local", manager_host_port=where, password=yard.secret, max_workers=2, cores=1, **how):
        m.submit(Task("echo fine"))
        assert one_result(m).output == "fine\n"


def test_a_factory_without_tls_says_what_to_do_and_one_with_another_certificate_does_not_believe(
    yard, caplog
):
    m = yard.manager(ssl=True)
    where = {"manager_host_port": f"127.0.0.1:{m.port}", "password": yard.secret}
    with Factory("local", min_workers=0, max_workers=1, **where):
        until(lambda: "this manager wants TLS: use --ssl" in caplog.text)
    with Factory("local", min_workers=0, max_workers=1, ssl_fingerprint="00" * 32, **where):
        until(lambda: "its certificate is not the one that was expected" in caplog.text)
    assert m.workers_connected == 0


def test_a_factory_that_knows_no_fingerprint_says_what_to_do(yard):
    words = ["-T", "local", "localhost", "9123", "-P", str(yard.secret)]
    for more, said in (
        [("--ssl",), "copy the file from beside"],
        [("--ssl-fingerprint", "00"), "64 hexadecimal"],
    ):
        result = CliRunner().invoke(command, [*words, *more])
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())


def test_a_vine_of_this_machine_speaks_tls(yard):
    with DaskVine.local(cores=1, ssl=True) as m:
        assert m.ssl_fingerprint
        assert dask.delayed(sample_tasks.add)(1, 2).compute(scheduler=m.get) == 3


def test_many_connections_stay_open_and_keep_nobody_out(yard):
    m = yard.manager(ssl=True)
    cover, fingerprint = tls.TlsTunnels(), tls.parse_fingerprint(m.ssl_fingerprint)
    secret = read_secret(yard.secret)
    clients = [
        TransferConnection("127.0.0.1", m.port, secret, lambda sock: cover.connect(sock, [fingerprint]))
        for _ in range(150)
    ]
    try:
        yard.workers(m, 1, "--ssl")
        m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
        assert one_result(m).output == sample_tasks.make_bytes(LARGE)
    finally:
        for client in clients:
            client.close()
        cover.drain_and_close(60)
