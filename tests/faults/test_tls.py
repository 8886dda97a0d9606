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
from tests.harness.processes import (
    PATIENCE_S,
    make_file_and_block,
    scheduler_state,
    wait_for_task,
    wait_until,
)
from vinecore import Factory, PythonTask, Task
from vinecore.factory.cli import command
from vinecore.protocol import tls
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.security import certificates
from vinecore.security.shared_secret import read_secret

pytest.importorskip("cryptography")
LARGE = 5_000_000


def test_run_over_tls_with_peer_transfer(local_cluster):
    """A run over tls with a transfer between peers."""
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
    assert not scheduler_state(
        m, lambda scheduler: scheduler.state.files[maker.output_file.cache_name].at_manager
    )
    m.submit(PythonTask(sample_tasks.make_bytes, LARGE))
    assert wait_for_task(m).output == sample_tasks.make_bytes(LARGE)


def test_a_worker_leaves_with_its_manager(local_cluster):
    m = local_cluster.start_manager(ssl=True, shutdown=True)
    [worker] = local_cluster.start_workers(m, 1, "--ssl")
    m.close()
    assert worker.wait() == 0
    assert "the manager has ended" in worker.log


def test_worker_without_tls_is_refused(local_cluster, caplog):
    """A worker without tls is refused and both say why."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager(ssl=True)
    worker = local_cluster.start_worker(m)
    assert worker.wait() == 1
    assert "this manager wants TLS: use --ssl" in worker.log
    wait_until(lambda: "start vine_worker with --ssl" in caplog.text)


def test_worker_with_tls_leaves_plain_manager(local_cluster, caplog):
    """A worker with tls leaves a manager without it."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "it does not speak TLS" in worker.log
    wait_until(lambda: "start the manager with ssl=True" in caplog.text)


def test_other_certificate_is_refused_before_secret(local_cluster):
    """A worker refuses another certificate before it uses the secret."""
    m = local_cluster.start_manager(ssl=True)
    worker = local_cluster.start_worker(m, "--ssl-fingerprint", "00" * 32)
    assert worker.wait() == 1
    assert "its certificate is not the one that was expected" in worker.log
    assert m.workers_connected == 0


def test_worker_without_fingerprint_says_remedy(local_cluster):
    """A worker that knows no fingerprint says what to do."""
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--ssl")
    assert worker.wait() == 2
    assert "name the fingerprint with --ssl-fingerprint" in worker.log


def test_stalled_handshakes_block_nobody(local_cluster):
    """Those who stall in the handshake keep nobody waiting."""
    m = local_cluster.start_manager(ssl=True)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", m.port)))
            sock.sendall(b"\x16\x03\x01"[: number % 4])
        local_cluster.start_workers(m, 1, "--ssl")
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


def test_own_key_and_certificate_are_used(local_cluster):
    """A key and a certificate of the users own are taken."""
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


def test_invalid_key_and_certificate_are_refused(local_cluster):
    """What is no key and certificate is refused."""
    with pytest.raises(ValueError, match="the paths of a key and of its certificate"):
        local_cluster.start_manager(ssl="key.pem")
    local_cluster.path("empty").touch()
    with pytest.raises(ValueError, match="holds no certificate"):
        local_cluster.start_manager(ssl=(local_cluster.path("empty"), local_cluster.path("empty")))


def test_local_factory_uses_tls_of_manager(local_cluster):
    """A local factory uses tls where its manager does."""
    m = local_cluster.start_manager(ssl=True)
    with Factory("local", manager=m, min_workers=1, max_workers=1, cores=1):
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


@pytest.mark.parametrize("named", [False, True], ids=["from the file", "named"])
def test_factory_uses_tls_with_other_process(local_cluster, named):
    """A factory speaks tls with a manager of another process and so do its workers."""
    m = local_cluster.start_manager(ssl=True)
    how = {"ssl_fingerprint": m.ssl_fingerprint} if named else {"ssl": True}
    where = f"127.0.0.1:{m.port}"
    with Factory(
        "local", manager_host_port=where, password=local_cluster.secret, max_workers=2, cores=1, **how
    ):
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"


def test_factory_without_matching_certificate_refuses(local_cluster, caplog):
    """A factory without tls says what to do and one with another certificate does not believe."""
    m = local_cluster.start_manager(ssl=True)
    where = {"manager_host_port": f"127.0.0.1:{m.port}", "password": local_cluster.secret}
    with Factory("local", min_workers=0, max_workers=1, **where):
        wait_until(lambda: "this manager wants TLS: use --ssl" in caplog.text)
    with Factory("local", min_workers=0, max_workers=1, ssl_fingerprint="00" * 32, **where):
        wait_until(lambda: "its certificate is not the one that was expected" in caplog.text)
    assert m.workers_connected == 0


def test_factory_without_fingerprint_says_remedy(local_cluster):
    """A factory that knows no fingerprint says what to do."""
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


def test_many_open_connections_block_nobody(local_cluster):
    """Many connections stay open and keep nobody out."""
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
        tunnels.drain_and_close(PATIENCE_S)
